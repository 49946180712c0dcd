//! A host and a target, each over a TCP of its own, and a link that does what a dead, deaf or
//! unreachable machine's does: each wait ends at its own deadline with the failure that says why,
//! and the controller is back when the link is.

#![allow(clippy::unwrap_used)] // a test, helpers included

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{
    Cause, CtrlConfig, CtrlId, Failure, Host, HostEvent, HostIdentity, HostLimits, Io, IoOp,
    Reconnect, Stage,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::link::fault::{Faults, FaultsHandle, Faulty};
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::mem::Arena;
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::time::earliest;
use moorline_stack::transport::Cause as TcpCause;
use moorline_stack::{Instant, Link};

const NQN: &str = "nqn.2026-11.io.moorline:link-faults";
const PORT: u16 = 4420;
const NAME: u64 = 1;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], PORT))
}

/// Both ends, and their clock.
struct World {
    now: Instant,
    host: Host<Tcp<SimLink>>,
    target: Target<Tcp<Faulty<SimLink>>>,
    /// Of the target's link.
    faults: FaultsHandle,
}

fn lane<L: Link>(now: Instant, link: L, n: u8) -> Tcp<L> {
    let addresses = vec![Cidr { ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)), prefix: 24 }];
    let config = TcpConfig { addresses, seed: Some(n.into()), ..TcpConfig::default() };
    Tcp::new(now, link, &config).unwrap()
}

impl World {
    /// A world whose target's link has these faults from its first frame on.
    fn new(faults: Faults) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let (near, far) = SimLink::pair(&WireOptions::default());
        let handle = FaultsHandle::default();
        handle.add(NAME, 1, faults);
        let identity =
            HostIdentity { hostnqn: "nqn.2026-11.io.moorline:h".into(), hostid: [7; 16] };
        let host = Host::new(lane(now, near, 1), identity, HostLimits::default());
        let far = Faulty::new(far, 1).sharing(handle.clone());
        let mut target = Target::new(lane(now, far, 2), TargetConfig::default());
        let mut subsystem = Subsystem::new(NQN);
        subsystem.add_namespace(1, Box::new(Ram::new(512, 1 << 14))).unwrap();
        target.add_subsystem(subsystem).unwrap();
        target.listen(now, address()).unwrap();
        Self { now, host, target, faults: handle }
    }

    /// Turns and jumps until `done`.
    fn until<R>(&mut self, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        let limit = self.now + ms(60_000);
        while self.now < limit {
            self.host.turn(self.now);
            self.host.flush(self.now);
            self.target.turn(self.now);
            self.target.flush(self.now);
            if let Some(result) = done(self) {
                return result;
            }
            let next = earliest(self.host.poll_timeout(), self.target.poll_timeout());
            self.now = self.now.max(next.expect("something is to come"));
        }
        panic!("nothing came of it in a minute");
    }

    fn connect(&mut self) -> CtrlId {
        let reconnect = Some(Reconnect::default());
        let config = CtrlConfig { reconnect, kato: ms(2000), ..CtrlConfig::new(address(), NQN) };
        self.host.connect(self.now, config).unwrap()
    }

    fn live(&mut self) {
        self.until(|world| match world.host.poll_event()? {
            HostEvent::Live { .. } => Some(()),
            HostEvent::Disconnected { .. } => None,
            event => panic!("{event:?}"),
        });
    }

    /// Why it is lost, and after how long.
    fn lost(&mut self) -> (Failure, Duration) {
        let start = self.now;
        let failure = self.until(|world| match world.host.poll_event()? {
            HostEvent::Disconnected { failure, .. } => Some(failure),
            event => panic!("{event:?}"),
        });
        (failure, self.now - start)
    }

    fn submit(&mut self, ctrl: CtrlId) {
        let buf = Arena::new(4096).take(4096);
        let op = IoOp::Write { fua: false };
        let io = Io { tag: 1, op, nsid: 1, lba: 0, blocks: 8, buf, buf_offset: 0 };
        self.host.submit(self.now, ctrl, 0, io).unwrap();
    }

    fn io(&mut self) -> Status {
        self.until(|world| world.host.poll_io()).status
    }

    /// The link is well again: the controller is live soon, and works.
    fn heals(&mut self, ctrl: CtrlId) {
        assert!(self.faults.counts(NAME).total() > 0);
        self.faults.remove(NAME);
        let start = self.now;
        self.live();
        assert!(self.now - start < ms(250), "{:?}", self.now - start);
        self.submit(ctrl);
        assert_eq!(self.io(), Status::SUCCESS);
    }
}

fn is_at(after: Duration, deadline: Duration) -> bool {
    (deadline..deadline + ms(1)).contains(&after)
}

fn tcp(failure: &Failure) -> TcpCause {
    match &failure.cause {
        Cause::Tcp(why) => why.cause,
        cause => panic!("{cause:?}: {failure}"),
    }
}

#[test]
fn a_target_that_is_not_found_or_does_not_hear_is_tried_until_it_is_there() {
    let none = Faults::default();
    let port = Some(PORT);
    let (neighbour, connect) =
        ((TcpCause::NeighbourTimeout, 300), (TcpCause::ConnectTimeout, 1000));
    for (faults, (cause, deadline)) in [
        (Faults { no_neighbour: true, ..none.clone() }, neighbour),
        (Faults { blackhole: true, ..none.clone() }, connect),
        (Faults { blackhole: true, blackhole_out: true, ..none.clone() }, neighbour),
        (Faults { blackhole_out: true, port, ..none.clone() }, connect),
        (Faults { swallow_syn: 1.0, ..none.clone() }, connect),
        (Faults { swallow_syn: 1.0, port, ..none.clone() }, connect),
    ] {
        let mut world = World::new(faults.clone());
        let ctrl = world.connect();
        let (failure, after) = world.lost();
        assert_eq!((failure.stage, tcp(&failure)), (Stage::Tcp, cause), "{faults:?}");
        assert!(is_at(after, ms(deadline)), "{faults:?}: {after:?}");
        // It stays away for a while, and is tried again and again.
        let end = world.now + ms(5000);
        world.until(|world| (world.now >= end).then_some(()));
        assert!(world.host.status(ctrl).attempts > 5, "{:?}", world.host.status(ctrl));
        world.heals(ctrl);
    }
}

#[test]
fn a_target_that_falls_silent_is_lost_at_the_ack_timeout_with_io_and_at_kato_without() {
    for (incoming, outgoing) in [(true, false), (false, true), (true, true)] {
        for with_io in [true, false] {
            let mut world = World::new(Faults::default());
            let ctrl = world.connect();
            world.live();
            world.faults.remove(NAME);
            let faults =
                Faults { blackhole: incoming, blackhole_out: outgoing, ..Faults::default() };
            world.faults.add(NAME, 1, faults);
            if with_io {
                world.submit(ctrl);
            }
            let (failure, after) = world.lost();
            assert_eq!(failure.stage, Stage::Live, "{failure}");
            match &failure.cause {
                // A target that is only deaf misses keep alives, and says so.
                Cause::Tcp(why) if why.cause == TcpCause::Reset => assert!(!outgoing),
                Cause::Tcp(why) => assert_eq!(why.cause, TcpCause::AckTimeout),
                cause => assert_eq!(*cause, Cause::Timeout, "{failure}"),
            }
            // The earlier of 3 s without acknowledgement and KATO without an answer.
            assert!((ms(1990)..ms(3001)).contains(&after), "{after:?}: {failure}");
            if with_io {
                assert!(world.io().is(Status::HOST_PATHING_ERROR));
            }
            world.heals(ctrl);
        }
    }
}

#[test]
fn a_link_that_loses_delays_and_mixes_frames_costs_time_and_nothing_else() {
    let faults = Faults {
        drop: 0.02,
        corrupt: 0.02,
        duplicate: 0.02,
        reorder: 0.02,
        reorder_by: ms(1),
        delay: 0.02,
        delay_by: ms(2),
        ..Faults::default()
    };
    let mut world = World::new(faults);
    let ctrl = world.connect();
    world.live();
    for _ in 0..200 {
        world.submit(ctrl);
        assert_eq!(world.io(), Status::SUCCESS);
    }
    let counts = world.faults.counts(NAME);
    let each = [counts.dropped, counts.corrupted, counts.duplicated, counts.reordered];
    assert!(each.iter().all(|&count| count > 0) && counts.delayed > 0, "{counts:?}");
    assert_eq!(world.host.status(ctrl).reconnects, 0);
}
