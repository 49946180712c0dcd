//! The sending half of a link with faults: frames wait here until the turn is closed, and meet
//! what becomes of them on the way to the link inside.
//!
//! What always holds: no more frames wait than the link inside has room for. Buffers are kept.

use std::collections::VecDeque;

use crate::link::LinkTx;

/// See [`Faulty`](super::Faulty).
#[derive(Debug)]
pub struct FaultyTx {
    staged: VecDeque<Vec<u8>>,
    free: Vec<Vec<u8>>,
    /// Of the link inside, as it was when it was last looked at.
    room: usize,
    frame_bytes_max: usize,
}

impl FaultyTx {
    pub(super) fn new(room: usize, frame_bytes_max: usize) -> Self {
        Self { staged: VecDeque::with_capacity(room), free: Vec::new(), room, frame_bytes_max }
    }

    /// The link inside has this much room.
    pub(super) fn look(&mut self, room: usize) {
        self.room = room;
    }

    /// Gives the link inside what is not lost. One that is down has no room: what was for it is.
    pub(super) fn leave(&mut self, inner: &mut impl LinkTx, mut lost: impl FnMut(&[u8]) -> bool) {
        for frame in self.staged.drain(..) {
            if !lost(&frame) && inner.room() > 0 {
                inner.transmit(frame.len(), |out| out.copy_from_slice(&frame));
            }
            self.free.push(frame);
        }
        self.room = inner.room();
    }
}

impl LinkTx for FaultyTx {
    fn room(&self) -> usize {
        self.room.saturating_sub(self.staged.len())
    }

    fn transmit<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(self.room() > 0, "no room: the caller looks before it sends");
        assert!(len <= self.frame_bytes_max, "{len} bytes are longer than any frame");
        let new = || Vec::with_capacity(self.frame_bytes_max);
        let mut frame = self.free.pop().unwrap_or_else(new);
        frame.clear();
        frame.resize(len, 0);
        let result = fill(&mut frame);
        self.staged.push_back(frame);
        result
    }
}
