//! A device in memory, on transparent huge pages where the kernel likes. All of it is committed when
//! the device is made: a page fault costs as much as a read, and that of a huge page as a hundred.
//! A request larger than a poll's budget goes on in the next poll, so that zeroing a whole device
//! stalls nobody.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use moorline_stack::mem::{Arena, IoBuf};

use super::{Bdev, Done, Op, Request};
use crate::spec::Status;

/// Bytes that a page fault commits at least.
const PAGE: usize = 4096;

/// A RAM disk.
#[derive(Debug)]
pub struct Ram {
    block_size: u32,
    bytes: IoBuf,
    queue: VecDeque<Request>,
    /// Bytes of the queue's first request that are done.
    progress: usize,
}

impl Ram {
    /// Requests that can wait.
    const DEPTH: usize = 1024;

    /// Bytes moved in one poll (at least one request's step is made).
    const POLL_BYTES: usize = 4 << 20;

    /// A device of `blocks` blocks, all zero. Takes about 0.3 s per GiB.
    ///
    /// # Panics
    /// If `block_size` is not 512 or 4096, or the address space is too small.
    pub fn new(block_size: u32, blocks: u64) -> Self {
        assert!(matches!(block_size, 512 | 4096), "block size is 512 or 4096");
        let len = blocks.checked_mul(u64::from(block_size)).and_then(|n| usize::try_from(n).ok());
        let len = len.expect("a RAM disk fits the address space");
        let mut bytes = Arena::unreserved(len).take(len).expect("the arena is as long");
        bytes.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0);
        Self { block_size, bytes, queue: VecDeque::with_capacity(Self::DEPTH), progress: 0 }
    }

    /// One step of the queue's first request, at most `budget` bytes. Returns the bytes moved and
    /// whether it ended.
    fn step(&mut self, budget: usize) -> Option<(usize, bool)> {
        let blocks = self.blocks();
        let request = self.queue.front_mut()?;
        let (offset, len) = request.extent(self.block_size, blocks);
        let (offset, len) = (offset as usize, len as usize);
        let from = self.progress;
        let to = len.min(from + budget);
        let media = &mut self.bytes[offset + from..offset + to];
        match (request.op, &mut request.buf) {
            (Op::Read, Some(buf)) => buf[from..to].copy_from_slice(media),
            (Op::Write { .. }, Some(buf)) => media.copy_from_slice(&buf[from..to]),
            (Op::WriteZeroes, _) => media.fill(0),
            // A buffer of nothing, or a hint, or what is durable as long as we are.
            (Op::Read | Op::Write { .. } | Op::Flush | Op::Discard, _) => {
                return Some((0, true));
            }
        }
        self.progress = to;
        Some((to - from, to == len))
    }
}

impl Bdev for Ram {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn blocks(&self) -> u64 {
        self.bytes.len() as u64 / u64::from(self.block_size)
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.queue.len() == Self::DEPTH {
            return Err(request);
        }
        request.extent(self.block_size, self.blocks());
        self.queue.push_back(request);
        Ok(())
    }

    fn poll(&mut self, done: &mut dyn FnMut(Done)) {
        let mut budget = Self::POLL_BYTES;
        while budget > 0
            && let Some((moved, ended)) = self.step(budget)
        {
            budget -= moved;
            if ended && let Some(Request { tag, buf, .. }) = self.queue.pop_front() {
                self.progress = 0;
                done(Done { tag, status: Status::SUCCESS, buf });
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::tests::run;

    #[test]
    fn what_is_written_is_read_back() {
        for block_size in [512, 4096] {
            let mut arena = Arena::new(8 << 12);
            let mut dev = Ram::new(block_size, 16);
            let len = 2 * block_size as usize;
            let mut buf = arena.take(len).unwrap();
            buf.fill(0x5A);
            run(&mut dev, Op::Write { fua: true }, 3, 2, Some(buf));
            let (_, buf) = run(&mut dev, Op::Read, 3, 2, arena.take(len));
            assert!(buf.unwrap()[..len].iter().all(|&b| b == 0x5A));
            run(&mut dev, Op::WriteZeroes, 4, 1, None);
            let (_, buf) = run(&mut dev, Op::Read, 3, 2, arena.take(len));
            let buf = buf.unwrap();
            assert!(buf[..len / 2].iter().all(|&b| b == 0x5A));
            assert!(buf[len / 2..len].iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn a_large_request_spreads_over_polls() {
        let mut dev = Ram::new(4096, 4096);
        let request = Request { tag: 1, op: Op::WriteZeroes, lba: 0, blocks: 4096, buf: None };
        dev.submit(request).unwrap();
        let mut polls = 0;
        let mut ended = false;
        while !ended {
            polls += 1;
            dev.poll(&mut |_| ended = true);
        }
        assert_eq!(polls, 4096 * 4096 / Ram::POLL_BYTES);
    }

    #[test]
    #[should_panic = "beyond the device"]
    fn a_request_beyond_the_end_is_our_bug() {
        let request = Request { tag: 1, op: Op::WriteZeroes, lba: u64::MAX, blocks: 2, buf: None };
        let _ = Ram::new(512, 8).submit(request);
    }
}
