//! A received segment on its way into a connection, and what it changes there.
//!
//! smoltcp says neither what it believed nor what changed, so each change is read from the socket:
//! its state and the lengths of its queues before and after.

use smoltcp::socket::tcp::State;
use smoltcp::wire::{TcpControl, TcpOption, TcpPacket};

use super::conn::{ACK_DELAY, Conn, Timer, Trust};
use super::control::Control;
use super::engine::Engine;
use super::slots::Edge;
use crate::route::is_unicast;
use crate::segment::{Segment, Tuple};
use crate::transport::{Cause, Stage};
use crate::{Instant, LinkTx};

/// What can be seen of a socket from outside.
struct Look {
    state: State,
    send_queue: usize,
    recv_queue: usize,
}

impl Look {
    fn at(conn: &Conn) -> Self {
        let socket = conn.socket();
        Self {
            state: socket.state(),
            send_queue: socket.send_queue(),
            recv_queue: socket.recv_queue(),
        }
    }
}

impl Engine {
    /// Takes in a TCP segment; `source` is the hardware address it came from.
    pub(super) fn segment<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        source: [u8; 6],
        segment: &Segment,
        packet: &[u8],
    ) {
        let flags = segment.flags;
        match self.demux.slot(&segment.tuple) {
            Some(index) => self.deliver(now, tx, index, segment, packet),
            None if self.stack.is_broadcast(segment.tuple.remote.ip()) => {}
            None if flags.syn() && !flags.ack() && !flags.rst() => {
                self.syn(now, tx, source, segment, packet);
            }
            None => self.stray(now, tx, source, segment, packet),
        }
    }

    /// A segment of a live connection.
    pub(super) fn deliver<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        index: u32,
        segment: &Segment,
        packet: &[u8],
    ) {
        let conn = self.slots.at_mut(index).expect("the demux table names live connections");
        match conn.trust(segment) {
            Trust::Whole => {}
            Trust::Doubt => return self.challenge(now, tx, index, segment, packet),
            Trust::None => return,
        }
        let before = Look::at(conn);
        let reply = self.stack.ingress(now, tx, conn, packet);
        let after = Look::at(conn);

        conn.peer_window_zero = segment.window == 0;
        let received = after.recv_queue.saturating_sub(before.recv_queue);
        if received > 0 {
            self.counters.rx_bytes += received as u64;
            self.counters.copied_in_bytes += received as u64 * self.counters.copies(segment);
            conn.unacked_rx += received;
            conn.timers[Timer::Ack as usize].get_or_insert(now + ACK_DELAY);
        }
        if let Some(reply) = &reply {
            conn.on_sent(reply);
        }
        let acknowledged = after.send_queue < before.send_queue;
        if acknowledged {
            conn.on_progress(now, segment.ack);
        } else if conn.peer_window_zero && after.send_queue > 0 {
            // It lives, and has no room.
            conn.timers[Timer::Unacked as usize] = Some(now + conn.ack_timeout());
        }
        // A window may have opened, or a third duplicate asks for the lost segment.
        conn.egress |= conn.unsent() > 0
            || (after.send_queue > 0 && !acknowledged && segment.payload_bytes == 0);
        let wakes = acknowledged && std::mem::take(&mut conn.wants_room);

        self.touch(index);
        if after.state != before.state
            && !self.changed(now, tx, index, after.state, segment, packet)
        {
            return;
        }
        self.tell(index, received > 0, wakes);
    }

    fn tell(&mut self, index: u32, received: bool, wakes: bool) {
        let conn = self.slots.at_mut(index).expect("the caller has just looked at it");
        match conn.stage {
            Stage::Established => {
                if received {
                    self.slots.tell(index, Edge::Readable);
                }
                if wakes {
                    self.slots.tell(index, Edge::Writable);
                }
            }
            Stage::Draining => conn.discard_received(),
            Stage::Resolving | Stage::SynSent | Stage::SynReceived => {}
        }
    }

    /// Follows the socket into another state. Returns whether the connection still lives.
    fn changed<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        index: u32,
        state: State,
        segment: &Segment,
        packet: &[u8],
    ) -> bool {
        let conn = self.slots.at_mut(index).expect("the caller has just looked at it");
        conn.egress = true;
        if conn.stage == Stage::SynSent && segment.flags.syn() {
            conn.on_syn(segment, scales_window(segment, packet));
        }
        match (conn.stage, state) {
            // The peer may have opened at the same time as we, and close with its first ACK.
            (Stage::SynSent, State::Established | State::CloseWait) => {
                conn.establish(now);
                self.slots.tell(index, Edge::Connected);
            }
            (Stage::SynReceived, State::Established | State::CloseWait) => {
                conn.establish(now);
                let listener = conn.listener.expect("it came from one");
                self.listeners[listener].half_open -= 1;
                self.slots.tell(index, Edge::Accepted);
            }
            // A RST while half open, or a SYN that smoltcp did not believe.
            (Stage::SynReceived, State::Listen) => {
                self.finish(now, index, None);
                return false;
            }
            (_, State::Closed) => {
                let cause = if segment.flags.rst() { Cause::Reset } else { Cause::Closed };
                self.finish(now, index, Some(cause));
                return false;
            }
            (_, State::TimeWait) => {
                if let Some(sent) = self.stack.egress(now, tx, conn, 0) {
                    conn.on_sent(&sent);
                }
                self.finish(now, index, Some(Cause::Closed));
                return false;
            }
            _ => {}
        }
        if state == State::CloseWait {
            let conn = self.slots.at_mut(index).expect("still there");
            if !std::mem::replace(&mut conn.peer_closed, true) {
                self.slots.tell(index, Edge::PeerClosed);
            }
        }
        true
    }

    /// A segment on a live connection that may be forged: whoever sends it learns where we are. A
    /// peer that has lost its memory answers RST to that, which ends the connection; a forger gets
    /// nothing.
    fn challenge<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        index: u32,
        segment: &Segment,
        packet: &[u8],
    ) {
        if !self.is_sound(segment, packet) || !self.challenges.take(now) {
            return;
        }
        let conn = self.slots.at(index).expect("the caller has just looked at it");
        conn.bare_ack().transmit(tx, &conn.l2, &self.stack.checksum);
    }

    /// A segment of no connection.
    fn stray<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        source: [u8; 6],
        segment: &Segment,
        packet: &[u8],
    ) {
        let tuple = segment.tuple;
        if segment.flags.rst() {
            return;
        }
        if let Some(rest) = self.resting.of(now, &tuple)
            && rest.time_wait
        {
            if segment.flags.fin() && self.challenges.take(now) {
                let (seq, ack, control) = (rest.seq, Some(rest.ack), TcpControl::None);
                let again = Control { tuple, control, seq, ack, window: 0 };
                again.transmit(tx, &rest.l2, &self.stack.checksum);
            }
            return;
        }
        self.refuse(now, tx, source, segment, packet);
    }

    /// Answers with RST, at a limited rate, if the segment is what it says.
    pub(super) fn refuse<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        source: [u8; 6],
        segment: &Segment,
        packet: &[u8],
    ) {
        let sound = self.is_sound(segment, packet);
        if !is_unicast(segment.tuple.remote.ip()) || !sound || !self.resets.take(now) {
            return;
        }
        let reset = Control {
            tuple: segment.tuple,
            control: TcpControl::Rst,
            // RFC 9293 §3.10.7.1.
            seq: if segment.flags.ack() { segment.ack } else { 0 },
            ack: match segment.flags.ack() {
                true => None,
                false => Some(segment.seq.wrapping_add(segment.sequence_bytes())),
            },
            window: 0,
        };
        reset.transmit(tx, &self.stack.l2(source), &self.stack.checksum);
    }

    /// Whether the TCP checksum is right, where checksums are looked at.
    fn is_sound(&self, segment: &Segment, packet: &[u8]) -> bool {
        let Tuple { local, remote } = segment.tuple;
        let (source, destination) = (remote.ip().into(), local.ip().into());
        !self.stack.checksum.tcp.rx()
            || TcpPacket::new_checked(&packet[usize::from(segment.tcp_offset)..])
                .is_ok_and(|tcp| tcp.verify_checksum(&source, &destination))
    }
}

/// Whether a SYN offers window scaling, RFC 7323 §2.
pub(super) fn scales_window(segment: &Segment, packet: &[u8]) -> bool {
    let Ok(tcp) = TcpPacket::new_checked(&packet[usize::from(segment.tcp_offset)..]) else {
        return false;
    };
    let mut options = tcp.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        match option {
            TcpOption::WindowScale(_) => return true,
            TcpOption::EndOfList => return false,
            _ => options = rest,
        }
    }
    false
}
