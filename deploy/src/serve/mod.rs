//! `moorline serve`: holds the controllers that a file names, whatever their targets do.

pub mod config;
pub mod proto;
pub mod server;
