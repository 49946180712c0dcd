//! Byte streams in one thread and in virtual time: the [`Transport`] that tests drive.
//!
//! [`Pipe::pair`] gives two engines joined by a network that delays, stalls, resets, goes dark and
//! cuts the stream anywhere, all from one seed. What a real transport promises holds here too:
//! bytes in order, bounded buffers, a window, FIN after the last byte, `Closed` exactly once.
//! The same seed and the same calls give the same events.

mod net;

use std::cell::{Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use crate::Instant;
use crate::time::earliest;
use crate::transport::{ConnId, ConnOptions, Event, ListenOptions, Transport, TransportStats};

use net::Net;

/// What the network between two pipes is like, the same in both directions.
#[derive(Clone, Debug)]
pub struct PipeOptions {
    /// Travel time, one way.
    pub delay: Duration,
    /// Bytes arrive in pieces of random length up to this; 0: as they were sent.
    pub cut_max: usize,
    /// Probability that a piece, and all behind it, is late by `stall_by`.
    pub stall: f64,
    /// How late.
    pub stall_by: Duration,
    /// Probability, for each piece, that the connection is reset in its place.
    pub reset: f64,
    /// Nothing arrives while this is set; what was sent arrives afterwards.
    pub blackhole: bool,
    /// The same, for the connections made to one of these addresses only.
    pub dark: Vec<SocketAddr>,
    /// Nodes answer echo requests, unless they are dark.
    pub echoes: bool,
    /// The window never exceeds this, whatever the receive buffer.
    pub window_max: usize,
    /// Connections that one end can hold.
    pub conns_max: usize,
}

impl Default for PipeOptions {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(10),
            cut_max: 0,
            stall: 0.0,
            stall_by: Duration::from_millis(1),
            reset: 0.0,
            blackhole: false,
            dark: Vec::new(),
            echoes: true,
            window_max: usize::MAX,
            conns_max: 4096,
        }
    }
}

/// One end of a simulated network.
#[derive(Debug)]
pub struct Pipe {
    /// 0 or 1.
    end: usize,
    net: Rc<RefCell<Net>>,
    acks: u64,
    /// Answers to echo requests on their way.
    echoes: VecDeque<(Instant, IpAddr)>,
    /// Echo requests sent.
    asked: u64,
    /// Of the last turn.
    now: Instant,
}

impl Pipe {
    /// Two engines, each of which can connect to the other's listeners.
    pub fn pair(seed: u64, options: PipeOptions) -> (Self, Self) {
        let net = Rc::new(RefCell::new(Net::new(seed, options)));
        let end = |end, net| Self {
            end,
            net,
            acks: 0,
            echoes: VecDeque::new(),
            asked: 0,
            now: Instant::ZERO,
        };
        (end(0, net.clone()), end(1, net))
    }

    /// The address that this end connects from. It can listen on any.
    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, self.end as u8 + 1))
    }

    /// The network's properties, to be changed at any time; both ends share them.
    pub fn options_mut(&mut self) -> RefMut<'_, PipeOptions> {
        RefMut::map(self.net.borrow_mut(), |net| &mut net.options)
    }

    /// As if the peer's machine had lost the connection: it is `Reset` on both ends at once.
    pub fn reset(&mut self, now: Instant, conn: ConnId) {
        self.net.borrow_mut().reset(now, self.end, conn);
    }

    /// Tells the other end that the node at `ip`, on this end, is there: no matter what is dark.
    pub fn announce(&mut self, ip: IpAddr) {
        self.net.borrow_mut().tell(1 - self.end, Event::Reachable(ip));
    }

    /// Tells the other end that its link is up again.
    pub fn link_up(&mut self) {
        self.net.borrow_mut().tell(1 - self.end, Event::LinkUp);
    }

    /// Connections that this end holds.
    pub fn conns(&self) -> usize {
        self.net().conns_of(self.end)
    }

    /// Times that this end's user asked for an acknowledgement.
    pub fn acks(&self) -> u64 {
        self.acks
    }

    /// Echo requests that this end has sent.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    fn net(&self) -> Ref<'_, Net> {
        self.net.borrow()
    }
}

impl Transport for Pipe {
    fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: &ConnOptions,
    ) -> io::Result<ConnId> {
        self.net.borrow_mut().connect(now, self.end, self.ip(), remote, options)
    }

    fn listen(
        &mut self,
        _now: Instant,
        local: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<()> {
        self.net.borrow_mut().listen(self.end, local, options)
    }

    fn unlisten(&mut self, local: SocketAddr) -> io::Result<()> {
        self.net.borrow_mut().unlisten(self.end, local)
    }

    fn echo(&mut self, now: Instant, ip: IpAddr, timeout: Duration) -> bool {
        let net = self.net.borrow();
        let PipeOptions { delay, blackhole, ref dark, echoes, .. } = net.options;
        let answers = echoes && !blackhole && dark.iter().all(|addr| addr.ip() != ip);
        if answers && delay * 2 <= timeout {
            self.echoes.push_back((now + delay * 2, ip));
        }
        self.asked += 1;
        true
    }

    fn turn(&mut self, now: Instant) {
        self.now = now;
        self.net.borrow_mut().turn(now, self.end);
    }

    fn poll_event(&mut self) -> Option<Event> {
        let event = self.net.borrow_mut().poll_event(self.end);
        event.or_else(|| {
            self.echoes.front().filter(|(at, _)| *at <= self.now)?;
            self.echoes.pop_front().map(|(_, ip)| Event::Reachable(ip))
        })
    }

    fn recv(&mut self, conn: ConnId, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        // `parse` may call nothing of this engine, so the ring can stay where it is.
        self.net.borrow_mut().recv(self.end, conn, parse)
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> usize {
        self.net.borrow_mut().send(self.end, conn, bytes)
    }

    fn send_room(&self, conn: ConnId) -> usize {
        self.net().send_room(self.end, conn)
    }

    /// Nothing here waits for acknowledgements; they are counted.
    fn ack(&mut self, _conn: ConnId) {
        self.acks += 1;
    }

    fn close(&mut self, now: Instant, conn: ConnId) {
        self.net.borrow_mut().close(now, self.end, conn);
    }

    fn abort(&mut self, now: Instant, conn: ConnId) {
        self.net.borrow_mut().abort(now, self.end, conn);
    }

    fn set_timeouts(&mut self, conn: ConnId, options: &ConnOptions) -> bool {
        self.net.borrow_mut().set_timeouts(self.end, conn, options)
    }

    fn flush(&mut self, now: Instant) {
        self.net.borrow_mut().flush(now, self.end);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let echo = self.echoes.front().map(|&(at, _)| at);
        earliest(self.net().poll_timeout(self.end), echo)
    }

    fn wait(&mut self, _until: Option<Instant>, _also: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn stats(&self) -> TransportStats {
        self.net().stats(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Cause, Stage};

    /// Two ends and a clock that jumps to whatever is next.
    struct World {
        now: Instant,
        ends: [Pipe; 2],
        events: [Vec<Event>; 2],
    }

    impl World {
        fn new(seed: u64, options: PipeOptions) -> Self {
            let (a, b) = Pipe::pair(seed, options);
            let now = Instant::from_nanos(1);
            Self { now, ends: [a, b], events: [Vec::new(), Vec::new()] }
        }

        fn turn(&mut self) {
            for (end, events) in self.ends.iter_mut().zip(&mut self.events) {
                end.turn(self.now);
                events.extend(std::iter::from_fn(|| end.poll_event()));
            }
        }

        fn flush(&mut self) {
            self.ends.iter_mut().for_each(|end| end.flush(self.now));
        }

        /// Jumps to the next deadline; false if there is none.
        fn jump(&mut self) -> bool {
            let [a, b] = &self.ends;
            let Some(next) = earliest(a.poll_timeout(), b.poll_timeout()) else { return false };
            self.now = self.now.max(next);
            true
        }

        fn settle(&mut self) {
            for _ in 0..10_000 {
                self.turn();
                self.flush();
                if !self.jump() {
                    return;
                }
            }
            panic!("does not settle");
        }

        fn connected(&mut self) -> [ConnId; 2] {
            let [a, b] = &mut self.ends;
            b.listen(self.now, address(), &ListenOptions::default()).unwrap();
            let conn = a.connect(self.now, address(), &ConnOptions::default()).unwrap();
            self.settle();
            assert_eq!(self.events[0].pop(), Some(Event::Connected(conn)));
            let Some(Event::Accepted { conn: accepted, local, peer }) = self.events[1].pop() else {
                panic!("not accepted");
            };
            assert_eq!((local, peer.ip()), (address(), self.ends[0].ip()));
            [conn, accepted]
        }
    }

    fn address() -> SocketAddr {
        "10.0.0.2:4420".parse().unwrap()
    }

    fn closed(events: &[Event]) -> (Cause, Stage) {
        let closed: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Closed(_, why) => Some((why.cause, why.stage)),
                _ => None,
            })
            .collect();
        assert_eq!(closed.len(), 1, "{events:?}");
        closed[0]
    }

    /// Echoes a megabyte; returns when that was done and how many pieces were seen.
    fn echo(seed: u64, options: PipeOptions) -> (Instant, usize) {
        let mut world = World::new(seed, options);
        let [conn, accepted] = world.connected();
        let data: Vec<u8> = (0..1u32 << 20).map(|n| (n * 7 + n / 251) as u8).collect();
        let (mut sent, mut back, mut pieces) = (0, Vec::new(), 0);
        let mut waiting = Vec::<u8>::new();
        while back.len() < data.len() {
            world.turn();
            let [a, b] = &mut world.ends;
            sent += a.send(conn, &data[sent..]);
            b.recv(accepted, &mut |bytes| {
                waiting.extend_from_slice(bytes);
                bytes.len()
            });
            let echoed = b.send(accepted, &waiting);
            waiting.drain(..echoed);
            a.recv(conn, &mut |bytes| {
                pieces += 1;
                back.extend_from_slice(bytes);
                bytes.len()
            });
            world.flush();
            assert!(back.len() == data.len() || world.jump(), "stuck at {}", back.len());
        }
        assert!(back == data);
        (world.now, pieces)
    }

    #[test]
    fn echo_survives_cuts_stalls_and_small_windows() {
        echo(1, PipeOptions::default());
        let rough =
            PipeOptions { cut_max: 700, stall: 0.01, window_max: 5000, ..PipeOptions::default() };
        let (at, pieces) = echo(1, rough.clone());
        assert!(pieces > 200, "{pieces}");
        assert_eq!(echo(1, rough.clone()), (at, pieces), "same seed, same run");
        assert_ne!(echo(2, rough).0, at);
    }

    #[test]
    fn port_without_listener_refuses() {
        let mut world = World::new(0, PipeOptions::default());
        world.ends[0].connect(world.now, address(), &ConnOptions::default()).unwrap();
        world.settle();
        assert_eq!(closed(&world.events[0]), (Cause::Reset, Stage::SynSent));
        assert_eq!(world.ends.map(|end| end.conns()), [0, 0]);
    }

    #[test]
    fn darkness_ends_a_connect_at_its_deadline() {
        let mut world = World::new(0, PipeOptions { blackhole: true, ..PipeOptions::default() });
        let start = world.now;
        world.ends[1].listen(start, address(), &ListenOptions::default()).unwrap();
        world.ends[0].connect(start, address(), &ConnOptions::default()).unwrap();
        world.turn();
        world.flush();
        assert!(world.jump());
        assert_eq!(world.now, start + Duration::from_secs(1));
        world.turn();
        assert_eq!(closed(&world.events[0]), (Cause::ConnectTimeout, Stage::SynSent));
    }

    #[test]
    fn unacknowledged_data_ends_a_connection_at_its_deadline() {
        let mut world = World::new(0, PipeOptions::default());
        let [conn, _] = world.connected();
        world.ends[0].options_mut().blackhole = true;
        let start = world.now;
        assert_eq!(world.ends[0].send(conn, b"into the void"), 13);
        world.flush();
        assert!(world.jump());
        assert_eq!(world.now, start + Duration::from_secs(3));
        world.turn();
        assert_eq!(closed(&world.events[0]), (Cause::AckTimeout, Stage::Established));
        assert!(world.events[1].is_empty());
    }

    #[test]
    fn close_delivers_what_was_sent_then_ends_both_sides() {
        let mut world = World::new(0, PipeOptions::default());
        let [conn, accepted] = world.connected();
        world.ends[0].send(conn, b"last words");
        world.ends[0].close(world.now, conn);
        assert_eq!(world.ends[0].send_room(conn), 0);
        world.flush();
        world.jump();
        world.turn();
        let expected = [Event::Readable(accepted), Event::PeerClosed(accepted)];
        assert_eq!(world.events[1], expected);
        let mut words = Vec::new();
        world.ends[1].recv(accepted, &mut |bytes| {
            words.extend_from_slice(bytes);
            bytes.len()
        });
        assert_eq!(words, b"last words");
        world.ends[1].close(world.now, accepted);
        world.settle();
        for end in 0..2 {
            assert_eq!(closed(&world.events[end]), (Cause::Closed, Stage::Draining));
        }
    }

    #[test]
    fn close_that_is_not_returned_ends_at_the_drain_deadline() {
        let mut world = World::new(0, PipeOptions::default());
        let [conn, _] = world.connected();
        let start = world.now;
        world.ends[0].close(start, conn);
        world.settle();
        assert_eq!(closed(&world.events[0]), (Cause::DrainTimeout, Stage::Draining));
        assert_eq!(closed(&world.events[1]), (Cause::Reset, Stage::Established));
    }

    #[test]
    fn abort_and_reset_are_seen_by_the_peer() {
        let mut world = World::new(0, PipeOptions::default());
        let [conn, _] = world.connected();
        world.ends[0].abort(world.now, conn);
        world.settle();
        assert_eq!(closed(&world.events[0]).0, Cause::Aborted);
        assert_eq!(closed(&world.events[1]), (Cause::Reset, Stage::Established));

        let mut world = World::new(0, PipeOptions::default());
        let [conn, _] = world.connected();
        world.ends[0].reset(world.now, conn);
        world.settle();
        assert_eq!(closed(&world.events[0]).0, Cause::Reset);
        assert_eq!(closed(&world.events[1]).0, Cause::Reset);
        assert_eq!(world.ends[0].send(conn, b"late"), 0);
    }

    #[test]
    fn listener_refuses_beyond_its_limit() {
        let mut world = World::new(0, PipeOptions::default());
        let options = ListenOptions { open_max: 2, ..ListenOptions::default() };
        world.ends[1].listen(world.now, address(), &options).unwrap();
        for _ in 0..3 {
            world.ends[0].connect(world.now, address(), &ConnOptions::default()).unwrap();
        }
        world.settle();
        assert_eq!(world.ends[1].conns(), 2);
        assert_eq!(closed(&world.events[0]), (Cause::Reset, Stage::SynSent));
    }

    #[test]
    fn a_port_that_is_closed_refuses_until_it_is_listened_on_again() {
        let mut world = World::new(0, PipeOptions::default());
        world.connected();
        world.ends[1].unlisten(address()).unwrap();
        assert!(world.ends[1].unlisten(address()).is_err());
        world.ends[0].connect(world.now, address(), &ConnOptions::default()).unwrap();
        world.settle();
        assert_eq!(closed(&world.events[0]), (Cause::Reset, Stage::SynSent));
        assert_eq!(world.ends[1].conns(), 1);
        world.events[0].clear();
        world.connected();
        assert_eq!(world.ends[1].conns(), 2);
    }

    #[test]
    fn short_send_is_told_when_there_is_room() {
        let mut world = World::new(0, PipeOptions::default());
        let [conn, accepted] = world.connected();
        assert_eq!(world.ends[0].send(conn, &vec![0; 300_000]), 256 << 10);
        world.settle();
        assert_eq!(world.events[0], [Event::Writable(conn)]);
        assert_eq!(world.ends[1].recv(accepted, &mut |bytes| bytes.len()), 256 << 10);
        assert_eq!(world.ends[0].stats().tx_bytes, 256 << 10);
    }
}
