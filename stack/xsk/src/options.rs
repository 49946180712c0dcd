//! What a socket is asked for, and what it got.

use std::time::Duration;

use crate::{CHUNK_ROOM, Error, FRAME_CHUNKS_MAX, L2_HEADERS, SINGLE_CHUNK_MTU_MAX};

/// Whether the kernel copies frames between the UMEM and the driver's own buffers. What came of it
/// is in [`Report::zero_copy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copying {
    /// Only where the driver cannot do without.
    #[default]
    Auto,
    /// Always.
    Copy,
    /// Never: opening fails where the driver has no zero copy.
    ZeroCopy,
}

/// What a socket is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queue of the interface. Frames of other queues do not arrive here.
    pub queue: u32,
    /// The interface's MTU, bytes.
    pub mtu: usize,
    /// Receive chunks posted to the kernel. TCP windows must fit into them; small enough to stay
    /// in cache.
    pub rx_frames: u32,
    /// Frames that can be on their way out at once.
    pub tx_frames: u32,
    /// Whether the kernel copies frames.
    pub copy: Copying,
    /// Bind with `XDP_USE_NEED_WAKEUP`.
    pub need_wakeup: bool,
    /// Back the UMEM with huge pages where enough are free.
    pub huge_pages: bool,
    /// Busy polling (`SO_PREFER_BUSY_POLL`) for so many microseconds. Does nothing on veth.
    pub busy_poll_us: Option<u32>,
    /// How long to retry a bind that finds the queue busy: the socket of a process that has just
    /// died is released late.
    pub bind_deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue: 0,
            mtu: 1500,
            rx_frames: 512,
            tx_frames: 512,
            copy: Copying::Auto,
            need_wakeup: true,
            huge_pages: true,
            busy_poll_us: None,
            bind_deadline: Duration::from_secs(2),
        }
    }
}

impl Options {
    /// The largest frame, bytes.
    pub(crate) fn frame_max(&self) -> usize {
        self.mtu + L2_HEADERS
    }

    /// Chunks that the largest frame needs.
    pub(crate) fn frame_chunks(&self) -> usize {
        self.frame_max().div_ceil(CHUNK_ROOM)
    }

    /// Whether frames may span several descriptors.
    pub(crate) fn multi_buffer(&self) -> bool {
        self.mtu > SINGLE_CHUNK_MTU_MAX
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Options(message));
        if self.frame_chunks() > FRAME_CHUNKS_MAX || self.mtu == 0 {
            let max = FRAME_CHUNKS_MAX * CHUNK_ROOM - L2_HEADERS;
            return fail(format!(
                "MTU {}: AF_XDP can send 1 to {max} bytes, L2 headers not counted",
                self.mtu
            ));
        }
        for (what, n) in [("rx_frames", self.rx_frames), ("tx_frames", self.tx_frames)] {
            if !(64..=16384).contains(&n) || !n.is_power_of_two() {
                return fail(format!("{what} = {n}: use a power of two from 64 to 16384"));
            }
        }
        Ok(())
    }
}

/// What a socket got, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Frames are moved without a copy in the kernel (`XDP_OPTIONS` read back).
    pub zero_copy: bool,
    /// The UMEM is on huge pages.
    pub huge_pages: bool,
    /// Frames may span several descriptors.
    pub multi_buffer: bool,
    /// Descriptors that one wakeup sends (`XDP_MAX_TX_SKB_BUDGET`); 32 where it cannot be set.
    pub tx_budget: u32,
    /// Socket send buffer, bytes, as the kernel counts it.
    pub send_buffer: usize,
    /// Busy polling is on.
    pub busy_poll: bool,
    /// Times that the queue was found busy.
    pub bind_retries: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mtu(mtu: usize) -> Options {
        Options { mtu, ..Options::default() }
    }

    #[test]
    fn a_frame_gets_the_chunks_that_it_needs() {
        let chunks = [(68, 1), (1500, 1), (3506, 1), (3822, 1), (3823, 2), (9000, 3), (65_000, 17)];
        for (mtu, chunks) in chunks {
            assert_eq!(with_mtu(mtu).frame_chunks(), chunks, "MTU {mtu}");
            assert!(with_mtu(mtu).check().is_ok());
        }
    }

    #[test]
    fn several_descriptors_are_asked_for_from_the_mtu_that_needs_them() {
        assert!(!with_mtu(SINGLE_CHUNK_MTU_MAX).multi_buffer());
        assert!(with_mtu(SINGLE_CHUNK_MTU_MAX + 1).multi_buffer());
    }

    #[test]
    fn options_that_cannot_be_are_refused_in_words() {
        for (options, word) in [
            (with_mtu(0), "MTU 0"),
            (with_mtu(65_535), "65262"),
            (Options { rx_frames: 100, ..Options::default() }, "rx_frames = 100"),
            (Options { tx_frames: 32, ..Options::default() }, "tx_frames = 32"),
        ] {
            let error = options.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
