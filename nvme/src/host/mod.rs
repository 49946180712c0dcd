//! The host (initiator): controllers, their qpairs, and one driver for all of them.
//!
//! The machines are pure; [`Host`] drives them over a [`moorline_stack::Transport`]. What always
//! holds: every accepted I/O and admin command completes exactly once, every wait has a deadline,
//! and no controller waits for another.

mod abort;
#[cfg(test)]
mod abort_tests;
mod bringup;
mod caller;
mod config;
mod controller;
mod dial;
mod driver;
mod emission;
mod events;
mod failure;
#[cfg(test)]
mod fake;
mod history;
mod ic;
mod info;
mod io;
mod keep_alive;
mod life;
mod lint;
mod probe;
mod qpair;
mod reach;
mod reconnect;
#[cfg(test)]
mod reconnect_tests;
mod reissue;
mod requeue;
#[cfg(test)]
mod requeue_tests;
mod set;
#[cfg(test)]
mod set_tests;
mod standby;
#[cfg(test)]
mod standby_tests;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod work;

pub use config::{
    CtrlConfig, HostIdentity, HostLimits, Probe, Quiesce, Reconnect, Requeue, Timeouts,
};
pub use driver::Host;
pub use failure::{Cause, Failure, Stage};
pub use history::{Errors, Kind, Transition};
pub use info::{Info, NamespaceInfo};
pub use io::{AdminCommand, AdminDone, CtrlId, HostEvent, Io, IoDone, IoOp};
pub use lint::{LintError, Named};
pub use reach::Reach;
pub use set::{Applied, When};
pub use status::{CtrlState, CtrlStatus, Figures};
