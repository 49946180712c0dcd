//! The runner: a star, the processes in it, the faults in their order, and what the host told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use moorline_rig::{RigSpec, Star};
use moorline_stack::Instant;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::asked::Asking;
use super::ends::{Dead, fault_socket, host, socket, target};
use super::host::{READ_BACK_TIMEOUT, is_dead};
use super::outcome::{Outage, Seen, Tick, gap_table, table};
use super::process::Process;
use super::scratch::Scratch;
use super::svg;
use super::{Fault, Scenario, Step};
use crate::commands::ctl;
use crate::exit::Exit;
use crate::out;
use crate::perf::report::{TransportKind, write_json};
use crate::serve::proto::Cmd;
use crate::signals::Stop;

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
    scenario.dead = scenario.timeline.dead.unwrap_or(scenario.dead);
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
        let healthy = target(&star.targets()[0], transport, scenario, None)?;
        if transport == TransportKind::Kernel {
            star.targets()[1].add_kernel_addrs(scenario.addresses as u8)?;
        }
        let fault = scenario.timeline.faults.first().filter(|_| scenario.cold);
        let of_dead = Dead { scratch: &scratch, fault: fault.map(|step| &step.fault) };
        let dead = target(&star.targets()[1], transport, scenario, Some(of_dead))?;
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
        let cold = self.scenario.cold;
        while !(self.healthy_live && (cold || self.states.iter().all(|(live, _)| *live))) {
            if Instant::monotonic() >= until {
                bail!("not all controllers became live within {START_TIMEOUT:?}");
            }
            self.watch(Duration::from_millis(20), stop)?;
        }
        self.seen.cold = self.states.iter().map(|&(_, live)| live).filter(|_| !cold).collect();
        self.watch(Duration::from_millis(500), stop)?;
        self.seen.started = now_us();
        self.watch(timeline.before, stop)?;
        for _ in 0..timeline.cycles {
            for step in &timeline.faults {
                if stop.requested() {
                    break;
                }
                self.outage(step, stop)?;
            }
        }
        let dead = self.dead.as_ref().and_then(Process::memory_peak_kib);
        self.seen.memory =
            json!({ "host_peak_kib": self.host.memory_peak_kib(), "dead_peak_kib": dead });
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
    fn outage(&mut self, step: &Step, stop: &Stop) -> Result<()> {
        let timeline = &self.scenario.timeline;
        let away = step.away.unwrap_or(timeline.away);
        let begun = now_us();
        if !self.scenario.cold {
            self.begin(step)?;
        }
        let is_asked = self.scenario.expect.ctl_p90_us_max.is_some() && self.seen.asked.is_none();
        let (socket, host) = (socket(&self.scratch), self.host.pid());
        let asking = is_asked.then(|| Asking::start(socket, host, away / 4, away / 2));
        if step.fault == Fault::Flap {
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
        let misnamed = step.reason.as_deref().map(|reason| self.misnamed(reason)).transpose()?;
        let listening = self.finish(step)?;
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
        let fault = step.fault.clone();
        self.seen.outages.push(Outage { fault, at, ctrls, loses, misnamed });
        Ok(())
    }

    fn begin(&mut self, step: &Step) -> Result<()> {
        match (&step.fault, &mut self.dead) {
            (Fault::Exit, Some(dead)) => dead.end(Signal::TERM),
            (Fault::Kill, Some(dead)) => dead.end(Signal::KILL),
            (Fault::Freeze, Some(dead)) => dead.signal(Signal::STOP),
            (Fault::Blackhole, _) => self.star.forward(1, false)?,
            (Fault::Target(_), Some(dead)) if step.restart => dead.end(Signal::TERM),
            (Fault::Target(spec), _) => ctl::add_fault(&fault_socket(&self.scratch), spec)?,
            (Fault::Flap, _) | (_, None) => {}
        }
        if step.ends_process() {
            self.dead = None;
        }
        if step.restart {
            self.start_dead(Some(&step.fault))?;
        }
        Ok(())
    }

    /// Starts the process of the dead targets; returns when it listens.
    fn start_dead(&mut self, fault: Option<&Fault>) -> Result<u64> {
        let dead = Dead { scratch: &self.scratch, fault };
        let dead = target(&self.star.targets()[1], self.transport, self.scenario, Some(dead))?;
        let listening = dead.listening()?;
        self.dead = Some(dead);
        Ok(listening)
    }

    /// Ends a fault; returns when its targets were there again.
    fn finish(&mut self, step: &Step) -> Result<u64> {
        let now = now_us();
        match (&step.fault, &self.dead) {
            (Fault::Exit | Fault::Kill, _) => return self.start_dead(None),
            (Fault::Freeze, Some(dead)) => dead.signal(Signal::CONT),
            (Fault::Blackhole, _) => self.star.forward(1, true)?,
            // From before it is asked for: the call is part of what is measured.
            (Fault::Target(_), _) => {
                ctl::clear_faults(&fault_socket(&self.scratch))?;
                return Ok(now);
            }
            (Fault::Flap, _) | (Fault::Freeze, None) => {}
        }
        Ok(now_us())
    }

    /// How many dead controllers give another reason for their last failure.
    fn misnamed(&self, reason: &str) -> Result<usize> {
        let rows = ctl::rows(&socket(&self.scratch), Cmd::List).context("asking the host why")?;
        let dead = rows.iter().filter(|row| row["name"].as_str().is_some_and(is_dead));
        let mut count = 0;
        for row in dead {
            let said = row["reason"].as_str().unwrap_or("none");
            if !said.contains(reason) {
                count += 1;
                out::note(format_args!("moorline: {} gives as its reason: {said}", row["name"]));
            }
        }
        Ok(count)
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
