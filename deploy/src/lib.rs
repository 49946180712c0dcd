//! The moorline program, as a library so that its parts can be tested.
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod exit;
pub mod faults;
pub mod identity;
pub mod out;
pub mod perf;
pub mod scenario;
pub mod serve;
pub mod session;
pub mod signals;
pub mod stackup;
