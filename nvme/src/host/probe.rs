//! Tests of addresses that are not reachable: when each may begin.
//!
//! What always holds: over all addresses, so many tests are under way at most, and so many begin in
//! a second (a burst apart). What is due first comes first, so an address that waits for its turn
//! gets it before any other has a second one. Tests of one address are at least its interval apart.

use std::net::IpAddr;
use std::time::Duration;

use moorline_stack::deadlines::Deadlines;
use moorline_stack::{Instant, Transport};

use super::driver::Host;
use super::{HostLimits, Probe};

/// An address of a node that has just announced itself is tested before those that are due since;
/// no more than this, so that whoever announces nodes all the time holds up nobody for good.
const AHEAD: Duration = Duration::from_secs(3);

/// The tests that are to come, and the cap over all of them.
#[derive(Debug)]
pub(super) struct Probes {
    due: Deadlines,
    /// One test's share of a second.
    cost: Duration,
    burst: u32,
    under_way_max: u32,
    pub under_way: u32,
    /// Theoretical arrival time of the next test (GCRA).
    spent_to: Instant,
}

impl Probes {
    pub(super) fn new(limits: &HostLimits) -> Self {
        Self {
            due: Deadlines::default(),
            cost: Duration::from_secs(1) / limits.probes_per_s.max(1),
            burst: limits.probe_burst.max(1),
            under_way_max: limits.probes_under_way.max(1),
            under_way: 0,
            spent_to: Instant::ZERO,
        }
    }

    /// The address at a place is to be tested then, or earlier if it is due earlier: it keeps its
    /// turn.
    pub(super) fn set(&mut self, place: u32, at: Instant) {
        let at = self.due.of(place).map_or(at, |due| due.min(at));
        self.due.set(place, Some(at));
    }

    /// The address at a place is not to be tested.
    pub(super) fn clear(&mut self, place: u32) {
        self.due.set(place, None);
    }

    /// The address that is due first, if its test may begin now.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let open = self.under_way < self.under_way_max && self.opens_at() <= now;
        if open { self.due.pop_due(now) } else { None }
    }

    /// A test begins.
    pub(super) fn spend(&mut self, now: Instant) {
        self.spent_to = self.spent_to.max(now) + self.cost;
    }

    /// When the next test may begin; the end of one under way may have to come before.
    pub(super) fn next(&self) -> Option<Instant> {
        let due = self.due.next().filter(|_| self.under_way < self.under_way_max);
        due.map(|due| due.max(self.opens_at()))
    }

    /// When the rate allows another test: a burst may be ahead of its time.
    fn opens_at(&self) -> Instant {
        self.spent_to.before(self.cost * (self.burst - 1))
    }
}

impl<T: Transport> Host<T> {
    /// A node has announced itself, or answered an echo request: its addresses are tried at once.
    pub(super) fn announced(&mut self, now: Instant, ip: IpAddr) {
        self.figures.announcements += 1;
        for place in 0..self.addresses.places() {
            if self.addresses.of_node(place, ip).is_some() {
                self.try_at_once(now, place);
            }
        }
    }

    /// Our own link is up again: all addresses are tried at once.
    pub(super) fn link_up(&mut self, now: Instant) {
        for place in 0..self.addresses.places() {
            if self.addresses.peek(place).is_some() {
                self.try_at_once(now, place);
            }
        }
    }

    /// There is reason to try an address: if it is not reachable it is tested at once (a test
    /// under way goes on: its SYN has just been sent again), and if it is, nobody backs off any
    /// longer.
    fn try_at_once(&mut self, now: Instant, place: u32) {
        let address = self.addresses.at(place);
        if !address.reach.is_tested() {
            self.end_back_offs(now, place);
        } else if address.tester.is_none() {
            address.next_probe = now;
            address.wants_syn();
            self.probes.set(place, now.before(AHEAD));
        }
    }

    /// It is time to test an address: one of its controllers that wait does, or the node is asked.
    pub(super) fn probe(&mut self, now: Instant, place: u32) {
        let entries = &self.entries;
        let waits = |ctrl: u32| {
            let entry = entries[ctrl as usize].as_ref();
            entry.is_some_and(|entry| entry.life.is_waiting())
        };
        if self.addresses.peek(place).is_none() {
            return;
        }
        let address = self.addresses.at(place);
        if !address.reach.is_tested() || address.tester.is_some() {
            return;
        }
        let Some(ctrl) = address.next_tester(waits) else { return };
        let Some(entry) = &self.entries[ctrl as usize] else { return };
        let Some(reconnect) = entry.ctrl.config.reconnect else { return };
        address.next_probe = now + reconnect.probe_interval;
        self.probes.spend(now);
        if reconnect.probe == Probe::Echo
            && let Some(ip) = address.to_ask()
            && self.transport.echo(now, ip, reconnect.probe_timeout)
        {
            address.echoes += 1;
            self.figures.echoes += 1;
            self.probes.set(place, address.next_probe);
            return;
        }
        address.echoes = 0;
        address.tester = Some(ctrl);
        address.under_test = true;
        self.probes.under_way += 1;
        self.figures.probes += 1;
        self.figures.probes_under_way_max =
            self.figures.probes_under_way_max.max(self.probes.under_way);
        self.attempt(now, ctrl);
    }

    /// What a test under way was to find out is known, or its attempt is over.
    pub(super) fn probe_ended(&mut self, place: u32) {
        if std::mem::take(&mut self.addresses.at(place).under_test) {
            self.probes.under_way -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use moorline_stack::pipe::PipeOptions;

    use super::super::fake::{World, address, config};
    use super::super::{CtrlConfig, CtrlState, Reach, Reconnect};
    use super::*;

    fn probes(probes_per_s: u32, probe_burst: u32, probes_under_way: u32) -> Probes {
        let limits =
            HostLimits { probes_per_s, probe_burst, probes_under_way, ..HostLimits::default() };
        Probes::new(&limits)
    }

    #[test]
    fn a_burst_then_a_rate_and_the_first_due_comes_first() {
        let mut probes = probes(1000, 64, u32::MAX);
        let start = Instant::from_nanos(9_000_000_000);
        let mut now = start;
        (0..1000).for_each(|place| probes.set(place, start));
        let mut order = Vec::new();
        while let Some(next) = probes.next() {
            now = now.max(next);
            let place = probes.pop_due(now).unwrap();
            probes.spend(now);
            order.push((place, now));
        }
        assert!(order.iter().map(|(place, _)| *place).eq(0..1000));
        assert_eq!(order.iter().filter(|(_, at)| *at == start).count(), 64);
        assert_eq!(now, start + Duration::from_millis(1000 - 64));
    }

    #[test]
    fn no_more_are_under_way_than_may_be() {
        let mut probes = probes(1000, 64, 2);
        let now = Instant::from_nanos(9_000_000_000);
        (0..3).for_each(|place| probes.set(place, now));
        for place in 0..2 {
            assert_eq!(probes.pop_due(now), Some(place));
            probes.spend(now);
            probes.under_way += 1;
        }
        assert_eq!((probes.pop_due(now), probes.next()), (None, None), "an end must come first");
        probes.under_way -= 1;
        assert_eq!((probes.next(), probes.pop_due(now)), (Some(now), Some(2)));
    }

    /// A world whose target has gone dark for 20 controllers that test by echo.
    fn dark_world(echoes: bool) -> (World, Vec<crate::host::CtrlId>) {
        let mut world = World::new(1, PipeOptions { echoes, ..PipeOptions::default() });
        let reconnect = Some(Reconnect { probe: Probe::Echo, ..Reconnect::default() });
        let config = CtrlConfig { reconnect, ..config() };
        let ids: Vec<_> = (0..20).map(|_| world.live(config.clone())).collect();
        world.fake.pipe.options_mut().dark.push(address());
        run_for(&mut world, Duration::from_secs(10));
        world.events.clear();
        assert_eq!(world.host.status(ids[0]).reach, Reach::Silent);
        (world, ids)
    }

    fn run_for(world: &mut World, time: Duration) {
        let end = world.now + time;
        while world.now < end {
            world.turn();
            world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
        }
        world.turn();
    }

    fn live(world: &World, ids: &[crate::host::CtrlId]) -> usize {
        let is_live = |id: &&_| world.host.status(**id).state == CtrlState::Live;
        ids.iter().filter(is_live).count()
    }

    #[test]
    fn a_silent_node_is_asked_every_100_ms_and_one_time_in_ten_tested_by_syn() {
        let (mut world, ids) = dark_world(true);
        let before = world.host.figures();
        run_for(&mut world, Duration::from_secs(20));
        let after = world.host.figures();
        let (echoes, probes) = (after.echoes - before.echoes, after.probes - before.probes);
        assert!((150..=200).contains(&echoes), "{echoes}");
        assert!((echoes / 10..=echoes / 8).contains(&probes), "{probes} of {echoes}");
        assert_eq!(world.host.transport().asked(), after.echoes);
        assert_eq!(after.attempts - before.attempts, probes);
        world.fake.pipe.options_mut().dark.clear();
        run_for(&mut world, Duration::from_millis(250));
        assert_eq!(live(&world, &ids), 20);
    }

    #[test]
    fn a_node_that_answers_no_echo_is_found_all_the_same() {
        let (mut world, ids) = dark_world(false);
        world.fake.pipe.options_mut().dark.clear();
        run_for(&mut world, Duration::from_millis(1300));
        assert_eq!(live(&world, &ids), 20);
    }

    #[test]
    fn a_port_that_refuses_is_tested_by_syn() {
        let mut world = World::new(1, PipeOptions::default());
        let addr = "10.0.0.2:4421".parse().unwrap();
        let reconnect = Some(Reconnect { probe: Probe::Echo, ..Reconnect::default() });
        world.connect(CtrlConfig { addr, reconnect, ..config() });
        run_for(&mut world, Duration::from_secs(10));
        assert_eq!(world.host.figures().echoes, 0);
        assert!((90..=110).contains(&world.host.figures().probes));
    }
}
