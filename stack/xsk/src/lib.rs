//! AF_XDP rings and frames, and huge-page memory: the unsafe fence under the stack.
//!
//! A [`Socket`] is bound to one queue of one interface and owns its UMEM, cut into chunks of
//! [`CHUNK`] bytes. The first chunks are for receiving, the rest for sending, and a chunk is always
//! in exactly one place: with the kernel, or with the half (receiving or [`Sender`]) that owns it.
//! What the kernel hands back is checked against that record, in release builds too, before a byte
//! of it is looked at.
//!
//! No allocation after [`Socket::open`], and one system call a flush.

pub mod arena;

mod error;
mod huge;
mod options;
mod rx;
mod socket;
mod sockopt;
mod tx;

pub use error::Error;
pub use options::{Copying, Options, Report};
pub use socket::{RingStats, Socket};
pub use tx::Sender;

/// Bytes of a UMEM chunk: the most that the kernel takes.
pub const CHUNK: usize = 4096;

/// Bytes of a frame that fit one chunk, after the headroom that XDP reserves.
pub const CHUNK_ROOM: usize = CHUNK - 256;

/// Bytes of L2 headers beside the MTU: Ethernet and one 802.1Q tag.
pub const L2_HEADERS: usize = 14 + 4;

/// The largest MTU whose frames the kernel receives into one chunk: what a socket buffer needs at
/// the chunk's end is lost too.
pub const SINGLE_CHUNK_MTU_MAX: usize = 3506;

/// Chunks that one frame may span: what a socket buffer can hold in its head and fragments.
pub const FRAME_CHUNKS_MAX: usize = 17;

/// Descriptors moved between a ring and user space at once.
const BATCH: usize = 64;

/// `XDP_PKT_CONTD`: the frame goes on in the next descriptor.
const CONTINUED: u32 = 1;
