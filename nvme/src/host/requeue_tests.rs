//! I/O that outlives its path, against the fake target, in virtual time: how often it ends, how,
//! when, and what the target executes of it after it was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::PipeOptions;
use moorline_stack::rng::Rng;

use super::fake::{BLOCK, Executed, Hook, World, address, config as once};
use super::reissue::ending;
use super::requeue::Ending;
use super::*;
use crate::spec::Status;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const WRITE: IoOp = IoOp::Write { fua: false };

fn config() -> CtrlConfig {
    let requeue = Some(Requeue::default());
    CtrlConfig { reconnect: Some(Reconnect::default()), requeue, ..once() }
}

fn world() -> World {
    World::new(1, PipeOptions::default())
}

fn marked(blocks: u32, mark: u64) -> IoBuf {
    let len = blocks as usize * BLOCK;
    let mut buf = Arena::new(len).take(len).unwrap();
    buf.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&mark.to_le_bytes()));
    buf
}

fn io(op: IoOp, tag: u64, lba: u64, blocks: u32) -> Io {
    let buf = matches!(op, IoOp::Read | IoOp::Write { .. }).then(|| marked(blocks, tag));
    Io { tag, op, nsid: 1, lba, blocks, buf, buf_offset: 0 }
}

/// Runs for `time`; what ended meanwhile, with when.
fn run_for(world: &mut World, time: Duration) -> Vec<(Instant, IoDone)> {
    let end = world.now + time;
    let mut ended = Vec::new();
    loop {
        world.turn();
        ended.extend(std::iter::from_fn(|| world.host.poll_io()).map(|done| (world.now, done)));
        if world.now >= end {
            return ended;
        }
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
    }
}

fn tags(ended: &[(Instant, IoDone)]) -> Vec<u64> {
    ended.iter().map(|(_, done)| done.tag).collect()
}

fn submit(world: &mut World, ctrl: CtrlId, io: Io) {
    world.host.submit(world.now, ctrl, 0, io).unwrap();
}

fn darken(world: &mut World) {
    world.fake.pipe.options_mut().dark.push(address());
}

/// What was on its way is lost with the connections that the host has given up.
fn lighten(world: &mut World) {
    world.fake.reset_all(world.now);
    world.fake.pipe.options_mut().dark.clear();
}

fn timer(world: &World, ctrl: CtrlId, name: &str) -> Option<Instant> {
    let timers = world.host.status(ctrl).timers;
    timers.iter().find(|(of, _)| *of == name).map(|(_, at)| *at)
}

/// A controller that fell silent with a write of blocks 8 and 9 (tag 1), a read (2) and a Flush
/// (3) on the wire, since when; its path works again.
fn fell_silent(config: CtrlConfig) -> (World, CtrlId, Instant) {
    let mut world = world();
    world.fake.knobs.cqt = 250;
    let id = world.live(config);
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    submit(&mut world, id, io(WRITE, 1, 8, 2));
    submit(&mut world, id, io(IoOp::Read, 2, 8, 1));
    submit(&mut world, id, io(IoOp::Flush, 3, 0, 0));
    run_for(&mut world, MS);
    darken(&mut world);
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    let since = world.now;
    world.fake.knobs.hook = Box::new(|_| Hook::Serve);
    lighten(&mut world);
    (world, id, since)
}

#[test]
fn io_of_a_path_that_the_target_ended_is_issued_again_at_once() {
    for qid in [0, 1, 2] {
        let mut world = world();
        let id = world.live(CtrlConfig { io_queues: 2, ..config() });
        world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
        let submitted = world.now;
        for tag in 0..20 {
            let op = if tag % 3 == 0 { IoOp::Read } else { WRITE };
            let io = io(op, tag, tag * 40, 1 + 35 * (tag as u32 % 2)); // some by R2T
            world.host.submit(world.now, id, tag as usize % 2, io).unwrap();
        }
        assert!(run_for(&mut world, MS).is_empty());
        world.fake.knobs.hook = Box::new(|_| Hook::Serve);
        world.fake.reset(world.now, qid);
        assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
        let status = world.host.status(id);
        assert_eq!((status.waiting, status.quiescing), (20, 0));
        assert_eq!(timer(&world, id, "quiesce"), None);
        assert_eq!(timer(&world, id, "fast-io-fail"), Some(world.now + 20 * S));
        let ended = run_for(&mut world, 100 * MS);
        assert_eq!(ended.len(), 20);
        for (_, done) in &ended {
            assert_eq!(done.status, Status::SUCCESS);
            assert_eq!((done.qpair, done.submitted), (done.tag as usize % 2, submitted));
            assert!(done.buf.is_some());
        }
        let status = world.host.status(id);
        assert_eq!((status.state, status.waiting), (CtrlState::Live, 0));
        assert_eq!(timer(&world, id, "fast-io-fail"), None);
        assert!(run_for(&mut world, 60 * S).is_empty());
    }
}

#[test]
fn a_write_of_a_silent_path_waits_and_what_overlaps_it_waits_behind() {
    let (mut world, id, since) = fell_silent(config());
    let bound = since + 10 * S + 250 * MS;
    assert_eq!(timer(&world, id, "quiesce"), Some(bound));
    assert_eq!(world.host.status(id).quiescing, 1);
    let ended = run_for(&mut world, 5 * S);
    assert_eq!(tags(&ended), [2], "the read goes on, the Flush does not overtake the write");
    assert_eq!(world.host.status(id).state, CtrlState::Live);
    submit(&mut world, id, io(WRITE, 11, 9, 1));
    submit(&mut world, id, io(IoOp::WriteZeroes, 12, 7, 2));
    submit(&mut world, id, io(IoOp::Deallocate, 13, 0, 100));
    submit(&mut world, id, io(WRITE, 14, 10, 1)); // free, but for what 13 does before
    submit(&mut world, id, io(WRITE, 15, 200, 1));
    submit(&mut world, id, io(IoOp::Read, 16, 9, 1));
    let ended = run_for(&mut world, 4 * S);
    assert_eq!(tags(&ended), [15, 16]);
    assert_eq!(world.host.status(id).waiting, 6);
    let left = bound - world.now - MS;
    let ended = run_for(&mut world, left);
    assert_eq!(tags(&ended), []);
    let ended = run_for(&mut world, 2 * MS);
    assert_eq!(tags(&ended), [1, 3, 11, 12, 13, 14]);
    assert!(ended.iter().all(|(at, done)| *at >= bound && done.status.is_success()));
    assert_eq!(world.host.status(id).waiting, 0);
    assert_eq!(world.fake.storage[10 * BLOCK], 14);
}

#[test]
fn the_wait_of_a_write_is_of_the_policy_and_of_what_the_controller_says() {
    let with = |quiesce| CtrlConfig {
        requeue: Some(Requeue { quiesce, ..Requeue::default() }),
        ..config()
    };
    for (config, tbkas, expected) in [
        (config(), false, Some(10_250 * MS)),
        (CtrlConfig { kato: S, ..config() }, true, Some(3_250 * MS)),
        (with(Quiesce::For(700 * MS)), false, Some(700 * MS)),
        (with(Quiesce::Off), false, None),
    ] {
        let mut world = world();
        (world.fake.knobs.cqt, world.fake.knobs.tbkas) = (250, tbkas);
        let id = world.live(config);
        world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
        submit(&mut world, id, io(WRITE, 1, 8, 1));
        run_for(&mut world, MS);
        world.fake.knobs.hook = Box::new(|_| Hook::Serve);
        // Nobody says that the target notices.
        world.host.reset(world.now, id);
        let since = world.now;
        assert_eq!(timer(&world, id, "quiesce"), expected.map(|wait| since + wait));
        let ended = run_for(&mut world, 15 * S);
        let [(at, ref done)] = ended[..] else { panic!("{ended:?}") };
        assert!(done.status.is_success());
        let waited = at - since;
        let least = expected.unwrap_or_default();
        assert!(waited >= least && waited < least + 100 * MS, "{waited:?} of {least:?}");
    }
}

#[test]
fn a_kato_that_the_controller_may_have_taken_counts() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.silent_admin = Some(0x09);
    let set = CtrlConfig { kato: 8 * S, ..config() };
    world.host.set(world.now, id, &set).unwrap();
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    submit(&mut world, id, io(WRITE, 1, 0, 1));
    run_for(&mut world, MS);
    world.host.reset(world.now, id);
    assert_eq!(timer(&world, id, "quiesce"), Some(world.now + 16 * S));
}

#[test]
fn without_keep_alive_no_bound_is_known_and_the_write_fails() {
    let (mut world, id, since) =
        fell_silent_by_reset(CtrlConfig { kato: Duration::ZERO, ..config() });
    let ended = run_for(&mut world, 19 * S);
    assert_eq!(tags(&ended), [2]);
    assert_eq!(timer(&world, id, "quiesce"), None);
    assert_eq!(timer(&world, id, "fast-io-fail"), Some(since + 20 * S));
    submit(&mut world, id, io(WRITE, 4, 8, 1));
    let ended = run_for(&mut world, 2 * S);
    assert_eq!(tags(&ended), [1, 3, 4]);
    for (at, done) in ended {
        assert_eq!((at, done.status), (since + 20 * S, Status::HOST_PATHING_ERROR));
    }
    submit(&mut world, id, io(WRITE, 5, 8, 1));
    assert!(run_for(&mut world, MS)[0].1.status.is_success());
}

/// As [`fell_silent`], but the host drops the path.
fn fell_silent_by_reset(config: CtrlConfig) -> (World, CtrlId, Instant) {
    let mut world = world();
    let id = world.live(config);
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    submit(&mut world, id, io(WRITE, 1, 8, 2));
    submit(&mut world, id, io(IoOp::Read, 2, 8, 1));
    submit(&mut world, id, io(IoOp::Flush, 3, 0, 0));
    run_for(&mut world, MS);
    world.fake.knobs.hook = Box::new(|_| Hook::Serve);
    world.host.reset(world.now, id);
    let since = world.now;
    (world, id, since)
}

#[test]
fn an_outage_fails_io_when_it_lasts_and_at_once_from_then_on() {
    let mut world = world();
    let id = world.live(config());
    darken(&mut world);
    submit(&mut world, id, io(WRITE, 1, 0, 1));
    assert!(matches!(world.event(), HostEvent::Disconnected { .. }));
    let since = world.now;
    // As much as the queue holds: 127.
    for tag in 2..=127 {
        submit(&mut world, id, io(IoOp::Read, tag, tag, 1));
    }
    let refused = world.host.submit(world.now, id, 0, io(IoOp::Read, 128, 0, 1));
    assert_eq!(refused.unwrap_err().tag, 128);
    assert_eq!(world.host.status(id).waiting, 127);
    assert!(run_for(&mut world, 20 * S - MS).is_empty());
    let ended = run_for(&mut world, MS);
    assert_eq!(tags(&ended), (1..=127).collect::<Vec<_>>());
    for (at, done) in &ended {
        assert_eq!((*at, done.status), (since + 20 * S, Status::HOST_PATHING_ERROR));
    }
    submit(&mut world, id, io(IoOp::Read, 200, 0, 1));
    let done = world.host.poll_io().unwrap();
    assert_eq!((done.tag, done.status), (200, Status::HOST_PATHING_ERROR));
    assert_eq!(timer(&world, id, "fast-io-fail"), None);
    lighten(&mut world);
    assert!(matches!(world.event(), HostEvent::Live { .. }));
    submit(&mut world, id, io(IoOp::Read, 201, 0, 1));
    assert!(run_for(&mut world, MS)[0].1.status.is_success());
}

#[test]
fn all_that_waits_ends_when_the_controller_is_over() {
    for way in ["disconnected", "lost", "live"] {
        let mut world = world();
        let id = world.live(config());
        world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
        submit(&mut world, id, io(WRITE, 1, 0, 1));
        run_for(&mut world, MS);
        world.fake.knobs.hook = Box::new(|_| Hook::Serve);
        if way == "lost" {
            world.fake.knobs.refuse = Some((Status::CONNECT_INVALID_HOST, 0));
        }
        world.host.reset(world.now, id);
        submit(&mut world, id, io(IoOp::Read, 2, 0, 1));
        if way == "live" {
            assert_eq!(tags(&run_for(&mut world, S)), [2]);
            submit(&mut world, id, io(WRITE, 3, 0, 1));
        }
        if way != "lost" {
            world.host.disconnect(world.now, id);
        }
        let ended = run_for(&mut world, 100 * MS);
        let expected = if way == "live" { [1, 3] } else { [1, 2] };
        assert_eq!(tags(&ended), expected, "{way}");
        assert!(ended.iter().all(|(_, done)| done.status == Status::HOST_PATHING_ERROR));
        assert!(world.host.submit(world.now, id, 0, io(IoOp::Read, 9, 0, 1)).is_err());
        assert_eq!(world.host.status(id).waiting, 0);
        assert!(run_for(&mut world, 60 * S).is_empty());
    }
}

#[test]
fn without_reconnect_nothing_waits() {
    let mut world = world();
    let id = world.live(CtrlConfig { reconnect: None, ..config() });
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    submit(&mut world, id, io(WRITE, 1, 0, 1));
    run_for(&mut world, MS);
    world.fake.reset_all(world.now);
    let ended = run_for(&mut world, MS);
    assert_eq!((tags(&ended), ended[0].1.status), (vec![1], Status::HOST_PATHING_ERROR));
}

#[test]
fn an_io_that_ends_its_path_again_and_again_fails() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|sqe| match sqe.cdw10.get() {
        7 => Hook::Ignore,
        _ => Hook::Serve,
    });
    submit(&mut world, id, io(IoOp::Read, 1, 7, 1));
    let ended = run_for(&mut world, 200 * S);
    assert_eq!((tags(&ended), ended[0].1.status), (vec![1], Status::HOST_PATHING_ERROR));
    assert_eq!(world.host.status(id).reconnects, 3);
}

#[test]
fn a_status_of_the_target_is_passed_on() {
    let mut world = world();
    world.fake.knobs.aborts = true;
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|sqe| match sqe.cdw10.get() {
        7 => Hook::Ignore,
        _ => Hook::Fail(Status::INTERNAL_ERROR),
    });
    submit(&mut world, id, io(IoOp::Read, 1, 7, 1));
    submit(&mut world, id, io(IoOp::Read, 2, 8, 1));
    let ended = run_for(&mut world, 40 * S);
    assert_eq!(tags(&ended), [2, 1]);
    assert_eq!(ended[0].1.status, Status::INTERNAL_ERROR);
    assert_eq!(ended[1].1.status, Status::ABORT_REQUESTED);
    assert_eq!(world.host.figures().attempts, 1);
}

#[test]
fn a_namespace_that_is_another_one_gets_nothing_of_what_waited() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    submit(&mut world, id, io(WRITE, 1, 0, 1));
    submit(&mut world, id, io(IoOp::Flush, 2, 0, 0));
    run_for(&mut world, MS);
    world.fake.knobs.hook = Box::new(|_| Hook::Serve);
    world.fake.knobs.nguid = 0x11;
    world.fake.reset_all(world.now);
    let ended = run_for(&mut world, S);
    assert_eq!(tags(&ended), [1, 2]);
    assert!(ended.iter().all(|(_, done)| done.status.is(Status::INVALID_NAMESPACE)));
    assert!(world.fake.executed.is_empty());
}

#[test]
fn fewer_queues_than_before_take_what_waits() {
    let mut world = world();
    let id = world.live(CtrlConfig { io_queues: 3, queue_size: 8, ..config() });
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    for tag in 0..21 {
        world.host.submit(world.now, id, tag as usize % 3, io(IoOp::Read, tag, tag, 1)).unwrap();
    }
    run_for(&mut world, MS);
    world.fake.knobs.hook = Box::new(|_| Hook::Late(MS));
    world.fake.knobs.queues = 1;
    world.fake.reset_all(world.now);
    let ended = run_for(&mut world, S);
    assert_eq!(world.host.controller(id).io_queues, 1);
    assert_eq!(ended.len(), 21);
    for (_, done) in &ended {
        assert!(done.status.is_success());
        assert_eq!(done.qpair, done.tag as usize % 3);
    }
    assert!(world.host.submit(world.now, id, 1, io(IoOp::Read, 99, 0, 1)).is_err());
}

#[test]
fn an_io_of_several_commands_is_issued_again_whole() {
    let mut world = world();
    let id = world.live(config());
    let mut count = 0;
    world.fake.knobs.hook = Box::new(move |_| {
        count += 1;
        if count == 2 { Hook::Ignore } else { Hook::Serve }
    });
    submit(&mut world, id, io(WRITE, 7, 100, 600)); // MDTS is 256 blocks
    assert!(run_for(&mut world, MS).is_empty());
    submit(&mut world, id, io(WRITE, 8, 0, 600));
    assert_eq!(tags(&run_for(&mut world, MS)), [8]);
    world.fake.reset_all(world.now);
    let ended = run_for(&mut world, S);
    assert_eq!((tags(&ended), ended[0].1.status), (vec![7], Status::SUCCESS));
    let at = |block: usize| world.fake.storage[block * BLOCK];
    assert!((0..100).all(|block| at(block) == 8) && (100..700).all(|block| at(block) == 7));
}

#[test]
fn a_failure_of_a_part_is_the_end_of_the_whole_also_when_the_path_is_lost() {
    let mut world = world();
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|sqe| match sqe.cdw10.get() {
        0 => Hook::Fail(Status::INTERNAL_ERROR),
        _ => Hook::Ignore,
    });
    submit(&mut world, id, io(IoOp::Read, 7, 0, 600));
    assert!(run_for(&mut world, MS).is_empty());
    world.fake.reset_all(world.now);
    let ended = run_for(&mut world, S);
    let [(_, ref done)] = ended[..] else { panic!("{ended:?}") };
    assert_eq!(done.status, Status::INTERNAL_ERROR);
}

/// One write or read, as the caller sees it.
#[derive(Debug)]
struct Op {
    write: bool,
    lba: u64,
    blocks: u64,
    submitted: Instant,
    /// When it ended, and whether well.
    ended: Option<(Instant, bool)>,
    /// The marks that a read found, by block.
    found: Vec<u64>,
}

impl Op {
    fn blocks(&self) -> Range<u64> {
        self.lba..self.lba + self.blocks
    }
}

fn overlap(a: &Executed, b: &Executed) -> bool {
    a.lba < b.lba + b.blocks && b.lba < a.lba + a.blocks
}

/// A caller over a target that executes late, on paths that get lost at any time.
struct Storm {
    world: World,
    rng: Rng,
    id: CtrlId,
    ops: BTreeMap<u64, Op>,
    light_at: Option<Instant>,
    /// When a path was lost that fell silent, and its association.
    silent: Vec<(Instant, u32)>,
}

impl Storm {
    const KATO: Duration = S;
    const CQT: Duration = Duration::from_millis(100);
    const BLOCKS: u64 = 6;

    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut world = World::new(seed, PipeOptions { cut_max: 700, ..PipeOptions::default() });
        world.fake.knobs.cqt = Self::CQT.as_millis() as u16;
        let requeue = Some(Requeue { fast_io_fail: 4 * S, quiesce: Quiesce::Auto });
        let timeouts = Timeouts { io: 6 * S, ..Timeouts::default() };
        let config = CtrlConfig { kato: Self::KATO, io_queues: 2, requeue, timeouts, ..config() };
        let id = world.live(CtrlConfig { queue_size: 8, ..config });
        let mut late = Rng::new(rng.bits());
        // The target has stopped by KATO and CQT after it heard from us.
        let bound = 2 * Self::KATO + Self::CQT - MS;
        world.fake.knobs.hook = Box::new(move |_| match late.below(100) {
            0 => Hook::Ignore,
            1..40 => Hook::Late(late.duration(bound)),
            _ => Hook::Serve,
        });
        Self { world, rng, id, ops: BTreeMap::new(), light_at: None, silent: Vec::new() }
    }

    fn submit(&mut self) {
        let tag = self.ops.len() as u64 + 1;
        let (write, lba) = (self.rng.chance(0.6), self.rng.below(Self::BLOCKS));
        let op = if write { WRITE } else { IoOp::Read };
        let blocks = 1 + self.rng.below(3);
        let (now, qpair) = (self.world.now, self.rng.below(2) as usize);
        if self.world.host.submit(now, self.id, qpair, io(op, tag, lba, blocks as u32)).is_ok() {
            let (submitted, ended, found) = (now, None, Vec::new());
            self.ops.insert(tag, Op { write, lba, blocks, submitted, ended, found });
        }
    }

    fn disturb(&mut self) {
        let now = self.world.now;
        match self.rng.below(100) {
            _ if self.light_at.is_some() => {}
            0 => self.world.fake.end_association(now),
            1 => {
                if self.world.host.status(self.id).state == CtrlState::Live {
                    self.silent.push((now, self.world.fake.associations));
                }
                self.world.host.reset(now, self.id);
            }
            2 => {
                darken(&mut self.world);
                self.light_at = Some(now + self.rng.duration(6 * S));
            }
            _ => {}
        }
    }

    fn turn(&mut self, until: Instant) {
        let world = &mut self.world;
        if self.light_at.is_some_and(|at| at <= world.now) {
            self.light_at = None;
            if world.host.status(self.id).state == CtrlState::Live {
                world.fake.pipe.options_mut().dark.clear(); // only late
            } else {
                lighten(world);
            }
        }
        world.turn();
        for event in world.events.drain(..) {
            if let HostEvent::Disconnected { failure, .. } = event
                && ending(&failure) == Ending::Silent
            {
                self.silent.push((world.now, world.fake.associations));
            }
        }
        while let Some(done) = world.host.poll_io() {
            let op = self.ops.get_mut(&done.tag).expect("it was accepted");
            assert!(op.ended.is_none(), "I/O {} ended twice", done.tag);
            let ok = done.status.is_success();
            assert!(ok || done.status == Status::HOST_PATHING_ERROR, "{}", done.status);
            op.ended = Some((world.now, ok));
            let buf = done.buf.unwrap();
            let marks = buf.chunks(BLOCK).map(|block| block[..8].try_into().unwrap());
            op.found = marks.map(u64::from_le_bytes).collect();
        }
        let next = world.next().unwrap_or(until);
        world.now = next.min(self.light_at.unwrap_or(until)).clamp(world.now, until);
    }

    /// Runs to the end: how many I/Os, how many failed, and how many writes more than one association
    /// executed.
    fn run(mut self) -> [usize; 3] {
        let end = self.world.now + 60 * S;
        while self.world.now < end {
            let until = self.world.now + self.rng.duration(20 * MS);
            if self.rng.chance(0.7) {
                self.submit();
            }
            self.disturb();
            while self.world.now < until {
                self.turn(until);
            }
        }
        let end = self.world.now + 40 * S;
        while self.world.now < end {
            self.turn(end);
        }
        self.check();
        let failed = self.ops.values().filter(|op| op.ended.is_some_and(|(_, ok)| !ok)).count();
        let mut by = BTreeMap::<u64, BTreeSet<u32>>::new();
        for executed in &self.world.fake.executed {
            by.entry(executed.mark).or_default().insert(executed.association);
        }
        [self.ops.len(), failed, by.values().filter(|by| by.len() > 1).count()]
    }

    /// While a write of a path that fell silent may be executed by it, no write that was submitted
    /// since is executed there.
    fn check_overlaps(&self, lost_at: Instant, association: u32) {
        let quiet_at = lost_at + 2 * Self::KATO + Self::CQT;
        let executed = &self.world.fake.executed;
        for old in executed.iter().filter(|old| old.association == association) {
            let Some((ended, _)) = self.ops[&old.mark].ended.filter(|(at, _)| *at > lost_at) else {
                continue;
            };
            let overtaken = executed.iter().find(|new| {
                let since = self.ops[&new.mark].submitted > lost_at;
                since && overlap(new, old) && new.at < quiet_at.min(ended)
            });
            assert!(overtaken.is_none(), "{overtaken:?} is executed before {old:?} ended");
        }
    }

    fn check(&self) {
        for (tag, op) in &self.ops {
            assert!(op.ended.is_some(), "I/O {tag} never ended: {op:?}");
        }
        let acked = |mark: u64| match self.ops.get(&mark)?.ended? {
            (at, true) => Some(at),
            (_, false) => None,
        };
        for executed in &self.world.fake.executed {
            assert_eq!(executed.lba, self.ops[&executed.mark].lba);
            let late = acked(executed.mark).is_some_and(|at| at < executed.at);
            assert!(!late, "executed after it was acknowledged: {executed:?}");
        }
        for &(lost_at, association) in &self.silent {
            self.check_overlaps(lost_at, association);
        }
        // No read finds what was overwritten, as far as the caller can know.
        for (tag, read) in self.ops.iter().filter(|(_, op)| !op.write) {
            let Some((_, true)) = read.ended else { continue };
            for (block, &found) in read.blocks().zip(&read.found) {
                let gone = if found == 0 { Some(Instant::ZERO) } else { acked(found) };
                let Some(gone) = gone else { continue };
                let newer = self.ops.iter().find(|(_, op)| {
                    let in_between = |at| op.submitted > gone && at < read.submitted;
                    let is_newer = matches!(op.ended, Some((at, true)) if in_between(at));
                    op.write && op.blocks().contains(&block) && is_newer
                });
                assert!(newer.is_none(), "read {tag} {read:?} missed {newer:?}");
            }
        }
    }
}

#[test]
fn whatever_befalls_the_path_io_ends_once_and_nothing_old_overwrites_what_is_acknowledged() {
    let mut sum = [0; 3];
    for seed in 0..40 {
        let of_seed = Storm::new(seed).run();
        sum.iter_mut().zip(of_seed).for_each(|(sum, of_seed)| *sum += of_seed);
    }
    let [all, failed, twice] = sum;
    assert!(all > 10_000 && failed > 0 && failed < all / 2 && twice > 100, "{sum:?}");
}
