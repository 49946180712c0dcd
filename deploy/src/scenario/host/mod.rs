//! `moorline rig-host`: the host of a scenario. One controller under load, others that come and
//! go, all on one thread; what happens is told as JSON, one object a line.
//!
//! Lines carry `t_us`, microseconds of CLOCK_MONOTONIC, which all processes of a machine share.

pub mod delays;
mod load;
mod reactor;
mod shadow;
mod tally;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use moorline_nvme::host::{CtrlConfig, Host, HostLimits, Reconnect, Requeue, Timeouts};
use moorline_stack::mem::Arena;
use moorline_stack::transport::ConnOptions;
use moorline_stack::{Instant, Transport};
use serde_json::json;

use self::delays::Delays;
use self::load::Load;
pub use self::reactor::READ_BACK_TIMEOUT;
use self::reactor::Reactor;
use self::verify::{Verify, VerifyOptions};
use crate::cli::{DEFAULT_NQN, LaneArgs};
use crate::exit::Exit;
use crate::identity::identity_of;
use crate::out;
use crate::perf::workload::{Bytes, parse_duration};
use crate::serve::config::Settings;
use crate::serve::control::Control;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

/// What the names of controllers that come and go begin with.
const DEAD: &str = "dead-";

/// Whether a controller of this name comes and goes.
pub fn is_dead(name: &str) -> bool {
    name.starts_with(DEAD)
}

/// Most commands under way of a controller.
pub const VERIFY_DEPTH_MAX: u16 = 128;

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
    /// How long data of those that come and go may stay unacknowledged.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    ack_timeout: Option<Duration>,
    /// How long an I/O command of those that come and go may take.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    io_timeout: Option<Duration>,
    /// Write and read, and check, on those that come and go: so many commands under way of each.
    #[arg(long, value_name = "N")]
    verify: Option<u16>,
    /// Blocks of each of these.
    #[arg(long, value_name = "N", default_value_t = 64)]
    verify_blocks: u32,
    /// From one command of each of these to its next, at least.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1ms")]
    verify_pace: Duration,
    /// The host keeps the commands of a lost path, and issues them again.
    #[arg(long)]
    requeue: bool,
    /// Listen for `moorline ctl` here.
    #[arg(long, value_name = "PATH")]
    ctl: Option<PathBuf>,
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
    let depth = args.verify.unwrap_or(1);
    ensure!((1..=VERIFY_DEPTH_MAX).contains(&depth), "--verify: 1 to {VERIFY_DEPTH_MAX}");
    let stop = Stop::on_signals()?;
    let control = match &args.ctl {
        Some(path) => Some(Control::open(path, Settings::default())?),
        None => None,
    };
    let orphaned = Arc::new(AtomicBool::new(false));
    let (ended, gone) = (stop.clone(), orphaned.clone());
    std::thread::spawn(move || {
        // Whether it ends or fails, the parent is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        gone.store(true, Ordering::Relaxed);
        ended.request();
    });
    stackup::run(&args.lane, RigHost { args, stop, orphaned, control })?;
    Ok(Exit::Ok)
}

struct RigHost<'a> {
    args: &'a RigHostArgs,
    stop: Stop,
    orphaned: Arc<AtomicBool>,
    control: Option<Control>,
}

impl RigHost<'_> {
    /// How the controller of an address is held.
    fn config(&self, addr: SocketAddr) -> CtrlConfig {
        let args = self.args;
        let buffer = args.tcp_buffer.0 as usize;
        let conn = ConnOptions { rx_buffer: buffer, tx_buffer: buffer, ..ConnOptions::default() };
        let config = CtrlConfig {
            reconnect: Some(Reconnect::default()),
            kato: args.kato,
            conn,
            ..CtrlConfig::new(addr, DEFAULT_NQN)
        };
        if addr == args.healthy {
            return config;
        }
        let io = args.io_timeout.unwrap_or(config.timeouts.io);
        let ack_timeout = args.ack_timeout.unwrap_or(config.conn.ack_timeout);
        CtrlConfig {
            io_queues: args.io_queues,
            conn: ConnOptions { ack_timeout, ..config.conn },
            timeouts: Timeouts { io, ..config.timeouts },
            requeue: args.requeue.then(Requeue::default),
            ..config
        }
    }

    fn verifies(&self) -> Result<Vec<Verify>> {
        let Some(depth) = self.args.verify else { return Ok(Vec::new()) };
        let options = VerifyOptions {
            depth,
            blocks: self.args.verify_blocks,
            pace: self.args.verify_pace,
            requeue: self.args.requeue,
        };
        let count = self.args.dead.len();
        let mut arena = Arena::new(count * Verify::memory(&options));
        (0..count as u32).map(|index| Verify::new(options, index, &mut arena)).collect()
    }
}

impl Job for RigHost<'_> {
    type Out = ();

    fn run<T: Transport>(mut self, transport: T, _: Path) -> Result<()> {
        let identity = identity_of(None, None)?;
        let count = 1 + self.args.dead.len();
        let io_queues = self.args.io_queues;
        let limits = HostLimits { controllers: count, io_queues, ..HostLimits::default() };
        let mut host = Host::new(transport, identity, limits);
        let now = Instant::monotonic();
        out::line(format_args!("{}", json!({ "event": "connecting", "t_us": us(now) })))?;
        let mut ctrls = Vec::with_capacity(count);
        let dead = self.args.dead.iter().enumerate();
        let named = dead.map(|(k, addr)| (format!("{DEAD}{k:03}"), *addr));
        for (name, addr) in std::iter::once(("healthy".to_owned(), self.args.healthy)).chain(named)
        {
            let config = self.config(addr);
            ctrls.push(match &mut self.control {
                Some(control) => control.connect(now, &mut host, name, config)?,
                None => host.connect(now, config)?,
            });
        }
        let load = Load::new(now, self.args.iodepth, Delays::new(self.args.target_pid))?;
        let verifies = self.verifies()?;
        let reactor = Reactor::new(host, ctrls, self.args.healthy, load, verifies, self.control)?;
        reactor.until(&self.stop, &self.orphaned, self.args.lane.poll)
    }
}

fn us(t: Instant) -> u64 {
    t.as_nanos() / 1000
}
