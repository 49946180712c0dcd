//! The L2 seam: whole Ethernet frames, in bursts.
//!
//! A frame handed out by [`Link::receive`] is linear and lives until its callback returns; a frame
//! to send is written in place. Both halves can be used at once, since a received segment is often
//! answered before its frame is let go. Links never block: only [`Link::wait`] sleeps.

pub mod fault;
mod netns;
mod presence;
pub mod sim;
pub mod xdp;

use std::io;
use std::os::fd::BorrowedFd;

use crate::Instant;

/// The sending half of a link.
pub trait LinkTx {
    /// Frames that can be sent before the link is full. Each [`LinkTx::transmit`] uses one.
    fn room(&self) -> usize;

    /// Queues one frame of `len` bytes (Ethernet header included), written by `fill`, which must
    /// fill all of it. The frame leaves at the next [`Link::flush`], or earlier.
    ///
    /// # Panics
    /// When [`LinkTx::room`] is 0, or `len` is more than the MTU and the L2 headers together.
    fn transmit<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// A device that moves Ethernet frames: AF_XDP, simulated, or a wrapper around another.
pub trait Link {
    /// The sending half, usable while a received frame is looked at.
    type Tx: LinkTx;

    /// The largest IP packet, in bytes (L2 headers not counted).
    fn mtu(&self) -> usize;

    /// The longest frame, in bytes, that the link needs not copy: it puts a longer one together
    /// from several descriptors, or cuts it into them.
    fn linear_frame_max(&self) -> usize {
        usize::MAX
    }

    /// Our hardware address.
    fn mac(&self) -> [u8; 6];

    /// Opens a turn: takes back sent frames, refills receive frames, gives at most `budget`
    /// received frames to `each`, in order. Returns how many. `budget` reached means that more may
    /// wait.
    fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        each: &mut impl FnMut(&[u8], &mut Self::Tx),
    ) -> usize;

    /// The sending half.
    fn tx(&mut self) -> &mut Self::Tx;

    /// Closes a turn: hands queued frames to the device, with one wakeup.
    ///
    /// A device that is down, gone or stuck is no error: frames are dropped until it is back
    /// ([`Link::poll_event`]).
    ///
    /// # Errors
    /// When the link cannot be used, for good.
    fn flush(&mut self, now: Instant) -> io::Result<()>;

    /// When the link itself wants the next turn (a simulated delivery, a wakeup to repeat, the
    /// completion watchdog), if nothing arrives before.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Sleeps until a frame arrives, one of `also` becomes readable, or `until` is reached
    /// (`None`: no limit). Virtual links return at once.
    ///
    /// # Errors
    /// Of the wait itself; a signal ends the wait without an error.
    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()>;

    /// What became of the device since this was asked last: its last change, if any. Links without
    /// a device that can go have nothing to tell.
    fn poll_event(&mut self) -> Option<LinkEvent> {
        None
    }

    /// Counters since the link was opened.
    fn stats(&self) -> LinkStats;
}

/// A change of the device under a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is down or gone: nothing is received, and what is sent is dropped.
    Down,
    /// It is up again. [`Link::mac`] may be another, and the neighbours have heard nothing of us
    /// meanwhile, nor we of them.
    Up,
}

/// What a link has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received, L2 headers included.
    pub rx_bytes: u64,
    /// Frames that the device dropped for want of a receive frame or ring entry.
    pub rx_dropped: u64,
    /// Bytes copied to make a frame of several descriptors linear.
    pub rx_linearised_bytes: u64,
    /// Frames queued for sending.
    pub tx_frames: u64,
    /// Bytes queued for sending, L2 headers included.
    pub tx_bytes: u64,
    /// System calls made.
    pub syscalls: u64,
}
