//! The target: subsystems served to hosts over a [`moorline_stack::Transport`].
//!
//! The machines are pure; [`Target`] drives them. What always holds: a command is completed
//! exactly once, or its connection is gone; nothing that a peer sends can panic, grow memory, or
//! stall another peer; every wait for a peer has a deadline.

mod admin;
mod config;
mod conn;
mod controller;
mod core;
mod discovery;
mod drain;
mod driver;
mod exec;
mod fabrics;
mod faults;
mod identify;
mod io;
mod log;
mod pool;
mod report;
mod subsystem;
mod transfer;

pub use config::TargetConfig;
pub use driver::Target;
pub use faults::{Fault, FaultScope, Hold};
pub use report::ControllerReport;
pub use subsystem::{NSID_MAX, Subsystem};

/// What a target has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetStats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused: too many of their peer's, or in all.
    pub refused: u64,
    /// Connections open now.
    pub conns: u64,
    /// Controllers now, discovery controllers among them.
    pub controllers: u64,
    /// Read commands completed.
    pub reads: u64,
    /// Write commands completed.
    pub writes: u64,
    /// Other I/O commands completed.
    pub other_ios: u64,
    /// Admin and Fabrics commands completed.
    pub admin: u64,
    /// I/O commands completed with a status other than success.
    pub errors: u64,
    /// Bytes read by hosts.
    pub read_bytes: u64,
    /// Bytes written by hosts.
    pub written_bytes: u64,
    /// Connections ended for a violation of the protocol (C2HTermReq sent).
    pub fatal: u64,
    /// Data digests that were wrong.
    pub digest_errors: u64,
    /// Connections ended because a deadline passed (ICReq, Connect, stall).
    pub timeouts: u64,
    /// Associations ended because keep alives stopped.
    pub keep_alive_expired: u64,
    /// Commands that had to wait for a buffer.
    pub buffer_waits: u64,
    /// Writes that devices have now, of associations that are over. Their hosts wait for them to
    /// connect again.
    pub stale_writes: u64,
    /// Connects that had to wait for such writes.
    pub connects_held: u64,
}

#[cfg(test)]
mod drain_tests;
#[cfg(test)]
mod faults_tests;
#[cfg(test)]
mod raw;
#[cfg(test)]
mod tests;
