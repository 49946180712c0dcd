//! Timers changed while a controller is held, against the fake target, in virtual time: what is
//! shortened fires at its new time, what is lengthened does not fire at its old one.

use std::time::Duration;

use moorline_stack::mem::Arena;
use moorline_stack::pipe::PipeOptions;
use moorline_stack::{Instant, Transport};

use super::fake::{BLOCK, Hook, World, address, config as once};
use super::*;
use crate::spec::opcode::admin;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn config() -> CtrlConfig {
    CtrlConfig { reconnect: Some(Reconnect::default()), ..once() }
}

fn world() -> World {
    World::new(1, PipeOptions::default())
}

fn run_for(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.turn();
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
    }
    world.turn();
}

fn change(world: &mut World, ctrl: CtrlId, change: impl FnOnce(&mut CtrlConfig)) -> Applied {
    let mut config = config();
    change(&mut config);
    world.host.set(world.now, ctrl, &config).unwrap()
}

fn submit(world: &mut World, ctrl: CtrlId) {
    let buf = Arena::new(BLOCK).take(BLOCK);
    let io = Io { tag: 0, op: IoOp::Read, nsid: 1, lba: 0, blocks: 1, buf, buf_offset: 0 };
    world.host.submit(world.now, ctrl, 0, io).unwrap();
}

/// When the controller was lost, and why.
fn lost(world: &mut World) -> (Instant, Failure) {
    let HostEvent::Disconnected { failure, .. } = world.event() else { panic!() };
    (world.now, failure)
}

#[test]
fn an_io_timeout_counts_from_the_submission_whenever_it_is_changed() {
    for (io, abort) in [(5, 3), (60, 1)] {
        let mut world = world();
        let id = world.live(config());
        world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
        let start = world.now;
        submit(&mut world, id);
        run_for(&mut world, 4 * SECOND);
        let applied = change(&mut world, id, |config| config.timeouts.io = io * SECOND);
        assert_eq!(applied.timers, [("I/O timeout", When::Now)]);
        run_for(&mut world, (io - 4) * SECOND + 500 * MS);
        assert_eq!(world.fake.commands(0, admin::ABORT).len(), 1);
        // The grace of an Abort that is out, too.
        change(&mut world, id, |config| {
            config.timeouts.io = io * SECOND;
            config.timeouts.abort = abort * SECOND;
        });
        let (at, failure) = lost(&mut world);
        assert_eq!((at - start, failure.cause), ((io + abort) * SECOND, Cause::Timeout));
        assert_eq!(world.host.figures().deadlines_early, 0);
    }
}

#[test]
fn a_timeout_that_has_passed_by_its_new_value_is_over_at_once() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    world.fake.knobs.silent_admin = Some(admin::ABORT);
    let start = world.now;
    submit(&mut world, id);
    run_for(&mut world, 4 * SECOND);
    change(&mut world, id, |config| config.timeouts.io = SECOND);
    let (at, _) = lost(&mut world);
    assert_eq!(at - start, 5 * SECOND, "aborted at once, and that takes 1 s");
    assert!(world.host.figures().deadline_late_max <= MS);
}

#[test]
fn the_whole_connect_and_its_stages_are_changed_under_way() {
    for total in [2, 5] {
        let mut world = world();
        world.fake.knobs.silent_connect = true;
        let start = world.now;
        let id = world.connect(config());
        run_for(&mut world, 500 * MS);
        change(&mut world, id, |config| {
            config.timeouts.connect_total = total * SECOND;
            config.timeouts.connect = total * SECOND;
        });
        let (at, failure) = lost(&mut world);
        let about = total * SECOND..total * SECOND + 10 * MS;
        assert!(about.contains(&(at - start)), "{:?}", at - start);
        assert_eq!(failure.cause, Cause::Timeout);
    }
    for icresp in [600, 1800] {
        let mut world = world();
        world.fake.knobs.silent_ic = true;
        let start = world.now;
        let id = world.connect(config());
        run_for(&mut world, 500 * MS);
        change(&mut world, id, |config| config.timeouts.icresp = icresp * MS);
        let (at, failure) = lost(&mut world);
        assert_eq!(failure.awaited, "ICResp");
        assert!((icresp * MS..(icresp + 10) * MS).contains(&(at - start)), "{:?}", at - start);
    }
}

#[test]
fn tcp_timeouts_are_those_of_the_connections_that_are_open() {
    for ack in [SECOND, 10 * SECOND] {
        let mut world = world();
        let id = world.live(CtrlConfig { kato: Duration::ZERO, ..config() });
        let start = world.now;
        world.fake.pipe.options_mut().dark.push(address());
        submit(&mut world, id);
        run_for(&mut world, 500 * MS);
        let applied = change(&mut world, id, |config| {
            config.kato = Duration::ZERO;
            config.conn.ack_timeout = ack;
        });
        assert_eq!(applied.timers, [("ack timeout", When::Now)]);
        let (at, failure) = lost(&mut world);
        assert!((ack..ack + 10 * MS).contains(&(at - start)), "{:?} {failure}", at - start);
    }
}

#[test]
fn kato_is_told_to_the_controller_and_read_back() {
    for kato in [2 * SECOND, 20 * SECOND] {
        let mut world = world();
        world.fake.knobs.kas = 3;
        let id = world.live(config());
        let told = world.fake.commands(0, admin::SET_FEATURES).len();
        run_for(&mut world, SECOND);
        let applied = change(&mut world, id, |config| config.kato = kato);
        assert_eq!(applied.timers, [("keep alive timeout", When::Answer)]);
        run_for(&mut world, 100 * MS);
        let set = world.fake.commands(0, admin::SET_FEATURES);
        let rounded = kato.as_millis().div_ceil(300) * 300;
        assert_eq!((set.len(), set[told].cdw10.get()), (told + 1, 0x0F));
        assert_eq!(u128::from(set[told].cdw11.get()), rounded);
        assert_eq!(world.host.controller(id).kato.as_millis(), rounded);
        let sent = world.fake.commands(0, admin::KEEP_ALIVE).len();
        run_for(&mut world, 60 * SECOND);
        let sent = world.fake.commands(0, admin::KEEP_ALIVE).len() - sent;
        let expected = 120_000 / rounded as usize;
        assert!((expected - 1..=expected + 1).contains(&sent), "{sent} of {expected}");
        assert!(world.events.is_empty());
    }
}

#[test]
fn kato_can_be_turned_off_and_on_again_and_two_changes_at_once_end_with_the_last() {
    let mut world = world();
    let id = world.live(config());
    change(&mut world, id, |config| config.kato = 30 * SECOND);
    change(&mut world, id, |config| config.kato = Duration::ZERO);
    run_for(&mut world, SECOND);
    assert_eq!(world.host.controller(id).kato, Duration::ZERO);
    let sent = world.fake.commands(0, admin::KEEP_ALIVE).len();
    run_for(&mut world, 60 * SECOND);
    assert_eq!(world.fake.commands(0, admin::KEEP_ALIVE).len(), sent);
    change(&mut world, id, |config| config.kato = 4 * SECOND);
    run_for(&mut world, 60 * SECOND);
    let more = world.fake.commands(0, admin::KEEP_ALIVE).len() - sent;
    assert!((29..=30).contains(&more), "{more}");
}

#[test]
fn an_unanswered_keep_alive_is_waited_for_as_long_as_the_new_kato_says() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.silent_keep_alive = true;
    let sent = |world: &World| world.fake.commands(0, admin::KEEP_ALIVE).len();
    while sent(&world) == 0 {
        run_for(&mut world, 10 * MS);
    }
    let start = world.now;
    change(&mut world, id, |config| config.kato = 20 * SECOND);
    let (at, failure) = lost(&mut world);
    assert_eq!(failure.awaited, "answer to Keep Alive");
    assert!((20 * SECOND - 20 * MS..20 * SECOND).contains(&(at - start)), "{:?}", at - start);
}

#[test]
fn a_back_off_and_the_patience_for_an_outage_are_changed_while_they_run() {
    for (loss, expected) in [(3, 3), (900, 900)] {
        let mut world = world();
        let id = world.live(config());
        let addr = address();
        world.fake.pipe.unlisten(addr).unwrap();
        world.fake.reset_all(world.now);
        let (start, _) = lost(&mut world);
        run_for(&mut world, SECOND);
        change(&mut world, id, |config| {
            let reconnect = config.reconnect.as_mut().unwrap();
            reconnect.ctrl_loss = Some(loss * SECOND);
        });
        let HostEvent::Failed { .. } = world.event() else { panic!() };
        let took = world.now - start;
        let about = expected * SECOND..expected * SECOND + SECOND / 2;
        assert!(about.contains(&took), "{took:?}");
    }
}

#[test]
fn an_address_is_tested_as_often_as_is_said_now() {
    let mut world = world();
    let id = world.live(config());
    world.fake.pipe.unlisten(address()).unwrap();
    world.fake.reset_all(world.now);
    lost(&mut world);
    run_for(&mut world, 2 * SECOND);
    let attempts = world.host.figures().attempts;
    change(&mut world, id, |config| {
        config.reconnect.as_mut().unwrap().probe_interval = SECOND;
    });
    run_for(&mut world, 10 * SECOND);
    let slow = world.host.figures().attempts - attempts;
    assert!((9..=11).contains(&slow), "{slow}");
    change(&mut world, id, |config| {
        config.reconnect.as_mut().unwrap().probe_interval = 20 * MS;
    });
    run_for(&mut world, SECOND);
    let fast = world.host.figures().attempts - attempts - slow;
    assert!((48..=52).contains(&fast), "{fast}");
}

#[test]
fn what_cannot_work_is_refused_with_its_rule_and_changes_nothing() {
    let mut world = world();
    let id = world.live(config());
    let mut wrong = config();
    wrong.timeouts.icresp = 4 * SECOND;
    wrong.timeouts.io = SECOND;
    let refused = world.host.set(world.now, id, &wrong).unwrap_err();
    assert!(refused.to_string().starts_with("ICResp timeout of 4s exceeds"), "{refused}");
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    let start = world.now;
    submit(&mut world, id);
    let (at, _) = lost(&mut world);
    assert_eq!(at - start, 31 * SECOND);
    assert_eq!(change(&mut world, id, |_| {}), Applied::default());
}

#[test]
fn the_next_attempt_has_the_new_timers_and_what_is_no_timer_stays() {
    let mut world = world();
    let id = world.live(config());
    let mut other = config();
    other.io_queues = 7;
    other.kato = 9 * SECOND;
    other.timeouts.io = 2 * SECOND;
    world.host.set(world.now, id, &other).unwrap();
    run_for(&mut world, SECOND);
    world.fake.reset_all(world.now);
    lost(&mut world);
    let HostEvent::Live { .. } = world.event() else { panic!() };
    let info = world.host.controller(id);
    assert_eq!((info.kato, info.io_queues), (9 * SECOND, 1));
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    let start = world.now;
    submit(&mut world, id);
    let (at, _) = lost(&mut world);
    assert_eq!(at - start, 3 * SECOND);
}

#[test]
fn io_without_a_path_fails_when_the_new_time_for_it_is_over() {
    for fast_io_fail in [3, 50] {
        let requeue = Requeue { quiesce: Quiesce::Off, ..Requeue::default() };
        let config = CtrlConfig { requeue: Some(requeue), ..config() };
        let mut world = world();
        let id = world.live(config.clone());
        world.fake.pipe.unlisten(address()).unwrap();
        world.fake.reset_all(world.now);
        let (start, _) = lost(&mut world);
        submit(&mut world, id);
        run_for(&mut world, SECOND);
        let requeue = Requeue { fast_io_fail: fast_io_fail * SECOND, ..requeue };
        let to = CtrlConfig { requeue: Some(requeue), ..config };
        let applied = world.host.set(world.now, id, &to).unwrap();
        assert_eq!(applied.timers, [("requeue fast_io_fail", When::Now)]);
        run_for(&mut world, (fast_io_fail - 1) * SECOND - 50 * MS);
        assert!(world.host.poll_io().is_none());
        run_for(&mut world, 50 * MS);
        assert!(world.host.poll_io().is_some(), "{:?}", world.now - start);
    }
}
