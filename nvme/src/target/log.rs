//! Log pages (NVMe Base 2.x, "Get Log Page"). A log is written through a window: whatever offset
//! and length a host asks for, each page is described once, and nothing is built that is not read.

use zerocopy::IntoBytes;

use crate::spec::identify::text_field;
use crate::spec::log::{CommandEffectsLog, FwSlotLog, SmartLog, lid};
use crate::spec::{GetLogPage, NsidList, opcode};

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

    /// Puts a log of one part; returns its size.
    fn whole(&mut self, bytes: &[u8]) -> u64 {
        self.put(0, bytes);
        bytes.len() as u64
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

/// Logs of an I/O controller.
const IO_LOGS: [u8; 6] = [
    lid::SUPPORTED_PAGES,
    lid::ERROR,
    lid::SMART,
    lid::FW_SLOT,
    lid::CHANGED_NAMESPACES,
    lid::COMMAND_EFFECTS,
];

/// Writes a log of an I/O controller; returns its size, or `None` for a log that we do not have.
pub(super) fn io_log(log: &GetLogPage, out: &mut [u8]) -> Option<u64> {
    let mut window = Window::new(log.offset, out);
    match log.lid {
        lid::SUPPORTED_PAGES => Some(supported(&IO_LOGS, &mut window)),
        lid::ERROR => Some(64), // none yet: an entry of zeros
        lid::SMART => {
            let mut smart = SmartLog::zeroed();
            smart.temperature.set(300); // K
            (smart.avail_spare, smart.spare_thresh) = (100, 10);
            Some(window.whole(smart.as_bytes()))
        }
        lid::FW_SLOT => {
            let mut firmware = FwSlotLog::zeroed();
            firmware.afi = 1;
            firmware.frs[0] = text_field(env!("CARGO_PKG_VERSION"));
            Some(window.whole(firmware.as_bytes()))
        }
        lid::CHANGED_NAMESPACES => Some(size_of::<NsidList>() as u64), // they do not change
        lid::COMMAND_EFFECTS => Some(window.whole(effects().as_bytes())),
        _ => None,
    }
}

fn effects() -> CommandEffectsLog {
    use opcode::{admin, io};
    const READS: u32 = CommandEffectsLog::SUPPORTED;
    const WRITES: u32 = READS | CommandEffectsLog::CHANGES_BLOCKS;
    let mut log = CommandEffectsLog::zeroed();
    for code in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ] {
        log.admin[usize::from(code)].set(READS);
    }
    for code in [io::FLUSH, io::READ, io::COMPARE] {
        log.io[usize::from(code)].set(READS);
    }
    for code in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
        log.io[usize::from(code)].set(WRITES);
    }
    log
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
    fn supported_logs_are_listed() {
        let mut out = [0; 1024];
        let log = |lid| GetLogPage::new(lid, 0, 1024);
        assert_eq!(io_log(&log(0), &mut out), Some(1024));
        assert_eq!((out[0], out[4 * 5], out[4 * 6]), (1, 1, 0));
        assert_eq!(io_log(&log(0x70), &mut out), None);
    }
}
