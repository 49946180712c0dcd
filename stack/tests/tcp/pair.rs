//! Two engines on a simulated wire with faults, and a clock that jumps to the next deadline.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::link::fault::{Faults, Faulty};
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::time::earliest;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Instant, Transport};

/// The port that tests listen on.
pub const PORT: u16 = 4420;

/// One end, and what it was told.
pub struct End {
    pub tcp: Tcp<Faulty<SimLink>>,
    pub events: Vec<(Instant, Event)>,
}

/// What a pair is made with.
#[derive(Clone)]
pub struct PairOptions {
    pub wire: WireOptions,
    pub v6: bool,
    pub vlan: Option<u16>,
    pub seed: u64,
    /// Addresses resolved by ARP/ND, not configured.
    pub resolve: bool,
    /// Addresses that `b` has beside its own, from n = 100 on.
    pub more: u8,
}

impl Default for PairOptions {
    fn default() -> Self {
        let wire = WireOptions::default();
        Self { wire, v6: false, vlan: None, seed: 1, resolve: false, more: 0 }
    }
}

/// Host `a` and target `b`.
pub struct Pair {
    pub now: Instant,
    pub a: End,
    pub b: End,
    v6: bool,
}

impl Pair {
    pub fn new(options: &PairOptions) -> Self {
        let wire = WireOptions { seed: options.seed, ..options.wire.clone() };
        let (a, b) = SimLink::pair(&wire);
        let end = |link: SimLink, n: u8, peer: u8| {
            let more = if n == 2 { options.more } else { 0 };
            let cidr = |n| Cidr {
                ip: address(options.v6, n).ip(),
                prefix: if options.v6 { 64 } else { 24 },
            };
            let mut config = TcpConfig {
                addresses: std::iter::once(n).chain(100..100 + more).map(cidr).collect(),
                vlan: options.vlan,
                seed: Some(options.seed + u64::from(n)),
                ..TcpConfig::default()
            };
            if !options.resolve {
                let mac = [2, 0, 0, 0, 0, peer];
                config.neighbours.push((address(options.v6, peer).ip(), mac));
                config.neighbour_options.announcements = 0;
            }
            let link = Faulty::new(link, options.seed * 2 + u64::from(n));
            End { tcp: Tcp::new(Instant::ZERO, link, &config).unwrap(), events: Vec::new() }
        };
        Self { now: Instant::ZERO, a: end(a, 1, 2), b: end(b, 2, 1), v6: options.v6 }
    }

    /// The same faults for both directions.
    pub fn faults(&mut self, faults: &Faults) {
        for end in [&mut self.a, &mut self.b] {
            *end.tcp.link_mut().faults_mut() = faults.clone();
        }
    }

    /// Where `b` is.
    pub fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(address(self.v6, 2).ip(), port)
    }

    pub fn listen(&mut self, options: &ListenOptions) {
        let local = self.target(PORT);
        self.b.tcp.listen(self.now, local, options).unwrap();
    }

    pub fn connect(&mut self, options: &ConnOptions) -> ConnId {
        let remote = self.target(PORT);
        self.a.tcp.connect(self.now, remote, options).unwrap()
    }

    /// One turn of each end at the present time, with `act` between its events and its flush.
    pub fn turn(&mut self, act: &mut impl FnMut(Instant, &mut End, bool)) {
        let now = self.now;
        for (end, is_a) in [(&mut self.a, true), (&mut self.b, false)] {
            end.tcp.turn(now);
            while let Some(event) = end.tcp.poll_event() {
                end.events.push((now, event));
            }
            act(now, end, is_a);
            end.tcp.flush(now);
        }
    }

    /// When something is due next.
    pub fn next(&self) -> Option<Instant> {
        earliest(self.a.tcp.poll_timeout(), self.b.tcp.poll_timeout())
    }

    /// Turns until `done`, or until nothing is due before `limit`. Returns whether it is done.
    pub fn run_with(
        &mut self,
        limit: Duration,
        act: &mut impl FnMut(Instant, &mut End, bool),
        mut done: impl FnMut(&Self) -> bool,
    ) -> bool {
        let until = self.now + limit;
        let mut turns_without_time = 0;
        loop {
            self.turn(act);
            if done(self) {
                return true;
            }
            let next = self.next().filter(|&next| next <= until);
            let Some(next) = next else {
                self.now = until;
                return false;
            };
            turns_without_time = if next > self.now { 0 } else { turns_without_time + 1 };
            assert!(turns_without_time < 1000, "a thousand turns at {:?}", self.now);
            self.now = self.now.max(next);
        }
    }

    /// Turns with nothing to do for `limit`.
    pub fn run(&mut self, limit: Duration) {
        self.run_with(limit, &mut |_, _, _| {}, |_| false);
    }

    /// Connects, and waits until both ends know.
    pub fn established(&mut self, listen: &ListenOptions, conn: &ConnOptions) -> (ConnId, ConnId) {
        self.listen(listen);
        let a = self.connect(conn);
        let mut b = None;
        let done = self.run_with(Duration::from_secs(1), &mut |_, _, _| {}, |pair| {
            b = pair.b.accepted();
            b.is_some() && pair.a.has(&Event::Connected(a))
        });
        assert!(done, "{:?} {:?}", self.a.events, self.b.events);
        (a, b.unwrap())
    }
}

impl End {
    pub fn has(&self, event: &Event) -> bool {
        self.events.iter().any(|(_, seen)| seen == event)
    }

    /// The last connection accepted.
    pub fn accepted(&self) -> Option<ConnId> {
        self.events.iter().rev().find_map(|(_, event)| match event {
            Event::Accepted { conn, .. } => Some(*conn),
            _ => None,
        })
    }

    /// When and why the connection ended.
    pub fn closed(&self, id: ConnId) -> Option<(Instant, moorline_stack::transport::Why)> {
        let mut all = self.events.iter().filter_map(|(at, event)| match event {
            Event::Closed(conn, why) if *conn == id => Some((*at, why.clone())),
            _ => None,
        });
        let first = all.next();
        assert!(all.next().is_none(), "closed twice");
        first
    }

    /// Sends all of what arrived back, as far as there is room.
    pub fn echo(&mut self) {
        let ids: Vec<_> = self.tcp.connections().map(|conn| conn.id).collect();
        for id in ids {
            let mut bytes = Vec::new();
            let mut room = self.tcp.send_room(id);
            self.tcp.recv(id, &mut |shown| {
                let taken = shown.len().min(room);
                room -= taken;
                bytes.extend_from_slice(&shown[..taken]);
                taken
            });
            assert_eq!(self.tcp.send(id, &bytes), bytes.len());
        }
    }
}

/// Node `n`'s address.
pub fn address(v6: bool, n: u8) -> SocketAddr {
    match v6 {
        true => SocketAddr::new([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(), 0),
        false => SocketAddr::new([10, 0, 0, n].into(), 0),
    }
}
