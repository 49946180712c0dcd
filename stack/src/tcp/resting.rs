//! Tuples of closed connections, resting before reuse: TIME-WAIT without its buffers.
//!
//! smoltcp's own TIME-WAIT would last 10 s of a fast clock and hold the rings all the while. Here a
//! tuple rests for [`REST`], and what is kept is enough to acknowledge the peer's FIN once more,
//! should our last acknowledgement be lost. Bounded: when full, the oldest makes room.
#![allow(clippy::disallowed_types, reason = "keyed, and nothing iterates")]

use std::collections::{HashMap, VecDeque};

use super::demux::Keyed;
use super::device::L2;
use crate::Instant;
use crate::segment::Tuple;
use crate::time::Duration;

/// How long a closed tuple rests.
pub(super) const REST: Duration = Duration::from_secs(1);

/// Tuples that rest at once; 100 bytes each.
const RESTING_MAX: usize = 8192;

/// What remains of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub l2: L2,
    /// Our next sequence number, and the peer's.
    pub seq: u32,
    pub ack: u32,
    /// Both sides sent FIN and we were first: the peer may repeat its own.
    pub time_wait: bool,
}

/// The resting tuples.
pub(super) struct Resting {
    by_tuple: HashMap<Tuple, (Instant, Rest), Keyed>,
    /// In order of their end. May hold tuples that were revived since.
    order: VecDeque<(Instant, Tuple)>,
}

impl Resting {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self { by_tuple: HashMap::with_hasher(keyed), order: VecDeque::new() }
    }

    pub(super) fn add(&mut self, now: Instant, tuple: Tuple, rest: Rest) {
        self.expire(now);
        if self.order.len() >= RESTING_MAX {
            self.pop();
        }
        let until = now + REST;
        self.by_tuple.insert(tuple, (until, rest));
        self.order.push_back((until, tuple));
    }

    /// What rests under `tuple`, if anything.
    pub(super) fn of(&mut self, now: Instant, tuple: &Tuple) -> Option<Rest> {
        self.expire(now);
        self.by_tuple.get(tuple).map(|&(_, rest)| rest)
    }

    /// Our own hardware address is another.
    pub(super) fn set_source(&mut self, source: [u8; 6]) {
        for (_, rest) in self.by_tuple.values_mut() {
            rest.l2.set_source(source);
        }
    }

    /// Lets the tuple be used again.
    pub(super) fn revive(&mut self, tuple: &Tuple) {
        self.by_tuple.remove(tuple);
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|&(until, _)| until <= now) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((until, tuple)) = self.order.pop_front()
            && self.by_tuple.get(&tuple).is_some_and(|&(end, _)| end == until)
        {
            self.by_tuple.remove(&tuple);
        }
    }
}
