//! `moorline identify`: a subsystem's controller and namespaces, as they describe themselves.

use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::{DEFAULT_NQN, HostArgs, LaneArgs};
use crate::exit::Exit;

/// Options of `identify`.
#[derive(Args, Clone, Debug)]
pub struct IdentifyArgs {
    /// The target's address.
    #[arg(short = 'a', long, value_name = "IP")]
    pub traddr: IpAddr,
    /// Its TCP port.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 4420)]
    pub trsvcid: u16,
    /// The subsystem's NQN.
    #[arg(short = 'n', long, value_name = "NQN", default_value = DEFAULT_NQN)]
    pub nqn: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Who we are.
    #[command(flatten)]
    pub host: HostArgs,
    /// Our end of the network.
    #[command(flatten)]
    pub lane: LaneArgs,
}

/// Runs `identify`.
///
/// # Errors
/// When the environment does not allow it; the message says what to do.
pub fn run(_args: IdentifyArgs) -> Result<Exit> {
    bail!("identify is not part of this build yet")
}
