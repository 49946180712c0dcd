//! One association, and the runs on it: connects, measures each workload in turn, shuts down.

use std::net::SocketAddr;

use anyhow::Result;
use moorline_stack::Transport;

use super::engine;
use super::measure::{self, Device};
use super::progress::Progress;
use super::report::{Conditions, Offloads, Run, TransportKind};
use super::workload::{Bytes, Workload};
use crate::cli::{HostArgs, PollMode, TcpChecksum};
use crate::identity::{ctrl_config, host_identity};
use crate::session::Session;
use crate::signals::Stop;
use crate::stackup::{Job, Path};

/// What is known of both ends beside what the transport tells.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Our interface; found by the route to the target where it is not given.
    pub dev: Option<String>,
    /// Namespace and interface of the target, where it is in a rig of ours.
    pub peer: Option<(String, String)>,
    /// The target's process, where we started it.
    pub target_pid: Option<u32>,
    /// Which CPUs the ends run on.
    pub pinning: String,
    /// What else a reader must know.
    pub notes: Vec<String>,
}

/// Runs on one controller.
#[derive(Debug)]
pub struct Series<'a> {
    /// Who we are, and what we ask of a connection.
    pub host: &'a HostArgs,
    /// The target.
    pub addr: SocketAddr,
    /// The subsystem.
    pub nqn: &'a str,
    /// The namespace.
    pub nsid: u32,
    /// What carries it; for the report.
    pub transport: TransportKind,
    /// What to do while there is nothing to do.
    pub poll: PollMode,
    /// What to run, in order.
    pub workloads: &'a [Workload],
    /// For the report.
    pub place: &'a Place,
    /// No progress.
    pub quiet: bool,
    /// The user's wish to end.
    pub stop: &'a Stop,
}

impl Job for Series<'_> {
    type Out = Vec<Run>;

    fn run<T: Transport>(self, transport: T, path: Path) -> Result<Vec<Run>> {
        let mut config = ctrl_config(self.host, self.addr, self.nqn)?;
        let depth = self.workloads.iter().map(|w| w.iodepth).max().unwrap_or(1);
        config.queue_size = config.queue_size.max(depth + 1);
        let conditions = self.conditions(&path);
        let identity = host_identity(self.host)?;
        let mut session = Session::open(transport, identity, config, self.stop.clone())?;
        let mut runs = Vec::with_capacity(self.workloads.len());
        for workload in self.workloads {
            let name = format!(
                "{} {}, {}",
                workload.rw.name(),
                Bytes(u64::from(workload.bs)),
                self.transport.name()
            );
            let mut progress = Progress::new(&name, self.quiet);
            let job = engine::Job {
                workload: workload.clone(),
                nsid: self.nsid,
                poll: self.poll,
                target_pid: self.place.target_pid,
            };
            let (host, ctrl) = session.parts();
            let measured = engine::run(host, ctrl, &job, self.stop, &mut progress)?;
            let (lost, interrupted) = (measured.failure.is_some(), measured.interrupted);
            runs.push(measured.into_run(workload, self.transport, conditions.clone()));
            if lost {
                return Ok(runs); // there is no controller left to shut down
            }
            if interrupted {
                break;
            }
        }
        session.close();
        Ok(runs)
    }
}

impl Series<'_> {
    /// What holds for all runs of the series.
    fn conditions(&self, path: &Path) -> Conditions {
        let dev = self.place.dev.clone().or_else(|| measure::route_dev(self.addr.ip()));
        let device = dev.as_deref().and_then(Device::of).unwrap_or_default();
        let local = dev.as_deref().map(|dev| measure::offloads(None, dev));
        let peer = self.place.peer.as_ref();
        let peer = peer.map(|(netns, dev)| measure::offloads(Some(netns), dev));
        let unknown = || "unknown".to_owned();
        let local = local.unwrap_or_else(unknown);
        Conditions {
            mtu: path.mtu.unwrap_or(device.mtu),
            xdp_mode: path.xdp_mode.clone(),
            zerocopy: path.zero_copy,
            hdgst: self.host.hdr_digest,
            ddgst: self.host.data_digest,
            tcp_checksum: path.tcp_checksum.map_or(offloaded(&local), TcpChecksum::name),
            offloads: Offloads { local, peer: peer.unwrap_or_else(unknown) },
            qdisc: device.qdisc,
            poll: match self.poll {
                PollMode::Busy => "busy",
                PollMode::Adaptive => "adaptive",
            },
            kernel: measure::kernel(),
            cpus: measure::cpus(),
            steal_pct: 0.0,
            run_delay_us_max: 0.0,
            pinning: self.place.pinning.clone(),
            notes: self.place.notes.clone(),
        }
    }
}

/// What kernel sockets do about TCP checksums, by the offloads of their interface.
fn offloaded(offloads: &str) -> &'static str {
    match offloads {
        on if on.contains("tx on") => "offloaded",
        off if off.contains("tx off") => "on",
        _ => "unknown",
    }
}
