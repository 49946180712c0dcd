//! The network of a pair of pipes: connections, and the bytes under way in each direction.
//!
//! A connection has two sides and two flows; side `e` sends into flow `e` and receives from flow
//! `1 − e`. It is forgotten when both sides are gone.

mod time;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::PipeOptions;
use crate::Instant;
use crate::rng::Rng;
use crate::transport::{
    Cause, ConnId, ConnOptions, Event, ListenOptions, Stage, TransportStats, Why,
};

/// First of the ports that connections are made from.
const PORT_MIN: u32 = 49152;

#[derive(Debug)]
pub(super) struct Net {
    pub options: PipeOptions,
    rng: Rng,
    conns: Vec<Option<Conn>>,
    ends: [End; 2],
}

#[derive(Debug, Default)]
struct End {
    slots: Vec<Slot>,
    listeners: Vec<Listener>,
    events: VecDeque<Event>,
    connects: u32,
    /// Of its last turn.
    now: Instant,
    stats: TransportStats,
}

#[derive(Debug)]
struct Listener {
    local: SocketAddr,
    options: ListenOptions,
    is_closed: bool,
}

/// A place in an end's table of connections.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// Index into [`Net::conns`].
    conn: Option<usize>,
}

#[derive(Debug)]
struct Conn {
    /// The address that it was made to.
    to: SocketAddr,
    sides: [Side; 2],
    flows: [Flow; 2],
}

/// A connection as one end sees it.
#[derive(Debug)]
struct Side {
    /// `None` before it is accepted and after it is closed.
    id: Option<ConnId>,
    state: State,
    since: Instant,
    options: ConnOptions,
    /// The other end's FIN was reported.
    peer_closed: bool,
    /// A `send` took less than it was given.
    wants_room: bool,
    /// RST arrives then.
    reset_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// SYN sent; the answer arrives at `answer`.
    SynSent {
        answer: Instant,
        refused: bool,
    },
    /// The SYN arrives then, at the listener of that number.
    Arriving {
        at: Instant,
        local: SocketAddr,
        peer: SocketAddr,
        listener: usize,
    },
    Established,
    /// We closed it.
    Draining,
    Gone,
}

/// Bytes from one side to the other.
#[derive(Debug, Default)]
struct Flow {
    /// Sent, not on their way.
    staged: VecDeque<u8>,
    staged_max: usize,
    /// On their way, in pieces: when each arrives, and its length.
    flying: VecDeque<u8>,
    pieces: VecDeque<(Instant, usize)>,
    /// Bytes on their way wait for an acknowledgement since then.
    unacked_since: Instant,
    /// Arrived, not read.
    arrived: VecDeque<u8>,
    arrived_max: usize,
    /// FIN is to follow the staged bytes.
    closing: bool,
    fin_at: Option<Instant>,
    fin_arrived: bool,
    /// The sender learns then that bytes arrived or were read.
    news_at: Option<Instant>,
}

impl Side {
    fn new(state: State, since: Instant, options: &ConnOptions) -> Self {
        Self {
            id: None,
            state,
            since,
            options: options.clone(),
            peer_closed: false,
            wants_room: false,
            reset_at: None,
        }
    }

    fn stage(&self) -> Stage {
        match self.state {
            State::SynSent { .. } => Stage::SynSent,
            State::Arriving { .. } => Stage::SynReceived,
            State::Established => Stage::Established,
            State::Draining | State::Gone => Stage::Draining,
        }
    }

    fn enter(&mut self, now: Instant, state: State) {
        self.state = state;
        self.since = now;
    }
}

impl Flow {
    fn window(&self) -> usize {
        self.arrived_max.saturating_sub(self.arrived.len() + self.flying.len())
    }

    fn last_at(&self) -> Instant {
        self.pieces.back().map_or(Instant::ZERO, |&(at, _)| at)
    }

    fn drained(&self) -> bool {
        self.staged.is_empty() && self.flying.is_empty() && self.fin_arrived
    }

    fn ack_deadline(&self, timeout: Duration) -> Option<Instant> {
        let waiting = !self.pieces.is_empty() || self.fin_at.is_some();
        waiting.then(|| self.unacked_since + timeout)
    }
}

/// Of both ends.
impl Net {
    pub fn new(seed: u64, options: PipeOptions) -> Self {
        Self {
            options,
            rng: Rng::new(seed),
            conns: Vec::new(),
            ends: [End::default(), End::default()],
        }
    }

    pub fn listen(
        &mut self,
        end: usize,
        local: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<()> {
        let listeners = &mut self.ends[end].listeners;
        match listeners.iter_mut().find(|listener| listener.local == local) {
            Some(listener) if listener.is_closed => listener.is_closed = false,
            Some(_) => return Err(io::ErrorKind::AddrInUse.into()),
            None => {
                let options = options.clone();
                listeners.push(Listener { local, options, is_closed: false });
            }
        }
        Ok(())
    }

    pub fn unlisten(&mut self, end: usize, local: SocketAddr) -> io::Result<()> {
        let mut open = self.ends[end].listeners.iter_mut().filter(|listener| !listener.is_closed);
        let listener = open.find(|listener| listener.local == local);
        // It keeps its place: what arrives names it.
        listener.ok_or(io::ErrorKind::NotFound)?.is_closed = true;
        Ok(())
    }

    pub fn tell(&mut self, end: usize, event: Event) {
        self.ends[end].events.push_back(event);
    }

    pub fn connect(
        &mut self,
        now: Instant,
        end: usize,
        ip: IpAddr,
        remote: SocketAddr,
        options: &ConnOptions,
    ) -> io::Result<ConnId> {
        if self.conns_of(end) >= self.options.conns_max {
            return Err(io::Error::other("no room for another connection: raise conns_max"));
        }
        let port = PORT_MIN + self.ends[end].connects % (65536 - PORT_MIN);
        self.ends[end].connects += 1;
        self.ends[end].stats.syns += 1;
        let peer = SocketAddr::new(ip, port as u16);
        let there = now + self.options.delay;
        let back = there + self.options.delay;
        let matches = |&Listener { local, is_closed, .. }: &Listener| {
            let any = local.ip().is_unspecified() && local.port() == remote.port();
            !is_closed && (local == remote || any)
        };
        let listener = self.ends[1 - end].listeners.iter().position(matches);
        let refused = listener.is_none();
        let mut side = Side::new(State::SynSent { answer: back, refused }, now, options);
        let other = match listener {
            Some(listener) => {
                let state = State::Arriving { at: there, local: remote, peer, listener };
                Side::new(state, now, &self.ends[1 - end].listeners[listener].options.conn)
            }
            None => Side::new(State::Gone, now, options),
        };
        let number = self.conns.iter().position(Option::is_none).unwrap_or(self.conns.len());
        let id = self.ends[end].take_slot(number);
        side.id = Some(id);
        let window = self.options.window_max;
        let flow = |from: &Side, to: &Side| Flow {
            staged_max: from.options.tx_buffer,
            arrived_max: to.options.rx_buffer.min(window),
            ..Flow::default()
        };
        let (a, b) = (flow(&side, &other), flow(&other, &side));
        let conn = match end {
            0 => Conn { to: remote, sides: [side, other], flows: [a, b] },
            _ => Conn { to: remote, sides: [other, side], flows: [b, a] },
        };
        if number == self.conns.len() {
            self.conns.push(None);
        }
        self.conns[number] = Some(conn);
        Ok(id)
    }

    pub fn conns_of(&self, end: usize) -> usize {
        self.ends[end].slots.iter().filter(|slot| slot.conn.is_some()).count()
    }

    pub fn poll_event(&mut self, end: usize) -> Option<Event> {
        self.ends[end].events.pop_front()
    }

    pub fn stats(&self, end: usize) -> TransportStats {
        self.ends[end].stats
    }

    /// The connection that `id` names, unless it is closed.
    fn number(&self, end: usize, id: ConnId) -> Option<usize> {
        let slot = self.ends[end].slots.get(id.index as usize)?;
        slot.conn.filter(|_| slot.generation == id.generation)
    }

    fn conn(&mut self, end: usize, id: ConnId) -> Option<&mut Conn> {
        let number = self.number(end, id)?;
        self.conns[number].as_mut()
    }
}

impl End {
    fn take_slot(&mut self, conn: usize) -> ConnId {
        let free = self.slots.iter().position(|slot| slot.conn.is_none());
        let index = free.unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[index];
        slot.generation += 1;
        slot.conn = Some(conn);
        ConnId { index: index as u32, generation: slot.generation }
    }
}

/// What a driver does to one connection.
impl Net {
    pub fn recv(&mut self, end: usize, id: ConnId, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        let at = self.ends[end].now + self.options.delay;
        let Some(conn) = self.conn(end, id) else { return 0 };
        let flow = &mut conn.flows[1 - end];
        let (first, second) = flow.arrived.as_slices();
        let (first_len, second_len) = (first.len(), second.len());
        let mut taken = 0;
        if first_len > 0 {
            taken = parse(first);
            assert!(taken <= first_len, "parse took more than it was shown");
        }
        if taken == first_len && second_len > 0 {
            let more = parse(second);
            assert!(more <= second_len, "parse took more than it was shown");
            taken += more;
        }
        flow.arrived.drain(..taken);
        if taken > 0 {
            flow.news_at.get_or_insert(at);
        }
        taken
    }

    pub fn send(&mut self, end: usize, id: ConnId, bytes: &[u8]) -> usize {
        let room = self.send_room(end, id);
        let taken = bytes.len().min(room);
        if let Some(conn) = self.conn(end, id) {
            conn.sides[end].wants_room |= taken < bytes.len();
            conn.flows[end].staged.extend(&bytes[..taken]);
            let stats = &mut self.ends[end].stats;
            stats.tx_bytes += taken as u64;
            stats.copied_out_bytes += taken as u64;
        }
        taken
    }

    pub fn send_room(&self, end: usize, id: ConnId) -> usize {
        let Some(number) = self.number(end, id) else { return 0 };
        let Some(conn) = &self.conns[number] else { return 0 };
        if conn.sides[end].state != State::Established {
            return 0;
        }
        let flow = &conn.flows[end];
        flow.staged_max - (flow.staged.len() + flow.flying.len()).min(flow.staged_max)
    }

    pub fn close(&mut self, now: Instant, end: usize, id: ConnId) {
        let Some(conn) = self.conn(end, id) else { return };
        match conn.sides[end].state {
            State::Established => {
                conn.sides[end].enter(now, State::Draining);
                conn.flows[end].closing = true;
            }
            State::SynSent { .. } => self.abort(now, end, id),
            State::Draining | State::Arriving { .. } | State::Gone => {}
        }
    }

    pub fn abort(&mut self, now: Instant, end: usize, id: ConnId) {
        let at = now + self.options.delay;
        let Some(number) = self.number(end, id) else { return };
        if let Some(conn) = &mut self.conns[number] {
            conn.sides[1 - end].reset_at.get_or_insert(at);
        }
        self.end_side(now, end, number, Cause::Aborted);
    }

    pub fn set_timeouts(&mut self, end: usize, id: ConnId, options: &ConnOptions) -> bool {
        let Some(conn) = self.conn(end, id) else { return false };
        conn.sides[end].options = options.clone(); // buffers were made when it was
        true
    }

    pub fn reset(&mut self, now: Instant, end: usize, id: ConnId) {
        if let Some(conn) = self.conn(end, id) {
            conn.sides.iter_mut().for_each(|side| side.reset_at = Some(now));
        }
    }

    /// Ends one side, and the connection with the second.
    fn end_side(&mut self, now: Instant, end: usize, number: usize, cause: Cause) {
        let Some(conn) = &mut self.conns[number] else { return };
        let side = &mut conn.sides[end];
        let (stage, after) = (side.stage(), now.since(side.since));
        let why = Why { cause, stage, after, retransmits: 0, rto: None, hint: None };
        side.state = State::Gone;
        if let Some(id) = side.id.take() {
            self.ends[end].slots[id.index as usize].conn = None;
            self.ends[end].events.push_back(Event::Closed(id, why));
        }
        if conn.sides.iter().all(|side| side.state == State::Gone) {
            self.conns[number] = None;
        }
    }
}
