//! The subcommands, one file each: options, and `run`.

pub mod ctl;
pub mod discover;
pub mod doctor;
pub mod floor;
pub mod identify;
pub mod perf;
pub mod rig;

pub mod target;
