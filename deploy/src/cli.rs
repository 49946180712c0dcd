//! The command line: subcommands, and the option groups that they share. Names are nvme-cli's
//! for connections and fio's for the workload, because operators know them.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use moorline_nvme::host::CtrlConfig;
use moorline_stack::transport::ConnOptions;
use serde::Serialize;

use crate::commands::{ctl, discover, doctor, floor, identify, perf, rig, target};
use crate::exit::Exit;
use crate::perf::report::{TransportKind, VERSION};
use crate::perf::workload::parse_duration;
use crate::scenario::host;
use crate::serve;

/// NVMe/TCP in userspace, over AF_XDP or kernel sockets.
#[derive(Debug, Parser)]
#[command(version = VERSION, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read and write a target, and measure it.
    #[command(
        after_help = "Example, in the network of `moorline rig up`, with a target there:\n  \
        moorline perf --netns moorline-host --dev h0 --addr 10.99.0.11/24 -a 10.99.0.12 \\\n      \
        --rw randwrite --bs 4k --iodepth 32 --verify"
    )]
    Perf(perf::PerfArgs),
    /// Serve files or memory as an NVMe/TCP target.
    #[command(after_help = "Example, in the network of `moorline rig up`:\n  \
        moorline target --netns moorline-target --dev t0 --addr 10.99.0.12/24 \\\n      \
        --backend file:/tmp/disk:1G")]
    Target(target::TargetArgs),
    /// Hold the controllers that a file names, and connect them again whenever they are lost.
    #[command(
        after_help = "The file, and `moorline ctl`, which asks a running one, are described \
        in deploy/CTL.md."
    )]
    Serve(serve::ServeArgs),
    /// Ask a running `moorline serve`, or `target --ctl`, and tell it what to do.
    Ctl(ctl::CtlArgs),
    /// List the subsystems that a discovery controller knows.
    Discover(discover::DiscoverArgs),
    /// Show a subsystem's controller and namespaces.
    Identify(identify::IdentifyArgs),
    /// Check this machine, and a network interface, and say how to mend what is wrong.
    Doctor(doctor::DoctorArgs),
    /// Make or remove a test network, two namespaces joined by a veth pair; run scenarios.
    Rig(rig::RigArgs),
    /// The far end of the raw AF_XDP floor.
    #[command(hide = true)]
    FloorServer(floor::FloorServerArgs),
    /// The far end of the plain-socket ping-pong.
    #[command(hide = true)]
    PlainServer(floor::PlainServerArgs),
    /// The host of a scenario.
    #[command(hide = true)]
    RigHost(host::RigHostArgs),
}

impl Command {
    /// Runs the command to its end.
    ///
    /// # Errors
    /// When the environment does not allow it; the message says what to do.
    pub fn run(self) -> Result<Exit> {
        match self {
            Self::Perf(args) => perf::run(args),
            Self::Target(args) => target::run(args),
            Self::Serve(args) => serve::run(&args),
            Self::Ctl(args) => ctl::run(args),
            Self::Discover(args) => discover::run(args),
            Self::Identify(args) => identify::run(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Rig(args) => rig::run(args),
            Self::FloorServer(args) => floor::floor_server(&args),
            Self::PlainServer(args) => floor::plain_server(&args),
            Self::RigHost(args) => host::run(&args),
        }
    }
}

/// Where an XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// SKB on veth (faster there), native where the driver can, else SKB.
    #[default]
    Auto,
    /// Generic XDP, after the kernel made a packet buffer.
    Skb,
    /// In the driver.
    Native,
}

/// What a loop does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PollMode {
    /// Spin: lowest latency, one core.
    Busy,
    /// Spin for a while, then sleep until something arrives or is due.
    #[default]
    Adaptive,
}

/// Whether TCP checksums are computed and checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TcpChecksum {
    /// By our stack, for each segment.
    #[default]
    On,
    /// Not at all, as the kernel between its own ends of a veth pair.
    Off,
}

impl TcpChecksum {
    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Who we are, and what we ask of a connection.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// Our host NQN [default: /etc/nvme/hostnqn; made and kept if missing].
    #[arg(short = 'q', long, value_name = "NQN")]
    pub hostnqn: Option<String>,
    /// Our host ID, a UUID [default: /etc/nvme/hostid; else the UUID in the NQN].
    #[arg(short = 'I', long, value_name = "UUID")]
    pub hostid: Option<String>,
    /// I/O queues, one TCP connection each.
    #[arg(short = 'i', long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=128))]
    pub nr_io_queues: u16,
    /// Entries of an I/O queue.
    #[arg(short = 'Q', long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u16).range(2..=1024))]
    pub queue_size: u16,
    /// Keep alive timeout in seconds; 0 turns keep alive off.
    #[arg(short = 'k', long, value_name = "S", default_value_t = 5)]
    pub keep_alive_tmo: u32,
    /// CRC32C over PDU headers.
    #[arg(long)]
    pub hdr_digest: bool,
    /// CRC32C over data.
    #[arg(long)]
    pub data_digest: bool,
    /// When each wait ends.
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
}

/// When each wait ends. A time is a number of seconds, or has a unit: 500ms, 3s, 2m.
#[derive(Args, Clone, Debug)]
pub struct TimeoutArgs {
    /// Longest time for the whole connect: TCP, ICReq, Connect, enable, identify, I/O queues. Each
    /// stage has its own limit too (TCP 1s, ICResp 1s, Connect 2s), lowered to this if need be.
    #[arg(long, help_heading = "Timeouts", value_name = "TIME",
          value_parser = parse_duration, default_value = "3s")]
    pub connect_tmo: Duration,
    /// Longest time that sent data may stay unacknowledged, as 2^N ms: 12 is 4096 ms. This finds a
    /// path that fell silent under load; without load, keep alive does. 0 is our default of 3 s.
    /// SPDK calls it transport_ack_timeout, Linux TCP_USER_TIMEOUT.
    #[arg(long, help_heading = "Timeouts", value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..=31))]
    pub ack_timeout_exp: u8,
    /// Longest time for one I/O command. When it passes, the command is aborted, and when that does
    /// not help, the controller reset; so leave a slow disk its time.
    #[arg(long, help_heading = "Timeouts", value_name = "TIME",
          value_parser = parse_duration, default_value = "30s")]
    pub io_timeout: Duration,
    /// Longest time for one admin command, those of the bring-up among them.
    #[arg(long, help_heading = "Timeouts", value_name = "TIME",
          value_parser = parse_duration, default_value = "10s")]
    pub admin_timeout: Duration,
    /// Longest time for an I/O command to be aborted, once its own time has passed; then its
    /// controller is reset. No longer than that of an admin command.
    #[arg(long, help_heading = "Timeouts", value_name = "TIME",
          value_parser = parse_duration, default_value = "1s")]
    pub abort_tmo: Duration,
}

impl TimeoutArgs {
    /// Sets these timeouts, and checks that all that `config` has can work together.
    ///
    /// # Errors
    /// The rule that they break, with both values.
    pub fn apply(&self, config: &mut CtrlConfig) -> Result<()> {
        config.limit_connect(self.connect_tmo);
        config.timeouts.io = self.io_timeout;
        config.timeouts.admin = self.admin_timeout;
        config.timeouts.abort = self.abort_tmo;
        if let Some(ack_timeout) = ConnOptions::ack_timeout_of_exp(self.ack_timeout_exp) {
            config.conn.ack_timeout = ack_timeout;
        }
        config.lint().context("these timeouts cannot work together")
    }
}

/// What our end of the network is.
#[derive(Args, Clone, Debug)]
pub struct LaneArgs {
    /// What carries the connections.
    #[arg(short = 't', long, value_name = "KIND", default_value = "xdp")]
    pub transport: TransportKind,
    /// Network interface (xdp).
    #[arg(long, value_name = "IFNAME")]
    pub dev: Option<String>,
    /// Our stack's own address, not one that the kernel has; once for IPv4, once for IPv6 (xdp).
    #[arg(long, value_name = "IP/PREFIX")]
    pub addr: Vec<Cidr>,
    /// Router for all other networks, per address family (xdp).
    #[arg(long, value_name = "IP")]
    pub gateway: Vec<IpAddr>,
    /// The interface's queue (xdp).
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub queue: u32,
    /// Where the XDP program is attached (xdp).
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub xdp_mode: XdpMode,
    /// 802.1Q VLAN of our address (xdp).
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,
    /// TCP checksums (xdp). Off only where both ends are moorline and the link cannot corrupt
    /// (veth): a kernel, and a moorline with them on, drop what has none, and connecting times
    /// out. [default: on; off in perf's own rig]
    #[arg(long, value_name = "ON|OFF", hide_possible_values = true)]
    pub tcp_checksum: Option<TcpChecksum>,
    /// What to do while there is nothing to do.
    #[arg(long, value_name = "MODE", default_value = "adaptive")]
    pub poll: PollMode,
    /// Network namespace (as in `ip netns`) to work in.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Allow options that break things on purpose.
    #[arg(long)]
    pub allow_faults: bool,
    /// Share of the received frames that are dropped on purpose, 0 to 1 (xdp).
    #[arg(long, value_name = "SHARE", requires = "allow_faults")]
    pub drop: Option<f64>,
}

/// The subsystem that `moorline target` serves when not told otherwise.
pub const DEFAULT_NQN: &str = "nqn.2026-11.io.moorline:target";

/// An address and the length of its network part, `10.0.0.5/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write it as 10.0.0.5/24 or fd00::5/64");
        let (addr, prefix) = text.split_once('/').ok_or_else(usage)?;
        let addr: IpAddr = addr.parse().map_err(|_| usage())?;
        let prefix: u8 = prefix.parse().map_err(|_| usage())?;
        let most = if addr.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            return Err(format!("{text:?}: the prefix is at most {most}"));
        }
        Ok(Self { addr, prefix })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The timeouts that a command line asks for, or why they cannot be.
    fn timeouts(args: &[&str]) -> Result<CtrlConfig, String> {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            timeouts: TimeoutArgs,
        }
        let only = Only::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        let mut config = CtrlConfig::new("10.0.0.2:4420".parse().unwrap(), "nqn.2026-01.x:y");
        only.timeouts.apply(&mut config).map_err(|e| format!("{e:#}"))?;
        Ok(config)
    }

    #[test]
    fn no_timeout_given_is_every_default() {
        let config = timeouts(&[]).unwrap();
        let default = CtrlConfig::new(config.addr, "nqn.2026-01.x:y");
        assert_eq!(config.timeouts, default.timeouts);
        assert_eq!(config.conn.ack_timeout, default.conn.ack_timeout);
        assert_eq!(config.conn.connect_timeout, default.conn.connect_timeout);
    }

    #[test]
    fn timeouts_are_taken_as_spdk_and_fio_write_them() {
        let given = ["--ack-timeout-exp", "12", "--io-timeout", "500ms", "--admin-timeout", "4"];
        let config = timeouts(&[&given[..], &["--abort-tmo", "20ms"]].concat()).unwrap();
        assert_eq!(config.timeouts.abort, Duration::from_millis(20));
        assert_eq!(config.conn.ack_timeout, Duration::from_millis(4096));
        assert_eq!(config.timeouts.io, Duration::from_millis(500));
        assert_eq!(config.timeouts.admin, Duration::from_secs(4));
        let config = timeouts(&["--connect-tmo", "400ms"]).unwrap();
        assert_eq!(config.timeouts.icresp, Duration::from_millis(400), "no stage is longer");
    }

    #[test]
    fn timeouts_that_cannot_work_are_refused_by_the_rule_they_break() {
        let short = timeouts(&["--ack-timeout-exp", "3"]).unwrap_err();
        assert!(short.contains("ack timeout of 8ms is below 20ms"), "{short}");
        let zero = timeouts(&["--io-timeout", "0"]).unwrap_err();
        assert!(zero.contains("I/O timeout of 0ns is below 1ms"), "{zero}");
        assert!(timeouts(&["--ack-timeout-exp", "32"]).is_err());
    }

    #[test]
    fn an_address_needs_its_prefix() {
        let cidr: Cidr = "10.99.0.11/24".parse().unwrap();
        assert_eq!((cidr.addr.to_string(), cidr.prefix), ("10.99.0.11".into(), 24));
        assert!("10.99.0.11".parse::<Cidr>().is_err());
        assert!("10.99.0.11/33".parse::<Cidr>().unwrap_err().contains("at most 32"));
        assert!("fd99::11/64".parse::<Cidr>().is_ok());
    }
}
