//! What is known of each target address (IP and port), and who may try it.
//!
//! What always holds: an address is here while a controller is configured for it; while it is not
//! reachable, one controller tests it for all; admission hands out starts of connections in
//! order, `burst` at once and `per_s` a second on average.
//!
//! State is per socket address: a port that refuses says nothing of its neighbours, and controllers
//! of one port are what a storm is made of.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::transport::{Cause, IcmpError, Stage, Why};

/// What is known of a target address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Nothing yet.
    Unknown,
    /// Its next hop does not answer ARP or ND, or there is no route.
    NeighbourFailed,
    /// A router or a firewall says by ICMP that there is no way to it.
    Unreachable,
    /// It answers nothing.
    Silent,
    /// It answers with RST, or with ICMP's port unreachable: nobody listens there.
    Refused,
    /// It ended the last connections that were live: it may be going away.
    Left,
    /// It takes connections: TCP's, and ICResp came where that was in doubt.
    Reachable,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::NeighbourFailed => "neighbour-failed",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Left => "left",
            Self::Reachable => "reachable",
        })
    }
}

impl Reach {
    /// Whether only one controller at a time tests it.
    pub(super) fn is_tested(self) -> bool {
        !matches!(self, Self::Unknown | Self::Reachable)
    }

    /// What the end of a connection says of its address, if anything.
    pub(super) fn of(why: &Why) -> Option<Self> {
        match why.cause {
            Cause::NeighbourTimeout | Cause::Unroutable => Some(Self::NeighbourFailed),
            Cause::ConnectTimeout | Cause::AckTimeout => Some(Self::Silent),
            Cause::Reset if why.stage == Stage::SynSent => Some(Self::Refused),
            Cause::Icmp(IcmpError::Port) => Some(Self::Refused),
            Cause::Icmp(_) => Some(Self::Unreachable),
            Cause::Errno(errno) => Self::of_error(io::Error::from_raw_os_error(errno).kind()),
            _ => None,
        }
    }

    /// What the kernel's error, or an ICMP error, says of the address, if anything.
    pub(super) fn of_error(kind: io::ErrorKind) -> Option<Self> {
        match kind {
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Some(Self::NeighbourFailed),
            io::ErrorKind::ConnectionRefused => Some(Self::Refused),
            io::ErrorKind::TimedOut => Some(Self::Silent),
            _ => None,
        }
    }
}

/// Tests by echo between two by SYN: a node may answer no echo.
const ECHOES_MAX: u32 = 9;

/// One address.
#[derive(Debug)]
pub(super) struct Address {
    addr: SocketAddr,
    pub reach: Reach,
    /// Places of the controllers that are configured for it, and how many of them are live.
    pub members: Vec<u32>,
    pub live: u32,
    /// Who tests it now, and when the next test may begin.
    pub tester: Option<u32>,
    /// The tester has not found out yet; it counts among the tests under way.
    pub under_test: bool,
    /// Tests by echo since the last by SYN.
    pub echoes: u32,
    pub next_probe: Instant,
    /// Whose turn it is to test.
    turn: usize,
    /// Theoretical arrival time of the next attempt (GCRA), and of the next connection of an I/O
    /// queue.
    admitted_to: Instant,
    dialled_to: Instant,
}

impl Address {
    /// The IP address, if an echo may find out what is not known of it.
    pub(super) fn to_ask(&self) -> Option<IpAddr> {
        let may = self.reach != Reach::Refused && self.echoes < ECHOES_MAX;
        may.then(|| self.addr.ip())
    }

    /// The next test is a SYN.
    pub(super) fn wants_syn(&mut self) {
        self.echoes = ECHOES_MAX;
    }

    /// The next member that `can` test, in turn.
    pub(super) fn next_tester(&mut self, can: impl Fn(u32) -> bool) -> Option<u32> {
        let count = self.members.len();
        let turns = (0..count).map(|step| (self.turn + step) % count);
        let at = turns.into_iter().find(|&at| can(self.members[at]))?;
        self.turn = at + 1;
        Some(self.members[at])
    }

    /// A connection attempt did not get through. One that fails where others are live says
    /// nothing of the address; silence on an established connection does (`established`).
    pub(super) fn failed(&mut self, reach: Reach, established: bool) {
        if self.live == 0 || established {
            self.reach = reach;
        }
    }

    /// Takes the place of one connection that nobody waits for: only where fewer than half a burst
    /// are ahead, for those that somebody waits for go first.
    ///
    /// # Errors
    /// When to ask again.
    pub(super) fn admit_spare(
        &mut self,
        now: Instant,
        per_s: u32,
        burst: u32,
    ) -> Result<(), Instant> {
        let cost = Duration::from_secs(1) / per_s.max(1);
        let ahead = self.admitted_to.since(now);
        let most = cost * (burst / 2);
        if ahead > most {
            return Err(now + (ahead - most));
        }
        self.admitted_to = self.admitted_to.max(now) + cost;
        Ok(())
    }

    /// When an attempt of `connections` may be started, now or later; the place is taken.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        connections: u32,
        per_s: u32,
        burst: u32,
    ) -> Instant {
        let unit = Duration::from_secs(1) / per_s.max(1);
        next_place(&mut self.admitted_to, now, unit * connections, unit * burst)
    }

    /// When one of a controller's `io_queues` connections may be started; the place is taken. A
    /// controller's have the rate and the burst that its admin connection leaves.
    pub(super) fn admit_io(
        &mut self,
        now: Instant,
        io_queues: u32,
        per_s: u32,
        burst: u32,
    ) -> Instant {
        let unit = Duration::from_secs(1) / per_s.max(1);
        let cost = unit * (1 + io_queues) / io_queues.max(1);
        next_place(&mut self.dialled_to, now, cost, unit * burst)
    }
}

/// The next place in a row that `to` is the end of (GCRA): a whole `burst` may be ahead of its
/// time, this one's `cost` included.
fn next_place(to: &mut Instant, now: Instant, cost: Duration, burst: Duration) -> Instant {
    let wait = to.since(now).saturating_sub(burst.saturating_sub(cost));
    *to = (*to).max(now) + cost;
    now + wait
}

/// The addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    places: Vec<Option<Address>>,
    /// The end of the row of connections that are started over all addresses.
    started_to: Instant,
}

impl Addresses {
    /// When a connection may be started whose place in its address's admission is `place`: where
    /// that has come, at its place among those of all addresses. (A place to come is in a row.)
    pub(super) fn start(
        &mut self,
        now: Instant,
        place: Instant,
        per_s: u32,
        burst: u32,
    ) -> Instant {
        if place > now {
            return place;
        }
        let unit = Duration::from_secs(1) / per_s.max(1);
        next_place(&mut self.started_to, now, unit, unit * burst)
    }

    /// Adds a controller to its address; returns the address's place.
    pub(super) fn join(&mut self, addr: SocketAddr, ctrl: u32) -> u32 {
        let known = |place: &Option<Address>| place.as_ref().is_some_and(|p| p.addr == addr);
        let place = self.places.iter().position(known).unwrap_or_else(|| {
            let free = self.places.iter().position(Option::is_none);
            let place = free.unwrap_or(self.places.len());
            if place == self.places.len() {
                self.places.push(None);
            }
            self.places[place] = Some(Address {
                addr,
                reach: Reach::Unknown,
                members: Vec::new(),
                live: 0,
                tester: None,
                under_test: false,
                echoes: 0,
                next_probe: Instant::ZERO,
                turn: 0,
                admitted_to: Instant::ZERO,
                dialled_to: Instant::ZERO,
            });
            place
        });
        self.at(place as u32).members.push(ctrl);
        place as u32
    }

    /// Takes a controller off its address; true: it was the last one, the address is gone.
    pub(super) fn leave(&mut self, place: u32, ctrl: u32) -> bool {
        let address = self.at(place);
        address.members.retain(|&member| member != ctrl);
        let gone = address.members.is_empty();
        if gone {
            self.places[place as usize] = None;
        }
        gone
    }

    /// The address at a place.
    pub(super) fn at(&mut self, place: u32) -> &mut Address {
        self.places[place as usize].as_mut().expect("an address has its members' places")
    }

    /// Places, those without an address included.
    pub(super) fn places(&self) -> u32 {
        self.places.len() as u32
    }

    /// The address at a place, if it is one of that node.
    pub(super) fn of_node(&mut self, place: u32, ip: IpAddr) -> Option<&mut Address> {
        self.places[place as usize].as_mut().filter(|address| address.addr.ip() == ip)
    }

    /// The address at a place, while it has members.
    pub(super) fn peek(&self, place: u32) -> Option<&Address> {
        self.places.get(place as usize)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        "192.0.2.1:4420".parse().unwrap()
    }

    #[test]
    fn admission_is_a_burst_and_then_a_rate() {
        let mut addresses = Addresses::default();
        let place = addresses.join(address(), 0);
        let now = Instant::from_nanos(5_000_000_000);
        let starts: Vec<_> =
            (0..1064).map(|_| addresses.at(place).admit(now, 1, 1000, 64)).collect();
        assert_eq!(starts.iter().filter(|&&at| at == now).count(), 64);
        assert_eq!(starts[1063], now + Duration::from_secs(1));
        assert!(starts.is_sorted());
        let later = now + Duration::from_secs(9);
        assert_eq!(addresses.at(place).admit(later, 200, 1000, 64), later, "more than a burst");
        assert_eq!(
            addresses.at(place).admit(later, 1, 1000, 64),
            later + Duration::from_millis(200 - 63)
        );
    }

    #[test]
    fn spare_connections_wait_for_those_that_somebody_waits_for() {
        let mut addresses = Addresses::default();
        let place = addresses.join(address(), 0);
        let now = Instant::from_nanos(5_000_000_000);
        let address = addresses.at(place);
        for _ in 0..100 {
            address.admit(now, 1, 1000, 64);
        }
        let again = now + Duration::from_millis(100 - 32);
        assert_eq!(address.admit_spare(now, 1000, 64), Err(again));
        assert_eq!(address.admit_spare(again, 1000, 64), Ok(()));
        let next = again + Duration::from_millis(1);
        assert_eq!(address.admit_spare(again, 1000, 64), Err(next), "it took a place");
    }

    #[test]
    fn an_address_is_here_while_it_has_members() {
        let mut addresses = Addresses::default();
        let place = addresses.join(address(), 3);
        assert_eq!(addresses.join(address(), 4), place);
        assert_ne!(addresses.join("192.0.2.1:4421".parse().unwrap(), 5), place);
        assert!(!addresses.leave(place, 3));
        assert!(addresses.leave(place, 4));
        assert!(addresses.peek(place).is_none());
        assert_eq!(addresses.join("192.0.2.9:1".parse().unwrap(), 6), place);
        assert_eq!(addresses.places.len(), 2);
    }

    #[test]
    fn ends_of_connections_say_what_is_known_of_the_address() {
        let (after, retransmits, hint) = (Duration::ZERO, 0, None);
        let of =
            |cause, stage| Reach::of(&Why { cause, stage, after, retransmits, rto: None, hint });
        let neighbour = of(Cause::NeighbourTimeout, Stage::Resolving);
        assert_eq!(neighbour, Some(Reach::NeighbourFailed));
        assert_eq!(of(Cause::ConnectTimeout, Stage::SynSent), Some(Reach::Silent));
        assert_eq!(of(Cause::AckTimeout, Stage::Established), Some(Reach::Silent));
        assert_eq!(of(Cause::Reset, Stage::SynSent), Some(Reach::Refused));
        assert_eq!(of(Cause::Errno(113), Stage::SynSent), Some(Reach::NeighbourFailed));
        let icmp = |error| of(Cause::Icmp(error), Stage::SynSent);
        assert_eq!(icmp(IcmpError::NoRoute), Some(Reach::Unreachable));
        assert_eq!(icmp(IcmpError::Prohibited), Some(Reach::Unreachable));
        assert_eq!(icmp(IcmpError::Port), Some(Reach::Refused));
        for (cause, stage) in [
            (Cause::Reset, Stage::Established),
            (Cause::Closed, Stage::Draining),
            (Cause::Aborted, Stage::SynSent),
            (Cause::Errno(5), Stage::Established),
        ] {
            assert_eq!(of(cause, stage), None, "{cause:?}");
        }
    }

    #[test]
    fn members_test_in_turn() {
        let mut addresses = Addresses::default();
        let place = [7, 8, 9].map(|ctrl| addresses.join(address(), ctrl))[0];
        let address = addresses.at(place);
        let testers = [0; 4].map(|_| address.next_tester(|ctrl| ctrl != 8));
        assert_eq!(testers, [Some(7), Some(9), Some(7), Some(9)]);
        assert_eq!(address.next_tester(|_| false), None);
    }

    #[test]
    fn failed_attempts_say_nothing_where_others_are_live() {
        let mut addresses = Addresses::default();
        let place = addresses.join(address(), 0);
        let address = addresses.at(place);
        (address.reach, address.live) = (Reach::Reachable, 1);
        address.failed(Reach::Silent, false);
        assert_eq!(address.reach, Reach::Reachable);
        address.failed(Reach::Silent, true);
        assert_eq!(address.reach, Reach::Silent);
    }
}
