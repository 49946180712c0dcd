//! I/O that outlives its path, between our host and our target in virtual time: paths that are
//! reset, fall silent and come back at any time, and what is read is what was written last.

#![allow(clippy::unwrap_used)] // a test, helpers included

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{
    CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Io, IoDone, IoOp, Quiesce,
    Reconnect, Requeue,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::rng::Rng;
use moorline_stack::time::earliest;

const NQN: &str = "nqn.2026-01.io.moorline:requeue";
const BLOCK: usize = 512;
const BLOCKS: u64 = 48;
const QUEUES: u64 = 2;
const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// What is under way on a block: a read, or a write of this value.
#[derive(Clone, Copy, Debug)]
enum Op {
    Read,
    Write(u64),
}

/// A block: what is in it, and what is to be done with it next where that is known.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    value: u64,
    busy: bool,
    again: Option<u64>,
}

/// Host, target, the caller's view of the blocks, and a clock.
struct World {
    now: Instant,
    rng: Rng,
    host: Host<Pipe>,
    target: Target<Pipe>,
    ctrl: CtrlId,
    blocks: [Block; BLOCKS as usize],
    under_way: BTreeMap<u64, (u64, Op)>,
    bufs: Vec<IoBuf>,
    tag: u64,
    /// I/Os that ended well, and those that failed with their path.
    ended: u64,
    failed: u64,
    losses: u64,
    light_at: Option<Instant>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut arena = Arena::new(1 << 20);
        let (near, far) = Pipe::pair(seed, PipeOptions { cut_max: 400, ..PipeOptions::default() });
        let now = Instant::from_nanos(1_000_000_000);
        let hostnqn = "nqn.2026-01.io.moorline:h".to_owned();
        let identity = HostIdentity { hostnqn, hostid: [7; 16] };
        let mut host = Host::new(near, identity, HostLimits::default());
        let mut target = Target::new(far, TargetConfig::default());
        let mut subsystem = Subsystem::new(NQN);
        subsystem.add_namespace(1, Box::new(Ram::new(BLOCK as u32, BLOCKS))).unwrap();
        target.add_subsystem(subsystem).unwrap();
        let addr: SocketAddr = "10.0.0.2:4420".parse().unwrap();
        target.listen(now, addr).unwrap();
        let config = CtrlConfig {
            io_queues: QUEUES as u16,
            queue_size: 32,
            kato: S,
            reconnect: Some(Reconnect { delay_max: 500 * MS, ..Reconnect::default() }),
            requeue: Some(Requeue { fast_io_fail: 5 * S, quiesce: Quiesce::Auto }),
            ..CtrlConfig::new(addr, NQN)
        };
        let ctrl = host.connect(now, config).unwrap();
        Self {
            now,
            rng: Rng::new(seed),
            host,
            target,
            ctrl,
            blocks: [Block::default(); BLOCKS as usize],
            under_way: BTreeMap::new(),
            bufs: (0..BLOCKS).map(|_| arena.take(BLOCK).unwrap()).collect(),
            tag: 0,
            ended: 0,
            failed: 0,
            losses: 0,
            light_at: None,
        }
    }

    /// One I/O on a block on which none is under way: a write that failed again, or any.
    fn submit(&mut self, lba: u64, op: Op) {
        self.tag += 1;
        let value = if let Op::Write(value) = op { value } else { 0 };
        let mut buf = self.bufs.pop().expect("one for each block");
        buf.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
        let buf = Some(buf);
        let kind = match op {
            Op::Read => IoOp::Read,
            Op::Write(_) => IoOp::Write { fua: false },
        };
        let io = Io { tag: self.tag, op: kind, nsid: 1, lba, blocks: 1, buf, buf_offset: 0 };
        let qpair = self.rng.below(QUEUES) as usize;
        match self.host.submit(self.now, self.ctrl, qpair, io) {
            Ok(()) => {
                self.under_way.insert(self.tag, (lba, op));
                self.blocks[lba as usize].busy = true;
            }
            Err(io) => self.bufs.extend(io.buf),
        }
    }

    fn load(&mut self) {
        for lba in 0..BLOCKS {
            let block = self.blocks[lba as usize];
            if block.busy || !self.rng.chance(0.3) {
                continue;
            }
            let fresh = self.rng.chance(0.5).then_some(self.tag + 1);
            self.submit(lba, block.again.or(fresh).map_or(Op::Read, Op::Write));
        }
    }

    fn done(&mut self, done: IoDone) {
        let buf = done.buf.expect("a buffer comes back");
        let found = u64::from_le_bytes(buf[..8].try_into().unwrap());
        let whole = buf.chunks(8).all(|chunk| chunk == found.to_le_bytes());
        self.bufs.push(buf);
        let (lba, op) = self.under_way.remove(&done.tag).expect("each I/O ends once");
        let block = &mut self.blocks[lba as usize];
        block.busy = false;
        if done.status == Status::HOST_PATHING_ERROR {
            self.failed += 1;
            // It may be in the block or not, until it is repeated.
            if let Op::Write(value) = op {
                block.again = Some(value);
            }
            return;
        }
        assert_eq!(done.status, Status::SUCCESS);
        self.ended += 1;
        match op {
            Op::Write(value) => (block.value, block.again) = (value, None),
            Op::Read => {
                assert!(whole, "a torn block");
                assert_eq!(found, block.value, "block {lba}, I/O {}", done.tag);
            }
        }
    }

    fn disturb(&mut self) {
        let what = self.rng.below(12);
        let time = self.rng.duration(4 * S);
        let mut options = self.target.transport_mut().options_mut();
        options.reset = if what == 0 { 0.02 } else { 0.0 };
        if self.light_at.is_some_and(|at| at <= self.now) {
            self.light_at = None;
            options.blackhole = false;
        }
        if what == 1 && self.light_at.is_none() {
            self.light_at = Some(self.now + time);
            options.blackhole = true;
        }
        drop(options);
        if what == 2 {
            self.host.reset(self.now, self.ctrl);
        }
    }

    /// Runs for `time`.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.host.turn(self.now);
            while let Some(event) = self.host.poll_event() {
                self.losses += u64::from(matches!(event, HostEvent::Disconnected { .. }));
            }
            while let Some(done) = self.host.poll_io() {
                self.done(done);
            }
            self.host.flush(self.now);
            self.target.turn(self.now);
            self.target.flush(self.now);
            let next = earliest(self.host.poll_timeout(), self.target.poll_timeout());
            self.now = next.unwrap_or(end).clamp(self.now, end);
        }
    }
}

#[test]
fn what_is_read_is_what_was_written_last_whatever_befalls_the_path() {
    let (mut ended, mut failed, mut losses) = (0, 0, 0);
    for seed in 0..6 {
        let mut world = World::new(seed);
        for step in 0..3000 {
            world.load();
            world.run(20 * MS);
            if step % 5 == 0 {
                world.disturb();
            }
        }
        world.target.transport_mut().options_mut().blackhole = false;
        world.target.transport_mut().options_mut().reset = 0.0;
        world.run(30 * S);
        assert!(world.under_way.is_empty(), "never ended: {:?}", world.under_way);
        let status = world.host.status(world.ctrl);
        assert_eq!((status.waiting, status.quiescing), (0, 0));
        for lba in 0..BLOCKS {
            let again = world.blocks[lba as usize].again;
            world.submit(lba, again.map_or(Op::Read, Op::Write));
        }
        world.run(S);
        assert!(world.under_way.is_empty());
        ended += world.ended;
        failed += world.failed;
        losses += world.losses;
    }
    assert!(ended > 50_000 && failed < ended / 20 && losses > 100, "{ended} {failed} {losses}");
}
