//! Taking in: readiness from `epoll`, bytes from sockets, and deadlines that are due.
//!
//! What always holds: a socket that has something to say is in `to_read` or will be told of by
//! `epoll`; nothing here sleeps, save `ask_epoll` with a timeout.

use std::io;
use std::mem::MaybeUninit;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::{DIRECT_TURNS_MAX, EPOLL_EVENTS_MAX, KernelSockets, LISTENER, READ_BYTES_MAX, conn};
use crate::Instant;
use crate::transport::{Cause, ConnId, Event, Stage};

impl KernelSockets {
    /// Asks `epoll` without waiting, unless the last active connection is likely enough to be the
    /// next. Says whether all that had something to say was heard.
    pub(super) fn collect(&mut self, now: Instant) -> bool {
        let due = self.deadlines.next().is_some_and(|at| at <= now);
        if let Some(hot) = self.hot
            && self.ready.is_empty()
            && self.direct_turns < DIRECT_TURNS_MAX
            && !due
            && self.conn(hot).is_some()
        {
            self.direct_turns += 1;
            self.want_read(hot.index);
            return false;
        }
        let asked = self.ready.is_empty();
        if asked {
            // Nothing to say about failure here: `wait` reports it.
            let _ = self.ask_epoll(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        }
        let saw_all = asked && self.ready.len() < EPOLL_EVENTS_MAX;
        self.direct_turns = 0;
        self.dispatch(now);
        saw_all
    }

    pub(super) fn ask_epoll(&mut self, timeout: Option<&Timespec>) -> io::Result<()> {
        self.stats.syscalls += 1;
        let mut events = [MaybeUninit::uninit(); EPOLL_EVENTS_MAX];
        match epoll::wait(&self.epoll, &mut events, timeout) {
            Ok((events, _)) => {
                self.ready.extend(events.iter().map(|event| (event.flags, event.data.u64())));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn dispatch(&mut self, now: Instant) {
        let mut readable = 0;
        let mut last = None;
        for at in 0..self.ready.len() {
            let (flags, data) = self.ready[at];
            if data & LISTENER != 0 {
                self.accept(now, (data & !LISTENER) as usize);
                continue;
            }
            let id = ConnId { index: data as u32, generation: (data >> 32) as u32 };
            if self.conn(id).is_none() {
                continue; // closed meanwhile
            }
            if flags.intersects(epoll::EventFlags::IN) {
                readable += 1;
                last = Some(id);
            }
            self.edge(now, id, flags);
        }
        self.ready.clear();
        match readable {
            0 => {}
            1 => self.hot = last,
            _ => self.hot = None,
        }
    }

    /// One connection's readiness.
    fn edge(&mut self, now: Instant, id: ConnId, flags: epoll::EventFlags) {
        use epoll::EventFlags as Flags;
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.stage == Stage::SynSent {
            if flags.intersects(Flags::OUT | Flags::ERR | Flags::HUP) {
                self.connected(now, id);
            }
            return;
        }
        if conn.blocked && flags.contains(Flags::OUT) {
            conn.blocked = false;
            self.want_write(id.index);
        }
        let Some(conn) = self.conn_mut(id) else { return };
        conn.hung_up |= flags.intersects(Flags::RDHUP | Flags::HUP | Flags::ERR);
        if flags.intersects(Flags::IN | Flags::RDHUP | Flags::HUP | Flags::ERR) {
            self.want_read(id.index);
        }
    }

    /// A connect has ended, one way or the other.
    fn connected(&mut self, now: Instant, id: ConnId) {
        self.stats.syscalls += 1;
        let Some(conn) = self.conn_mut(id) else { return };
        let errno = match sockopt::socket_error(&conn.fd) {
            Ok(Ok(())) => None,
            Ok(Err(errno)) | Err(errno) => Some(errno),
        };
        match errno {
            None => {
                conn.enter(now, Stage::Established);
                self.deadlines.set(id.index, None);
                self.events.push_back(Event::Connected(id));
                self.want_read(id.index);
            }
            Some(errno) => {
                let cause = conn.cause(errno);
                self.end(now, id, cause);
            }
        }
    }

    pub(super) fn want_read(&mut self, index: u32) {
        if let Some((_, conn)) = self.at(index)
            && !conn.to_read
        {
            conn.to_read = true;
            self.to_read.push_back(index);
        }
    }

    pub(super) fn want_write(&mut self, index: u32) {
        if let Some((_, conn)) = self.at(index)
            && !conn.to_write
        {
            conn.to_write = true;
            self.to_write.push(index);
        }
    }

    /// One round over the connections that have something to read.
    pub(super) fn read_round(&mut self, now: Instant) {
        for _ in 0..self.to_read.len() {
            let Some(index) = self.to_read.pop_front() else { return };
            let mut syscalls = self.stats.syscalls;
            let Some((id, conn)) = self.at(index).filter(|(_, conn)| conn.to_read) else {
                continue;
            };
            conn.to_read = false;
            if conn.peer_closed && !conn.hung_up {
                continue;
            }
            let result = conn.read(READ_BYTES_MAX, &mut syscalls).map_err(|e| conn.cause(e));
            let draining = conn.stage == Stage::Draining;
            self.stats.syscalls = syscalls;
            match result {
                Ok(arrived) => self.arrived(now, id, arrived, draining),
                Err(cause) => self.end(now, id, cause),
            }
        }
    }

    fn arrived(&mut self, now: Instant, id: ConnId, arrived: conn::Arrived, draining: bool) {
        self.stats.rx_bytes += arrived.bytes as u64;
        if arrived.bytes > 0 && !draining {
            self.events.push_back(Event::Readable(id));
        }
        if arrived.more {
            self.want_read(id.index);
        }
        let Some(conn) = self.conn_mut(id).filter(|_| arrived.fin) else { return };
        let first = !conn.peer_closed;
        conn.peer_closed = true;
        conn.hung_up = false;
        if conn.finished() {
            self.end(now, id, Cause::Closed);
        } else if first && !draining {
            self.events.push_back(Event::PeerClosed(id));
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(index) = self.deadlines.pop_due(now) {
            let Some((id, conn)) = self.at(index) else { continue };
            let cause = match conn.stage {
                Stage::Draining => Cause::DrainTimeout,
                Stage::Resolving | Stage::SynSent | Stage::SynReceived | Stage::Established => {
                    Cause::ConnectTimeout
                }
            };
            self.end(now, id, cause);
        }
    }
}
