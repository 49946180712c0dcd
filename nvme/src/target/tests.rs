//! A host and a target over a pipe, in virtual time.

use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;

use super::{Subsystem, Target, TargetConfig};
use crate::bdev::Ram;
use crate::host::{
    AdminCommand, AdminDone, CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Io,
    IoDone, IoOp,
};
use crate::spec::Status;

pub(super) const NQN: &str = "nqn.2026-01.io.moorline:test";
pub(super) const ADDR: &str = "10.0.0.2:4420";

/// Both ends, and their clock.
pub(super) struct Pair {
    pub now: Instant,
    pub host: Host<Pipe>,
    pub target: Target<Pipe>,
    arena: Arena,
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Pair {
    pub fn new(seed: u64, pipe: PipeOptions, config: TargetConfig) -> Self {
        let (near, far) = Pipe::pair(seed, pipe);
        let identity =
            HostIdentity { hostnqn: "nqn.2026-01.io.moorline:host".into(), hostid: [7; 16] };
        let host = Host::new(near, identity, HostLimits::default());
        let mut target = Target::new(far, config);
        let mut subsystem = Subsystem::new(NQN);
        subsystem.add_namespace(1, Box::new(Ram::new(512, 1 << 16))).unwrap();
        subsystem.add_namespace(3, Box::new(Ram::new(4096, 1 << 12))).unwrap();
        target.add_subsystem(subsystem).unwrap();
        target.listen(Instant::ZERO, ADDR.parse().unwrap()).unwrap();
        Self { now: Instant::ZERO, host, target, arena: Arena::new(64 << 20) }
    }

    /// A turn of each, then on to whatever is due next, but no later than `until`.
    pub fn step(&mut self, until: Instant) {
        self.host.turn(self.now);
        self.host.flush(self.now);
        self.target.turn(self.now);
        self.target.flush(self.now);
        let next = earliest(self.host.poll_timeout(), self.target.poll_timeout());
        let next = next.unwrap_or(until).min(until);
        self.now = next.max(self.now + Duration::from_nanos(100));
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step(until);
        }
    }

    pub fn run_until<R>(&mut self, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        let limit = self.now + ms(60_000);
        for _ in 0..2_000_000 {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(self.now < limit, "nothing came of it in a minute");
            self.step(limit);
        }
        panic!("too many turns");
    }

    pub fn connect(&mut self, config: CtrlConfig) -> CtrlId {
        let ctrl = self.host.connect(self.now, config).unwrap();
        self.run_until(|pair| match pair.host.poll_event()? {
            HostEvent::Live { .. } => Some(()),
            event => panic!("{event:?}"),
        });
        ctrl
    }

    pub fn io(&mut self, ctrl: CtrlId, io: Io) -> IoDone {
        self.host.submit(self.now, ctrl, 0, io).unwrap();
        self.run_until(|pair| pair.host.poll_io())
    }

    pub fn admin(&mut self, ctrl: CtrlId, command: AdminCommand) -> AdminDone {
        self.host.admin(self.now, ctrl, 1, command).unwrap();
        self.run_until(|pair| pair.host.poll_admin())
    }

    pub fn buf(&mut self, len: usize, fill: u8) -> IoBuf {
        let mut buf = self.arena.take(len).unwrap();
        buf.fill(fill);
        buf
    }
}

pub(super) fn config() -> CtrlConfig {
    CtrlConfig::new(ADDR.parse().unwrap(), NQN)
}

pub(super) fn io(op: IoOp, nsid: u32, lba: u64, blocks: u32, buf: Option<IoBuf>) -> Io {
    Io { tag: 1, op, nsid, lba, blocks, buf, buf_offset: 0 }
}

/// Writes, reads back, and looks at what is beside it.
fn write_and_read(pair: &mut Pair, ctrl: CtrlId, nsid: u32, lba: u64, blocks: u32, len: usize) {
    let mut buf = pair.buf(len, 0);
    for (at, byte) in buf.iter_mut().enumerate() {
        *byte = (at / 7 + at * 3) as u8 ^ len.ilog2() as u8;
    }
    let expected = buf.to_vec();
    let done = pair.io(ctrl, io(IoOp::Write { fua: false }, nsid, lba, blocks, Some(buf)));
    assert_eq!(done.status, Status::SUCCESS);
    let buf = pair.buf(len, 0xEE);
    let done = pair.io(ctrl, io(IoOp::Read, nsid, lba, blocks, Some(buf)));
    assert_eq!(done.status, Status::SUCCESS);
    assert!(done.buf.unwrap()[..len] == expected, "{len} bytes at {lba}");
}

#[test]
fn a_host_connects_writes_and_reads() {
    let mut pair = Pair::new(1, PipeOptions::default(), TargetConfig::default());
    let ctrl = pair.connect(config());
    let info = pair.host.controller(ctrl).clone();
    assert_eq!(info.namespaces.iter().map(|ns| ns.nsid).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(info.kato, ms(5000));
    for blocks in [1, 8, 16, 17, 256, 2048] {
        write_and_read(&mut pair, ctrl, 1, 5, blocks, blocks as usize * 512);
    }
    write_and_read(&mut pair, ctrl, 3, 100, 1, 4096);
    assert!(pair.target.core.pool.is_whole());
}

#[test]
fn streams_cut_anywhere_and_digests_change_nothing() {
    for seed in 0..8 {
        let pipe = PipeOptions { cut_max: 1 + seed as usize * 97, ..PipeOptions::default() };
        let mut pair = Pair::new(seed, pipe, TargetConfig::default());
        let (hdgst, ddgst) = (seed & 1 != 0, seed & 2 != 0);
        let sq_flow_control = seed & 4 != 0;
        let ctrl = pair.connect(CtrlConfig { hdgst, ddgst, sq_flow_control, ..config() });
        for blocks in [1, 9, 64] {
            write_and_read(&mut pair, ctrl, 1, 0, blocks, blocks as usize * 512);
        }
        assert!(pair.target.core.pool.is_whole());
        assert_eq!(pair.target.stats().fatal, 0);
    }
}

#[test]
fn reads_and_writes_of_many_at_once_keep_their_data_apart() {
    let pipe = PipeOptions { cut_max: 5000, ..PipeOptions::default() };
    // Few buffers, so that most commands wait for one.
    let config = TargetConfig {
        in_capsule_buffers: 2,
        small_buffers: 2,
        medium_buffers: 2,
        large_buffers: 1,
        ..TargetConfig::default()
    };
    let mut pair = Pair::new(9, pipe, config);
    let ctrl = pair.connect(self::config());
    let lens = [1u32, 8, 40, 300];
    for op in [IoOp::Write { fua: false }, IoOp::Read] {
        for tag in 0..64u64 {
            let blocks = lens[tag as usize % 4];
            let fill = if op == IoOp::Read { 0 } else { tag as u8 + 1 };
            let buf = Some(pair.buf(blocks as usize * 512, fill));
            let io = Io { tag, op, nsid: 1, lba: tag * 512, blocks, buf, buf_offset: 0 };
            pair.host.submit(pair.now, ctrl, 0, io).unwrap();
        }
        let mut left = 64;
        pair.run_until(|pair| {
            while let Some(done) = pair.host.poll_io() {
                assert_eq!(done.status, Status::SUCCESS);
                assert!(done.buf.unwrap().iter().all(|&byte| byte == done.tag as u8 + 1));
                left -= 1;
            }
            (left == 0).then_some(())
        });
    }
    assert!(pair.target.stats().buffer_waits > 0 && pair.target.core.pool.is_whole());
}

#[test]
fn zeroes_deallocation_flush_and_idle_keep_alives_work() {
    let mut pair = Pair::new(2, PipeOptions::default(), TargetConfig::default());
    let ctrl = pair.connect(config());
    write_and_read(&mut pair, ctrl, 1, 0, 16, 8192);
    for (op, blocks) in [(IoOp::WriteZeroes, 16), (IoOp::Deallocate, 16), (IoOp::Flush, 1)] {
        let done = pair.io(ctrl, io(op, 1, 0, blocks, None));
        assert_eq!(done.status, Status::SUCCESS, "{op:?}");
    }
    let buf = pair.buf(8192, 1);
    let done = pair.io(ctrl, io(IoOp::Read, 1, 0, 16, Some(buf)));
    assert!(done.buf.unwrap().iter().all(|&byte| byte == 0));
    pair.run_for(ms(30_000));
    assert_eq!(pair.target.stats().keep_alive_expired, 0);
    let done = pair.admin(ctrl, AdminCommand::log_page(2, 0, false, 0, 512));
    assert_eq!((done.status(), done.data[3]), (Status::SUCCESS, 100));
    pair.host.disconnect(pair.now, ctrl);
    pair.run_for(ms(3_000));
    let stats = pair.target.stats();
    assert_eq!((stats.conns, stats.controllers, stats.fatal), (0, 0, 0));
}

#[test]
fn a_target_that_ends_closes_its_connections_and_hosts_notice_at_once() {
    let mut pair = Pair::new(3, PipeOptions::default(), TargetConfig::default());
    let ctrl = pair.connect(config());
    write_and_read(&mut pair, ctrl, 1, 0, 16, 8192);
    pair.target.shutdown(pair.now);
    pair.run_for(ms(10));
    let Some(HostEvent::Failed { failure, .. }) = pair.host.poll_event() else {
        panic!("the host has not noticed")
    };
    assert!(failure.to_string().contains("the target closed the connection"), "{failure}");
    assert!(pair.target.is_shut());
    assert_eq!((pair.target.stats().conns, pair.target.transport().conns()), (0, 0));
    // A host that comes now is turned away.
    pair.host.connect(pair.now, config()).unwrap();
    pair.run_for(ms(10));
    assert_eq!(pair.target.transport().conns(), 0);
}

#[test]
fn a_host_that_does_not_close_is_cut_off_when_the_target_ends() {
    let mut pair = Pair::new(4, PipeOptions::default(), TargetConfig::default());
    pair.connect(config());
    pair.target.transport_mut().options_mut().blackhole = true;
    pair.target.shutdown(pair.now);
    pair.run_for(ms(199));
    assert!(!pair.target.is_shut());
    pair.run_for(ms(2));
    assert!(pair.target.is_shut());
}

#[test]
fn a_flood_of_commands_is_started_by_64_a_turn_and_others_are_served_beside_it() {
    let target = TargetConfig { mqes: 255, ..TargetConfig::default() };
    let mut pair = Pair::new(3, PipeOptions::default(), target);
    let ctrl = pair.connect(CtrlConfig { io_queues: 2, queue_size: 256, ..config() });
    pair.run_for(ms(1));
    for tag in 0..200 {
        let buf = Some(pair.buf(512, 0));
        let read = Io { tag, ..io(IoOp::Read, 1, tag, 1, buf) };
        pair.host.submit(pair.now, ctrl, 0, read).unwrap();
    }
    pair.host.submit(pair.now, ctrl, 1, io(IoOp::Flush, 1, 0, 1, None)).unwrap();
    pair.host.flush(pair.now);
    // All of it has arrived when the target's next turn begins.
    pair.now += PipeOptions::default().delay;
    let mut turns = Vec::new();
    while turns.iter().map(|&(reads, _)| reads).sum::<u64>() < 200 {
        assert!(turns.len() < 10, "{turns:?}");
        let before = pair.target.stats();
        pair.target.turn(pair.now);
        pair.target.flush(pair.now);
        let after = pair.target.stats();
        turns.push((after.reads - before.reads, after.other_ios - before.other_ios));
    }
    assert_eq!(turns, [(64, 1), (64, 0), (64, 0), (8, 0)]);
}

#[test]
fn a_connection_brings_512_kib_a_turn_at_most() {
    let mut target = TargetConfig {
        in_capsule_bytes: 64 << 10,
        in_capsule_buffers: 16,
        ..TargetConfig::default()
    };
    target.listen.conn.rx_buffer = 1 << 20;
    let mut pair = Pair::new(4, PipeOptions::default(), target);
    let mut config = config();
    config.conn.tx_buffer = 1 << 20;
    let ctrl = pair.connect(config);
    pair.run_for(ms(1));
    for tag in 0..12 {
        let buf = Some(pair.buf(64 << 10, 1));
        let write = Io { tag, ..io(IoOp::Write { fua: false }, 1, tag * 128, 128, buf) };
        pair.host.submit(pair.now, ctrl, 0, write).unwrap();
    }
    pair.host.flush(pair.now);
    pair.now += PipeOptions::default().delay;
    let mut turns = Vec::new();
    while turns.iter().sum::<u64>() < 12 {
        assert!(turns.len() < 10, "{turns:?}");
        let before = pair.target.stats().writes;
        pair.target.turn(pair.now);
        pair.target.flush(pair.now);
        turns.push(pair.target.stats().writes - before);
    }
    // The headers do not fit beside the eighth's data.
    assert_eq!(turns, [7, 5]);
}
