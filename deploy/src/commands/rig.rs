//! `moorline rig`: a test network kept open for several commands.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use moorline_rig::{Owner, Rig, RigSpec};

use crate::exit::Exit;
use crate::out;
use crate::perf::report::TransportKind;
use crate::perf::workload::parse_duration;
use crate::scenario::{self, Scenario};

/// Options of `rig`.
#[derive(Args, Debug)]
pub struct RigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a rig, and leave it in place.
    Up {
        #[command(flatten)]
        name: NameArg,
        /// MTU of both ends; 3506 is the largest that fits one AF_XDP buffer.
        #[arg(long, value_name = "BYTES", default_value_t = 1500)]
        mtu: u32,
        /// RX and TX queues of both ends.
        #[arg(long, value_name = "N", default_value_t = 1)]
        queues: u32,
    },
    /// Remove a rig, and end what still runs in it.
    Down {
        #[command(flatten)]
        name: NameArg,
    },
    /// List the rigs of this machine.
    Status,
    /// Remove the rigs of killed processes; every start of a rig does the same.
    Sweep,
    /// Run scenarios in a network of their own: faults on a time line, and what must hold.
    Run(RunArgs),
}

#[derive(Args, Debug)]
struct RunArgs {
    /// The scenarios' files; tests/rig/scenarios has some.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What carries the connections, at both ends.
    #[arg(short, long, value_name = "KIND", default_value = "xdp")]
    transport: TransportKind,
    /// The short form of each, where it has one.
    #[arg(long)]
    short: bool,
    /// How long targets stay away, in place of the file's.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    away: Option<Duration>,
    /// How often each fault comes, in place of the file's.
    #[arg(long, value_name = "N")]
    cycles: Option<u32>,
    /// Write the results as JSON to this file, or to standard output (-).
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Write the plots as SVG to this file; of a second run to FILE-2, and so on.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Tell what went on in the longest gaps of the load.
    #[arg(long)]
    verbose: bool,
}

#[derive(Args, Debug)]
struct NameArg {
    /// The rig's name: its namespaces are NAME-host and NAME-target.
    #[arg(long, default_value = "moorline")]
    name: String,
}

/// Runs `rig`.
///
/// # Errors
/// Without privileges, or when the name is in use.
pub fn run(args: RigArgs) -> Result<Exit> {
    match args.action {
        Action::Up { name, mtu, queues } => up(RigSpec { name: name.name, mtu, queues }),
        Action::Down { name } => down(&name.name),
        Action::Status => status(),
        Action::Sweep => sweep(),
        Action::Run(args) => run_scenarios(args),
    }
}

fn run_scenarios(args: RunArgs) -> Result<Exit> {
    let RunArgs { files, transport, short, away, cycles, json, svg, verbose } = args;
    let scenarios: Vec<_> = files.iter().map(|f| Scenario::load(f)).collect::<Result<_>>()?;
    let options = scenario::Options { transport, short, away, cycles, json, svg, verbose };
    scenario::run(&scenarios, &options)
}

fn up(spec: RigSpec) -> Result<Exit> {
    let rig = Rig::up(spec)?;
    let ends = [rig.host(), rig.target()].map(|end| {
        format!(
            "{}: {}, kernel {} and {}, free for AF_XDP {}/24 and {}/64",
            end.netns(),
            end.dev(),
            end.kernel_addr(false),
            end.kernel_addr(true),
            end.xdp_addr(false),
            end.xdp_addr(true),
        )
    });
    let name = rig.spec().name.clone();
    // It stays, whether or not somebody reads all of this.
    rig.keep()?;
    for end in ends {
        out::line(format_args!("{end}"))?;
    }
    out::line(format_args!("remove it with: moorline rig down --name {name}"))?;
    Ok(Exit::Ok)
}

fn down(name: &str) -> Result<Exit> {
    Ok(if Rig::down_named(name)? {
        out::line(format_args!("rig {name} removed"))?;
        Exit::Ok
    } else {
        out::note(format_args!(
            "moorline: there is no rig {name:?}; `moorline rig status` lists them"
        ));
        Exit::FellShort
    })
}

fn status() -> Result<Exit> {
    let rigs = Rig::list()?;
    if rigs.is_empty() {
        out::line(format_args!("no rigs"))?;
    }
    for rig in rigs {
        let owner = match rig.owner {
            Owner::Kept => "kept open".to_owned(),
            Owner::Process(pid) => format!("in use by process {pid}"),
            Owner::Dead => "left by a killed process, removed by the next start".to_owned(),
        };
        out::line(format_args!("{}: {owner}", rig.name))?;
    }
    Ok(Exit::Ok)
}

fn sweep() -> Result<Exit> {
    let removed = Rig::sweep()?;
    for name in &removed {
        out::line(format_args!("rig {name} removed: its process was killed"))?;
    }
    Ok(if removed.is_empty() { Exit::Ok } else { Exit::FellShort })
}
