//! Time passes: what arrives, what is due, and what is sent on its way.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::PipeOptions;
use super::{Conn, End, Flow, Net, State};
use crate::Instant;
use crate::rng::Rng;
use crate::transport::{Cause, Event};

impl Net {
    pub fn turn(&mut self, now: Instant, end: usize) {
        self.ends[end].now = now;
        for number in 0..self.conns.len() {
            let dark = self.conns[number].as_ref().is_some_and(|conn| self.is_dark(conn));
            if !dark {
                self.arrive(now, end, number);
            }
            self.expire(now, end, number);
        }
    }

    pub fn flush(&mut self, now: Instant, end: usize) {
        for conn in self.conns.iter_mut().flatten() {
            let Self { options, rng, .. } = self;
            conn.launch(now, end, options, rng);
        }
    }

    fn is_dark(&self, conn: &Conn) -> bool {
        self.options.blackhole || self.options.dark.contains(&conn.to)
    }

    pub fn poll_timeout(&self, end: usize) -> Option<Instant> {
        let due = |conn: &Conn| {
            let dark = self.is_dark(conn);
            let side = &conn.sides[end];
            let deadline = conn.deadline(end).map(|(at, _)| at);
            let mut arrivals = [None; 4];
            if !dark && side.state != State::Gone {
                let flow = &conn.flows[1 - end];
                let piece = flow.pieces.front().map(|&(at, _)| at);
                let answer = match side.state {
                    State::SynSent { answer, .. } => Some(answer),
                    State::Arriving { at, .. } => Some(at),
                    State::Established | State::Draining | State::Gone => None,
                };
                arrivals = [piece.or(flow.fin_at), answer, side.reset_at, conn.flows[end].news_at];
            }
            arrivals.into_iter().flatten().chain(deadline).min()
        };
        self.conns.iter().flatten().filter_map(due).min()
    }

    /// Takes in what has reached this side.
    fn arrive(&mut self, now: Instant, end: usize, number: usize) {
        let Some(conn) = &mut self.conns[number] else { return };
        match conn.sides[end].state {
            State::Gone => return,
            State::Arriving { at, local, peer, listener } if at <= now => {
                return self.accept(now, end, number, local, peer, listener);
            }
            State::SynSent { answer, refused } if answer <= now => {
                if refused {
                    return self.end_side(now, end, number, Cause::Reset);
                }
                conn.sides[end].enter(now, State::Established);
                let id = conn.sides[end].id.expect("a side that connects has its name");
                self.ends[end].events.push_back(Event::Connected(id));
            }
            State::SynSent { .. }
            | State::Arriving { .. }
            | State::Established
            | State::Draining => {}
        }
        if conn.sides[end].reset_at.is_some_and(|at| at <= now) {
            return self.end_side(now, end, number, Cause::Reset);
        }
        let Some(id) = conn.sides[end].id.filter(|_| conn.is_open(end)) else { return };
        let arrived = conn.flows[1 - end].land(now, self.options.delay);
        let End { events, stats, .. } = &mut self.ends[end];
        if arrived > 0 {
            stats.rx_bytes += arrived as u64;
            stats.copied_in_bytes += arrived as u64;
            events.push_back(Event::Readable(id));
        }
        if conn.flows[1 - end].fin_arrived && !conn.sides[end].peer_closed {
            conn.sides[end].peer_closed = true;
            events.push_back(Event::PeerClosed(id));
        }
        let flow = &mut conn.flows[end];
        if flow.news_at.is_some_and(|at| at <= now) {
            flow.news_at = None;
            let Self { options, rng, .. } = self;
            conn.launch(now, end, options, rng);
        }
        let side = &mut conn.sides[end];
        let flow = &conn.flows[end];
        let room = flow.staged.len() + flow.flying.len() < flow.staged_max;
        if side.wants_room && room && side.state == State::Established {
            side.wants_room = false;
            events.push_back(Event::Writable(id));
        }
        if side.state == State::Draining && side.peer_closed && flow.drained() {
            self.end_side(now, end, number, Cause::Closed);
        }
    }

    fn accept(
        &mut self,
        now: Instant,
        end: usize,
        number: usize,
        local: SocketAddr,
        peer: SocketAddr,
        listener: usize,
    ) {
        let open = self.conns_of(end);
        let listen = &self.ends[end].listeners[listener].options;
        let full = open >= listen.open_max.min(self.options.conns_max);
        let Some(conn) = &mut self.conns[number] else { return };
        if full || conn.sides[1 - end].state == State::Gone {
            if let State::SynSent { refused, .. } = &mut conn.sides[1 - end].state {
                *refused = true;
            }
            return self.end_side(now, end, number, Cause::Reset);
        }
        let id = self.ends[end].take_slot(number);
        conn.sides[end].id = Some(id);
        conn.sides[end].enter(now, State::Established);
        self.ends[end].events.push_back(Event::Accepted { conn: id, local, peer });
    }

    fn expire(&mut self, now: Instant, end: usize, number: usize) {
        let Some(conn) = &mut self.conns[number] else { return };
        if let Some((at, cause)) = conn.deadline(end)
            && at <= now
        {
            // The other end hears of it if the network lets it.
            conn.sides[1 - end].reset_at.get_or_insert(now + self.options.delay);
            self.end_side(now, end, number, cause);
        }
    }
}

impl Conn {
    fn is_open(&self, end: usize) -> bool {
        matches!(self.sides[end].state, State::Established | State::Draining)
    }

    /// What ends this side unless something happens before.
    fn deadline(&self, end: usize) -> Option<(Instant, Cause)> {
        let side = &self.sides[end];
        let options = &side.options;
        let ack = self.flows[end].ack_deadline(options.ack_timeout);
        let ack = ack.map(|at| (at, Cause::AckTimeout));
        match side.state {
            State::SynSent { .. } => {
                Some((side.since + options.connect_timeout, Cause::ConnectTimeout))
            }
            State::Established => ack,
            State::Draining => {
                let drain = (side.since + options.drain_timeout, Cause::DrainTimeout);
                ack.into_iter().chain([drain]).min_by_key(|&(at, _)| at)
            }
            State::Arriving { .. } | State::Gone => None,
        }
    }

    /// Sends staged bytes on their way, as far as the window allows, and FIN behind them.
    fn launch(&mut self, now: Instant, end: usize, options: &PipeOptions, rng: &mut Rng) {
        if !self.is_open(end) {
            return;
        }
        while !self.flows[end].staged.is_empty() && self.flows[end].window() > 0 {
            let flow = &mut self.flows[end];
            let most = flow.staged.len().min(flow.window());
            let len = match options.cut_max {
                0 => most,
                cut_max => most.min(1 + rng.below(cut_max as u64) as usize),
            };
            let stall = if rng.chance(options.stall) { options.stall_by } else { Duration::ZERO };
            let at = (now + options.delay + stall).max(flow.last_at());
            if rng.chance(options.reset) {
                self.sides.iter_mut().for_each(|side| side.reset_at = Some(at));
                return;
            }
            if flow.pieces.is_empty() {
                flow.unacked_since = now;
            }
            flow.flying.extend(flow.staged.drain(..len));
            flow.pieces.push_back((at, len));
        }
        let flow = &mut self.flows[end];
        if flow.closing && flow.staged.is_empty() {
            flow.closing = false;
            if flow.pieces.is_empty() {
                flow.unacked_since = now;
            }
            flow.fin_at = Some((now + options.delay).max(flow.last_at()));
        }
    }
}

impl Flow {
    /// Moves pieces that have arrived by `now` into the receive buffer; returns their bytes.
    fn land(&mut self, now: Instant, delay: Duration) -> usize {
        let mut landed = 0;
        while let Some(&(at, len)) = self.pieces.front()
            && at <= now
        {
            self.pieces.pop_front();
            self.arrived.extend(self.flying.drain(..len));
            landed += len;
        }
        if self.pieces.is_empty() && self.fin_at.is_some_and(|at| at <= now) {
            self.fin_at = None;
            self.fin_arrived = true;
            self.news_at.get_or_insert(now + delay);
        }
        if landed > 0 {
            self.unacked_since = now;
            self.news_at.get_or_insert(now + delay);
        }
        landed
    }
}
