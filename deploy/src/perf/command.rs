//! `moorline perf` from its options: against a given target, against one in a rig of its own, or,
//! without privileges, against one on loopback.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result};
use moorline_rig::{Rig, RigSpec};

use super::child::Peer;
use super::compare::{Sample, Subject, ratio};
use super::report::{Comparison, Ratio, Run, SCHEMA, TransportKind, VERSION, write_json};
use super::rigged::{self, TargetSpec};
use super::series::{Place, Series};
use super::workload::Workload;
use super::{demo, measure};
use crate::cli::{LaneArgs, PollMode, TcpChecksum};
use crate::commands::perf::PerfArgs;
use crate::exit::Exit;
use crate::out;
use crate::signals::Stop;
use crate::stackup;

/// Both transports, in the order in which they are compared.
pub const BOTH: [TransportKind; 2] = [TransportKind::Xdp, TransportKind::Kernel];

/// Runs `perf`.
///
/// # Errors
/// When the environment does not allow it; the message says what to do.
pub fn run(args: &PerfArgs) -> Result<Exit> {
    let workload = args.work.workload()?;
    let stop = Stop::on_signals()?;
    if !args.rig {
        return on_target(args, &workload, &stop);
    }
    match (moorline_rig::possible(), args.demo) {
        (Ok(()), true) => demo::run(args, &stop),
        (Ok(()), false) => on_rig(args, &workload, &stop),
        (Err(why), demo) => {
            out::note(format_args!("moorline: no rig and no AF_XDP here: {why}"));
            out::note(format_args!(
                "moorline: kernel sockets over loopback instead; the figures say little"
            ));
            let workloads = if demo { demo::workloads() } else { vec![workload] };
            on_loopback(args, &workloads, &why, &stop)
        }
    }
}

/// Against a target that somebody else runs.
fn on_target(args: &PerfArgs, workload: &Workload, stop: &Stop) -> Result<Exit> {
    let traddr = args.traddr.context("say where the target is: --traddr IP, or --rig")?;
    let addr = SocketAddr::new(traddr, args.trsvcid);
    let place = Place {
        dev: args.lane.dev.clone(),
        pinning: "CPUs not pinned".to_owned(),
        ..Place::default()
    };
    by_turns(args, stop, |transport| {
        let lane = LaneArgs { transport, ..args.lane.clone() };
        let workloads = std::slice::from_ref(workload);
        stackup::run(&lane, series(args, addr, transport, workloads, &place, stop))
    })
}

/// Against a target of our own, in a rig that is gone afterwards.
fn on_rig(args: &PerfArgs, workload: &Workload, stop: &Stop) -> Result<Exit> {
    let rig = Rig::up(RigSpec::unique("moorline-perf").mtu(args.mtu))?;
    let spec = target_spec(args, args.lane.poll);
    by_turns(args, stop, |transport| {
        on_rig_once(args, &rig, transport, &spec, std::slice::from_ref(workload), stop)
    })
}

/// One target in a rig, and a series of runs against it.
///
/// # Errors
/// When either end cannot be started, and those of the runs.
pub fn on_rig_once(
    args: &PerfArgs,
    rig: &Rig,
    transport: TransportKind,
    spec: &TargetSpec,
    workloads: &[Workload],
    stop: &Stop,
) -> Result<Vec<Run>> {
    let target = rigged::start_target(rig, transport, spec)?;
    let (near, far) = (rig.host(), rig.target());
    let place = Place {
        dev: Some(near.dev().to_owned()),
        peer: Some((far.netns().to_owned(), far.dev().to_owned())),
        target_pid: Some(target.pid()),
        pinning: rigged::pinning(),
        notes: Vec::new(),
    };
    let addr = SocketAddr::new(rigged::target_addr(far, transport), args.trsvcid);
    let mut lane = rigged::lane_args(near, transport, spec.poll);
    lane.xdp_mode = spec.xdp_mode;
    lane.tcp_checksum = Some(spec.tcp_checksum);
    let mut series = series(args, addr, transport, workloads, &place, stop);
    series.poll = spec.poll;
    near.run(|| {
        measure::pin(0);
        stackup::run(&lane, series)
    })?
}

/// What a rig's target is to be.
pub fn target_spec(args: &PerfArgs, poll: PollMode) -> TargetSpec {
    TargetSpec {
        backend: args.backend.clone(),
        nqn: args.nqn.clone(),
        poll,
        xdp_mode: args.lane.xdp_mode,
        // The kernel computes none on veth: that is what we are compared with.
        tcp_checksum: args.lane.tcp_checksum.unwrap_or(TcpChecksum::Off),
    }
}

/// On kernel sockets, against a target of our own on loopback.
fn on_loopback(args: &PerfArgs, workloads: &[Workload], why: &str, stop: &Stop) -> Result<Exit> {
    let spec = target_spec(args, args.lane.poll);
    let mut command = Command::new(std::env::current_exe().context("our own program")?);
    command.args(rigged::target_args(TransportKind::Kernel, &spec));
    command.args(["--listen", &format!("127.0.0.1:{}", args.trsvcid)]);
    let mut target = Peer::start(command)?;
    let addr = target.expect(rigged::listening)?;
    let place = Place {
        dev: Some("lo".to_owned()),
        peer: None,
        target_pid: Some(target.pid()),
        pinning: rigged::pinning(),
        notes: vec![format!("kernel sockets over loopback, without AF_XDP: {why}")],
    };
    let kernel = TransportKind::Kernel;
    let lane = LaneArgs { transport: kernel, ..args.lane.clone() };
    let series = series(args, addr, kernel, workloads, &place, stop);
    let runs = unless_stopped(stackup::run(&lane, series), stop)?.unwrap_or_default();
    report(args, runs, Vec::new(), stop)
}

fn series<'a>(
    args: &'a PerfArgs,
    addr: SocketAddr,
    transport: TransportKind,
    workloads: &'a [Workload],
    place: &'a Place,
    stop: &'a Stop,
) -> Series<'a> {
    Series {
        host: &args.host,
        addr,
        nqn: &args.nqn,
        nsid: args.nsid,
        transport,
        poll: args.lane.poll,
        workloads,
        place,
        quiet: args.quiet,
        stop,
    }
}

/// One run on the transport asked for, or with `--compare` both by turns; then the report.
fn by_turns(
    args: &PerfArgs,
    stop: &Stop,
    mut once: impl FnMut(TransportKind) -> Result<Vec<Run>>,
) -> Result<Exit> {
    if !args.compare {
        let runs = unless_stopped(once(args.lane.transport), stop)?.unwrap_or_default();
        return report(args, runs, Vec::new(), stop);
    }
    let mut runs = Vec::new();
    for _ in 0..args.rounds {
        for transport in BOTH {
            if !stop.requested() {
                runs.extend(unless_stopped(once(transport), stop)?.unwrap_or_default());
            }
        }
    }
    let of = |kind| -> Vec<Sample> {
        runs.iter().filter(|run| run.transport == kind).map(Sample::from).collect()
    };
    let (xdp, kernel) = (of(TransportKind::Xdp), of(TransportKind::Kernel));
    let mut ratios = Vec::new();
    if let (Some(run), false) = (runs.first(), kernel.is_empty()) {
        let mtu = run.conditions.mtu;
        let subject = Subject { rw: run.rw, bs: run.bs, iodepth: run.iodepth, mtu };
        ratios.push(ratio(subject, "xdp/kernel", &xdp, &kernel));
    }
    report(args, runs, ratios, stop)
}

/// Prints what was measured, and turns it into an exit code.
fn report(args: &PerfArgs, runs: Vec<Run>, ratios: Vec<Ratio>, stop: &Stop) -> Result<Exit> {
    if runs.is_empty() && stop.requested() {
        return Ok(Exit::Interrupted);
    }
    let exit = exit(&runs, stop);
    let report = comparison(runs, ratios, Vec::new());
    out::unless_closed(publish(args, &report))?;
    Ok(exit)
}

fn publish(args: &PerfArgs, report: &Comparison) -> Result<()> {
    // First the file: the reader of the text may not read it all.
    if let Some(to) = &args.json {
        match report.runs.as_slice() {
            [run] if report.ratios.is_empty() => write_json(run, to)?,
            _ => write_json(report, to)?,
        }
    }
    if args.json.as_deref() != Some("-") {
        for run in &report.runs {
            out::text(&run.text())?;
        }
        for ratio in &report.ratios {
            out::line(format_args!(
                "{} at MTU {}: rate {:.2}, p50 {:.2}, p99 {:.2} (medians of {} rounds, spread \
                 {:.0} %)",
                ratio.of,
                ratio.mtu,
                ratio.iops,
                ratio.p50,
                ratio.p99,
                ratio.rounds,
                ratio.spread * 100.0
            ))?;
        }
    }
    Ok(())
}

/// Several runs as one report.
pub fn comparison(runs: Vec<Run>, ratios: Vec<Ratio>, conditions: Vec<String>) -> Comparison {
    Comparison { schema: SCHEMA, version: VERSION, runs, ratios, conditions }
}

/// A step's result; `None` for one that failed because the user ended it.
///
/// # Errors
/// The step's own, otherwise.
pub fn unless_stopped<R>(step: Result<R>, stop: &Stop) -> Result<Option<R>> {
    match step {
        Err(_) if stop.requested() => Ok(None),
        step => step.map(Some),
    }
}

/// How the command ends, when it ran.
pub fn exit(runs: &[Run], stop: &Stop) -> Exit {
    match runs.iter().any(Run::failed) {
        true => Exit::FellShort,
        false if stop.requested() => Exit::Interrupted,
        false => Exit::Ok,
    }
}
