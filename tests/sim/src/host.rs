//! A host of the world, its load, and what is checked at its ends: each I/O ends once, no queue
//! holds more than its depth, deadlines are honoured when they are due, what is read may be there.

use std::time::Duration;

use moorline_nvme::host::{
    CtrlConfig, CtrlId, CtrlState, Host, HostEvent, HostIdentity, HostLimits, Io, IoDone, IoOp,
};
use moorline_nvme::spec::Status;
use moorline_nvme::spec::status::sct;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::rng::Rng;
use moorline_stack::time::earliest;
use moorline_stack::{Instant, Transport};

use crate::BLOCK;
use crate::ctx::Ctx;
use crate::plan::Plan;
use crate::shadow::{End, Span, fill};

/// Bits of a tag that name the slot; the others count.
const SLOT_BITS: u32 = 12;
/// Turns at one time that have nothing to show: more means that it spins.
const TURNS_MAX: u32 = 20_000;
/// Buffers of a controller.
const BUFS: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Read,
    Write { durable: bool },
    Flush,
}

/// An I/O under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    tag: u64,
    what: What,
    span: Span,
    ctrl: usize,
    qpair: usize,
}

/// A write that failed: the target may execute it still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ghost {
    pub target: usize,
    pub span: Span,
    pub since: Instant,
}

/// A controller, and what it came to.
#[derive(Debug)]
pub(crate) struct Ctrl {
    pub id: CtrlId,
    pub target: usize,
    /// I/Os under way, by qpair.
    counts: Vec<u16>,
    pub is_live: bool,
    pub lost: u64,
    pub closed: u64,
}

/// A host and who uses it.
pub(crate) struct HostNode<T: Transport> {
    name: String,
    pub host: Host<T>,
    pub ctrls: Vec<Ctrl>,
    config: CtrlConfig,
    rng: Rng,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    bufs: Vec<IoBuf>,
    count: u64,
    pub ghosts: Vec<Ghost>,
    /// When it submits next; `None`: no more.
    pub load_at: Option<Instant>,
    pub frozen_until: Instant,
    /// Not before: its turn takes time.
    ready_at: Instant,
    turns_in_vain: u32,
}

impl<T: Transport> HostNode<T> {
    /// A host on `transport`.
    pub fn new(ctx: &mut Ctx, n: usize, transport: T, plan: &Plan) -> Self {
        let hostnqn = format!("nqn.2026-01.io.moorline:host-{n}");
        let identity = HostIdentity { hostnqn, hostid: [n as u8 + 1; 16] };
        let limits = HostLimits { controllers: 8, ..HostLimits::default() };
        Self {
            name: format!("host-{n}"),
            host: Host::new(transport, identity, limits),
            ctrls: Vec::new(),
            config: plan.ctrl.clone(),
            rng: Rng::new(ctx.rng.bits()),
            flights: Vec::new(),
            free: Vec::new(),
            bufs: Vec::new(),
            count: 0,
            ghosts: Vec::new(),
            load_at: Some(ctx.now),
            frozen_until: Instant::ZERO,
            ready_at: ctx.now,
            turns_in_vain: 0,
        }
    }

    /// Connects it to a target.
    pub fn connect(&mut self, ctx: &Ctx, plan: &Plan, target: usize, config: CtrlConfig) {
        let len = plan.io_blocks as usize * BLOCK;
        let mut arena = Arena::new(BUFS as usize * len.next_multiple_of(4096));
        self.bufs.extend(std::iter::from_fn(|| arena.take(len)).take(BUFS as usize));
        let counts = vec![0; config.io_queues.into()];
        let id = self.host.connect(ctx.now, config).expect("plans hold to the rules");
        self.ctrls.push(Ctrl { id, target, counts, is_live: false, lost: 0, closed: 0 });
    }

    /// When it is to turn.
    pub fn next(&self) -> Option<Instant> {
        let next = earliest(self.host.poll_timeout(), self.load_at);
        next.map(|at| at.max(self.ready_at).max(self.frozen_until))
    }

    /// A turn.
    pub fn turn(&mut self, ctx: &mut Ctx, plan: &Plan) {
        let now = ctx.now;
        self.ready_at = now + plan.turn;
        self.host.turn(now);
        let mut did = false;
        while let Some(event) = self.host.poll_event() {
            did = true;
            self.event(ctx, event);
        }
        while let Some(done) = self.host.poll_io() {
            did = true;
            self.done(ctx, done);
        }
        if self.load_at.is_some_and(|at| at <= now) {
            did = true;
            self.load_at = Some(now + US_MIN + self.rng.duration(plan.pace));
            self.load(ctx, plan);
        }
        self.host.flush(now);
        let figures = self.host.figures();
        if (figures.deadlines_early, figures.deadlines_late) != (0, 0) {
            let (early, late) = (figures.deadlines_early, figures.deadlines_late);
            ctx.violates(format_args!("{}: {early} deadlines early, {late} late", self.name));
        }
        let due = !did && self.host.poll_timeout().is_some_and(|at| at <= now);
        self.turns_in_vain = if due { self.turns_in_vain + 1 } else { 0 };
        if self.turns_in_vain > TURNS_MAX {
            ctx.violates(format_args!("{}: something is due for ever", self.name));
        }
    }

    fn event(&mut self, ctx: &mut Ctx, event: HostEvent) {
        let of = match &event {
            HostEvent::Live { ctrl, .. }
            | HostEvent::Disconnected { ctrl, .. }
            | HostEvent::Failed { ctrl, .. }
            | HostEvent::Closed { ctrl }
            | HostEvent::Aen { ctrl, .. } => *ctrl,
        };
        let Some(ctrl) = self.ctrls.iter_mut().find(|ctrl| ctrl.id == of) else { return };
        ctx.trace.tell(ctx.now, &self.name, format_args!("{event:?}"));
        match event {
            HostEvent::Live { .. } => {
                if std::mem::replace(&mut ctrl.is_live, true) {
                    ctx.violates(format_args!("{}: live twice", self.name));
                }
            }
            HostEvent::Disconnected { .. } => {
                ctrl.lost += u64::from(std::mem::replace(&mut ctrl.is_live, false));
            }
            HostEvent::Failed { failure, .. } => {
                ctx.violates(format_args!("{}: given up for good: {failure}", self.name));
            }
            HostEvent::Closed { .. } => ctrl.closed += 1,
            HostEvent::Aen { .. } => {}
        }
    }

    /// A round of submissions.
    fn load(&mut self, ctx: &mut Ctx, plan: &Plan) {
        for _ in 0..1 + self.rng.below(plan.round) {
            let at = self.rng.below(self.ctrls.len() as u64) as usize;
            let qpair = self.rng.below(self.ctrls[at].counts.len() as u64) as usize;
            let blocks = 1 + self.rng.below(plan.io_blocks);
            let lba = self.rng.below(plan.blocks - blocks + 1);
            let fua = self.rng.chance(0.1);
            let op = match self.rng.chance(plan.reads) {
                true => IoOp::Read,
                false => match self.rng.below(16) {
                    0 => IoOp::Flush,
                    1 => IoOp::WriteZeroes,
                    _ => IoOp::Write { fua },
                },
            };
            if !self.submit(ctx, at, qpair, op, lba, blocks as u32) {
                return;
            }
        }
    }

    /// Reads all of a controller's disk; false: there is no room now.
    pub fn read(&mut self, ctx: &mut Ctx, at: usize, lba: u64, blocks: u32) -> bool {
        self.submit(ctx, at, 0, IoOp::Read, lba, blocks)
    }

    fn submit(
        &mut self,
        ctx: &mut Ctx,
        at: usize,
        qpair: usize,
        op: IoOp,
        lba: u64,
        blocks: u32,
    ) -> bool {
        let ctrl = &mut self.ctrls[at];
        let slot = self.free.pop().unwrap_or(self.flights.len());
        self.count += 1;
        let tag = self.count << SLOT_BITS | slot as u64;
        // Unique over hosts and their lives: the random part is in the low bits of no other.
        let value = if op == IoOp::WriteZeroes { 0 } else { self.rng.bits() | 1 };
        let mut buf = None;
        if matches!(op, IoOp::Read | IoOp::Write { .. }) {
            let Some(mut bytes) = self.bufs.pop() else {
                self.free.push(slot);
                return false;
            };
            let len = blocks as usize * BLOCK;
            match op {
                IoOp::Read => bytes[..len].fill(0xEE),
                _ => fill(lba, value, &mut bytes[..len]),
            }
            buf = Some(bytes);
        }
        let io = Io { tag, op, nsid: 1, lba, blocks, buf, buf_offset: 0 };
        if slot == self.flights.len() {
            self.flights.push(None);
        }
        if let Err(io) = self.host.submit(ctx.now, ctrl.id, qpair, io) {
            self.bufs.extend(io.buf);
            self.free.push(slot);
            return false;
        }
        let shadow = &mut ctx.shadows[ctrl.target];
        let (what, span) = match op {
            IoOp::Read => (What::Read, shadow.read(lba, blocks)),
            IoOp::Flush => (What::Flush, shadow.read(lba, 0)),
            IoOp::Write { fua } => (What::Write { durable: fua }, shadow.write(lba, blocks, value)),
            IoOp::WriteZeroes | IoOp::Deallocate => {
                (What::Write { durable: false }, shadow.write(lba, blocks, value))
            }
        };
        ctx.trace.io(ctx.now, [tag, lba, value], || {
            format!(
                "{} submits {tag:x} to {at}.{qpair}: {op:?} {lba}+{blocks} {value:#x}",
                self.name
            )
        });
        ctrl.counts[qpair] += 1;
        if ctrl.counts[qpair] > self.config.queue_size - 1 {
            let depth = self.config.queue_size - 1;
            ctx.violates(format_args!("{}: a queue of {depth} took more", self.name));
        }
        self.flights[slot] = Some(Flight { tag, what, span, ctrl: at, qpair });
        true
    }

    fn done(&mut self, ctx: &mut Ctx, done: IoDone) {
        let IoDone { tag, status, buf, .. } = done;
        let slot = (tag & ((1 << SLOT_BITS) - 1)) as usize;
        let flight = self.flights.get_mut(slot).and_then(Option::take);
        let Some(flight) = flight.filter(|flight| flight.tag == tag) else {
            return ctx.violates(format_args!("{}: {tag:x} ended, not under way", self.name));
        };
        self.free.push(slot);
        let ctrl = &mut self.ctrls[flight.ctrl];
        ctrl.counts[flight.qpair] -= 1;
        let target = ctrl.target;
        let word = buf.as_ref().map_or(0, |buf| {
            u64::from_le_bytes(*buf.first_chunk().expect("a buffer holds a block"))
        });
        ctx.trace.io(ctx.now, [tag, u64::from(status.0), word], || {
            format!("{} is told of {tag:x}: {status} {word:#x}", self.name)
        });
        if status != Status::SUCCESS {
            self.fails(ctx, flight, status);
            return self.bufs.extend(buf);
        }
        ctx.ios += 1;
        let shadow = &mut ctx.shadows[target];
        match flight.what {
            What::Write { durable } => shadow.written(flight.span, End::Acknowledged { durable }),
            What::Flush => shadow.flushed(flight.span),
            What::Read => {
                let len = flight.span.blocks as usize * BLOCK;
                let bytes = buf.as_ref().map_or(&[][..], |buf| &buf[..len]);
                let found = shadow.found(flight.span, bytes);
                if let Err(wrong) = found {
                    ctx.violates(format_args!("{}: read {tag:x}: {wrong}", self.name));
                }
            }
        }
        self.bufs.extend(buf);
    }

    fn fails(&mut self, ctx: &mut Ctx, flight: Flight, status: Status) {
        ctx.failed += 1;
        let is_expected = match status.sct() {
            sct::PATH | sct::MEDIA => true,
            // A data digest that was wrong; a timeout.
            _ => {
                status.is(Status::TRANSIENT_TRANSPORT)
                    || status.is(Status::DATA_TRANSFER_ERROR)
                    || status.is(Status::ABORT_REQUESTED)
            }
        };
        if !is_expected {
            ctx.violates(format_args!("{}: {:x} failed with {status}", self.name, flight.tag));
        }
        let target = self.ctrls[flight.ctrl].target;
        match flight.what {
            What::Read | What::Flush => ctx.shadows[target].gave_up(flight.span),
            What::Write { .. } => {
                self.ghosts.push(Ghost { target, span: flight.span, since: ctx.now });
            }
        }
    }

    /// I/Os under way.
    pub fn under_way(&self) -> usize {
        self.flights.iter().flatten().count()
    }

    /// Why it is not at rest, if it is not.
    pub fn unrest(&self) -> Option<String> {
        let under_way = self.under_way();
        if under_way > 0 {
            let first = self.flights.iter().flatten().next();
            return Some(format!("{}: {under_way} I/Os under way, {first:x?}", self.name));
        }
        self.ctrls.iter().find_map(|ctrl| {
            let status = self.host.status(ctrl.id);
            let is_well = status.state == CtrlState::Live && status.waiting == 0;
            (!is_well).then(|| format!("{}: {status:?}", self.name))
        })
    }

    /// Shuts all its controllers down.
    pub fn disconnect(&mut self, now: Instant) {
        for ctrl in &self.ctrls {
            self.host.disconnect(now, ctrl.id);
        }
    }
}

const US_MIN: Duration = Duration::from_micros(1);
