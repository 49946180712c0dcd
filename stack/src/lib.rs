//! The network stack under moorline: lanes, TCP and timers, with no word of NVMe.
//!
//! Two seams live here. [`Link`] is L2: frames in bursts. [`Transport`] is L4: byte streams with a
//! receive window to parse in place. Between them stands our own TCP, `smoltcp` driven by a clock,
//! deadlines and budgets that are ours. Nothing here blocks but [`Transport::wait`].
#![forbid(unsafe_code)]

pub mod buckets;
pub mod deadlines;
pub mod echo;
pub mod eth;
pub mod icmp;
pub mod kernel;
pub mod lane;
pub mod limiter;
pub mod link;
pub mod neighbour;
pub mod pipe;
pub mod rng;
pub mod route;
pub mod segment;
pub mod tcp;
pub mod time;
pub mod transport;

/// I/O memory.
pub mod mem {
    pub use moorline_xsk::arena::{Arena, IoBuf, map_large_allocations};
}

pub use link::{Link, LinkTx};
pub use time::Instant;
pub use transport::{ConnId, Event, Transport};
