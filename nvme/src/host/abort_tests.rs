//! Commands that time out, against the fake target, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use moorline_stack::mem::Arena;
use moorline_stack::pipe::PipeOptions;

use super::fake::{BLOCK, Hook, World, config as once};
use super::*;
use crate::spec::opcode::admin;
use crate::spec::{Abort, Status};

const SECOND: Duration = Duration::from_secs(1);
const IO: Duration = Duration::from_secs(30);

fn config() -> CtrlConfig {
    CtrlConfig { reconnect: Some(Reconnect::default()), io_queues: 2, ..once() }
}

/// A world whose target never answers I/O, and a live controller.
fn silent(set: impl FnOnce(&mut World)) -> (World, CtrlId) {
    let mut world = World::new(1, PipeOptions::default());
    set(&mut world);
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    let id = world.live(config());
    (world, id)
}

fn submit(world: &mut World, ctrl: CtrlId, tags: std::ops::Range<u64>) {
    for tag in tags {
        let buf = Arena::new(BLOCK).take(BLOCK);
        let op = if tag % 3 == 0 { IoOp::Write { fua: false } } else { IoOp::Read };
        let io = Io { tag, op, nsid: 1, lba: tag, blocks: 1, buf, buf_offset: 0 };
        world.host.submit(world.now, ctrl, tag as usize % 2, io).unwrap();
    }
}

fn run_for(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.turn();
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
    }
    world.turn();
}

/// What ended so far, by tag, each once.
fn ended(world: &mut World) -> BTreeMap<u64, Status> {
    let mut ended = BTreeMap::new();
    while let Some(done) = world.host.poll_io() {
        assert!(done.buf.is_some());
        assert_eq!(ended.insert(done.tag, done.status), None, "a command ends once");
    }
    ended
}

/// The commands that were to be aborted, by queue and CID, in order.
fn aborts(world: &World) -> Vec<(u16, u16)> {
    let of = world.fake.commands(0, admin::ABORT);
    of.iter().map(Abort::from_sqe).map(|Abort { sqid, cid }| (sqid, cid)).collect()
}

#[test]
fn an_aborted_command_ends_with_its_status_and_the_controller_lives() {
    let (mut world, id) = silent(|world| world.fake.knobs.aborts = true);
    submit(&mut world, id, 0..40);
    run_for(&mut world, IO - Duration::from_millis(1));
    assert!(aborts(&world).is_empty());
    run_for(&mut world, Duration::from_millis(500));
    let ended = ended(&mut world);
    assert_eq!(ended.len(), 40);
    assert!(ended.values().all(|status| status.is(Status::ABORT_REQUESTED)));
    let mut aborted = aborts(&world);
    aborted.sort_unstable();
    aborted.dedup();
    assert_eq!(aborted.len(), 40, "each once");
    assert_eq!(aborts(&world).len(), 40);

    world.fake.knobs.hook = Box::new(|_| Hook::Serve);
    submit(&mut world, id, 50..60);
    run_for(&mut world, 100 * SECOND);
    let ended = self::ended(&mut world);
    assert!(ended.len() == 10 && ended.values().all(|status| status.is_success()));
    assert_eq!((world.host.status(id).state, world.events.len()), (CtrlState::Live, 0));
    assert_eq!(world.host.figures().attempts, 1);
}

#[test]
fn an_abort_that_does_not_help_resets_the_controller_and_each_command_ends_once() {
    for answers in [false, true] {
        let (mut world, id) = silent(|_| {});
        world.fake.knobs.silent_admin = (!answers).then_some(admin::ABORT);
        let start = world.now;
        submit(&mut world, id, 0..1);
        run_for(&mut world, 10 * SECOND);
        submit(&mut world, id, 1..20);
        let HostEvent::Disconnected { failure, .. } = world.event() else { panic!() };
        assert_eq!(world.now - start, IO + SECOND);
        assert_eq!((failure.stage, failure.cause), (Stage::Live, Cause::Timeout));
        assert_eq!(failure.awaited, "completion of an I/O command");
        assert_eq!(aborts(&world).len(), 1);
        let HostEvent::Live { .. } = world.event() else { panic!() };
        let ended = ended(&mut world);
        assert_eq!(ended.len(), 20);
        assert!(ended.values().all(|status| status.is(Status::HOST_PATHING_ERROR)));
        world.fake.knobs.hook = Box::new(|_| Hook::Serve);
        submit(&mut world, id, 30..40);
        run_for(&mut world, 60 * SECOND);
        assert_eq!(self::ended(&mut world).len(), 10);
        assert!(world.events.is_empty(), "{:?}", world.events);
    }
}

#[test]
fn more_timeouts_than_the_abort_limit_wait_their_turn() {
    let (mut world, id) = silent(|world| world.fake.knobs.acl = 1);
    world.fake.knobs.silent_admin = Some(admin::ABORT);
    submit(&mut world, id, 0..10);
    run_for(&mut world, IO + Duration::from_millis(10));
    for done in 0..10 {
        // Two are out: one is answered, then its command ends, and the next is sent.
        assert_eq!(aborts(&world).len(), (done + 2).min(10));
        let (sqid, cid) = aborts(&world)[done];
        let abort = world.fake.commands(0, admin::ABORT)[done].cid.get();
        if done % 2 == 0 {
            world.fake.complete(sqid, cid, Status::ABORT_REQUESTED);
            run_for(&mut world, Duration::from_millis(10));
            assert_eq!(aborts(&world).len(), (done + 2).min(10), "the Abort is still out");
            world.fake.complete(0, abort, Status::SUCCESS);
        } else {
            world.fake.complete(0, abort, Status::SUCCESS);
            world.fake.complete(sqid, cid, Status::ABORT_REQUESTED);
        }
        run_for(&mut world, Duration::from_millis(10));
    }
    assert_eq!(ended(&mut world).len(), 10);
    run_for(&mut world, 60 * SECOND);
    assert_eq!((world.host.status(id).state, world.events.len()), (CtrlState::Live, 0));
}

#[test]
fn commands_whose_abort_never_had_its_turn_end_in_time_too() {
    let (mut world, id) = silent(|world| world.fake.knobs.acl = 0);
    world.fake.knobs.silent_admin = Some(admin::ABORT);
    let start = world.now;
    submit(&mut world, id, 0..100);
    let HostEvent::Disconnected { .. } = world.event() else { panic!() };
    assert_eq!(world.now - start, IO + SECOND);
    assert_eq!((aborts(&world).len(), ended(&mut world).len()), (1, 100));
}

#[test]
fn a_command_that_ends_while_its_abort_waits_is_not_aborted() {
    let (mut world, id) = silent(|world| world.fake.knobs.acl = 0);
    world.fake.knobs.silent_admin = Some(admin::ABORT);
    submit(&mut world, id, 1..2);
    submit(&mut world, id, 5..6);
    run_for(&mut world, IO + Duration::from_millis(10));
    let [(sqid, cid)] = aborts(&world)[..] else { panic!() };
    let reads = world.fake.commands(2, 2);
    for read in &reads {
        world.fake.complete(2, read.cid.get(), Status::INTERNAL_ERROR);
    }
    assert!(sqid == 2 && reads.iter().any(|read| read.cid.get() == cid));
    let abort = world.fake.commands(0, admin::ABORT)[0].cid.get();
    run_for(&mut world, Duration::from_millis(10));
    world.fake.complete(0, abort, Status::SUCCESS);
    run_for(&mut world, 10 * SECOND);
    assert_eq!((aborts(&world).len(), ended(&mut world).len()), (1, 2));
    assert_eq!(world.host.status(id).state, CtrlState::Live);
}

#[test]
fn a_completion_that_crosses_its_abort_is_given_once() {
    let (mut world, id) = silent(|_| {});
    world.fake.knobs.silent_admin = Some(admin::ABORT);
    submit(&mut world, id, 3..4);
    run_for(&mut world, IO - Duration::from_micros(1));
    let write = world.fake.commands(2, 1)[0].cid.get();
    assert!(aborts(&world).is_empty());
    world.now += Duration::from_micros(1);
    world.host.turn(world.now);
    world.fake.complete(2, write, Status::SUCCESS); // it is under way when the Abort is sent
    world.host.flush(world.now);
    run_for(&mut world, Duration::from_millis(10));
    assert_eq!(aborts(&world), [(2, write)]);
    assert_eq!(ended(&mut world), BTreeMap::from([(3, Status::SUCCESS)]));
    // The Abort found nobody and says so; its slot is in use again by then.
    submit(&mut world, id, 5..6);
    run_for(&mut world, Duration::from_millis(10));
    let abort = world.fake.commands(0, admin::ABORT)[0].cid.get();
    world.fake.complete(0, abort, Status::INVALID_FIELD);
    run_for(&mut world, SECOND);
    assert!(ended(&mut world).is_empty());
    assert_eq!((world.host.status(id).state, world.events.len()), (CtrlState::Live, 0));
}

#[test]
fn no_abort_is_tried_where_a_keep_alive_waits_for_its_answer() {
    let mut world = World::new(1, PipeOptions::default());
    world.fake.knobs.silent_keep_alive = true;
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    // Keep alive goes out 2.5 s after Connect and is lost at 7.5 s: half of that is at 5 s.
    let mut short = config();
    short.timeouts.io = 6 * SECOND;
    let id = world.live(short);
    let start = world.now;
    submit(&mut world, id, 0..4);
    let HostEvent::Disconnected { failure, .. } = world.event() else { panic!() };
    assert_eq!((world.now - start, failure.cause), (6 * SECOND, Cause::Timeout));
    assert_eq!((aborts(&world).len(), ended(&mut world).len()), (0, 4));
}

#[test]
fn a_caller_that_never_polls_events_learns_the_last_outage() {
    let (mut world, id) = silent(|_| {});
    for _ in 0..20 {
        world.fake.reset_all(world.now);
        let end = world.now + SECOND;
        while world.now < end {
            world.host.turn(world.now);
            world.host.flush(world.now);
            world.fake.turn(world.now);
            world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
        }
    }
    assert_eq!(world.host.status(id).reconnects, 20);
    let events: Vec<_> = std::iter::from_fn(|| world.host.poll_event()).collect();
    let [HostEvent::Disconnected { .. }, HostEvent::Live { .. }] = events[..] else {
        panic!("{events:?}")
    };
}
