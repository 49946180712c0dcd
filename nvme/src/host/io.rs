//! What goes into a host and comes out of it: I/O, admin commands, and events.

use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::mem::IoBuf;

use super::Failure;
use crate::spec::{Cqe, Status};

/// Names a controller of a host: its place in the table, and a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CtrlId {
    /// The place in the table; small, for use as an array index.
    pub index: u32,
    /// Counts the uses of the place.
    pub generation: u32,
}

/// A block operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Read into the buffer.
    Read,
    /// Write from the buffer; with `fua`, completed only when durable.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Set blocks to zero.
    WriteZeroes,
    /// The blocks are no longer used (Dataset Management, deallocate).
    Deallocate,
}

/// One I/O. It may be larger than MDTS: the host splits it and completes it once.
#[derive(Debug)]
pub struct Io {
    /// The caller's name for it, given back with the completion.
    pub tag: u64,
    /// What to do.
    pub op: IoOp,
    /// On which namespace.
    pub nsid: u32,
    /// First block.
    pub lba: u64,
    /// Number of blocks (ignored by `Flush`).
    pub blocks: u32,
    /// The buffer, for `Read` and `Write`; the host owns it until the completion.
    pub buf: Option<IoBuf>,
    /// Where in the buffer the data starts, bytes.
    pub buf_offset: usize,
}

/// An I/O's end. Every accepted [`Io`] has exactly one.
#[derive(Debug)]
pub struct IoDone {
    /// The controller that it was submitted to.
    pub ctrl: CtrlId,
    /// The I/O qpair that it was submitted to.
    pub qpair: usize,
    /// The caller's name for it.
    pub tag: u64,
    /// How it went; for a lost path, Host Pathing Error or Command Aborted By Host (SCT 3).
    pub status: Status,
    /// The caller's buffer.
    pub buf: Option<IoBuf>,
    /// When it was submitted, be it issued again since or not.
    pub submitted: Instant,
}

/// An admin command of the caller's own. Its direction is that of the opcode (bits 1:0).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminCommand {
    /// Opcode.
    pub opcode: u8,
    /// Namespace.
    pub nsid: u32,
    /// CDW10 to CDW15.
    pub cdw: [u32; 6],
    /// Data to send, or room for the data to receive; its length is the transfer's.
    pub data: Vec<u8>,
}

impl AdminCommand {
    /// Identify (opcode 06h): CNS and NSID choose the 4096-byte structure.
    pub fn identify(cns: u8, nsid: u32) -> Self {
        Self { opcode: 0x06, nsid, cdw: [u32::from(cns), 0, 0, 0, 0, 0], data: vec![0; 4096] }
    }

    /// Get Log Page (opcode 02h): `len` bytes (a multiple of 4, not 0) from byte `offset` of log
    /// `lid`; `rae` keeps the event that pointed to it masked.
    pub fn log_page(lid: u8, lsp: u8, rae: bool, offset: u64, len: u32) -> Self {
        assert!(len >= 4 && len.is_multiple_of(4), "a log page is read in dwords");
        let numd = len / 4 - 1;
        let cdw10 = u32::from(lid)
            | u32::from(lsp & 0x7F) << 8
            | u32::from(rae) << 15
            | (numd & 0xFFFF) << 16;
        let cdw = [cdw10, numd >> 16, offset as u32, (offset >> 32) as u32, 0, 0];
        Self { opcode: 0x02, nsid: u32::MAX, cdw, data: vec![0; len as usize] }
    }

    /// Get Features (opcode 0Ah), current value, of a feature whose value is in DW0.
    pub fn feature(fid: u8) -> Self {
        Self { opcode: 0x0A, cdw: [u32::from(fid), 0, 0, 0, 0, 0], ..Self::default() }
    }
}

/// An admin command's end. Every accepted [`AdminCommand`] has exactly one.
#[derive(Debug)]
pub struct AdminDone {
    /// The controller that it was submitted to.
    pub ctrl: CtrlId,
    /// The caller's name for it.
    pub tag: u64,
    /// The completion; its status is SCT 3 when the path was lost.
    pub cqe: Cqe,
    /// The command's data.
    pub data: Vec<u8>,
}

impl AdminDone {
    /// The completion's status.
    pub fn status(&self) -> Status {
        Status(self.cqe.status.get() >> 1)
    }
}

/// What a host has to tell of its controllers.
///
/// Of what is not polled the newest of each kind is kept, of each controller (`Host::poll_event`).
#[derive(Clone, Debug, PartialEq)]
pub enum HostEvent {
    /// The controller takes I/O: told every time that it becomes live.
    Live {
        /// Which.
        ctrl: CtrlId,
        /// Since the attempt began.
        after: Duration,
    },
    /// A live controller was lost, or the first attempt of an outage failed; its I/O has been
    /// completed with SCT 3, or waits ([`super::Requeue`]). It is tried again: `Live` or `Failed` follows.
    Disconnected {
        /// Which.
        ctrl: CtrlId,
        /// Why.
        failure: Failure,
    },
    /// The controller is lost for good, or was never reached; its I/O has been completed with
    /// SCT 3.
    Failed {
        /// Which.
        ctrl: CtrlId,
        /// Why.
        failure: Failure,
    },
    /// The controller was shut down as asked.
    Closed {
        /// Which.
        ctrl: CtrlId,
    },
    /// An asynchronous event. It stays masked until its log page is read with RAE clear.
    Aen {
        /// Which.
        ctrl: CtrlId,
        /// Type, DW0 2:0.
        kind: u8,
        /// Information, DW0 15:8.
        info: u8,
        /// Log page to read, DW0 23:16.
        lid: u8,
    },
}
