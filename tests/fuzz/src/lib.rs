//! What is fuzzed: each target is a function from bytes to nothing that panics when something that
//! must hold does not. `cargo fuzz` drives them (`fuzz_targets`), and so does an ordinary test,
//! with the corpus and with seeded mutations of it (`tests/replay.rs`).
//!
//! The same bytes give the same run: time is virtual, and every seed is fixed or in the bytes.
#![forbid(unsafe_code)]

mod decode;
mod files;
mod frame;
mod input;
mod middle;
mod page;
mod peer;

pub use decode::{decoder, ic};
pub use files::{config, scenario};
pub use frame::frames;
pub use middle::host;
pub use page::pages;
pub use peer::target;

/// A target's name, which is its corpus's too, and what it does with an input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [FuzzTarget; 8] = [
    ("decoder", decoder),
    ("ic", ic),
    ("pages", pages),
    ("target", target),
    ("host", host),
    ("frames", frames),
    ("config", config),
    ("scenario", scenario),
];
