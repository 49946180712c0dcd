//! What `perf` puts into a rig: the target, the far ends of the floors, and our own end of each.
//!
//! Whatever is started here is a process of its own in the target's namespace, and is ended when
//! its [`Peer`] is dropped. Our end runs in the host's namespace, on the first CPU.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use moorline_rig::{End, Rig};
use moorline_stack::Link;
use moorline_stack::lane::{self, LaneOptions};
use serde_json::Value;

use super::child::Peer;
use super::exchange::Exchange;
use super::floor::{self, Addr, Floor};
use super::report::TransportKind;
use super::{measure, plain};
use crate::cli::{Cidr, LaneArgs, PollMode, TcpChecksum, XdpMode};
use crate::commands::floor::{READY, parse_mac};
use crate::signals::Stop;

/// Where the plain-socket ping-pong listens.
const PLAIN_PORT: u16 = 4421;

/// What the target serves, and how.
#[derive(Clone, Debug)]
pub struct TargetSpec {
    /// Back end, as for `moorline target`.
    pub backend: String,
    /// The subsystem's NQN.
    pub nqn: String,
    /// What it does while there is nothing to do.
    pub poll: PollMode,
    /// Where the XDP program is attached.
    pub xdp_mode: XdpMode,
    /// TCP checksums on AF_XDP, at both ends.
    pub tcp_checksum: TcpChecksum,
}

/// A lane on one end of a rig; `None` for the namespace means the thread's own.
pub fn lane_args(end: &End, transport: TransportKind, poll: PollMode) -> LaneArgs {
    LaneArgs {
        transport,
        dev: Some(end.dev().to_owned()),
        addr: vec![Cidr { addr: end.xdp_addr(false), prefix: End::prefix(false) }],
        gateway: Vec::new(),
        queue: 0,
        xdp_mode: XdpMode::Auto,
        tcp_checksum: None,
        vlan: None,
        poll,
        netns: None,
        allow_faults: false,
        drop: None,
    }
}

/// On which CPUs the ends of a rig run: ours, and a [`Peer`]'s.
pub fn pinning() -> String {
    format!("host on CPU 0, target on CPU {}", measure::cpus() - 1)
}

/// Where a target on this end is reached.
pub fn target_addr(end: &End, transport: TransportKind) -> IpAddr {
    match transport {
        TransportKind::Xdp => end.xdp_addr(false),
        TransportKind::Kernel => end.kernel_addr(false),
    }
}

/// Starts a target in the rig's target namespace, and waits until it listens.
///
/// # Errors
/// When it cannot be started; it has said why.
pub fn start_target(rig: &Rig, transport: TransportKind, spec: &TargetSpec) -> Result<Peer> {
    let end = rig.target();
    let mut command = end.command(std::env::current_exe().context("our own program")?);
    let addr = target_addr(end, transport);
    command.args(target_args(transport, spec));
    match transport {
        TransportKind::Xdp => {
            let cidr = format!("{addr}/{}", End::prefix(false));
            command.args(["--dev", end.dev(), "--addr", &cidr]);
            command.args(["--xdp-mode", value_name(spec.xdp_mode).as_str()]);
            command.args(["--tcp-checksum", spec.tcp_checksum.name()]);
        }
        TransportKind::Kernel => {
            command.args(["--listen", &addr.to_string()]);
        }
    }
    let mut peer = Peer::start(command)?;
    peer.expect(listening)?;
    Ok(peer)
}

/// The options of a target that ends with us, its back end and NQN among them.
pub fn target_args(transport: TransportKind, spec: &TargetSpec) -> Vec<String> {
    let poll = value_name(spec.poll);
    let words = [
        "target",
        "--json",
        "--until-stdin-ends",
        "--transport",
        transport.name(),
        "--poll",
        &poll,
        "--backend",
        &spec.backend,
        "--nqn",
        &spec.nqn,
    ];
    words.map(str::to_owned).to_vec()
}

/// The address in a target's line that says it listens.
pub fn listening(line: &str) -> Option<SocketAddr> {
    let event: Value = serde_json::from_str(line).ok()?;
    if event["event"] != "listening" {
        return None;
    }
    event["addrs"][0].as_str()?.parse().ok()
}

/// How an option's value is written on the command line.
fn value_name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

/// An exchange to find the floors of: alone, and at a depth.
#[derive(Clone, Debug)]
pub struct FloorCase {
    /// The frames.
    pub exchange: Exchange,
    /// Exchanges under way.
    pub depth: u16,
}

/// The raw AF_XDP floors: for each case alone (QD 1), then at its depth.
///
/// # Errors
/// When a lane cannot be opened, or nothing comes back.
pub fn raw_floors(
    rig: &Rig,
    cases: &[FloorCase],
    runtime: Duration,
    stop: &Stop,
) -> Result<Vec<(Floor, Floor)>> {
    let far = rig.target();
    let to_ip = ipv4(far.xdp_addr(false))?;
    let mut command = far.command(std::env::current_exe().context("our own program")?);
    command.args(["floor-server", "--dev", far.dev(), "--addr", &to_ip.to_string()]);
    let mut peer = Peer::start(command)?;
    let mac = peer.expect(|line| parse_mac(line.strip_prefix(READY)?))?;
    let near = rig.host();
    let from_ip = ipv4(near.xdp_addr(false))?;
    near.run(|| {
        measure::pin(0);
        let mut link = lane::open(&LaneOptions::new(near.dev(), &[from_ip.into()]))?;
        let ends = (Addr { mac: link.mac(), ip: from_ip }, Addr { mac, ip: to_ip });
        let mut floors = Vec::with_capacity(cases.len());
        for FloorCase { exchange, depth } in cases {
            let alone = floor::run(&mut link, ends, exchange, 1, runtime, stop)?;
            let deep = match depth {
                1 => alone,
                _ => floor::run(&mut link, ends, exchange, *depth, runtime, stop)?,
            };
            floors.push((alone, deep));
        }
        Ok(floors)
    })?
}

/// Ping-pong over plain kernel sockets, for each case.
///
/// # Errors
/// When the far end cannot be reached.
pub fn plain_floors(
    rig: &Rig,
    cases: &[FloorCase],
    runtime: Duration,
    stop: &Stop,
) -> Result<Vec<Floor>> {
    let far = rig.target();
    let addr = SocketAddr::new(far.kernel_addr(false), PLAIN_PORT);
    let mut command = far.command(std::env::current_exe().context("our own program")?);
    command.args(["plain-server", "--listen", &addr.to_string()]);
    let mut peer = Peer::start(command)?;
    peer.expect(|line| line.strip_prefix(READY).map(drop))?;
    rig.host().run(|| {
        measure::pin(0);
        cases.iter().map(|case| plain::run(addr, &case.exchange, runtime, stop)).collect()
    })?
}

fn ipv4(addr: IpAddr) -> Result<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Ok(addr),
        IpAddr::V6(addr) => bail!("the floors are IPv4, not {addr}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_asked_for_in_words_that_it_understands() {
        use clap::Parser;
        let spec = TargetSpec {
            backend: "ram:1m".into(),
            nqn: "nqn.2026-11.io.moorline:t".into(),
            poll: PollMode::Busy,
            xdp_mode: XdpMode::Skb,
            tcp_checksum: TcpChecksum::Off,
        };
        let mut words = vec!["moorline".to_owned()];
        words.extend(target_args(TransportKind::Kernel, &spec));
        crate::cli::Cli::try_parse_from(words).unwrap();
        assert_eq!(value_name(XdpMode::Skb), "skb");
    }

    #[test]
    fn the_listening_event_is_found_among_others() {
        let line = r#"{"event":"listening","pid":5,"addrs":["10.99.0.2:4420"]}"#;
        assert_eq!(listening(line), Some("10.99.0.2:4420".parse().unwrap()));
        assert_eq!(listening(r#"{"event":"end"}"#), None);
        assert_eq!(listening("not JSON"), None);
    }

    fn possible(name: &str) -> bool {
        match moorline_rig::possible() {
            Ok(()) => true,
            Err(why) if std::env::var_os("MOORLINE_REQUIRE_RIG").is_some() => panic!("{why}"),
            Err(why) => {
                eprintln!("SKIPPED: {name}: {why}");
                false
            }
        }
    }

    #[test]
    fn raw_frames_come_back_over_a_veth_pair() {
        if !possible("raw_frames_come_back_over_a_veth_pair") {
            return;
        }
        // The far end would be this test program: here it is a thread.
        let rig = Rig::up(moorline_rig::RigSpec::unique("ml-floor").mtu(9000)).unwrap();
        let (near, far) = (rig.host(), rig.target());
        let ip = |end: &End| ipv4(end.xdp_addr(false)).unwrap();
        let open = |end: &End| {
            let options = LaneOptions::new(end.dev(), &[ip(end).into()]);
            end.run(|| lane::open(&options)).unwrap().unwrap()
        };
        let (mut link, mut echo) = (open(near), open(far));
        let ends = (Addr { mac: link.mac(), ip: ip(near) }, Addr { mac: echo.mac(), ip: ip(far) });
        let stop = Stop::default();
        std::thread::scope(|scope| {
            let server = floor::Server::new(ip(far));
            let ended = stop.clone();
            scope.spawn(move || server.serve(&mut echo, &ended).unwrap());
            for exchange in [Exchange::of(true, 4096), Exchange::of(false, 128 << 10)] {
                let time = Duration::from_millis(50);
                let floor = floor::run(&mut link, ends, &exchange, 8, time, &stop).unwrap();
                assert!(floor.rate > 0.0, "{floor:?}");
            }
            stop.request();
        });
    }
}
