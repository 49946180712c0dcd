//! Who is on the link: our own ARP and ND, as one pure machine in real time.
//!
//! A resolution takes 300 ms at most, three tries, shared by all who wait for that neighbour. A
//! neighbour that answered is trusted for a minute, then asked again: in the background if it is in
//! use, before the next use if it is not. The first of those tries goes to the old hardware
//! address alone, the others to all, so that an address that moved is found.
//!
//! An address of ours is probed before use (RFC 5227 §2.1.1, RFC 4862 §5.4, at our own pace), then
//! announced, and defended. Formats: [`super::wire`].

mod learn;
mod state;
mod wire;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::Instant;
use crate::eth::{Arp, ArpOp, Datagram, Mac};
use crate::route::{common_prefix, is_unicast};
use crate::time::earliest;

use state::{Entry, Own, OwnState, State};

pub use wire::PACKET_LEN_MAX;

/// How long things take, and how many neighbours there can be.
#[derive(Clone, Debug)]
pub struct NeighbourOptions {
    /// Neighbours known at once.
    pub table_max: usize,
    /// Tries of a resolution.
    pub tries: u8,
    /// From one try to the next, and from the last to failure.
    pub try_interval: Duration,
    /// How long a neighbour that failed is not tried again.
    pub failed_hold: Duration,
    /// How long an answer is trusted.
    pub reachable: Duration,
    /// Probes of an address of ours.
    pub probes: u8,
    /// From one probe to the next, and from the last to use.
    pub probe_interval: Duration,
    /// Announcements of an address of ours.
    pub announcements: u8,
    /// From one announcement to the next.
    pub announce_interval: Duration,
}

impl Default for NeighbourOptions {
    fn default() -> Self {
        Self {
            table_max: 1024,
            tries: 3,
            try_interval: Duration::from_millis(100),
            failed_hold: Duration::ZERO, // so that tries are evenly spaced while somebody asks
            reachable: Duration::from_secs(60),
            probes: 3,
            probe_interval: Duration::from_millis(50),
            announcements: 3,
            announce_interval: Duration::from_secs(1),
        }
    }
}

/// Answer to [`Neighbours::resolve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Send to this hardware address.
    Resolved(Mac),
    /// Under way: an event will tell.
    Pending,
    /// No answer a moment ago, or no address of ours to ask from, or too many neighbours.
    Failed,
}

/// What the machine has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourEvent {
    /// A neighbour answered, or its hardware address changed.
    Resolved(IpAddr, Mac),
    /// A neighbour did not answer.
    Failed(IpAddr),
    /// A neighbour that we know of says by itself that it is there: it has just come, or moved.
    /// `Resolved` comes before it where somebody waited, or the hardware address changed.
    Announced(IpAddr),
    /// An address of ours may be used.
    AddressReady(IpAddr),
    /// Somebody else has an address of ours. While it was being probed: it is not used. Later: it
    /// is defended by announcements, ten seconds apart.
    AddressConflict(IpAddr, Mac),
}

/// A packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub dst: Mac,
    /// ARP or IPv6.
    pub ethertype: u16,
    /// Bytes written.
    pub len: usize,
}

/// What the machine has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourStats {
    /// Requests and solicitations sent.
    pub requests: u64,
    /// Replies and advertisements sent to those who asked.
    pub replies: u64,
    /// Resolutions without an answer.
    pub failures: u64,
    /// Announcements of neighbours that we know of, and those that came too soon after another.
    pub announcements: u64,
    /// See `announcements`.
    pub repeated: u64,
    /// Resolutions or learned neighbours refused because the table was full of busy ones.
    pub table_full: u64,
    /// Packets or events that did not fit into their queue.
    pub overflows: u64,
    /// ND messages that were malformed, or that had passed a router.
    pub malformed: u64,
}

/// A packet wanted, written when it is asked for.
#[derive(Clone, Copy, Debug)]
enum Out {
    /// Where is `ip`? Asked of `to`, or of all.
    Request { source: IpAddr, ip: IpAddr, to: Option<Mac> },
    /// Does anybody have `ip`?
    Probe { ip: IpAddr },
    /// `ip` is here.
    Announce { ip: IpAddr },
    /// `ip` is here, to who asked.
    Reply { ip: IpAddr, to: IpAddr, mac: Mac },
}

/// The neighbours of one link, and our addresses on it.
#[derive(Debug)]
pub struct Neighbours {
    options: NeighbourOptions,
    mac: Mac,
    own: Vec<Own>,
    /// Sorted by address.
    table: Vec<Entry>,
    events: VecDeque<NeighbourEvent>,
    out: VecDeque<Out>,
    /// The earliest deadline of `own` and `table`.
    next: Option<Instant>,
    stats: NeighbourStats,
}

/// Packets that may wait, beside one per neighbour.
const OUT_SPARE: usize = 64;

impl Neighbours {
    /// A link with our hardware address `mac`, and nobody known.
    pub fn new(mac: Mac, options: NeighbourOptions) -> Self {
        Self {
            mac,
            own: Vec::new(),
            table: Vec::with_capacity(options.table_max),
            events: VecDeque::with_capacity(options.table_max + OUT_SPARE),
            out: VecDeque::with_capacity(options.table_max + OUT_SPARE),
            options,
            next: None,
            stats: NeighbourStats::default(),
        }
    }

    /// Adds an address of ours: probed first if `probe` (then `AddressReady` or
    /// `AddressConflict`), else ready at once, and announced.
    pub fn add_address(&mut self, now: Instant, ip: IpAddr, probe: bool) {
        let state = match probe {
            true => OwnState::Probing { sent: 0, next: now },
            false => OwnState::Announcing { left: self.options.announcements, next: now },
        };
        self.own.push(Own { ip, state, defended: None });
        if !probe {
            self.tell(NeighbourEvent::AddressReady(ip));
        }
        self.handle_timeout_forced(now);
    }

    /// Whether an address of ours may be used.
    pub fn is_ready(&self, ip: IpAddr) -> bool {
        self.own.iter().any(|own| own.ip == ip && own.ready())
    }

    /// Whether an address of ours is still being probed.
    pub fn is_probing(&self) -> bool {
        self.own.iter().any(|own| matches!(own.state, OwnState::Probing { .. }))
    }

    /// Whether an address of ours turned out to be somebody else's, and is not used.
    pub fn is_conflicting(&self, ip: IpAddr) -> bool {
        self.own.iter().any(|own| own.ip == ip && own.state == OwnState::Conflict)
    }

    /// Adds a neighbour that is never asked.
    pub fn add_static(&mut self, ip: IpAddr, mac: Mac) {
        match self.find(ip) {
            Ok(at) => self.table[at].state = State::Static(mac),
            Err(at) => {
                let state = State::Static(mac);
                let entry = Entry { ip, state, since: Instant::ZERO, heard: None };
                self.table.insert(at, entry);
            }
        }
    }

    /// The hardware address of a neighbour; asks for it if need be.
    pub fn resolve(&mut self, now: Instant, ip: IpAddr) -> Resolution {
        let old = match self.find(ip) {
            Ok(at) => match &mut self.table[at].state {
                State::Static(mac) | State::Refreshing { mac, .. } => {
                    return Resolution::Resolved(*mac);
                }
                State::Reachable { mac, until, used } if now < *until || *used => {
                    *used = true;
                    return Resolution::Resolved(*mac);
                }
                State::Probing { .. } => return Resolution::Pending,
                State::Failed { until } if now < *until => return Resolution::Failed,
                State::Failed { .. } => None,
                State::Reachable { mac, .. } | State::Stale { mac } => Some(*mac),
            },
            Err(_) if !is_unicast(ip) => return Resolution::Failed,
            Err(_) => None,
        };
        let state = State::Probing { old, tries: 0, next: Some(now) };
        if !self.enter(now, ip, state) {
            return Resolution::Failed;
        }
        self.handle_timeout_forced(now);
        match self.find(ip).map(|at| self.table[at].state) {
            Ok(State::Probing { .. }) => Resolution::Pending,
            _ => Resolution::Failed,
        }
    }

    /// The link was down or gone, and is up again, with our hardware address `mac`. Our addresses
    /// are announced, and all whom we know asked anew: they may have moved, and whoever did not
    /// answer may have been unable to.
    pub fn link_up(&mut self, now: Instant, mac: Mac) {
        self.mac = mac;
        for own in &mut self.own {
            own.link_up(now, self.options.announcements);
        }
        self.table.retain(|entry| !matches!(entry.state, State::Failed { .. }));
        for entry in &mut self.table {
            entry.state = entry.state.after_link_up(now);
        }
        self.handle_timeout_forced(now);
    }

    /// Takes in an ARP packet.
    pub fn arp_input(&mut self, now: Instant, arp: &Arp) {
        let (sender, target) = (IpAddr::V4(arp.sender_ip), IpAddr::V4(arp.target_ip));
        let mac = arp.sender_mac;
        if mac == self.mac || mac[0] & 1 == 1 {
            return;
        }
        let probe = arp.sender_ip == Ipv4Addr::UNSPECIFIED;
        if self.conflicts(sender) || probe && self.is_probed(target) {
            let ip = if probe { target } else { sender };
            self.conflict(now, ip, mac);
            return;
        }
        if sender == target {
            if self.announced(now, sender, mac) {
                self.rearm();
            }
            return;
        }
        let for_us = self.is_ready(target);
        match arp.op {
            ArpOp::Request => {
                if !probe {
                    self.learn(now, sender, mac, for_us);
                }
                if for_us {
                    self.send(Out::Reply { ip: target, to: sender, mac });
                }
            }
            ArpOp::Reply => self.learn(now, sender, mac, false),
        }
        self.rearm();
    }

    /// Takes in an ICMPv6 message from `src_mac`; returns whether it was ND (and is dealt with).
    pub fn ndisc_input(&mut self, now: Instant, src_mac: Mac, datagram: &Datagram<'_>) -> bool {
        if !wire::is_ndisc(datagram) {
            return false;
        }
        let Some(message) = wire::parse(datagram) else {
            self.stats.malformed += 1;
            return true;
        };
        let mac = message.mac.unwrap_or(src_mac);
        let target = IpAddr::V6(message.target);
        if src_mac == self.mac || mac == self.mac || mac[0] & 1 == 1 {
            return true;
        }
        let duplicate_probe = message.source == Ipv6Addr::UNSPECIFIED;
        match message.kind {
            wire::Kind::Solicitation if duplicate_probe && self.is_probed(target) => {
                self.conflict(now, target, mac);
            }
            wire::Kind::Solicitation => {
                if self.is_ready(target) {
                    let source = IpAddr::V6(message.source);
                    if !duplicate_probe {
                        self.learn(now, source, mac, true);
                    }
                    self.send(Out::Reply { ip: target, to: source, mac });
                }
            }
            wire::Kind::Advertisement { .. } if self.conflicts(target) => {
                self.conflict(now, target, mac);
            }
            wire::Kind::Advertisement { overrides } => {
                let known = self.find(target).ok().and_then(|at| self.table[at].state.mac());
                let news = overrides || known.is_none_or(|known| known == mac);
                if news && datagram.dst.is_multicast() {
                    if !self.announced(now, target, mac) {
                        return true;
                    }
                } else if news {
                    self.learn(now, target, mac, false);
                }
            }
            wire::Kind::Other => {}
        }
        self.rearm();
        true
    }

    /// Whether [`Neighbours::poll_event`] has something to tell.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<NeighbourEvent> {
        self.events.pop_front()
    }

    /// Whether [`Neighbours::poll_transmit`] has something to write.
    pub fn wants_transmit(&self) -> bool {
        !self.out.is_empty()
    }

    /// Writes the next packet (ARP, or IPv6 with its header) to the front of `out`.
    ///
    /// # Panics
    /// When `out` is shorter than [`PACKET_LEN_MAX`].
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Outgoing> {
        let next = self.out.pop_front()?;
        match next {
            Out::Request { .. } => self.stats.requests += 1,
            Out::Reply { .. } => self.stats.replies += 1,
            Out::Probe { .. } | Out::Announce { .. } => {}
        }
        Some(wire::write(self.mac, next, out))
    }

    /// When [`Neighbours::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Does what is due; nothing if nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next.is_some_and(|next| next <= now) {
            self.handle_timeout_forced(now);
        }
    }

    /// What the machine has done so far.
    pub fn stats(&self) -> NeighbourStats {
        self.stats
    }
}

/// What is due.
impl Neighbours {
    fn handle_timeout_forced(&mut self, now: Instant) {
        for at in 0..self.own.len() {
            self.own_timeout(now, at);
        }
        for at in 0..self.table.len() {
            if self.table[at].state.deadline().is_some_and(|due| due <= now) {
                self.entry_timeout(now, at);
            }
        }
        self.rearm();
    }

    fn own_timeout(&mut self, now: Instant, at: usize) {
        let Own { ip, state, .. } = self.own[at];
        let options = &self.options;
        match state {
            OwnState::Probing { sent, next } if next <= now => {
                if sent < options.probes {
                    let next = now + options.probe_interval;
                    self.own[at].state = OwnState::Probing { sent: sent + 1, next };
                    self.send(Out::Probe { ip });
                    return;
                }
                let left = options.announcements;
                self.own[at].state = OwnState::Announcing { left, next: now };
                self.tell(NeighbourEvent::AddressReady(ip));
                self.wake_waiting(now);
                self.own_timeout(now, at);
            }
            OwnState::Announcing { left: 0, .. } => self.own[at].state = OwnState::Ready,
            OwnState::Announcing { left, next } if next <= now => {
                let next = now + options.announce_interval;
                self.own[at].state = match left {
                    1 => OwnState::Ready,
                    left => OwnState::Announcing { left: left - 1, next },
                };
                self.send(Out::Announce { ip });
            }
            OwnState::Probing { .. }
            | OwnState::Announcing { .. }
            | OwnState::Ready
            | OwnState::Conflict => {}
        }
    }

    fn entry_timeout(&mut self, now: Instant, at: usize) {
        let Entry { ip, state, .. } = self.table[at];
        let next = now + self.options.try_interval;
        let state = match state {
            State::Probing { tries, .. } | State::Refreshing { tries, .. }
                if tries >= self.options.tries =>
            {
                return self.fail(now, at);
            }
            State::Probing { old, tries, .. } => {
                let Some(source) = self.source_for(ip) else {
                    if !self.is_any_probed(ip) {
                        return self.fail(now, at);
                    }
                    self.table[at].state = State::Probing { old, tries, next: None };
                    return;
                };
                self.send(Out::Request { source, ip, to: old.filter(|_| tries == 0) });
                State::Probing { old, tries: tries + 1, next: Some(next) }
            }
            State::Reachable { mac, used: false, .. } => State::Stale { mac },
            State::Reachable { mac, used: true, .. } => {
                self.ask(ip, Some(mac));
                State::Refreshing { mac, tries: 1, next }
            }
            State::Refreshing { mac, tries, .. } => {
                self.ask(ip, None);
                State::Refreshing { mac, tries: tries + 1, next }
            }
            State::Static(_) | State::Stale { .. } | State::Failed { .. } => return,
        };
        self.table[at].state = state;
        self.table[at].since = now;
    }

    fn ask(&mut self, ip: IpAddr, to: Option<Mac>) {
        if let Some(source) = self.source_for(ip) {
            self.send(Out::Request { source, ip, to });
        }
    }

    fn fail(&mut self, now: Instant, at: usize) {
        self.table[at].state = State::Failed { until: now + self.options.failed_hold };
        self.table[at].since = now;
        self.stats.failures += 1;
        self.tell(NeighbourEvent::Failed(self.table[at].ip));
    }

    /// Lets resolutions go on that waited for an address of ours.
    fn wake_waiting(&mut self, now: Instant) {
        for entry in &mut self.table {
            if let State::Probing { next: next @ None, .. } = &mut entry.state {
                *next = Some(now);
            }
        }
    }
}

/// What the others need.
impl Neighbours {
    fn find(&self, ip: IpAddr) -> Result<usize, usize> {
        self.table.binary_search_by_key(&ip, |entry| entry.ip)
    }

    /// Whether a claim to `ip` is a claim to an address of ours.
    fn conflicts(&self, ip: IpAddr) -> bool {
        self.own.iter().any(|own| own.ip == ip && own.state != OwnState::Conflict)
    }

    fn is_probed(&self, ip: IpAddr) -> bool {
        let probed = |own: &Own| matches!(own.state, OwnState::Probing { .. });
        self.own.iter().any(|own| own.ip == ip && probed(own))
    }

    /// Whether an address of ours of the family of `ip` will soon be ready, or not.
    fn is_any_probed(&self, ip: IpAddr) -> bool {
        let family = |own: &&Own| own.ip.is_ipv4() == ip.is_ipv4();
        self.own.iter().filter(family).any(|own| self.is_probed(own.ip))
    }

    /// The ready address of ours nearest to `ip`.
    fn source_for(&self, ip: IpAddr) -> Option<IpAddr> {
        let family = |own: &&Own| own.ip.is_ipv4() == ip.is_ipv4();
        let ready = self.own.iter().filter(family).filter(|own| own.ready());
        ready.max_by_key(|own| common_prefix(own.ip, ip)).map(|own| own.ip)
    }

    fn rearm(&mut self) {
        let own = self.own.iter().filter_map(Own::deadline).min();
        let table = self.table.iter().filter_map(|entry| entry.state.deadline()).min();
        self.next = earliest(own, table);
    }

    fn tell(&mut self, event: NeighbourEvent) {
        if self.events.len() < self.options.table_max + OUT_SPARE {
            self.events.push_back(event);
        } else {
            self.stats.overflows += 1;
        }
    }

    fn send(&mut self, out: Out) {
        if self.out.len() < self.options.table_max + OUT_SPARE {
            self.out.push_back(out);
        } else {
            self.stats.overflows += 1;
        }
    }
}

#[cfg(test)]
mod tests;
