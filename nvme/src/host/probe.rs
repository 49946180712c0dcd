//! Tests of addresses that are not reachable: when each may begin.
//!
//! What always holds: over all addresses, so many tests are under way at most, and so many begin in
//! a second (a burst apart). What is due first comes first, so an address that waits for its turn
//! gets it before any other has a second one. Tests of one address are at least its interval apart.

use std::net::IpAddr;
use std::time::Duration;

use moorline_stack::deadlines::Deadlines;
use moorline_stack::{Instant, Transport};

use super::HostLimits;
use super::driver::Host;

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
    /// A node has announced itself: its addresses are tried at once.
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
            self.probes.set(place, now.before(AHEAD));
        }
    }

    /// It is time to test an address: one of its controllers that wait does.
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
        address.tester = Some(ctrl);
        address.under_test = true;
        address.next_probe = now + reconnect.probe_interval;
        self.probes.spend(now);
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
}
