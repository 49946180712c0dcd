//! The engine against a real target of ours over kernel sockets on loopback, without privileges:
//! counts, not times. The allocator counts for host and target together.
// A test fails by panicking, also in what the tests share.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use moorline::cli::PollMode;
use moorline::perf::engine::{self, Measured};
use moorline::perf::progress::Progress;
use moorline::perf::workload::{Rw, Workload};
use moorline::session::Session;
use moorline::signals::Stop;
use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{CtrlConfig, HostIdentity};
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::kernel::KernelSockets;
use moorline_stack::{Instant, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// One at a time: the allocator counts for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

const NQN: &str = "nqn.2026-11.io.moorline:test";
const BLOCKS: u64 = 4096;

/// Serves a RAM namespace of 16 MiB until told to end; tells where.
fn serve(stop: &Stop, tell: impl FnOnce(SocketAddr)) {
    let mut subsystem = Subsystem::new(NQN);
    subsystem.add_namespace(1, Box::new(Ram::new(4096, BLOCKS))).unwrap();
    let mut target = Target::new(KernelSockets::new(64).unwrap(), TargetConfig::default());
    target.add_subsystem(subsystem).unwrap();
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    target.listen(Instant::monotonic(), any).unwrap();
    let addr = target.transport().listening().next().unwrap();
    tell(addr);
    while !stop.requested() {
        let now = Instant::monotonic();
        target.turn(now);
        target.flush(now);
        target.wait(Some(now + Duration::from_millis(5)), &[]).unwrap();
    }
}

/// Ends the target, also when the test panics: the scope waits for it.
struct EndOfTest(Stop);

impl Drop for EndOfTest {
    fn drop(&mut self) {
        self.0.request();
    }
}

/// Runs workloads one after the other on one controller.
fn run(workloads: &[Workload], config: impl Fn(&mut CtrlConfig)) -> Vec<Measured> {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let stop = Stop::default();
    std::thread::scope(|scope| {
        let _end = EndOfTest(stop.clone());
        let (tx, rx) = std::sync::mpsc::channel();
        let ended = stop.clone();
        scope.spawn(move || serve(&ended, |addr| tx.send(addr).unwrap()));
        let mut ctrl = CtrlConfig::new(rx.recv().unwrap(), NQN);
        config(&mut ctrl);
        let identity = HostIdentity {
            hostnqn: "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555".into(),
            hostid: [7; 16],
        };
        let sockets = KernelSockets::new(64).unwrap();
        let mut session = Session::open(sockets, identity, ctrl, stop.clone()).unwrap();
        let measured = workloads.iter().map(|workload| one(&mut session, workload, &stop));
        let measured = measured.collect();
        session.close();
        measured
    })
}

fn one<T: Transport>(session: &mut Session<T>, workload: &Workload, stop: &Stop) -> Measured {
    let job = engine::Job {
        workload: workload.clone(),
        nsid: 1,
        poll: PollMode::Adaptive,
        target_pid: None,
    };
    let (host, ctrl) = session.parts();
    engine::run(host, ctrl, &job, stop, &mut Progress::Quiet).unwrap()
}

fn workload(rw: Rw, bs: u32, iodepth: u16) -> Workload {
    Workload {
        rw,
        bs,
        iodepth,
        ramp: Duration::from_millis(100),
        runtime: Duration::from_secs(20),
        ios_max: Some(2000),
        ..Workload::default()
    }
}

#[test]
fn every_kind_of_workload_runs_without_errors_and_without_allocating() {
    let workloads = [
        workload(Rw::RandRead, 4096, 1),
        workload(Rw::RandRead, 4096, 32),
        workload(Rw::RandWrite, 4096, 32),
        workload(Rw::RandRw, 16384, 8),
        Workload { ios_max: Some(200), ..workload(Rw::Write, 128 << 10, 4) },
        Workload { ios_max: Some(200), ..workload(Rw::Read, 128 << 10, 4) },
    ];
    for (workload, measured) in workloads.iter().zip(run(&workloads, |_| ())) {
        let tally = &measured.tally;
        assert_eq!(tally.errors, 0, "{workload:?}: {:?}", tally.by_status);
        assert!(tally.ios >= workload.ios_max.unwrap(), "{workload:?}");
        assert_eq!(tally.latency.len(), tally.ios);
        assert_eq!(measured.allocations, 0, "{workload:?}");
    }
}

#[test]
fn what_is_written_with_verify_is_found_again_by_the_same_seed_only() {
    let write = Workload { verify: true, seed: 5, ..workload(Rw::Write, 8192, 8) };
    let write = Workload { size: Some(1 << 20), ramp: Duration::ZERO, ..write };
    let read = Workload { rw: Rw::Read, ios_max: Some(128), ..write.clone() };
    let other = Workload { seed: 6, ..read.clone() };
    let measured = run(&[write, read, other], |config| {
        config.hdgst = true;
        config.ddgst = true;
        config.io_queues = 2;
    });
    let verify: Vec<_> = measured.iter().map(|m| m.tally.verify.as_ref().unwrap()).collect();
    assert_eq!(measured[0].qpairs, 2);
    assert_eq!((verify[0].blocks, verify[0].mismatches), (256, 0));
    assert_eq!(verify[1].mismatches, 0);
    assert!(verify[1].blocks >= 256);
    assert_eq!(verify[2].blocks, verify[2].mismatches);
    assert!(verify[2].first[0].starts_with("LBA "), "{:?}", verify[2].first);
}
