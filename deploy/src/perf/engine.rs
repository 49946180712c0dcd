//! The engine: one host, one controller, one workload, one thread.
//!
//! The loop has a fixed order: clock, turn, ends, phases, submissions, flush, and then it spins or
//! sleeps. It is the same whatever carries the bytes. What it counts, it counts from the moment at
//! which measuring begins to the moment at which it ends; its own slow tick is left out of the
//! allocations.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use moorline_nvme::host::{CtrlId, Host, HostEvent, Io, IoOp};
use moorline_stack::mem::Arena;
use moorline_stack::transport::TransportStats;
use moorline_stack::{Instant, Transport};

use super::load::{Load, Next, Phase, Tally};
use super::measure::{RunDelay, Ticks, allocations, process_cpu, thread_cpu};
use super::progress::{Progress, Standing};
use super::workload::Workload;
use crate::cli::PollMode;
use crate::signals::Stop;

/// How often progress is shown and run delay is sampled.
const TICK: Duration = Duration::from_millis(100);
/// How long an adaptive loop spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Job {
    /// The I/Os.
    pub workload: Workload,
    /// On which namespace.
    pub nsid: u32,
    /// What to do while there is nothing to do.
    pub poll: PollMode,
    /// The target's process, where we started it.
    pub target_pid: Option<u32>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Measured {
    /// I/Os and their latencies.
    pub tally: Tally,
    /// I/O qpairs used.
    pub qpairs: u16,
    /// What the transport did meanwhile.
    pub transport: TransportStats,
    /// Allocations meanwhile.
    pub allocations: u64,
    /// CPU time of this thread.
    pub host_cpu: Duration,
    /// CPU time of the target's process.
    pub target_cpu: Option<Duration>,
    /// Most run delay in one tick.
    pub run_delay_max: Duration,
    /// Stolen CPU time, percent of all.
    pub steal_pct: f64,
    /// The user ended it.
    pub interrupted: bool,
    /// The controller was lost.
    pub failure: Option<String>,
}

/// Runs a job on a controller that is live.
///
/// # Errors
/// When the job does not fit the controller or the namespace; the message says what to change.
pub fn run<T: Transport>(
    host: &mut Host<T>,
    ctrl: CtrlId,
    job: &Job,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Measured> {
    let workload = &job.workload;
    let info = host.controller(ctrl);
    let Some(namespace) = info.namespace(job.nsid).copied() else {
        let found: Vec<_> = info.namespaces.iter().map(|ns| ns.nsid.to_string()).collect();
        bail!("the target has no namespace {}; it has: {}", job.nsid, found.join(", "));
    };
    let (qpairs, depth_max) = (info.io_queues, info.commands_max);
    ensure!(
        workload.iodepth <= depth_max,
        "--iodepth {} is more than a queue of this target takes, {depth_max}; \
         give --queue-size {} or a smaller depth",
        workload.iodepth,
        workload.iodepth + 1
    );
    let region = workload.region(namespace.blocks, namespace.block_size)?;
    let mut arena = Arena::new(Load::memory(workload, qpairs));
    let block_size = namespace.block_size;
    let now = Instant::monotonic();
    let load = Load::new(now, workload, region, block_size, qpairs, &mut arena)?;
    let mut engine =
        Engine { host, ctrl, job, load, watch: Watch::new(now, job.target_pid), failure: None };
    let interrupted = engine.until_done(stop, progress)?;
    progress.finish();
    let Engine { load, watch, failure, .. } = engine;
    Ok(watch.into_measured(load.into_tally(), qpairs, interrupted, failure))
}

struct Engine<'a, T: Transport> {
    host: &'a mut Host<T>,
    ctrl: CtrlId,
    job: &'a Job,
    load: Load,
    watch: Watch,
    failure: Option<String>,
}

impl<T: Transport> Engine<'_, T> {
    /// Turns until the load is done; returns whether the user ended it.
    fn until_done(&mut self, stop: &Stop, progress: &mut Progress) -> Result<bool> {
        let mut busy_at = Instant::ZERO;
        let mut interrupted = false;
        loop {
            let now = Instant::monotonic();
            self.host.turn(now);
            if self.take_ends(now) {
                busy_at = now;
            }
            interrupted |= stop.requested();
            if let Some(phase) = self.load.advance(now, interrupted) {
                self.enter(phase);
            }
            self.submit(now);
            self.host.flush(now);
            if self.load.phase() == Phase::Done {
                return Ok(interrupted);
            }
            if now >= self.watch.next_tick {
                self.watch.tick(now, &self.load, u64::from(self.job.workload.bs), progress);
            }
            if self.job.poll == PollMode::Adaptive && now.since(busy_at) > SPIN {
                let until = self.load.deadline().unwrap_or(self.watch.next_tick);
                let until = until.min(self.watch.next_tick);
                self.host.wait(Some(until), &[]).context("waiting for completions")?;
            }
        }
    }

    /// Takes in what ended and what happened; returns whether anything did.
    fn take_ends(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(done) = self.host.poll_io() {
            any = true;
            let buf = done.buf.expect("reads and writes come back with their buffer");
            self.load.complete(now, done.tag, done.status, buf, done.submitted);
        }
        while let Some(event) = self.host.poll_event() {
            let failure = match event {
                HostEvent::Failed { ctrl, failure } if ctrl == self.ctrl => failure.to_string(),
                HostEvent::Closed { ctrl } if ctrl == self.ctrl => "it was shut down".to_owned(),
                _ => continue,
            };
            self.failure = Some(failure);
            self.load.abandon();
        }
        any
    }

    fn enter(&mut self, phase: Phase) {
        match phase {
            Phase::Measure => self.watch.start(self.host.transport().stats()),
            Phase::Drain => self.watch.end(self.host.transport().stats()),
            Phase::Ramp | Phase::ReadBack | Phase::Done => {}
        }
    }

    fn submit(&mut self, now: Instant) {
        if self.failure.is_some() {
            return;
        }
        while let Some(Next { tag, qpair, read, lba, blocks, buf }) = self.load.next() {
            let op = if read { IoOp::Read } else { IoOp::Write { fua: false } };
            let nsid = self.job.nsid;
            let io = Io { tag, op, nsid, lba, blocks, buf: Some(buf), buf_offset: 0 };
            if let Err(refused) = self.host.submit(now, self.ctrl, qpair, io) {
                let buf = refused.buf.expect("it was submitted with one");
                return self.load.refused(refused.tag, buf);
            }
        }
    }
}

/// The figures beside the I/Os: taken when measuring begins and when it ends.
#[derive(Debug)]
struct Watch {
    target_pid: Option<u32>,
    begin: Marks,
    end: Marks,
    run_delay: RunDelay,
    /// Allocations of the ticks themselves.
    ticks_allocations: u64,
    started: Instant,
    next_tick: Instant,
    last_tick: (Instant, u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    transport: TransportStats,
    allocations: u64,
    host_cpu: Duration,
    target_cpu: Option<Duration>,
    ticks: Ticks,
}

impl Watch {
    fn new(now: Instant, target_pid: Option<u32>) -> Self {
        Self {
            target_pid,
            begin: Marks::default(),
            end: Marks::default(),
            run_delay: RunDelay::new(),
            ticks_allocations: 0,
            started: now,
            next_tick: now + TICK,
            last_tick: (now, 0),
        }
    }

    /// Allocations are read last here and first in `end`, for the other marks allocate.
    fn start(&mut self, transport: TransportStats) {
        let (ticks, target_cpu) = (Ticks::now(), self.target_pid.and_then(process_cpu));
        self.run_delay.restart();
        self.ticks_allocations = 0;
        let (host_cpu, allocations) = (thread_cpu(), allocations());
        self.begin = Marks { transport, allocations, host_cpu, target_cpu, ticks };
    }

    fn end(&mut self, transport: TransportStats) {
        let (allocations, host_cpu) = (allocations(), thread_cpu());
        let (target_cpu, ticks) = (self.target_pid.and_then(process_cpu), Ticks::now());
        self.run_delay.sample();
        self.end = Marks { transport, allocations, host_cpu, target_cpu, ticks };
    }

    fn tick(&mut self, now: Instant, load: &Load, bs: u64, progress: &mut Progress) {
        let before = allocations();
        self.next_tick = now + TICK;
        if load.phase() == Phase::Measure {
            self.run_delay.sample();
        }
        let (last, ios) = self.last_tick;
        self.last_tick = (now, load.tally().ios);
        let seconds = now.since(last).as_secs_f64().max(1e-9);
        let iops = (load.tally().ios - ios) as f64 / seconds;
        progress.show(&Standing {
            elapsed: now.since(self.started),
            share: load.progress(now),
            iops,
            bytes_per_s: iops * bs as f64,
            errors: load.tally().errors,
        });
        self.ticks_allocations += allocations() - before;
    }

    fn into_measured(
        self,
        tally: Tally,
        qpairs: u16,
        interrupted: bool,
        failure: Option<String>,
    ) -> Measured {
        let Self { begin, end, .. } = self;
        let target_cpu = end.target_cpu.zip(begin.target_cpu);
        let all = end.allocations.saturating_sub(begin.allocations);
        Measured {
            tally,
            qpairs,
            transport: difference(&end.transport, &begin.transport),
            allocations: all.saturating_sub(self.ticks_allocations),
            host_cpu: end.host_cpu.saturating_sub(begin.host_cpu),
            target_cpu: target_cpu.map(|(end, begin)| end.saturating_sub(begin)),
            run_delay_max: self.run_delay.max(),
            steal_pct: end.ticks.steal_percent_since(begin.ticks),
            interrupted,
            failure,
        }
    }
}

/// What was counted between two readings.
fn difference(end: &TransportStats, begin: &TransportStats) -> TransportStats {
    TransportStats {
        rx_frames: end.rx_frames - begin.rx_frames,
        tx_frames: end.tx_frames - begin.tx_frames,
        rx_bytes: end.rx_bytes - begin.rx_bytes,
        tx_bytes: end.tx_bytes - begin.tx_bytes,
        copied_in_bytes: end.copied_in_bytes - begin.copied_in_bytes,
        copied_out_bytes: end.copied_out_bytes - begin.copied_out_bytes,
        retransmits: end.retransmits - begin.retransmits,
        syns: end.syns - begin.syns,
        syscalls: end.syscalls - begin.syscalls,
    }
}

impl Measured {
    /// Divided by the I/Os.
    fn per_io(&self, amount: f64) -> f64 {
        amount / (self.tally.ios.max(1)) as f64
    }

    /// As a report; `conditions` as far as they are known without the run.
    pub fn into_run(
        self,
        workload: &Workload,
        transport: super::report::TransportKind,
        mut conditions: super::report::Conditions,
    ) -> super::report::Run {
        use super::report::{Counts, Cpu, ErrorCount, Latency, Run, SCHEMA, VERSION};
        conditions.steal_pct = self.steal_pct;
        conditions.run_delay_us_max = self.run_delay_max.as_secs_f64() * 1e6;
        if self.interrupted {
            conditions.notes.push("ended early by the user".to_owned());
        }
        if let Some(failure) = &self.failure {
            conditions.notes.push(format!("ended early: {failure}"));
        }
        let us = |time: Duration| self.per_io(time.as_secs_f64() * 1e6);
        let stats = &self.transport;
        let copies = |bytes: u64, of: u64| 1.0 + bytes as f64 / of.max(1) as f64;
        let seconds = self.tally.measured.as_secs_f64();
        let iops = self.tally.ios as f64 / seconds.max(1e-9);
        let by_status = self.tally.by_status.iter();
        Run {
            schema: SCHEMA,
            version: VERSION,
            transport,
            rw: workload.rw.name(),
            bs: workload.bs,
            iodepth: workload.iodepth,
            qpairs: self.qpairs,
            seconds,
            ios: self.tally.ios,
            iops,
            bytes_per_s: iops * f64::from(workload.bs),
            errors: self.tally.errors + u64::from(self.failure.is_some()),
            errors_by_status: by_status
                .map(|(status, count)| ErrorCount { status: status.to_string(), count: *count })
                .collect(),
            lat_us: Latency::from_histogram(&self.tally.latency),
            cpu: Cpu {
                host_us_per_io: us(self.host_cpu),
                target_us_per_io: self.target_cpu.map(us),
            },
            counts: Counts {
                allocs_per_io: self.per_io(self.allocations as f64),
                copies_in: copies(stats.copied_in_bytes, stats.rx_bytes),
                copies_out: copies(stats.copied_out_bytes, stats.tx_bytes),
                syscalls_per_io: self.per_io(stats.syscalls as f64),
                frames_per_io: self.per_io((stats.rx_frames + stats.tx_frames) as f64),
                retransmits: stats.retransmits,
            },
            verify: self.tally.verify,
            conditions,
        }
    }
}
