//! What becomes of a command: it is checked, gets a buffer, its data come, a device works, and it
//! is completed; or one of these fails, and it is completed with that.

use moorline_stack::Instant;

use zerocopy::FromBytes;

use super::conn::{Conn, Event, Phase, Rx, Slot, State};
use super::core::Core;
use super::io::{Geometry, Work};
use super::pool::{Class, Pool};
use crate::bdev::{Done, Op, Request};
use crate::pdu::Fatal;
use crate::pdu::fes::offset;
use crate::spec::{Direction, DsmRange, Sgl, SglError, Sqe, Status};

/// What a command needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// It ends, with DW0 and DW1.
    Complete(Status, u64),
    /// Its data, this many bytes, then to be executed.
    Receive(u32),
    /// A buffer of this many bytes, then to be executed.
    Buffer(u32),
    /// Nothing: to be executed.
    Device,
    /// To wait for an event.
    Hold,
    /// Somebody else has seen to it.
    UnderWay,
}

impl Plan {
    /// It ends with a status that a repetition would give again.
    pub const fn fail(status: Status) -> Self {
        Self::Complete(status.with_dnr(), 0)
    }
}

impl Core {
    /// A connection's next bytes; returns how many it is done with.
    pub(super) fn feed(&mut self, now: Instant, index: u32, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        loop {
            // Ends: each pass uses up input, or `commands`.
            let Some(conn) = self.conns[index as usize].as_deref_mut() else { return bytes.len() };
            if self.commands == 0 {
                break;
            }
            match conn.next(now, &mut rest) {
                Some(Event::Command { slot, data_len }) => {
                    self.commands -= 1;
                    self.admit(now, index, slot, data_len);
                }
                Some(Event::Received { slot, ok }) => self.received(now, index, slot, ok),
                None => break,
            }
        }
        bytes.len() - rest.len()
    }

    /// A command came.
    fn admit(&mut self, now: Instant, index: u32, slot: u16, data_len: u32) {
        let conn = self.conn(index);
        let s = &conn.slots[usize::from(slot)];
        let (sqe, conflict, live) = (s.sqe, s.status, conn.state == State::Live);
        let sgl = match sqe.sgl() {
            Ok(sgl) => sgl,
            Err(SglError::Type) => {
                return conn.fail(now, Fatal::UnsupportedParameter(offset::SGL_ID));
            }
            Err(SglError::Offset) => {
                return conn.fail(now, Fatal::UnsupportedParameter(offset::SGL_ADDR));
            }
        };
        if live && self.config.tbkas {
            self.controller_of(index).keep_alive(now);
        }
        if self.faults.is_some() && self.meet_fault(now, index, slot) {
            return;
        }
        let conn = self.conn(index);
        let plan = if !conflict.is_success() {
            Plan::fail(conflict)
        } else if let Err(status) = check_form(&sqe, sgl, data_len) {
            Plan::fail(status)
        } else if !live {
            Self::first_command(conn, slot, &sqe, sgl)
        } else if sqe.is_fabrics() {
            self.fabrics_command(now, index, &sqe)
        } else if conn.qid == 0 {
            self.admin_command(now, index, slot, &sqe, sgl)
        } else {
            self.io_command(index, slot, &sqe, sgl)
        };
        self.follow(index, slot, plan, sgl);
    }

    fn follow(&mut self, index: u32, slot: u16, plan: Plan, sgl: Sgl) {
        let Self { conns, pool, .. } = self;
        // A command may end its own connection (a reset of I/O queues does not).
        let Some(conn) = conns[index as usize].as_deref_mut() else { return };
        let s = &mut conn.slots[usize::from(slot)];
        match plan {
            Plan::Complete(status, result) => {
                conn.complete(pool, slot, status, result);
                self.count(index, slot);
                self.dirty(index);
            }
            Plan::Receive(len) if matches!(sgl, Sgl::InCapsule(_)) => {
                s.len = len;
                conn.paused = Some(slot);
                if !Self::resume(conn, pool) {
                    self.starve(index);
                }
            }
            Plan::Receive(len) | Plan::Buffer(len) => {
                s.len = len;
                s.phase = Phase::Waiting;
                self.start_or_wait(index, slot);
            }
            Plan::Device => {
                s.phase = Phase::Waiting;
                self.start_or_wait(index, slot);
            }
            Plan::Hold => {
                s.phase = Phase::Held;
                self.send_events(index);
            }
            Plan::UnderWay => {}
        }
    }

    /// Gives in-capsule data that wait their buffer, if there is one.
    pub(super) fn resume(conn: &mut Conn, pool: &mut Pool) -> bool {
        let Some(slot) = conn.paused else { return true };
        let Some(buf) = pool.take(Class::InCapsule) else { return false };
        let s = &mut conn.slots[usize::from(slot)];
        (s.buf, s.class, s.phase) = (Some(buf), Class::InCapsule, Phase::InCapsule);
        conn.rx = Rx::Slot { slot };
        conn.paused = None;
        true
    }

    fn io_command(&mut self, index: u32, slot: u16, sqe: &Sqe, sgl: Sgl) -> Plan {
        let transfer_max = self.config.transfer_max();
        let at = self.controller_of(index).subsystem.expect("discovery has no I/O queues");
        let Some(ns) = self.subsystems[usize::from(at)].namespace(sqe.nsid.get()) else {
            return Plan::fail(Status::INVALID_NAMESPACE);
        };
        let (block_size, blocks) = (ns.bdev.block_size(), ns.bdev.blocks());
        let geometry = Geometry { block_size, blocks, transfer_max };
        let (work, len) = match Work::parse(sqe, sgl, &geometry) {
            Ok(parsed) => parsed,
            Err(status) => return Plan::Complete(status, 0),
        };
        self.conn(index).slots[usize::from(slot)].work = work;
        match work {
            Work::Read { .. } => Plan::Buffer(len),
            Work::Write { .. } | Work::Compare { .. } | Work::Deallocate { .. } => {
                Plan::Receive(len)
            }
            Work::WriteZeroes { .. } | Work::Flush => Plan::Device,
            Work::None => unreachable!("an I/O command is parsed to some work"),
        }
    }

    /// All data of a command came.
    fn received(&mut self, now: Instant, index: u32, slot: u16, ok: bool) {
        if !ok {
            self.stats.digest_errors += 1;
            return self.finish(index, slot, Status::TRANSIENT_TRANSPORT);
        }
        let conn = self.conn(index);
        if conn.state == State::ConnectWait {
            return self.connect(now, index, slot);
        }
        let s = &mut conn.slots[usize::from(slot)];
        if matches!(s.work, Work::Compare { .. }) {
            s.compared = s.buf.take().map(|buf| (s.class, buf));
        }
        s.phase = Phase::Waiting;
        self.start_or_wait(index, slot);
    }

    /// Starts a command, or lets it wait behind those that do. One that needs no buffer passes
    /// them: theirs may depend on what its host sends after it.
    fn start_or_wait(&mut self, index: u32, slot: u16) {
        let conn = self.conn(index);
        let passes = conn.slots[usize::from(slot)].passes();
        if (passes || conn.waiting.is_empty()) && self.start(index, slot) {
            return;
        }
        self.stats.buffer_waits += 1;
        self.conn(index).waiting.push_back(slot);
        self.starve(index);
    }

    /// Takes a command as far as it goes. False: it still waits, for a buffer or its device.
    pub(super) fn start(&mut self, index: u32, slot: u16) -> bool {
        let Self { conns, pool, .. } = self;
        let conn = conns[index as usize].as_deref_mut().expect("waiting commands have one");
        let s = &mut conn.slots[usize::from(slot)];
        if s.len > 0 && s.buf.is_none() {
            s.class = Pool::class_for(s.len);
            let Some(buf) = pool.take(s.class) else { return false };
            s.buf = Some(buf);
        }
        let from_host = s.sqe.direction() == Direction::HostToController;
        if from_host && s.moved < s.len {
            conn.request_data(slot);
            self.dirty(index);
            return true;
        }
        if conn.qid == 0 {
            self.admin_reply(index, slot);
            self.count(index, slot);
            self.dirty(index);
            return true;
        }
        self.submit(index, slot)
    }

    /// Hands a command's next request to its device. False: the device is full.
    fn submit(&mut self, index: u32, slot: u16) -> bool {
        let Self { conns, controllers, subsystems, .. } = self;
        let conn = conns[index as usize].as_deref_mut().expect("it has a command");
        let at = usize::from(conn.controller.expect("only live queues execute"));
        let controller = controllers[at].as_mut().expect("its queues keep it");
        let subsystem = controller.subsystem.expect("discovery has no I/O queues");
        let s = &mut conn.slots[usize::from(slot)];
        let nsid = s.sqe.nsid.get();
        let ns = subsystems[usize::from(subsystem)].namespace_mut(nsid).expect("parsed for it");
        let (op, lba, blocks) = match step(s, ns.bdev.blocks()) {
            Ok(Some(request)) => request,
            Ok(None) => {
                self.finish(index, slot, Status::SUCCESS);
                return true;
            }
            Err(status) => {
                self.finish(index, slot, status);
                return true;
            }
        };
        let moves = matches!(op, Op::Read | Op::Write { .. });
        let buf = if moves { s.buf.take() } else { None };
        let tag = u64::from(index) << 32 | u64::from(slot);
        match ns.bdev.submit(Request { tag, op, lba, blocks, buf }) {
            Ok(()) => {
                s.phase = Phase::Device;
                ns.in_flight += 1;
                conn.in_flight += 1;
                controller.in_flight += 1;
                controller.writes += u32::from(s.changes_blocks());
                true
            }
            Err(request) => {
                if moves {
                    s.buf = request.buf;
                }
                false
            }
        }
    }

    /// A device ended a request.
    pub(super) fn device_done(&mut self, done: Done) {
        let (index, slot) = ((done.tag >> 32) as u32, done.tag as u16);
        let Self { conns, controllers, pool, stats, .. } = self;
        let conn = conns[index as usize].as_deref_mut().expect("kept while requests are under way");
        conn.in_flight -= 1;
        let at = usize::from(conn.controller.expect("only live queues execute"));
        let controller = controllers[at].as_mut().expect("its queues keep it");
        pool.returned = true; // and the device has room
        let s = &mut conn.slots[usize::from(slot)];
        controller.in_flight -= 1;
        if s.changes_blocks() {
            controller.writes -= 1;
            stats.stale_writes -= u64::from(controller.ended);
            self.drained |= controller.ended && controller.writes == 0;
        }
        if let Some(buf) = done.buf {
            match conn.state {
                State::Dead | State::Terminating => pool.put(s.class, buf),
                State::IcWait | State::ConnectWait | State::Live => s.buf = Some(buf),
            }
        }
        if conn.state != State::Live {
            return self.remove_if_idle(index);
        }
        s.phase = Phase::Waiting;
        if !done.status.is_success() {
            return self.finish(index, slot, done.status);
        }
        s.step += 1;
        match s.work {
            Work::Read { .. } => {
                let len = s.len;
                conn.reply(slot, len);
                self.count(index, slot);
                self.dirty(index);
            }
            Work::Compare { .. } => {
                let len = s.len as usize;
                let (media, host) = (s.buf.as_deref(), s.compared.as_ref());
                let equal = media.zip(host).is_some_and(|(m, (_, h))| m[..len] == h[..len]);
                let failure = Status::COMPARE_FAILURE.with_dnr();
                self.finish(index, slot, if equal { Status::SUCCESS } else { failure });
            }
            Work::WriteZeroes { .. } | Work::Deallocate { .. } => self.start_or_wait(index, slot),
            Work::Write { .. } | Work::Flush | Work::None => {
                self.finish(index, slot, Status::SUCCESS);
            }
        }
    }

    /// A command ends without data.
    fn finish(&mut self, index: u32, slot: u16, status: Status) {
        let Self { conns, pool, .. } = self;
        let conn = conns[index as usize].as_deref_mut().expect("it has a command");
        conn.complete(pool, slot, status, 0);
        self.count(index, slot);
        self.dirty(index);
    }

    /// Counts a command that has its status.
    fn count(&mut self, index: u32, slot: u16) {
        let Self { conns, stats, .. } = self;
        let Some(conn) = conns[index as usize].as_deref() else { return };
        let s = &conn.slots[usize::from(slot)];
        if conn.qid == 0 {
            stats.admin += 1;
            return;
        }
        stats.errors += u64::from(!s.status.is_success());
        match s.work {
            Work::Read { .. } => {
                stats.reads += 1;
                stats.read_bytes += u64::from(if s.status.is_success() { s.len } else { 0 });
            }
            Work::Write { .. } => {
                stats.writes += 1;
                stats.written_bytes += u64::from(s.moved);
            }
            _ => stats.other_ios += 1,
        }
    }
}

/// What must hold for every command, whatever it is.
fn check_form(sqe: &Sqe, sgl: Sgl, data_len: u32) -> Result<(), Status> {
    if sqe.psdt() != 1 {
        return Err(Status::INVALID_FIELD);
    }
    match sgl {
        Sgl::InCapsule(len) if len != data_len => Err(Status::SGL_LENGTH_INVALID),
        Sgl::InCapsule(_) if sqe.direction() == Direction::ControllerToHost => {
            Err(Status::INVALID_FIELD)
        }
        Sgl::Transport(_) if data_len != 0 => Err(Status::INVALID_FIELD),
        Sgl::InCapsule(_) | Sgl::Transport(_) => Ok(()),
    }
}

/// The device request that a command's step is; `None` when it has done all.
fn step(s: &mut Slot, blocks_max: u64) -> Result<Option<(Op, u64, u32)>, Status> {
    match s.work {
        Work::Read { lba, blocks } | Work::Compare { lba, blocks } => {
            Ok(Some((Op::Read, lba, blocks)))
        }
        Work::Write { lba, blocks, fua } => Ok(Some((Op::Write { fua }, lba, blocks))),
        Work::Flush => Ok(Some((Op::Flush, 0, 0))),
        Work::WriteZeroes { lba, blocks, fua } => match (s.step, fua) {
            (0, _) => Ok(Some((Op::WriteZeroes, lba, blocks))),
            (1, true) => Ok(Some((Op::Flush, 0, 0))),
            _ => Ok(None),
        },
        Work::Deallocate { ranges } => {
            let bytes = s.buf.as_deref().expect("its data came");
            while s.step < ranges {
                let at = usize::from(s.step) * size_of::<DsmRange>();
                let (range, _) = DsmRange::read_from_prefix(&bytes[at..]).expect("they fit");
                let (lba, blocks) = (range.slba.get(), range.nlb.get());
                if lba.checked_add(blocks.into()).is_none_or(|end| end > blocks_max) {
                    return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
                }
                if blocks > 0 {
                    return Ok(Some((Op::Discard, lba, blocks)));
                }
                s.step += 1;
            }
            Ok(None)
        }
        Work::None => unreachable!("only I/O commands have steps"),
    }
}
