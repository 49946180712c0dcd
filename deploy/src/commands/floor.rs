//! The far ends of the floors, for `perf --demo` to start in the target's namespace. Hidden: they
//! are of no use by themselves. They print one line when they are ready, and end with their
//! standard input, so that they do not outlive whoever started them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use clap::Args;
use moorline_stack::Link;
use moorline_stack::lane::{self, LaneOptions};

use crate::exit::Exit;
use crate::perf::{floor, plain};
use crate::signals::Stop;

/// Options of `floor-server`.
#[derive(Args, Clone, Debug)]
pub struct FloorServerArgs {
    /// Network interface.
    #[arg(long)]
    pub dev: String,
    /// Our address.
    #[arg(long)]
    pub addr: Ipv4Addr,
}

/// Options of `plain-server`.
#[derive(Args, Clone, Debug)]
pub struct PlainServerArgs {
    /// Where to listen.
    #[arg(long)]
    pub listen: SocketAddr,
}

/// What the ready line starts with; an address follows.
pub const READY: &str = "ready ";

/// Answers raw frames. The ready line has the interface's hardware address.
///
/// # Errors
/// When the lane cannot be opened.
pub fn floor_server(args: &FloorServerArgs) -> Result<Exit> {
    let mut link = lane::open(&LaneOptions::new(&args.dev, &[args.addr.into()]))?;
    ready(&mac_text(link.mac()))?;
    with_stdin(|stop| floor::Server::new(args.addr).serve(&mut link, stop))
}

/// Answers over plain kernel sockets. The ready line has the address listened on.
///
/// # Errors
/// When the address cannot be listened on.
pub fn plain_server(args: &PlainServerArgs) -> Result<Exit> {
    let tell = |addr: SocketAddr| {
        // Whoever waits for the line sees the end of it all instead.
        let _ = ready(&addr.to_string());
    };
    with_stdin(|stop| plain::serve(args.listen, stop, tell))
}

fn ready(what: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}{what}").and_then(|()| out.flush()).context("telling that we are ready")
}

/// Runs `serve` until standard input ends. Signals end the process as usual: nothing here needs
/// an orderly end, for the kernel takes lanes and sockets back.
fn with_stdin(serve: impl FnOnce(&Stop) -> Result<()>) -> Result<Exit> {
    let stop = Stop::default();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ended.request();
    });
    serve(&stop)?;
    Ok(Exit::Ok)
}

/// A hardware address as text.
fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A hardware address from text.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_survive_being_text() {
        let mac = [2, 0, 0xab, 0, 0, 0xff];
        assert_eq!(parse_mac(&mac_text(mac)), Some(mac));
        assert_eq!(parse_mac("02:00"), None);
        assert_eq!(parse_mac("02:00:00:00:00:00:00"), None);
    }
}
