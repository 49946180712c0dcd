//! `cargo run --release -p sim -- --seed N`: runs worlds of seeds, and tells what they came to.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sim::{Level, Outcome};

/// The commit that this was built from.
const COMMIT: &str = env!("MOORLINE_COMMIT");

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelArg {
    /// Byte streams, cut anywhere, stalled and reset.
    Bytes,
}

/// Simulates moorline: hosts, targets, disks and a network in virtual time, from one seed.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed; without it, one of the time.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, from the first on.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// What joins hosts and targets.
    #[arg(long, value_enum, default_value = "bytes")]
    level: LevelArg,
    /// Write each event to standard error.
    #[arg(long)]
    trace: bool,
    /// Write a line of JSON for each run: "-" is standard output.
    #[arg(long, value_name = "-")]
    json: Option<String>,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    version: String,
    conditions: BTreeMap<&'a str, &'a str>,
    seed: u64,
    level: &'a str,
    ok: bool,
    trace_hash: String,
    simulated_s: f64,
    wall_s: f64,
    ios: u64,
    failed: u64,
    faults: &'a BTreeMap<&'static str, u64>,
    violations: &'a [String],
}

#[derive(Default)]
struct Total {
    runs: u64,
    ios: u64,
    failed: u64,
    simulated: Duration,
    faults: BTreeMap<&'static str, u64>,
    bad: Vec<u64>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.runs += 1;
        self.ios += outcome.ios;
        self.failed += outcome.failed;
        self.simulated += outcome.simulated;
        for (name, count) in &outcome.faults {
            *self.faults.entry(name).or_default() += count;
        }
        if !outcome.violations.is_empty() {
            self.bad.push(seed);
        }
    }

    fn tell(&self, wall: Duration) {
        let wall = wall.as_secs_f64().max(1e-6);
        let simulated = self.simulated.as_secs_f64();
        println!(
            "{} seeds in {wall:.1} s: {} I/Os ended ({:.0}/s), {} failed; {simulated:.0} s simulated \
             ({:.0} s/s); faults: {:?}",
            self.runs,
            self.ios,
            self.ios as f64 / wall,
            self.failed,
            simulated / wall,
            self.faults
        );
        if !self.bad.is_empty() {
            println!("{} seeds with violations: {:?}", self.bad.len(), self.bad);
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.json.as_deref().is_some_and(|to| to != "-") {
        eprintln!("sim: --json writes to standard output only: give \"-\", and redirect it");
        return ExitCode::from(2);
    }
    let level = match args.level {
        LevelArg::Bytes => Level::Bytes,
    };
    let first = args.seed.unwrap_or_else(seed_of_time);
    let progress = progress(&args);
    let start = Instant::now();
    let mut total = Total::default();
    for seed in first..first.saturating_add(args.runs) {
        let began = Instant::now();
        let outcome = sim::run(seed, level, args.trace);
        total.add(seed, &outcome);
        if args.json.is_some() {
            println!("{}", json(seed, level, &outcome, began.elapsed()));
        } else if args.runs == 1 {
            println!("seed {seed}: trace hash {:016x}, {} events", outcome.hash, outcome.events);
        }
        progress.set_message(format!(
            "{:.0} I/Os per s, {} with violations",
            total.ios as f64 / start.elapsed().as_secs_f64(),
            total.bad.len()
        ));
        progress.inc(1);
        if !outcome.violations.is_empty() {
            progress.suspend(|| tell_failure(seed, level, &outcome));
            if !args.keep_going {
                break;
            }
        }
    }
    progress.finish_and_clear();
    if args.json.is_none() {
        total.tell(start.elapsed());
    }
    ExitCode::from(u8::from(!total.bad.is_empty()))
}

fn progress(args: &Args) -> ProgressBar {
    if args.runs == 1 || args.trace {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {msg}, {eta} left");
    ProgressBar::new(args.runs).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A seed for who names none; small enough to be typed.
fn seed_of_time() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_millis() as u64 % 1_000_000_000)
}

fn json(seed: u64, level: Level, outcome: &Outcome, wall: Duration) -> String {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let report = Report {
        schema: 1,
        version: format!("{} ({COMMIT})", env!("CARGO_PKG_VERSION")),
        conditions: BTreeMap::from([("profile", profile)]),
        seed,
        level: level.name(),
        ok: outcome.violations.is_empty(),
        trace_hash: format!("{:016x}", outcome.hash),
        simulated_s: outcome.simulated.as_secs_f64(),
        wall_s: wall.as_secs_f64(),
        ios: outcome.ios,
        failed: outcome.failed,
        faults: &outcome.faults,
        violations: &outcome.violations,
    };
    serde_json::to_string(&report).expect("numbers and text")
}

fn tell_failure(seed: u64, level: Level, outcome: &Outcome) {
    eprintln!("seed {seed} at commit {COMMIT}:");
    for violation in &outcome.violations {
        eprintln!("  {violation}");
    }
    let level = level.name();
    eprintln!("replay: cargo run --release -p sim -- --seed {seed} --level {level} --trace");
}
