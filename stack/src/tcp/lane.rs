//! What of a lane is not TCP: its addresses, its neighbours, ICMP; and connecting, which needs them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::conn::Conn;
use super::device::L2;
use super::engine::{Engine, NODES_MAX};
use crate::eth::{Header, Mac};
use crate::neighbour::{NeighbourEvent, Neighbours, PACKET_LEN_MAX, Resolution};
use crate::route::Routes;
use crate::segment::Tuple;
use crate::time::Duration;
use crate::transport::{Cause, ConnOptions, Stage};
use crate::{ConnId, Instant, LinkTx};

/// Ports to choose from for our own connections, RFC 6335 §6.
const PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// Ports tried before connecting is given up.
const PORT_TRIES: usize = 256;

/// The end of resolving should the neighbour machine not end it; that one takes 300 ms, and may
/// have to wait for our own address to be probed.
const RESOLVE_BACKSTOP: Duration = Duration::from_secs(1);

/// Our addresses and the neighbours on the link.
pub(super) struct Lane {
    pub routes: Routes,
    pub neighbours: Neighbours,
    pub mac: Mac,
    pub vlan: Option<u16>,
}

impl Lane {
    /// Sends what the neighbour machine wants to send, as far as there is room.
    pub(super) fn transmit<T: LinkTx>(&mut self, tx: &mut T) {
        while self.neighbours.wants_transmit() && tx.room() > 0 {
            let mut packet = [0; PACKET_LEN_MAX];
            let Some(out) = self.neighbours.poll_transmit(&mut packet) else { return };
            let header =
                Header { dst: out.dst, src: self.mac, vlan: self.vlan, ethertype: out.ethertype };
            let header_len = Header::len_of(self.vlan);
            tx.transmit((header_len + out.len).max(60), |frame| {
                frame.fill(0);
                header.write(frame);
                frame[header_len..][..out.len].copy_from_slice(&packet[..out.len]);
            });
        }
    }
}

impl Engine {
    /// Starts a connection.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        lane: &mut Lane,
        remote: SocketAddr,
        options: &ConnOptions,
    ) -> io::Result<ConnId> {
        let Some(route) = lane.routes.to(remote.ip()).filter(|_| remote.port() != 0) else {
            let message = format!("no route to {remote} from our addresses");
            return Err(io::Error::new(io::ErrorKind::NetworkUnreachable, message));
        };
        let tuple = self.tuple_to(now, route.source, remote)?;
        let id = self.slots.vacant();
        let mut conn = Conn::new(now, id, tuple, Stage::Resolving, options, L2::default());
        conn.enter(now, Stage::Resolving, Some(RESOLVE_BACKSTOP));
        conn.next_hop = route.next_hop;
        self.insert(conn);
        self.resolve(now, lane, id.index);
        Ok(id)
    }

    /// Goes on with a connection that waits for an address: first ours, then the next hop's.
    fn resolve(&mut self, now: Instant, lane: &mut Lane, index: u32) {
        let conn = self.slots.at(index).expect("the caller has just looked at it");
        let (source, next_hop) = (conn.tuple.local.ip(), conn.next_hop);
        if lane.neighbours.is_conflicting(source) {
            return self.finish(now, index, Some(Cause::AddressConflict));
        }
        if !lane.neighbours.is_ready(source) {
            return; // being probed: an event will tell
        }
        match lane.neighbours.resolve(now, next_hop) {
            Resolution::Resolved(mac) => self.resolved(now, index, mac),
            Resolution::Pending => {}
            Resolution::Failed => self.finish(now, index, Some(Cause::NeighbourTimeout)),
        }
    }

    /// A tuple with a port that nobody can foresee, neither in use nor resting.
    fn tuple_to(&mut self, now: Instant, source: IpAddr, remote: SocketAddr) -> io::Result<Tuple> {
        for _ in 0..PORT_TRIES {
            let port = PORTS.start() + (self.stack.draw() % PORTS.len() as u64) as u16;
            let tuple = Tuple { local: SocketAddr::new(source, port), remote };
            if self.demux.slot(&tuple).is_none() && self.resting.of(now, &tuple).is_none() {
                return Ok(tuple);
            }
        }
        let message = format!("no free source port to {remote}: too many connections");
        Err(io::Error::new(io::ErrorKind::AddrInUse, message))
    }

    /// The next hop is known: SYN.
    fn resolved(&mut self, now: Instant, index: u32, mac: Mac) {
        let l2 = self.stack.l2(mac);
        let conn = self.slots.at_mut(index).expect("the caller has just looked at it");
        conn.l2 = l2;
        let timeout = conn.options.connect_timeout;
        conn.enter(now, Stage::SynSent, Some(timeout));
        conn.clock = super::clock::Clock::new(now, super::clock::HANDSHAKE_FACTOR);
        conn.egress = true;
        self.stack.connect(conn);
        self.touch(index);
    }

    /// The link is up again, perhaps with another hardware address of ours: what was lost meanwhile
    /// is sent again at once.
    pub(super) fn link_up(&mut self, now: Instant, lane: &mut Lane, mac: Mac) {
        lane.mac = mac;
        lane.neighbours.link_up(now, mac);
        self.stack.set_source(mac);
        self.resting.set_source(mac);
        for index in 0..self.slots.len() as u32 {
            let Some(conn) = self.slots.at_mut(index) else { continue };
            conn.l2.set_source(mac);
            if conn.hasten(now) {
                self.touch(index);
            }
        }
    }

    /// Tells the connections concerned what was learned of neighbours and of our own addresses.
    pub(super) fn neighbour_event(&mut self, now: Instant, lane: &mut Lane, event: NeighbourEvent) {
        match event {
            NeighbourEvent::AddressReady(ip) => tracing::debug!(%ip, "address ready"),
            NeighbourEvent::AddressConflict(ip, mac) if lane.neighbours.is_conflicting(ip) => {
                tracing::error!(%ip, ?mac, "another node has our address: it is not used here");
            }
            NeighbourEvent::AddressConflict(ip, mac) => {
                tracing::warn!(%ip, ?mac, "another node claims our address: defending it");
            }
            NeighbourEvent::Announced(ip) if self.nodes.len() < NODES_MAX => {
                self.nodes.push_back(ip);
            }
            NeighbourEvent::Resolved(..)
            | NeighbourEvent::Failed(_)
            | NeighbourEvent::Announced(_) => {}
        }
        match event {
            NeighbourEvent::Resolved(ip, mac) => self.echoes.next_hop(ip, Some(mac)),
            NeighbourEvent::Failed(ip) => self.echoes.next_hop(ip, None),
            _ => {}
        }
        for index in 0..self.slots.len() as u32 {
            let Some(conn) = self.slots.at_mut(index) else { continue };
            let resolving = conn.stage == Stage::Resolving;
            match event {
                NeighbourEvent::Resolved(ip, mac) if ip == conn.next_hop && !resolving => {
                    conn.l2 = self.stack.l2(mac);
                    // What it did not acknowledge may have gone to where it is no more.
                    if (conn.probing || conn.stage == Stage::SynSent) && conn.hasten(now) {
                        self.touch(index);
                    }
                }
                NeighbourEvent::Resolved(ip, _) if ip == conn.next_hop => {
                    self.resolve(now, lane, index);
                }
                NeighbourEvent::Announced(ip) if ip == conn.next_hop && conn.on_announced(now) => {
                    self.touch(index);
                }
                // Others go on with the address they know, until their own deadlines.
                NeighbourEvent::Failed(ip) if ip == conn.next_hop && resolving => {
                    self.finish(now, index, Some(Cause::NeighbourTimeout));
                }
                NeighbourEvent::AddressReady(ip) | NeighbourEvent::AddressConflict(ip, _)
                    if ip == conn.tuple.local.ip() && resolving =>
                {
                    self.resolve(now, lane, index);
                }
                _ => {}
            }
        }
    }
}
