//! Writes that a device executes long after their path was lost, between our host and our target
//! in virtual time: the host issues them again, and what they wrote late overwrites nothing.

#![allow(clippy::unwrap_used)] // a test, helpers included

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use moorline_nvme::bdev::{Bdev, Done, Op, Request};
use moorline_nvme::host::{
    CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Io, IoOp, Quiesce, Reconnect,
    Requeue,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Fault, FaultScope, Subsystem, Target, TargetConfig};
use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;

const NQN: &str = "nqn.2026-01.io.moorline:late";
const ADDR: &str = "10.0.0.2:4420";
const BLOCK: usize = 512;
const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// What the disk and the test share: while `stuck`, what is submitted is kept.
#[derive(Debug, Default)]
struct Shared {
    stuck: bool,
    kept: Vec<Request>,
    /// To be executed with the next poll.
    due: VecDeque<Request>,
    bytes: Vec<u8>,
}

/// A disk that executes late what it was given while it was stuck, and at once what came after.
#[derive(Debug)]
struct Late(Rc<RefCell<Shared>>);

impl Bdev for Late {
    fn block_size(&self) -> u32 {
        BLOCK as u32
    }

    fn blocks(&self) -> u64 {
        64
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let mut shared = self.0.borrow_mut();
        if shared.stuck {
            shared.kept.push(request);
        } else {
            shared.due.push_back(request);
        }
        Ok(())
    }

    fn poll(&mut self, done: &mut dyn FnMut(Done)) {
        let mut shared = self.0.borrow_mut();
        while let Some(Request { tag, op, lba, blocks, mut buf }) = shared.due.pop_front() {
            let at = lba as usize * BLOCK;
            let range = at..at + blocks as usize * BLOCK;
            match (op, &mut buf) {
                (Op::Read, Some(buf)) => buf[..range.len()].copy_from_slice(&shared.bytes[range]),
                (Op::Write { .. }, Some(buf)) => {
                    shared.bytes[range.clone()].copy_from_slice(&buf[..range.len()]);
                }
                _ => {}
            }
            done(Done { tag, status: Status::SUCCESS, buf });
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct World {
    now: Instant,
    host: Host<Pipe>,
    target: Target<Pipe>,
    disk: Rc<RefCell<Shared>>,
    bufs: Vec<IoBuf>,
    events: Vec<HostEvent>,
    lost: u64,
    tag: u64,
    /// When the disk executes what it has kept.
    release_at: Option<Instant>,
}

impl World {
    fn new() -> Self {
        let mut arena = Arena::new(1 << 20);
        let (near, far) = Pipe::pair(1, PipeOptions::default());
        let now = Instant::from_nanos(1_000_000_000);
        let hostnqn = "nqn.2026-01.io.moorline:h".to_owned();
        let host =
            Host::new(near, HostIdentity { hostnqn, hostid: [7; 16] }, HostLimits::default());
        let mut target = Target::new(far, TargetConfig::default());
        let disk =
            Rc::new(RefCell::new(Shared { bytes: vec![0; 64 * BLOCK], ..Default::default() }));
        let mut subsystem = Subsystem::new(NQN);
        subsystem.add_namespace(1, Box::new(Late(disk.clone()))).unwrap();
        target.add_subsystem(subsystem).unwrap();
        target.listen(now, addr()).unwrap();
        let bufs = (0..16).map(|_| arena.take(BLOCK).unwrap()).collect();
        Self {
            now,
            host,
            target,
            disk,
            bufs,
            events: Vec::new(),
            lost: 0,
            tag: 0,
            release_at: None,
        }
    }

    fn connect(&mut self) -> CtrlId {
        let config = CtrlConfig {
            io_queues: 2,
            queue_size: 32,
            kato: 2 * S,
            reconnect: Some(Reconnect { delay_max: 500 * MS, ..Reconnect::default() }),
            requeue: Some(Requeue { fast_io_fail: 60 * S, quiesce: Quiesce::Auto }),
            ..CtrlConfig::new(addr(), NQN)
        };
        let ctrl = self.host.connect(self.now, config).unwrap();
        self.until_live();
        ctrl
    }

    fn turn(&mut self) {
        if self.release_at.is_some_and(|at| at <= self.now) {
            self.release_at = None;
            let mut disk = self.disk.borrow_mut();
            let kept = std::mem::take(&mut disk.kept);
            disk.due.extend(kept);
        }
        self.host.turn(self.now);
        while let Some(event) = self.host.poll_event() {
            self.lost += u64::from(matches!(event, HostEvent::Disconnected { .. }));
            self.events.push(event);
        }
        self.host.flush(self.now);
        self.target.turn(self.now);
        self.target.flush(self.now);
        // A device without a descriptor is polled for ever: in steps of a tenth of a ms at least.
        let next = earliest(self.host.poll_timeout(), self.target.poll_timeout());
        let (soonest, latest) = (self.now + MS / 10, self.now + MS);
        self.now = next.unwrap_or(latest).clamp(soonest, latest);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.turn();
        }
    }

    /// Runs until a controller is live; how long it took.
    fn until_live(&mut self) -> Duration {
        let start = self.now;
        while !self.events.drain(..).any(|event| matches!(event, HostEvent::Live { .. })) {
            assert!(self.now < start + 30 * S, "not live for half a minute");
            self.turn();
        }
        self.now.since(start)
    }

    fn submit(&mut self, ctrl: CtrlId, op: IoOp, queue: usize, lba: u64, value: u8) -> u64 {
        let mut buf = self.bufs.pop().unwrap();
        buf.fill(value);
        self.tag += 1;
        let buf = Some(buf);
        let io = Io { tag: self.tag, op, nsid: 1, lba, blocks: 1, buf, buf_offset: 0 };
        self.host.submit(self.now, ctrl, queue, io).unwrap();
        self.tag
    }

    /// The next I/O that ends well: its tag and first byte.
    fn done(&mut self) -> (u64, u8) {
        let end = self.now + 30 * S;
        loop {
            if let Some(done) = self.host.poll_io() {
                assert_eq!(done.status, Status::SUCCESS);
                let buf = done.buf.unwrap();
                let first = buf[0];
                self.bufs.push(buf);
                return (done.tag, first);
            }
            assert!(self.now < end, "no I/O ended in half a minute");
            self.turn();
        }
    }

    fn write(&mut self, ctrl: CtrlId, lba: u64, value: u8) {
        let tag = self.submit(ctrl, WRITE, 0, lba, value);
        assert_eq!(self.done().0, tag);
    }

    fn read(&mut self, ctrl: CtrlId, lba: u64) -> u8 {
        let tag = self.submit(ctrl, IoOp::Read, 0, lba, 0xEE);
        let (done, value) = self.done();
        assert_eq!(done, tag);
        value
    }

    /// The disk keeps what it is given.
    fn stick(&mut self, stuck: bool) {
        self.disk.borrow_mut().stuck = stuck;
    }

    fn kept(&self) -> usize {
        self.disk.borrow().kept.len()
    }

    fn reset(&mut self, share: f64) {
        let scope = FaultScope { share, ..FaultScope::default() };
        assert!(self.target.add_fault(self.now, 1, Fault::Reset, scope).unwrap() > 0);
    }
}

const WRITE: IoOp = IoOp::Write { fua: false };

fn addr() -> SocketAddr {
    ADDR.parse().unwrap()
}

/// A write that the disk keeps, of a controller whose path the target then ends.
fn lost_write(world: &mut World) -> (CtrlId, u64) {
    let ctrl = world.connect();
    world.stick(true);
    let tag = world.submit(ctrl, WRITE, 1, 5, 1);
    world.run(5 * MS);
    assert_eq!(world.kept(), 1);
    world.stick(false);
    world.reset(1.0);
    (ctrl, tag)
}

#[test]
fn a_write_of_an_ended_association_overwrites_nothing_that_came_after_it() {
    let mut world = World::new();
    let (ctrl, tag) = lost_write(&mut world);
    let release_at = world.now + 400 * MS;
    world.release_at = Some(release_at);
    assert_eq!(world.done().0, tag, "issued again");
    let after = world.now;
    world.write(ctrl, 5, 2);
    world.run(S);
    assert_eq!((world.read(ctrl, 5), world.lost), (2, 1));
    // As soon as that is safe: Connect waited for it.
    assert!((release_at..release_at + 5 * MS).contains(&after));
}

#[test]
fn a_device_that_hangs_keeps_its_host_away_until_it_goes_on_and_no_longer() {
    let mut world = World::new();
    let (ctrl, tag) = lost_write(&mut world);
    world.run(10 * S);
    let attempts = world.target.stats().connects_held;
    assert!((4..20).contains(&attempts), "refused, and tried again: {attempts}");
    assert_eq!((world.target.stats().stale_writes, world.host.status(ctrl).waiting), (1, 1));
    world.release_at = Some(world.now);
    // A back-off at most, and nearly all of the time there is a Connect that waits.
    assert!(world.until_live() < 600 * MS);
    assert_eq!((world.done().0, world.target.stats().stale_writes), (tag, 0));
    world.write(ctrl, 5, 2);
    assert_eq!((world.read(ctrl, 5), world.lost), (2, 1));
}

#[test]
fn a_read_that_a_device_never_ends_keeps_nobody_away() {
    let mut world = World::new();
    let ctrl = world.connect();
    world.stick(true);
    let tag = world.submit(ctrl, IoOp::Read, 1, 5, 0xEE);
    world.run(5 * MS);
    world.stick(false);
    world.reset(1.0);
    assert!(world.until_live() < 100 * MS);
    assert_eq!((world.done(), world.kept()), ((tag, 0), 1));
    assert_eq!(world.target.stats().connects_held, 0);
}

#[test]
fn a_connection_that_the_target_resets_ends_the_writes_of_the_others_with_it() {
    let mut ended = 0;
    for seed in 0..20 {
        let mut world = World::new();
        let ctrl = world.connect();
        world.stick(true);
        let tag = world.submit(ctrl, WRITE, 0, 5, 1);
        world.run(5 * MS);
        world.stick(false);
        let scope = FaultScope { share: 0.3, seed, ..FaultScope::default() };
        let met = world.target.add_fault(world.now, 1, Fault::Reset, scope).unwrap();
        // Nothing that the host sends ends the others: they are over already.
        assert!(met == 0 || met == 3, "{met} of three connections");
        ended += met;
        world.release_at = Some(world.now + 200 * MS);
        assert_eq!(world.done().0, tag);
        world.write(ctrl, 5, 2);
        world.run(300 * MS);
        assert_eq!(world.read(ctrl, 5), 2);
    }
    assert!(ended >= 15);
}

#[test]
fn a_live_controller_with_writes_under_way_keeps_no_other_of_its_host_away() {
    let mut world = World::new();
    let first = world.connect();
    world.stick(true);
    let tag = world.submit(first, WRITE, 0, 5, 1);
    world.run(5 * MS);
    world.stick(false);
    let start = world.now;
    let second = world.connect();
    assert!(world.now < start + 50 * MS);
    world.write(second, 6, 2);
    world.release_at = Some(world.now);
    assert_eq!(world.done().0, tag);
    assert_eq!(world.target.stats().connects_held, 0);
}
