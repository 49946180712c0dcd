//! [`Transport`] over the kernel's TCP: the fallback where AF_XDP cannot be had, and an honest
//! yardstick where it can.
//!
//! Sockets are non-blocking and registered once, edge-triggered; nothing here sleeps but
//! [`Transport::wait`]. An exchange at queue depth 1 costs one read and one write: the connection
//! that was active last is read directly, `epoll` is asked only every few turns. Bytes are read
//! into a ring per connection and parsed there; what is sent is gathered in another and written
//! with one call per flush.
//!
//! What stays the kernel's: its SYN and retransmission schedule (we only cut them off, at our
//! connect deadline and by `TCP_USER_TIMEOUT`), and how many connections are half open.
#![allow(clippy::disallowed_methods, reason = "a driver")]

mod accept;
mod conn;
mod intake;
mod ring;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{connect, sockopt};

use crate::Instant;
use crate::deadlines::Deadlines;
use crate::time::earliest;
use crate::transport::{
    Cause, ConnId, ConnOptions, Event, ListenOptions, Stage, Transport, TransportStats,
};
use conn::{Conn, Listener};

/// Bytes read from one connection in a turn; the rest waits for its next round.
const READ_BYTES_MAX: usize = 256 << 10;
/// Readiness events taken in a turn.
const EPOLL_EVENTS_MAX: usize = 64;
/// Turns in a row that may read the last active connection instead of asking `epoll`.
const DIRECT_TURNS_MAX: u32 = 8;
/// Turns in a row in which not all sockets were looked at, after which a deadline waits no longer.
const BEHIND_TURNS_MAX: u32 = 16;
/// Descriptors that can be waited for beside our own.
const ALSO_MAX: usize = 15;
/// Set in the `epoll` data of listeners.
const LISTENER: u64 = 1 << 63;

/// An engine of kernel sockets.
pub struct KernelSockets {
    epoll: OwnedFd,
    slots: Vec<Slot>,
    free: Vec<u32>,
    listeners: Vec<Listener>,
    /// When accepting goes on that found no descriptors.
    accept_again: Option<Instant>,
    conns_max: usize,
    events: VecDeque<Event>,
    /// Connect and drain deadlines, by slot.
    deadlines: Deadlines,
    /// Readiness not looked at yet.
    ready: Vec<(epoll::EventFlags, u64)>,
    to_read: VecDeque<u32>,
    to_write: Vec<u32>,
    to_ack: Vec<u32>,
    /// The only connection that was active of late.
    hot: Option<ConnId>,
    direct_turns: u32,
    /// Turns in a row in which not all sockets were looked at.
    behind: u32,
    stats: TransportStats,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

impl fmt::Debug for KernelSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelSockets")
            .field("conns", &self.conns())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl KernelSockets {
    /// An engine for at most `conns_max` connections.
    ///
    /// # Errors
    /// When the kernel gives no `epoll` instance (descriptor limits).
    pub fn new(conns_max: usize) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: Vec::new(),
            free: Vec::new(),
            listeners: Vec::new(),
            accept_again: None,
            conns_max,
            events: VecDeque::with_capacity(16 * EPOLL_EVENTS_MAX),
            deadlines: Deadlines::default(),
            ready: Vec::with_capacity(EPOLL_EVENTS_MAX),
            to_read: VecDeque::new(),
            to_write: Vec::new(),
            to_ack: Vec::new(),
            hot: None,
            direct_turns: 0,
            behind: 0,
            stats: TransportStats::default(),
        })
    }

    /// The addresses that are listened on: with the port that the kernel chose, where that was 0.
    pub fn listening(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|listener| listener.local)
    }

    fn conn(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.slots.get(id.index as usize)?;
        slot.conn.as_ref().filter(|_| slot.generation == id.generation)
    }

    fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.conn.as_mut().filter(|_| slot.generation == id.generation)
    }

    /// The connection in a slot, with its name.
    fn at(&mut self, index: u32) -> Option<(ConnId, &mut Conn)> {
        let slot = &mut self.slots[index as usize];
        let id = ConnId { index, generation: slot.generation };
        slot.conn.as_mut().map(|conn| (id, conn))
    }

    /// Gives a connection a slot and registers it.
    fn insert(&mut self, conn: Conn) -> io::Result<ConnId> {
        let index = match self.free.last() {
            Some(&index) => index,
            None => {
                self.slots.push(Slot { generation: 0, conn: None });
                let index = self.slots.len() as u32 - 1;
                self.free.push(index);
                index
            }
        };
        let slot = &mut self.slots[index as usize];
        let generation = slot.generation.wrapping_add(1) & !(1 << 31);
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(u64::from(generation) << 32 | u64::from(index));
        self.stats.syscalls += 1;
        epoll::add(&self.epoll, &conn.fd, data, flags)?;
        slot.generation = generation;
        slot.conn = Some(conn);
        self.free.pop();
        Ok(ConnId { index, generation })
    }

    /// Ends a connection, and says so.
    fn end(&mut self, now: Instant, id: ConnId, cause: Cause) {
        let Some(conn) = self.slots[id.index as usize].conn.take() else { return };
        // Whatever is not a regular end must not leave the kernel retransmitting in our name.
        if cause != Cause::Closed {
            conn.reset_on_close();
        }
        if let Some(listener) = conn.listener {
            self.listeners[listener].open -= 1;
        }
        self.events.push_back(Event::Closed(id, conn.why(now, cause)));
        self.deadlines.set(id.index, None);
        self.free.push(id.index);
        self.stats.syscalls += 1;
    }

    fn conns(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Transport for KernelSockets {
    fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: &ConnOptions,
    ) -> io::Result<ConnId> {
        if self.conns() >= self.conns_max {
            return Err(io::Error::other("no room for another connection"));
        }
        let fd = conn::socket(remote)?;
        self.stats.syscalls += 4;
        self.stats.syns += 1;
        let conn = Conn::new(now, fd, Stage::SynSent, None, options)?;
        let refused = match connect(&conn.fd, &remote) {
            Ok(()) | Err(Errno::INPROGRESS) => None,
            Err(errno @ (Errno::CONNREFUSED | Errno::CONNRESET | Errno::TIMEDOUT)) => Some(errno),
            Err(errno) => return Err(errno.into()),
        };
        // Established at once or not: the first edge of the socket tells.
        let cause = refused.map(|errno| conn.cause(errno));
        let id = self.insert(conn)?;
        match cause {
            Some(cause) => self.end(now, id, cause),
            None => self.deadlines.set(id.index, Some(now + options.connect_timeout)),
        }
        Ok(id)
    }

    fn listen(
        &mut self,
        _now: Instant,
        local: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<()> {
        let closed = |listener: &Listener| listener.is_closed && listener.local == local;
        if let Some(at) = self.listeners.iter().position(closed) {
            self.listeners[at].reopen(options)?;
            let data = epoll::EventData::new_u64(LISTENER | at as u64);
            epoll::add(&self.epoll, &self.listeners[at].fd, data, epoll::EventFlags::IN)?;
            return Ok(());
        }
        let listener = Listener::open(local, options)?;
        let data = epoll::EventData::new_u64(LISTENER | self.listeners.len() as u64);
        epoll::add(&self.epoll, &listener.fd, data, epoll::EventFlags::IN)?;
        self.stats.syscalls += 6;
        self.listeners.push(listener);
        Ok(())
    }

    fn unlisten(&mut self, local: SocketAddr) -> io::Result<()> {
        let mut open = self.listeners.iter_mut().filter(|listener| !listener.is_closed);
        let listener = open.find(|listener| listener.local == local);
        let listener = listener.ok_or(io::ErrorKind::NotFound)?;
        // A closed socket is told as hung up again and again: it is not watched.
        epoll::delete(&self.epoll, &listener.fd)?;
        listener.close()
    }

    fn turn(&mut self, now: Instant) {
        self.resume_accepting(now);
        let saw_all = self.collect(now);
        self.read_round(now);
        self.behind = match saw_all && self.to_read.is_empty() {
            false if self.behind < BEHIND_TURNS_MAX => self.behind + 1,
            _ => 0,
        };
        self.expire(now);
    }

    fn is_caught_up(&self) -> bool {
        self.behind == 0
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn recv(&mut self, conn: ConnId, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        let Some(conn) = self.conn_mut(conn) else { return 0 };
        let (first, second) = conn.rx.filled();
        let mut taken = 0;
        if !first.is_empty() {
            taken = parse(first);
            assert!(taken <= first.len(), "parse took more than it was shown");
        }
        if taken == first.len() && !second.is_empty() {
            let more = parse(second);
            assert!(more <= second.len(), "parse took more than it was shown");
            taken += more;
        }
        conn.rx.consume(taken);
        taken
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> usize {
        let index = conn.index;
        let Some(conn) = self.conn_mut(conn).filter(|conn| conn.stage == Stage::Established) else {
            return 0;
        };
        let taken = conn.tx.push(bytes);
        conn.wants_room |= taken < bytes.len();
        if !conn.blocked {
            self.want_write(index);
        }
        self.stats.tx_bytes += taken as u64;
        self.stats.copied_out_bytes += taken as u64;
        taken
    }

    fn send_room(&self, conn: ConnId) -> usize {
        let conn = self.conn(conn).filter(|conn| conn.stage == Stage::Established);
        conn.map_or(0, |conn| conn.tx.room())
    }

    fn ack(&mut self, conn: ConnId) {
        let index = conn.index;
        if let Some(conn) = self.conn_mut(conn)
            && !conn.to_ack
        {
            conn.to_ack = true;
            self.to_ack.push(index);
        }
    }

    fn set_timeouts(&mut self, id: ConnId, options: &ConnOptions) -> bool {
        let Some(conn) = self.conn_mut(id) else { return false };
        let Ok(deadline) = conn.set_timeouts(options) else { return false };
        if deadline.is_some() {
            self.deadlines.set(id.index, deadline);
        }
        true
    }

    fn close(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conn_mut(id) else { return };
        match conn.stage {
            Stage::Established => {
                conn.enter(now, Stage::Draining);
                let deadline = now + conn.drain_timeout;
                self.deadlines.set(id.index, Some(deadline));
                self.want_write(id.index);
                self.want_read(id.index);
            }
            Stage::Draining => {}
            Stage::Resolving | Stage::SynSent | Stage::SynReceived => {
                self.end(now, id, Cause::Aborted);
            }
        }
    }

    fn abort(&mut self, now: Instant, id: ConnId) {
        if self.conn(id).is_some() {
            self.end(now, id, Cause::Aborted);
        }
    }

    fn flush(&mut self, now: Instant) {
        for at in 0..self.to_write.len() {
            let index = self.to_write[at];
            let mut syscalls = self.stats.syscalls;
            let Some((id, conn)) = self.at(index).filter(|(_, conn)| conn.to_write) else {
                continue;
            };
            conn.to_write = false;
            if conn.blocked {
                continue;
            }
            let result = conn.write(&mut syscalls);
            // What is sent carries the acknowledgement.
            conn.to_ack &= !matches!(result, Ok(written) if written > 0);
            let cause = match result {
                Err(errno) => Some(conn.cause(errno)),
                Ok(_) => conn.finished().then_some(Cause::Closed),
            };
            let room = conn.wants_room && conn.tx.room() > 0 && conn.stage == Stage::Established;
            conn.wants_room &= !room;
            self.stats.syscalls = syscalls;
            match cause {
                Some(cause) => self.end(now, id, cause),
                None if room => self.events.push_back(Event::Writable(id)),
                None => {}
            }
        }
        self.to_write.clear();
        for at in 0..self.to_ack.len() {
            if let Some((_, conn)) = self.at(self.to_ack[at])
                && std::mem::take(&mut conn.to_ack)
            {
                // Best effort: a socket that refuses has an error that reading will show.
                let _ = sockopt::set_tcp_quickack(&conn.fd, true);
                self.stats.syscalls += 1;
            }
        }
        self.to_ack.clear();
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let readable = |&index: &u32| {
            let conn = self.slots[index as usize].conn.as_ref();
            conn.is_some_and(|conn| conn.to_read && conn.rx.room() > 0)
        };
        let at_once = !self.events.is_empty()
            || !self.ready.is_empty()
            || !self.to_write.is_empty()
            || self.to_read.iter().any(readable);
        match at_once {
            true => Some(Instant::ZERO),
            false => earliest(self.deadlines.next(), self.accept_again),
        }
    }

    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        let until = earliest(until, self.poll_timeout());
        // Too long for a timespec: no limit.
        let left = until.and_then(|at| Timespec::try_from(at.since(Instant::monotonic())).ok());
        if also.is_empty() {
            return self.ask_epoll(left.as_ref());
        }
        assert!(also.len() <= ALSO_MAX, "waiting for {} more descriptors", also.len());
        let mut fds: [PollFd<'_>; ALSO_MAX + 1] = std::array::from_fn(|at| {
            let fd = at.checked_sub(1).and_then(|at| also.get(at).copied());
            PollFd::from_borrowed_fd(fd.unwrap_or(self.epoll.as_fd()), PollFlags::IN)
        });
        let result = poll(&mut fds[..=also.len()], left.as_ref());
        self.direct_turns = DIRECT_TURNS_MAX; // something woke us: ask what
        self.stats.syscalls += 1;
        match result {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reading is counted as no copy in user space: the kernel copies into the ring.
    fn stats(&self) -> TransportStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::net::{bind, getsockname, listen};

    use super::*;

    const fn moves_between_threads<T: Send>() {}
    const _: () = moves_between_threads::<KernelSockets>();

    /// Two engines on loopback, driven by turns.
    struct World {
        client: KernelSockets,
        server: KernelSockets,
        events: [Vec<Event>; 2],
    }

    impl World {
        fn new(ip: &str, options: &ListenOptions) -> (Self, SocketAddr) {
            let client = KernelSockets::new(64).unwrap();
            let mut server = KernelSockets::new(64).unwrap();
            let any = SocketAddr::new(ip.parse().unwrap(), 0);
            server.listen(now(), any, options).unwrap();
            let local = server.listening().next().unwrap();
            (Self { client, server, events: [Vec::new(), Vec::new()] }, local)
        }

        fn turn(&mut self) {
            for (end, events) in
                [&mut self.client, &mut self.server].into_iter().zip(&mut self.events)
            {
                end.flush(now());
                end.turn(now());
                events.extend(std::iter::from_fn(|| end.poll_event()));
            }
        }

        /// Turns until `done`; a count bounds it, not time.
        fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
            for _ in 0..2_000 {
                self.turn();
                if done(self) {
                    return;
                }
                self.client.wait(Some(now() + Duration::from_millis(1)), &[]).unwrap();
            }
            panic!("{:?}", self.events);
        }

        fn connected(&mut self, to: SocketAddr) -> [ConnId; 2] {
            let conn = self.client.connect(now(), to, &ConnOptions::default()).unwrap();
            self.until(|world| world.events.iter().all(|events| !events.is_empty()));
            assert_eq!(self.events[0].remove(0), Event::Connected(conn));
            let Event::Accepted { conn: accepted, local, peer } = self.events[1].remove(0) else {
                panic!("not accepted");
            };
            assert_eq!(local, to);
            assert_eq!(
                peer,
                SocketAddr::try_from(getsockname(&self.client.conn(conn).unwrap().fd).unwrap())
                    .unwrap()
            );
            [conn, accepted]
        }

        fn closed(&mut self, end: usize) -> (Cause, Stage) {
            let why = |event: &Event| match event {
                Event::Closed(_, why) => Some((why.cause, why.stage)),
                _ => None,
            };
            self.until(|world| world.events[end].iter().any(|event| why(event).is_some()));
            self.events[end].iter().find_map(why).unwrap()
        }
    }

    fn now() -> Instant {
        Instant::monotonic()
    }

    fn echo(ip: &str) {
        let (mut world, to) = World::new(ip, &ListenOptions::default());
        let [conn, accepted] = world.connected(to);
        let data: Vec<u8> = (0..1u32 << 20).map(|n| (n * 7 + n / 251) as u8).collect();
        let (mut sent, mut back, mut waiting) = (0, Vec::new(), Vec::<u8>::new());
        world.until(|world| {
            sent += world.client.send(conn, &data[sent..]);
            world.server.recv(accepted, &mut |bytes| {
                waiting.extend_from_slice(bytes);
                bytes.len()
            });
            let echoed = world.server.send(accepted, &waiting);
            waiting.drain(..echoed);
            world.client.recv(conn, &mut |bytes| {
                back.extend_from_slice(bytes);
                bytes.len()
            });
            back.len() == data.len()
        });
        assert!(back == data);
        assert_eq!(world.client.stats().tx_bytes, 1 << 20);
        assert_eq!(world.client.stats().rx_bytes, 1 << 20);
    }

    #[test]
    fn a_busy_connection_does_not_put_deadlines_off_for_long() {
        let (mut world, to) = World::new("127.0.0.1", &ListenOptions::default());
        let [conn, accepted] = world.connected(to);
        let (mut behind, mut behind_max) = (0, 0);
        for _ in 0..200 {
            world.client.send(conn, &[1; 100]);
            world.turn();
            world.server.recv(accepted, &mut <[u8]>::len);
            behind = if world.server.is_caught_up() { 0 } else { behind + 1 };
            behind_max = behind_max.max(behind);
        }
        assert!(behind_max <= BEHIND_TURNS_MAX, "{behind_max} turns");
    }

    #[test]
    fn a_megabyte_comes_back_over_ipv4() {
        echo("127.0.0.1");
    }

    #[test]
    fn a_megabyte_comes_back_over_ipv6() {
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            eprintln!("SKIPPED: no IPv6 loopback here");
            return;
        }
        echo("::1");
    }

    #[test]
    fn closed_port_refuses() {
        let (mut world, _) = World::new("127.0.0.1", &ListenOptions::default());
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        world.client.connect(now(), closed, &ConnOptions::default()).unwrap();
        assert_eq!(world.closed(0), (Cause::Reset, Stage::SynSent));
        assert_eq!(world.client.conns(), 0);
    }

    #[test]
    fn a_port_that_is_closed_refuses_until_it_is_listened_on_again() {
        let (mut world, _) = World::new("127.0.0.1", &ListenOptions::default());
        // A port that the kernel chose is not kept.
        let to = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        world.server.listen(now(), to, &ListenOptions::default()).unwrap();
        world.connected(to);
        world.server.unlisten(to).unwrap();
        assert!(world.server.unlisten(to).is_err());
        world.client.connect(now(), to, &ConnOptions::default()).unwrap();
        assert_eq!(world.closed(0), (Cause::Reset, Stage::SynSent));
        let before = world.server.stats().syscalls;
        world.server.wait(Some(now() + Duration::from_millis(20)), &[]).unwrap();
        assert!(world.server.stats().syscalls - before < 3, "and nothing is told of it");
        assert_eq!(world.server.conns(), 1, "those that are open stay");
        world.server.listen(now(), to, &ListenOptions::default()).unwrap();
        world.events[0].clear();
        world.connected(to);
    }

    #[test]
    fn connect_ends_at_its_own_deadline() {
        // Nobody accepts: with its backlog full, the listener drops further SYNs.
        let fd = conn::socket("127.0.0.1:0".parse().unwrap()).unwrap();
        bind(&fd, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&fd, 0).unwrap();
        let to = SocketAddr::try_from(getsockname(&fd).unwrap()).unwrap();
        let (mut world, _) = World::new("127.0.0.1", &ListenOptions::default());
        let start = now();
        let connect_timeout = Duration::from_millis(250);
        let options = ConnOptions { connect_timeout, ..ConnOptions::default() };
        for _ in 0..4 {
            world.client.connect(start, to, &options).unwrap();
        }
        assert_eq!(world.closed(0), (Cause::ConnectTimeout, Stage::SynSent));
        let Some(Event::Closed(_, why)) =
            world.events[0].iter().find(|event| matches!(event, Event::Closed(..)))
        else {
            panic!("not closed");
        };
        assert!(why.after >= connect_timeout, "early: {:?}", why.after);
    }

    #[test]
    fn abort_is_a_reset_at_the_peer() {
        let (mut world, to) = World::new("127.0.0.1", &ListenOptions::default());
        let [conn, _] = world.connected(to);
        world.client.abort(now(), conn);
        assert_eq!(world.closed(0).0, Cause::Aborted);
        assert_eq!(world.closed(1), (Cause::Reset, Stage::Established));
        assert_eq!(world.client.send(conn, b"late"), 0);
    }

    #[test]
    fn close_delivers_what_was_sent_then_ends_both_sides() {
        let (mut world, to) = World::new("127.0.0.1", &ListenOptions::default());
        let [conn, accepted] = world.connected(to);
        world.client.send(conn, b"last words");
        world.client.close(now(), conn);
        world.until(|world| world.events[1].contains(&Event::PeerClosed(accepted)));
        let mut words = Vec::new();
        world.server.recv(accepted, &mut |bytes| {
            words.extend_from_slice(bytes);
            bytes.len()
        });
        assert_eq!(words, b"last words");
        world.server.close(now(), accepted);
        assert_eq!(world.closed(0), (Cause::Closed, Stage::Draining));
        assert_eq!(world.closed(1), (Cause::Closed, Stage::Draining));
        assert_eq!((world.client.conns(), world.server.conns()), (0, 0));
    }

    #[test]
    fn close_that_is_not_returned_ends_at_the_drain_deadline() {
        let (mut world, to) = World::new("127.0.0.1", &ListenOptions::default());
        let drain_timeout = Duration::from_millis(50);
        let options = ConnOptions { drain_timeout, ..ConnOptions::default() };
        let conn = world.client.connect(now(), to, &options).unwrap();
        world.until(|world| world.events[0].contains(&Event::Connected(conn)));
        world.client.close(now(), conn);
        assert_eq!(world.closed(0), (Cause::DrainTimeout, Stage::Draining));
    }

    #[test]
    fn listener_refuses_beyond_its_limit() {
        let options = ListenOptions { open_max: 1, ..ListenOptions::default() };
        let (mut world, to) = World::new("127.0.0.1", &options);
        world.connected(to);
        world.client.connect(now(), to, &ConnOptions::default()).unwrap();
        assert_eq!(world.closed(0).0, Cause::Reset);
        assert_eq!(world.server.conns(), 1);
    }

    #[test]
    fn short_send_is_told_when_there_is_room() {
        let (mut world, to) = World::new("127.0.0.1", &ListenOptions::default());
        let [conn, accepted] = world.connected(to);
        let chunk = vec![7; 1 << 20];
        let mut sent = 0;
        world.until(|world| {
            let taken = world.client.send(conn, &chunk);
            sent += taken;
            taken == 0
        });
        let mut received = 0;
        world.events[0].clear();
        world.until(|world| {
            received += world.server.recv(accepted, &mut |bytes| bytes.len());
            received == sent && world.events[0].contains(&Event::Writable(conn))
        });
    }

    /// Turns until `len` bytes are there; returns how many turns that took.
    fn receive(end: &mut KernelSockets, conn: ConnId, len: usize) -> u64 {
        let (mut turns, mut received) = (0, 0);
        while received < len {
            end.turn(now());
            turns += 1;
            received += end.recv(conn, &mut |bytes| bytes.len());
        }
        turns
    }

    #[test]
    fn exchange_costs_one_read_and_one_write_at_each_end() {
        let (mut world, to) = World::new("127.0.0.1", &ListenOptions::default());
        let [conn, accepted] = world.connected(to);
        let ping = |world: &mut World| {
            world.client.send(conn, &[1; 64]);
            world.client.flush(now());
            let turns = receive(&mut world.server, accepted, 64);
            world.server.send(accepted, &[2; 4096]);
            world.server.flush(now());
            [receive(&mut world.client, conn, 4096), turns]
        };
        (0..16).for_each(|_| _ = ping(&mut world));
        let before = [world.client.stats().syscalls, world.server.stats().syscalls];
        let mut turns = [0, 0];
        for _ in 0..900 {
            turns.iter_mut().zip(ping(&mut world)).for_each(|(sum, turns)| *sum += turns);
        }
        let after = [world.client.stats().syscalls, world.server.stats().syscalls];
        for end in 0..2 {
            // A write, a read for each turn, and one turn in nine asks epoll as well.
            let most = 900 + turns[end] + turns[end] / 8 + 1;
            assert!(after[end] - before[end] <= most, "{before:?} {after:?} {turns:?}");
        }
    }
}
