//! `moorline target`: serves back ends as namespaces of one subsystem, until it is told to end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use moorline_nvme::bdev::{Bdev, File, FileOptions, Null, Ram};
use moorline_nvme::target::{Subsystem, Target, TargetConfig, TargetStats};
use moorline_stack::link::fault::FaultsHandle;
use moorline_stack::time::earliest;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Instant, Transport};
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::json;

use crate::cli::{DEFAULT_NQN, LaneArgs, PollMode};
use crate::exit::Exit;
use crate::faults::Faults;
use crate::faults::ctl::Ctl;
use crate::faults::spec::Spec;
use crate::out;
use crate::perf::measure;
use crate::perf::report::{SCHEMA, TransportKind, VERSION};
use crate::perf::workload::Bytes;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

/// NVMe/TCP, and its discovery service (IANA).
const PORT: u16 = 4420;
const DISCOVERY_PORT: u16 = 8009;
/// Largest queue that a host may ask for, 0's based: more than anybody's queue depth.
const MQES: u16 = 255;
/// Half-open connections of a listener, and connections of one host that are not through Connect.
const HALF_OPEN_MAX: usize = 1024;
/// The least that an SQE, an admin command's data and their headers fit in, and the most that
/// TCP's window tells.
const TCP_BUFFER_MIN: usize = 16 << 10;
const TCP_BUFFER_MAX: usize = 16 << 20;
/// How long to spin after the last work, and how long to sleep at most.
const SPIN: Duration = Duration::from_micros(50);
const TICK: Duration = Duration::from_millis(100);
/// More than the end of all connections may take.
const END_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the end waits for writes that devices have: hosts repeat them with the next process.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Options of `target`.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// A namespace's back end: ram:SIZE, null:SIZE or file:PATH[:SIZE] (created with SIZE if it
    /// is missing). Repeat it for more namespaces; the first is namespace 1.
    #[arg(long, value_name = "KIND", required = true)]
    pub backend: Vec<Backend>,
    /// The subsystem's NQN.
    #[arg(short = 'n', long, value_name = "NQN", default_value = DEFAULT_NQN)]
    pub nqn: String,
    /// Where to listen, ADDR or ADDR:PORT; repeatable [default: our addresses, ports 4420 and,
    /// for discovery, 8009].
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub listen: Vec<Listen>,
    /// Block size of all namespaces.
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = ["512", "4096"])]
    pub block_size: String,
    /// Traffic based keep alive: every command says that the host is alive, and hosts send no Keep
    /// Alive while there is traffic.
    #[arg(long)]
    pub tbkas: bool,
    /// Controllers at once, over all hosts; each has an admin queue and its I/O queues.
    #[arg(long, value_name = "N", default_value_t = 1024,
          value_parser = clap::value_parser!(u16).range(1..=0x7FFF))]
    pub max_controllers: u16,
    /// Connections at once: one for each queue, admin queues among them. An I/O connection costs
    /// 64 KiB of tables, and up to twice --tcp-buffer, page by page as it is used.
    #[arg(long, value_name = "N", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_connections: u32,
    /// TCP send buffer of a connection, and its receive buffer (xdp).
    #[arg(long, value_name = "BYTES", default_value = "256k")]
    pub tcp_buffer: Bytes,
    /// Admit only this host NQN; repeatable [default: all].
    #[arg(long, value_name = "HOSTNQN")]
    pub allow: Vec<String>,
    /// Say what happens as JSON, one object a line.
    #[arg(long)]
    pub json: bool,
    /// Begin with a fault, KIND[=VALUE][,key=value…]; repeatable, refused without --allow-faults.
    /// deploy/CTL.md has the kinds.
    #[arg(long, value_name = "SPEC")]
    pub fault: Vec<Spec>,
    /// Answer `moorline ctl --socket PATH` here: connections, figures and, with --allow-faults,
    /// faults.
    #[arg(long, value_name = "PATH")]
    pub ctl: Option<PathBuf>,
    /// End when standard input does: for a parent that may be killed.
    #[arg(long, hide = true)]
    pub until_stdin_ends: bool,
    /// Our end of the network.
    #[command(flatten)]
    pub lane: LaneArgs,
}

/// A namespace's back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Memory, in bytes.
    Ram(u64),
    /// Reads give zeroes, writes go nowhere; size in bytes.
    Null(u64),
    /// A file or block device, with the size to create a missing file with.
    File(PathBuf, Option<u64>),
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write ram:SIZE, null:SIZE or file:PATH[:SIZE]");
        let size = |s: &str| s.parse::<Bytes>().map(|b| b.0).map_err(|e| e.to_string());
        let (kind, rest) = text.split_once(':').ok_or_else(usage)?;
        match kind {
            _ if rest.is_empty() => Err(usage()),
            "ram" => Ok(Self::Ram(size(rest)?)),
            "null" => Ok(Self::Null(size(rest)?)),
            "file" => Ok(match rest.rsplit_once(':') {
                // A path may hold colons: only what reads as a size is one.
                Some((path, s)) if size(s).is_ok() => Self::File(path.into(), size(s).ok()),
                _ => Self::File(rest.into(), None),
            }),
            _ => Err(usage()),
        }
    }
}

/// An address to listen on, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub addr: IpAddr,
    /// The port; `None`: 4420.
    pub port: Option<u16>,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Self { addr: addr.ip(), port: Some(addr.port()) });
        }
        match text.parse() {
            Ok(addr) => Ok(Self { addr, port: None }),
            Err(_) => Err(format!("{text:?}: write 10.0.0.5, 10.0.0.5:4420 or [fd00::5]:4420")),
        }
    }
}

/// Runs `target` until a signal ends it.
///
/// # Errors
/// When a back end cannot be opened or an address cannot be listened on.
pub fn run(args: TargetArgs) -> Result<Exit> {
    let stop = Stop::on_signals()?;
    if args.until_stdin_ends {
        let stop = stop.clone();
        thread::spawn(move || {
            // Whether it ends or fails, the parent is gone.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.request();
        });
    }
    let addrs = listen_addrs(&args)?;
    let subsystem = subsystem(&args)?;
    ensure!(
        args.lane.allow_faults || args.fault.is_empty(),
        "--fault is refused: faults are allowed with --allow-faults only"
    );
    let has_link = args.lane.allow_faults && args.lane.transport == TransportKind::Xdp;
    let link = has_link.then(FaultsHandle::default);
    let mut faults = Faults::new(args.lane.allow_faults, link.clone());
    faults.begin(Instant::monotonic(), &args.fault)?;
    let ctl = args.ctl.as_deref().map(Ctl::open).transpose()?;
    let serve = Serve { args: &args, addrs, subsystem, stop: stop.clone(), faults, ctl };
    stackup::run_with(&args.lane, link, serve)?;
    Ok(stop.exit())
}

/// Where to listen: what was asked for, or our own addresses at both well-known ports.
fn listen_addrs(args: &TargetArgs) -> Result<Vec<SocketAddr>> {
    let mut addrs: Vec<_> =
        args.listen.iter().map(|l| SocketAddr::new(l.addr, l.port.unwrap_or(PORT))).collect();
    if addrs.is_empty() {
        ensure!(
            args.lane.transport == TransportKind::Xdp,
            "say where to listen: --listen 127.0.0.1, or an address of this machine"
        );
        for cidr in &args.lane.addr {
            addrs.extend([PORT, DISCOVERY_PORT].map(|port| SocketAddr::new(cidr.addr, port)));
        }
    }
    Ok(addrs)
}

fn subsystem(args: &TargetArgs) -> Result<Subsystem> {
    let block_size: u32 = args.block_size.parse().context("--block-size")?;
    let mut subsystem = Subsystem::new(&args.nqn);
    if !args.allow.is_empty() {
        subsystem.hosts = Some(args.allow.clone());
    }
    for (nsid, backend) in (1..).zip(&args.backend) {
        let bdev = open(backend, block_size).with_context(|| format!("namespace {nsid}"))?;
        subsystem.add_namespace(nsid, bdev)?;
    }
    Ok(subsystem)
}

fn open(backend: &Backend, block_size: u32) -> Result<Box<dyn Bdev>> {
    let blocks = |bytes: u64| {
        ensure!(
            bytes > 0 && bytes.is_multiple_of(block_size.into()),
            "{bytes} bytes are not a whole number of blocks of {block_size}: change the size, or \
             --block-size"
        );
        Ok(bytes / u64::from(block_size))
    };
    let options = FileOptions { block_size, ..FileOptions::default() };
    Ok(match backend {
        Backend::Ram(bytes) => {
            let free = memory_available();
            ensure!(
                *bytes <= free,
                "ram:{} is more memory than this machine has free: {}",
                Bytes(*bytes),
                Bytes(free)
            );
            Box::new(Ram::new(block_size, blocks(*bytes)?))
        }
        Backend::Null(bytes) => Box::new(Null::new(block_size, blocks(*bytes)?, true)),
        Backend::File(path, None) => Box::new(File::open(path, &options)?),
        Backend::File(path, Some(bytes)) => {
            blocks(*bytes)?;
            Box::new(File::create(path, *bytes, &options)?)
        }
    })
}

/// Memory that can be had without swapping, bytes; where it is not known, no limit.
fn memory_available() -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .map_or(u64::MAX, |kib| kib << 10)
}

/// The target's limits. A host that has lost all its controllers comes back with all at once, so
/// one host may have nearly as many connections on their way as there may be in all.
fn config(args: &TargetArgs) -> Result<TargetConfig> {
    let buffer = usize::try_from(args.tcp_buffer.0).context("--tcp-buffer")?;
    ensure!((TCP_BUFFER_MIN..=TCP_BUFFER_MAX).contains(&buffer), "--tcp-buffer: 16k to 16M");
    let conns_max = args.max_connections as usize;
    let default = TargetConfig::default();
    let conn = ConnOptions { rx_buffer: buffer, tx_buffer: buffer, ..default.listen.conn };
    let half_open_max = conns_max.min(HALF_OPEN_MAX);
    Ok(TargetConfig {
        mqes: MQES,
        tbkas: args.tbkas,
        controllers_max: args.max_controllers.into(),
        conns_max,
        unauthenticated_per_peer_max: conns_max.min(HALF_OPEN_MAX),
        listen: ListenOptions { conn, half_open_max, open_max: conns_max, ..default.listen },
        ..default
    })
}

struct Serve<'a> {
    args: &'a TargetArgs,
    addrs: Vec<SocketAddr>,
    subsystem: Subsystem,
    stop: Stop,
    faults: Faults,
    ctl: Option<Ctl>,
}

impl Job for Serve<'_> {
    type Out = ();

    fn run<T: Transport>(mut self, transport: T, path: Path) -> Result<()> {
        let mut target = Target::new(transport, config(self.args)?);
        target.add_subsystem(self.subsystem)?;
        for addr in &self.addrs {
            target.listen(Instant::monotonic(), *addr)?;
        }
        self.faults.start(Instant::monotonic(), &mut target)?;
        let teller = Teller { args: self.args, path };
        teller.ready(&self.addrs)?;
        let poll = self.args.lane.poll;
        serve(&mut target, poll, &self.stop, &mut self.faults, &mut self.ctl)?;
        if target.frozen_until().is_some() {
            // Who is asked to end does.
            self.faults.clear(Instant::monotonic(), &mut target, None)?;
        }
        end(&mut target)?;
        teller.end(&target.stats())
    }
}

/// Turns until the end is asked for. It spins while there is work, and for a while after.
fn serve<T: Transport>(
    target: &mut Target<T>,
    poll: PollMode,
    stop: &Stop,
    faults: &mut Faults,
    ctl: &mut Option<Ctl>,
) -> Result<()> {
    let work = |s: &TargetStats| s.accepted + s.admin + s.reads + s.writes + s.other_ios;
    let (mut seen, mut busy_until) = (0, Instant::ZERO);
    while !stop.requested() {
        let now = Instant::monotonic();
        target.turn(now);
        faults.turn(now, target)?;
        if let Some(ctl) = ctl {
            ctl.turn(now, target, faults);
        }
        target.flush(now);
        if let Some(until) = target.frozen_until() {
            // Whatever arrives is left where it is.
            sleep(now, until.min(now + TICK), ctl.as_ref())?;
            continue;
        }
        let done = work(&target.stats());
        if done != seen {
            (seen, busy_until) = (done, now + SPIN);
        }
        if poll == PollMode::Adaptive && now >= busy_until {
            // A tick, so that a signal just before the sleep is not missed for long.
            let until = earliest(Some(now + TICK), faults.next());
            let until = earliest(until, ctl.as_ref().and_then(Ctl::poll_timeout));
            let fd = ctl.as_ref().map(Ctl::fd);
            target.wait(until, fd.as_slice()).context("waiting for hosts")?;
        }
    }
    Ok(())
}

/// Waits for nothing but the control socket.
fn sleep(now: Instant, until: Instant, ctl: Option<&Ctl>) -> Result<()> {
    let Some(ctl) = ctl else {
        thread::sleep(until.since(now));
        return Ok(());
    };
    let until = until.since(now);
    let timeout = Timespec { tv_sec: until.as_secs() as i64, tv_nsec: until.subsec_nanos().into() };
    let mut fds = [PollFd::from_borrowed_fd(ctl.fd(), PollFlags::IN)];
    match event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno).context("waiting for the control socket"),
    }
}

/// Closes all connections, so that hosts need not find out by waiting, and waits for the writes
/// that devices have: hosts issue them again as soon as there is a target, and overwrite them.
fn end<T: Transport>(target: &mut Target<T>) -> Result<()> {
    let started = Instant::monotonic();
    target.shutdown(started);
    loop {
        let now = Instant::monotonic();
        target.turn(now);
        target.flush(now);
        let stale_writes = target.stats().stale_writes;
        let limit = started + if stale_writes > 0 { DRAIN_TIMEOUT } else { END_TIMEOUT };
        if target.is_shut() {
            return Ok(());
        }
        if now >= limit {
            if stale_writes > 0 {
                tracing::warn!(stale_writes, "ends while devices have writes: they may come late");
            }
            return Ok(());
        }
        target.wait(Some(limit), &[]).context("closing connections")?;
    }
}

/// Tells a person, or a script, what happens.
struct Teller<'a> {
    args: &'a TargetArgs,
    path: Path,
}

impl Teller<'_> {
    fn ready(&self, addrs: &[SocketAddr]) -> Result<()> {
        if self.args.json {
            return self.tell(json!({
                "event": "listening",
                "pid": std::process::id(),
                "addrs": addrs,
                "nqn": self.args.nqn,
                "namespaces": self.args.backend.len(),
            }));
        }
        let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
        out::line(format_args!(
            "serving {} with {} namespace(s)",
            self.args.nqn,
            self.args.backend.len()
        ))?;
        out::line(format_args!("listening on {}", addrs.join(", ")))
    }

    fn end(&self, s: &TargetStats) -> Result<()> {
        if self.args.json {
            return self.tell(json!({
                "event": "end",
                "reads": s.reads,
                "writes": s.writes,
                "other_ios": s.other_ios,
                "admin": s.admin,
                "read_bytes": s.read_bytes,
                "written_bytes": s.written_bytes,
                "errors": s.errors,
                "accepted": s.accepted,
                "refused": s.refused,
                "fatal": s.fatal,
                "digest_errors": s.digest_errors,
                "timeouts": s.timeouts,
                "keep_alive_expired": s.keep_alive_expired,
                "stale_writes": s.stale_writes,
                "connects_held": s.connects_held,
            }));
        }
        out::line(format_args!(
            "served {} reads ({}), {} writes ({}), {} other, {} admin; {} failed",
            s.reads,
            Bytes(s.read_bytes),
            s.writes,
            Bytes(s.written_bytes),
            s.other_ios,
            s.admin,
            s.errors
        ))?;
        out::line(format_args!(
            "connections: {} accepted, {} refused, {} ended for protocol errors, {} timed out",
            s.accepted,
            s.refused,
            s.fatal,
            s.timeouts + s.keep_alive_expired
        ))
    }

    /// One line of JSON.
    fn tell(&self, mut what: serde_json::Value) -> Result<()> {
        what["schema"] = SCHEMA.into();
        what["version"] = VERSION.into();
        what["conditions"] = json!({
            "transport": self.args.lane.transport.name(),
            "mtu": self.path.mtu,
            "xdp_mode": self.path.xdp_mode,
            "zerocopy": self.path.zero_copy,
            "tcp_checksum": self.path.tcp_checksum,
            "kernel": measure::kernel(),
            "cpus": measure::cpus(),
        });
        out::line(format_args!("{what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_ends_are_named_by_kind() {
        assert_eq!("ram:1G".parse(), Ok(Backend::Ram(1 << 30)));
        assert_eq!("null:4k".parse(), Ok(Backend::Null(4096)));
        assert_eq!("file:/a/b".parse(), Ok(Backend::File("/a/b".into(), None)));
        assert_eq!("file:/a:b:1m".parse(), Ok(Backend::File("/a:b".into(), Some(1 << 20))));
        assert_eq!("file:/a:b".parse(), Ok(Backend::File("/a:b".into(), None)));
        for bad in ["ram", "ram:", "ram:x", "disk:/dev/sda", ""] {
            assert!(bad.parse::<Backend>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_listener_may_leave_out_its_port() {
        let parsed: Listen = "[fd00::5]:8009".parse().unwrap();
        assert_eq!(parsed.port, Some(8009));
        assert_eq!("10.0.0.5".parse::<Listen>().unwrap().port, None);
        assert!("here:4420".parse::<Listen>().is_err());
    }
}
