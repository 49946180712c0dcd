//! A unit of work for a qpair: a command's template, the memory its data are in, and how it may
//! be cut. Also the commands that the host makes itself.

use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::mem::IoBuf;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::{AdminCommand, Io, IoOp};
use crate::spec::features::{async_event_request, keep_alive};
use crate::spec::io::{BLOCKS_MAX, flush};
use crate::spec::opcode::io as opcode;
use crate::spec::{Abort, Connect, ConnectData, Cqe, DatasetManagement, DsmRange, Sqe};

/// Whose work it is: who is told when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The qpair's own Connect.
    Connect,
    /// The controller's bring-up or shutdown.
    Step,
    /// The controller's keep alive.
    KeepAlive,
    /// A change of KATO, told or read back.
    Kato,
    /// An asynchronous event request.
    Aer,
    /// The controller's Abort of an I/O command.
    Abort,
    /// A caller's I/O, by its tag.
    Io(u64),
    /// A caller's admin command, by its tag.
    Admin(u64),
}

/// An I/O that was accepted, and what is to be known of it until it is given back.
#[derive(Debug)]
pub(super) struct Accepted {
    pub io: Io,
    /// The I/O qpair (from 0) that the caller chose.
    pub home: u16,
    /// Counts the I/O of a controller that may be issued again.
    pub seq: u64,
    pub submitted: Instant,
    /// Times that its own timeout ended its path.
    pub timeouts: u8,
}

/// The same, of an I/O that is now a work, without what the work says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    op: IoOp,
    lba: u64,
    blocks: u32,
    pub home: u16,
    seq: u64,
    pub submitted: Instant,
    timeouts: u8,
}

/// Where data come from or go to.
#[derive(Debug, Default)]
pub(super) enum Memory {
    /// No data.
    #[default]
    None,
    /// A caller's buffer.
    Io(IoBuf),
    /// The data of an admin command.
    Heap(Vec<u8>),
}

impl Memory {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Io(buf) => buf,
            Self::Heap(bytes) => bytes,
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::None => &mut [],
            Self::Io(buf) => buf,
            Self::Heap(bytes) => bytes,
        }
    }

    pub(super) fn into_io_buf(self) -> Option<IoBuf> {
        match self {
            Self::Io(buf) => Some(buf),
            Self::None | Self::Heap(_) => None,
        }
    }

    pub(super) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Heap(bytes) => bytes,
            Self::None | Self::Io(_) => Vec::new(),
        }
    }
}

/// What a qpair is asked to do: one or several commands, cut from one range.
#[derive(Debug)]
pub(super) struct Work {
    pub owner: Owner,
    /// The command, without CID, SGL and (where `ranged`) LBA and NLB.
    pub sqe: Sqe,
    /// CDW10-12 name a range of blocks, from `lba`.
    pub ranged: bool,
    pub lba: u64,
    /// Units to do, and most of one command: blocks where `ranged`, else 1 of 1.
    pub units: u32,
    pub units_max: u32,
    /// Bytes of data of one unit; 0 without data.
    pub unit_bytes: u32,
    pub memory: Memory,
    /// Where in the memory the data start.
    pub offset: usize,
    /// The data of Dataset Management, which are not the caller's.
    pub range: Option<DsmRange>,
    /// How long each command may take; `None`: for ever.
    pub timeout: Option<Duration>,
    /// Of a caller's I/O.
    pub origin: Option<Origin>,
}

/// A piece of work that ended.
#[derive(Debug)]
pub(super) struct WorkDone {
    pub owner: Owner,
    /// The first completion that failed, or the last one.
    pub cqe: Cqe,
    pub memory: Memory,
    pub submitted: Instant,
    /// The I/O qpair (from 0) that the caller chose for it, if it is an I/O.
    pub home: u16,
}

impl Work {
    /// A command that is not cut; `memory` is all data.
    fn single(owner: Owner, sqe: Sqe, memory: Memory, timeout: Option<Duration>) -> Self {
        let unit_bytes = memory.bytes().len() as u32;
        Self {
            owner,
            sqe,
            ranged: false,
            lba: 0,
            units: 1,
            units_max: 1,
            unit_bytes,
            memory,
            offset: 0,
            range: None,
            timeout,
            origin: None,
        }
    }

    /// An admin command, of a caller or of the bring-up.
    pub(super) fn admin(owner: Owner, command: AdminCommand, timeout: Option<Duration>) -> Self {
        let cdw = command.cdw.map(U32::new);
        let sqe = Sqe {
            cdw10: cdw[0],
            cdw11: cdw[1],
            cdw12: cdw[2],
            cdw13: cdw[3],
            cdw14: cdw[4],
            cdw15: cdw[5],
            ..Sqe::new(command.opcode, command.nsid)
        };
        Self::single(owner, sqe, Memory::Heap(command.data), timeout)
    }

    /// Fabrics Connect.
    pub(super) fn connect(connect: &Connect, data: &ConnectData, timeout: Duration) -> Self {
        let data = Memory::Heap(data.as_bytes().to_vec());
        Self::single(Owner::Connect, connect.to_sqe(), data, Some(timeout))
    }

    /// A command of the bring-up without data: Property Get or Set.
    pub(super) fn step(sqe: Sqe, timeout: Duration) -> Self {
        Self::single(Owner::Step, sqe, Memory::None, Some(timeout))
    }

    /// Keep Alive; its answer is due within KATO.
    pub(super) fn keep_alive(kato: Duration) -> Self {
        Self::single(Owner::KeepAlive, keep_alive(), Memory::None, Some(kato))
    }

    /// Set or Get Features of KATO.
    pub(super) fn kato(sqe: Sqe, timeout: Duration) -> Self {
        Self::single(Owner::Kato, sqe, Memory::None, Some(timeout))
    }

    /// Asynchronous Event Request; waits for ever.
    pub(super) fn aer() -> Self {
        Self::single(Owner::Aer, async_event_request(), Memory::None, None)
    }

    /// Abort of a command of I/O queue `sqid`.
    pub(super) fn abort(sqid: u16, cid: u16, timeout: Duration) -> Self {
        let sqe = Abort { sqid, cid }.to_sqe();
        Self::single(Owner::Abort, sqe, Memory::None, Some(timeout))
    }

    /// An I/O on a namespace of `block_size`, cut to commands of at most `transfer_max` bytes.
    pub(super) fn io(
        accepted: Accepted,
        block_size: u32,
        transfer_max: u32,
        timeout: Duration,
    ) -> Self {
        let Accepted { io, home, seq, submitted, timeouts } = accepted;
        let Io { tag, op, nsid, lba, blocks, buf, buf_offset } = io;
        let (sqe, ranged, unit_bytes) = match op {
            IoOp::Read => (Sqe::new(opcode::READ, nsid), true, block_size),
            IoOp::Write { fua } => {
                let mut sqe = Sqe::new(opcode::WRITE, nsid);
                sqe.cdw12.set(u32::from(fua) << 30);
                (sqe, true, block_size)
            }
            IoOp::Flush => (flush(nsid), false, 0),
            IoOp::WriteZeroes => (Sqe::new(opcode::WRITE_ZEROES, nsid), true, 0),
            IoOp::Deallocate => {
                let dsm = DatasetManagement { nsid, ranges: 1, deallocate: true };
                (dsm.to_sqe(), false, dsm.data_len())
            }
        };
        let by_transfer = if ranged { transfer_max.checked_div(unit_bytes) } else { None };
        let deallocate = op == IoOp::Deallocate;
        Self {
            owner: Owner::Io(tag),
            sqe,
            ranged,
            lba,
            units: if ranged { blocks } else { 1 },
            units_max: by_transfer.unwrap_or(u32::MAX).clamp(1, BLOCKS_MAX),
            unit_bytes,
            memory: buf.map_or(Memory::None, Memory::Io),
            offset: buf_offset,
            range: deallocate.then(|| DsmRange::new(lba, blocks)),
            timeout: Some(timeout),
            origin: Some(Origin { op, lba, blocks, home, seq, submitted, timeouts }),
        }
    }

    /// The I/O that it was made of.
    pub(super) fn into_accepted(self) -> Option<Accepted> {
        let (Owner::Io(tag), Some(origin)) = (self.owner, self.origin) else { return None };
        let Origin { op, lba, blocks, home, seq, submitted, timeouts } = origin;
        let (nsid, buf) = (self.sqe.nsid.get(), self.memory.into_io_buf());
        let io = Io { tag, op, nsid, lba, blocks, buf, buf_offset: self.offset };
        Some(Accepted { io, home, seq, submitted, timeouts })
    }

    /// The command for `units` units, `done` units after the first: LBA, NLB, CID and SGL set.
    pub(super) fn command(&self, cid: u16, done: u32, units: u32, in_capsule: bool) -> Sqe {
        let mut sqe = self.sqe;
        sqe.cid.set(cid);
        if self.ranged {
            sqe.set_cdw10_11(self.lba + u64::from(done));
            sqe.cdw12.set(sqe.cdw12.get() | (units - 1));
        }
        let len = units * self.unit_bytes;
        if in_capsule { sqe.with_in_capsule(len) } else { sqe.with_transport(len) }
    }

    /// The data to send, from `at`.
    pub(super) fn source(&self) -> &[u8] {
        match &self.range {
            Some(range) => range.as_bytes(),
            None => &self.memory.bytes()[self.offset..],
        }
    }
}
