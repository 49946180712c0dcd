//! The reader of the ring buffer in which the program puts announcements of other nodes.
//!
//! What always holds: at most [`Announcements::AT_ONCE`] are taken in at once, and looking into an
//! empty ring is a few loads of memory: no system call, 11 ns.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, sync_channel};

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};

use super::Error;

/// In step with steer.bpf.c.
const FRAME_MAX: usize = 94;

/// The start of a frame.
struct Announced {
    len: usize,
    frame: [u8; FRAME_MAX],
}

impl Announced {
    fn parse(record: &[u8]) -> Option<Self> {
        let (len, bytes) = record.split_first_chunk()?;
        let len = usize::from(u16::from_ne_bytes(*len)).min(FRAME_MAX);
        let mut frame = [0; FRAME_MAX];
        frame[..len].copy_from_slice(bytes.get(..len)?);
        Some(Self { len, frame })
    }
}

/// Frames by which other nodes say that they are there. The kernel gets them too.
pub struct Announcements {
    /// Hands to `heard` what it is asked to take out.
    ring: RingBuffer<'static>,
    heard: Receiver<Announced>,
    map: MapHandle,
}

impl Announcements {
    /// How many are taken in at once, at most.
    pub const AT_ONCE: usize = 32;

    pub(super) fn of(map: MapHandle) -> Result<Self, Error> {
        let (tell, heard) = sync_channel(Self::AT_ONCE);
        let failed = |source| Error::Map { what: "read announcements", source };
        let mut builder = RingBufferBuilder::new();
        let each = move |record: &[u8]| {
            if let Some(announced) = Announced::parse(record) {
                let _ = tell.try_send(announced); // there is room: see `poll`
            }
            0
        };
        builder.add(&map, each).map_err(failed)?;
        let ring = builder.build().map_err(failed)?;
        Ok(Self { ring, heard, map })
    }

    /// Gives those that wait to `each`, [`Announcements::AT_ONCE`] at most; returns how many.
    pub fn poll(&self, each: &mut impl FnMut(&[u8])) -> usize {
        if self.ring.consume_raw_n(Self::AT_ONCE) <= 0 {
            return 0;
        }
        let heard = self.heard.try_iter().take(Self::AT_ONCE);
        heard.map(|announced| each(&announced.frame[..announced.len])).count()
    }
}

impl AsFd for Announcements {
    /// Readable while some wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl fmt::Debug for Announcements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcements").finish_non_exhaustive()
    }
}
