//! One smoltcp interface for all connections of a lane, and the four calls that we make of it.
//!
//! The interface has no time of its own: each call is handed the clock of the connection it is
//! made for. It never sees Ethernet, ARP or a route, and takes every address for its own: what is
//! not to one of ours never gets here, so how many we have is not its matter.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::socket::tcp::CongestionControl;
use smoltcp::wire::{HardwareAddress, IpEndpoint, IpListenEndpoint, Ipv4Cidr};

use super::TcpConfig;
use super::conn::Conn;
use super::demux::Keyed;
use super::device::{L2, Port, Shape};
use crate::eth::{Datagram, Mac};
use crate::icmp;
use crate::route::Cidr;
use crate::segment::{Segment, Tuple};
use crate::{Instant, LinkTx};

/// The interface and what it is made of.
pub(super) struct Stack {
    interface: Interface,
    /// The broadcast addresses of our networks.
    broadcasts: Vec<Ipv4Addr>,
    pub checksum: ChecksumCapabilities,
    congestion: CongestionControl,
    mtu: usize,
    mac: [u8; 6],
    vlan: Option<u16>,
    scratch: Vec<u8>,
    keyed: Keyed,
    /// Counts what was drawn under the key.
    draws: u64,
}

impl Stack {
    pub(super) fn new(mtu: usize, mac: [u8; 6], config: &TcpConfig, keyed: Keyed) -> Self {
        let mut checksum = ChecksumCapabilities::default();
        if config.no_tcp_checksums {
            checksum.tcp = Checksum::None;
        }
        let congestion = match config.reno {
            true => CongestionControl::Reno,
            false => CongestionControl::None,
        };
        let TcpConfig { vlan, addresses, .. } = config;
        let broadcast = |cidr: &Cidr| match cidr.ip {
            IpAddr::V4(ip) => Ipv4Cidr::new(ip, cidr.prefix).broadcast(),
            IpAddr::V6(_) => None,
        };
        let broadcasts = addresses.iter().filter_map(broadcast).collect();
        let interface = interface(mtu, &checksum, 0);
        let scratch = vec![0; mtu];
        let vlan = *vlan;
        Self {
            interface,
            broadcasts,
            checksum,
            congestion,
            mtu,
            mac,
            vlan,
            scratch,
            keyed,
            draws: 0,
        }
    }

    /// Whether `ip` stands for all nodes of one of our networks: no peer's.
    pub(super) fn is_broadcast(&self, ip: IpAddr) -> bool {
        self.broadcasts.iter().any(|broadcast| ip == *broadcast)
    }

    pub(super) fn l2(&self, destination: [u8; 6]) -> L2 {
        L2::new(self.mac, destination, self.vlan)
    }

    /// Our own hardware address is another.
    pub(super) fn set_source(&mut self, source: Mac) {
        self.mac = source;
    }

    /// A number that no peer can foresee.
    pub(super) fn draw(&mut self) -> u64 {
        self.draws += 1;
        self.keyed.hash_one(self.draws)
    }

    /// The next connection's initial sequence number comes from a generator of its own, seeded by
    /// our key: smoltcp's gives its state away to whoever sees a few of its numbers.
    fn prepare(&mut self, conn: &mut Conn) {
        let seed = self.draw();
        self.interface = interface(self.mtu, &self.checksum, seed);
        conn.socket_mut().set_congestion_control(self.congestion);
    }

    /// Makes the socket send a SYN at the next [`Stack::egress`].
    pub(super) fn connect(&mut self, conn: &mut Conn) {
        self.prepare(conn);
        let Tuple { local, remote } = conn.tuple;
        let context = self.interface.context();
        conn.socket_mut()
            .connect(context, endpoint(remote), endpoint(local))
            .expect("a fresh socket, and endpoints of one family with ports");
    }

    /// Makes the socket take the SYN that comes with the next [`Stack::ingress`].
    pub(super) fn listen(&mut self, conn: &mut Conn) {
        self.prepare(conn);
        let local = conn.tuple.local;
        let local = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        conn.socket_mut().listen(local).expect("a fresh socket, and a port");
    }

    /// Hands a received packet to its connection; returns what it answered.
    pub(super) fn ingress<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        conn: &mut Conn,
        packet: &[u8],
    ) -> Option<Segment> {
        let mut port = Port {
            tx,
            l2: &conn.l2,
            mtu: self.mtu,
            checksum: &self.checksum,
            received: Some(packet),
            scratch: &mut self.scratch,
            amend: conn.amend(),
            reserve: 0,
            sent: None,
        };
        let now = conn.clock.at(now);
        self.interface.poll_ingress_single(now, &mut port, &mut conn.sockets);
        port.sent
    }

    /// Lets the connection send one segment, if it wants to and `reserve` frames stay free.
    pub(super) fn egress<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        conn: &mut Conn,
        reserve: usize,
    ) -> Option<Segment> {
        let mut port = Port {
            tx,
            l2: &conn.l2,
            mtu: self.mtu,
            checksum: &self.checksum,
            received: None,
            scratch: &mut self.scratch,
            amend: conn.amend(),
            reserve,
            sent: None,
        };
        let now = conn.clock.at(now);
        self.interface.poll_egress(now, &mut port, &mut conn.sockets);
        port.sent
    }

    /// Answers an ICMP echo request, if it is one.
    pub(super) fn echo<T: LinkTx>(&mut self, tx: &mut T, source: Mac, request: &Datagram<'_>) {
        if let Some(len) = icmp::echo_reply(request, &mut self.scratch) {
            self.l2(source)
                .transmit(tx, len, |packet| packet.copy_from_slice(&self.scratch[..len]));
        }
    }

    /// When the connection wants to send, in microseconds of its own clock; 0 is "at once".
    pub(super) fn poll_at(&mut self, now: Instant, conn: &Conn) -> Option<i64> {
        let at = self.interface.poll_at(conn.clock.at(now), &conn.sockets);
        at.map(|at| at.total_micros())
    }
}

fn endpoint(address: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(address.ip().into(), address.port())
}

fn interface(mtu: usize, checksum: &ChecksumCapabilities, seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    // Its own time is never read: each call brings one.
    let start = smoltcp::time::Instant::ZERO;
    let mut interface = Interface::new(config, &mut Shape { mtu, checksum }, start);
    interface.set_any_ip(true);
    interface
}
