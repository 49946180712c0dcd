//! A target in steady state allocates nothing: reads, in-capsule writes, writes with R2T.
//!
//! Alone in its process, since it counts what the process allocates.

use std::alloc::System;

use moorline_nvme::bdev::{File, FileOptions, Ram};
use moorline_nvme::host::{
    CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Io, IoDone, IoOp,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Fault, FaultScope, Hold, Subsystem, Target, TargetConfig};
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::Duration;
use moorline_stack::{Instant, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NQN: &str = "nqn.2026-01.io.moorline:test";

struct Pair {
    now: Instant,
    host: Host<Pipe>,
    target: Target<Pipe>,
    /// Allocations made in the target's turns.
    allocations: usize,
}

impl Pair {
    fn step(&mut self) {
        self.host.turn(self.now);
        self.host.flush(self.now);
        // The pipe is a simulation, and may allocate when it moves bytes: not counted.
        self.target.transport_mut().turn(self.now);
        let region = Region::new(GLOBAL);
        self.target.turn(self.now);
        self.allocations += region.change().allocations;
        self.target.flush(self.now);
        // In small steps: the file answers in real time, which the simulated one must not outrun.
        self.now += Duration::from_micros(2);
        std::thread::yield_now();
    }

    fn io(&mut self, ctrl: CtrlId, nsid: u32, op: IoOp, blocks: u32, buf: IoBuf) -> IoBuf {
        let io = Io { tag: 0, op, nsid, lba: 0, blocks, buf: Some(buf), buf_offset: 0 };
        self.host.submit(self.now, ctrl, 0, io).expect("the queue is empty");
        for _ in 0..10_000_000 {
            if let Some(IoDone { status, buf, .. }) = self.host.poll_io() {
                assert_eq!(status, Status::SUCCESS);
                return buf.expect("its buffer comes back");
            }
            self.step();
        }
        panic!("no completion: {op:?} of {blocks} on {nsid}");
    }
}

#[test]
fn nothing_is_allocated_per_io() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = Pipe::pair(1, PipeOptions::default());
    let mut target = Target::new(far, TargetConfig::default());
    let mut subsystem = Subsystem::new(NQN);
    subsystem.add_namespace(1, Box::new(Ram::new(4096, 1024))).unwrap();
    match File::create(&dir.path().join("disk"), 4 << 20, &FileOptions::default()) {
        Ok(file) => subsystem.add_namespace(2, Box::new(file)).unwrap(),
        Err(e) => {
            assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{e}");
            eprintln!("SKIPPED, in part: {e}");
        }
    }
    target.add_subsystem(subsystem).unwrap();
    let addr = "10.0.0.2:4420".parse().unwrap();
    target.listen(Instant::ZERO, addr).unwrap();
    let identity = HostIdentity { hostnqn: "nqn.2026-01.io.moorline:h".into(), hostid: [7; 16] };
    let host = Host::new(near, identity, HostLimits::default());
    let mut pair = Pair { now: Instant::ZERO, host, target, allocations: 0 };
    let config = CtrlConfig { ddgst: true, ..CtrlConfig::new(addr, NQN) };
    let ctrl = pair.host.connect(pair.now, config).unwrap();
    while !matches!(pair.host.poll_event(), Some(HostEvent::Live { .. })) {
        pair.step();
    }
    let namespaces: Vec<u32> =
        pair.host.controller(ctrl).namespaces.iter().map(|ns| ns.nsid).collect();
    let mut arena = Arena::new(1 << 20);
    let mut buf = arena.take(1 << 20).unwrap();
    for round in 0..20 {
        if round == 4 {
            pair.allocations = 0; // tables have their size by now
        }
        for &nsid in &namespaces {
            for blocks in [1, 2, 32, 256] {
                buf = pair.io(ctrl, nsid, IoOp::Write { fua: false }, blocks, buf);
                buf = pair.io(ctrl, nsid, IoOp::Read, blocks, buf);
            }
        }
    }
    assert_eq!(pair.allocations, 0);

    // Nor where there are faults, met by these commands or not.
    let late = Fault::Late(Duration::from_micros(4));
    let elsewhere = FaultScope { port: Some(1), ..FaultScope::default() };
    let faults = [(late, FaultScope::default()), (Fault::Hold(Hold::Io), elsewhere)];
    for (name, (fault, scope)) in (1..).zip(faults) {
        pair.target.add_fault(pair.now, name, fault, scope).unwrap();
    }
    for round in 0..8 {
        if round == 4 {
            pair.allocations = 0;
        }
        for blocks in [1, 256] {
            buf = pair.io(ctrl, 1, IoOp::Write { fua: false }, blocks, buf);
            buf = pair.io(ctrl, 1, IoOp::Read, blocks, buf);
        }
    }
    assert!(pair.target.fault_hits(1) >= 32);
    assert_eq!(pair.allocations, 0);
}
