//! Reconnection against the fake target, in virtual time: what is counted are attempts and events.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::PipeOptions;
use moorline_stack::rng::Rng;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Instant, Transport};

use super::fake::{BLOCK, Hook, World, address, config as once};
use super::*;
use crate::spec::Status;

const MS: Duration = Duration::from_millis(1);

fn config() -> CtrlConfig {
    CtrlConfig { reconnect: Some(Reconnect::default()), ..once() }
}

fn world() -> World {
    World::new(1, PipeOptions::default())
}

/// A world for many controllers.
fn large() -> World {
    let limits = HostLimits { controllers: 300, ..HostLimits::default() };
    World::with_limits(1, PipeOptions::default(), limits)
}

fn buf(len: usize) -> IoBuf {
    Arena::new(len).take(len).unwrap()
}

fn read(tag: u64) -> Io {
    let buf = Some(buf(BLOCK));
    Io { tag, op: IoOp::Read, nsid: 1, lba: tag, blocks: 1, buf, buf_offset: 0 }
}

fn run_for(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.turn();
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
    }
    world.turn();
}

/// Runs until the next event or `time` is over.
fn within(world: &mut World, time: Duration) -> Option<HostEvent> {
    let end = world.now + time;
    world.until(|world| match world.events.is_empty() {
        false => Some(Some(world.events.remove(0))),
        true if world.now >= end => Some(None),
        true => {
            world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
            None
        }
    })
}

fn kinds(events: &[HostEvent]) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for event in events {
        let kind = match event {
            HostEvent::Live { .. } => "live",
            HostEvent::Disconnected { .. } => "disconnected",
            HostEvent::Failed { .. } => "failed",
            HostEvent::Closed { .. } => "closed",
            HostEvent::Aen { .. } => "aen",
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}

fn state(world: &World, ctrl: CtrlId) -> CtrlState {
    world.host.status(ctrl).state
}

/// `count` live controllers, some on each address.
fn many(world: &mut World, count: usize, addrs: &[SocketAddr]) -> Vec<CtrlId> {
    let connect = |at: usize| CtrlConfig { addr: addrs[at % addrs.len()], ..config() };
    let ids: Vec<_> = (0..count).map(|at| world.connect(connect(at))).collect();
    world.until(|world| (kinds(&world.events).get("live") == Some(&count)).then_some(()));
    world.events.clear();
    ids
}

fn darken(world: &mut World, addr: SocketAddr) {
    world.fake.pipe.options_mut().dark.push(addr);
}

fn lighten(world: &mut World) {
    world.fake.pipe.options_mut().dark.clear();
}

#[test]
fn a_lost_controller_is_connected_again_and_its_io_ends_once() {
    for qid in [0, 1, 2] {
        let mut world = world();
        let id = world.live(CtrlConfig { io_queues: 2, ..config() });
        world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
        for tag in 0..20 {
            world.host.submit(world.now, id, tag as usize % 2, read(tag)).unwrap();
        }
        run_for(&mut world, MS);
        world.fake.reset(world.now, qid);
        let lost = world.event();
        assert!(matches!(lost, HostEvent::Disconnected { ctrl, .. } if ctrl == id), "{lost:?}");
        assert_eq!(state(&world, id), CtrlState::WaitReconnect);
        assert!(world.host.submit(world.now, id, 0, read(99)).is_err());
        // Nobody polls until it is live again.
        let live = world.event();
        assert!(matches!(live, HostEvent::Live { ctrl, .. } if ctrl == id), "{live:?}");
        world.fake.knobs.hook = Box::new(|_| Hook::Serve);
        world.host.submit(world.now, id, 1, read(77)).unwrap();
        run_for(&mut world, MS);
        let mut seen = BTreeMap::new();
        while let Some(done) = world.host.poll_io() {
            let lost = done.status.is(Status::HOST_PATHING_ERROR);
            assert!(lost && done.tag < 20 || done.status.is_success() && done.tag == 77);
            assert!(done.buf.is_some());
            *seen.entry(done.tag).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 21);
        assert!(seen.values().all(|times| *times == 1));
        let status = world.host.status(id);
        assert_eq!((status.state, status.reconnects, status.attempts), (CtrlState::Live, 1, 0));
        assert_eq!(world.host.transport().conns(), 3);
        assert_eq!(world.host.controllers().collect::<Vec<_>>(), [id]);
        run_for(&mut world, Duration::from_secs(30));
        assert!(world.events.is_empty(), "{:?}", world.events);
    }
}

#[test]
fn refusals_that_may_pass_are_tried_again_less_and_less_often() {
    let mut world = world();
    world.fake.knobs.refuse = Some((Status::CONNECT_CONTROLLER_BUSY, 0));
    let id = world.connect(config());
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    run_for(&mut world, Duration::from_secs(1));
    let first = world.host.figures().attempts;
    run_for(&mut world, Duration::from_secs(100));
    let attempts = world.host.figures().attempts - first;
    assert!((4..=50).contains(&first), "{first}");
    assert!((50..=500).contains(&attempts), "{attempts}");
    assert_eq!(u64::from(world.host.status(id).attempts), first + attempts);
    assert_eq!(world.host.status(id).reach, Reach::Reachable);
    world.fake.knobs.refuse = None;
    assert!(world.events.is_empty(), "an outage is told once");
    let live = within(&mut world, Duration::from_millis(2100));
    assert!(matches!(live, Some(HostEvent::Live { .. })), "{live:?}");
}

#[test]
fn an_outage_that_lasts_too_long_fails_once() {
    for dark in [false, true] {
        let mut world = world();
        let loss = Duration::from_secs(10);
        let reconnect = Some(Reconnect { ctrl_loss: Some(loss), ..Reconnect::default() });
        let id = world.live(CtrlConfig { reconnect, ..config() });
        if dark {
            darken(&mut world, address());
        } else {
            world.fake.knobs.refuse = Some((Status::CONNECT_CONTROLLER_BUSY, 0));
            world.fake.reset_all(world.now);
        }
        assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
        let start = world.now;
        assert!(matches!(world.event(), HostEvent::Failed { .. }));
        let after = world.now - start;
        assert_eq!(after, loss, "also where an attempt is under way");
        assert_eq!(state(&world, id), CtrlState::Lost);
        assert_eq!(world.host.controllers().count(), 0);
        let attempts = world.host.figures().attempts;
        run_for(&mut world, Duration::from_secs(60));
        assert!(world.events.is_empty(), "{:?}", world.events);
        assert_eq!(world.host.figures().attempts, attempts);
        lighten(&mut world);
        world.fake.knobs.refuse = None;
        assert_ne!(world.live(config()), id);
    }
}

#[test]
fn the_first_attempt_ends_too_when_the_controller_is_given_up() {
    let mut world = world();
    world.fake.knobs.silent_ic = true;
    let reconnect =
        Reconnect { delay_max: 50 * MS, ctrl_loss: Some(400 * MS), ..Reconnect::default() };
    let id = world.connect(CtrlConfig { reconnect: Some(reconnect), ..config() });
    let start = world.now;
    run_for(&mut world, 300 * MS);
    let timers = world.host.status(id).timers;
    assert!(timers.contains(&("ctrl-loss", start + 400 * MS)), "{timers:?}");
    let HostEvent::Failed { failure, .. } = world.event() else { panic!() };
    assert_eq!(world.now - start, 400 * MS);
    assert_eq!((failure.stage, failure.awaited), (Stage::InitializeConnection, "ICResp"));
    run_for(&mut world, 60 * Duration::from_secs(1));
    assert_eq!(world.host.transport().conns(), 0);
    assert!(world.events.is_empty());
}

#[test]
fn a_refusal_for_good_is_final_at_once() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.refuse = Some((Status::CONNECT_INVALID_HOST, 0));
    world.fake.reset_all(world.now);
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    let HostEvent::Failed { failure, .. } = world.event() else { panic!() };
    assert!(!failure.is_retryable());
    assert_eq!(world.host.status(id).failure, Some(failure));
    assert_eq!(world.host.figures().attempts, 2);
}

#[test]
fn without_reconnect_the_first_loss_is_the_last() {
    let mut world = world();
    world.live(once());
    world.fake.reset_all(world.now);
    assert!(matches!(world.event(), HostEvent::Failed { .. }));
    run_for(&mut world, Duration::from_secs(10));
    assert_eq!(world.host.figures().attempts, 1);
}

#[test]
fn one_tests_an_unreachable_address_and_all_return_when_it_does() {
    let mut world = large();
    let other = "10.0.0.3:4420".parse().unwrap();
    world.fake.pipe.listen(Instant::ZERO, other, &ListenOptions::default()).unwrap();
    let ids = many(&mut world, 200, &[address(), other]);
    darken(&mut world, address());
    run_for(&mut world, Duration::from_secs(8));
    assert_eq!(kinds(&world.events), BTreeMap::from([("disconnected", 100)]));
    world.events.clear();
    let before = world.host.figures().attempts;
    run_for(&mut world, Duration::from_secs(60));
    let attempts = world.host.figures().attempts - before;
    assert!((200..=310).contains(&attempts), "{attempts} tests in a minute");
    assert!(world.events.is_empty(), "{:?}", world.events);
    let waits = |id: &&CtrlId| state(&world, **id) == CtrlState::WaitReconnect;
    assert!((99..=100).contains(&ids.iter().filter(waits).count()));
    assert_eq!(world.host.status(ids[0]).reach, Reach::Silent);
    assert_eq!(world.host.status(ids[1]).reach, Reach::Reachable);

    lighten(&mut world);
    let (start, before) = (world.now, world.host.figures().attempts);
    world.until(|world| (kinds(&world.events).get("live") == Some(&100)).then_some(()));
    let after = world.now - start;
    assert!(after < 500 * MS, "{after:?}");
    assert!(world.host.figures().attempts - before <= 101);
    assert_eq!(kinds(&world.events).len(), 1);
    for (at, id) in ids.iter().enumerate() {
        let status = world.host.status(*id);
        let expected = (CtrlState::Live, if at % 2 == 0 { 1 } else { 0 });
        assert_eq!((status.state, status.reconnects), expected);
    }
}

#[test]
fn admission_bounds_how_many_connect_in_a_second() {
    let limits = HostLimits {
        controllers: 300,
        admission_per_s: 100,
        admission_burst: 10,
        ..HostLimits::default()
    };
    let mut world = World::with_limits(1, PipeOptions::default(), limits);
    many(&mut world, 100, &[address()]);
    run_for(&mut world, Duration::from_secs(1));
    world.fake.reset_all(world.now);
    let before = world.host.figures().attempts;
    run_for(&mut world, Duration::from_secs(1));
    // Each takes two connections.
    let attempts = world.host.figures().attempts - before;
    assert!((50..=56).contains(&attempts), "{attempts}");
    run_for(&mut world, Duration::from_secs(2));
    assert_eq!(kinds(&world.events), BTreeMap::from([("disconnected", 100), ("live", 100)]));
    assert_eq!(world.host.figures().attempts, 200);
}

#[test]
fn a_port_that_refuses_is_tested_until_someone_listens() {
    let mut world = large();
    let addr = "10.0.0.2:4421".parse().unwrap();
    let healthy = world.live(config());
    for _ in 0..50 {
        world.connect(CtrlConfig { addr, ..config() });
    }
    run_for(&mut world, Duration::from_secs(10));
    assert_eq!(kinds(&world.events), BTreeMap::from([("disconnected", 50)]));
    let attempts = world.host.figures().attempts;
    assert!((100..=1 + 50 + 105).contains(&attempts), "{attempts}");
    assert_eq!(world.host.status(healthy).reach, Reach::Reachable);
    world.events.clear();
    world.fake.pipe.listen(world.now, addr, &ListenOptions::default()).unwrap();
    run_for(&mut world, 300 * MS);
    assert_eq!(kinds(&world.events), BTreeMap::from([("live", 50)]));
}

#[test]
fn reset_connects_again_at_once() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    world.host.submit(world.now, id, 0, read(5)).unwrap();
    run_for(&mut world, MS);
    world.host.reset(world.now, id);
    let done = world.host.poll_io().unwrap();
    assert!(done.tag == 5 && done.status.is(Status::HOST_PATHING_ERROR));
    assert_eq!(state(&world, id), CtrlState::Connecting);
    let live = within(&mut world, 20 * MS);
    assert!(matches!(live, Some(HostEvent::Live { ctrl, .. }) if ctrl == id), "{live:?}");
    assert_eq!((world.host.status(id).reconnects, world.host.transport().conns()), (1, 2));
    assert!(world.host.poll_io().is_none());
}

#[test]
fn reset_asks_nobody_whether_the_address_is_reachable() {
    let mut world = world();
    let id = world.live(config());
    darken(&mut world, address());
    run_for(&mut world, Duration::from_secs(20));
    let before = world.host.figures().attempts;
    world.host.reset(world.now, id);
    assert_eq!(world.host.figures().attempts, before + 1);
    lighten(&mut world);
    run_for(&mut world, Duration::from_secs(1));
    assert_eq!(kinds(&world.events), BTreeMap::from([("disconnected", 1), ("live", 1)]));
}

#[test]
fn disconnect_while_it_waits_closes_it_once() {
    let mut world = world();
    let id = world.live(config());
    darken(&mut world, address());
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    run_for(&mut world, Duration::from_secs(1));
    world.host.disconnect(world.now, id);
    assert_eq!(world.event(), HostEvent::Closed { ctrl: id });
    assert_eq!(state(&world, id), CtrlState::Deleted);
    lighten(&mut world);
    let next = world.live(config());
    assert_ne!(next, id);
    run_for(&mut world, Duration::from_secs(10));
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn figures_count_keep_alives_and_deadlines() {
    let mut world = world();
    let id = world.live(config());
    run_for(&mut world, Duration::from_secs(26));
    let figures = world.host.figures();
    assert_eq!((figures.keep_alives, figures.keep_alives_lost), (10, 0));
    assert_eq!((figures.keep_alive_late_max, figures.deadlines_early), (Duration::ZERO, 0));
    // The caller does not turn for a while.
    let due = world.host.status(id).timers.iter().find(|t| t.0 == "keep-alive").unwrap().1;
    world.now = due + 7 * MS;
    world.turn();
    let figures = world.host.figures();
    assert_eq!(figures.keep_alive_late_max, 7 * MS);
    assert!(figures.deadline_late_max >= 7 * MS && figures.deadlines_per_turn_max == 1);
    world.fake.knobs.silent_keep_alive = true;
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    assert_eq!(world.host.figures().keep_alives_lost, 1);
    assert_eq!(world.host.status(id).keep_alives_lost, 1);
}

#[test]
fn a_controller_that_never_had_its_turn_fails_in_time_too() {
    let mut world = world();
    darken(&mut world, address());
    world.connect(config());
    run_for(&mut world, Duration::from_secs(3));
    let (loss, delay_max) = (Some(90 * MS), 80 * MS);
    let reconnect = Reconnect { ctrl_loss: loss, delay_max, ..Reconnect::default() };
    let late = world.connect(CtrlConfig { reconnect: Some(reconnect), ..config() });
    world.events.clear();
    run_for(&mut world, Duration::from_secs(5));
    let [HostEvent::Failed { ctrl, .. }] = world.events[..] else { panic!("{:?}", world.events) };
    assert_eq!((ctrl, state(&world, ctrl)), (late, CtrlState::Lost));
}

#[test]
fn a_connection_that_still_says_its_last_words_does_not_hold_up_the_next() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|_| Hook::Bytes(vec![0xFF; 64]));
    world.host.submit(world.now, id, 0, read(1)).unwrap();
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    world.fake.knobs.hook = Box::new(|_| Hook::Serve);
    assert!(matches!(within(&mut world, 100 * MS), Some(HostEvent::Live { .. })));
    run_for(&mut world, Duration::from_secs(20));
    assert_eq!((world.fake.term_reqs.len(), world.host.transport().conns()), (1, 2));
    assert!(world.events.is_empty(), "{:?}", world.events);
}

/// Resets, darkness and resets by the caller, all at random; whatever happens, I/O ends once, and
/// when it is over all controllers are live.
fn storm(seed: u64) -> Figures {
    let options = PipeOptions { reset: 0.0005, cut_max: 3000, ..PipeOptions::default() };
    let mut world = World::new(seed, options);
    let addrs = [address(), "10.0.0.3:4420".parse().unwrap(), "10.0.0.4:4420".parse().unwrap()];
    for addr in &addrs[1..] {
        world.fake.pipe.listen(Instant::ZERO, *addr, &ListenOptions::default()).unwrap();
    }
    let mut rng = Rng::new(seed);
    let connect = |at: usize| CtrlConfig { addr: addrs[at % 3], io_queues: 2, ..config() };
    let ids: Vec<_> = (0..30).map(|at| world.connect(connect(at))).collect();
    let (mut tag, mut open) = (0, BTreeMap::new());
    for _ in 0..400 {
        let id = ids[rng.below(30) as usize];
        for _ in 0..rng.below(20) {
            tag += 1;
            let io = Io { lba: tag % 4096, ..read(tag) };
            if world.host.submit(world.now, id, rng.below(2) as usize, io).is_ok() {
                open.insert(tag, id);
            }
        }
        match rng.below(20) {
            0 => darken(&mut world, addrs[rng.below(3) as usize]),
            1..=3 => lighten(&mut world),
            4 => world.host.reset(world.now, id),
            5 => world.fake.reset_all(world.now),
            _ => {}
        }
        let time = if rng.chance(0.1) { Duration::from_secs(5) } else { 50 * MS };
        let time = rng.duration(time);
        run_for(&mut world, time);
        while rng.chance(0.9)
            && let Some(done) = world.host.poll_io()
        {
            assert_eq!(open.remove(&done.tag), Some(done.ctrl), "seed {seed}");
        }
    }
    lighten(&mut world);
    world.fake.pipe.options_mut().reset = 0.0;
    run_for(&mut world, Duration::from_secs(40));
    while let Some(done) = world.host.poll_io() {
        assert_eq!(open.remove(&done.tag), Some(done.ctrl), "seed {seed}");
    }
    assert!(open.is_empty(), "seed {seed}: {open:?}");
    for id in ids {
        assert_eq!(state(&world, id), CtrlState::Live, "seed {seed}: {:?}", world.host.status(id));
        world.host.submit(world.now, id, 1, read(1)).unwrap();
    }
    assert_eq!(world.host.transport().conns(), 90);
    world.host.figures()
}

#[test]
fn whatever_happens_io_ends_once_and_all_return() {
    for seed in 0..4 {
        let figures = storm(seed);
        assert_eq!(figures.deadlines_early, 0);
        assert!(figures.attempts > 30, "{figures:?}");
        if seed == 0 {
            assert_eq!(figures, storm(seed), "the same seed gives the same run");
        }
    }
}

#[test]
fn a_controller_that_is_shut_down_is_not_tried_again_when_that_fails() {
    for qid in [0, 1] {
        let mut world = world();
        world.fake.knobs.silent_shutdown = true;
        let id = world.live(config());
        world.host.disconnect(world.now, id);
        world.fake.reset(world.now, qid);
        let end = world.event();
        assert!(matches!(end, HostEvent::Failed { .. } | HostEvent::Closed { .. }), "{end:?}");
        run_for(&mut world, Duration::from_secs(10));
        assert!(world.events.is_empty(), "{:?}", world.events);
        assert_eq!(world.host.figures().attempts, 1);
    }
}

/// Darkens the address of 100 controllers until all know, and runs on to 1 ms after a test.
fn dark_and_just_tested(world: &mut World) {
    many(world, 100, &[address()]);
    darken(world, address());
    run_for(world, Duration::from_secs(8));
    world.events.clear();
    let before = world.host.figures().attempts;
    world.until(|world| {
        world.now = world.next().unwrap().max(world.now);
        (world.host.figures().attempts > before).then_some(())
    });
}

#[test]
fn a_node_that_announces_itself_is_tried_at_once_and_all_return() {
    let mut world = large();
    dark_and_just_tested(&mut world);
    // That test ends unheard; the next one would be due later.
    run_for(&mut world, Duration::from_millis(201));
    lighten(&mut world);
    let before = world.host.figures().attempts;
    world.fake.pipe.announce(address().ip());
    run_for(&mut world, MS);
    assert!(world.host.figures().attempts > before, "within the turn");
    run_for(&mut world, 150 * MS);
    assert_eq!(kinds(&world.events), BTreeMap::from([("live", 100)]));
    assert!(world.host.figures().attempts - before <= 101);
}

#[test]
fn announcements_of_a_node_that_stays_silent_cost_one_test_at_a_time() {
    let mut world = large();
    dark_and_just_tested(&mut world);
    let before = world.host.figures().attempts;
    for _ in 0..1000 {
        world.fake.pipe.announce(address().ip());
        run_for(&mut world, MS);
    }
    // Each test takes 200 ms; ten a second would be due anyway, if they were shorter.
    let attempts = world.host.figures().attempts - before;
    assert!((4..=10).contains(&attempts), "{attempts}");
    assert_eq!(world.host.figures().announcements, 1000);
}

#[test]
fn an_announcement_ends_the_back_off_of_a_controller_that_was_refused() {
    let mut world = world();
    world.fake.knobs.refuse = Some((Status::CONNECT_CONTROLLER_BUSY, 0));
    let id = world.connect(config());
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    run_for(&mut world, Duration::from_secs(20));
    world.fake.knobs.refuse = None;
    let waits = |world: &World| world.host.status(id).next_attempt.map(|at| at - world.now);
    while waits(&world).is_none_or(|wait| wait < 300 * MS) {
        world.fake.knobs.refuse = Some((Status::CONNECT_CONTROLLER_BUSY, 0));
        run_for(&mut world, MS);
        world.fake.knobs.refuse = None;
    }
    world.fake.pipe.announce(address().ip());
    run_for(&mut world, 5 * MS);
    assert_eq!(state(&world, id), CtrlState::Live);
}

#[test]
fn when_our_own_link_comes_up_all_addresses_are_tried_at_once() {
    let other: SocketAddr = "192.0.2.2:4420".parse().unwrap();
    let mut world = large();
    world.fake.pipe.listen(Instant::ZERO, other, &ListenOptions::default()).unwrap();
    many(&mut world, 100, &[address(), other]);
    darken(&mut world, address());
    darken(&mut world, other);
    run_for(&mut world, Duration::from_secs(8));
    world.events.clear();
    lighten(&mut world);
    let before = world.host.figures().attempts;
    world.fake.pipe.link_up();
    run_for(&mut world, 150 * MS);
    assert_eq!(kinds(&world.events), BTreeMap::from([("live", 100)]));
    assert!(world.host.figures().attempts - before <= 102);
}

#[test]
fn when_a_target_ends_all_connections_one_looks_whether_it_is_still_there() {
    // No more than come back: a judgement of deadlines has room for each once.
    let limits = HostLimits { controllers: 100, ..HostLimits::default() };
    let mut world = World::with_limits(1, PipeOptions::default(), limits);
    many(&mut world, 100, &[address()]);
    let before = world.host.figures().attempts;
    world.fake.reset_all(world.now);
    run_for(&mut world, MS);
    darken(&mut world, address());
    run_for(&mut world, Duration::from_secs(2));
    assert_eq!(kinds(&world.events), BTreeMap::from([("disconnected", 100)]));
    let attempts = world.host.figures().attempts - before;
    assert!((5..=25).contains(&attempts), "{attempts} tests in two seconds");
    lighten(&mut world);
    run_for(&mut world, 250 * MS);
    assert_eq!(kinds(&world.events)["live"], 100);
}

#[test]
fn an_address_that_accepts_and_says_nothing_is_tested_by_one() {
    let mut world = large();
    many(&mut world, 100, &[address()]);
    world.fake.knobs.silent_ic = true;
    world.fake.reset_all(world.now);
    run_for(&mut world, Duration::from_secs(10));
    let any = world.host.controllers().next().unwrap();
    assert_eq!(world.host.status(any).reach, Reach::Silent);
    let attempts = world.host.figures().attempts - 100;
    assert!((8..=12).contains(&attempts), "{attempts} tests in ten seconds, of 1 s each");
    world.fake.knobs.silent_ic = false;
    run_for(&mut world, 1300 * MS);
    assert_eq!(kinds(&world.events), BTreeMap::from([("disconnected", 100), ("live", 100)]));
}

#[test]
fn a_thousand_silent_addresses_are_tested_in_turn_and_no_faster_than_allowed() {
    let limits = HostLimits { controllers: 1000, ..HostLimits::default() };
    let mut world = World::with_limits(1, PipeOptions::default(), limits);
    world.fake.pipe.options_mut().blackhole = true;
    let addr = |n: usize| SocketAddr::from(([10, 1, (n / 256) as u8, (n % 256) as u8], 4420));
    let conn = ConnOptions { rx_buffer: 4096, tx_buffer: 4096, ..ConnOptions::default() };
    let config = |n| CtrlConfig { addr: addr(n), conn: conn.clone(), ..config() };
    let ids: Vec<_> = (0..1000).map(|n| world.connect(config(n))).collect();
    run_for(&mut world, Duration::from_secs(4));
    let attempts = |world: &World| -> Vec<u32> {
        ids.iter().map(|&id| world.host.status(id).attempts).collect()
    };
    let before = attempts(&world);
    for _ in 0..6 {
        let figures = world.host.figures();
        run_for(&mut world, Duration::from_secs(1));
        let probes = world.host.figures().probes - figures.probes;
        assert!((900..=1064).contains(&probes), "{probes} tests in a second");
    }
    let tests: Vec<_> =
        attempts(&world).iter().zip(before).map(|(now, before)| now - before).collect();
    let (least, most) = (tests.iter().min().unwrap(), tests.iter().max().unwrap());
    assert!(*least >= 5 && *most <= 7, "between {least} and {most} tests of an address");
    assert!(world.host.figures().probes_under_way_max <= 256);
    // One that announces itself does not wait for its turn.
    world.fake.pipe.announce(addr(500).ip());
    let before = world.host.status(ids[500]).attempts;
    run_for(&mut world, 210 * MS);
    assert!(world.host.status(ids[500]).attempts > before);
}

#[test]
fn a_target_that_stood_still_is_not_met_by_more_connections_than_its_admission() {
    let (per_s, burst) = (1000, 20);
    let limits = HostLimits {
        controllers: 300,
        admission_per_s: per_s,
        admission_burst: burst,
        ..HostLimits::default()
    };
    let mut world = World::with_limits(1, PipeOptions::default(), limits);
    for _ in 0..200 {
        world.connect(CtrlConfig { io_queues: 3, ..config() });
    }
    let mut syns = Vec::new();
    let start = world.now;
    while kinds(&world.events).get("live") != Some(&200) {
        let stands_still = (50 * MS..350 * MS).contains(&(world.now - start));
        if stands_still {
            world.host.turn(world.now);
            world.host.flush(world.now);
        } else {
            world.turn();
        }
        syns.push((world.now, world.host.transport().stats().syns));
        world.now += MS;
        assert!(world.now - start < Duration::from_secs(2), "{:?}", kinds(&world.events));
    }
    assert_eq!(syns.last().unwrap().1, 800);
    for (at, &(from, before)) in syns.iter().enumerate() {
        for &(to, after) in &syns[at..] {
            let most = u128::from(burst) + u128::from(per_s) * (to - from).as_millis() / 1000;
            assert!(
                u128::from(after - before) <= most,
                "{} from {from:?} to {to:?}",
                after - before
            );
        }
    }
}

#[test]
fn many_addresses_that_return_together_are_not_all_tried_in_one_turn() {
    let mut world = large();
    let addr = |n: u8| SocketAddr::from(([10, 0, 1, n], 4420));
    let addrs: Vec<_> = (0..16).map(addr).collect();
    for addr in &addrs {
        world.fake.pipe.listen(Instant::ZERO, *addr, &ListenOptions::default()).unwrap();
    }
    many(&mut world, 256, &addrs);
    world.fake.reset_all(world.now);
    let start = world.now;
    while kinds(&world.events).get("live") != Some(&256) {
        let before = world.host.transport().stats().syns;
        world.turn();
        let started = world.host.transport().stats().syns - before;
        assert!(started <= 16 + 8 + 16, "{started}: burst, rate, and tests of addresses");
        world.now += MS;
    }
    assert!(world.now - start < 150 * MS, "{:?}", world.now - start);
}

#[test]
fn a_controller_lost_while_its_io_queues_wait_for_their_place_is_connected_again() {
    let limits = HostLimits { admission_per_s: 10, admission_burst: 2, ..HostLimits::default() };
    let mut world = World::with_limits(1, PipeOptions::default(), limits);
    let id = world.connect(CtrlConfig { io_queues: 3, ..config() });
    run_for(&mut world, 50 * MS);
    assert_eq!(state(&world, id), CtrlState::IoQueues);
    world.fake.reset(world.now, 0);
    let ended = within(&mut world, 50 * MS);
    assert!(matches!(ended, Some(HostEvent::Disconnected { .. })), "{ended:?}");
    assert!(matches!(within(&mut world, Duration::from_secs(3)), Some(HostEvent::Live { .. })));
    assert_eq!(world.host.transport().conns(), 4);
    world.host.disconnect(world.now, id);
    assert_eq!(world.event(), HostEvent::Closed { ctrl: id });

    let id = world.connect(CtrlConfig { io_queues: 3, ..config() });
    world.until(|world| {
        world.now = world.next()?.max(world.now);
        (world.host.status(id).state == CtrlState::IoQueues).then_some(())
    });
    world.host.disconnect(world.now, id);
    assert_eq!(world.event(), HostEvent::Closed { ctrl: id });
    run_for(&mut world, Duration::from_secs(2));
    assert_eq!(world.host.transport().conns(), 0);
}

#[test]
fn transitions_are_kept_with_their_reasons_and_failures_counted_by_kind() {
    let mut world = world();
    let id = world.live(config());
    let states = |world: &World| -> Vec<String> {
        let told = |t: &Transition| {
            let why = t.failure.as_ref().map_or("", |failure| failure.kind().name());
            format!("{} {why} x{}", t.state, t.times)
        };
        world.host.history(id).map(told).collect()
    };
    // The second time for its namespaces.
    let up = ["connecting  x1", "enabling  x1", "io-queues  x1", "identifying  x2", "live  x1"];
    assert_eq!(states(&world), up);

    let addr = address();
    world.fake.pipe.unlisten(addr).unwrap();
    world.fake.reset_all(world.now);
    run_for(&mut world, 1000 * MS);
    let told = states(&world);
    assert!(told.contains(&"wait-reconnect reset x1".to_owned()), "{told:?}");
    let refused = told.iter().find(|t| t.starts_with("wait-reconnect refused x")).unwrap();
    let errors = world.host.errors(id);
    assert_eq!(*refused, format!("wait-reconnect refused x{}", errors.of(Kind::Refused)));
    assert!(errors.of(Kind::Refused) >= 5);
    assert_eq!(errors.of(Kind::Reset), 1);
    assert_eq!(world.host.figures().errors, errors, "of all controllers, this one");
    world.host.disconnect(world.now, id);
    run_for(&mut world, MS);
    assert_eq!(states(&world).last().unwrap(), "deleted  x1");
    assert!(states(&world).len() <= 8);
}

#[test]
fn a_controller_that_was_given_up_keeps_why() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.refuse = Some((Status::CONNECT_INVALID_HOST, 0));
    world.fake.reset_all(world.now);
    run_for(&mut world, 1000 * MS);
    let last = world.host.history(id).last().unwrap();
    assert_eq!(last.state, CtrlState::Lost);
    assert_eq!(last.failure.as_ref().unwrap().kind(), Kind::Status);
}
