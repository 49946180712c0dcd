//! A TCP segment as we read it by ourselves: on the way in to find its connection, on the way out to
//! know what smoltcp has sent. One parse serves both.
//!
//! Nothing here verifies a checksum; smoltcp does before it believes a segment.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use crate::eth::Malformed;

const HEADER_BYTES: usize = 20;

/// Local and remote endpoint of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

impl Hash for Tuple {
    /// In few and large pieces: this runs for each segment.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ports = u32::from(self.local.port()) << 16 | u32::from(self.remote.port());
        match (self.local.ip(), self.remote.ip()) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                state.write_u64(u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()));
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                state.write_u128(local.to_bits());
                state.write_u128(remote.to_bits());
            }
            // No packet has addresses of two families.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
        }
        state.write_u32(ports);
    }
}

/// The fields of a segment that we act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The connection as its receiver sees it: local is the destination.
    pub tuple: Tuple,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; counts if `flags` has ACK.
    pub ack: u32,
    /// The window as on the wire, not scaled.
    pub window: u16,
    /// Its flags.
    pub flags: Flags,
    /// Bytes of data, SYN and FIN not counted.
    pub payload_bytes: u32,
    /// Where the TCP header starts in the IP packet.
    pub tcp_offset: u8,
}

/// TCP's flags, as on the wire (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub fn fin(self) -> bool {
        self.0 & 0x01 != 0
    }
    /// Synchronise sequence numbers.
    pub fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }
    /// Reset the connection.
    pub fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }
    /// The acknowledgement number counts.
    pub fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }
}

impl Segment {
    /// Bytes of the Ethernet frame around it, untagged and without TCP options.
    pub fn frame_bytes(&self) -> usize {
        14 + usize::from(self.tcp_offset) + HEADER_BYTES + self.payload_bytes as usize
    }

    /// Reads the segment that starts at `offset` (60 at most) of an IP packet, and ends with it.
    pub(crate) fn parse(
        packet: &[u8],
        offset: usize,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Self, Malformed> {
        let all = &packet[offset..];
        let tcp: &[u8; HEADER_BYTES] = all.first_chunk().ok_or(Malformed::Truncated)?;
        let header_bytes = usize::from(tcp[12] >> 4) * 4;
        if header_bytes < HEADER_BYTES || all.len() < header_bytes {
            return Err(Malformed::TcpOffset);
        }
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        Ok(Self {
            tuple: Tuple {
                local: SocketAddr::new(destination, half(2)),
                remote: SocketAddr::new(source, half(0)),
            },
            seq: word(4),
            ack: word(8),
            window: half(14),
            flags: Flags(tcp[13]),
            payload_bytes: (all.len() - header_bytes) as u32,
            tcp_offset: offset as u8,
        })
    }

    /// Sequence numbers that it takes: payload, SYN and FIN.
    pub fn sequence_bytes(&self) -> u32 {
        self.payload_bytes + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }
}

/// Whether sequence number `a` comes before `b`.
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_wrap() {
        assert!(before(u32::MAX, 0) && before(1, 2) && !before(2, 2) && !before(0, u32::MAX));
    }
}
