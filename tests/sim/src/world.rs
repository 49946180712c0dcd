//! Hosts, targets, disks and a network in one thread, on one clock that jumps to whatever is due.
//!
//! A run has three parts: with faults, everything that was promised holds (safety); then
//! everything is healed, and all I/O must end and all controllers be live within a bound of virtual
//! time (progress); then all blocks are read, and everyone leaves in order.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use moorline_nvme::host::CtrlConfig;
use moorline_stack::Instant;
use moorline_stack::rng::Rng;
use moorline_stack::time::earliest;

use crate::ctx::Ctx;
use crate::disk::Platter;
use crate::host::{Ghost, HostNode};
use crate::net::Net;
use crate::plan::{Kind, MS, Plan, S, US};
use crate::shadow::{End, Shadow};
use crate::target::{TargetNode, nqn};
use crate::trace::Trace;

/// When a world begins: not at 0, which stands for "at once".
const START: Instant = Instant::from_nanos(1_000_000_000);
/// How long it may take until all is well once nothing goes wrong any more.
const HEAL: Duration = Duration::from_secs(90);
/// How often ghosts are looked at.
const GHOSTS: Duration = Duration::from_millis(100);

/// A world of a seed.
pub(crate) struct World<N: Net> {
    plan: Plan,
    net: N,
    hosts: Vec<HostNode<N::T>>,
    targets: Vec<TargetNode<N::T>>,
    pub ctx: Ctx,
    fault_at: Option<Instant>,
    ghosts_at: Instant,
}

impl<N: Net> World<N> {
    /// As the seed has it.
    pub fn new(seed: u64, print: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let (hosts, targets) = (1, 1);
        let clock = Rc::new(Cell::new(START));
        let mut net = N::new(rng.bits(), &plan);
        let mut ctx = Ctx {
            now: START,
            clock: clock.clone(),
            rng,
            trace: Trace::new(print),
            shadows: Vec::new(),
            ios: 0,
            failed: 0,
            faults: BTreeMap::new(),
            violations: Vec::new(),
        };
        ctx.trace.tell(START, "world", format_args!("{plan:?}"));
        let mut world_targets = Vec::new();
        for n in 0..targets {
            let transport = net.attach(START, hosts + n);
            let seed = ctx.rng.bits();
            let platter = Platter::new(clock.clone(), seed, plan.blocks, plan.disk.clone());
            ctx.shadows.push(Shadow::new(plan.blocks, !plan.disk.volatile));
            let addr = SocketAddr::from(([10, 0, 0, (hosts + n) as u8 + 1], 4420));
            world_targets.push(TargetNode::new(START, n, addr, transport, platter, &plan));
        }
        let mut world_hosts = Vec::new();
        for n in 0..hosts {
            let mut host = HostNode::new(&mut ctx, n, net.attach(START, n), &plan);
            for (at, target) in world_targets.iter().enumerate() {
                let config = CtrlConfig { addr: target.addr, subnqn: nqn(at), ..plan.ctrl.clone() };
                host.connect(&ctx, &plan, at, config);
            }
            world_hosts.push(host);
        }
        let fault_at = Some(START + ctx.rng.duration(plan.fault_pause));
        let fault_at = fault_at.filter(|_| !plan.kinds.is_empty());
        let (hosts, targets) = (world_hosts, world_targets);
        Self { plan, net, hosts, targets, ctx, fault_at, ghosts_at: START }
    }

    /// From the beginning to the end, or to the first violation.
    pub fn run(&mut self) {
        let end = START + self.plan.safety;
        self.run_until(end, |_| false);
        self.heal();
        if self.is_violated() {
            return;
        }
        let end = self.ctx.now + HEAL;
        if !self.run_until(end, |world| world.unrest().is_none()) && !self.is_violated() {
            let unrest = self.unrest().unwrap_or_default();
            self.ctx.violates(format_args!("not well {HEAL:?} after all is healed: {unrest}"));
        }
        self.read_all();
        self.leave();
        self.last_checks();
    }

    fn is_violated(&self) -> bool {
        !self.ctx.violations.is_empty()
    }

    /// Turns and jumps until `end`, `done`, or a violation. Returns whether it is done.
    fn run_until(&mut self, end: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        while self.ctx.now < end && !self.is_violated() {
            self.step(end);
            if done(self) {
                return true;
            }
        }
        false
    }

    /// To the next time at which something is due, and what is due then.
    fn step(&mut self, end: Instant) {
        let of_hosts = self.hosts.iter().map(HostNode::next).fold(None, earliest);
        let of_targets = self.targets.iter().map(TargetNode::next).fold(None, earliest);
        let relief = self.targets.iter().map(TargetNode::relief).fold(None, earliest);
        let next = [of_hosts, of_targets, relief, self.fault_at, Some(self.ghosts_at)];
        let next = next.into_iter().fold(Some(end), earliest).unwrap_or(end);
        let now = self.ctx.now.max(next);
        self.ctx.now = now;
        self.ctx.clock.set(now);
        if self.fault_at.is_some_and(|at| at <= now) {
            self.strike();
        }
        if self.ghosts_at <= now {
            self.ghosts_at = now + GHOSTS;
            self.end_ghosts();
        }
        for target in &mut self.targets {
            if target.relief().is_some_and(|at| at <= now) && target.relieve(&mut self.ctx) {
                let addr = target.addr;
                self.net.dark(target.target.transport_mut(), addr, false);
            }
        }
        for host in &mut self.hosts {
            if host.next().is_some_and(|at| at <= now) {
                host.turn(&mut self.ctx, &self.plan);
            }
        }
        for target in &mut self.targets {
            if target.next().is_some_and(|at| at <= now) {
                target.turn(&mut self.ctx, &self.plan);
            }
        }
    }

    /// Something befalls somebody.
    fn strike(&mut self) {
        let Self { plan, ctx, hosts, targets, net, .. } = self;
        let now = ctx.now;
        self.fault_at = Some(now + MS + ctx.rng.duration(plan.fault_pause));
        let kind = plan.kinds[ctx.rng.below(plan.kinds.len() as u64) as usize];
        let until = now + MS + ctx.rng.duration(plan.fault_time);
        let (h, t) = (ctx.rng.below(hosts.len() as u64), ctx.rng.below(targets.len() as u64));
        let (host, target) = (&mut hosts[h as usize], &mut targets[t as usize]);
        match kind {
            Kind::Dark => {
                target.disturb(until);
                target.dark_until = target.dark_until.max(Some(until));
                net.dark(target.target.transport_mut(), target.addr, true);
                let who = &target.name;
                ctx.fault(kind.name(), who, format_args!("is dark until {until:?}"));
            }
            Kind::Reset => target.reset(ctx),
            Kind::FreezeTarget => target.freeze(ctx, until),
            Kind::FreezeHost => {
                host.frozen_until = until;
                targets.iter_mut().for_each(|target| target.disturb(until));
                ctx.fault(kind.name(), h, format_args!("host is frozen until {until:?}"));
            }
            Kind::DiskStuck => target.stick(ctx, until),
            Kind::ResetController => {
                let at = ctx.rng.below(host.ctrls.len() as u64) as usize;
                let ctrl = &mut host.ctrls[at];
                ctrl.is_live = false; // who asks for it is not told
                targets[ctrl.target].disturb(now);
                host.host.reset(now, ctrl.id);
                ctx.fault(kind.name(), h, format_args!("host resets controller {at}"));
            }
            Kind::Wrong => target.go_wrong(ctx, until),
        }
    }

    /// Failed writes that nobody can execute any more: their association is over by all rules, and
    /// the disk has nothing.
    fn end_ghosts(&mut self) {
        let Self { plan, ctx, hosts, targets, .. } = self;
        let grace = 3 * plan.ctrl.kato + 2 * S;
        for host in hosts {
            let Ctx { shadows, now, .. } = ctx;
            host.ghosts.retain(|&Ghost { target, span, since }| {
                let node = &targets[target];
                let is_over = since.max(node.disturbed_until) + grace <= *now;
                let is_over = is_over && !node.platter.has_writes();
                if is_over {
                    shadows[target].written(span, End::Over);
                }
                !is_over
            });
        }
    }

    /// Nothing goes wrong from now on, and no new I/O comes.
    fn heal(&mut self) {
        let Self { ctx, hosts, targets, net, .. } = self;
        self.fault_at = None;
        ctx.trace.tell(ctx.now, "world", format_args!("is healed"));
        for target in targets {
            net.heal(target.target.transport_mut());
            target.heal(ctx);
        }
        for host in hosts {
            host.frozen_until = ctx.now;
            host.load_at = None;
        }
    }

    /// Why it is not at rest, if it is not.
    fn unrest(&self) -> Option<String> {
        self.hosts.iter().find_map(HostNode::unrest)
    }

    /// Reads every block by every controller.
    fn read_all(&mut self) {
        for h in 0..self.hosts.len() {
            for at in 0..self.hosts[h].ctrls.len() {
                let mut lba = 0;
                while lba < self.plan.blocks && !self.is_violated() {
                    let blocks = self.plan.io_blocks.min(self.plan.blocks - lba);
                    if self.hosts[h].read(&mut self.ctx, at, lba, blocks as u32) {
                        lba += blocks;
                    }
                    let soon = self.ctx.now + 200 * US;
                    self.run_until(soon, |_| false);
                }
            }
        }
        let end = self.ctx.now + 10 * S;
        if !self.run_until(end, |world| world.unrest().is_none()) && !self.is_violated() {
            let unrest = self.unrest().unwrap_or_default();
            self.ctx.violates(format_args!("the last reads do not end: {unrest}"));
        }
    }

    /// All controllers are shut down, and nothing is left of them.
    fn leave(&mut self) {
        if self.is_violated() {
            return;
        }
        let now = self.ctx.now;
        self.hosts.iter_mut().for_each(|host| host.disconnect(now));
        let is_gone = |world: &Self| {
            let closed = world.hosts.iter().flat_map(|host| &host.ctrls).all(|c| c.closed == 1);
            closed && world.targets.iter().all(|target| target.left().is_none())
        };
        if !self.run_until(now + 30 * S, is_gone) && !self.is_violated() {
            let ctrls = self.hosts.iter().flat_map(|host| &host.ctrls);
            let left: Vec<_> = self.targets.iter().filter_map(TargetNode::left).collect();
            let ctrls: Vec<_> = ctrls.collect();
            let what = format!("controllers do not end: {ctrls:?}, {left:?}");
            self.ctx.violates(format_args!("{what}"));
        }
    }

    /// What can be judged at the end only.
    fn last_checks(&mut self) {
        if self.is_violated() {
            return;
        }
        for host in &self.hosts {
            let figures = host.host.figures();
            self.ctx.trace.tell(self.ctx.now, "host", format_args!("{:?}", figures.keep_alives));
            for ctrl in &host.ctrls {
                let target = &self.targets[ctrl.target];
                if self.plan.is_calm() && !target.is_disturbed && ctrl.lost > 0 {
                    self.ctx.violates(format_args!("lost though nothing befell it: {ctrl:?}"));
                }
            }
        }
        if self.plan.is_calm() && self.ctx.failed > 0 {
            let failed = self.ctx.failed;
            self.ctx.violates(format_args!("{failed} I/Os failed though nothing went wrong"));
        }
        for target in &self.targets {
            let stats = target.target.stats();
            self.ctx.trace.tell(self.ctx.now, &target.name, format_args!("{stats:?}"));
        }
    }

    /// Faults met so far, by name: those of the disks are added.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        let mut faults = self.ctx.faults.clone();
        for target in &self.targets {
            let counts = target.platter.counts();
            for (name, count) in [
                ("disk_slow", counts.slow),
                ("disk_error", counts.errors),
                ("disk_full", counts.full),
                ("disk_lost_block", counts.lost),
            ] {
                if count > 0 {
                    *faults.entry(name).or_default() += count;
                }
            }
        }
        faults
    }

    /// Since it began.
    pub fn simulated(&self) -> Duration {
        self.ctx.now.since(START)
    }
}
