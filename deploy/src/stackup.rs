//! From the command line to a transport: enters the network namespace, opens the lane or the
//! sockets, and runs a [`Job`] on them, which is generic so that nothing on the I/O path is
//! dynamic.

use anyhow::{Result, bail, ensure};
use moorline_stack::Transport;
use moorline_stack::lane::{LaneOptions, Mode};
use moorline_stack::link::xdp::XdpLink;

use crate::cli::{LaneArgs, XdpMode};
use crate::perf::report::TransportKind;

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
}

/// Makes the transport that `lane` describes, and runs `job` on it. The calling thread moves into
/// the lane's network namespace, and stays there.
///
/// # Errors
/// When the transport cannot be made (the message says what to do), and the job's own.
pub fn run<J: Job>(lane: &LaneArgs, job: J) -> Result<J::Out> {
    if let Some(netns) = &lane.netns {
        moorline_rig::enter(netns)?;
    }
    match lane.transport {
        TransportKind::Xdp => on_xdp(lane, job),
        TransportKind::Kernel => on_kernel(lane, job),
    }
}

fn on_xdp<J: Job>(lane: &LaneArgs, _job: J) -> Result<J::Out> {
    let _link = open_lane(lane)?;
    bail!("TCP over AF_XDP is not part of this build yet")
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

fn on_kernel<J: Job>(_lane: &LaneArgs, _job: J) -> Result<J::Out> {
    bail!("kernel sockets are not part of this build yet")
}
