//! `moorline doctor`: looks at the machine and at an interface, and says how to mend what is
//! wrong. It changes nothing.

mod device;
mod machine;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::cli::Cidr;
use crate::exit::Exit;
use crate::out;
use crate::perf::report::{SCHEMA, VERSION};

/// Options of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Network interface to look at.
    #[arg(long, value_name = "IFNAME")]
    dev: Option<String>,
    /// Address meant for our own stack, to look whether it is free; repeatable.
    #[arg(long, value_name = "IP/PREFIX")]
    addr: Vec<Cidr>,
    /// Network namespace of the interface.
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// The other end of a veth pair [default: found by itself].
    #[arg(long, value_name = "IFNAME", requires = "peer_netns")]
    peer: Option<String>,
    /// Network namespace of the other end.
    #[arg(long, value_name = "NAME", requires = "peer")]
    peer_netns: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// It works, slower or with limits.
    Warn,
    /// AF_XDP will not work.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    result: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, result: Level::Ok, found: found.into(), mend: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, result: Level::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, result: Level::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    version: &'static str,
    conditions: Conditions<'a>,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Conditions<'a> {
    kernel: String,
    cpus: usize,
    dev: Option<&'a str>,
    netns: Option<&'a str>,
}

/// Runs `doctor`.
///
/// # Errors
/// When there is no such namespace or interface.
pub fn run(args: DoctorArgs) -> Result<Exit> {
    let mut checks = machine::checks();
    if let Some(dev) = &args.dev {
        let peer = args.peer.as_deref().zip(args.peer_netns.as_deref());
        checks.extend(device::checks(args.netns.as_deref(), dev, peer)?);
    }
    for cidr in &args.addr {
        checks.push(device::address(args.netns.as_deref(), cidr.addr)?);
    }
    let failed = checks.iter().any(|check| check.result == Level::Fail);
    if args.json {
        let report = Report {
            schema: SCHEMA,
            version: VERSION,
            conditions: Conditions {
                kernel: crate::perf::measure::kernel(),
                cpus: crate::perf::measure::cpus(),
                dev: args.dev.as_deref(),
                netns: args.netns.as_deref(),
            },
            checks,
        };
        out::line(format_args!("{}", serde_json::to_string_pretty(&report)?))?;
    } else {
        print(&checks)?;
        if args.dev.is_none() {
            out::line(format_args!("\nWith --dev IFNAME it looks at a network interface too."))?;
        }
    }
    Ok(if failed { Exit::FellShort } else { Exit::Ok })
}

fn print(checks: &[Check]) -> Result<()> {
    for check in checks {
        let level = match check.result {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        out::line(format_args!("{level}  {:14} {}", check.name, check.found))?;
        if let Some(mend) = &check.mend {
            out::line(format_args!("      {:14} -> {mend}", ""))?;
        }
    }
    Ok(())
}
