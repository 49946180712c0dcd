//! The runner: a star, the processes in it, the faults in their order, and what the host told.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use moorline_rig::{End, RigSpec, Star};
use moorline_stack::Instant;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::asked::Asking;
use super::file::NAMESPACE_BLOCKS;
use super::host::READ_BACK_TIMEOUT;
use super::outcome::{Outage, Seen, Tick, gap_table, table};
use super::process::Process;
use super::scratch::Scratch;
use super::svg;
use super::{Fault, Scenario, Step};
use crate::exit::Exit;
use crate::out;
use crate::perf::measure::cpus;
use crate::perf::report::{TransportKind, write_json};
use crate::signals::Stop;

/// The first port of a target.
const PORT: u16 = 4420;
/// How long all controllers get to become live at the start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Half a period of a flapping link.
const FLAP: Duration = Duration::from_millis(300);

/// How scenarios are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What carries the bytes, on both ends.
    pub transport: TransportKind,
    /// The short form.
    pub short: bool,
    /// In place of the file's.
    pub away: Option<Duration>,
    /// In place of the file's.
    pub cycles: Option<u32>,
    /// Where the reports go.
    pub json: Option<String>,
    /// Where the plots go, of several runs numbered.
    pub svg: Option<PathBuf>,
    /// Tell what went on in the longest gaps.
    pub verbose: bool,
}

/// Runs scenarios, one after the other.
///
/// # Errors
/// When the environment does not allow it; the message says what to do.
pub fn run(scenarios: &[Scenario], options: &Options) -> Result<Exit> {
    let stop = Stop::on_signals()?;
    let mut reports: Vec<Value> = Vec::new();
    // The text goes aside where the results are to be standard output.
    let tell = |text: &str| match options.json.as_deref() {
        Some("-") => {
            out::note(format_args!("{text}"));
            Ok(())
        }
        _ => out::unless_closed(out::text(text)),
    };
    for scenario in scenarios {
        let scenario = adapted(scenario, options);
        for &depth in &scenario.depths {
            let seen = Runner::start(&scenario, options.transport, depth)?.run(&stop)?;
            let report = seen.report(&scenario, options.transport);
            tell(&format!("{}{}", seen.plot(), table(&report)))?;
            if options.verbose {
                tell(&gap_table(&report))?;
            }
            if let Some(path) = &options.svg {
                svg::write(&numbered(path, reports.len()), &seen, &report)?;
            }
            reports.push(report);
            if stop.requested() {
                break;
            }
        }
    }
    let pass = reports.iter().all(|report| report["pass"] == true);
    if let Some(to) = &options.json {
        match reports.as_slice() {
            [one] => write_json(one, to)?,
            all => write_json(&json!({ "runs": all }), to)?,
        }
    }
    Ok(match (stop.requested(), pass) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::Ok,
        (false, false) => Exit::FellShort,
    })
}

/// The file of run number `index`, from 0: the first has the name as it is.
fn numbered(path: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{}.{extension}", index + 1))
}

fn adapted(scenario: &Scenario, options: &Options) -> Scenario {
    let mut scenario = scenario.clone();
    if let (true, Some(short)) = (options.short, scenario.short.take()) {
        scenario.timeline = short;
        scenario.depths.truncate(1);
    }
    if let Some(away) = options.away {
        scenario.timeline.away = away;
        scenario.timeline.faults.iter_mut().for_each(|step| step.away = None);
    }
    if let Some(cycles) = options.cycles {
        scenario.timeline.cycles = cycles;
    }
    scenario
}

/// A run under way. Processes are dropped before the star they are in.
struct Runner<'a> {
    scenario: &'a Scenario,
    transport: TransportKind,
    host: Process,
    dead: Option<Process>,
    _healthy: Process,
    star: Star,
    scratch: Scratch,
    /// Per dead controller: whether it is live, and since when or until when.
    states: Vec<(bool, u64)>,
    healthy_live: bool,
    seen: Seen,
}

impl<'a> Runner<'a> {
    fn start(scenario: &'a Scenario, transport: TransportKind, depth: u16) -> Result<Self> {
        let spec = RigSpec::unique("moorline-run");
        let star = Star::up(&spec, 2)?;
        let scratch = Scratch::new(&spec.name)?;
        let healthy = target(&star.targets()[0], transport, scenario, [1, 1], None)?;
        if transport == TransportKind::Kernel {
            star.targets()[1].add_kernel_addrs(scenario.addresses as u8)?;
        }
        let disk = disk(scenario, &scratch);
        let dead =
            target(&star.targets()[1], transport, scenario, places(scenario), disk.as_deref())?;
        healthy.listening()?;
        dead.listening()?;
        let host = host(&star, scenario, transport, depth, healthy.pid(), &scratch)?;
        let states = vec![(false, 0); scenario.dead.into()];
        let seen = Seen { depth, ..Seen::default() };
        let dead = Some(dead);
        let healthy_live = false;
        Ok(Self {
            scenario,
            transport,
            host,
            dead,
            _healthy: healthy,
            star,
            scratch,
            states,
            healthy_live,
            seen,
        })
    }

    fn run(mut self, stop: &Stop) -> Result<Seen> {
        let timeline = &self.scenario.timeline;
        let until = Instant::monotonic() + START_TIMEOUT;
        while !(self.healthy_live && self.states.iter().all(|(live, _)| *live)) {
            if Instant::monotonic() >= until {
                bail!("not all controllers became live within {START_TIMEOUT:?}");
            }
            self.watch(Duration::from_millis(20), stop)?;
        }
        self.seen.cold = self.states.iter().map(|&(_, live)| live).collect();
        self.watch(Duration::from_millis(500), stop)?;
        self.seen.started = now_us();
        self.watch(timeline.before, stop)?;
        for _ in 0..timeline.cycles {
            for &step in &timeline.faults {
                if stop.requested() {
                    break;
                }
                self.outage(step, stop)?;
            }
        }
        self.host.signal(Signal::TERM);
        let until = Instant::monotonic() + READ_BACK_TIMEOUT + START_TIMEOUT;
        while self.seen.end.is_null() {
            let Some((_, event)) = self.host.next(until)? else {
                bail!("the host did not end");
            };
            self.take(&event);
        }
        Ok(self.seen)
    }

    /// One fault, its end, and the time to recover.
    fn outage(&mut self, step: Step, stop: &Stop) -> Result<()> {
        let timeline = &self.scenario.timeline;
        let (fault, away) = (step.fault, step.away.unwrap_or(timeline.away));
        let begun = now_us();
        self.begin(fault)?;
        let is_asked = self.scenario.expect.ctl_p90_us_max.is_some() && self.seen.asked.is_none();
        let asking = is_asked.then(|| Asking::start(socket(&self.scratch), away / 4, away / 2));
        if fault == Fault::Flap {
            let until = Instant::monotonic() + away;
            while Instant::monotonic() < until && !stop.requested() {
                for up in [false, true] {
                    self.star.link(1, up)?;
                    self.watch(FLAP, stop)?;
                }
            }
        } else {
            self.watch(away, stop)?;
        }
        let listening = self.finish(fault)?;
        self.watch(timeline.back, stop)?;
        if let Some(asking) = asking {
            self.seen.asked = Some(asking.end().context("asking the host in an outage")?.report());
        }
        // Whoever changed since is as it is now; whoever did not has not noticed.
        let of = |&(live, since): &(bool, u64)| {
            let lost = !live || since > begun;
            (lost, (lost && live).then_some(since))
        };
        let ctrls = self.states.iter().map(of).collect();
        let loses = match self.transport {
            TransportKind::Xdp => step.loses,
            TransportKind::Kernel => step.loses_on_kernel,
        };
        let at = [begun, listening, now_us()];
        self.seen.outages.push(Outage { fault, at, ctrls, loses });
        Ok(())
    }

    fn begin(&mut self, fault: Fault) -> Result<()> {
        match (fault, &mut self.dead) {
            (Fault::Exit, Some(dead)) => {
                dead.signal(Signal::TERM);
                dead.wait();
            }
            (Fault::Kill, Some(dead)) => {
                dead.signal(Signal::KILL);
                dead.wait();
            }
            (Fault::Freeze, Some(dead)) => dead.signal(Signal::STOP),
            (Fault::Blackhole, _) => self.star.forward(1, false)?,
            (Fault::Flap, _) | (_, None) => {}
        }
        if fault.ends_process() {
            self.dead = None;
        }
        Ok(())
    }

    /// Ends a fault; returns when its targets were there again.
    fn finish(&mut self, fault: Fault) -> Result<u64> {
        match (fault, &self.dead) {
            (Fault::Exit | Fault::Kill, _) => {
                let end = &self.star.targets()[1];
                let places = places(self.scenario);
                let disk = disk(self.scenario, &self.scratch);
                let dead = target(end, self.transport, self.scenario, places, disk.as_deref())?;
                let listening = dead.listening()?;
                self.dead = Some(dead);
                return Ok(listening);
            }
            (Fault::Freeze, Some(dead)) => dead.signal(Signal::CONT),
            (Fault::Blackhole, _) => self.star.forward(1, true)?,
            (Fault::Flap, _) | (Fault::Freeze, None) => {}
        }
        Ok(now_us())
    }

    /// Listens to the host for a time.
    fn watch(&mut self, time: Duration, stop: &Stop) -> Result<()> {
        let until = Instant::monotonic() + time;
        while !stop.requested() {
            let tick = Instant::monotonic() + Duration::from_millis(100);
            match self.host.next(until.min(tick))? {
                Some((_, event)) => self.take(&event),
                None if Instant::monotonic() >= until => break,
                None => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &Value) {
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        let at = number("t_us");
        match event["event"].as_str() {
            Some("tick") => {
                if event["gap"].is_object() {
                    self.seen.gaps.push(event["gap"].clone());
                }
                self.seen.ticks.push(Tick {
                    at,
                    ios: number("ios"),
                    p99: number("p99_us"),
                    gap: number("gap_us"),
                    gap_less: number("gap_less_run_delay_us"),
                    syns: number("syns"),
                    live: self.states.iter().filter(|(live, _)| *live).count(),
                });
            }
            Some("connecting") => self.seen.connecting = at,
            Some("end") => self.seen.end = event.clone(),
            Some(what @ ("live" | "disconnected" | "failed")) => {
                let live = what == "live";
                if let Some(why) = event["why"].as_str() {
                    *self.seen.reasons.entry(kind_of(why)).or_default() += 1;
                }
                match number("ctrl") {
                    0 => self.healthy_live = live,
                    index => {
                        if let Some(state) = self.states.get_mut(index as usize - 1) {
                            *state = (live, at);
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

/// Why a controller was lost, without whose it was and without figures: of the same kind are many.
fn kind_of(why: &str) -> String {
    let mut rest = why.split_once(": ").map_or(why, |(_, kind)| kind);
    let mut kind = String::new();
    while let Some((before, after)) = rest.split_once(" (") {
        kind.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    kind + rest
}

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
fn socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("ctl.sock")
}

/// What the dead targets serve, if that is to outlive their process.
fn disk(scenario: &Scenario, scratch: &Scratch) -> Option<PathBuf> {
    let ends = scenario.timeline.faults.iter().any(|step| step.fault.ends_process());
    (scenario.verify.is_some() && ends).then(|| scratch.path().join("disk"))
}

fn target(
    end: &End,
    transport: TransportKind,
    scenario: &Scenario,
    places: [u16; 2],
    disk: Option<&Path>,
) -> Result<Process> {
    let size = NAMESPACE_BLOCKS * 4096;
    let backend = match disk {
        Some(path) => format!("file:{}:{size}", path.display()),
        None => format!("ram:{size}"),
    };
    let mut command = end.command(std::env::current_exe()?);
    command.args(["target", "--json", "--until-stdin-ends", "--backend", &backend]);
    command.args(lane(end, transport, "adaptive", places[0]));
    tcp_buffer(&mut command, scenario);
    for addr in addrs(end, transport, places) {
        command.args(["--listen", &addr.to_string()]);
    }
    Process::start(command, cpus() - 1)
}

fn host(
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
    if let Some(verify) = &scenario.verify {
        let pace = format!("{}us", verify.pace.as_micros());
        command.args(["--verify", &verify.depth.to_string(), "--verify-pace", &pace]);
        command.args(["--verify-blocks", &verify.blocks.to_string()]);
        command.args(verify.requeue.then_some("--requeue"));
    }
    if scenario.expect.ctl_p90_us_max.is_some() {
        command.arg("--ctl").arg(socket(scratch));
    }
    command.args(["--io-queues", &scenario.io_queues.to_string()]);
    tcp_buffer(&mut command, scenario);
    command.args(["--target-pid", &target_pid.to_string()]);
    command.args(lane(end, transport, "busy", 1));
    Process::start(command, 0)
}

fn now_us() -> u64 {
    Instant::monotonic().as_nanos() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_of_one_kind_whoever_they_are_of() {
        let why = "target 10.99.0.13:4420: live (queue 1): connection lost awaiting commands: \
                   peer stopped acknowledging (while established, after 3.3s, 9 retransmits)";
        let kind = "live: connection lost awaiting commands: peer stopped acknowledging";
        assert_eq!(kind_of(why), kind);
        assert_eq!(kind_of("lost"), "lost");
    }

    #[test]
    fn plots_of_several_runs_have_names_of_their_own() {
        let path = Path::new("a/b.svg");
        assert_eq!(numbered(path, 0), path);
        assert_eq!(numbered(path, 1), Path::new("a/b-2.svg"));
    }
}
