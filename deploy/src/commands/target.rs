//! `moorline target`: serves back ends as namespaces of one subsystem, until it is told to end.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::{DEFAULT_NQN, LaneArgs};
use crate::exit::Exit;
use crate::perf::workload::Bytes;

/// Options of `target`.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// A namespace's back end: ram:SIZE, null:SIZE or file:PATH[:SIZE] (created with SIZE if it
    /// is missing). Repeat it for more namespaces; the first is namespace 1.
    #[arg(long, value_name = "KIND", required = true)]
    pub backend: Vec<Backend>,
    /// The subsystem's NQN.
    #[arg(short = 'n', long, value_name = "NQN", default_value = DEFAULT_NQN)]
    pub nqn: String,
    /// Where to listen, ADDR or ADDR:PORT; repeatable [default: our addresses, ports 4420 and,
    /// for discovery, 8009].
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub listen: Vec<Listen>,
    /// Block size of all namespaces.
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = ["512", "4096"])]
    pub block_size: String,
    /// Admit only this host NQN; repeatable [default: all].
    #[arg(long, value_name = "HOSTNQN")]
    pub allow: Vec<String>,
    /// Say what happens as JSON, one object a line.
    #[arg(long)]
    pub json: bool,
    /// End when standard input does: for a parent that may be killed.
    #[arg(long, hide = true)]
    pub until_stdin_ends: bool,
    /// Our end of the network.
    #[command(flatten)]
    pub lane: LaneArgs,
}

/// A namespace's back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Memory, in bytes.
    Ram(u64),
    /// Reads give zeroes, writes go nowhere; size in bytes.
    Null(u64),
    /// A file or block device, with the size to create a missing file with.
    File(PathBuf, Option<u64>),
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write ram:SIZE, null:SIZE or file:PATH[:SIZE]");
        let size = |s: &str| s.parse::<Bytes>().map(|b| b.0).map_err(|e| e.to_string());
        let (kind, rest) = text.split_once(':').ok_or_else(usage)?;
        match kind {
            _ if rest.is_empty() => Err(usage()),
            "ram" => Ok(Self::Ram(size(rest)?)),
            "null" => Ok(Self::Null(size(rest)?)),
            "file" => Ok(match rest.rsplit_once(':') {
                // A path may hold colons: only what reads as a size is one.
                Some((path, s)) if size(s).is_ok() => Self::File(path.into(), size(s).ok()),
                _ => Self::File(rest.into(), None),
            }),
            _ => Err(usage()),
        }
    }
}

/// An address to listen on, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub addr: IpAddr,
    /// The port; `None`: 4420.
    pub port: Option<u16>,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Self { addr: addr.ip(), port: Some(addr.port()) });
        }
        match text.parse() {
            Ok(addr) => Ok(Self { addr, port: None }),
            Err(_) => Err(format!("{text:?}: write 10.0.0.5, 10.0.0.5:4420 or [fd00::5]:4420")),
        }
    }
}

/// Runs `target`.
///
/// # Errors
/// When the environment does not allow it; the message says what to do.
pub fn run(_args: TargetArgs) -> Result<Exit> {
    bail!("target is not part of this build yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_ends_are_named_by_kind() {
        assert_eq!("ram:1G".parse(), Ok(Backend::Ram(1 << 30)));
        assert_eq!("null:4k".parse(), Ok(Backend::Null(4096)));
        assert_eq!("file:/a/b".parse(), Ok(Backend::File("/a/b".into(), None)));
        assert_eq!("file:/a:b:1m".parse(), Ok(Backend::File("/a:b".into(), Some(1 << 20))));
        assert_eq!("file:/a:b".parse(), Ok(Backend::File("/a:b".into(), None)));
        for bad in ["ram", "ram:", "ram:x", "disk:/dev/sda", ""] {
            assert!(bad.parse::<Backend>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_listener_may_leave_out_its_port() {
        let parsed: Listen = "[fd00::5]:8009".parse().unwrap();
        assert_eq!(parsed.port, Some(8009));
        assert_eq!("10.0.0.5".parse::<Listen>().unwrap().port, None);
        assert!("here:4420".parse::<Listen>().is_err());
    }
}
