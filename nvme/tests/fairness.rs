//! Deadlines, ours and the target's, in virtual time: who was frozen is not judged by a clock
//! that ran on without him, who is silent is given up exactly when that was said, and nothing
//! delays a keep alive.

#![allow(clippy::unwrap_used)] // a test, helpers included

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{
    Cause, CtrlConfig, CtrlId, Failure, Host, HostEvent, HostIdentity, HostLimits, Io, IoOp, Stage,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::time::earliest;
use moorline_stack::transport::Cause as TcpCause;
use moorline_stack::{Instant, Link, LinkTx, Transport};

const NQN: &str = "nqn.2026-01.io.moorline:fairness";
const KATO: Duration = Duration::from_secs(2);
/// From one end to the other: what the target has received was sent so much earlier.
const WAY: Duration = Duration::from_micros(10);
/// Bytes of ICResp, and of a completion's capsule.
const ICRESP: u64 = 128;
const RESPONSE: u64 = 24;

/// What one end does with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It runs.
    Awake,
    /// Its TCP runs, and nothing above: a process that hangs over a kernel's sockets.
    Hung,
    /// Nothing of it runs: a process that was stopped, with its own TCP.
    Frozen,
}

/// Both ends, and their clock.
struct World {
    now: Instant,
    host: Host<Pipe>,
    target: Target<Pipe>,
    host_is: End,
    target_is: End,
    events: Vec<HostEvent>,
}

fn address() -> SocketAddr {
    "10.0.0.2:4420".parse().unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn config() -> CtrlConfig {
    CtrlConfig { kato: KATO, ..CtrlConfig::new(address(), NQN) }
}

fn buf(len: usize) -> IoBuf {
    Arena::new(len).take(len).unwrap()
}

fn host<T: Transport>(transport: T) -> Host<T> {
    let hostnqn = "nqn.2026-01.io.moorline:h".to_owned();
    Host::new(transport, HostIdentity { hostnqn, hostid: [7; 16] }, HostLimits::default())
}

fn target<T: Transport>(transport: T, config: TargetConfig, now: Instant) -> Target<T> {
    let mut target = Target::new(transport, config);
    let mut subsystem = Subsystem::new(NQN);
    subsystem.add_namespace(1, Box::new(Ram::new(512, 1 << 14))).unwrap();
    target.add_subsystem(subsystem).unwrap();
    target.listen(now, address()).unwrap();
    target
}

impl World {
    fn new(target: TargetConfig) -> Self {
        let (near, far) = Pipe::pair(1, PipeOptions { delay: WAY, ..PipeOptions::default() });
        let now = Instant::from_nanos(1_000_000_000);
        let (host, target) = (host(near), self::target(far, target, now));
        let (host_is, target_is) = (End::Awake, End::Awake);
        Self { now, host, target, host_is, target_is, events: Vec::new() }
    }

    /// A turn of each, in no time.
    fn turn(&mut self) {
        match self.host_is {
            End::Awake => {
                self.host.turn(self.now);
                self.events.extend(std::iter::from_fn(|| self.host.poll_event()));
                self.host.flush(self.now);
                let figures = self.host.figures();
                assert_eq!((figures.deadlines_early, figures.deadlines_late), (0, 0));
            }
            End::Hung => run_tcp(self.host.transport_mut(), self.now),
            End::Frozen => {}
        }
        match self.target_is {
            End::Awake => {
                self.target.turn(self.now);
                self.target.flush(self.now);
            }
            End::Hung => run_tcp(self.target.transport_mut(), self.now),
            End::Frozen => {}
        }
    }

    /// When something is due for those who run.
    fn next(&self) -> Option<Instant> {
        let host = match self.host_is {
            End::Awake => self.host.poll_timeout(),
            End::Hung => self.host.transport().poll_timeout(),
            End::Frozen => None,
        };
        let target = match self.target_is {
            End::Awake => self.target.poll_timeout(),
            End::Hung => self.target.transport().poll_timeout(),
            End::Frozen => None,
        };
        earliest(host, target)
    }

    /// Turns and jumps until `done`; panics when that does not come.
    fn until<R>(&mut self, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        for _ in 0..200_000 {
            self.turn();
            if let Some(result) = done(self) {
                return result;
            }
            self.now = self.now.max(self.next().expect("something is to come"));
        }
        panic!("does not get there");
    }

    /// Lets time pass.
    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.turn();
            self.now = self.next().map_or(end, |next| next.clamp(self.now, end));
        }
        self.turn();
    }

    fn live(&mut self, config: CtrlConfig) -> CtrlId {
        let ctrl = self.host.connect(self.now, config).unwrap();
        let event = self.event();
        assert!(matches!(event, HostEvent::Live { .. }), "{event:?}");
        ctrl
    }

    fn event(&mut self) -> HostEvent {
        self.until(|world| (!world.events.is_empty()).then(|| world.events.remove(0)))
    }

    fn failure(&mut self) -> Failure {
        match self.event() {
            HostEvent::Failed { failure, .. } => failure,
            event => panic!("{event:?}"),
        }
    }

    /// Until the target has answered a keep alive: nothing else is asked of its admin queue.
    fn keep_alive(&mut self) {
        let before = self.target.stats().admin;
        self.until(|world| (world.target.stats().admin > before).then_some(()));
    }

    /// A read, to its end: the controller is of use.
    fn reads(&mut self, ctrl: CtrlId) {
        let io = io(IoOp::Read, 1, 0, 8, buf(4096));
        self.host.submit(self.now, ctrl, 0, io).unwrap();
        let done = self.until(|world| world.host.poll_io());
        assert_eq!(done.status, Status::SUCCESS);
    }

    /// Nothing happened, and nothing will.
    fn is_well(&mut self, ctrl: CtrlId) {
        self.run_for(10 * KATO);
        assert!(self.events.is_empty(), "{:?}", self.events);
        assert_eq!(self.target.stats().keep_alive_expired, 0);
        self.reads(ctrl);
    }
}

fn run_tcp(pipe: &mut Pipe, now: Instant) {
    pipe.turn(now);
    pipe.flush(now);
}

fn io(op: IoOp, tag: u64, lba: u64, blocks: u32, buf: IoBuf) -> Io {
    Io { tag, op, nsid: 1, lba, blocks, buf: Some(buf), buf_offset: 0 }
}

type Lane = Tcp<SimLink>;

/// A host and a target, each over a TCP of its own.
fn over_tcp() -> (Host<Lane>, Target<Lane>, Instant) {
    let now = Instant::from_nanos(1_000_000_000);
    let (near, far) = SimLink::pair(&WireOptions::default());
    let lane = |link, n| {
        let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
        let addresses = vec![Cidr { ip, prefix: 24 }];
        let config = TcpConfig { addresses, seed: Some(n.into()), ..TcpConfig::default() };
        Tcp::new(now, link, &config).unwrap()
    };
    (host(lane(near, 1)), target(lane(far, 2), TargetConfig::default(), now), now)
}

fn turn_host(host: &mut Host<Lane>, now: Instant) {
    host.turn(now);
    host.flush(now);
}

fn turn_target(target: &mut Target<Lane>, now: Instant) {
    target.turn(now);
    target.flush(now);
}

/// Frames that mean nothing, more than the other end takes in at once.
fn flood(lane: &mut Lane, now: Instant) {
    for _ in 0..4 {
        let link = lane.link_mut();
        (0..200).for_each(|_| link.tx().transmit(60, |frame| frame.fill(0)));
        link.flush(now).unwrap();
    }
}

// Who was frozen.

/// The machine sleeps for longer than KATO, with the answer to a keep alive on its way.
#[test]
fn a_host_that_slept_finds_the_answer_that_came_in_time() {
    for asleep in [End::Hung, End::Frozen] {
        let mut world = World::new(TargetConfig::default());
        let ctrl = world.live(config());
        world.keep_alive();
        if asleep == End::Hung {
            world.host_is = End::Hung;
            world.run_for(ms(1));
            world.host_is = End::Awake;
        }
        world.now += KATO + ms(700);
        // The host wakes first; the target finds its next keep alive.
        world.target_is = End::Frozen;
        world.run_for(ms(1));
        world.target_is = End::Awake;
        world.is_well(ctrl);
    }
}

/// The host alone sleeps for longer than the timeout of an I/O that has ended long ago.
#[test]
fn a_host_that_slept_finds_the_completion_that_came_in_time() {
    for asleep in [End::Hung, End::Frozen] {
        let mut world = World::new(TargetConfig::default());
        let ctrl = world.live(CtrlConfig { kato: Duration::ZERO, ..config() });
        world.host.submit(world.now, ctrl, 0, io(IoOp::Read, 1, 0, 8, buf(4096))).unwrap();
        world.host.flush(world.now);
        world.host_is = asleep;
        world.until(|world| (world.target.stats().reads == 1).then_some(()));
        world.now += ms(31_000);
        world.host_is = End::Awake;
        let done = world.until(|world| world.host.poll_io());
        assert_eq!(done.status, Status::SUCCESS, "{asleep:?}");
        world.is_well(ctrl);
    }
}

#[test]
fn a_target_that_slept_finds_the_keep_alives_that_came_in_time() {
    for asleep in [End::Hung, End::Frozen] {
        let mut world = World::new(TargetConfig::default());
        let ctrl = world.live(config());
        world.keep_alive();
        // The next one goes out at KATO/2, and its answer is due at 1.5 KATO.
        world.target_is = asleep;
        world.run_for(KATO * 6 / 5);
        assert!(world.events.is_empty(), "{:?}", world.events);
        world.target_is = End::Awake;
        world.is_well(ctrl);
    }
}

/// As above, over our own TCP, and what came in time waits behind more than one turn takes.
#[test]
fn what_waits_behind_a_flood_came_in_time_too() {
    for host_sleeps in [true, false] {
        let (mut host, mut target, mut now) = over_tcp();
        let kato = if host_sleeps { Duration::ZERO } else { KATO };
        let ctrl = host.connect(now, CtrlConfig { kato, ..config() }).unwrap();
        let live = now + ms(100);
        while now < live {
            turn_host(&mut host, now);
            turn_target(&mut target, now);
            let next = earliest(host.poll_timeout(), target.poll_timeout());
            now = next.unwrap_or(live).clamp(now + WAY, live);
        }
        assert!(matches!(host.poll_event(), Some(HostEvent::Live { .. })));
        if host_sleeps {
            host.submit(now, ctrl, 0, io(IoOp::Read, 1, 0, 8, buf(4096))).unwrap();
            host.flush(now);
            flood(target.transport_mut(), now);
            turn_target(&mut target, now + ms(1));
            now += ms(31_000);
            (0..8).for_each(|_| turn_host(&mut host, now));
            assert_eq!(host.poll_io().unwrap().status, Status::SUCCESS);
        } else {
            // Nothing of the target runs from here on until after KATO.
            flood(host.transport_mut(), now);
            let due = now + KATO / 2;
            turn_host(&mut host, due);
            turn_host(&mut host, due + ms(1));
            now += KATO + ms(200);
            (0..8).for_each(|_| turn_target(&mut target, now));
            assert_eq!(target.stats().keep_alive_expired, 0);
        }
        assert!(host.poll_event().is_none());
    }
}

// Who is silent.

#[test]
fn a_target_that_hangs_is_given_up_exactly_kato_after_the_keep_alive() {
    let mut world = World::new(TargetConfig::default());
    world.live(config());
    world.keep_alive();
    let received = world.now;
    world.target_is = End::Hung;
    let failure = world.failure();
    assert_eq!(world.now + WAY - received, KATO / 2 + KATO);
    assert_eq!((failure.stage, failure.qid, failure.after), (Stage::Live, 0, KATO));
    assert_eq!((failure.awaited, failure.cause), ("answer to Keep Alive", Cause::Timeout));
}

#[test]
fn a_target_that_acknowledges_nothing_is_given_up_exactly_at_the_ack_timeout() {
    let mut world = World::new(TargetConfig::default());
    let mut config = config();
    config.conn.ack_timeout = ms(512);
    world.live(config);
    world.keep_alive();
    let received = world.now;
    world.target_is = End::Frozen;
    let failure = world.failure();
    assert_eq!(world.now + WAY - received, KATO / 2 + ms(512));
    assert!(matches!(&failure.cause, Cause::Tcp(why) if why.cause == TcpCause::AckTimeout));
}

#[test]
fn a_host_that_hangs_is_given_up_by_the_target_exactly_at_kato() {
    let mut world = World::new(TargetConfig::default());
    world.live(CtrlConfig { io_queues: 3, ..config() });
    world.keep_alive();
    let alive = world.now;
    world.host_is = End::Hung;
    world.until(|world| (world.target.stats().keep_alive_expired == 1).then_some(()));
    assert_eq!(world.now - alive, KATO);
    let stats = world.target.stats();
    assert_eq!((stats.controllers, stats.conns), (0, 0), "the whole association");
    // It was told, so that it needs no deadline of its own when it wakes.
    world.run_for(ms(1));
    let woken = world.now;
    world.host_is = End::Awake;
    assert!(matches!(world.failure().cause, Cause::Tcp(why) if why.cause == TcpCause::Reset));
    assert_eq!(world.now, woken);
}

/// Every command counts where the target says so (TBKAS), and silence is found all the same.
#[test]
fn traffic_keeps_an_association_and_its_end_is_noticed_exactly_at_kato() {
    let mut world = World::new(TargetConfig { tbkas: true, ..TargetConfig::default() });
    let ctrl = world.live(config());
    assert!(world.host.controller(ctrl).tbkas);
    let admin = world.target.stats().admin;
    for _ in 0..50 {
        world.run_for(KATO / 5); // it is looked for traffic every KATO/4
        world.reads(ctrl);
    }
    assert_eq!(world.target.stats().admin, admin, "no keep alive was needed");
    world.is_well(ctrl); // idle: keep alives are back
    assert!(world.target.stats().admin > admin);
    world.host.submit(world.now, ctrl, 0, io(IoOp::Read, 1, 0, 8, buf(4096))).unwrap();
    let reads = world.target.stats().reads;
    world.until(|world| (world.target.stats().reads > reads).then_some(()));
    let alive = world.now;
    world.host_is = End::Hung;
    world.until(|world| (world.target.stats().keep_alive_expired == 1).then_some(()));
    assert_eq!(world.now - alive, KATO);
}

// Every stage has its own deadline.

/// A connect to a target that stops once `stopped` says so: why and when it ended.
fn stalled(target_is: End, stopped: impl Fn(&World) -> bool) -> (Failure, Duration) {
    let mut world = World::new(TargetConfig::default());
    let start = world.now;
    let mut since = start;
    world.host.connect(start, config()).unwrap();
    let failure = world.until(|world| {
        if world.target_is == End::Awake && stopped(world) {
            (world.target_is, since) = (target_is, world.now);
        }
        world.events.pop()
    });
    match failure {
        HostEvent::Failed { failure, .. } => {
            assert!(world.now - since <= failure.after + ms(1), "{failure:?}");
            (failure, world.now - start)
        }
        event => panic!("{event:?}"),
    }
}

/// The host has received this much, and the target has not answered what it says next.
fn received(bytes: u64) -> impl Fn(&World) -> bool {
    move |world| world.host.transport().stats().rx_bytes >= bytes
}

#[test]
fn every_stage_that_stalls_ends_at_its_own_deadline() {
    let accepted = |world: &World| world.target.stats().accepted > 0;
    let t = config().timeouts;
    let tcp = config().conn.connect_timeout;
    let mut world = World::new(TargetConfig::default());
    world.target.transport_mut().options_mut().blackhole = true;
    let start = world.now;
    world.host.connect(start, config()).unwrap();
    let failure = world.failure();
    assert_eq!((failure.stage, world.now - start), (Stage::Tcp, tcp));
    assert!(matches!(&failure.cause, Cause::Tcp(why) if why.cause == TcpCause::ConnectTimeout));
    // A process that hangs acknowledges; one that was stopped, with its TCP, does not.
    for target_is in [End::Hung, End::Frozen] {
        let (failure, _) = stalled(target_is, accepted);
        let stage = Stage::InitializeConnection;
        assert_eq!((failure.stage, failure.after), (stage, t.icresp), "{target_is:?}");
        assert_eq!((failure.awaited, &failure.cause), ("ICResp", &Cause::Timeout));

        let (failure, _) = stalled(target_is, received(ICRESP));
        assert_eq!((failure.stage, failure.after), (Stage::Connect, t.connect), "{target_is:?}");
        assert_eq!(failure.cause, Cause::Timeout);

        // Here the whole connect is over before the admin command is.
        let (failure, at) = stalled(target_is, received(ICRESP + RESPONSE));
        assert_eq!((failure.stage, at), (Stage::Enable, t.connect_total), "{target_is:?}");
        assert_eq!((failure.awaited, failure.cause), ("Property Get CAP", Cause::Timeout));
    }
}

// Nothing delays a keep alive.

/// All queues full of writes, and a host that takes 5 ms for each of its turns.
#[test]
fn keep_alives_leave_in_time_though_all_queues_are_saturated() {
    const QUEUES: u16 = 4;
    const TURN: Duration = Duration::from_millis(5);
    let mut world = World::new(TargetConfig::default());
    let ctrl = world.live(CtrlConfig { io_queues: QUEUES, queue_size: 32, ..config() });
    let mut arena = Arena::new(64 << 20);
    let mut bufs: Vec<_> = (0..200).map(|_| arena.take(16 << 10).unwrap()).collect();
    let (start, before) = (world.now, world.target.stats().admin);
    let (mut tag, mut ios, mut seen, mut late_max) = (0, 0, start, Duration::ZERO);
    while world.now < start + 5 * KATO {
        for queue in 0..usize::from(QUEUES) {
            while let Some(buf) = bufs.pop() {
                let io = io(IoOp::Write { fua: false }, tag, 0, 32, buf);
                match world.host.submit(world.now, ctrl, queue, io) {
                    Ok(()) => tag += 1,
                    Err(io) => {
                        bufs.extend(io.buf);
                        break;
                    }
                }
            }
        }
        let answered = world.target.stats().admin;
        world.turn();
        if world.target.stats().admin > answered {
            late_max = late_max.max((world.now - seen).saturating_sub(KATO / 2));
            seen = world.now;
        }
        while let Some(done) = world.host.poll_io() {
            assert_eq!(done.status, Status::SUCCESS);
            bufs.extend(done.buf);
            ios += 1;
        }
        world.now += TURN;
    }
    assert!(ios > 10_000, "{ios} I/Os: the queues were not saturated");
    assert!(late_max <= 2 * TURN, "{late_max:?}: due in one turn, and one way to the target");
    assert!(world.target.stats().admin - before >= 9, "every KATO/2");
    assert!(world.events.is_empty(), "{:?}", world.events);
}
