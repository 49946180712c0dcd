//! A target of the world, with its disk and what befalls it.

use std::net::SocketAddr;

use moorline_nvme::target::{Fault, FaultScope, Subsystem, Target};
use moorline_stack::time::earliest;
use moorline_stack::{Instant, Transport};

use crate::ctx::Ctx;
use crate::disk::Platter;
use crate::plan::{MS, Plan, S, draw_wrong};

/// Turns at one time: more means that it spins.
const TURNS_MAX: u32 = 100_000;

/// A target and its disk.
pub(crate) struct TargetNode<T: Transport> {
    pub name: String,
    pub target: Target<T>,
    pub platter: Platter,
    pub addr: SocketAddr,
    pub frozen_until: Instant,
    /// When its path is there again.
    pub dark_until: Option<Instant>,
    /// Its own faults: name, and until when.
    wrongs: Vec<(u64, Instant)>,
    count: u64,
    /// When something befell it last: until then it may not have noticed what its hosts did.
    pub disturbed_until: Instant,
    pub is_disturbed: bool,
    ready_at: Instant,
    turns_in_vain: u32,
}

/// The subsystem of a target.
pub(crate) fn nqn(n: usize) -> String {
    format!("nqn.2026-01.io.moorline:target-{n}")
}

impl<T: Transport> TargetNode<T> {
    /// A target on `transport`, over a disk that may have been there before.
    pub fn new(
        now: Instant,
        n: usize,
        addr: SocketAddr,
        transport: T,
        platter: Platter,
        plan: &Plan,
    ) -> Self {
        let mut target = Target::new(transport, plan.target.clone());
        let mut subsystem = Subsystem::new(nqn(n));
        subsystem.add_namespace(1, Box::new(platter.device())).expect("the first");
        target.add_subsystem(subsystem).expect("the only one");
        target.listen(now, addr).expect("nobody else listens");
        Self {
            name: format!("target-{n}"),
            target,
            platter,
            addr,
            frozen_until: Instant::ZERO,
            dark_until: None,
            wrongs: Vec::new(),
            count: 0,
            disturbed_until: now,
            is_disturbed: false,
            ready_at: now,
            turns_in_vain: 0,
        }
    }

    /// When it is to turn.
    pub fn next(&self) -> Option<Instant> {
        let own = earliest(self.target.poll_timeout(), self.platter.next());
        own.map(|at| at.max(self.ready_at).max(self.frozen_until))
    }

    /// When something that befell it ends.
    pub fn relief(&self) -> Option<Instant> {
        let wrong = self.wrongs.iter().map(|&(_, until)| until).min();
        earliest(wrong, self.dark_until)
    }

    /// A turn.
    pub fn turn(&mut self, ctx: &mut Ctx, plan: &Plan) {
        let now = ctx.now;
        self.ready_at = now + plan.turn;
        self.target.turn(now);
        self.target.flush(now);
        let due = self.target.poll_timeout().is_some_and(|at| at <= now);
        self.turns_in_vain = if due { self.turns_in_vain + 1 } else { 0 };
        if self.turns_in_vain > TURNS_MAX {
            ctx.violates(format_args!("{}: something is due for ever", self.name));
        }
    }

    /// Something befalls it until then.
    pub fn disturb(&mut self, until: Instant) {
        self.is_disturbed = true;
        self.disturbed_until = self.disturbed_until.max(until);
    }

    /// It gets no turn until then.
    pub fn freeze(&mut self, ctx: &mut Ctx, until: Instant) {
        self.disturb(until);
        self.frozen_until = until;
        ctx.fault("freeze_target", &self.name, format_args!("is frozen until {until:?}"));
    }

    /// It resets its connections.
    pub fn reset(&mut self, ctx: &mut Ctx) {
        self.disturb(ctx.now);
        let share = if ctx.rng.chance(0.5) { 1.0 } else { 0.3 };
        let scope = FaultScope { share, seed: ctx.rng.bits(), ..FaultScope::default() };
        let reset = self.target.add_fault(ctx.now, 0, Fault::Reset, scope).unwrap_or(0);
        ctx.fault("reset", &self.name, format_args!("resets {reset} connections"));
    }

    /// Its disk ends nothing until then.
    pub fn stick(&mut self, ctx: &mut Ctx, until: Instant) {
        self.disturb(until);
        self.platter.stick(until);
        ctx.fault("disk_stuck", &self.name, format_args!("has a disk that hangs until {until:?}"));
    }

    /// It does something wrong until then.
    pub fn go_wrong(&mut self, ctx: &mut Ctx, until: Instant) {
        let (fault, share) = draw_wrong(&mut ctx.rng);
        // What is never answered keeps its controller from living: not for long.
        let until = until.min(ctx.now + 5 * S).max(ctx.now + MS);
        self.disturb(until);
        self.count += 1;
        let scope = FaultScope { share, seed: ctx.rng.bits(), ..FaultScope::default() };
        if self.target.add_fault(ctx.now, self.count, fault, scope).is_ok() {
            self.wrongs.push((self.count, until));
        }
        let what = format_args!("has {fault:?} for a share of {share}, until {until:?}");
        ctx.fault("wrong", &self.name, what);
    }

    /// Ends what has befallen it for long enough. Returns whether its path is there again.
    pub fn relieve(&mut self, ctx: &mut Ctx) -> bool {
        let now = ctx.now;
        let target = &mut self.target;
        self.wrongs.retain(|&(name, until)| {
            if until <= now {
                let gone = target.remove_fault(now, name);
                gone.expect("it can listen where it has listened");
            }
            until > now
        });
        let is_over = self.dark_until.is_some_and(|until| until <= now);
        if is_over {
            self.dark_until = None;
            ctx.trace.tell(now, &self.name, format_args!("is no longer dark"));
        }
        is_over
    }

    /// Ends all that befalls it, and whatever its disk does wrong.
    pub fn heal(&mut self, ctx: &mut Ctx) {
        let now = ctx.now;
        self.frozen_until = now;
        self.wrongs.iter_mut().for_each(|(_, until)| *until = now);
        self.dark_until = None;
        self.relieve(ctx);
        self.platter.stick(now);
        self.platter.change(|disk| {
            (disk.errors, disk.slow) = (0.0, 0.0);
        });
    }

    /// What it still has of hosts that are gone.
    pub fn left(&self) -> Option<String> {
        let stats = self.target.stats();
        let left = stats.conns + stats.controllers + stats.stale_writes;
        (left > 0).then(|| format!("{}: {stats:?}", self.name))
    }
}
