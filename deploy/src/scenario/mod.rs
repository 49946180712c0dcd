//! Scenarios: small files that say who is there, what happens to them when, and what must hold;
//! and the runner that does it with real processes in a rig of its own.

mod asked;
mod ends;
mod file;
pub mod host;
mod outcome;
mod process;
mod run;
mod scratch;
mod svg;

use std::time::Duration;

pub use file::{Fault, Loses, Scenario, Step};
pub use run::{Options, run};

/// How often the host tells how its load went.
pub const TICK: Duration = Duration::from_millis(250);
