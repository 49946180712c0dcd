//! The receiving half: RX ring, fill ring, and the chunks that go round between them.
#![allow(unsafe_code)]

use xsk_rs::{FillQueue, FrameDesc, RxQueue, Umem};

use crate::{BATCH, CHUNK, CONTINUED, FRAME_CHUNKS_MAX};

/// Receives frames, lends them out one by one, and posts their chunks again.
///
/// Invariant: each chunk below `posted.len()` belongs to this half. It is *posted* (in the fill or
/// the RX ring, the kernel's to write) or *held* (in `held` during one [`Receiver::receive`], ours
/// to read), as `posted` says; `held` names only such chunks.
#[derive(Debug)]
pub(crate) struct Receiver {
    rx: RxQueue,
    fill: FillQueue,
    umem: Umem,
    posted: Box<[bool]>,
    held: Box<[FrameDesc; BATCH]>,
    /// The frame of several descriptors that is being put together; as long as a frame may be.
    scratch: Box<[u8]>,
    scratch_len: usize,
    counts: RxCounts,
}

/// What was received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RxCounts {
    pub frames: u64,
    pub bytes: u64,
    pub linearised_bytes: u64,
    pub oversize: u64,
    pub syscalls: u64,
}

impl Receiver {
    /// Posts `frames`, all of them chunks of `umem` below `frames.len()`.
    pub(crate) fn new(
        rx: RxQueue,
        mut fill: FillQueue,
        umem: Umem,
        frames: &[FrameDesc],
        frame_max: usize,
    ) -> Self {
        // SAFETY: nobody else has these chunks: the UMEM is new, and the caller hands them over.
        let posted = unsafe { fill.produce(frames) };
        assert_eq!(posted, frames.len(), "the fill ring holds all receive chunks");
        Self {
            rx,
            fill,
            umem,
            posted: vec![true; frames.len()].into(),
            held: Box::new([FrameDesc::default(); BATCH]),
            scratch: vec![0; frame_max].into(),
            scratch_len: 0,
            counts: RxCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> &RxCounts {
        &self.counts
    }

    /// Gives at most `budget` frames to `each`; returns how many.
    pub(crate) fn receive<T>(
        &mut self,
        budget: usize,
        context: &mut T,
        each: &mut impl FnMut(&[u8], &mut T),
    ) -> usize {
        let (mut frames, mut chunks) = (0, 0);
        // A frame has at most so many chunks: bounds the loop whatever the peer sends.
        while frames < budget && chunks < budget * FRAME_CHUNKS_MAX {
            let batch = BATCH.min(budget - frames);
            // SAFETY: the queue and `held` belong to the same UMEM.
            let n = unsafe { self.rx.consume(&mut self.held[..batch]) };
            if n == 0 {
                break;
            }
            chunks += n;
            for i in 0..n {
                frames += usize::from(self.take(i, context, each));
            }
            self.repost(n);
        }
        frames
    }

    /// Looks at `held[i]`, just received. Returns whether a frame was handed out.
    fn take<T>(&mut self, i: usize, context: &mut T, each: &mut impl FnMut(&[u8], &mut T)) -> bool {
        let desc = self.held[i];
        let (addr, len) = (desc.addr(), desc.lengths().data());
        let posted = &mut self.posted[addr / CHUNK]; // panics for a chunk that is not ours
        assert!(*posted && addr % CHUNK + len <= CHUNK, "received what was not posted");
        *posted = false;
        let more = desc.options() & CONTINUED != 0;
        if more || self.scratch_len > 0 {
            return self.linearise(i, more, context, each);
        }
        if len > self.scratch.len() {
            self.counts.oversize += 1;
            return false;
        }
        // SAFETY: by the invariant the chunk is held, thus not written by the kernel; `addr` and
        // `len` stay within it, as just asserted.
        let data = unsafe { self.umem.data(&desc) }.contents();
        self.counts.frames += 1;
        self.counts.bytes += len as u64;
        each(data, context);
        true
    }

    /// Puts `held[i]`, checked, to the end of the frame that is being put together, and hands that
    /// out when it is whole.
    fn linearise<T>(
        &mut self,
        i: usize,
        more: bool,
        context: &mut T,
        each: &mut impl FnMut(&[u8], &mut T),
    ) -> bool {
        // SAFETY: as in `take`, which has asserted the same.
        let data = unsafe { self.umem.data(&self.held[i]) }.contents();
        // Too long a frame is counted to its end, but not kept.
        let start = self.scratch_len;
        self.scratch_len += data.len();
        if let Some(room) = self.scratch.get_mut(start..self.scratch_len) {
            room.copy_from_slice(data);
        }
        if more {
            return false;
        }
        let len = std::mem::take(&mut self.scratch_len);
        let Some(frame) = self.scratch.get(..len) else {
            self.counts.oversize += 1;
            return false;
        };
        self.counts.frames += 1;
        self.counts.bytes += len as u64;
        self.counts.linearised_bytes += len as u64;
        each(frame, context);
        true
    }

    /// Posts `held[..n]` again.
    fn repost(&mut self, n: usize) {
        let held = &self.held[..n];
        for desc in held {
            self.posted[desc.addr() / CHUNK] = true;
        }
        // SAFETY: by the invariant these chunks are held; from here on they are posted, and no
        // borrow of them is left.
        let posted = unsafe { self.fill.produce(held) };
        assert_eq!(posted, n, "the fill ring holds twice the receive chunks");
        // Zero-copy drivers only.
        if self.fill.needs_wakeup() {
            self.counts.syscalls += 1;
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0); // refused: the next burst asks again
        }
    }

    /// Whether every chunk is posted, as it is whenever no burst is being looked at.
    pub(crate) fn is_whole(&self) -> bool {
        self.posted.iter().all(|&posted| posted)
    }
}
