//! The host allocates nothing per I/O. It runs over the pipe, whose own allocations are taken out
//! of the count call by call.

#![allow(clippy::unwrap_used)] // a test, helpers included

use std::alloc::System;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{
    CtrlConfig, Host, HostEvent, HostIdentity, HostLimits, Io, IoOp, Reconnect, Requeue,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::{ConnOptions, ListenOptions, TransportStats};
use moorline_stack::{ConnId, Event, Instant, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// A pipe whose allocations are counted apart.
struct Metered {
    pipe: Pipe,
    inside: usize,
    received: Vec<u8>,
}

impl Metered {
    fn apart<R>(&mut self, call: impl FnOnce(&mut Pipe) -> R) -> R {
        let before = allocations();
        let result = call(&mut self.pipe);
        self.inside += allocations() - before;
        result
    }
}

impl Transport for Metered {
    fn connect(&mut self, now: Instant, to: SocketAddr, opt: &ConnOptions) -> io::Result<ConnId> {
        self.apart(|pipe| pipe.connect(now, to, opt))
    }
    fn listen(&mut self, now: Instant, at: SocketAddr, opt: &ListenOptions) -> io::Result<()> {
        self.apart(|pipe| pipe.listen(now, at, opt))
    }
    fn turn(&mut self, now: Instant) {
        self.apart(|pipe| pipe.turn(now));
    }
    fn poll_event(&mut self) -> Option<Event> {
        self.apart(Pipe::poll_event)
    }
    fn recv(&mut self, conn: ConnId, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        let mut received = std::mem::take(&mut self.received);
        received.clear();
        self.apart(|pipe| {
            pipe.recv(conn, &mut |bytes| {
                received.extend_from_slice(bytes);
                bytes.len()
            })
        });
        let taken = if received.is_empty() { 0 } else { parse(&received) };
        assert_eq!(taken, received.len(), "the host takes all it is shown");
        self.received = received;
        taken
    }
    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> usize {
        self.apart(|pipe| pipe.send(conn, bytes))
    }
    fn send_room(&self, conn: ConnId) -> usize {
        self.pipe.send_room(conn)
    }
    fn ack(&mut self, conn: ConnId) {
        self.apart(|pipe| pipe.ack(conn));
    }
    fn close(&mut self, now: Instant, conn: ConnId) {
        self.apart(|pipe| pipe.close(now, conn));
    }
    fn abort(&mut self, now: Instant, conn: ConnId) {
        self.apart(|pipe| pipe.abort(now, conn));
    }
    fn flush(&mut self, now: Instant) {
        self.apart(|pipe| pipe.flush(now));
    }
    fn poll_timeout(&self) -> Option<Instant> {
        self.pipe.poll_timeout()
    }
    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.pipe.wait(until, also)
    }
    fn stats(&self) -> TransportStats {
        self.pipe.stats()
    }
}

struct World {
    now: Instant,
    host: Host<Metered>,
    target: Target<Pipe>,
    /// Allocations of the host's own.
    own: usize,
}

impl World {
    /// Counts what `call` allocates beside the pipe.
    fn own<R>(&mut self, call: impl FnOnce(&mut Host<Metered>, Instant) -> R) -> R {
        let before = allocations() - self.host.transport().inside;
        let result = call(&mut self.host, self.now);
        self.own += allocations() - self.host.transport().inside - before;
        result
    }

    fn turn(&mut self) {
        self.own(|host, now| {
            host.turn(now);
            host.flush(now);
        });
        self.target.turn(self.now);
        self.target.flush(self.now);
        let next = earliest(self.host.poll_timeout(), self.target.poll_timeout());
        self.now = next.unwrap().max(self.now + Duration::from_nanos(100));
    }
}

/// In one test, for all allocations of the process are counted.
#[test]
fn no_allocation_per_io() {
    for requeue in [None, Some(Requeue::default())] {
        allocates_nothing(requeue);
    }
}

fn allocates_nothing(requeue: Option<Requeue>) {
    let (near, far) = Pipe::pair(1, PipeOptions::default());
    let identity = HostIdentity { hostnqn: "nqn.2026-01.io.moorline:h".into(), hostid: [7; 16] };
    let metered = Metered { pipe: near, inside: 0, received: Vec::with_capacity(1 << 20) };
    let host = Host::new(metered, identity, HostLimits::default());
    let mut target = Target::new(far, TargetConfig::default());
    let mut subsystem = Subsystem::new("nqn.2026-01.io.moorline:alloc");
    subsystem.add_namespace(1, Box::new(Ram::new(512, 1 << 14))).unwrap();
    target.add_subsystem(subsystem).unwrap();
    let addr: SocketAddr = "10.0.0.2:4420".parse().unwrap();
    target.listen(Instant::ZERO, addr).unwrap();
    let mut world = World { now: Instant::ZERO, host, target, own: 0 };

    let mut config = CtrlConfig::new(addr, "nqn.2026-01.io.moorline:alloc");
    (config.hdgst, config.ddgst) = (true, true);
    (config.requeue, config.reconnect) = (requeue, requeue.map(|_| Reconnect::default()));
    let ctrl = world.host.connect(world.now, config).unwrap();
    while !matches!(world.host.poll_event(), Some(HostEvent::Live { .. })) {
        world.turn();
    }
    assert!(world.own > 0, "the meter sees the bring-up");

    let mut arena = Arena::new(16 << 20);
    let mut bufs: Vec<IoBuf> = (0..32).map(|_| arena.take(256 << 10).unwrap()).collect();
    let (mut submitted, mut ended) = (0u64, 0u64);
    while ended < 2000 {
        // The first 200 warm up: lists reach the size that they keep.
        if ended < 200 {
            world.own = 0;
        }
        while let Some(buf) = bufs.pop() {
            let op = if submitted % 3 == 0 { IoOp::Write { fua: false } } else { IoOp::Read };
            let blocks = if submitted % 10 == 0 { 512 } else { 8 }; // split by MDTS, or not
            let lba = submitted * 8 % 8192;
            let io = Io { tag: submitted, op, nsid: 1, lba, blocks, buf: Some(buf), buf_offset: 0 };
            world.own(|host, now| host.submit(now, ctrl, 0, io)).unwrap();
            submitted += 1;
        }
        world.turn();
        while let Some(done) = world.own(|host, _| host.poll_io()) {
            assert_eq!(done.status, Status::SUCCESS);
            bufs.push(done.buf.unwrap());
            ended += 1;
        }
    }
    assert_eq!(world.own, 0, "allocations in {} I/Os", ended - 200);
}
