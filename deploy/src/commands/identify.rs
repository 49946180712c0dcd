//! `moorline identify`: a subsystem's controller and namespaces, as they describe themselves.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::Args;
use moorline_nvme::host::Info;
use moorline_nvme::spec::HostId;
use moorline_stack::Transport;
use serde::Serialize;

use crate::cli::{DEFAULT_NQN, HostArgs, LaneArgs};
use crate::exit::Exit;
use crate::identity::{ctrl_config, host_identity};
use crate::out;
use crate::perf::report::{SCHEMA, VERSION};
use crate::perf::workload::Bytes;
use crate::session::Session;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

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

#[derive(Serialize)]
struct Report {
    schema: u32,
    version: &'static str,
    conditions: Conditions,
    subnqn: String,
    cntlid: u16,
    nvme_version: String,
    serial: String,
    model: String,
    firmware: String,
    transfer_max: u32,
    in_capsule_max: u32,
    kato_ms: u128,
    io_queues: u16,
    commands_max: u16,
    volatile_write_cache: bool,
    namespaces: Vec<Namespace>,
}

#[derive(Serialize)]
struct Conditions {
    transport: &'static str,
    traddr: IpAddr,
    trsvcid: u16,
    hdgst: bool,
    ddgst: bool,
}

#[derive(Serialize)]
struct Namespace {
    nsid: u32,
    blocks: u64,
    block_size: u32,
    bytes: u64,
    uuid: String,
}

/// Runs `identify`.
///
/// # Errors
/// When the target cannot be reached, or does not answer as it should.
pub fn run(args: IdentifyArgs) -> Result<Exit> {
    let stop = Stop::on_signals()?;
    let info = stackup::run(&args.lane, Ask { args: &args, stop })?;
    let report = Report::new(&args, &info);
    if args.json {
        out::line(format_args!("{}", serde_json::to_string_pretty(&report)?))?;
    } else {
        report.print()?;
    }
    Ok(Exit::Ok)
}

struct Ask<'a> {
    args: &'a IdentifyArgs,
    stop: Stop,
}

impl Job for Ask<'_> {
    type Out = Info;

    fn run<T: Transport>(self, transport: T, _path: Path) -> Result<Info> {
        let identity = host_identity(&self.args.host)?;
        let addr = SocketAddr::new(self.args.traddr, self.args.trsvcid);
        let config = ctrl_config(&self.args.host, addr, &self.args.nqn)?;
        let session = Session::open(transport, identity, config, self.stop)?;
        let info = session.info().clone();
        session.close();
        Ok(info)
    }
}

impl Report {
    fn new(args: &IdentifyArgs, info: &Info) -> Self {
        let (major, minor, tertiary) =
            (info.version >> 16, info.version >> 8 & 255, info.version & 255);
        Self {
            schema: SCHEMA,
            version: VERSION,
            conditions: Conditions {
                transport: args.lane.transport.name(),
                traddr: args.traddr,
                trsvcid: args.trsvcid,
                hdgst: args.host.hdr_digest,
                ddgst: args.host.data_digest,
            },
            subnqn: info.subnqn.clone(),
            cntlid: info.cntlid,
            nvme_version: format!("{major}.{minor}.{tertiary}"),
            serial: info.serial.clone(),
            model: info.model.clone(),
            firmware: info.firmware.clone(),
            transfer_max: info.transfer_max,
            in_capsule_max: info.in_capsule_max,
            kato_ms: info.kato.as_millis(),
            io_queues: info.io_queues,
            commands_max: info.commands_max,
            volatile_write_cache: info.volatile_write_cache,
            namespaces: info
                .namespaces
                .iter()
                .map(|ns| Namespace {
                    nsid: ns.nsid,
                    blocks: ns.blocks,
                    block_size: ns.block_size,
                    bytes: ns.blocks.saturating_mul(ns.block_size.into()),
                    uuid: HostId::from_bytes(ns.uuid).to_string(),
                })
                .collect(),
        }
    }

    fn print(&self) -> Result<()> {
        out::line(format_args!("subsystem       {}", self.subnqn))?;
        out::line(format_args!("controller      {} (NVMe {})", self.cntlid, self.nvme_version))?;
        out::line(format_args!(
            "model, serial   {}, {}, firmware {}",
            self.model, self.serial, self.firmware
        ))?;
        out::line(format_args!(
            "transfers       up to {}, {} of it within a capsule",
            Bytes(self.transfer_max.into()),
            Bytes(self.in_capsule_max.into())
        ))?;
        out::line(format_args!(
            "queues          {}, {} commands each",
            self.io_queues, self.commands_max
        ))?;
        out::line(format_args!("keep alive      {} ms", self.kato_ms))?;
        out::line(format_args!(
            "write cache     {}",
            if self.volatile_write_cache { "volatile" } else { "none" }
        ))?;
        for ns in &self.namespaces {
            out::line(format_args!(
                "namespace {:<5} {}, {} blocks of {} B, UUID {}",
                ns.nsid,
                Bytes(ns.bytes),
                ns.blocks,
                ns.block_size,
                ns.uuid
            ))?;
        }
        Ok(())
    }
}
