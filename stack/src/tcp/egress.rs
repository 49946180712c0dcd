//! Sending: each connection that was touched gets its share of the link, in turn.
//!
//! A connection sends at most [`FRAMES_PER_TURN`] frames a turn; when the link is full, the first
//! that was left out is the first of the next turn. Acknowledgements of in-order data wait for
//! company: for 64 KiB, 100 µs, outgoing data, or the driver's word that the peer waits.

use super::conn::{Conn, Timer};
use super::engine::{Counters, Engine};
use super::stack::Stack;
use crate::segment::before;
use crate::transport::Stage;
use crate::{Instant, LinkTx};

/// Frames that one connection may send in one turn.
pub(super) const FRAMES_PER_TURN: usize = 64;

/// How a connection's share ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// All is sent that may be sent.
    Done,
    /// There is more, for the next turn.
    Spent,
    /// The link has no room.
    NoRoom,
}

impl Engine {
    /// Serves the connections touched in this turn.
    pub(super) fn flush<T: LinkTx>(&mut self, now: Instant, tx: &mut T) {
        let before = self.counters.segments;
        self.work.connections.record(self.touched.len() as u64);
        for at in 0..self.touched.len() {
            let index = self.touched[at];
            let Some(conn) = self.slots.at_mut(index).filter(|conn| conn.touched) else { continue };
            let asks = std::mem::take(&mut conn.asks) && tx.room() > self.reserve;
            if asks && self.challenges.take(now) {
                conn.bare_ack().transmit(tx, &conn.l2, &self.stack.checksum);
            }
            conn.share = serve(&mut self.stack, &mut self.counters, now, tx, conn, self.reserve);
        }
        self.work.tx_segments.record(self.counters.segments - before);
    }

    /// Sets the deadlines of those that were served, and keeps those that have more. To be called
    /// when their frames have left: no peer waits for this.
    pub(super) fn rearm(&mut self, now: Instant) {
        self.starved = false;
        let mut left = 0;
        let mut left_before_starving = 0;
        for _ in 0..self.touched.len() {
            let Some(index) = self.touched.pop_front() else { break };
            let Some(conn) = self.slots.at_mut(index).filter(|conn| conn.touched) else { continue };
            if conn.share == Share::Done {
                conn.touched = false;
            } else {
                if conn.share == Share::NoRoom && !self.starved {
                    self.starved = true;
                    left_before_starving = left;
                }
                left += 1;
                self.touched.push_back(index);
            }
            set_timers(&mut self.stack, now, conn);
            self.deadlines.set(index, conn.deadline());
        }
        self.touched.rotate_left(left_before_starving);
    }
}

/// Gives one connection its share.
fn serve<T: LinkTx>(
    stack: &mut Stack,
    counters: &mut Counters,
    now: Instant,
    tx: &mut T,
    conn: &mut Conn,
    reserve: usize,
) -> Share {
    conn.egress |= conn.ack_is_due();
    if !conn.egress {
        return Share::Done;
    }
    let budget = conn.egress_budget(now, FRAMES_PER_TURN);
    let share = send(stack, counters, now, tx, conn, reserve, budget);
    conn.egress = share != Share::Done;
    share
}

/// What a connection that was served waits for.
fn set_timers(stack: &mut Stack, now: Instant, conn: &mut Conn) {
    if conn.socket().send_queue() == 0 && conn.unacked_rx > 0 {
        // smoltcp would say "at once", and mean the acknowledgement that we hold back.
        conn.set_tcp_timer(now, None);
    } else if conn.share == Share::Done && conn.unacked_rx == 0 {
        let at = stack.poll_at(now, conn);
        conn.set_tcp_timer(now, at);
    }
    if conn.unacked_rx == 0 {
        conn.timers[Timer::Ack as usize] = None;
    }
    conn.watch_acks(now);
}

fn send<T: LinkTx>(
    stack: &mut Stack,
    counters: &mut Counters,
    now: Instant,
    tx: &mut T,
    conn: &mut Conn,
    reserve: usize,
    budget: usize,
) -> Share {
    let timeout = conn.rto_is_due(now) && !conn.peer_window_zero;
    for _ in 0..budget {
        if tx.room() <= reserve {
            return Share::NoRoom;
        }
        let (seq_max, retransmits) = (conn.seq_max, conn.retransmits);
        let Some(segment) = stack.egress(now, tx, conn, reserve) else { return Share::Done };
        let fresh = conn.on_sent(&segment);
        counters.segments += 1;
        counters.tx_bytes += fresh;
        counters.copied_out_bytes += u64::from(segment.payload_bytes) * counters.copies(&segment);
        counters.retransmits += u64::from(conn.retransmits - retransmits);
        counters.syns += u64::from(segment.flags.syn() && !segment.flags.ack());
        if timeout && segment.payload_bytes > 0 && before(segment.seq, seq_max) {
            conn.on_timeout_sent(now);
            return Share::Done;
        }
        if fresh > 0 && conn.unsent() == 0 && conn.stage == Stage::Established {
            return Share::Done; // smoltcp has no more: do not make it look
        }
    }
    if conn.probing { Share::Done } else { Share::Spent }
}
