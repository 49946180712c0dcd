//! I/O that outlives its path: what waits while a controller is away, and when it may go on. Pure.
//!
//! In: I/O that the caller submits, I/O taken from a path that was lost (was it on the wire?), how
//! that path ended, and `now`. Out: what may be issued, what fails, and the next deadline.
//!
//! **Quiesce.** A write that was on the wire may be executed by the old path still. If the
//! controller ended the path itself (RST, FIN, TermReq), it has ended the association with it, and
//! the write goes again as soon as there is a live controller. If the path fell silent, the write
//! waits until the controller must have stopped: 2 · KATO (3 · KATO with TBKAS) and CQT after it
//! heard from us last. When that was we cannot know, so we count from when we noticed the loss:
//! from then on nothing of the old association is sent, and it is the latest that it can be, but
//! for what was on its way then, and for that the bound has one KATO more than the controller.
//! That a new association with the same target is live does not shorten it: it is a promise of
//! the new controller, not of the old one. A path that we end (a reset, a timeout, a violation)
//! counts as silent, since nobody says that the controller has noticed.
//!
//! **Order.** A write does not overtake an earlier one that it overlaps and that is held: it is
//! issued when that one is, behind it, so what the old path executes late overwrites nothing that
//! was acknowledged. Nor does a Flush overtake a held write of its namespace: NVMe promises it for
//! completed writes only, but whoever submits one after the other may count on it. Reads wait for
//! nothing but a live controller: one that overlaps a held write returns the old data or the new,
//! as while any write is under way. Write means Write, Write Zeroes and Deallocate.
//!
//! What always holds: there is room for all that is accepted, taken when the controller is
//! connected; what is accepted is issued or fails, once; what waits is in the order in which it was
//! submitted. Who is told Host Pathing Error of a write must take it that it may be executed still.

use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::time::earliest;

use super::work::Accepted;
use super::{Info, Io, IoOp, NamespaceInfo, Quiesce, Requeue};
use crate::spec::Status;

/// An I/O whose own timeout ended its path so often fails: it may be what the target cannot do.
const TIMEOUTS_MAX: u8 = 3;

/// The NSID that means all namespaces.
const ALL_NAMESPACES: u32 = u32::MAX;

/// How a path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The controller ended it.
    ByPeer,
    /// It may not know that it ended.
    Silent,
}

/// What a lost I/O had come to on its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Loss {
    /// Some of it was on the wire.
    pub begun: bool,
    /// Its own timeout had passed.
    pub timed_out: bool,
}

/// What is to be done with an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Issue it on this I/O qpair (from 0): its own, where that is still there.
    Issue(u16),
    /// End it.
    Fail(Status),
}

/// Why an I/O may not be issued yet, a live controller given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// It may.
    No,
    /// The old path may execute it until then.
    Until(Instant),
    /// The old path may execute it, nobody knows until when.
    Unknown,
    /// An earlier one that it overlaps is held.
    Behind,
}

#[derive(Debug)]
struct Waiting {
    /// There, save while it is handed out.
    accepted: Option<Accepted>,
    hold: Hold,
    fail_at: Instant,
    status: Status,
}

/// The blocks of a write.
#[derive(Clone, Copy, Debug)]
struct Span {
    nsid: u32,
    lba: u64,
    end: u64,
}

/// Where the controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Never live: nothing is accepted.
    New,
    Live,
    /// It was live, and is tried again; `failing`: for too long, nothing waits any more.
    Away {
        failing: bool,
    },
    /// Nothing more is accepted.
    Over,
}

/// The I/O of one controller that waits, and how much of its I/O there is.
#[derive(Debug)]
pub(super) struct Store {
    policy: Requeue,
    path: Path,
    /// In the order of `Accepted::seq`; as many as `counts` allow.
    waiting: Vec<Waiting>,
    /// I/O accepted and not given back, by the qpair that it was submitted to.
    counts: Box<[u16]>,
    /// Qpairs, and I/O of each, that are accepted: as last known.
    queues: u16,
    depth: u16,
    /// The namespaces, as last known.
    namespaces: Vec<NamespaceInfo>,
    seq: u64,
    /// When what was lost last fails, and how long its writes are held.
    fail_at: Instant,
    write_hold: Hold,
    /// How many of `waiting` are not held.
    free: usize,
    /// The writes among `waiting` that are held.
    held: Vec<Span>,
    next: Option<Instant>,
}

/// What is shown of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub waiting: usize,
    pub quiescing: usize,
    /// Until when the last of those writes is held, where that is known.
    pub quiesce: Option<Instant>,
    /// When the first of what waits fails.
    pub fast_io_fail: Option<Instant>,
}

impl Store {
    /// A store for a controller's queues; the only allocation, save for namespaces.
    pub(super) fn new(policy: Requeue, queues: u16, queue_size: u16) -> Self {
        let depth = queue_size - 1;
        let room = usize::from(queues) * usize::from(depth);
        Self {
            policy,
            path: Path::New,
            waiting: Vec::with_capacity(room),
            counts: vec![0; usize::from(queues)].into(),
            queues: 0,
            depth,
            namespaces: Vec::new(),
            seq: 0,
            fail_at: Instant::ZERO,
            write_hold: Hold::No,
            free: 0,
            held: Vec::with_capacity(room),
            next: None,
        }
    }

    /// Another policy, also for what waits: times count from where they did. A bound that is known
    /// by another rule than before is that of the next loss.
    pub(super) fn set_policy(&mut self, now: Instant, policy: Requeue) {
        let before = std::mem::replace(&mut self.policy, policy);
        let (old, new) = (before.fast_io_fail, policy.fast_io_fail);
        let due = self.waiting.iter_mut().map(|w| &mut w.fail_at).filter(|at| **at > Instant::ZERO);
        for at in due.chain([&mut self.fail_at]).filter(|_| old != new) {
            *at = at.retimed(old, new).max(now);
        }
        if let (Quiesce::For(old), Quiesce::For(new)) = (before.quiesce, policy.quiesce) {
            for w in &mut self.waiting {
                if let Hold::Until(at) = &mut w.hold {
                    *at = at.retimed(old, new).max(now);
                }
            }
        }
        self.arm();
    }

    /// The namespaces that I/O is checked against.
    pub(super) fn namespaces(&self) -> &[NamespaceInfo] {
        &self.namespaces
    }

    /// Whether an I/O on qpair `home` (from 0) would be accepted.
    pub(super) fn has_room(&self, home: usize) -> bool {
        let open = matches!(self.path, Path::Live | Path::Away { .. });
        open && home < usize::from(self.queues) && self.counts[home] < self.depth
    }

    /// Accepts an I/O for which there is room; it is then waited for ([`Self::push`]), issued or
    /// ended by whoever called.
    pub(super) fn accept(&mut self, now: Instant, home: usize, io: Io) -> Accepted {
        self.counts[home] += 1;
        self.seq += 1;
        Accepted { io, home: home as u16, seq: self.seq, submitted: now, timeouts: 0 }
    }

    /// An I/O was given back to the caller.
    pub(super) fn given_back(&mut self, home: usize) {
        self.counts[home] -= 1;
    }

    /// Whether an I/O cannot be issued at once.
    pub(super) fn must_wait(&self, home: usize, io: &Io) -> bool {
        // Room on its qpair is as much due to those that were there before.
        let first = |w: &Waiting| match &w.accepted {
            Some(first) => w.hold == Hold::No && usize::from(first.home % self.queues) == home,
            None => false,
        };
        let is_full = || self.free > 0 && self.waiting.iter().any(first);
        self.path != Path::Live || is_full() || self.is_behind(io)
    }

    /// Whether an I/O must not overtake a write that is held.
    fn is_behind(&self, io: &Io) -> bool {
        io.op != IoOp::Read && self.held.iter().any(|held| held.is_before(io))
    }

    /// Whether what is accepted fails at once.
    pub(super) fn is_failing(&self) -> bool {
        self.path == Path::Away { failing: true }
    }

    /// Lets an accepted I/O wait.
    pub(super) fn push(&mut self, accepted: Accepted) {
        let is_behind = self.is_behind(&accepted.io);
        self.insert(accepted, if is_behind { Hold::Behind } else { Hold::No });
        if is_behind || self.path != Path::Live {
            self.next = earliest(self.next, Some(self.fail_at));
        }
    }

    fn insert(&mut self, accepted: Accepted, hold: Hold) {
        assert!(self.waiting.len() < self.waiting.capacity(), "the counts bound what waits");
        if hold != Hold::No && is_write(accepted.io.op) {
            self.held.push(Span::of(&accepted.io));
        }
        let accepted = Some(accepted);
        let (fail_at, status) = (self.fail_at, Status::HOST_PATHING_ERROR);
        self.waiting.push(Waiting { accepted, hold, fail_at, status });
        self.free += usize::from(hold == Hold::No);
    }

    /// The live controller was lost, which used a KATO of `kato` at most; what was under way
    /// follows ([`Self::put_back`]), then [`Self::advance`].
    pub(super) fn lost(&mut self, now: Instant, ending: Ending, kato: Duration, info: &Info) {
        self.path = Path::Away { failing: false };
        self.fail_at = now + self.policy.fast_io_fail;
        self.write_hold = hold_of_writes(self.policy.quiesce, now, ending, kato, info);
        for w in self.waiting.iter_mut().filter(|w| w.hold == Hold::No) {
            w.fail_at = self.fail_at;
        }
    }

    /// Takes an I/O back from the lost path.
    ///
    /// # Errors
    /// The I/O, which has ended its path too often and is to fail.
    pub(super) fn put_back(&mut self, mut accepted: Accepted, loss: Loss) -> Result<(), Accepted> {
        accepted.timeouts += u8::from(loss.timed_out);
        if accepted.timeouts >= TIMEOUTS_MAX {
            return Err(accepted);
        }
        let hold = match accepted.io.op {
            IoOp::Read => Hold::No,
            op if is_write(op) && loss.begun && self.write_hold != Hold::No => self.write_hold,
            _ => Hold::Behind, // if there is one
        };
        self.insert(accepted, hold);
        Ok(())
    }

    /// A controller is live; what waits for a namespace that is not what it was fails.
    pub(super) fn live(&mut self, info: &Info) {
        self.path = Path::Live;
        self.queues = info.io_queues.min(self.counts.len() as u16);
        self.depth = info.commands_max;
        for w in &mut self.waiting {
            let Some(Accepted { io, .. }) = &w.accepted else { continue };
            let before = self.namespaces.iter().find(|ns| ns.nsid == io.nsid);
            let is_same = match (before, info.namespace(io.nsid)) {
                (Some(before), Some(after)) => {
                    *before == NamespaceInfo { blocks: before.blocks, ..*after }
                }
                _ => io.op == IoOp::Flush,
            };
            if !is_same {
                (w.fail_at, w.status) = (Instant::ZERO, Status::INVALID_NAMESPACE.with_dnr());
                w.hold = Hold::Unknown;
            }
        }
        self.namespaces.clone_from(&info.namespaces);
    }

    /// No controller will be live again: all fails with the next [`Self::advance`], and nothing
    /// more is accepted.
    pub(super) fn close(&mut self) {
        self.path = Path::Over;
        self.waiting.iter_mut().for_each(|w| w.fail_at = Instant::ZERO);
    }

    /// Hands out what is due; `out` gives back what finds no room.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        out: &mut dyn FnMut(Accepted, Due) -> Result<(), Accepted>,
    ) {
        self.waiting.sort_unstable_by_key(|w| w.accepted.as_ref().map(|accepted| accepted.seq));
        let (is_live, queues) = (self.path == Path::Live, self.queues.max(1));
        if let Path::Away { failing } = &mut self.path {
            *failing |= self.fail_at <= now;
        }
        let mut pass = |waiting: &mut Vec<Waiting>, issue: bool| {
            waiting.retain_mut(|w| {
                let fails = w.fail_at <= now && (w.hold != Hold::No || !is_live);
                let goes = issue && is_live && w.hold == Hold::No;
                if !(fails || goes) {
                    return true;
                }
                let Some(accepted) = w.accepted.take() else { return false };
                let queue = accepted.home % queues;
                let due = if fails { Due::Fail(w.status) } else { Due::Issue(queue) };
                w.accepted = out(accepted, due).err();
                w.accepted.is_some()
            });
        };
        pass(&mut self.waiting, false);
        self.release(now);
        pass(&mut self.waiting, true);
        self.arm();
    }

    /// Ends the holds that are over: those whose time has come and that overlap no earlier one
    /// that is held.
    fn release(&mut self, now: Instant) {
        self.held.clear();
        for at in 0..self.waiting.len() {
            let w = &self.waiting[at];
            let is_over = match w.hold {
                Hold::No => continue,
                Hold::Until(until) => until <= now,
                Hold::Behind => true,
                Hold::Unknown => false,
            };
            let Some(Accepted { io, .. }) = &w.accepted else { continue };
            let is_held = !is_over || self.is_behind(io);
            if is_held && is_write(io.op) {
                self.held.push(Span::of(io));
            }
            if is_over {
                self.waiting[at].hold = if is_held { Hold::Behind } else { Hold::No };
            }
        }
    }

    /// Whether something waits for nothing but room.
    pub(super) fn wants_room(&self) -> bool {
        self.path == Path::Live && self.free > 0
    }

    /// When [`Self::advance`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn arm(&mut self) {
        let is_live = self.path == Path::Live;
        self.free = self.waiting.iter().filter(|w| w.hold == Hold::No).count();
        let of = |w: &Waiting| match w.hold {
            Hold::No if is_live => None,
            Hold::Until(at) => Some(at.min(w.fail_at)),
            Hold::No | Hold::Unknown | Hold::Behind => Some(w.fail_at),
        };
        let of_path = Some(self.fail_at).filter(|_| self.path == Path::Away { failing: false });
        self.next = self.waiting.iter().map(of).fold(of_path, earliest);
    }

    /// What is to be seen.
    pub(super) fn shown(&self) -> Shown {
        let held = self.waiting.iter().map(|w| w.hold);
        let until = held.clone().filter_map(|hold| match hold {
            Hold::Until(at) => Some(at),
            _ => None,
        });
        let is_live = self.path == Path::Live;
        let failing = self.waiting.iter().filter(|w| !is_live || w.hold != Hold::No);
        let of_path = Some(self.fail_at).filter(|_| self.path == Path::Away { failing: false });
        Shown {
            waiting: self.waiting.len(),
            quiescing: held.filter(|h| matches!(h, Hold::Until(_) | Hold::Unknown)).count(),
            quiesce: until.max(),
            fast_io_fail: failing.map(|w| Some(w.fail_at)).fold(of_path, earliest),
        }
    }
}

/// How long a write is held that was on the wire.
fn hold_of_writes(
    quiesce: Quiesce,
    now: Instant,
    ending: Ending,
    kato: Duration,
    info: &Info,
) -> Hold {
    match quiesce {
        _ if ending == Ending::ByPeer => Hold::No,
        Quiesce::Off => Hold::No,
        Quiesce::For(time) => Hold::Until(now + time),
        Quiesce::Auto if kato.is_zero() => Hold::Unknown,
        Quiesce::Auto => {
            let katos = if info.tbkas { 3 } else { 2 };
            Hold::Until(now + katos * kato + info.cqt)
        }
    }
}

impl Span {
    fn of(io: &Io) -> Self {
        let end = io.lba.saturating_add(u64::from(io.blocks));
        Self { nsid: io.nsid, lba: io.lba, end }
    }

    /// Whether `later` must not overtake a write of these blocks.
    fn is_before(&self, later: &Io) -> bool {
        let other = Self::of(later);
        match later.op {
            IoOp::Read => false,
            IoOp::Flush => [self.nsid, ALL_NAMESPACES].contains(&later.nsid),
            IoOp::Write { .. } | IoOp::WriteZeroes | IoOp::Deallocate => {
                self.nsid == other.nsid && self.lba < other.end && other.lba < self.end
            }
        }
    }
}

/// Whether blocks are changed.
fn is_write(op: IoOp) -> bool {
    match op {
        IoOp::Write { .. } | IoOp::WriteZeroes | IoOp::Deallocate => true,
        IoOp::Read | IoOp::Flush => false,
    }
}
