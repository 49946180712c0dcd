//! The sending half: TX ring, completion ring, and the slots that go round between them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use xsk_rs::socket::Fd;
use xsk_rs::{CompQueue, FrameDesc, TxQueue, Umem};

use crate::{BATCH, CHUNK, CHUNK_ROOM, CONTINUED};

/// Takes frames to send, written in place, and takes their chunks back once they are sent.
///
/// Invariant: the chunks from `base` on belong to this half, in slots of `chunks` each. A slot is
/// *free* (in `free`, ours to write, nothing of it outstanding) or *in flight* (`outstanding` of
/// its chunks are queued, in the TX ring, or in the completion ring). Of a socket that is closed
/// all slots are free: what is sent is written into `scratch`, and dropped.
#[derive(Debug)]
pub struct Sender {
    /// `None`: the socket is closed.
    rings: Option<Rings>,
    /// First chunk of this half.
    base: usize,
    /// Chunks a slot.
    chunks: usize,
    /// Descriptors of all chunks, slot by slot.
    descs: Box<[FrameDesc]>,
    /// Free slots; the one used last, and still in cache, comes first.
    free: Vec<u32>,
    outstanding: Box<[u8]>,
    in_flight: usize,
    /// Written, but not yet in the TX ring.
    queued: Vec<FrameDesc>,
    completed: Box<[FrameDesc; BATCH]>,
    /// A frame of several descriptors is written here, then cut; as long as a frame may be.
    scratch: Box<[u8]>,
    frame_max: usize,
    ring_len: u32,
    need_wakeup: bool,
    counts: TxCounts,
}

#[derive(Debug)]
struct Rings {
    tx: TxQueue,
    completion: CompQueue,
    umem: Umem,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TxCounts {
    pub frames: u64,
    pub bytes: u64,
    pub completions: u64,
    pub discarded: u64,
    pub kicks: u64,
    pub kicks_refused: u64,
}

/// What a [`Sender`] is made of.
pub(crate) struct Parts {
    pub tx: TxQueue,
    pub completion: CompQueue,
    pub umem: Umem,
    /// Chunks for sending, which follow each other in the UMEM.
    pub descs: Box<[FrameDesc]>,
    pub chunks: usize,
    pub frame_max: usize,
    pub ring_len: u32,
    pub need_wakeup: bool,
}

impl Sender {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { tx, completion, umem, descs, chunks, frame_max, ring_len, need_wakeup } = parts;
        assert!(descs.len() <= ring_len as usize, "the TX ring holds all chunks for sending");
        let slots = descs.len() / chunks;
        Self {
            rings: Some(Rings { tx, completion, umem }),
            base: descs[0].addr() / CHUNK,
            chunks,
            queued: Vec::with_capacity(descs.len()),
            descs,
            free: (0..slots as u32).rev().collect(),
            outstanding: vec![0; slots].into(),
            in_flight: 0,
            completed: Box::new([FrameDesc::default(); BATCH]),
            scratch: vec![0; frame_max].into(),
            frame_max,
            ring_len,
            need_wakeup,
            counts: TxCounts::default(),
        }
    }

    /// Frames that can be queued now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Frames that are queued, or whose completion has not come back.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Descriptors completed since the socket was opened.
    pub fn completions(&self) -> u64 {
        self.counts.completions
    }

    /// Queues one frame of `len` bytes, written by `fill`. It leaves with the next
    /// [`Sender::flush`].
    ///
    /// # Panics
    /// When [`Sender::room`] is 0, or `len` is 0 or more than the MTU and the L2 headers.
    pub fn transmit<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(len > 0 && len <= self.frame_max, "{len} bytes are not a frame of this link");
        if self.rings.is_none() {
            self.counts.frames += 1;
            self.counts.bytes += len as u64;
            self.counts.discarded += 1;
            return fill(&mut self.scratch[..len]);
        }
        let slot = *self.free.last().expect("the caller has looked at `room`") as usize;
        let first = slot * self.chunks;
        let (result, n) = if len <= CHUNK_ROOM {
            (self.write(first, len, 0, fill), 1)
        } else {
            let mut scratch = std::mem::take(&mut self.scratch);
            let result = fill(&mut scratch[..len]);
            let n = len.div_ceil(CHUNK_ROOM);
            for (i, part) in scratch[..len].chunks(CHUNK_ROOM).enumerate() {
                let options = if i + 1 < n { CONTINUED } else { 0 };
                self.write(first + i, part.len(), options, |room| room.copy_from_slice(part));
            }
            self.scratch = scratch;
            (result, n)
        };
        self.queued.extend_from_slice(&self.descs[first..first + n]);
        self.free.pop();
        self.outstanding[slot] = n as u8;
        self.in_flight += 1;
        self.counts.frames += 1;
        self.counts.bytes += len as u64;
        result
    }

    /// Writes chunk `i`, of the free slot that is being filled.
    fn write<R>(
        &mut self,
        i: usize,
        len: usize,
        options: u32,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let rings = self.rings.as_mut().expect("frames are written while it is open");
        let desc = &mut self.descs[i];
        desc.set_options(options);
        // SAFETY: by the invariant the chunk is ours (its slot is free) and `descs` is of this
        // UMEM; `&mut self` keeps others away while it is written.
        let mut data = unsafe { rings.umem.data_mut(desc) };
        data.cursor().set_pos(len);
        fill(&mut data.contents_mut()[..len]) // the length is checked here
    }

    /// Takes back what has been sent.
    pub(crate) fn reap(&mut self) {
        loop {
            let Some(rings) = &mut self.rings else { return };
            // SAFETY: the queue and `completed` belong to the same UMEM.
            let n = unsafe { rings.completion.consume(&mut self.completed[..]) };
            for i in 0..n {
                self.take_back(self.completed[i].addr());
            }
            self.counts.completions += n as u64;
            if n < BATCH {
                break; // the ring is bounded, and so is this loop
            }
        }
        self.assert_conserved();
    }

    /// A chunk is no longer outstanding.
    fn take_back(&mut self, addr: usize) {
        let chunk = (addr / CHUNK).checked_sub(self.base);
        let slot = chunk.expect("completed a receive chunk") / self.chunks;
        let outstanding = &mut self.outstanding[slot];
        *outstanding = outstanding.checked_sub(1).expect("completed what was not sent");
        if *outstanding == 0 {
            self.free.push(slot as u32);
            self.in_flight -= 1;
        }
    }

    fn assert_conserved(&self) {
        assert_eq!(self.free.len() + self.in_flight, self.outstanding.len(), "a slot is lost");
    }

    /// Drops what is queued and not yet in the TX ring: its slots are free again. What is in the
    /// ring stays there, and leaves when the interface is up.
    pub fn discard(&mut self) {
        let free = self.free.len();
        for i in 0..self.queued.len() {
            self.take_back(self.queued[i].addr());
        }
        self.queued.clear();
        self.counts.discarded += (self.free.len() - free) as u64;
        self.assert_conserved();
    }

    /// Closes this half: frames in flight are lost, and their slots free.
    pub(crate) fn close(&mut self) {
        self.discard();
        self.rings = None; // nobody reads or writes these chunks any more
        for (slot, outstanding) in self.outstanding.iter_mut().enumerate() {
            if std::mem::take(outstanding) > 0 {
                self.free.push(slot as u32);
                self.in_flight -= 1;
                self.counts.discarded += 1;
            }
        }
        self.assert_conserved();
    }

    /// Hands queued frames to the kernel, with at most one wakeup. Returns whether it took all of
    /// them; if not, flush again soon.
    ///
    /// # Errors
    /// `ENETDOWN`: the interface is down, and what is in the TX ring waits there. `ENXIO`: it is
    /// gone (see [`Socket::is_unbound`](crate::Socket::is_unbound)), and the socket of no more use
    /// ([`Socket::close`](crate::Socket::close)). Others as `sendto` reports them.
    pub fn flush(&mut self) -> io::Result<bool> {
        let Some(rings) = &mut self.rings else { return Ok(true) };
        let ring_len = self.ring_len;
        let is_taken = |tx: &mut TxQueue| tx.nb_free_exact() == ring_len;
        if !self.queued.is_empty() {
            // SAFETY: by the invariant these chunks are in flight: nobody writes them until they
            // come back on the completion ring.
            let n = unsafe { rings.tx.produce(&self.queued) };
            // All or nothing; nothing if a driver completes before it shows what it took.
            if n > 0 {
                self.queued.clear();
            }
        } else if self.in_flight == 0 {
            return Ok(true);
        }
        if self.queued.is_empty() && is_taken(&mut rings.tx) {
            return Ok(true);
        }
        if self.need_wakeup && !rings.tx.needs_wakeup() {
            return Ok(self.queued.is_empty()); // the driver is at it
        }
        kick(&mut self.counts, &rings.tx)?;
        Ok(self.queued.is_empty() && is_taken(&mut rings.tx))
    }

    /// One wakeup, which tells also where nothing is to be sent whether the interface is there:
    /// neither `poll` nor the rings do.
    ///
    /// # Errors
    /// As [`Sender::flush`].
    pub fn kick(&mut self) -> io::Result<()> {
        self.rings.as_ref().map_or(Ok(()), |rings| kick(&mut self.counts, &rings.tx))
    }

    /// The socket, while it is open.
    pub(crate) fn fd(&self) -> Option<&Fd> {
        self.rings.as_ref().map(|rings| rings.tx.fd())
    }

    pub(crate) fn counts(&self) -> &TxCounts {
        &self.counts
    }

    /// Whether each slot is in exactly one place.
    pub(crate) fn is_whole(&self) -> bool {
        let mut free = vec![false; self.outstanding.len()];
        for &slot in &self.free {
            if std::mem::replace(&mut free[slot as usize], true) {
                return false;
            }
        }
        let in_flight = self.outstanding.iter().filter(|&&n| n > 0).count();
        let apart = free.iter().zip(&self.outstanding).all(|(&free, &n)| free == (n == 0));
        apart && in_flight == self.in_flight
    }
}

/// One wakeup. Back-pressure is no error: it goes away by itself.
fn kick(counts: &mut TxCounts, tx: &TxQueue) -> io::Result<()> {
    counts.kicks += 1;
    let fd = tx.fd().as_raw_fd();
    // SAFETY: no pointer is passed: the frames are in the TX ring.
    let ret = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if ret >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => {
            counts.kicks_refused += 1;
            Ok(())
        }
        _ => Err(error),
    }
}
