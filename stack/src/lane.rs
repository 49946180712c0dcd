//! Opening a lane: one queue of an interface, with everything that makes frames arrive on it.
//!
//! The steering program is attached, an AF_XDP socket bound, and the one told of the other. Either
//! all of it stands when [`open`] returns, or none of it; and all of it goes with the link. When the
//! interface goes away and comes back, the link makes it anew from the same options.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

pub use moorline_bpf::Mode;
use moorline_bpf::{Steering, SteeringConfig, netdev};
use moorline_xsk::{Options, Socket};

use crate::link::xdp::XdpLink;

/// What a lane shall be.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// The interface, in the calling thread's network namespace.
    pub ifname: String,
    /// Where the steering program runs.
    pub mode: Mode,
    /// Our addresses. The kernel must not have them too.
    pub addrs: Vec<IpAddr>,
    /// Our 802.1Q VLAN; without one, frames are untagged.
    pub vlan: Option<u16>,
    /// The socket; its `mtu` is replaced by the interface's.
    pub socket: Options,
    /// How long the interface may be down or gone before that is logged as an error. It is looked
    /// for without end: what is given up, and when, is decided above (`ack_timeout`, controller
    /// loss).
    pub reopen_timeout: Duration,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self {
            ifname: String::new(),
            mode: Mode::default(),
            addrs: Vec::new(),
            vlan: None,
            socket: Options::default(),
            reopen_timeout: Duration::from_secs(30),
        }
    }
}

impl LaneOptions {
    /// Queue 0 of `ifname` with these addresses, and defaults for the rest.
    pub fn new(ifname: &str, addrs: &[IpAddr]) -> Self {
        Self { ifname: ifname.to_owned(), addrs: addrs.to_vec(), ..Self::default() }
    }
}

/// Why a lane cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface is missing, or does not answer.
    #[error("interface {ifname}: {source} (`ip link` shows those of this network namespace)")]
    Interface {
        /// Its name.
        ifname: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interface is down.
    #[error("interface {0} is down: `ip link set dev {0} up`")]
    Down(String),
    /// The steering program.
    #[error(transparent)]
    Steering(#[from] moorline_bpf::Error),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] moorline_xsk::Error),
}

/// Opens a lane. Its interface may go away later, and be made again under the same name: see
/// [`XdpLink`].
///
/// # Errors
/// See [`Error`]; nothing is left behind then.
pub fn open(options: &LaneOptions) -> Result<XdpLink, Error> {
    let parts = assemble(options)?;
    XdpLink::new(options.clone(), parts)
        .map_err(|source| Error::Interface { ifname: options.ifname.clone(), source })
}

/// What a lane consists of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub mtu: usize,
    pub mac: [u8; 6],
    pub steering: Steering,
    pub socket: Socket,
}

/// Makes the parts of a lane, all or none. Takes some 15 ms, most of it for the steering program,
/// and as long as others hold the kernel's lock on interfaces.
pub(crate) fn assemble(options: &LaneOptions) -> Result<Parts, Error> {
    let ifname = &options.ifname;
    let interface = |source| Error::Interface { ifname: ifname.clone(), source };
    let ifindex = netdev::index(ifname).map_err(interface)?;
    let mtu = netdev::mtu(ifname).map_err(interface)?;
    let mac = netdev::mac(ifname).map_err(interface)?;
    if !netdev::is_up(ifname).map_err(interface)? {
        return Err(Error::Down(ifname.clone()));
    }
    let steering = Steering::attach(&SteeringConfig {
        ifindex,
        mode: options.mode,
        addrs: options.addrs.clone(),
        vlan: options.vlan,
    })?;
    let socket = Socket::open(ifname, &Options { mtu, ..options.socket.clone() })?;
    let fd = socket.fd().expect("it has just been opened");
    steering.register(options.socket.queue, fd)?;
    let report = socket.report();
    tracing::info!(
        ifname,
        queue = options.socket.queue,
        mtu,
        mode = %steering.mode(),
        zero_copy = report.zero_copy,
        huge_pages = report.huge_pages,
        tx_budget = report.tx_budget,
        send_buffer = report.send_buffer,
        "lane open"
    );
    Ok(Parts { mtu, mac, steering, socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_is_named() {
        let error = open(&LaneOptions::new("nosuch0", &[])).unwrap_err();
        assert!(matches!(error, Error::Interface { .. }));
        assert!(error.to_string().contains("nosuch0"), "{error}");
    }
}
