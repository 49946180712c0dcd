//! One connection: a smoltcp socket in a set of its own, its clock, its deadlines, and the account
//! of what has been sent, acknowledged and advertised.
//!
//! smoltcp hides its sequence numbers, so the account is kept from the segments that leave
//! ([`Conn::on_sent`]) and from the lengths of its queues. What it must answer: is there anything
//! unsent, what is still to be acknowledged, was that a retransmission.

use std::net::IpAddr;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::TcpControl;

use super::clock::{Clock, HANDSHAKE_FACTOR, RTO_MAX_US};
use super::control::Control;
use super::device::{Amend, L2};
use super::egress::Share;
use crate::segment::{Segment, Tuple, before};
use crate::time::{Duration, earliest};
use crate::transport::{Cause, ConnOptions, IcmpError, Stage, Why};
use crate::{ConnId, Instant};

/// Received bytes that are acknowledged without further delay.
const ACK_BYTES: usize = 64 << 10;

/// How long the acknowledgement of in-order data may wait.
pub(super) const ACK_DELAY: Duration = Duration::from_micros(100);

/// The largest window of a peer that knows no window scaling.
const WINDOW_UNSCALED_MAX: usize = 0xffff;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The end of its stage: resolving, connecting, half open, draining.
    Stage,
    /// The peer's acknowledgement of data in flight.
    Unacked,
    /// Our acknowledgement of data received.
    Ack,
    /// smoltcp: retransmission, window probe.
    Tcp,
}

/// Number of [`Timer`]s.
pub const TIMERS: usize = Timer::Tcp as usize + 1;

/// How far a segment on a live connection is believed before smoltcp sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// smoltcp decides.
    Whole,
    /// It may be forged: its sender is told where we are, and nothing else is done.
    Doubt,
    /// It is nothing to us.
    None,
}

/// A live connection.
pub(super) struct Conn {
    pub id: ConnId,
    pub tuple: Tuple,
    pub stage: Stage,
    pub since: Instant,
    pub options: ConnOptions,
    /// The listener that it came from.
    pub listener: Option<usize>,
    pub next_hop: IpAddr,
    pub l2: L2,
    pub clock: Clock,
    pub timers: [Option<Instant>; TIMERS],
    pub sockets: SocketSet<'static>,
    handle: SocketHandle,

    /// Sequence number after the last byte (or SYN, FIN) ever sent.
    pub seq_max: u32,
    syn_sent: bool,
    /// The acknowledgement number last sent.
    pub ack_sent: u32,
    /// The window last sent, as on the wire.
    pub window_sent: u16,
    /// Stream bytes handed to the socket, and those of them sent at least once.
    enqueued: u64,
    sent: u64,
    pub retransmits: u32,
    /// The last ICMP error about it.
    pub hint: Option<IcmpError>,
    /// After a retransmission timeout, until something is acknowledged: one segment per timeout.
    pub probing: bool,
    /// The TCP clock's reading at which the retransmission timer expires, and its interval.
    rto_at_us: Option<i64>,
    rto_us: i64,
    pub peer_window_zero: bool,
    pub peer_scales_window: bool,

    /// Stream bytes taken by the application.
    consumed: u64,
    /// In-order bytes received since we last acknowledged.
    pub unacked_rx: usize,
    /// The stream offset up to which the peer has been allowed to send.
    window_edge: u64,
    /// The peer knows our window from a SYN only: it is not scaled there, but smoltcp scales it.
    window_is_of_syn: bool,
    /// The driver says that the peer waits for our acknowledgement.
    pub ack_now: bool,
    /// Something other than a delayed acknowledgement may have to be sent.
    pub egress: bool,
    /// The peer is to be asked whether it still knows us.
    pub asks: bool,
    /// In the engine's list of connections to look at before the turn ends.
    pub touched: bool,
    /// How its last share of the link ended.
    pub share: Share,
    /// A `send` was refused room.
    pub wants_room: bool,
    /// The peer's FIN was reported.
    pub peer_closed: bool,
}

impl Conn {
    pub(super) fn new(
        now: Instant,
        id: ConnId,
        tuple: Tuple,
        stage: Stage,
        options: &ConnOptions,
        l2: L2,
    ) -> Self {
        let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(options.rx_buffer), buffer(options.tx_buffer));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            id,
            tuple,
            stage,
            since: now,
            options: options.clone(),
            listener: None,
            next_hop: tuple.remote.ip(),
            l2,
            clock: Clock::new(now, HANDSHAKE_FACTOR),
            timers: [None; TIMERS],
            sockets,
            handle,
            seq_max: 0,
            syn_sent: false,
            ack_sent: 0,
            window_sent: 0,
            enqueued: 0,
            sent: 0,
            retransmits: 0,
            hint: None,
            probing: false,
            rto_at_us: None,
            rto_us: 1_000_000,
            peer_window_zero: false,
            peer_scales_window: false,
            consumed: 0,
            unacked_rx: 0,
            window_edge: 0,
            window_is_of_syn: true,
            ack_now: false,
            egress: false,
            asks: false,
            touched: false,
            share: Share::Done,
            wants_room: false,
            peer_closed: false,
        }
    }

    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn enter(&mut self, now: Instant, stage: Stage, timeout: Option<Duration>) {
        self.stage = stage;
        self.since = now;
        self.timers[Timer::Stage as usize] = timeout.map(|timeout| now + timeout);
    }

    /// The handshake is over: from now on the connection's own clock factor.
    pub(super) fn establish(&mut self, now: Instant) {
        self.enter(now, Stage::Established, None);
        self.clock.set_factor(now, self.options.clock_factor.max(1));
        self.egress = true;
    }

    pub(super) fn why(&self, now: Instant, cause: Cause) -> Why {
        let Self { stage, retransmits, hint, .. } = *self;
        let rto = (retransmits > 0).then(|| self.clock.length(self.rto_us));
        Why { cause, stage, after: now - self.since, retransmits, rto, hint }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.iter().copied().fold(None, earliest)
    }

    /// Takes bytes to send.
    pub(super) fn send(&mut self, bytes: &[u8]) -> usize {
        // An error means that this side is closed.
        let taken = self.socket_mut().send_slice(bytes).unwrap_or(0);
        self.enqueued += taken as u64;
        self.wants_room |= taken < bytes.len();
        self.egress |= taken > 0;
        taken
    }

    pub(super) fn send_room(&self) -> usize {
        let socket = self.socket();
        if !socket.may_send() {
            return 0;
        }
        socket.send_capacity() - socket.send_queue()
    }

    /// Shows received bytes; the ring is contiguous but for its wrap, so twice is enough.
    pub(super) fn recv(&mut self, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize {
        let mut total = 0;
        for _ in 0..2 {
            if !self.socket().can_recv() {
                break;
            }
            let all = self.socket_mut().recv(|bytes| {
                let shown = bytes.len();
                let taken = parse(bytes);
                assert!(taken <= shown, "parsed {taken} of {shown} bytes");
                (taken, (taken, taken == shown))
            });
            let Ok((taken, all)) = all else { break };
            total += taken;
            if !all {
                break;
            }
        }
        self.consumed += total as u64;
        // Worth a window update of its own: half of what the peer may have in flight.
        let opened = self.new_window_edge().saturating_sub(self.window_edge);
        self.egress |= opened >= self.window_max() as u64 / 2;
        total
    }

    /// Forgets received bytes that nobody will read.
    pub(super) fn discard_received(&mut self) {
        self.recv(&mut |bytes| bytes.len());
    }

    fn window_max(&self) -> usize {
        let ring = self.socket().recv_capacity();
        if self.peer_scales_window { ring } else { ring.min(WINDOW_UNSCALED_MAX) }
    }

    /// The stream offset up to which we could allow the peer to send.
    fn new_window_edge(&self) -> u64 {
        let socket = self.socket();
        let queued = socket.recv_queue();
        let window = (socket.recv_capacity() - queued).min(self.window_max());
        self.consumed + (queued + window) as u64
    }

    /// Whether in-order data must be acknowledged now, not within [`ACK_DELAY`].
    pub(super) fn ack_is_due(&self) -> bool {
        self.unacked_rx > 0
            && (self.ack_now || self.unacked_rx >= ACK_BYTES.min(self.window_max() / 2))
    }

    /// Bytes that were never sent.
    pub(super) fn unsent(&self) -> u64 {
        self.enqueued - self.sent
    }

    /// Whether a segment that starts there may be on its way: a SYN, or data or a FIN that nobody
    /// has acknowledged.
    pub(super) fn is_in_flight(&self, seq: u32) -> bool {
        let fin = u64::from(self.stage == Stage::Draining);
        let data = (self.socket().send_queue() as u64).saturating_sub(self.unsent());
        let length = if self.stage == Stage::SynSent { 1 } else { data + fin };
        self.syn_sent && u64::from(self.seq_max.wrapping_sub(seq).wrapping_sub(1)) < length
    }

    /// Whether a segment is what only our peer can send (RFC 5961 §3.2, §4.2, §5.2). smoltcp
    /// believes each RST in the window, takes data for acknowledged that were never sent, and has
    /// no room for all of the window that it thinks a SYN has shown.
    pub(super) fn trust(&self, segment: &Segment) -> Trust {
        let Segment { seq, ack, flags, payload_bytes, .. } = *segment;
        let received = self.consumed + self.socket().recv_queue() as u64;
        let window = self.window_edge.saturating_sub(received);
        let ahead = seq.wrapping_sub(self.ack_sent.wrapping_add(self.unacked_rx as u32));
        let end = i64::from(ahead.wrapping_add(payload_bytes) as i32);
        let is_window_of_syn = self.window_is_of_syn && self.window_edge > 0;
        let beyond = is_window_of_syn && payload_bytes > 0 && end > window as i64;
        if !matches!(self.stage, Stage::Established | Stage::Draining) {
            return if beyond { Trust::None } else { Trust::Whole };
        }
        if flags.rst() {
            return match ahead {
                0 => Trust::Whole,
                _ if u64::from(ahead) < window => Trust::Doubt,
                _ => Trust::None,
            };
        }
        // A window probe is one byte more than was sent.
        let sent = self.seq_max.wrapping_add(self.peer_window_zero.into());
        let doubt = flags.syn() || beyond || (flags.ack() && before(sent, ack));
        if doubt { Trust::Doubt } else { Trust::Whole }
    }

    /// What a segment that smoltcp sends must have right.
    pub(super) fn amend(&self) -> Amend {
        Amend { seq_max: self.syn_sent.then_some(self.seq_max), scaled: self.peer_scales_window }
    }

    /// Accounts for a segment that smoltcp sent. Returns how many stream bytes went out for the
    /// first time.
    pub(super) fn on_sent(&mut self, segment: &Segment) -> u64 {
        if segment.flags.rst() {
            return 0;
        }
        if segment.flags.ack() {
            self.ack_sent = segment.ack;
            self.unacked_rx = 0;
            self.ack_now = false;
            self.timers[Timer::Ack as usize] = None;
            if segment.flags.syn() {
                self.advertised_by_syn();
            } else {
                self.window_sent = segment.window;
                self.window_edge = self.new_window_edge();
                self.window_is_of_syn = false;
            }
        }
        let length = segment.sequence_bytes();
        let end = segment.seq.wrapping_add(length);
        if !self.syn_sent {
            self.syn_sent = segment.flags.syn();
            self.seq_max = end;
            return 0;
        }
        if length == 0 || (self.peer_window_zero && segment.payload_bytes == 1) {
            return 0; // A window probe is sent again, as data, when there is a window.
        }
        self.retransmits += u32::from(before(segment.seq, self.seq_max));
        if !before(self.seq_max, end) {
            return 0;
        }
        let fresh = end.wrapping_sub(self.seq_max).min(length) - u32::from(segment.flags.fin());
        self.seq_max = end;
        self.sent += u64::from(fresh);
        fresh.into()
    }

    /// The peer's SYN has come, with or without window scaling, after ours or before it.
    pub(super) fn on_syn(&mut self, segment: &Segment, scales_window: bool) {
        self.peer_scales_window = scales_window;
        self.ack_sent = segment.seq.wrapping_add(1);
        self.advertised_by_syn();
    }

    /// The window of our SYN, not scaled there, and as it would be written elsewhere.
    fn advertised_by_syn(&mut self) {
        let ring = self.socket().recv_capacity();
        let window = ring.min(WINDOW_UNSCALED_MAX);
        // As smoltcp chooses it.
        let scale = (usize::BITS - ring.leading_zeros()).saturating_sub(16);
        self.window_edge = window as u64;
        self.window_sent = (window >> if self.peer_scales_window { scale } else { 0 }) as u16;
    }

    /// Segments that may be sent now, of at most `budget`.
    pub(super) fn egress_budget(&self, now: Instant, budget: usize) -> usize {
        match self.probing {
            false => budget,
            true if self.rto_is_due(now) || self.unacked_rx > 0 => budget.min(1),
            true => 0,
        }
    }

    pub(super) fn rto_is_due(&self, now: Instant) -> bool {
        self.rto_at_us.is_some_and(|at| at <= self.clock.at(now).total_micros())
    }

    /// The next hop says that it is there, and so may just have come back. What it has not
    /// answered goes out again; if there is nothing, it is asked whether it still knows us: a peer
    /// that has lost its memory answers an acknowledgement with RST, another says nothing.
    /// Returns whether anything is to be sent.
    pub(super) fn on_announced(&mut self, now: Instant) -> bool {
        match self.stage {
            Stage::Resolving | Stage::SynReceived => false,
            Stage::SynSent => self.hasten(now),
            Stage::Established | Stage::Draining if self.probing => self.hasten(now),
            Stage::Established | Stage::Draining => {
                self.asks = true;
                true
            }
        }
    }

    /// Where we are, without data.
    pub(super) fn bare_ack(&self) -> Control {
        Control {
            tuple: self.tuple,
            control: TcpControl::None,
            seq: self.seq_max,
            ack: Some(self.ack_sent.wrapping_add(self.unacked_rx as u32)),
            window: self.window_sent,
        }
    }

    /// The way to the peer is open again: what waits for the next retransmission does so no longer.
    /// Returns whether anything does.
    pub(super) fn hasten(&mut self, now: Instant) -> bool {
        let Some(at) = self.rto_at_us else { return false };
        self.clock.advance(now, at);
        self.egress = true;
        true
    }

    /// A retransmission timeout made smoltcp send: hold the rest back until an acknowledgement.
    ///
    /// While data is held back smoltcp says "at once" and hides its timer, so we double it here
    /// just as it does.
    pub(super) fn on_timeout_sent(&mut self, now: Instant) {
        self.probing = true;
        self.rto_us = (self.rto_us * 2).min(RTO_MAX_US);
        self.rto_at_us = Some(self.clock.at(now).total_micros() + self.rto_us);
    }

    /// Something was acknowledged, up to `ack`.
    pub(super) fn on_progress(&mut self, now: Instant, ack: u32) {
        if before(self.seq_max, ack) {
            // The byte of a window probe was taken.
            self.sent += u64::from(ack.wrapping_sub(self.seq_max));
            self.seq_max = ack;
        }
        if self.probing {
            self.probing = false;
            self.egress = true;
        }
        self.timers[Timer::Unacked as usize] =
            (self.socket().send_queue() > 0).then(|| now + self.ack_timeout());
    }

    /// Arms what must be armed while there is data in flight.
    pub(super) fn watch_acks(&mut self, now: Instant) {
        let armed = self.timers[Timer::Unacked as usize].is_some();
        if !armed && self.socket().send_queue() > 0 {
            self.timers[Timer::Unacked as usize] = Some(now + self.ack_timeout());
        }
    }

    /// Takes over the timeouts of `options`, also for what is armed.
    pub(super) fn set_timeouts(&mut self, options: &ConnOptions) {
        let before = self.ack_timeout();
        let ConnOptions { connect_timeout, ack_timeout, drain_timeout, .. } = *options;
        let ours = &mut self.options;
        (ours.connect_timeout, ours.ack_timeout) = (connect_timeout, ack_timeout);
        ours.drain_timeout = drain_timeout;
        let after = self.ack_timeout();
        let unacked = &mut self.timers[Timer::Unacked as usize];
        *unacked = unacked.map(|at| at.retimed(before, after));
        let stage = match self.stage {
            Stage::SynSent => connect_timeout,
            Stage::Draining => drain_timeout,
            Stage::Resolving | Stage::SynReceived | Stage::Established => return,
        };
        self.timers[Timer::Stage as usize] = Some(self.since + stage);
    }

    /// A peer whose window is closed answers probes only, and those are up to the longest RTO
    /// apart.
    pub(super) fn ack_timeout(&self) -> Duration {
        let probe = match self.peer_window_zero {
            true => Duration::from_micros(RTO_MAX_US as u64) / self.options.clock_factor.max(1),
            false => Duration::ZERO,
        };
        self.options.ack_timeout + probe
    }

    /// Takes over what smoltcp's `poll_at` says: `Some(0)` is "at once".
    pub(super) fn set_tcp_timer(&mut self, now: Instant, at: Option<i64>) {
        let tcp_now = self.clock.at(now).total_micros();
        match at {
            Some(at) if at > tcp_now => {
                if self.rto_at_us != Some(at) {
                    self.rto_us = at - tcp_now;
                }
                self.rto_at_us = Some(at);
            }
            Some(_) if self.probing => {}
            Some(_) => self.rto_at_us = Some(tcp_now + 1000),
            None => self.rto_at_us = None,
        }
        self.timers[Timer::Tcp as usize] = self
            .rto_at_us
            .map(|at| self.clock.real(smoltcp::time::Instant::from_micros(at)).max(now));
    }
}
