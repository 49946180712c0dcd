//! The processes of a scenario's star: where they are, and what they are told to do.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use moorline_rig::{End, Star};

use super::file::NAMESPACE_BLOCKS;
use super::process::Process;
use super::scratch::Scratch;
use super::{Fault, Scenario};
use crate::perf::measure::cpus;
use crate::perf::report::TransportKind;

/// The first port of a target.
const PORT: u16 = 4420;

fn addrs_of(end: &End, transport: TransportKind, n: u16) -> Vec<IpAddr> {
    match transport {
        TransportKind::Xdp => end.xdp_addrs(n as u8), // checked when read
        TransportKind::Kernel => end.kernel_addrs(n as u8),
    }
}

/// Addresses and ports of the dead targets.
fn places(scenario: &Scenario) -> [u16; 2] {
    [scenario.addresses, scenario.ports]
}

/// Where the targets on an end are: all addresses at the first port, then at the next.
fn addrs(end: &End, transport: TransportKind, [ips, ports]: [u16; 2]) -> Vec<SocketAddr> {
    let ips = addrs_of(end, transport, ips);
    let at = |port| ips.iter().map(move |&ip| SocketAddr::new(ip, port));
    (PORT..PORT + ports).flat_map(at).collect()
}

/// The options of a lane on an end.
fn lane(end: &End, transport: TransportKind, poll: &str, ips: u16) -> Vec<String> {
    let words = ["--transport", transport.name(), "--poll", poll];
    let mut words: Vec<String> = words.map(str::to_owned).into();
    if transport == TransportKind::Xdp {
        words.extend(["--dev", end.dev()].map(str::to_owned));
        for addr in addrs_of(end, transport, ips) {
            words.extend(["--addr".to_owned(), format!("{addr}/{}", End::prefix(false))]);
        }
    }
    words
}

fn tcp_buffer(command: &mut Command, scenario: &Scenario) {
    if let Some(bytes) = scenario.tcp_buffer {
        command.args(["--tcp-buffer", &bytes.to_string()]);
    }
}

/// Where the host's control socket is.
pub fn socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("ctl.sock")
}

/// Where the control socket of the dead targets is.
pub fn fault_socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("faults.sock")
}

/// What the dead targets serve, if that is to outlive their process.
fn disk(scenario: &Scenario, scratch: &Scratch) -> Option<PathBuf> {
    let ends = scenario.timeline.faults.iter().any(|step| step.ends_process());
    (scenario.verify.is_some() && ends).then(|| scratch.path().join("disk"))
}

/// What the process of the dead targets has beside the healthy one's.
pub struct Dead<'a> {
    /// Where its files are.
    pub scratch: &'a Scratch,
    /// What it does wrong from its start on.
    pub fault: Option<&'a Fault>,
}

/// Starts a target: the one that is healthy, or those that are dead at times.
///
/// # Errors
/// When it cannot be started.
pub fn target(
    end: &End,
    transport: TransportKind,
    scenario: &Scenario,
    dead: Option<Dead<'_>>,
) -> Result<Process> {
    let places = if dead.is_some() { places(scenario) } else { [1, 1] };
    let size = NAMESPACE_BLOCKS * 4096;
    let disk = dead.as_ref().and_then(|dead| disk(scenario, dead.scratch));
    let backend = match disk {
        Some(path) => format!("file:{}:{size}", path.display()),
        None => format!("ram:{size}"),
    };
    let mut command = end.command(std::env::current_exe()?);
    command.args(["target", "--json", "--until-stdin-ends", "--backend", &backend]);
    command.args(lane(end, transport, "adaptive", places[0]));
    tcp_buffer(&mut command, scenario);
    if let Some(Dead { scratch, fault }) = dead
        && scenario.has_target_faults()
    {
        command.arg("--allow-faults").arg("--ctl").arg(fault_socket(scratch));
        if let Some(fault) = fault {
            command.args(["--fault", &fault.to_string()]);
        }
    }
    for addr in addrs(end, transport, places) {
        command.args(["--listen", &addr.to_string()]);
    }
    Process::start(command, cpus() - 1)
}

/// Starts the host.
///
/// # Errors
/// When it cannot be started.
pub fn host(
    star: &Star,
    scenario: &Scenario,
    transport: TransportKind,
    depth: u16,
    target_pid: u32,
    scratch: &Scratch,
) -> Result<Process> {
    let end = star.host();
    let at = |k: usize, places| addrs(&star.targets()[k], transport, places);
    let mut command = end.command(std::env::current_exe()?);
    command.args(["rig-host", "--healthy", &at(0, [1, 1])[0].to_string()]);
    let dead = at(1, places(scenario));
    for addr in dead.iter().cycle().take(scenario.dead.into()) {
        command.args(["--dead", &addr.to_string()]);
    }
    let ms = |time: Duration| format!("{}ms", time.as_millis());
    command.args(["--iodepth", &depth.to_string(), "--kato", &ms(scenario.kato)]);
    if let Some(ack_timeout) = scenario.ack_timeout {
        command.args(["--ack-timeout", &ms(ack_timeout)]);
    }
    if let Some(io_timeout) = scenario.io_timeout {
        command.args(["--io-timeout", &ms(io_timeout)]);
    }
    if let Some(verify) = &scenario.verify {
        let pace = format!("{}us", verify.pace.as_micros());
        command.args(["--verify", &verify.depth.to_string(), "--verify-pace", &pace]);
        command.args(["--verify-blocks", &verify.blocks.to_string()]);
        command.args(verify.requeue.then_some("--requeue"));
    }
    let gives_reasons = scenario.timeline.faults.iter().any(|step| step.reason.is_some());
    if scenario.expect.ctl_p90_us_max.is_some() || gives_reasons {
        command.arg("--ctl").arg(socket(scratch));
    }
    command.args(["--io-queues", &scenario.io_queues.to_string()]);
    tcp_buffer(&mut command, scenario);
    command.args(["--target-pid", &target_pid.to_string()]);
    command.args(lane(end, transport, "busy", 1));
    Process::start(command, 0)
}
