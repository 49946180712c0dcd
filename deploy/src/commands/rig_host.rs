//! `moorline rig-host`: the host of a scenario. One controller under load, others that come and
//! go, all on one thread; what happens is told as JSON, one object a line.
//!
//! Lines carry `t_us`, microseconds of CLOCK_MONOTONIC, which all processes of a machine share.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use hdrhistogram::Histogram;
use moorline_nvme::host::{
    CtrlConfig, CtrlId, Host, HostEvent, HostLimits, Io, IoDone, IoOp, Reconnect,
};
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::rng::Rng;
use moorline_stack::{Instant, Transport};
use serde_json::{Value, json};

use crate::cli::{DEFAULT_NQN, LaneArgs, PollMode};
use crate::exit::Exit;
use crate::identity::identity_of;
use crate::out;
use crate::perf::workload::{Bytes, parse_duration};
use crate::scenario::TICK;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

/// Bytes of one I/O.
const BS: usize = 4096;
/// How often run delay is read, so that it can be told whose a gap is.
const DELAY_EVERY: Duration = Duration::from_millis(10);
/// A gap above this is looked at.
const GAP: Duration = Duration::from_millis(2);
/// How long an adaptive loop spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// Options of `rig-host`.
#[derive(Args, Clone, Debug)]
pub struct RigHostArgs {
    /// The controller under load.
    #[arg(long, value_name = "IP:PORT")]
    healthy: SocketAddr,
    /// A controller whose target comes and goes; repeatable.
    #[arg(long, value_name = "IP:PORT")]
    dead: Vec<SocketAddr>,
    /// I/Os under way on the one under load.
    #[arg(long, value_name = "N", default_value_t = 1)]
    iodepth: u16,
    /// Keep alive timeout of all controllers.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5")]
    kato: Duration,
    /// I/O queues of each controller that is not the one under load.
    #[arg(long, value_name = "N", default_value_t = 1)]
    io_queues: u16,
    /// TCP send buffer of a connection, and its receive buffer.
    #[arg(long, value_name = "BYTES", default_value = "256k")]
    tcp_buffer: Bytes,
    /// The process of the target under load, for its run delay.
    #[arg(long, value_name = "PID")]
    target_pid: Option<u32>,
    /// Our end of the network.
    #[command(flatten)]
    lane: LaneArgs,
}

/// Runs `rig-host` until a signal ends it, or its parent is gone.
///
/// # Errors
/// When the environment does not allow it.
pub fn run(args: &RigHostArgs) -> Result<Exit> {
    let stop = Stop::on_signals()?;
    let ended = stop.clone();
    std::thread::spawn(move || {
        // Whether it ends or fails, the parent is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.request();
    });
    stackup::run(&args.lane, RigHost { args, stop })?;
    Ok(Exit::Ok)
}

struct RigHost<'a> {
    args: &'a RigHostArgs,
    stop: Stop,
}

impl Job for RigHost<'_> {
    type Out = ();

    fn run<T: Transport>(self, transport: T, _: Path) -> Result<()> {
        let identity = identity_of(None, None)?;
        let addrs: Vec<_> =
            std::iter::once(self.args.healthy).chain(self.args.dead.clone()).collect();
        let io_queues = self.args.io_queues;
        let limits = HostLimits { controllers: addrs.len(), io_queues, ..HostLimits::default() };
        let mut host = Host::new(transport, identity, limits);
        let now = Instant::monotonic();
        out::line(format_args!("{}", json!({ "event": "connecting", "t_us": us(now) })))?;
        let buffer = self.args.tcp_buffer.0 as usize;
        let mut ctrls = Vec::with_capacity(addrs.len());
        for (index, addr) in addrs.into_iter().enumerate() {
            let mut config = CtrlConfig {
                reconnect: Some(Reconnect::default()),
                kato: self.args.kato,
                io_queues: if index == 0 { 1 } else { io_queues },
                ..CtrlConfig::new(addr, DEFAULT_NQN)
            };
            (config.conn.rx_buffer, config.conn.tx_buffer) = (buffer, buffer);
            ctrls.push(host.connect(now, config)?);
        }
        let load = Load::new(now, self.args)?;
        let turns = Histogram::new_with_bounds(1, 10_000_000, 2)?;
        Reactor { host, ctrls, load, turns, losses: 0, syns: 0 }
            .until(&self.stop, self.args.lane.poll)
    }
}

struct Reactor<T: Transport> {
    host: Host<T>,
    /// The one under load is the first.
    ctrls: Vec<CtrlId>,
    load: Load,
    /// How long turns took, microseconds.
    turns: Histogram<u64>,
    /// Times that the one under load was lost.
    losses: u64,
    /// SYNs sent until the last tick.
    syns: u64,
}

impl<T: Transport> Reactor<T> {
    fn until(mut self, stop: &Stop, poll: PollMode) -> Result<()> {
        let mut busy_at = Instant::ZERO;
        while !stop.requested() {
            let now = Instant::monotonic();
            self.host.turn(now);
            while let Some(done) = self.host.poll_io() {
                busy_at = now;
                self.load.ended(now, done);
            }
            self.events(now)?;
            self.submit(now);
            self.host.flush(now);
            self.turns.saturating_record((Instant::monotonic() - now).as_micros() as u64);
            if let Some(mut line) = self.load.tick(now) {
                let syns = self.host.transport().stats().syns;
                line["syns"] = (syns - std::mem::replace(&mut self.syns, syns)).into();
                out::line(format_args!("{line}"))?;
            }
            if poll == PollMode::Adaptive && now.since(busy_at) > SPIN {
                self.host.wait(Some(self.load.next_tick), &[]).context("waiting")?;
            }
        }
        self.end()
    }

    fn events(&mut self, now: Instant) -> Result<()> {
        while let Some(event) = self.host.poll_event() {
            let (ctrl, what, why) = match event {
                HostEvent::Live { ctrl, .. } => (ctrl, "live", None),
                HostEvent::Disconnected { ctrl, failure } => (ctrl, "disconnected", Some(failure)),
                HostEvent::Failed { ctrl, failure } => (ctrl, "failed", Some(failure)),
                HostEvent::Closed { .. } | HostEvent::Aen { .. } => continue,
            };
            let index = self.ctrls.iter().position(|c| *c == ctrl);
            if index == Some(0) && what != "live" {
                self.losses += 1;
            }
            let why = why.map(|failure| failure.to_string());
            let line = json!({ "event": what, "ctrl": index, "t_us": us(now), "why": why });
            out::line(format_args!("{line}"))?;
        }
        Ok(())
    }

    fn submit(&mut self, now: Instant) {
        let ctrl = self.ctrls[0];
        let Some(blocks) = self.host.controller(ctrl).namespace(1).map(|ns| ns.blocks) else {
            return;
        };
        while let Some((tag, buf)) = self.load.idle.pop() {
            let lba = self.load.random.below(blocks);
            let io =
                Io { tag, op: IoOp::Read, nsid: 1, lba, blocks: 1, buf: Some(buf), buf_offset: 0 };
            if let Err(io) = self.host.submit(now, ctrl, 0, io) {
                let buf = io.buf.expect("it was submitted with one");
                return self.load.idle.push((tag, buf));
            }
        }
    }

    fn end(self) -> Result<()> {
        let f = self.host.figures();
        let line = json!({
            "event": "end", "t_us": us(Instant::monotonic()),
            "ios": self.load.ios_all, "errors": self.load.errors, "losses": self.losses,
            "keep_alives": f.keep_alives,
            "ka_late_max_us": f.keep_alive_late_max.as_micros() as u64,
            "deadlines": f.deadlines, "deadlines_early": f.deadlines_early,
            "deadline_late_max_us": f.deadline_late_max.as_micros() as u64,
            "events_per_turn_max": f.events_per_turn_max,
            "deadlines_per_turn_max": f.deadlines_per_turn_max, "attempts": f.attempts,
            "syns": self.host.transport().stats().syns,
            "turn_us_p999": self.turns.value_at_quantile(0.999), "turn_us_max": self.turns.max(),
        });
        out::line(format_args!("{line}"))
    }
}

/// The load, and what a tick of it came to.
struct Load {
    idle: Vec<(u64, IoBuf)>,
    random: Rng,
    ios_all: u64,
    errors: u64,
    ios: u64,
    latency_us: Histogram<u64>,
    last: Instant,
    gap: Duration,
    gap_less_delay: Duration,
    delays: [Delay; 2],
    next_delay: Instant,
    next_tick: Instant,
}

impl Load {
    fn new(now: Instant, args: &RigHostArgs) -> Result<Self> {
        let depth = usize::from(args.iodepth);
        let mut arena = Arena::new(depth * BS);
        let mut idle = Vec::with_capacity(depth);
        for tag in 0..depth {
            idle.push((tag as u64, arena.take(BS).context("I/O memory is used up")?));
        }
        let target = args.target_pid.map_or(String::new(), |pid| format!("/proc/{pid}/schedstat"));
        Ok(Self {
            idle,
            random: Rng::new(1),
            ios_all: 0,
            errors: 0,
            ios: 0,
            latency_us: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            last: Instant::ZERO,
            gap: Duration::ZERO,
            gap_less_delay: Duration::ZERO,
            delays: [Delay::new("/proc/thread-self/schedstat"), Delay::new(&target)],
            next_delay: now,
            next_tick: now + TICK,
        })
    }

    fn ended(&mut self, now: Instant, done: IoDone) {
        let buf = done.buf.expect("reads come back with their buffer");
        self.idle.push((done.tag, buf));
        if !done.status.is_success() {
            self.errors += 1;
            return;
        }
        self.ios += 1;
        self.latency_us.saturating_record(now.since(done.submitted).as_micros() as u64);
        if self.last != Instant::ZERO {
            self.gap_until(now);
        }
        self.last = now;
    }

    /// Nothing ended from the last end until `now`.
    fn gap_until(&mut self, now: Instant) {
        let gap = now.since(self.last);
        self.gap = self.gap.max(gap);
        if gap >= GAP {
            let delay: Duration = self.delays.iter().map(Delay::since_mark).sum();
            self.gap_less_delay = self.gap_less_delay.max(gap.saturating_sub(delay));
        } else {
            self.gap_less_delay = self.gap_less_delay.max(gap);
        }
    }

    /// Reads run delay now and then, and closes a tick when it is over.
    fn tick(&mut self, now: Instant) -> Option<Value> {
        if now >= self.next_delay && now.since(self.last) < GAP {
            // Only between two ends that are close: what a gap lost is not to be split.
            self.delays.iter_mut().for_each(Delay::mark);
            self.next_delay = now + DELAY_EVERY;
        }
        if now < self.next_tick {
            return None;
        }
        if self.last != Instant::ZERO {
            self.gap_until(now);
        }
        let line = json!({
            "event": "tick", "t_us": us(now), "ios": self.ios,
            "p99_us": self.latency_us.value_at_quantile(0.99),
            "gap_us": self.gap.as_micros() as u64,
            "gap_less_run_delay_us": self.gap_less_delay.as_micros() as u64,
        });
        self.ios_all += self.ios;
        self.ios = 0;
        self.latency_us.reset();
        (self.gap, self.gap_less_delay) = (Duration::ZERO, Duration::ZERO);
        self.next_tick = now + TICK;
        Some(line)
    }
}

/// The run delay of a thread, since a mark.
struct Delay {
    schedstat: Option<File>,
    marked: u64,
}

impl Delay {
    fn new(path: &str) -> Self {
        let mut this = Self { schedstat: File::open(path).ok(), marked: 0 };
        this.mark();
        this
    }

    fn mark(&mut self) {
        self.marked = self.read();
    }

    fn read(&self) -> u64 {
        let mut line = [0; 96];
        let length = self.schedstat.as_ref().and_then(|file| file.read_at(&mut line, 0).ok());
        let line = length.and_then(|n| std::str::from_utf8(&line[..n]).ok()).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(self.marked)
    }

    fn since_mark(&self) -> Duration {
        Duration::from_nanos(self.read().saturating_sub(self.marked))
    }
}

fn us(t: Instant) -> u64 {
    t.as_nanos() / 1000
}
