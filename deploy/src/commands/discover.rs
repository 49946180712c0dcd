//! `moorline discover`: the discovery log page of a discovery controller.

use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::{HostArgs, LaneArgs};
use crate::exit::Exit;

/// Options of `discover`.
#[derive(Args, Clone, Debug)]
pub struct DiscoverArgs {
    /// The discovery controller's address.
    #[arg(short = 'a', long, value_name = "IP")]
    pub traddr: IpAddr,
    /// Its TCP port.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 8009)]
    pub trsvcid: u16,
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

/// Runs `discover`.
///
/// # Errors
/// When the environment does not allow it; the message says what to do.
pub fn run(_args: DiscoverArgs) -> Result<Exit> {
    bail!("discover is not part of this build yet")
}
