//! Proof by simulation: hosts, targets, disks and a network in one thread, one virtual clock, one
//! seed. The same code as the daemon runs; only the drivers and the clock are others.
//!
//! What always holds: a run follows from its seed and level alone, so that a failure is replayed by
//! its number; what is checked is checked outside of the code under test.

#![forbid(unsafe_code)]

mod ctx;
pub mod disk;
mod host;
pub mod net;
pub mod plan;
pub mod shadow;
mod target;
pub mod trace;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use net::Bytes;
use world::World;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What joins the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Byte streams.
    Bytes,
}

impl Level {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of its trace.
    pub hash: u64,
    /// Events in it.
    pub events: u64,
    /// Virtual time.
    pub simulated: Duration,
    /// I/Os that ended well, and those that failed.
    pub ios: u64,
    /// See `ios`.
    pub failed: u64,
    /// Faults, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was found wrong; the first ends a run.
    pub violations: Vec<String>,
}

/// Runs a seed; `print`: its trace goes to standard error. A panic is a violation.
pub fn run(seed: u64, level: Level, print: bool) -> Outcome {
    match level {
        Level::Bytes => of_world(World::<Bytes>::new(seed, print)),
    }
}

fn of_world<N: net::Net>(mut world: World<N>) -> Outcome {
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        let text = text.unwrap_or_default();
        world.ctx.violates(format_args!("panic: {text}"));
    }
    Outcome {
        hash: world.ctx.trace.hash(),
        events: world.ctx.trace.events(),
        simulated: world.simulated(),
        ios: world.ctx.ios,
        failed: world.ctx.failed,
        faults: world.faults(),
        violations: world.ctx.violations.clone(),
    }
}
