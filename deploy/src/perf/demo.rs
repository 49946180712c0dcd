//! `moorline perf --demo --rig`: five workloads on both transports over one veth pair, by turns,
//! beside what raw AF_XDP and plain kernel sockets take for the same sizes.
//!
//! The kernel's side is honest: our XDP programs are detached, offloads are as the kernel makes
//! them, both ends spin as ours do, and the plain ping-pong shows what our framing adds to it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use moorline_rig::{Rig, RigSpec};

use super::command::{BOTH, comparison, exit, on_rig_once, target_spec, unless_stopped};
use super::compare::{Sample, Subject, ratio};
use super::exchange::Exchange;
use super::report::{Comparison, Ratio, Run, TransportKind, write_json};
use super::rigged::{FloorCase, plain_floors, raw_floors};
use super::table;
use super::workload::{Rw, Workload};
use crate::cli::PollMode;
use crate::commands::perf::PerfArgs;
use crate::exit::Exit;
use crate::out;
use crate::signals::Stop;

/// MTUs of the rig: Ethernet's, and jumbo frames of several descriptors.
const MTUS: [u32; 2] = [1500, 9000];
/// Measured per run.
const RUNTIME: Duration = Duration::from_millis(250);
/// Before each run.
const RAMP: Duration = Duration::from_millis(30);
/// Measured per floor.
const FLOOR_RUNTIME: Duration = Duration::from_millis(100);
/// What is read and written: it fits caches and memory of a small machine.
const REGION: u64 = 64 << 20;
/// Where the report goes when the command line does not say.
const REPORT: &str = "target/demo.json";

/// The five workloads: reads alone and deep, writes with verify, and bulk both ways.
pub fn workloads() -> Vec<Workload> {
    let of = |rw, bs, iodepth, verify| Workload {
        rw,
        bs,
        iodepth,
        verify,
        runtime: RUNTIME,
        ramp: RAMP,
        size: Some(REGION),
        ..Workload::default()
    };
    vec![
        of(Rw::RandRead, 4096, 1, false),
        of(Rw::RandRead, 4096, 32, false),
        of(Rw::RandWrite, 4096, 32, true),
        of(Rw::Read, 128 << 10, 8, false),
        of(Rw::Write, 128 << 10, 8, false),
    ]
}

/// All samples of one workload at one MTU.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub subject: Subject,
    /// Our TCP over AF_XDP.
    pub xdp: Vec<Sample>,
    /// Kernel sockets.
    pub kernel: Vec<Sample>,
    /// The raw exchange, one at a time.
    pub alone: Vec<Sample>,
    /// The raw exchange, at the workload's depth.
    pub flood: Vec<Sample>,
    /// The exchange over plain kernel sockets, one at a time.
    pub plain: Vec<Sample>,
}

impl Row {
    fn new(workload: &Workload, mtu: u32) -> Self {
        let subject = Subject {
            rw: workload.rw.name(),
            bs: workload.bs,
            iodepth: workload.iodepth,
            mtu: mtu as usize,
        };
        let none = Vec::new;
        Self { subject, xdp: none(), kernel: none(), alone: none(), flood: none(), plain: none() }
    }

    /// Whether there is at least one round of everything.
    fn is_complete(&self) -> bool {
        [&self.xdp, &self.kernel, &self.plain].iter().all(|samples| !samples.is_empty())
    }

    /// The row's comparisons, each with the floors beside it.
    fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = vec![
            ratio(self.subject, "xdp/kernel", &self.xdp, &self.kernel),
            ratio(self.subject, "xdp/floor", &self.xdp, &self.flood),
        ];
        if self.subject.iodepth == 1 {
            ratios.push(ratio(self.subject, "kernel/plain", &self.kernel, &self.plain));
        }
        for ratio in &mut ratios {
            ratio.floor_p50_us = Some(Sample::median(&self.alone).p50);
            ratio.floor_iops = Some(Sample::median(&self.flood).iops);
            ratio.plain_socket_p50_us = Some(Sample::median(&self.plain).p50);
        }
        ratios
    }
}

/// Runs the demonstration.
///
/// # Errors
/// When the rig or either end cannot be made; the message says what to do.
pub fn run(args: &PerfArgs, stop: &Stop) -> Result<Exit> {
    let workloads = workloads();
    let mut demo = Demo {
        args: PerfArgs { backend: format!("ram:{REGION}"), quiet: true, ..args.clone() },
        cases: workloads.iter().map(floor_case).collect(),
        runs: Vec::new(),
        steps: Steps::new(MTUS.len() * args.rounds * 4),
        workloads,
        stop,
    };
    let mut rows = Vec::new();
    for mtu in MTUS {
        let of_mtu = demo.at_mtu(mtu)?;
        if of_mtu.iter().all(Row::is_complete) {
            rows.push(of_mtu);
        }
        if stop.requested() {
            break;
        }
    }
    demo.steps.finish();
    let runs = demo.runs;
    let code = exit(&runs, stop);
    let ratios = rows.iter().flatten().flat_map(Row::ratios).collect();
    let to = args.json.as_deref().unwrap_or(REPORT);
    if let Some(dir) = std::path::Path::new(to).parent().filter(|_| to != "-") {
        std::fs::create_dir_all(dir).with_context(|| format!("directory of {to}"))?;
    }
    let report = comparison(runs, ratios, table::shared_conditions());
    out::unless_closed(publish(&report, &rows, to))?;
    Ok(code)
}

fn publish(report: &Comparison, rows: &[Vec<Row>], to: &str) -> Result<()> {
    // First the file: the reader of the table may not read it all.
    write_json(report, to)?;
    if to == "-" {
        return Ok(());
    }
    for rows in rows {
        out::text(&table::comparison(rows))?;
    }
    out::text(&table::goals(&rows.concat()))?;
    out::text(&table::conditions(&report.runs))?;
    out::line(format_args!("\nAll runs and ratios: {to}"))
}

fn floor_case(workload: &Workload) -> FloorCase {
    FloorCase {
        exchange: Exchange::of(!workload.rw.writes(), workload.bs as usize),
        depth: workload.iodepth,
    }
}

struct Demo<'a> {
    args: PerfArgs,
    workloads: Vec<Workload>,
    cases: Vec<FloorCase>,
    runs: Vec<Run>,
    steps: Steps,
    stop: &'a Stop,
}

impl Demo<'_> {
    /// All rounds at one MTU, in a rig of their own.
    fn at_mtu(&mut self, mtu: u32) -> Result<Vec<Row>> {
        let rig = Rig::up(RigSpec::unique("moorline-demo").mtu(mtu))?;
        let mut rows: Vec<Row> = self.workloads.iter().map(|w| Row::new(w, mtu)).collect();
        for round in 1..=self.args.rounds {
            let whole = unless_stopped(self.round(&rig, round, &mut rows), self.stop)?;
            if whole.is_none() || self.stop.requested() {
                break;
            }
        }
        Ok(rows)
    }

    fn round(&mut self, rig: &Rig, round: usize, rows: &mut [Row]) -> Result<()> {
        let spec = target_spec(&self.args, PollMode::Busy);
        let mtu = rig.spec().mtu;
        for transport in BOTH {
            self.steps.step(mtu, round, transport.name());
            let runs = on_rig_once(&self.args, rig, transport, &spec, &self.workloads, self.stop)?;
            for (row, run) in rows.iter_mut().zip(&runs) {
                let samples = match transport {
                    TransportKind::Xdp => &mut row.xdp,
                    TransportKind::Kernel => &mut row.kernel,
                };
                samples.push(run.into());
            }
            self.runs.extend(runs);
            if self.stop.requested() {
                return Ok(());
            }
        }
        self.steps.step(mtu, round, "raw AF_XDP floor");
        let raw = raw_floors(rig, &self.cases, FLOOR_RUNTIME, self.stop)?;
        self.steps.step(mtu, round, "plain-socket ping-pong");
        let plain = plain_floors(rig, &self.cases, FLOOR_RUNTIME, self.stop)?;
        if self.stop.requested() {
            return Ok(()); // floors cut short are none
        }
        for ((row, (alone, flood)), plain) in rows.iter_mut().zip(&raw).zip(&plain) {
            row.alone.push(alone.into());
            row.flood.push(flood.into());
            row.plain.push(plain.into());
        }
        Ok(())
    }
}

/// What a person sees while the demonstration lasts.
struct Steps(ProgressBar);

impl Steps {
    fn new(count: usize) -> Self {
        let bar = ProgressBar::new(count as u64);
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len}  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    fn step(&self, mtu: u32, round: usize, what: &str) {
        let message = format!("MTU {mtu}, round {round}: {what}");
        if self.0.is_hidden() && what == BOTH[0].name() {
            out::note(format_args!("MTU {mtu}, round {round}"));
        }
        self.0.set_message(message);
        self.0.inc(1);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
