//! The host as a whole: a controller brought up and used against a real target, with somebody in
//! the middle who changes, drops, adds and delays bytes as the input says, in either direction.
//!
//! What is asserted: each I/O and each admin command ends exactly once; the controller ends with a
//! typed failure, or lives until it is closed; and when it is over no connection is left.

use std::time::Duration;

use moorline_nvme::host::{
    AdminCommand, CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Io, IoOp,
};
use moorline_nvme::target::Target;
use moorline_stack::mem::Arena;
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ListenOptions;
use moorline_stack::{ConnId, Event, Instant, Transport};

use crate::input::Input;
use crate::peer::{BUFFER, SUBNQN, address, conn_options, small_target};

/// Longer than any of the host's deadlines, one after the other.
const LONG: Duration = Duration::from_secs(60);
/// I/Os submitted.
const IOS: u64 = 6;

/// Fuzzes a conversation; the first byte says what is asked of it.
pub fn host(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let (a, b) = Pipe::pair(1, PipeOptions::default());
    let cut_max = usize::from(input.byte());
    let (c, d) = Pipe::pair(2, PipeOptions { cut_max, ..PipeOptions::default() });
    let identity =
        HostIdentity { hostnqn: "nqn.2026-01.org.moorline:host".to_owned(), hostid: [7; 16] };
    let limits = HostLimits { controllers: 1, io_queues: 1, queue_size: 32, ..Default::default() };
    let mut host = Host::new(a, identity, limits);
    let is_clean = input.is_empty();
    let mut middle = Middle::new(b, c, input);
    let now = Instant::from_nanos(1);
    let mut config = CtrlConfig::new(address(), SUBNQN);
    config.queue_size = 32;
    config.conn = conn_options();
    (config.hdgst, config.ddgst) = (choice & 1 != 0, choice & 2 != 0);
    if choice & 4 != 0 {
        config =
            CtrlConfig { queue_size: 32, conn: conn_options(), ..CtrlConfig::discovery(address()) };
    }
    middle.pipes[0].listen(now, address(), &listen()).expect("the address is free");
    let ctrl = host.connect(now, config).expect("a configuration that holds");
    let mut world =
        World { host, target: small_target(d), middle, ctrl, now, ended: [0; 16], events: vec![] };
    world.run(Duration::from_millis(500));
    let is_live = matches!(world.events[..], [HostEvent::Live { .. }]);
    assert!(is_live || !is_clean, "{:?}", world.events);
    if is_live {
        world.work();
    }
    world.end();
}

fn listen() -> ListenOptions {
    ListenOptions { conn: conn_options(), ..ListenOptions::default() }
}

struct World<'a> {
    host: Host<Pipe>,
    target: Target<Pipe>,
    middle: Middle<'a>,
    ctrl: CtrlId,
    now: Instant,
    /// How often each command ended: I/Os first, then admin commands; 255: not accepted.
    ended: [u8; 16],
    events: Vec<HostEvent>,
}

impl World<'_> {
    /// Submits some of everything.
    fn work(&mut self) {
        let mut arena = Arena::new(IOS as usize * 8192);
        for tag in 0..IOS {
            let op = [IoOp::Write { fua: false }, IoOp::Read, IoOp::Flush, IoOp::WriteZeroes]
                [tag as usize % 4];
            let blocks = if tag < 4 { 8 } else { 16 };
            let buf = arena.take(8192);
            let io = Io { tag, op, nsid: 1, lba: tag, blocks, buf, buf_offset: 0 };
            if self.host.controller(self.ctrl).namespace(1).is_none()
                || self.host.submit(self.now, self.ctrl, 0, io).is_err()
            {
                self.ended[tag as usize] = 255;
            }
        }
        let identify = AdminCommand::identify(1, 0);
        let log = AdminCommand::log_page(0x70, 0, false, 0, 1024);
        for (tag, command) in [(IOS, identify), (IOS + 1, log)] {
            if self.host.admin(self.now, self.ctrl, tag, command).is_err() {
                self.ended[tag as usize] = 255;
            }
        }
        self.run(Duration::from_secs(45));
        let ended = &self.ended[..IOS as usize + 2];
        assert!(ended.iter().all(|&times| times == 1 || times == 255), "{ended:?}");
    }

    /// Closes what lives, and waits.
    fn end(&mut self) {
        let is_over = |events: &[HostEvent]| {
            events
                .iter()
                .any(|event| matches!(event, HostEvent::Failed { .. } | HostEvent::Closed { .. }))
        };
        if !is_over(&self.events) {
            self.host.disconnect(self.now, self.ctrl);
        }
        self.run(LONG);
        assert!(is_over(&self.events), "{:?}", self.events);
        assert_eq!(self.host.transport().conns(), 0, "{:?}", self.events);
    }

    fn run(&mut self, horizon: Duration) {
        let end = self.now + horizon;
        for _ in 0..20_000 {
            let now = self.now;
            self.host.turn(now);
            self.middle.turn(now);
            self.target.turn(now);
            self.events.extend(
                std::iter::from_fn(|| self.host.poll_event())
                    .filter(|event| !matches!(event, HostEvent::Aen { .. })),
            );
            while let Some(done) = self.host.poll_io() {
                self.ended[done.tag as usize] += 1;
            }
            while let Some(done) = self.host.poll_admin() {
                self.ended[done.tag as usize] += 1;
            }
            self.host.flush(now);
            self.target.flush(now);
            assert!(self.events.len() <= 2, "{:?}", self.events);
            let next = earliest(self.host.poll_timeout(), self.target.poll_timeout());
            match earliest(next, self.middle.poll_timeout()) {
                Some(next) if next <= end => self.now = next.max(now),
                Some(_) | None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("does not settle");
    }
}

/// One connection's way through. Direction 0 is to the target, 1 to the host; so are the sides that
/// they come from: 0 is the host's.
struct Through {
    ids: [ConnId; 2],
    ways: [Way; 2],
    gone: [bool; 2],
}

/// One direction of a connection.
#[derive(Default)]
struct Way {
    held: Vec<u8>,
    /// What is held is the last.
    is_over: bool,
    /// The other side was told so.
    is_closed: bool,
}

/// Who forwards, and changes what the input says.
struct Middle<'a> {
    /// The pipe to the host, and the one to the target.
    pipes: [Pipe; 2],
    conns: Vec<Through>,
    input: Input<'a>,
    /// Bytes to pass, each way, until the next change.
    gap: [usize; 2],
    /// Nothing passes before.
    stalled: Option<Instant>,
}

impl<'a> Middle<'a> {
    fn new(from_host: Pipe, to_target: Pipe, input: Input<'a>) -> Self {
        let (pipes, conns) = ([from_host, to_target], Vec::new());
        let mut this = Self { pipes, conns, input, gap: [usize::MAX; 2], stalled: None };
        this.next_change();
        this
    }

    /// Where the next change is: a gap in bytes, and in the highest bit whether on the way to the
    /// target.
    fn next_change(&mut self) {
        self.gap = [usize::MAX; 2];
        if !self.input.is_empty() {
            let word = self.input.word();
            self.gap[usize::from(word >> 15 == 0)] = usize::from(word & 0x7FFF);
        }
    }

    fn turn(&mut self, now: Instant) {
        for side in 0..2 {
            self.pipes[side].turn(now);
            while let Some(event) = self.pipes[side].poll_event() {
                self.event(now, event, side);
            }
        }
        if self.stalled.is_none_or(|until| until <= now) {
            self.stalled = None;
            for conn in 0..self.conns.len() {
                self.forward(now, conn, 0);
                self.forward(now, conn, 1);
            }
        }
        self.pipes[0].flush(now);
        self.pipes[1].flush(now);
    }

    fn event(&mut self, now: Instant, event: Event, side: usize) {
        match event {
            Event::Accepted { conn, .. } => {
                let through = self.pipes[1].connect(now, address(), &conn_options());
                let through = through.expect("the pipe has room");
                let (ways, gone) = (Default::default(), [false; 2]);
                self.conns.push(Through { ids: [conn, through], ways, gone });
            }
            Event::PeerClosed(id) | Event::Closed(id, _) => {
                let conn = self.conns.iter().position(|conn| conn.ids[side] == id);
                let conn = conn.expect("one of ours");
                self.receive(conn, side, now);
                let conn = &mut self.conns[conn];
                conn.ways[side].is_over = true;
                conn.gone[side] |= matches!(event, Event::Closed(..));
            }
            Event::Connected(_) | Event::Readable(_) | Event::Writable(_) => {}
            Event::Reachable(_) | Event::LinkUp => {}
        }
    }

    fn forward(&mut self, now: Instant, at: usize, from: usize) {
        if !self.conns[at].ways[from].is_over {
            self.receive(at, from, now);
        }
        let conn = &mut self.conns[at];
        let (id, way) = (conn.ids[1 - from], &mut conn.ways[from]);
        if conn.gone[1 - from] {
            way.held.clear();
            return;
        }
        if way.is_closed {
            return;
        }
        let sent = self.pipes[1 - from].send(id, &way.held);
        way.held.drain(..sent);
        if way.is_over && way.held.is_empty() {
            way.is_closed = true;
            self.pipes[1 - from].close(now, id);
        }
    }

    /// Takes in what came from one side, and changes it.
    fn receive(&mut self, at: usize, from: usize, now: Instant) {
        let conn = &mut self.conns[at];
        if conn.gone[from] {
            return;
        }
        let held = &mut conn.ways[from].held;
        let mut position = held.len();
        let room = BUFFER.saturating_sub(held.len());
        self.pipes[from].recv(conn.ids[from], &mut |bytes| {
            let taken = bytes.len().min(room);
            held.extend_from_slice(&bytes[..taken]);
            taken
        });
        loop {
            let fresh = self.conns[at].ways[from].held.len().saturating_sub(position);
            if self.gap[from] >= fresh {
                if self.gap[from] != usize::MAX {
                    self.gap[from] -= fresh;
                }
                return;
            }
            position += self.gap[from];
            self.change(now, at, from, position);
            self.next_change();
        }
    }

    /// Changes what is held on its way from byte `at` on.
    fn change(&mut self, now: Instant, conn: usize, from: usize, at: usize) {
        let conn = &mut self.conns[conn];
        let (what, len) = (self.input.byte(), usize::from(self.input.byte()));
        let held = &mut conn.ways[from].held;
        let end = held.len().min(at + len);
        match what % 8 {
            0 => held[at] ^= len as u8,
            1 => held[at] = len as u8,
            2 => drop(held.drain(at..end)),
            3 => {
                let bytes = self.input.take(len);
                held.splice(at..at, bytes.iter().copied());
            }
            4 => {
                let bytes = self.input.take(len % 16);
                let end = held.len().min(at + bytes.len());
                held.splice(at..end, bytes.iter().copied());
            }
            5 => self.stalled = Some(now + Duration::from_millis(1 << (len % 13))),
            6 => conn.ways[from].is_over = true,
            _ => {
                let again = held[at..end].to_vec();
                held.splice(at..at, again);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let pipes = earliest(self.pipes[0].poll_timeout(), self.pipes[1].poll_timeout());
        earliest(pipes, self.stalled)
    }
}
