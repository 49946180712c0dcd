//! Log pages (NVMe Base 2.x, "Get Log Page"). A log is written through a window: whatever offset
//! and length a host asks for, each page is described once, and nothing is built that is not read.

use crate::spec::{Sqe, opcode};

/// A log page's identifiers.
pub(super) mod lid {
    pub const SUPPORTED: u8 = 0x00;
    pub const ERROR: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const EFFECTS: u8 = 0x05;
    pub const DISCOVERY: u8 = 0x70;
}

/// What a Get Log Page asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogRequest {
    pub lid: u8,
    /// Retain asynchronous event.
    pub rae: bool,
    pub offset: u64,
    /// Bytes; up to 16 GiB can be asked for.
    pub len: u64,
}

impl LogRequest {
    pub fn from_sqe(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        let numd = u64::from(cdw10 >> 16 | (cdw11 & 0xFFFF) << 16) + 1;
        Self {
            lid: cdw10 as u8,
            rae: cdw10 & 1 << 15 != 0,
            offset: u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32,
            len: numd * 4,
        }
    }
}

/// The part of a log that a host reads; zero where nothing is put.
pub(super) struct Window<'a> {
    offset: u64,
    out: &'a mut [u8],
}

impl<'a> Window<'a> {
    /// A window on the log's bytes from `offset`, as many as `out` has.
    pub fn new(offset: u64, out: &'a mut [u8]) -> Self {
        out.fill(0);
        Self { offset, out }
    }

    /// Whether any byte of a range is read.
    pub fn shows(&self, at: u64, len: usize) -> bool {
        at < self.offset + self.out.len() as u64 && at + len as u64 > self.offset
    }

    /// Puts what the log has at `at`.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        if !self.shows(at, bytes.len()) {
            return;
        }
        let skip = self.offset.saturating_sub(at) as usize;
        let start = at.saturating_sub(self.offset) as usize;
        let len = (bytes.len() - skip).min(self.out.len() - start);
        self.out[start..start + len].copy_from_slice(&bytes[skip..skip + len]);
    }
}

/// Writes a log of an I/O controller; returns its size, or `None` for a log that we do not have.
pub(super) fn io_log(log: LogRequest, out: &mut [u8]) -> Option<u64> {
    let mut window = Window::new(log.offset, out);
    match log.lid {
        lid::SUPPORTED => {
            let pages = [
                lid::SUPPORTED,
                lid::ERROR,
                lid::SMART,
                lid::FIRMWARE,
                lid::CHANGED_NAMESPACES,
                lid::EFFECTS,
            ];
            Some(supported(&pages, &mut window))
        }
        lid::ERROR => Some(64), // none yet: an entry of zeros
        lid::SMART => {
            window.put(1, &300u16.to_le_bytes()); // composite temperature, K
            window.put(3, &[100, 10]); // available spare, its threshold
            Some(512)
        }
        lid::FIRMWARE => {
            let mut revision = [b' '; 8];
            let version = env!("CARGO_PKG_VERSION").as_bytes();
            let len = version.len().min(8);
            revision[..len].copy_from_slice(&version[..len]);
            window.put(0, &[1]); // AFI: slot 1
            window.put(8, &revision); // FRS1
            Some(512)
        }
        lid::CHANGED_NAMESPACES => Some(4096), // namespaces do not change
        lid::EFFECTS => {
            use opcode::{admin, io};
            for code in [
                admin::GET_LOG_PAGE,
                admin::IDENTIFY,
                admin::ABORT,
                admin::SET_FEATURES,
                admin::GET_FEATURES,
                admin::ASYNC_EVENT_REQUEST,
                admin::KEEP_ALIVE,
            ] {
                window.put(u64::from(code) * 4, &1u32.to_le_bytes()); // CSUPP
            }
            for code in [io::FLUSH, io::READ, io::COMPARE] {
                window.put(1024 + u64::from(code) * 4, &1u32.to_le_bytes());
            }
            for code in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
                window.put(1024 + u64::from(code) * 4, &0b11u32.to_le_bytes()); // and LBCC
            }
            Some(4096)
        }
        _ => None,
    }
}

/// The log of supported logs: a dword each, bit 0 set for those there are.
pub(super) fn supported(lids: &[u8], window: &mut Window<'_>) -> u64 {
    for &lid in lids {
        window.put(u64::from(lid) * 4, &1u32.to_le_bytes());
    }
    1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_its_part() {
        let whole: Vec<u8> = (0..64).collect();
        for offset in 0..70 {
            for len in 1..20 {
                let mut out = vec![0xFF; len];
                let mut window = Window::new(offset, &mut out);
                for at in (0..64).step_by(8) {
                    window.put(at, &whole[at as usize..at as usize + 8]);
                }
                let expected: Vec<u8> = (offset as usize..offset as usize + len)
                    .map(|at| if at < 64 { at as u8 } else { 0 })
                    .collect();
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    fn numd_and_offset_have_64_bits() {
        let mut sqe = Sqe::new(opcode::admin::GET_LOG_PAGE, 0);
        sqe.cdw10.set(0xFFFF_8070);
        sqe.cdw11.set(0xFFFF);
        sqe.cdw12.set(1);
        sqe.cdw13.set(2);
        let log = LogRequest::from_sqe(&sqe);
        assert_eq!((log.lid, log.rae), (0x70, true));
        assert_eq!((log.len, log.offset), (4 << 32, 0x2_0000_0001));
    }

    #[test]
    fn supported_logs_are_listed() {
        let mut out = [0; 1024];
        let log = LogRequest { lid: 0, rae: false, offset: 0, len: 1024 };
        assert_eq!(io_log(log, &mut out), Some(1024));
        assert_eq!((out[0], out[4 * 5], out[4 * 6]), (1, 1, 0));
        assert_eq!(io_log(LogRequest { lid: 0x70, ..log }, &mut out), None);
    }
}
