//! The host's driver: many controllers over one transport, one turn at a time.
//!
//! What always holds: each event, deadline and submission touches its own controller only; the
//! admin connections are emitted first; nothing here allocates per I/O.

use std::collections::VecDeque;
use std::io;

use moorline_stack::deadlines::Deadlines;
use moorline_stack::time::earliest;
use moorline_stack::transport::{ConnOptions, Stage as TcpStage};
use moorline_stack::{ConnId, Event, Instant, Transport};

use super::controller::{Action, Controller, Names, Phase};
use super::events::Events;
use super::history::History;
use super::life::Life;
use super::probe::Probes;
use super::reach::{Addresses, Reach};
use super::requeue::Store;
use super::standby::{STANDBY, Standby};
use super::table::SLOTS_MAX;
use super::{
    AdminDone, Cause, CtrlConfig, CtrlId, Failure, Figures, HostIdentity, HostLimits, IoDone, Stage,
};
use crate::spec::{HostId, Nqn};

/// A qpair of a controller, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub ctrl: u32,
    pub qpair: u32,
}

/// A controller and what the driver keeps beside it.
pub(super) struct Entry {
    pub ctrl: Controller,
    pub life: Life,
    /// Its I/O that waits, where it outlives a path; and whether it is in the refill list.
    pub requeue: Option<Store>,
    pub refill: bool,
    pub standby: Standby,
    /// The place of its address.
    pub address: u32,
    /// Keep alives that had no answer when it was lost.
    pub keep_alives_lost: u64,
    /// Why it was lost last.
    pub failure: Option<Failure>,
    pub history: History,
    pub conns: Vec<Option<ConnId>>,
    /// I/O qpairs whose connection begins later, each at its place in the admission.
    pub opens: VecDeque<(Instant, u32)>,
    /// Which qpairs are in a dirty list, and which in the ready list.
    pub dirty: Vec<bool>,
    pub ready: Vec<bool>,
    /// What it has in the host's deadlines: no deadline of it is earlier.
    pub armed: Option<Instant>,
    /// After how many judgements that was armed.
    armed_in: u64,
    /// It is being looked at, and is armed again when all were.
    is_popped: bool,
}

/// When deadlines were judged last, and how often so far.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    now: Instant,
    count: u64,
}

/// A host. A turn is [`Host::turn`], then the polls and submissions, then [`Host::flush`], then
/// [`Host::wait`] where there is nothing to do.
pub struct Host<T: Transport> {
    pub(super) transport: T,
    pub(super) identity: HostIdentity,
    pub(super) limits: HostLimits,
    pub(super) entries: Vec<Option<Entry>>,
    generations: Vec<u32>,
    /// Whose a connection is, by its index.
    pub(super) owners: Vec<Option<(ConnId, At)>>,
    /// Qpairs with something to send: admin, then I/O.
    dirty_admin: VecDeque<At>,
    dirty_io: VecDeque<At>,
    /// I/O qpairs with completions to poll.
    pub(super) ready: VecDeque<At>,
    /// Controllers with I/O that waits for room.
    pub(super) refill: VecDeque<u32>,
    /// Completions of what is in no qpair: at most a queue depth for each outage.
    pub(super) left: VecDeque<IoDone>,
    pub(super) events: Events,
    pub(super) admin_done: VecDeque<AdminDone>,
    pub(super) addresses: Addresses,
    /// Deadlines of controllers, and of the tests of addresses, by place.
    pub(super) deadlines: Deadlines,
    pub(super) probes: Probes,
    judged: Judged,
    /// Controllers that were looked at in this judging; empty between them.
    popped: Vec<u32>,
    /// PDUs received in this turn.
    pdus: u64,
    pub(super) figures: Figures,
}

impl<T: Transport> Host<T> {
    /// A host with its own transport.
    pub fn new(transport: T, identity: HostIdentity, limits: HostLimits) -> Self {
        Self {
            transport,
            identity,
            limits,
            entries: (0..limits.controllers).map(|_| None).collect(),
            generations: vec![0; limits.controllers],
            owners: Vec::new(),
            dirty_admin: VecDeque::with_capacity(limits.controllers),
            dirty_io: VecDeque::new(),
            ready: VecDeque::new(),
            refill: VecDeque::with_capacity(limits.controllers),
            left: VecDeque::new(),
            events: Events::new(limits.controllers),
            admin_done: VecDeque::new(),
            addresses: Addresses::default(),
            deadlines: Deadlines::default(),
            probes: Probes::new(&limits),
            judged: Judged::default(),
            popped: Vec::with_capacity(limits.controllers),
            pdus: 0,
            figures: Figures::default(),
        }
    }

    /// Starts to connect a controller; [`HostEvent::Live`], [`HostEvent::Failed`] or, where it is
    /// to be tried again, [`HostEvent::Disconnected`] will tell.
    ///
    /// # Errors
    /// `InvalidInput` for a configuration that cannot work (says which field), `QuotaExceeded`
    /// when there are as many controllers as the limits allow.
    pub fn connect(&mut self, now: Instant, config: CtrlConfig) -> io::Result<CtrlId> {
        let names = self.check(&config)?;
        let free = self.entries.iter().position(|entry| match entry {
            None => true,
            Some(entry) => entry.is_spent(),
        });
        let index = free.ok_or_else(|| {
            let max = self.limits.controllers;
            io::Error::new(io::ErrorKind::QuotaExceeded, format!("all {max} controllers in use"))
        })?;
        self.generations[index] += 1;
        let id = CtrlId { index: index as u32, generation: self.generations[index] };
        let seed = u128::from_le_bytes(self.identity.hostid) as u64 ^ index as u64;
        let requeue = config.requeue.filter(|_| config.reconnect.is_some());
        self.refill.retain(|ctrl| *ctrl != index as u32);
        self.entries[index] = Some(Entry {
            requeue: requeue.map(|r| Store::new(r, config.io_queues, config.queue_size)),
            refill: false,
            standby: Standby::default(),
            life: Life::new(now, config.reconnect, seed),
            address: self.addresses.join(config.addr, index as u32),
            keep_alives_lost: 0,
            failure: None,
            history: History::new(),
            ctrl: Controller::new(now, id, config, names),
            conns: Vec::new(),
            opens: VecDeque::new(),
            dirty: Vec::new(),
            ready: Vec::new(),
            armed: None,
            armed_in: 0,
            is_popped: false,
        });
        self.go_on(now, index as u32);
        Ok(id)
    }

    fn check(&self, config: &CtrlConfig) -> io::Result<Names> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let nqn = |name: &str, nqn: &str| {
            Nqn::new(nqn).map_err(|error| invalid(format!("{name} {nqn:?}: {error}")))
        };
        let size_max = usize::from(self.limits.queue_size).min(SLOTS_MAX + 1);
        if !(2..=size_max).contains(&usize::from(config.queue_size)) {
            return Err(invalid(format!(
                "queue size {} is not 2 to {size_max}",
                config.queue_size
            )));
        }
        let queues_max = self.limits.io_queues;
        if config.io_queues > queues_max {
            let asked = config.io_queues;
            return Err(invalid(format!("{asked} I/O queues are more than {queues_max}")));
        }
        if config.hpda > 31 {
            return Err(invalid(format!("HPDA {} is not 0 to 31", config.hpda)));
        }
        config.lint().map_err(|error| invalid(error.to_string()))?;
        Ok(Names {
            hostnqn: nqn("host NQN", &self.identity.hostnqn)?,
            hostid: HostId::from_bytes(self.identity.hostid),
            subnqn: nqn("subsystem NQN", &config.subnqn)?,
        })
    }

    /// Shuts a controller down in order: its I/O ends (bounded), CC.SHN, connections closed.
    /// [`HostEvent::Closed`] or [`HostEvent::Failed`] follows, once.
    pub fn disconnect(&mut self, now: Instant, ctrl: CtrlId) {
        let entry = self.entry_mut(ctrl);
        if entry.life.is_waiting() {
            return self.closed(now, ctrl.index);
        }
        entry.life.last();
        entry.ctrl.disconnect(now);
        self.standby_drop(now, ctrl.index);
        self.close_store(now, ctrl.index);
        self.act(now, ctrl.index);
    }

    /// Takes in what has arrived and what is due. A deadline that passed while we were away is
    /// judged after what had arrived.
    ///
    /// Bounded without a budget of its own: the transport tells of each connection a few times a
    /// turn at most, and shows what its receive buffer holds (`ConnOptions::rx_buffer`, 256 KiB
    /// by default), all of which is parsed. Nothing arrives in between, and completions are no
    /// more than the commands under way.
    pub fn turn(&mut self, now: Instant) {
        self.transport.turn(now);
        let mut events = 0;
        while let Some(event) = self.transport.poll_event() {
            events += 1;
            self.event(now, event);
        }
        let pdus = std::mem::take(&mut self.pdus);
        let deadlines = match self.transport.is_caught_up() {
            true => self.honour_deadlines(now),
            false => 0,
        };
        self.figures.turn(events, pdus, deadlines);
    }

    fn event(&mut self, now: Instant, event: Event) {
        let conn = match event {
            Event::Accepted { .. } => return, // nobody listens here
            Event::Reachable(ip) => return self.announced(now, ip),
            Event::LinkUp => return self.link_up(now),
            Event::Connected(conn)
            | Event::Readable(conn)
            | Event::Writable(conn)
            | Event::PeerClosed(conn)
            | Event::Closed(conn, _) => conn,
        };
        let Some(at) = self.owner(conn) else { return };
        if at.qpair == STANDBY {
            return self.standby_event(now, at.ctrl, conn, &event);
        }
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        match event {
            Event::Accepted { .. } | Event::Reachable(_) | Event::LinkUp => return,
            Event::Connected(_) => {
                entry.ctrl.qpairs[q].connected(now);
                let (address, over) = (entry.address, entry.life.is_over());
                self.mark_dirty(at);
                self.note_deadline(at.ctrl);
                // Where it was not reachable, TCP is no proof: `receive` waits for ICResp.
                if !over && !self.addresses.at(address).reach.is_tested() {
                    self.reached(now, address);
                }
                return;
            }
            Event::Writable(_) => return self.mark_dirty(at),
            Event::Readable(_) => self.receive(now, at, conn),
            Event::PeerClosed(_) => {
                self.receive(now, at, conn);
                if let Some(entry) = &mut self.entries[at.ctrl as usize] {
                    entry.ctrl.peer_closed(now, q);
                }
            }
            Event::Closed(_, why) => {
                entry.conns[q] = None;
                self.owners[conn.index as usize] = None;
                if let (Some(reach), false) = (Reach::of(&why), entry.life.is_over()) {
                    let established =
                        matches!(why.stage, TcpStage::Established | TcpStage::Draining);
                    self.addresses.at(entry.address).failed(reach, established);
                }
                entry.ctrl.connection_closed(now, q, Cause::Tcp(why));
            }
        }
        self.after(now, at);
    }

    /// Parses what was received, where it lies.
    fn receive(&mut self, now: Instant, at: At, conn: ConnId) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        let qpair = &mut entry.ctrl.qpairs[q];
        let greeted = qpair.stage() == Some(Stage::InitializeConnection);
        self.transport.recv(conn, &mut |bytes| {
            qpair.recv(now, bytes);
            bytes.len()
        });
        self.pdus += qpair.take_pdus();
        if qpair.take_ack_wanted() {
            self.transport.ack(conn);
        }
        let answered = greeted && qpair.stage() == Some(Stage::Connect);
        let (address, over) = (entry.address, entry.life.is_over());
        entry.ctrl.settle(now, q);
        if answered && !over {
            self.reached(now, address);
        }
    }

    fn owner(&self, conn: ConnId) -> Option<At> {
        let (owner, at) = (*self.owners.get(conn.index as usize)?)?;
        (owner == conn).then_some(at)
    }

    /// A qpair was fed something: carries out what its controller wants, and notes what the
    /// qpair has for the wire and for the caller.
    fn after(&mut self, now: Instant, at: At) {
        self.act(now, at.ctrl);
        self.mark(at);
        if at.qpair > 0 {
            // The last I/O queue to connect lets the bring-up go on, on the admin queue.
            self.mark(At { qpair: 0, ..at });
        }
    }

    /// Puts a qpair into the lists it belongs to.
    pub(super) fn mark(&mut self, at: At) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        if q >= entry.ready.len() {
            return; // of an attempt before this one
        }
        if q > 0 && !entry.ready[q] && entry.ctrl.qpairs[q].has_done() {
            entry.ready[q] = true;
            self.ready.push_back(at);
        }
        if entry.ctrl.qpairs[q].has_tx() {
            self.mark_dirty(at);
        }
    }

    fn mark_dirty(&mut self, at: At) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let Some(dirty) = entry.dirty.get_mut(at.qpair as usize) else { return };
        if !*dirty {
            *dirty = true;
            let list = if at.qpair == 0 { &mut self.dirty_admin } else { &mut self.dirty_io };
            list.push_back(at);
        }
    }

    /// Carries out a controller's actions, until there are none.
    pub(super) fn act(&mut self, now: Instant, ctrl: u32) {
        let mut acted = false;
        while let Some(entry) = &mut self.entries[ctrl as usize] {
            let Some(action) = entry.ctrl.poll_action() else { break };
            acted = true;
            let id = entry.ctrl.id;
            match action {
                Action::Open(q) => self.open(now, At { ctrl, qpair: q as u32 }),
                Action::Close(q) => {
                    entry.forget_open(now, q);
                    if let Some(conn) = entry.conns[q] {
                        let transport = &mut self.transport;
                        entry.ctrl.qpairs[q].emit(now, &mut |bytes| transport.send(conn, bytes));
                        self.transport.close(now, conn);
                    }
                }
                Action::Abort(q) => {
                    entry.forget_open(now, q);
                    if let Some(conn) = entry.conns[q] {
                        self.transport.abort(now, conn);
                    }
                }
                Action::Tell(event) => self.events.push(event),
                Action::Live(after) => self.live(now, ctrl, after),
                Action::Lost(failure) => self.lost(now, ctrl, failure),
                Action::Closed => self.closed(now, ctrl),
                Action::AdminDone(tag, done) => {
                    let data = done.memory.into_vec();
                    self.admin_done.push_back(AdminDone { ctrl: id, tag, cqe: done.cqe, data });
                }
            }
        }
        if acted {
            let qpairs = self.entries[ctrl as usize].as_ref().map_or(0, |e| e.dirty.len());
            for qpair in 0..qpairs as u32 {
                self.mark(At { ctrl, qpair });
            }
        }
        // Nothing that happens to one that stays live is a transition.
        let is_live = |e: &Entry| e.ctrl.phase == Phase::Live;
        if acted || !self.entries[ctrl as usize].as_ref().is_some_and(is_live) {
            self.note_state(now, ctrl);
        }
        self.note_deadline(ctrl);
    }

    /// The options of a controller's connections. A close may take as long as a TermReq may.
    pub(super) fn conn_options(&self, ctrl: u32) -> Option<ConnOptions> {
        let entry = self.entries[ctrl as usize].as_ref()?;
        let config = &entry.ctrl.config;
        let mut options =
            ConnOptions { drain_timeout: config.timeouts.term, ..config.conn.clone() };
        if let Some(reconnect) = config.reconnect
            && self.addresses.peek(entry.address).is_some_and(|a| a.tester == Some(ctrl))
        {
            options.connect_timeout = reconnect.probe_timeout;
        }
        Some(options)
    }

    /// Notes whose a connection is.
    pub(super) fn own(&mut self, conn: ConnId, at: At) {
        let index = conn.index as usize;
        if self.owners.len() <= index {
            self.owners.resize(index + 1, None);
        }
        self.owners[index] = Some((conn, at));
    }

    // Deadlines.

    /// Takes a controller's deadline into the host's.
    pub(super) fn note_deadline(&mut self, ctrl: u32) {
        if let Some(entry) = &self.entries[ctrl as usize] {
            self.arm(ctrl, entry.poll_timeout());
        }
    }

    /// Moves a controller's deadline forward to `deadline`, if that is earlier. Of one that is
    /// being looked at this is done in the end.
    pub(super) fn arm(&mut self, ctrl: u32, deadline: Option<Instant>) {
        if let Some(entry) = &mut self.entries[ctrl as usize]
            && let Some(deadline) = deadline
            && !entry.is_popped
            && entry.armed.is_none_or(|armed| deadline < armed)
        {
            entry.armed = Some(deadline);
            entry.armed_in = self.judged.count;
            self.deadlines.set(ctrl, Some(deadline));
        }
    }

    /// Honours what is due, each controller's once: whoever has more that is due is put back
    /// behind the others' first, for the next turn, which comes at once. Returns how many.
    fn honour_deadlines(&mut self, now: Instant) -> u32 {
        let before = self.judged;
        self.judged = Judged { now, count: before.count + 1 };
        let mut honoured = 0;
        // Bounded: whoever was looked at is armed again when all were.
        while let Some(ctrl) = self.deadlines.pop_due(now) {
            let Some(entry) = &mut self.entries[ctrl as usize] else { continue };
            entry.armed = None;
            entry.is_popped = true;
            self.popped.push(ctrl);
            if let Some(deadline) = entry.poll_timeout().filter(|deadline| *deadline <= now) {
                honoured += 1;
                let is_late = deadline <= before.now && entry.armed_in < before.count;
                self.figures.honoured(now, deadline, is_late);
                entry.ctrl.handle_timeout(now);
                let counted = &mut entry.ctrl.keep_alive_figures;
                entry.keep_alives_lost += self.figures.take_keep_alives(counted);
                self.dial_due(now, ctrl);
                self.requeue_due(now, ctrl);
                self.standby_due(now, ctrl);
                self.go_on(now, ctrl);
                self.mark(At { ctrl, qpair: 0 });
            }
        }
        while let Some(ctrl) = self.popped.pop() {
            if let Some(entry) = &mut self.entries[ctrl as usize] {
                entry.is_popped = false;
            }
            self.note_deadline(ctrl);
        }
        for _ in 0..self.entries.len() {
            let Some(address) = self.probes.pop_due(now) else { break };
            honoured += 1;
            self.probe(now, address);
        }
        honoured
    }

    /// Puts on the wire what was submitted, with one wakeup.
    pub fn flush(&mut self, now: Instant) {
        self.refill(now);
        let qpairs = self.dirty_admin.len() + self.dirty_io.len();
        self.figures.qpairs_per_flush.record(qpairs as u64);
        while let Some(at) = self.dirty_admin.pop_front() {
            self.emit(now, at);
        }
        while let Some(at) = self.dirty_io.pop_front() {
            self.emit(now, at);
        }
        self.transport.flush(now);
    }

    /// Emits what a qpair has, as far as there is room; `Writable` brings it back for the rest.
    fn emit(&mut self, now: Instant, at: At) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        let Some(dirty) = entry.dirty.get_mut(q) else { return };
        *dirty = false;
        let Some(conn) = entry.conns[q] else { return };
        let transport = &mut self.transport;
        entry.ctrl.qpairs[q].emit(now, &mut |bytes| transport.send(conn, bytes));
        if !entry.ready[q] && q > 0 && entry.ctrl.qpairs[q].has_done() {
            entry.ready[q] = true;
            self.ready.push_back(at);
        }
    }
}

impl Entry {
    /// Whether its place can be given away: over, and everything told.
    fn is_spent(&self) -> bool {
        self.life.is_over() && !self.ctrl.has_connections() && !self.ready.contains(&true)
    }

    /// The next deadline.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.requeue.as_ref().and_then(Store::poll_timeout);
        let standby = self.standby.poll_timeout(self.standby_wanted());
        let waiting = earliest(waiting, standby);
        let waiting = earliest(waiting, self.opens.front().map(|(place, _)| *place));
        earliest(waiting, earliest(self.ctrl.poll_timeout(), self.life.poll_timeout()))
    }
}
