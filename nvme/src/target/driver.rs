//! The target's driver: one transport, and the machines above it, one turn at a time.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use moorline_stack::time::earliest;
use moorline_stack::{ConnId, Event, Instant, Transport};

use super::conn::State;
use super::core::Core;
use super::{Subsystem, TargetConfig, TargetStats};

/// Commands that one connection may bring in a turn.
const TURN_COMMANDS: u32 = 64;
/// Bytes that one connection may bring in a turn: a few of the largest PDUs.
const TURN_BYTES: usize = 512 << 10;
/// Descriptors that a wait looks at beside the transport's.
const WAIT_FDS: usize = 64;
/// Longest time that a graceful close may take when the target ends.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(200);

/// A target. A turn is [`Target::turn`], then [`Target::flush`], then [`Target::wait`] where it
/// may sleep.
#[derive(Debug)]
pub struct Target<T: Transport> {
    pub(super) transport: T,
    pub(super) core: Core,
    shutdown: Option<Shutdown>,
}

/// The end of a target: what is still open, and until when it may be.
#[derive(Debug)]
struct Shutdown {
    open: Vec<ConnId>,
    abort_at: Instant,
}

impl<T: Transport> Target<T> {
    /// A target with its own transport, and no subsystem but discovery.
    ///
    /// # Panics
    /// For a configuration outside the ranges that its fields state.
    pub fn new(transport: T, config: TargetConfig) -> Self {
        Self { transport, core: Core::new(config), shutdown: None }
    }

    /// Adds a subsystem, reachable on all listeners.
    ///
    /// # Errors
    /// `InvalidInput` for names that are not valid, `AlreadyExists` for an NQN that is taken.
    pub fn add_subsystem(&mut self, subsystem: Subsystem) -> io::Result<()> {
        subsystem.check()?;
        if self.core.subsystems.iter().any(|sub| sub.nqn == subsystem.nqn) {
            let what = format!("there is a subsystem {} already", subsystem.nqn);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        self.core.subsystems.push(subsystem);
        self.core.discovery_changed();
        Ok(())
    }

    /// Accepts connections to `addr`; discovery answers on every listener.
    ///
    /// # Errors
    /// The transport's, with the address in the message.
    pub fn listen(&mut self, now: Instant, addr: SocketAddr) -> io::Result<()> {
        let listened = self.transport.listen(now, addr, &self.core.config.listen);
        listened.map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}")))?;
        self.core.listeners.push(addr);
        self.core.discovery_changed();
        Ok(())
    }

    /// Takes in what has arrived, executes, answers, and does what is due.
    pub fn turn(&mut self, now: Instant) {
        if self.core.freezes(now) {
            return;
        }
        self.transport.turn(now);
        // Bounded by what the transport took in: a few events for each connection.
        while let Some(event) = self.transport.poll_event() {
            self.event(now, event);
        }
        for _ in 0..self.core.ready.len() {
            self.serve_next(now);
        }
        self.core.retry();
        self.core.poll_devices();
        self.core.admit_held(now);
        self.core.let_go(now);
        if self.transport.is_caught_up() {
            self.core.check_deadlines(now);
        }
        for _ in 0..self.core.to_send.len() {
            self.transmit_next(now);
        }
        for (id, graceful) in self.core.closing.drain(..) {
            if graceful {
                self.transport.close(now, id);
            } else {
                self.transport.abort(now, id);
            }
        }
        self.abort_late(now);
    }

    /// Closes all connections, so that hosts notice at once; new ones are turned away. Turns go on
    /// until [`Target::is_shut`]; what is not closed within 200 ms is aborted. Writes that devices
    /// have by then are waited for without bound: hosts repeat them with whoever serves next.
    pub fn shutdown(&mut self, now: Instant) {
        let mut open = Vec::new();
        for index in 0..self.core.conns.len() as u32 {
            self.core.remove(index, Some(true));
        }
        for (id, _) in self.core.closing.drain(..) {
            self.transport.close(now, id);
            open.push(id);
        }
        self.shutdown = Some(Shutdown { open, abort_at: now + SHUTDOWN_GRACE });
    }

    /// Whether [`Target::shutdown`] was called, and no connection is left of it, and no write.
    pub fn is_shut(&self) -> bool {
        let is_closed = self.shutdown.as_ref().is_some_and(|shutdown| shutdown.open.is_empty());
        is_closed && self.core.stats.stale_writes == 0
    }

    fn abort_late(&mut self, now: Instant) {
        let Some(shutdown) = &self.shutdown else { return };
        if now >= shutdown.abort_at {
            for id in &shutdown.open {
                self.transport.abort(now, *id);
            }
        }
    }

    fn event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Accepted { conn, .. } if self.shutdown.is_some() => {
                self.transport.abort(now, conn);
            }
            Event::Accepted { conn, local, peer } => self.core.accepted(now, conn, local, peer),
            Event::Connected(_) | Event::Reachable(_) | Event::LinkUp => {}
            Event::Readable(id) => {
                if let Some(index) = self.core.index_of(id) {
                    self.core.readable(index);
                }
            }
            Event::Writable(id) => {
                if let Some(index) = self.core.index_of(id) {
                    self.core.dirty(index);
                }
            }
            Event::PeerClosed(id) => {
                if let Some(index) = self.core.index_of(id) {
                    self.core.conn(index).peer_closed = true;
                    self.core.readable(index);
                }
            }
            Event::Closed(id, why) => {
                if let Some(shutdown) = &mut self.shutdown {
                    shutdown.open.retain(|open| *open != id);
                }
                if let Some(index) = self.core.index_of(id) {
                    let conn = self.core.conn(index);
                    tracing::debug!(peer = %conn.peer, qid = conn.qid, %why, "connection closed");
                    self.core.remove(index, None);
                }
            }
        }
    }

    /// Reads from the next connection that has something, within its budget.
    fn serve_next(&mut self, now: Instant) {
        let Self { transport, core, .. } = self;
        let Some(index) = core.ready.pop_front() else { return };
        let Some(conn) = core.conns[index as usize].as_deref_mut() else { return };
        conn.in_ready = false;
        let (id, is_new) = (conn.id, conn.state == State::IcWait);
        if core.withholds(index) {
            return;
        }
        core.commands = TURN_COMMANDS;
        let mut bytes = TURN_BYTES;
        // Something may be left in the decoder that needs no further bytes.
        core.feed(now, index, &[]);
        let mut left = false;
        transport.recv(id, &mut |shown| {
            let part = &shown[..shown.len().min(bytes)];
            let taken = core.feed(now, index, part);
            bytes -= taken;
            left = taken < shown.len();
            taken
        });
        if is_new {
            core.hold_ic(index);
        }
        // What a pause leaves is read when there is a buffer.
        let paused = core.conns[index as usize].as_deref().is_none_or(|c| c.paused.is_some());
        let out_of_budget = left || core.commands == 0;
        if out_of_budget && !paused {
            core.readable(index);
        }
        core.fed(now, index, !out_of_budget);
    }

    /// Sends for the next connection that has something, as much as there is room for.
    fn transmit_next(&mut self, now: Instant) {
        let Self { transport, core, .. } = self;
        let Some(index) = core.to_send.pop_front() else { return };
        let Core { conns, pool, .. } = core;
        let Some(conn) = conns[index as usize].as_deref_mut() else { return };
        conn.in_dirty = false;
        let id = conn.id;
        let mut sent = 0;
        // Refused room: `Writable` brings it back.
        conn.transmit(pool, &mut |bytes| {
            let taken = transport.send(id, bytes);
            sent += taken;
            taken
        });
        // A host may hold its next data until the last are acknowledged; what we send does that.
        if mem::take(&mut conn.ack_wanted) && sent == 0 {
            transport.ack(id);
        }
        if conn.is_cut {
            core.end_quietly(now, index);
            core.remove(index, Some(true));
        }
    }

    /// Puts the answers on the wire, with one wakeup.
    pub fn flush(&mut self, now: Instant) {
        if self.core.frozen_until().is_some() {
            return;
        }
        self.transport.flush(now);
    }

    /// When the next turn is due if nothing arrives before; in the past if at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(until) = self.core.frozen_until() {
            return Some(until);
        }
        if self.core.is_busy() {
            return Some(Instant::ZERO);
        }
        let due = self.shutdown.as_ref().filter(|s| !s.open.is_empty()).map(|s| s.abort_at);
        let due = earliest(due, self.core.late_at());
        earliest(earliest(self.transport.poll_timeout(), self.core.next_check()), due)
    }

    /// Sleeps until something arrives, a block device has finished something, one of `also`
    /// becomes readable, `until`, or the next deadline. The only call that may block.
    ///
    /// # Errors
    /// Of the wait itself.
    pub fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        if self.core.is_busy() && self.core.frozen_until().is_none() {
            return Ok(());
        }
        let until = earliest(until, self.poll_timeout());
        let namespaces = self.core.subsystems.iter().flat_map(|sub| sub.namespaces.iter());
        let busy = namespaces.flatten().filter(|ns| ns.in_flight > 0);
        let mut fds = busy.filter_map(|ns| ns.bdev.fd()).chain(also.iter().copied());
        let Some(first) = fds.next() else { return self.transport.wait(until, &[]) };
        let mut all = [first; WAIT_FDS];
        let mut len = 1;
        for (place, fd) in all[1..].iter_mut().zip(fds) {
            *place = fd;
            len += 1;
        }
        self.transport.wait(until, &all[..len])
    }

    /// Counters since the target was made.
    pub fn stats(&self) -> TargetStats {
        self.core.stats
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport, to turn other users of it (an echo, a host) in the same thread.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }
}
