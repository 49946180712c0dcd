//! TCP of our own: smoltcp's sockets under clocks, deadlines and budgets that are ours.
//!
//! One [`Tcp`] per lane. smoltcp is used unmodified: one interface without L2, one socket set per
//! connection, found by a keyed hash of its endpoints. What smoltcp has no notion of is ours: which
//! connection is served when and how much ([`flush`](Transport::flush)), what time it is for each
//! (`clock`), when to give up (`engine`), acknowledgements that wait for company (`egress`).
//! Nothing is allocated per segment. Nothing a peer sends costs more than one bounded step.

mod clock;
mod conn;
mod control;
mod demux;
mod device;
mod egress;
mod engine;
mod hints;
mod ingress;
mod lane;
mod listen;
mod resting;
mod slots;
mod stack;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::echo::EchoFigures;
use crate::eth::{Frame, Mac, Packet};
use crate::icmp;
use crate::link::LinkEvent;
use crate::neighbour::{NeighbourOptions, Neighbours};
use crate::route::{Cidr, Routes};
use crate::time::{Duration, earliest};
use crate::transport::{
    ConnOptions, ConnReport, Event, IcmpError, ListenOptions, Transport, TransportStats, Work,
};
use crate::{ConnId, Instant, Link, LinkTx};

pub use conn::{TIMERS, Timer};
use demux::Keyed;
use engine::Engine;
pub use hints::IcmpErrors;
use lane::Lane;
use stack::Stack;

/// Frames taken in during one turn.
pub const RX_FRAMES_PER_TURN: usize = 256;

/// News of neighbours taken in during one turn: each is a look at every connection.
pub const NEIGHBOUR_EVENTS_PER_TURN: usize = 64;

/// After so many turns that left frames behind, all that waited at the first of them is taken in:
/// a receive ring holds no more than 4096.
const TURNS_TO_CATCH_UP: u32 = 16;

/// Our addresses on one link; each is looked for in a list.
pub const ADDRESSES_MAX: usize = 64;

/// How long to wait for room on a link that tells nobody when it has some.
const STARVED_RETRY: Duration = Duration::from_micros(20);

/// What a lane is given when it is made.
#[derive(Clone, Debug, Default)]
pub struct TcpConfig {
    /// Our addresses.
    pub addresses: Vec<Cidr>,
    /// At most one per family.
    pub gateways: Vec<IpAddr>,
    /// Neighbours that are never asked for.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// The VLAN that all our frames carry, and no others are heard.
    pub vlan: Option<u16>,
    /// Probe our addresses before using them (ARP probe, DAD): 150 ms until the first connect.
    pub probe_addresses: bool,
    /// Timings of ARP and ND.
    pub neighbour_options: NeighbourOptions,
    /// Neither compute nor check TCP checksums: only between ends that both do so.
    pub no_tcp_checksums: bool,
    /// Reno's congestion control. By default there is none: on a lossless storage network it
    /// takes each reordering for congestion; the peers' windows are what bounds us.
    pub reno: bool,
    /// Where initial sequence numbers, source ports and hash keys come from; `None`: from the OS.
    pub seed: Option<u64>,
}

/// TCP over a link.
pub struct Tcp<L> {
    link: L,
    lane: Lane,
    engine: Engine,
    now: Instant,
    failed: Option<i32>,
    /// The link's device is down or gone; it came up, which is to be told.
    link_is_down: bool,
    link_came_up: bool,
    drops: Drops,
    /// Turns in a row that left frames behind.
    behind: u32,
}

/// Frames that were received and not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// For another hardware address or VLAN.
    pub not_ours: u64,
    /// Cut, fragmented, or otherwise not what they claim to be.
    pub malformed: u64,
    /// Of a protocol that we do not speak.
    pub other: u64,
}

/// A connection, seen from outside.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Its name.
    pub id: ConnId,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Where it stands.
    pub stage: crate::transport::Stage,
    /// Since when.
    pub since: Instant,
    /// What it waits for, by [`Timer`].
    pub timers: [Option<Instant>; TIMERS],
    /// Bytes that the peer has not acknowledged.
    pub send_queue: usize,
    /// Bytes that the driver has not taken.
    pub recv_queue: usize,
    /// Segments sent again.
    pub retransmits: u32,
    /// The last ICMP error about it.
    pub hint: Option<IcmpError>,
    /// Our next sequence number, and the last one acknowledged to the peer.
    pub sequence: (u32, u32),
}

impl<L: Link> Tcp<L> {
    /// A lane on `link`. Its addresses are announced with the first turn.
    ///
    /// # Errors
    /// An address or gateway that cannot be used; no random numbers from the OS.
    pub fn new(now: Instant, mut link: L, config: &TcpConfig) -> io::Result<Self> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
        if config.addresses.len() > ADDRESSES_MAX {
            let error = format!("{} addresses, {ADDRESSES_MAX} at most", config.addresses.len());
            return Err(invalid(error));
        }
        let mut routes = Routes::default();
        let mut neighbours = Neighbours::new(link.mac(), config.neighbour_options.clone());
        for &address in &config.addresses {
            routes.add_address(address).map_err(|error| invalid(error.to_string()))?;
            neighbours.add_address(now, address.ip, config.probe_addresses);
        }
        for &gateway in &config.gateways {
            routes.set_gateway(gateway).map_err(|error| invalid(error.to_string()))?;
        }
        for &(ip, mac) in &config.neighbours {
            neighbours.add_static(ip, mac);
        }
        let keyed = key(config.seed)?;
        let (mac, vlan) = (link.mac(), config.vlan);
        let stack = Stack::new(link.mtu(), mac, config, keyed);
        let engine = Engine::new(stack, keyed, link.tx().room(), link.linear_frame_max());
        let lane = Lane { routes, neighbours, mac, vlan };
        Ok(Self {
            link,
            lane,
            engine,
            now,
            failed: None,
            link_is_down: false,
            link_came_up: false,
            drops: Drops::default(),
            behind: 0,
        })
    }

    fn link_event(&mut self, now: Instant, event: LinkEvent) {
        self.link_is_down = event == LinkEvent::Down;
        if event == LinkEvent::Up {
            self.link_came_up = true;
            self.engine.link_up(now, &mut self.lane, self.link.mac());
        }
    }

    /// The link.
    pub fn link(&self) -> &L {
        &self.link
    }

    /// The link, for what only it can do.
    pub fn link_mut(&mut self) -> &mut L {
        &mut self.link
    }

    /// The neighbours, for introspection.
    pub fn neighbours(&self) -> &Neighbours {
        &self.lane.neighbours
    }

    /// Whether an address of ours is still being probed: it takes 150 ms, and ends by itself. Until
    /// then connects wait, and nobody can connect; listening on it is refused from then on if it
    /// turned out to be another node's.
    pub fn is_probing(&self) -> bool {
        self.lane.neighbours.is_probing()
    }

    /// ICMP errors received.
    pub fn icmp_errors(&self) -> IcmpErrors {
        self.engine.icmp_errors
    }

    /// Echo requests of ours, and what came of them.
    pub fn echoes(&self) -> EchoFigures {
        self.engine.echoes.figures()
    }

    /// Frames that were received and not used.
    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// All connections, by slot.
    pub fn connections(&self) -> impl Iterator<Item = ConnInfo> {
        self.engine.slots.iter().map(|conn| ConnInfo {
            id: conn.id,
            local: conn.tuple.local,
            remote: conn.tuple.remote,
            stage: conn.stage,
            since: conn.since,
            timers: conn.timers,
            send_queue: conn.socket().send_queue(),
            recv_queue: conn.socket().recv_queue(),
            retransmits: conn.retransmits,
            hint: conn.hint,
            sequence: (conn.seq_max, conn.ack_sent),
        })
    }
}

/// A key from the OS, or from a seed.
fn key(seed: Option<u64>) -> io::Result<Keyed> {
    if let Some(seed) = seed {
        return Ok(Keyed([seed, !seed]));
    }
    let word = || getrandom::u64().map_err(|error| io::Error::other(error.to_string()));
    Ok(Keyed([word()?, word()?]))
}

/// One received frame, to whom it is for.
fn frame<T: LinkTx>(
    now: Instant,
    lane: &mut Lane,
    engine: &mut Engine,
    drops: &mut Drops,
    bytes: &[u8],
    tx: &mut T,
) {
    let Ok(frame) = &Frame::parse(bytes) else {
        drops.malformed += 1;
        return;
    };
    let group = frame.dst[0] & 1 == 1;
    if frame.vlan != lane.vlan || !(group || frame.dst == lane.mac) {
        drops.not_ours += 1;
        return;
    }
    match &frame.packet {
        Packet::Tcp(segment, packet) => {
            if group || !lane.neighbours.is_ready(segment.tuple.local.ip()) {
                drops.not_ours += 1;
            } else {
                engine.segment(now, tx, frame.src, segment, packet);
            }
        }
        Packet::Arp(arp) => lane.neighbours.arp_input(now, arp),
        Packet::Icmp(datagram) => {
            let nd =
                datagram.dst.is_ipv6() && lane.neighbours.ndisc_input(now, frame.src, datagram);
            if !nd && lane.neighbours.is_ready(datagram.dst) {
                icmp_input(now, engine, frame.src, datagram, tx);
            }
        }
        Packet::Other => drops.other += 1,
    }
}

/// Takes in an ICMP message to one of our addresses: answers what asks for an echo, and looks at
/// errors about packets of ours, and at answers to what we asked.
fn icmp_input<T: LinkTx>(
    now: Instant,
    engine: &mut Engine,
    source: Mac,
    datagram: &crate::eth::Datagram<'_>,
    tx: &mut T,
) {
    if icmp::is_error(datagram) {
        engine.icmp_error(now, datagram);
    } else if let Some(echo) = icmp::echoed(datagram) {
        engine.echoed(now, datagram, echo);
    } else if tx.room() > 0 && engine.resets.take(now) {
        engine.stack.echo(tx, source, datagram);
    }
}

impl<L: Link> Transport for Tcp<L> {
    fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: &ConnOptions,
    ) -> io::Result<ConnId> {
        if let Some(errno) = self.failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.link_is_down {
            return Err(io::Error::new(io::ErrorKind::NetworkDown, "the link is down or gone"));
        }
        self.engine.connect(now, &mut self.lane, remote, options)
    }

    fn listen(&mut self, _: Instant, local: SocketAddr, options: &ListenOptions) -> io::Result<()> {
        if !local.ip().is_unspecified() && !self.lane.routes.is_ours(local.ip()) {
            let error = format!("{} is not one of our addresses", local.ip());
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, error));
        }
        if self.lane.neighbours.is_conflicting(local.ip()) {
            let error = format!("another node has our address {}", local.ip());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, error));
        }
        self.engine.listen(local, options)
    }

    fn unlisten(&mut self, local: SocketAddr) -> io::Result<()> {
        self.engine.unlisten(local)
    }

    fn echo(&mut self, now: Instant, ip: IpAddr, timeout: Duration) -> bool {
        self.failed.is_none() && self.engine.ask(now, &mut self.lane, ip, timeout)
    }

    fn turn(&mut self, now: Instant) {
        self.now = now;
        let Self { link, lane, engine, drops, .. } = self;
        let received = link.receive(now, RX_FRAMES_PER_TURN, &mut |bytes, tx| {
            frame(now, lane, engine, drops, bytes, tx);
        });
        lane.neighbours.handle_timeout(now);
        for _ in 0..NEIGHBOUR_EVENTS_PER_TURN {
            let Some(event) = lane.neighbours.poll_event() else { break };
            engine.neighbour_event(now, lane, event);
        }
        self.engine.work.rx_frames.record(received as u64);
        self.behind = match received {
            RX_FRAMES_PER_TURN.. if self.behind < TURNS_TO_CATCH_UP => self.behind + 1,
            _ => 0,
        };
        if self.behind == 0 {
            self.engine.expire(now, self.link.tx());
        }
    }

    fn is_caught_up(&self) -> bool {
        self.behind == 0
    }

    fn poll_event(&mut self) -> Option<Event> {
        let event = self.engine.slots.poll_event();
        let node = || self.engine.nodes.pop_front().map(Event::Reachable);
        let link = || std::mem::take(&mut self.link_came_up).then_some(Event::LinkUp);
        event.or_else(node).or_else(link)
    }

    fn recv(&mut self, id: ConnId, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        let Some(conn) = self.engine.slots.of_mut(id) else { return 0 };
        let taken = conn.recv(parse);
        if conn.egress {
            self.engine.touch(id.index);
        }
        taken
    }

    fn send(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let Some(conn) = self.engine.slots.of_mut(id) else { return 0 };
        let taken = conn.send(bytes);
        self.engine.touch(id.index);
        taken
    }

    fn send_room(&self, id: ConnId) -> usize {
        self.engine.slots.of(id).map_or(0, |conn| conn.send_room())
    }

    fn ack(&mut self, id: ConnId) {
        let Some(conn) = self.engine.slots.of_mut(id) else { return };
        conn.ack_now = true;
        self.engine.touch(id.index);
    }

    fn close(&mut self, now: Instant, id: ConnId) {
        if self.engine.slots.of(id).is_some() {
            self.engine.close(now, id.index);
        }
    }

    fn abort(&mut self, now: Instant, id: ConnId) {
        if self.engine.slots.of(id).is_some() {
            let cause = crate::transport::Cause::Aborted;
            self.engine.abort(now, self.link.tx(), id.index, cause);
        }
    }

    fn set_timeouts(&mut self, id: ConnId, options: &ConnOptions) -> bool {
        let Some(conn) = self.engine.slots.of_mut(id) else { return false };
        conn.set_timeouts(options);
        self.engine.deadlines.set(id.index, conn.deadline());
        true
    }

    fn flush(&mut self, now: Instant) {
        let tx = self.link.tx();
        self.lane.transmit(tx);
        self.engine.send_echoes(tx);
        self.engine.flush(now, tx);
        let flushed = self.link.flush(now);
        self.engine.rearm(now);
        if let Err(error) = flushed
            && self.failed.is_none()
        {
            tracing::error!(%error, "the link failed");
            let errno = error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
            self.failed = Some(errno);
            self.engine.fail_all(now, errno);
        }
        while let Some(event) = self.link.poll_event() {
            self.link_event(now, event);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let work = (!self.engine.touched.is_empty()).then(|| match self.engine.starved {
            true => self.now + STARVED_RETRY,
            false => self.now,
        });
        let echo = self.engine.echoes.wants_transmit().then(|| self.now + STARVED_RETRY);
        let news = self.link_came_up || self.lane.neighbours.has_events();
        let news = news.then_some(self.now);
        [
            self.engine.deadlines.next(),
            self.lane.neighbours.poll_timeout(),
            self.link.poll_timeout(),
            work,
            echo,
            news,
        ]
        .into_iter()
        .fold(None, earliest)
    }

    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.link.wait(until, also)
    }

    fn connections_from(&self, from: u32, max: usize) -> Vec<ConnReport> {
        let names = ["stage", "unacked", "ack", "tcp"]; // as in `Timer`
        let conns = self.connections().filter(|info| info.id.index >= from);
        let report = |info: ConnInfo| ConnReport {
            conn: info.id,
            local: info.local,
            remote: info.remote,
            stage: info.stage,
            since: info.since,
            timers: names.into_iter().zip(info.timers).filter_map(|(n, t)| Some((n, t?))).collect(),
            send_queue: info.send_queue,
            recv_queue: info.recv_queue,
            retransmits: info.retransmits,
            hint: info.hint,
        };
        conns.take(max).map(report).collect()
    }

    fn work(&self) -> Option<Work> {
        Some(self.engine.work)
    }

    fn stats(&self) -> TransportStats {
        let link = self.link.stats();
        let counters = self.engine.counters;
        TransportStats {
            rx_frames: link.rx_frames,
            tx_frames: link.tx_frames,
            rx_bytes: counters.rx_bytes,
            tx_bytes: counters.tx_bytes,
            copied_in_bytes: counters.copied_in_bytes,
            copied_out_bytes: counters.copied_out_bytes,
            retransmits: counters.retransmits,
            syns: counters.syns,
            syscalls: link.syscalls,
        }
    }
}
