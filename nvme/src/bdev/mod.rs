//! The block seam: what a namespace is stored in.
//!
//! A request carries its buffer in and its completion carries it out: while a request is under
//! way the buffer belongs to the device. Nothing blocks, nothing allocates per request, and every
//! request accepted is completed exactly once.

mod file;
mod null;
mod ram;

use std::os::fd::BorrowedFd;

pub use file::{File, FileOptions};
pub use null::Null;
pub use ram::Ram;

use moorline_stack::mem::IoBuf;

use crate::spec::Status;

/// A block operation; offsets and lengths are in blocks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read into the buffer.
    Read,
    /// Write from the buffer; `fua` completes only when it is durable.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Set blocks to zero.
    WriteZeroes,
    /// Blocks are no longer used (deallocate); a hint.
    Discard,
}

/// One request to a device.
#[derive(Debug)]
pub struct Request {
    /// The caller's name for it, given back with the completion.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// The data's buffer, for `Read` and `Write`: the first `blocks` × block size bytes of it.
    pub buf: Option<IoBuf>,
}

impl Request {
    /// The request's first byte and length in bytes on a device of `blocks` blocks.
    ///
    /// # Panics
    /// When the range is not on the device, or the buffer is too small: whoever submits has
    /// checked what a peer asked for.
    fn extent(&self, block_size: u32, blocks: u64) -> (u64, u64) {
        let end = self.lba.checked_add(u64::from(self.blocks));
        assert!(end.is_some_and(|end| end <= blocks), "request beyond the device");
        let len = u64::from(self.blocks) * u64::from(block_size);
        if matches!(self.op, Op::Read | Op::Write { .. }) {
            let room = self.buf.as_ref().map_or(0, |buf| buf.len());
            assert!(len <= room as u64, "buffer smaller than the request");
        }
        (self.lba * u64::from(block_size), len)
    }
}

/// A request's end.
#[derive(Debug)]
pub struct Done {
    /// The request's tag.
    pub tag: u64,
    /// How it went.
    pub status: Status,
    /// The request's buffer.
    pub buf: Option<IoBuf>,
}

/// A block device.
pub trait Bdev {
    /// Bytes per block: 512 or 4096.
    fn block_size(&self) -> u32;

    /// Size in blocks.
    fn blocks(&self) -> u64;

    /// Takes a request; its end comes from [`Bdev::poll`].
    ///
    /// # Errors
    /// The request itself, when the device is full for now: try again after a `poll`.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Hands over what was submitted (one system call at most) and the requests that ended since.
    fn poll(&mut self, done: &mut dyn FnMut(Done));

    /// Becomes readable when [`Bdev::poll`] has something to give, for a driver that sleeps;
    /// `None` where `poll` completes everything at once.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs one request to its end.
    pub(super) fn run(
        dev: &mut dyn Bdev,
        op: Op,
        lba: u64,
        blocks: u32,
        buf: Option<IoBuf>,
    ) -> (Status, Option<IoBuf>) {
        dev.submit(Request { tag: 77, op, lba, blocks, buf }).expect("an idle device has room");
        let mut end = None;
        while end.is_none() {
            dev.poll(&mut |done| {
                assert_eq!(done.tag, 77);
                end = Some((done.status, done.buf));
            });
            std::thread::yield_now();
        }
        end.unwrap()
    }
}
