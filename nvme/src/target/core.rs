//! The target without its transport: connections, controllers, subsystems and buffers, and what
//! ties them together. Bytes, completions and `now` in; bytes, closings and the next deadline out.
//!
//! A connection's entry stays until no device works for it, so that a late completion finds its
//! buffer's owner. A controller's stays until its last connection's is gone. When an association
//! is over, and what follows from it, is in [`super::drain`].

use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;

use moorline_stack::time::Duration;
use moorline_stack::{ConnId, Instant};

use super::conn::{Conn, State};
use super::controller::Controller;
use super::faults::Faults;
use super::pool::Pool;
use super::{Subsystem, TargetConfig, TargetStats};
use crate::bdev::Done;

/// How often silent transfers are looked for.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// No connection.
const NONE: u32 = u32::MAX;

/// Everything but the transport.
#[derive(Debug)]
pub(super) struct Core {
    pub config: TargetConfig,
    pub subsystems: Vec<Subsystem>,
    pub listeners: Vec<SocketAddr>,
    /// Counts changes of the discovery log.
    pub genctr: u64,
    pub conns: Box<[Option<Box<Conn>>]>,
    free_conns: Vec<u32>,
    /// Our index of a transport's connection, by its slot there.
    by_transport: Vec<u32>,
    pub controllers: Box<[Option<Controller>]>,
    pub cntlid: u16,
    pub pool: Pool,
    /// Connections to be read from, sent for, and started again, each once.
    pub ready: VecDeque<u32>,
    pub to_send: VecDeque<u32>,
    pub starved: VecDeque<u32>,
    /// Connections to be closed (true) or aborted by the driver.
    pub closing: Vec<(ConnId, bool)>,
    done: Vec<Done>,
    /// The last write of an ended association is done: Connects may wait for it.
    pub drained: bool,
    /// Commands that the connection at hand may still bring in this turn.
    pub commands: u32,
    /// The earliest deadline, or earlier.
    next_check: Option<Instant>,
    /// What it does wrong on demand; `None` when there is nothing.
    pub faults: Option<Box<Faults>>,
    pub stats: TargetStats,
}

impl Core {
    pub fn new(config: TargetConfig) -> Self {
        config.check();
        let conns = config.conns_max;
        Self {
            subsystems: Vec::new(),
            listeners: Vec::new(),
            genctr: 0,
            conns: (0..conns).map(|_| None).collect(),
            free_conns: (0..conns as u32).rev().collect(),
            by_transport: Vec::with_capacity(conns),
            controllers: (0..config.controllers_max).map(|_| None).collect(),
            cntlid: 0,
            pool: Pool::new(&config),
            ready: VecDeque::with_capacity(conns),
            to_send: VecDeque::with_capacity(conns),
            starved: VecDeque::with_capacity(conns),
            closing: Vec::with_capacity(conns),
            done: Vec::with_capacity(4096),
            drained: false,
            commands: 0,
            next_check: None,
            faults: None,
            stats: TargetStats::default(),
            config,
        }
    }

    /// The connection of an index that is in use.
    pub fn conn(&mut self, index: u32) -> &mut Conn {
        self.conns[index as usize].as_deref_mut().expect("the caller holds an index in use")
    }

    /// The controller of a live connection.
    pub fn controller_of(&mut self, index: u32) -> &mut Controller {
        let at = self.conn(index).controller.expect("live connections have one");
        self.controllers[usize::from(at)].as_mut().expect("its connections keep it")
    }

    /// Our index of a transport's connection.
    pub fn index_of(&self, id: ConnId) -> Option<u32> {
        let index = *self.by_transport.get(id.index as usize)?;
        let conn = self.conns.get(index as usize)?.as_deref()?;
        (conn.id == id).then_some(index)
    }

    /// A connection was accepted.
    pub fn accepted(&mut self, now: Instant, id: ConnId, local: SocketAddr, peer: SocketAddr) {
        let is_stranger = |conn: &Conn| {
            matches!(conn.state, State::IcWait | State::ConnectWait) && conn.peer.ip() == peer.ip()
        };
        let strangers = self.conns.iter().flatten().filter(|conn| is_stranger(conn)).count();
        let many = strangers >= self.config.unauthenticated_per_peer_max;
        let index = if many { None } else { self.free_conns.pop() };
        let Some(index) = index else {
            self.stats.refused += 1;
            self.closing.push((id, false));
            return;
        };
        let at = id.index as usize;
        if self.by_transport.len() <= at {
            self.by_transport.resize(at + 1, NONE);
        }
        self.by_transport[at] = index;
        let conn = Conn::new(now, id, local, peer, &self.config);
        self.check_at(now + self.config.icreq_timeout);
        self.check_at(now + STALL_CHECK);
        self.conns[index as usize] = Some(Box::new(conn));
        self.stats.accepted += 1;
        self.stats.conns += 1;
    }

    /// The connection is to be read from.
    pub fn readable(&mut self, index: u32) {
        let conn = self.conn(index);
        if !mem::replace(&mut conn.in_ready, true) {
            self.ready.push_back(index);
        }
    }

    /// The connection has something to send.
    pub fn dirty(&mut self, index: u32) {
        let conn = self.conn(index);
        if !mem::replace(&mut conn.in_dirty, true) {
            self.to_send.push_back(index);
        }
    }

    /// The connection waits for a buffer or a device.
    pub fn starve(&mut self, index: u32) {
        let conn = self.conn(index);
        if !mem::replace(&mut conn.in_starved, true) {
            self.starved.push_back(index);
        }
    }

    /// After a connection was fed: it may have ended, or have something to send.
    pub fn fed(&mut self, now: Instant, index: u32, drained: bool) {
        let Some(conn) = self.conns[index as usize].as_deref() else { return };
        let (state, deadline, has_tx) = (conn.state, conn.deadline, conn.has_tx());
        let has_term = conn.special.is_some();
        let ack_wanted = conn.ack_wanted;
        let gone = conn.peer_closed && drained && conn.paused.is_none();
        if state == State::Terminating && !conn.in_dirty {
            self.stats.fatal += u64::from(has_term);
        }
        if state == State::Dead || gone {
            return self.remove(index, Some(true));
        }
        if state == State::Terminating {
            self.end_quietly(now, index);
        }
        if let Some(deadline) = deadline {
            self.check_at(deadline);
        }
        if has_tx || ack_wanted {
            self.dirty(index);
        }
    }

    /// Commands that waited try again, connection by connection.
    pub fn retry(&mut self) {
        if self.starved.is_empty() || !mem::take(&mut self.pool.returned) {
            return;
        }
        for _ in 0..self.starved.len() {
            let Some(index) = self.starved.pop_front() else { break };
            let Self { conns, pool, .. } = self;
            let Some(conn) = conns[index as usize].as_deref_mut() else { continue };
            conn.in_starved = false;
            let mut waits = false;
            if conn.paused.is_some() {
                waits = !Self::resume(conn, pool);
                if !waits {
                    self.readable(index);
                }
            }
            waits |= !self.retry_waiting(index);
            if waits {
                self.starve(index);
            }
        }
    }

    /// The commands of a connection that wait try again, in their order. One that has its data
    /// passes those that wait for a buffer: theirs may be held until it is done. Behind one whose
    /// device is full nobody tries: that one will have room. False: some still wait.
    fn retry_waiting(&mut self, index: u32) -> bool {
        let (mut at, mut is_short) = (0, false);
        // Bounded: at most the slots of the connection.
        while let Some(&slot) = self.conn(index).waiting.get(at) {
            let passes = self.conn(index).slots[usize::from(slot)].passes();
            if (passes || !is_short) && self.start(index, slot) {
                self.conn(index).waiting.remove(at);
            } else if passes {
                break;
            } else {
                is_short = true;
                at += 1;
            }
        }
        self.conn(index).waiting.is_empty()
    }

    /// Hands devices their requests, and takes in what they have done.
    pub fn poll_devices(&mut self) {
        for at in 0..self.subsystems.len() {
            for ns in 0..self.subsystems[at].namespaces.len() {
                let Some(namespace) = &mut self.subsystems[at].namespaces[ns] else { continue };
                if namespace.in_flight == 0 {
                    continue;
                }
                let mut done = mem::take(&mut self.done);
                namespace.bdev.poll(&mut |end| done.push(end));
                namespace.in_flight -= done.len() as u32;
                for end in done.drain(..) {
                    self.device_done(end);
                }
                self.done = done;
            }
        }
    }

    /// Devices' requests under way, that end without a descriptor telling.
    pub fn must_poll(&self) -> bool {
        let namespaces = self.subsystems.iter().flat_map(|sub| sub.namespaces.iter().flatten());
        let mut busy = namespaces.filter(|ns| ns.in_flight > 0);
        busy.any(|ns| ns.bdev.fd().is_none())
    }

    /// Whether the next turn is to come at once.
    pub fn is_busy(&self) -> bool {
        let retry = self.pool.returned && !self.starved.is_empty();
        !self.ready.is_empty() || retry || self.must_poll()
    }

    /// CC.EN went to 0: the I/O queues go, events end.
    pub fn reset(&mut self, admin: u32) {
        let at = self.conn(admin).controller.expect("live connections have one");
        self.end_io_queues(at);
        let Self { conns, controllers, pool, .. } = self;
        let conn = conns[admin as usize].as_deref_mut().expect("it asked for this");
        let controller = controllers[usize::from(at)].as_mut().expect("its connections keep it");
        while let Some(slot) = controller.take_aer() {
            conn.complete(pool, slot, crate::spec::Status::ABORTED_SQ_DELETION, 0);
        }
    }

    fn end_io_queues(&mut self, at: u16) {
        let queues = self.controllers[usize::from(at)].as_ref().map_or(0, |c| c.queues.len());
        for qid in 1..queues {
            let controller = self.controllers[usize::from(at)].as_ref();
            if let Some(index) = controller.and_then(|c| c.queues[qid]) {
                self.take_down(index, Some(false));
            }
        }
    }

    /// A connection is gone, or is to be closed (`Some(true)`) or aborted (`Some(false)`). Its
    /// association may be over with it.
    pub fn remove(&mut self, index: u32, close: Option<bool>) {
        self.end_with(index);
        self.take_down(index, close);
    }

    /// The same, for one connection alone.
    pub(super) fn take_down(&mut self, index: u32, close: Option<bool>) {
        let Self { conns, pool, closing, .. } = self;
        let Some(conn) = conns[index as usize].as_deref_mut() else { return };
        conn.bury(pool);
        let id = conn.id;
        if self.by_transport[id.index as usize] == index {
            self.by_transport[id.index as usize] = NONE;
            if let Some(graceful) = close {
                closing.push((id, graceful));
            }
        }
        let (controller, qid) = (conn.controller, usize::from(conn.qid));
        if let Some(at) = controller {
            let controller = self.controllers[usize::from(at)].as_mut();
            let controller = controller.expect("its connections keep it");
            if controller.queues[qid] == Some(index) {
                controller.queues[qid] = None;
            }
        }
        self.remove_if_idle(index);
    }

    /// Frees the entry of a dead connection for which no device works, and its controller with
    /// the last.
    pub fn remove_if_idle(&mut self, index: u32) {
        let Some(conn) = self.conns[index as usize].as_deref() else { return };
        if conn.state != State::Dead || conn.in_flight > 0 {
            return;
        }
        let (controller, ready) = (conn.controller, conn.in_ready);
        let (starved, dirty) = (conn.in_starved, conn.in_dirty);
        self.conns[index as usize] = None;
        // An entry is given to another connection only when no list names it any more.
        if ready {
            self.ready.retain(|&at| at != index);
        }
        if starved {
            self.starved.retain(|&at| at != index);
        }
        if dirty {
            self.to_send.retain(|&at| at != index);
        }
        self.free_conns.push(index);
        self.stats.conns -= 1;
        let Some(at) = controller else { return };
        let entry = &mut self.controllers[usize::from(at)];
        let controller = entry.as_mut().expect("its connections keep it");
        controller.conns -= 1;
        if controller.conns == 0 && controller.ended {
            *entry = None;
            self.stats.controllers -= 1;
        }
    }

    /// Deadlines are to be looked at no later than `at`.
    pub fn check_at(&mut self, at: Instant) {
        self.next_check = Some(self.next_check.map_or(at, |check| check.min(at)));
    }

    /// When deadlines are to be looked at.
    pub fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// Does what is due. Deadlines of connections with unread bytes wait for these to be read.
    pub fn check_deadlines(&mut self, now: Instant) {
        if self.next_check.is_none_or(|check| now < check) {
            return;
        }
        self.next_check = None;
        for index in 0..self.conns.len() as u32 {
            self.check_conn(now, index);
        }
        for at in 0..self.controllers.len() {
            let Some(controller) = &mut self.controllers[at] else { continue };
            let Some(deadline) = controller.deadline() else { continue };
            let admin = controller.queues[0];
            let conn = admin.and_then(|index| self.conns[index as usize].as_deref());
            if conn.is_some_and(|conn| conn.is_withheld) {
                self.check_at(now + STALL_CHECK);
                continue;
            }
            let unread = conn.is_some_and(|conn| conn.in_ready);
            if unread || !controller.is_expired(now) {
                self.check_at(if deadline <= now { now } else { deadline });
                continue;
            }
            tracing::warn!(cntlid = controller.cntlid, kato_ms = controller.kato_ms(), "expired");
            self.stats.keep_alive_expired += u64::from(controller.kato_ms() > 0);
            if let Some(index) = admin {
                self.remove(index, Some(false));
            }
        }
    }

    fn check_conn(&mut self, now: Instant, index: u32) {
        let stall_timeout = self.config.stall_timeout;
        let Some(conn) = self.conns[index as usize].as_deref_mut() else { return };
        if conn.state == State::Dead {
            return;
        }
        if conn.is_withheld {
            return self.check_at(now + STALL_CHECK);
        }
        if let Some(until) = conn.held {
            return if until <= now { self.connect(now, index, 0) } else { self.check_at(until) };
        }
        let stalled = conn.stalled_for(now) >= stall_timeout;
        let due = conn.deadline.is_some_and(|deadline| deadline <= now);
        if (due || stalled) && !conn.in_ready {
            self.stats.timeouts += u64::from(conn.state != State::Terminating);
            tracing::warn!(peer = %conn.peer, state = ?conn.state, stalled, "deadline passed");
            return self.remove(index, Some(false));
        }
        let deadline = conn.deadline;
        self.check_at(now + STALL_CHECK);
        if let Some(deadline) = deadline {
            self.check_at(deadline.max(now));
        }
    }
}
