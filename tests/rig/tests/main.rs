//! The real program in real network namespaces: what a person types, and what must come of it.
//!
//! Each test has a rig of its own, removed whatever happens. Without the rights for one it skips
//! loudly, or fails where MOORLINE_REQUIRE_RIG is set.

// A test fails by panicking; what is not marked as one here only helps them.
#![allow(clippy::unwrap_used)]

mod announce;
mod commands;
mod faults;
mod io;
mod link;
mod reach;
mod scenarios;
mod serve;
mod support;
mod target;
mod trouble;
