//! From the command line to a transport: enters the network namespace, opens the lane or the
//! sockets, and runs a [`Job`] on them, which is generic so that nothing on the I/O path is
//! dynamic.

use std::io;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use moorline_stack::kernel::KernelSockets;
use moorline_stack::lane::{LaneOptions, Mode};
use moorline_stack::link::fault::{Faults, FaultsHandle, Faulty};
use moorline_stack::link::xdp::XdpLink;
use moorline_stack::mem::map_large_allocations;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::{Instant, Link, Transport, route};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cli::{Cidr, LaneArgs, TcpChecksum, XdpMode};
use crate::perf::report::TransportKind;

/// Connections that kernel sockets hold at once; our own stack has limits of its own.
const KERNEL_CONNS_MAX: usize = 4096;
/// Where the faults of `--drop` are drawn from: the same with every start.
const FAULT_SEED: u64 = 1;

/// Something to do with a transport, whichever it is.
pub trait Job {
    /// What it comes to.
    type Out;

    /// Does it. The transport is gone when this returns.
    ///
    /// # Errors
    /// The job's own.
    fn run<T: Transport>(self, transport: T, path: Path) -> Result<Self::Out>;
}

/// What is known of the way that a transport's bytes take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// MTU of the interface; `None` for kernel sockets, which choose it themselves.
    pub mtu: Option<usize>,
    /// Where the XDP program runs, `native` or `skb`; `None` without one.
    pub xdp_mode: Option<String>,
    /// Whether the kernel moves frames without a copy.
    pub zero_copy: bool,
    /// What our stack does about TCP checksums; `None` where they are the kernel's matter.
    pub tcp_checksum: Option<TcpChecksum>,
}

/// Makes the transport that `lane` describes, and runs `job` on it. The calling thread moves into
/// the lane's network namespace, and stays there.
///
/// # Errors
/// When the transport cannot be made (the message says what to do), and the job's own.
pub fn run<J: Job>(lane: &LaneArgs, job: J) -> Result<J::Out> {
    run_with(lane, None, job)
}

/// The same, with a link whose faults `faults` may change while it runs. Without, nothing on the
/// way of a frame knows of faults; kernel sockets have no link of ours.
///
/// # Errors
/// As [`run`].
pub fn run_with<J: Job>(lane: &LaneArgs, faults: Option<FaultsHandle>, job: J) -> Result<J::Out> {
    map_large_allocations();
    if let Some(netns) = &lane.netns {
        moorline_rig::enter(netns)?;
    }
    match lane.transport {
        TransportKind::Xdp => on_xdp(lane, faults, job),
        TransportKind::Kernel => on_kernel(job),
    }
}

fn on_xdp<J: Job>(lane: &LaneArgs, faults: Option<FaultsHandle>, job: J) -> Result<J::Out> {
    let link = open_lane(lane)?;
    let path = Path {
        mtu: Some(link.mtu()),
        xdp_mode: Some(link.mode().to_string()),
        zero_copy: link.report().zero_copy,
        tcp_checksum: Some(lane.tcp_checksum.unwrap_or_default()),
    };
    if lane.drop.is_none() && faults.is_none() {
        return over(link, path, lane, job);
    }
    let drop = lane.drop.unwrap_or(0.0);
    ensure!((0.0..=1.0).contains(&drop), "--drop {drop}: write a share, from 0 to 1");
    let own = Faults { drop, ..Faults::default() };
    let link = Faulty::with(link, FAULT_SEED, own).sharing(faults.unwrap_or_default());
    over(link, path, lane, job)
}

fn over<L: Link, J: Job>(link: L, path: Path, lane: &LaneArgs, job: J) -> Result<J::Out> {
    let config = TcpConfig {
        addresses: lane.addr.iter().map(|c| route::Cidr { ip: c.addr, prefix: c.prefix }).collect(),
        gateways: lane.gateway.clone(),
        vlan: lane.vlan,
        probe_addresses: true,
        no_tcp_checksums: path.tcp_checksum == Some(TcpChecksum::Off),
        ..TcpConfig::default()
    };
    let mut tcp = Tcp::new(Instant::monotonic(), link, &config)
        .context("giving our stack its addresses (--addr, --gateway)")?;
    probe(&mut tcp).context("probing our addresses (--addr)")?;
    job.run(tcp, path)
}

/// Waits until our addresses are probed, so that listening on another node's fails at once. They
/// are announced by whoever flushes next: a target when it listens, for whoever hears of it tries
/// it at once.
fn probe<L: Link>(tcp: &mut Tcp<L>) -> io::Result<()> {
    loop {
        let now = Instant::monotonic();
        tcp.turn(now);
        if !tcp.is_probing() {
            return Ok(());
        }
        tcp.flush(now);
        let until = tcp.poll_timeout();
        tcp.wait(until, &[])?;
    }
}

/// Opens the lane that `lane` describes.
fn open_lane(lane: &LaneArgs) -> Result<XdpLink> {
    let Some(dev) = &lane.dev else {
        bail!("AF_XDP needs --dev IFNAME and --addr IP/PREFIX; or use --transport kernel");
    };
    ensure!(!lane.addr.is_empty(), "our own stack needs an address of its own: --addr IP/PREFIX");
    if let Err(why) = moorline_rig::has_capabilities(&["CAP_NET_ADMIN", "CAP_NET_RAW"]) {
        bail!("AF_XDP needs {why}: run as root (sudo); --transport kernel needs no privileges");
    }
    if let Some(Cidr { addr, .. }) = lane.addr.iter().find(|cidr| kernel_has(cidr.addr)) {
        bail!(
            "--addr {addr} is the kernel's in this network namespace: choose one that is free, or \
             use --transport kernel"
        );
    }
    let addrs: Vec<_> = lane.addr.iter().map(|cidr| cidr.addr).collect();
    let mut options = LaneOptions::new(dev, &addrs);
    options.mode = match lane.xdp_mode {
        XdpMode::Auto => Mode::Auto,
        XdpMode::Skb => Mode::Skb,
        XdpMode::Native => Mode::Native,
    };
    options.vlan = lane.vlan;
    options.socket.queue = lane.queue;
    Ok(moorline_stack::lane::open(&options)?)
}

/// Whether the kernel has `addr` in the calling thread's network namespace; who has it answers
/// for it, and it cannot be our stack's as well.
pub fn kernel_has(addr: IpAddr) -> bool {
    let binds = |addr: IpAddr| UdpSocket::bind((addr, 0)).is_ok();
    // Nobody's, by RFC 5737 and 3849: where it binds (`ip_nonlocal_bind`), binding tells nothing.
    let nobodys: IpAddr = match addr {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    binds(addr) && !binds(nobodys)
}

fn on_kernel<J: Job>(job: J) -> Result<J::Out> {
    // A descriptor for each connection: as many as we are allowed to ask for.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }); // or as it is
    let sockets = KernelSockets::new(KERNEL_CONNS_MAX).context("opening kernel sockets")?;
    job.run(sockets, Path::default())
}

#[cfg(test)]
mod tests {
    use moorline_stack::link::sim::{SimLink, WireOptions};

    use super::*;

    #[test]
    fn addresses_are_announced_by_who_flushes_after_they_were_probed() {
        let (link, _peer) = SimLink::pair(&WireOptions::default());
        let addresses = vec![route::Cidr { ip: [10, 0, 0, 1].into(), prefix: 24 }];
        let config = TcpConfig { addresses, probe_addresses: true, ..TcpConfig::default() };
        let mut tcp = Tcp::new(Instant::monotonic(), link, &config).unwrap();
        probe(&mut tcp).unwrap();
        assert_eq!(tcp.stats().tx_frames, 3, "probes");
        tcp.flush(Instant::monotonic());
        assert_eq!(tcp.stats().tx_frames, 4, "and then an announcement");
    }
}
