//! Header and data digests: CRC32C (Castagnoli), stored little-endian on the wire.
//!
//! A header digest covers exactly the first HLEN bytes. A data digest covers the data only, and
//! where the data's length is no multiple of 4 it is computed as if zero-padded to one.

/// Bytes of a digest on the wire.
pub const DIGEST_BYTES: usize = 4;

/// CRC32C of `bytes`: the header digest, or a data digest of whole dwords.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// A data digest built over chunks as they pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataDigest {
    crc: u32,
    len: usize,
}

impl DataDigest {
    /// The digest of no data yet.
    pub const fn new() -> Self {
        Self { crc: 0, len: 0 }
    }

    /// Adds the next chunk.
    pub fn update(&mut self, chunk: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, chunk);
        self.len = self.len.wrapping_add(chunk.len());
    }

    /// The digest of all chunks, zero-padded to a dword.
    pub fn finish(&self) -> u32 {
        let pad = self.len.wrapping_neg() % DIGEST_BYTES;
        crc32c::crc32c_append(self.crc, &[0; DIGEST_BYTES][..pad])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors_hold() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xAA, 0x36, 0x91, 0x8A]);
        assert_eq!(crc32c(&[0xFF; 32]).to_le_bytes(), [0x43, 0xAB, 0xA8, 0x62]);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&up).to_le_bytes(), [0x4E, 0x79, 0xDD, 0x46]);
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&down).to_le_bytes(), [0x5C, 0xDB, 0x3F, 0x11]);
    }

    #[test]
    fn data_is_padded_with_zeroes_to_a_dword() {
        let mut digest = DataDigest::new();
        digest.update(b"12345");
        digest.update(b"6789");
        assert_eq!(digest.finish(), crc32c(b"123456789\0\0\0"));
        let mut whole = DataDigest::new();
        whole.update(&[0; 32]);
        assert_eq!(whole.finish().to_le_bytes(), [0xAA, 0x36, 0x91, 0x8A]);
    }
}
