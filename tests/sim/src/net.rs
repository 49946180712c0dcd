//! What joins the nodes of a world: byte streams that are cut anywhere, stall, are reset and go
//! dark.

use std::net::SocketAddr;

use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::{Instant, Transport};

use crate::plan::Plan;

/// The network of a level: it gives each node its transport.
pub trait Net {
    /// What nodes use.
    type T: Transport;

    /// The network of a plan.
    fn new(seed: u64, plan: &Plan) -> Self;

    /// The transport of a node; hosts come first.
    fn attach(&mut self, now: Instant, node: usize) -> Self::T;

    /// The node at this address is cut off, or no longer.
    fn dark(&mut self, transport: &mut Self::T, addr: SocketAddr, is_dark: bool);

    /// Nothing goes wrong by itself from now on.
    fn heal(&mut self, transport: &mut Self::T);
}

/// The `bytes` level.
#[derive(Debug)]
pub struct Bytes {
    ends: [Option<Pipe>; 2],
}

impl Net for Bytes {
    type T = Pipe;

    fn new(seed: u64, plan: &Plan) -> Self {
        let (a, b) = Pipe::pair(seed, plan.pipe.clone());
        Self { ends: [Some(a), Some(b)] }
    }

    fn attach(&mut self, _now: Instant, node: usize) -> Pipe {
        self.ends[node].take().expect("each node is attached once")
    }

    fn dark(&mut self, transport: &mut Pipe, addr: SocketAddr, is_dark: bool) {
        let mut options = transport.options_mut();
        options.dark.retain(|dark| *dark != addr);
        if is_dark {
            options.dark.push(addr);
        }
    }

    fn heal(&mut self, transport: &mut Pipe) {
        let mut options = transport.options_mut();
        let PipeOptions { reset, stall, dark, .. } = &mut *options;
        (*reset, *stall) = (0.0, 0.0);
        dark.clear();
    }
}
