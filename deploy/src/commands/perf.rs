//! `moorline perf`: the options of a run, in nvme-cli's and fio's words, and the glue between
//! them and the engine in [`crate::perf`].

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::{DEFAULT_NQN, HostArgs, LaneArgs};
use crate::exit::Exit;
use crate::perf::workload::{Bytes, Rw, Workload, parse_duration};

/// Options of `perf`.
#[derive(Args, Clone, Debug)]
pub struct PerfArgs {
    /// Make a veth rig, start a target in it, run, and remove everything.
    #[arg(long)]
    pub rig: bool,
    /// The demonstration: a table of workloads on both transports, interleaved, with ratios.
    #[arg(long, requires = "rig")]
    pub demo: bool,
    /// The target's address; not needed with --rig.
    #[arg(short = 'a', long, value_name = "IP", required_unless_present = "rig")]
    pub traddr: Option<IpAddr>,
    /// The target's TCP port.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 4420)]
    pub trsvcid: u16,
    /// The subsystem's NQN.
    #[arg(short = 'n', long, value_name = "NQN", default_value = DEFAULT_NQN)]
    pub nqn: String,
    /// The namespace to work on.
    #[arg(long, value_name = "ID", default_value_t = 1)]
    pub nsid: u32,
    /// Who we are.
    #[command(flatten)]
    pub host: HostArgs,
    /// Our end of the network.
    #[command(flatten)]
    pub lane: LaneArgs,
    /// What to do.
    #[command(flatten)]
    pub work: WorkArgs,
    /// Both transports by turns, --rounds times each, and their ratio.
    #[arg(long)]
    pub compare: bool,
    /// MTU of the rig (--rig).
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub mtu: u32,
    /// Back end of the rig's target (--rig), as for `moorline target`.
    #[arg(long, value_name = "KIND", default_value = "ram:1G")]
    pub backend: String,
    /// Rounds of --demo and --compare; each runs everything once.
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub rounds: usize,
    /// Write the results as JSON to this file, or to standard output (-).
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// No progress line.
    #[arg(long)]
    pub quiet: bool,
}

/// The workload, in fio's words.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workload")]
pub struct WorkArgs {
    /// What to do.
    #[arg(long, value_name = "KIND", default_value = "randread")]
    pub rw: Rw,
    /// Bytes per I/O.
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    pub bs: Bytes,
    /// I/Os under way per queue.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1023))]
    pub iodepth: u16,
    /// Share of reads in a mixed run, percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 50,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// How long to measure.
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = parse_duration)]
    pub runtime: Duration,
    /// How long to run before measuring.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_duration)]
    pub ramp_time: Duration,
    /// Start of the region in the namespace.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub offset: Bytes,
    /// Length of the region [default: to the end of the namespace].
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Bytes>,
    /// End after this many I/Os, if before --runtime.
    #[arg(long, value_name = "N")]
    pub number_ios: Option<u64>,
    /// Write a pattern made from LBA and seed, and check it on read.
    #[arg(long)]
    pub verify: bool,
    /// From which the order of I/Os and the pattern follow.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub randseed: u64,
}

impl WorkArgs {
    /// As the engine takes it.
    ///
    /// # Errors
    /// When the block size is beyond what one I/O can be.
    pub fn workload(&self) -> Result<Workload> {
        let Ok(bs) = u32::try_from(self.bs.0) else {
            bail!("--bs {}: one I/O is at most 4 GiB", self.bs);
        };
        Ok(Workload {
            rw: self.rw,
            bs,
            iodepth: self.iodepth,
            rwmixread: self.rwmixread,
            runtime: self.runtime,
            ramp: self.ramp_time,
            offset: self.offset.0,
            size: self.size.map(|size| size.0),
            ios_max: self.number_ios,
            verify: self.verify,
            seed: self.randseed,
        })
    }
}

/// Runs `perf`.
///
/// # Errors
/// When the environment does not allow it; the message says what to do.
pub fn run(args: PerfArgs) -> Result<Exit> {
    crate::perf::run(&args)
}
