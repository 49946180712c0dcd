//! The host's driver: many controllers over one transport, one turn at a time.
//!
//! What always holds: each event, deadline and submission touches its own controller only; the
//! admin connections are emitted first; nothing here allocates per I/O.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use moorline_stack::time::earliest;
use moorline_stack::transport::ConnOptions;
use moorline_stack::{ConnId, Event, Instant, Transport};

use super::controller::{Action, Controller, Names, Phase};
use super::table::SLOTS_MAX;
use super::work::{Owner, Work};
use super::{
    AdminCommand, AdminDone, Cause, CtrlConfig, CtrlId, HostEvent, HostIdentity, HostLimits, Info,
    Io, IoDone, IoOp,
};
use crate::spec::{HostId, Nqn, Status};

/// Admin commands that ended and that the caller has not polled; above it no more are taken.
const ADMIN_DONE_MAX: usize = 256;

/// A qpair of a controller, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    ctrl: u32,
    qpair: u32,
}

/// A controller and what the driver keeps beside it.
struct Entry {
    ctrl: Controller,
    conns: Vec<Option<ConnId>>,
    /// Which qpairs are in a dirty list, and which in the ready list.
    dirty: Vec<bool>,
    ready: Vec<bool>,
}

/// A host. A turn is [`Host::turn`], then the polls and submissions, then [`Host::flush`], then
/// [`Host::wait`] where there is nothing to do.
pub struct Host<T: Transport> {
    transport: T,
    identity: HostIdentity,
    limits: HostLimits,
    entries: Vec<Option<Entry>>,
    generations: Vec<u32>,
    /// Whose a connection is, by its index.
    owners: Vec<Option<(ConnId, At)>>,
    /// Qpairs with something to send: admin, then I/O.
    dirty_admin: VecDeque<At>,
    dirty_io: VecDeque<At>,
    /// I/O qpairs with completions to poll.
    ready: VecDeque<At>,
    events: VecDeque<HostEvent>,
    admin_done: VecDeque<AdminDone>,
    /// No controller's deadline is earlier.
    deadline: Option<Instant>,
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
            events: VecDeque::new(),
            admin_done: VecDeque::new(),
            deadline: None,
        }
    }

    /// Starts to connect a controller; [`HostEvent::Live`] or [`HostEvent::Failed`] will tell.
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
        let ctrl = Controller::new(now, id, config, names);
        self.entries[index] =
            Some(Entry { ctrl, conns: Vec::new(), dirty: Vec::new(), ready: Vec::new() });
        self.act(now, index as u32);
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
        if config.kato > Duration::ZERO && config.kato < Duration::from_millis(100) {
            return Err(invalid(format!("KATO {:?} is below 100 ms", config.kato)));
        }
        Ok(Names {
            hostnqn: nqn("host NQN", &self.identity.hostnqn)?,
            hostid: HostId::from_bytes(self.identity.hostid),
            subnqn: nqn("subsystem NQN", &config.subnqn)?,
        })
    }

    /// Shuts a controller down in order: its I/O ends (bounded), CC.SHN, connections closed.
    /// [`HostEvent::Closed`] or [`HostEvent::Failed`] follows, once.
    pub fn disconnect(&mut self, now: Instant, ctrl: CtrlId) {
        self.entry_mut(ctrl).ctrl.disconnect(now);
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
        while let Some(event) = self.transport.poll_event() {
            self.event(now, event);
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.honour_deadlines(now);
        }
    }

    fn event(&mut self, now: Instant, event: Event) {
        let conn = match event {
            Event::Accepted { .. } => return, // nobody listens here
            Event::Connected(conn)
            | Event::Readable(conn)
            | Event::Writable(conn)
            | Event::PeerClosed(conn)
            | Event::Closed(conn, _) => conn,
        };
        let Some(at) = self.owner(conn) else { return };
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        match event {
            Event::Accepted { .. } => return,
            Event::Connected(_) => {
                entry.ctrl.qpairs[q].connected(now);
                self.mark_dirty(at);
                return self.note_deadline(at.ctrl);
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
        self.transport.recv(conn, &mut |bytes| {
            qpair.recv(now, bytes);
            bytes.len()
        });
        if qpair.take_ack_wanted() {
            self.transport.ack(conn);
        }
        entry.ctrl.settle(now, q);
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
    fn mark(&mut self, at: At) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
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
        let dirty = &mut entry.dirty[at.qpair as usize];
        if !*dirty {
            *dirty = true;
            let list = if at.qpair == 0 { &mut self.dirty_admin } else { &mut self.dirty_io };
            list.push_back(at);
        }
    }

    /// Carries out a controller's actions, until there are none.
    fn act(&mut self, now: Instant, ctrl: u32) {
        let mut acted = false;
        while let Some(entry) = &mut self.entries[ctrl as usize] {
            let Some(action) = entry.ctrl.poll_action() else { break };
            acted = true;
            let id = entry.ctrl.id;
            match action {
                Action::Open(q) => self.open(now, At { ctrl, qpair: q as u32 }),
                Action::Close(q) => {
                    if let Some(conn) = entry.conns[q] {
                        let transport = &mut self.transport;
                        entry.ctrl.qpairs[q].emit(now, &mut |bytes| transport.send(conn, bytes));
                        self.transport.close(now, conn);
                    }
                }
                Action::Abort(q) => {
                    if let Some(conn) = entry.conns[q] {
                        self.transport.abort(now, conn);
                    }
                }
                Action::Tell(event) => self.events.push_back(event),
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
        self.note_deadline(ctrl);
    }

    /// Connects a qpair over TCP. Its close may take as long as a TermReq may.
    fn open(&mut self, now: Instant, at: At) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        entry.conns.push(None);
        entry.dirty.push(false);
        entry.ready.push(false);
        let config = &entry.ctrl.config;
        let options = ConnOptions { drain_timeout: config.timeouts.term, ..config.conn.clone() };
        match self.transport.connect(now, config.addr, &options) {
            Ok(conn) => {
                entry.conns[q] = Some(conn);
                let index = conn.index as usize;
                if self.owners.len() <= index {
                    self.owners.resize(index + 1, None);
                }
                self.owners[index] = Some((conn, at));
            }
            Err(error) => {
                let cause = Cause::NotStarted(error.kind());
                entry.ctrl.connection_closed(now, q, cause);
            }
        }
    }

    // Deadlines.

    /// Lowers the common deadline to a controller's.
    fn note_deadline(&mut self, ctrl: u32) {
        if let Some(entry) = &self.entries[ctrl as usize] {
            self.deadline = earliest(self.deadline, entry.ctrl.poll_timeout());
        }
    }

    fn honour_deadlines(&mut self, now: Instant) {
        for ctrl in 0..self.entries.len() as u32 {
            let Some(entry) = &mut self.entries[ctrl as usize] else { continue };
            if entry.ctrl.poll_timeout().is_some_and(|deadline| deadline <= now) {
                entry.ctrl.handle_timeout(now);
                self.act(now, ctrl);
                self.mark(At { ctrl, qpair: 0 });
            }
        }
        let live = self.entries.iter().flatten();
        self.deadline = live.map(|entry| entry.ctrl.poll_timeout()).fold(None, earliest);
    }

    /// Puts on the wire what was submitted, with one wakeup.
    pub fn flush(&mut self, now: Instant) {
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
        entry.dirty[q] = false;
        let Some(conn) = entry.conns[q] else { return };
        let transport = &mut self.transport;
        entry.ctrl.qpairs[q].emit(now, &mut |bytes| transport.send(conn, bytes));
        if !entry.ready[q] && q > 0 && entry.ctrl.qpairs[q].has_done() {
            entry.ready[q] = true;
            self.ready.push_back(at);
        }
    }

    // The caller's side.

    /// The next thing to tell of a controller.
    pub fn poll_event(&mut self) -> Option<HostEvent> {
        let event = self.events.pop_front()?;
        if let HostEvent::Aen { ctrl, .. } = event {
            self.repost_aer(ctrl);
        }
        Some(event)
    }

    fn repost_aer(&mut self, ctrl: CtrlId) {
        let Some(entry) = &mut self.entries[ctrl.index as usize] else { return };
        if entry.ctrl.id == ctrl {
            entry.ctrl.post_aers(Instant::ZERO);
            self.mark(At { ctrl: ctrl.index, qpair: 0 });
        }
    }

    /// What is known of a controller: complete once it is live, kept after it ended until its
    /// place is needed for another.
    ///
    /// # Panics
    /// For an id whose place was given to another controller since.
    pub fn controller(&self, ctrl: CtrlId) -> &Info {
        let entry = self.entries[ctrl.index as usize].as_ref();
        let entry = entry.filter(|entry| entry.ctrl.id == ctrl);
        &entry.expect("a controller's id is used while its place is its own").ctrl.info
    }

    fn entry_mut(&mut self, ctrl: CtrlId) -> &mut Entry {
        let entry = self.entries[ctrl.index as usize].as_mut();
        let entry = entry.filter(|entry| entry.ctrl.id == ctrl);
        entry.expect("a controller's id is used while its place is its own")
    }

    /// Submits an I/O on I/O qpair `qpair` (0 to `Info::io_queues` less one).
    ///
    /// An unknown namespace, or blocks beyond its end, complete with the status that the
    /// controller would give.
    ///
    /// # Errors
    /// The I/O itself: the queue is full, or the controller is not live. Poll, and try again.
    ///
    /// # Panics
    /// When a read's or write's buffer is missing or too short: the caller's bug.
    pub fn submit(&mut self, now: Instant, ctrl: CtrlId, qpair: usize, io: Io) -> Result<(), Io> {
        let entry = self.entry_mut(ctrl);
        let q = qpair + 1;
        let controller = &mut entry.ctrl;
        if controller.phase != Phase::Live || !controller.qpairs[q].has_room(0) {
            return Err(io);
        }
        let transfer_max = controller.info.transfer_max;
        let timeout = controller.config.timeouts.io;
        let at = At { ctrl: ctrl.index, qpair: q as u32 };
        match check_io(&controller.info, &io) {
            Ok(block_size) => {
                let work = Work::io(io, block_size, transfer_max, timeout);
                controller.qpairs[q].submit(now, work);
            }
            Err(status) => {
                let work = Work::io(io, 1, transfer_max, timeout);
                controller.qpairs[q].reject(now, work, status);
            }
        }
        let deadline = controller.qpairs[q].poll_timeout();
        self.deadline = earliest(self.deadline, deadline);
        self.mark(at);
        Ok(())
    }

    /// The next I/O that ended.
    pub fn poll_io(&mut self) -> Option<IoDone> {
        while let Some(&at) = self.ready.front() {
            let q = at.qpair as usize;
            if let Some(entry) = &mut self.entries[at.ctrl as usize] {
                if let Some(done) = entry.ctrl.qpairs[q].poll_done() {
                    let Owner::Io(tag) = done.owner else { unreachable!("an I/O queue's work") };
                    return Some(IoDone {
                        ctrl: entry.ctrl.id,
                        qpair: q - 1,
                        tag,
                        status: done.cqe.status(),
                        buf: done.memory.into_io_buf(),
                        submitted: done.submitted,
                    });
                }
                entry.ready[q] = false;
            }
            self.ready.pop_front();
        }
        None
    }

    /// Submits an admin command of the caller's own, on a controller that is live.
    ///
    /// # Errors
    /// The command itself: the admin queue is full, or the controller is not live.
    pub fn admin(
        &mut self,
        now: Instant,
        ctrl: CtrlId,
        tag: u64,
        command: AdminCommand,
    ) -> Result<(), AdminCommand> {
        let is_full = self.admin_done.len() >= ADMIN_DONE_MAX;
        let entry = self.entry_mut(ctrl);
        if is_full || !entry.ctrl.has_admin_room() {
            return Err(command);
        }
        let timeout = entry.ctrl.config.timeouts.admin;
        let work = Work::admin(Owner::Admin(tag), command, Some(timeout));
        entry.ctrl.qpairs[0].submit(now, work);
        self.mark(At { ctrl: ctrl.index, qpair: 0 });
        self.note_deadline(ctrl.index);
        Ok(())
    }

    /// The next admin command that ended.
    pub fn poll_admin(&mut self) -> Option<AdminDone> {
        self.admin_done.pop_front()
    }

    /// When the next turn is due if nothing arrives before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        earliest(self.deadline, self.transport.poll_timeout())
    }

    /// Sleeps until something arrives, one of `also` becomes readable, `until`, or the next
    /// deadline. The only call that may block.
    ///
    /// # Errors
    /// Of the wait itself.
    pub fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.transport.wait(earliest(until, self.poll_timeout()), also)
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport, to turn other users of it (an echo, a target) in the same thread.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }
}

impl Entry {
    /// Whether its place can be given away: over, and everything told.
    fn is_spent(&self) -> bool {
        let told = matches!(self.ctrl.phase, Phase::Closed | Phase::Failed);
        told && !self.ctrl.has_connections() && !self.ready.contains(&true)
    }
}

/// The block size of an I/O's namespace, or the status that it ends with at once.
fn check_io(info: &Info, io: &Io) -> Result<u32, Status> {
    if io.op == IoOp::Flush {
        return Ok(1);
    }
    let namespace = info.namespace(io.nsid).ok_or(Status::INVALID_NAMESPACE.with_dnr())?;
    let end = io.lba.checked_add(u64::from(io.blocks));
    if end.is_none_or(|end| end > namespace.blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    if let IoOp::Read | IoOp::Write { .. } = io.op {
        let bytes = io.blocks as usize * namespace.block_size as usize;
        let room = io.buf.as_ref().map_or(0, |buf| buf.len().saturating_sub(io.buf_offset));
        assert!(room >= bytes, "an I/O of {bytes} bytes has a buffer of {room}");
    }
    Ok(namespace.block_size)
}
