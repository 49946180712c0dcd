//! A device that stores nothing, to measure everything else: writes are dropped, reads give zeros
//! or, to spare even that, whatever the buffer holds.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use super::{Bdev, Done, Op, Request};
use crate::spec::Status;

/// The null device.
#[derive(Debug)]
pub struct Null {
    block_size: u32,
    blocks: u64,
    zero_reads: bool,
    done: VecDeque<Done>,
}

impl Null {
    /// Requests that can wait for a poll.
    const DEPTH: usize = 1024;

    /// A device of `blocks` blocks. With `zero_reads` off a read leaves its buffer as it is, which
    /// may hold another command's data: for measurements between hosts that trust each other.
    ///
    /// # Panics
    /// If `block_size` is not 512 or 4096.
    pub fn new(block_size: u32, blocks: u64, zero_reads: bool) -> Self {
        assert!(matches!(block_size, 512 | 4096), "block size is 512 or 4096");
        Self { block_size, blocks, zero_reads, done: VecDeque::with_capacity(Self::DEPTH) }
    }
}

impl Bdev for Null {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&mut self, mut request: Request) -> Result<(), Request> {
        if self.done.len() == Self::DEPTH {
            return Err(request);
        }
        let (_, len) = request.extent(self.block_size, self.blocks);
        if let (Op::Read, true, Some(buf)) = (request.op, self.zero_reads, &mut request.buf) {
            buf[..len as usize].fill(0);
        }
        let Request { tag, buf, .. } = request;
        self.done.push_back(Done { tag, status: Status::SUCCESS, buf });
        Ok(())
    }

    fn poll(&mut self, done: &mut dyn FnMut(Done)) {
        while let Some(end) = self.done.pop_front() {
            done(end);
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
    use moorline_stack::mem::Arena;

    #[test]
    fn reads_are_zero_and_writes_are_dropped() {
        let mut arena = Arena::new(8192);
        let mut dev = Null::new(512, 8, true);
        let mut buf = arena.take(4096).unwrap();
        buf.fill(7);
        let (status, buf) = run(&mut dev, Op::Write { fua: false }, 0, 8, Some(buf));
        assert_eq!(status, Status::SUCCESS);
        let (_, buf) = run(&mut dev, Op::Read, 0, 8, buf);
        assert!(buf.unwrap().iter().all(|&b| b == 0));
    }

    #[test]
    fn reads_can_leave_the_buffer_alone() {
        let mut arena = Arena::new(4096);
        let mut dev = Null::new(4096, 8, false);
        let mut buf = arena.take(4096).unwrap();
        buf.fill(7);
        let (_, buf) = run(&mut dev, Op::Read, 7, 1, Some(buf));
        assert!(buf.unwrap().iter().all(|&b| b == 7));
    }

    #[test]
    fn a_full_device_gives_the_request_back() {
        let mut dev = Null::new(512, 8, true);
        let flush = |tag| Request { tag, op: Op::Flush, lba: 0, blocks: 0, buf: None };
        for tag in 0..Null::DEPTH as u64 {
            dev.submit(flush(tag)).unwrap();
        }
        assert_eq!(dev.submit(flush(9999)).unwrap_err().tag, 9999);
        let mut ends = 0;
        dev.poll(&mut |_| ends += 1);
        assert_eq!(ends, Null::DEPTH);
    }
}
