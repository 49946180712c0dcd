//! The engine behind [`Tcp`](super::Tcp), without its link: connections, listeners, deadlines.
//!
//! Work reaches a connection by a frame, a deadline or the driver; each puts it once into `touched`,
//! and [`Engine::flush`] serves what is there. Whatever a peer sends costs one bounded step.

use std::collections::VecDeque;
use std::net::IpAddr;

use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpControl;

use super::conn::{Conn, Timer};
use super::control::Control;
use super::demux::{Demux, Keyed};
use super::hints::IcmpErrors;
use super::listen::Listener;
use super::resting::{Rest, Resting};
use super::slots::Slots;
use super::stack::Stack;
use crate::deadlines::Deadlines;
use crate::echo::Echoes;
use crate::limiter::TokenBucket;
use crate::segment::Segment;
use crate::transport::{Cause, Stage, Work};
use crate::{Instant, LinkTx};

/// Deadlines honoured in one turn.
const DEADLINES_PER_TURN: usize = 1024;

/// Nodes to be told of at once; more are heard when they announce themselves again.
pub(super) const NODES_MAX: usize = 1024;

/// Counters of stream bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub copied_in_bytes: u64,
    pub copied_out_bytes: u64,
    pub retransmits: u64,
    pub syns: u64,
    /// Segments sent.
    pub segments: u64,
    /// The longest frame that the link does not copy once more.
    pub linear_frame_max: usize,
}

impl Counters {
    /// How often the data of a segment are copied between our ring and the link's frame.
    pub(super) fn copies(&self, segment: &Segment) -> u64 {
        1 + u64::from(segment.frame_bytes() > self.linear_frame_max)
    }
}

pub(super) struct Engine {
    pub slots: Slots,
    pub demux: Demux,
    pub stack: Stack,
    pub listeners: Vec<Listener>,
    pub resting: Resting,
    pub deadlines: Deadlines,
    pub touched: VecDeque<u32>,
    pub work: Work,
    pub challenges: TokenBucket,
    pub resets: TokenBucket,
    pub hints: TokenBucket,
    pub icmp_errors: IcmpErrors,
    pub counters: Counters,
    pub echoes: Echoes,
    /// Nodes that announced themselves, or answered an echo request, to be told of.
    pub nodes: VecDeque<IpAddr>,
    /// TX frames kept for answers to received segments.
    pub reserve: usize,
    /// Connections were left with something to send, for want of link room.
    pub starved: bool,
}

impl Engine {
    pub(super) fn new(
        mut stack: Stack,
        keyed: Keyed,
        room: usize,
        linear_frame_max: usize,
    ) -> Self {
        let id = stack.draw() as u16;
        Self {
            slots: Slots::default(),
            demux: Demux::new(keyed),
            stack,
            listeners: Vec::new(),
            resting: Resting::new(keyed),
            deadlines: Deadlines::default(),
            touched: VecDeque::new(),
            work: Work::default(),
            challenges: TokenBucket::default(),
            resets: TokenBucket::default(),
            hints: TokenBucket::default(),
            icmp_errors: IcmpErrors::default(),
            counters: Counters { linear_frame_max, ..Counters::default() },
            echoes: Echoes::new(id),
            nodes: VecDeque::with_capacity(NODES_MAX),
            reserve: (room / 8).min(32),
            starved: false,
        }
    }

    /// Sees to it that the connection is served before the turn ends.
    pub(super) fn touch(&mut self, index: u32) {
        if let Some(conn) = self.slots.at_mut(index)
            && !conn.touched
        {
            conn.touched = true;
            self.touched.push_back(index);
        }
    }

    /// Enters a new connection into the tables.
    pub(super) fn insert(&mut self, conn: Conn) {
        let index = conn.id.index;
        self.demux.insert(conn.tuple, index);
        self.slots.insert(conn);
        self.deadlines.set(index, None);
        self.touched.reserve(self.slots.len().saturating_sub(self.touched.len()));
        self.touch(index);
    }

    /// Ends a connection without a word on the wire. `cause` is told, unless it is `None`: then
    /// nobody has ever heard of it.
    pub(super) fn finish(&mut self, now: Instant, index: u32, cause: Option<Cause>) {
        let conn = self.slots.at(index).expect("the caller has just looked at it");
        let why = cause.map(|cause| conn.why(now, cause));
        let time_wait = conn.socket().state() == State::TimeWait;
        let conn = self.slots.remove(index, why);
        self.demux.remove(&conn.tuple);
        self.deadlines.set(index, None);
        if let Some(listener) = conn.listener {
            self.listeners[listener].left(conn.stage == Stage::SynReceived);
        }
        if !matches!(conn.stage, Stage::Resolving | Stage::SynReceived) {
            let rest = Rest { l2: conn.l2, seq: conn.seq_max, ack: conn.ack_sent, time_wait };
            self.resting.add(now, conn.tuple, rest);
        }
    }

    /// Ends a connection with RST.
    pub(super) fn abort<T: LinkTx>(&mut self, now: Instant, tx: &mut T, index: u32, cause: Cause) {
        let conn = self.slots.at(index).expect("the caller has just looked at it");
        // A SYN that nobody answered needs no RST, and a SYN-ACK's target may be spoofed.
        if matches!(conn.stage, Stage::Established | Stage::Draining) {
            let reset = Control {
                tuple: conn.tuple,
                control: TcpControl::Rst,
                seq: conn.seq_max,
                ack: Some(conn.ack_sent),
                window: 0,
            };
            reset.transmit(tx, &conn.l2, &self.stack.checksum);
        }
        self.finish(now, index, Some(cause));
    }

    /// Begins a graceful close.
    pub(super) fn close(&mut self, now: Instant, index: u32) {
        let Some(conn) = self.slots.at_mut(index) else { return };
        match conn.stage {
            Stage::Resolving | Stage::SynSent | Stage::SynReceived => {
                self.finish(now, index, Some(Cause::Closed));
            }
            Stage::Established => {
                let timeout = conn.options.drain_timeout;
                conn.enter(now, Stage::Draining, Some(timeout));
                conn.discard_received();
                conn.socket_mut().close();
                conn.egress = true;
                self.touch(index);
            }
            Stage::Draining => {}
        }
    }

    /// Honours what is due. A frame that waits may be the very thing that a deadline misses: to be
    /// called when none does that arrived before.
    pub(super) fn expire<T: LinkTx>(&mut self, now: Instant, tx: &mut T) {
        let mut honoured = 0;
        for _ in 0..DEADLINES_PER_TURN {
            let due = self.deadlines.next();
            let Some(index) = self.deadlines.pop_due(now) else { break };
            honoured += 1;
            self.work.deadline_late_us.record_us(now.since(due.unwrap_or(now)));
            self.expire_one(now, tx, index);
        }
        if honoured > 0 {
            self.work.deadlines.record(honoured);
        }
    }

    fn expire_one<T: LinkTx>(&mut self, now: Instant, tx: &mut T, index: u32) {
        let conn = self.slots.at_mut(index).expect("a deadline goes with its connection");
        let due = conn.timers.map(|timer| timer.is_some_and(|at| at <= now));
        for (timer, &due) in conn.timers.iter_mut().zip(&due) {
            *timer = timer.filter(|_| !due);
        }
        if due[Timer::Stage as usize] {
            return match conn.stage {
                Stage::Resolving => self.finish(now, index, Some(Cause::NeighbourTimeout)),
                Stage::SynSent => self.finish(now, index, Some(Cause::ConnectTimeout)),
                Stage::SynReceived => self.finish(now, index, None),
                Stage::Draining => self.abort(now, tx, index, Cause::DrainTimeout),
                Stage::Established => unreachable!("this stage has no deadline"),
            };
        }
        if due[Timer::Unacked as usize] {
            return self.abort(now, tx, index, Cause::AckTimeout);
        }
        conn.ack_now |= due[Timer::Ack as usize];
        conn.egress |= due[Timer::Tcp as usize];
        self.touch(index);
    }

    /// Ends all connections: the link is gone.
    pub(super) fn fail_all(&mut self, now: Instant, errno: i32) {
        for index in 0..self.slots.len() as u32 {
            if let Some(conn) = self.slots.at(index) {
                let told = conn.stage != Stage::SynReceived;
                self.finish(now, index, told.then_some(Cause::Errno(errno)));
            }
        }
    }
}
