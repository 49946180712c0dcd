//! What a run of a scenario came to: from what the host told, to figures, checks and text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Scenario;
use crate::perf::report::{SCHEMA, TransportKind, VERSION, median};

/// One quarter of a second of the healthy load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tick {
    /// Its end, microseconds.
    pub at: u64,
    /// I/Os that ended.
    pub ios: u64,
    /// Their 99th percentile.
    pub p99: u64,
    /// Longest time without an end.
    pub gap: u64,
    /// The same less run delay.
    pub gap_less: u64,
    /// SYNs sent.
    pub syns: u64,
    /// Dead controllers that are live.
    pub live: usize,
}

/// One outage.
#[derive(Clone, Debug)]
pub struct Outage {
    /// The fault.
    pub fault: super::Fault,
    /// Begin, end (the target listens again), and end of the time to recover, microseconds.
    pub at: [u64; 3],
    /// Per controller: whether it was lost, and when it became live last after that.
    pub ctrls: Vec<(bool, Option<u64>)>,
    /// Who had to be lost.
    pub loses: Option<super::Loses>,
    /// Controllers that gave another reason than they had to, just before the end.
    pub misnamed: Option<usize>,
}

impl Outage {
    /// Controllers that were lost.
    fn lost(&self) -> usize {
        self.ctrls.iter().filter(|(lost, _)| *lost).count()
    }

    /// Whether it lost those that it had to.
    fn as_said(&self) -> bool {
        match self.loses {
            None => true,
            Some(super::Loses::All) => self.lost() == self.ctrls.len(),
            Some(super::Loses::None) => self.lost() == 0,
        }
    }
}

/// All that was seen in a run at one depth.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The load's queue depth.
    pub depth: u16,
    /// The load, tick by tick.
    pub ticks: Vec<Tick>,
    /// The outages, in order.
    pub outages: Vec<Outage>,
    /// The host's totals.
    pub end: Value,
    /// When the host began to connect, and when each dead controller was live first, microseconds.
    pub connecting: u64,
    /// See `connecting`.
    pub cold: Vec<u64>,
    /// The most memory that the host, and the process of the dead targets, have had.
    pub memory: Value,
    /// When the load was steady, microseconds.
    pub started: u64,
    /// The longest gap of each tick that has one to look at, as the host tells it.
    pub gaps: Vec<Value>,
    /// How `moorline ctl` answered in the middle of an outage.
    pub asked: Option<Value>,
    /// Why dead controllers were lost, or not reached, and how often each.
    pub reasons: BTreeMap<String, u64>,
}

/// Gaps that are told of.
const GAPS: usize = 5;

fn sum(numbers: &Value) -> u64 {
    numbers.as_array().into_iter().flatten().filter_map(Value::as_u64).sum()
}

/// The 5th and 95th percentile of ticks before the faults, over their median.
fn interval(values: &[f64]) -> (f64, [f64; 2]) {
    let mid = median(values.iter().copied());
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get((share * sorted.len() as f64) as usize).copied();
    let (low, high) = (at(0.05).unwrap_or(f64::NAN), at(0.95).unwrap_or(f64::NAN));
    (mid, [low / mid, high / mid])
}

/// How sorted figures lie.
fn spread(sorted: &[f64], unit: &str) -> Value {
    let at = |share: f64| {
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).copied()
    };
    json!({ "unit": unit, "count": sorted.len(), "min": at(0.0), "p10": at(0.1), "p50": at(0.5),
            "p90": at(0.9), "max": at(1.0) })
}

impl Seen {
    /// The ticks that lie between two times.
    fn between(&self, from: u64, to: u64) -> impl Iterator<Item = &Tick> {
        let length = super::TICK.as_micros() as u64;
        self.ticks.iter().filter(move |t| t.at.saturating_sub(length) >= from && t.at <= to)
    }

    /// SYNs of a tick, as a rate; a tick may be longer than it should be.
    fn syns_per_s_max(&self) -> f64 {
        let rate = |two: &[Tick]| {
            let micros = two[1].at.saturating_sub(two[0].at).max(1);
            two[1].syns as f64 * 1e6 / micros as f64
        };
        let start = Tick { at: self.connecting, ..Tick::default() };
        let first = self.ticks.first().map_or(0.0, |tick| rate(&[start, *tick]));
        self.ticks.windows(2).map(rate).fold(first, f64::max)
    }

    /// How long after the host began to connect each dead controller was live, milliseconds.
    fn cold_ms(&self) -> Vec<f64> {
        let ms = |&live: &u64| live.saturating_sub(self.connecting) as f64 / 1e3;
        let mut all: Vec<f64> = self.cold.iter().map(ms).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// How long after its target listened each controller that was lost was live, milliseconds.
    fn recoveries(&self) -> Vec<f64> {
        let of = |outage: &Outage| {
            let listening = outage.at[1];
            let lost = outage.ctrls.clone().into_iter().filter(|(lost, _)| *lost);
            let lives = lost.filter_map(|(_, live)| live);
            lives.map(|live| live.saturating_sub(listening) as f64 / 1e3).collect::<Vec<_>>()
        };
        let mut all: Vec<f64> = self.outages.iter().flat_map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// The report, by the contract.
    pub fn report(&self, scenario: &Scenario, transport: TransportKind) -> Value {
        let end = &self.end;
        let mut report = json!({
            "schema": SCHEMA, "version": VERSION, "scenario": scenario.name,
            "transport": transport.name(), "iodepth": self.depth,
            "healthy": self.healthy(),
            "dead": self.dead(scenario),
            "reactor": {
                "work_per_turn_max": {
                    "events": end["events_per_turn_max"], "timers": end["deadlines_per_turn_max"],
                },
                "turn_us_p999": end["turn_us_p999"], "turn_us_max": end["turn_us_max"],
            },
            "verify": end["verify"],
            "outages": self.outages.iter().map(|o| self.outage(o)).collect::<Vec<_>>(),
            "cold": spread(&self.cold_ms(), "ms"),
            "syns": end["syns"], "syns_per_s_max": self.syns_per_s_max(),
            "memory": self.memory,
            "conditions": {
                "kernel": crate::perf::measure::kernel(), "cpus": crate::perf::measure::cpus(),
                "mtu": 1500,
            },
        });
        let gaps = self.longest_gaps(self.last());
        let softirq = |gap: &Value| sum(&gap["ksoftirqd_delay_us"]);
        report["healthy"]["max_gap_ksoftirqd_delay_us"] = gaps.iter().map(softirq).max().into();
        report["gaps"] = gaps.into();
        if let Some(asked) = &self.asked {
            report["ctl_p90_us"] = asked["p90_us"].clone();
            report["ctl"] = asked.clone();
        }
        let checks = checks(scenario, &report);
        report["pass"] = checks.iter().all(|check| check["pass"] == true).into();
        report["expectations"] = checks.into();
        report
    }

    /// When the last outage was over.
    fn last(&self) -> u64 {
        self.outages.last().map_or(u64::MAX, |outage| outage.at[2])
    }

    /// What the load came to, before the outages and during them.
    fn healthy(&self) -> Value {
        let first = self.outages.first().map_or(u64::MAX, |outage| outage.at[0]);
        let before: Vec<Tick> = self.between(self.started, first).copied().collect();
        let dark = |o: &Outage| self.between(o.at[0], o.at[1]).copied().collect::<Vec<_>>();
        let during: Vec<Tick> = self.outages.iter().flat_map(dark).collect();
        let faulty: Vec<Tick> = self.between(first, self.last()).copied().collect();
        let per_s = |t: &Tick| t.ios as f64 / super::TICK.as_secs_f64();
        let (iops_before, iops_interval) = interval(&before.iter().map(per_s).collect::<Vec<_>>());
        let p99s: Vec<f64> = before.iter().map(|t| t.p99 as f64).collect();
        let (p99_before, p99_interval) = interval(&p99s);
        let iops_during = median(during.iter().map(per_s));
        let p99_during = median(during.iter().map(|t| t.p99 as f64));
        let max = |of: fn(&Tick) -> u64, ticks: &[Tick]| ticks.iter().map(of).max().unwrap_or(0);
        let end = &self.end;
        json!({
            "ios": end["ios"], "errors": end["errors"],
            "iops_before": iops_before, "iops_during": iops_during,
            "iops_ratio": iops_during / iops_before, "p99_ratio": p99_during / p99_before,
            "p99_before_us": p99_before, "p99_during_us": p99_during,
            "interval": iops_interval, "p99_interval": p99_interval,
            "max_gap_before_us": max(|t| t.gap, &before),
            "max_gap_us": max(|t| t.gap, &faulty),
            "max_gap_less_run_delay_us": max(|t| t.gap_less, &faulty),
            "retransmits": end["healthy_retransmits"],
            // A lost keep alive always loses its controller.
            "keepalives_lost": end["losses"], "ka_late_max_us": end["ka_late_max_us"],
        })
    }

    /// What became of the controllers whose targets went.
    fn dead(&self, scenario: &Scenario) -> Value {
        let recoveries = self.recoveries();
        let pairs = || self.outages.iter().flat_map(|outage| &outage.ctrls);
        // Keep alive finds every silence in less: who kept quiet then has nothing to recover from.
        let long = 2 * scenario.kato.as_micros() as u64;
        let unnoticed = self.outages.iter().filter(|outage| outage.at[1] - outage.at[0] >= long);
        let unnoticed = unnoticed.filter(|o| o.ctrls.iter().any(|(lost, _)| !lost)).count();
        let unrecovered = pairs().filter(|(lost, live)| *lost && live.is_none()).count();
        let end = &self.end;
        json!({
            "controllers": scenario.dead, "outages": self.outages.len(),
            "reasons": self.reasons, "lost": pairs().filter(|(lost, _)| *lost).count(),
            "unrecovered": unrecovered, "unnoticed": unnoticed,
            "recovered": self.recovered_of_worst(scenario.dead),
            "recovered_ms": spread(&recoveries, "ms"),
            "recovered_ms_max": recoveries.last().copied().unwrap_or(0.0),
            "recovered_ms_p50": recoveries.get(recoveries.len() / 2).copied().unwrap_or(0.0),
            "attempts": end["attempts"], "deadline_early": end["deadlines_early"],
            "deadline_late_max_us": end["deadline_late_max_us"],
            "deadlines_late": end["deadlines_late"],
        })
    }

    /// The longest gaps less run delay of the healthy load, the longest first, until `last`.
    fn longest_gaps(&self, last: u64) -> Vec<Value> {
        let at = |gap: &Value| gap["t_us"].as_u64().unwrap_or(0);
        let within = self.gaps.iter().filter(|gap| (self.started..=last).contains(&at(gap)));
        let mut gaps: Vec<Value> = within.cloned().collect();
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap["gap_less_run_delay_us"].as_u64()));
        gaps.truncate(GAPS);
        for gap in &mut gaps {
            let at = at(gap);
            let under_way = self.outages.iter().find(|o| (o.at[0]..o.at[2]).contains(&at));
            gap["at_us"] = (at - self.started).into();
            gap["outage"] = under_way.map(|outage| outage.fault.to_string()).into();
        }
        gaps
    }

    /// How many controllers were there again after the worst outage.
    fn recovered_of_worst(&self, dead: u16) -> usize {
        let back = |outage: &Outage| {
            outage.ctrls.iter().filter(|(lost, live)| !*lost || live.is_some()).count()
        };
        self.outages.iter().map(back).min().unwrap_or(dead.into())
    }

    fn outage(&self, outage: &Outage) -> Value {
        let live = outage.ctrls.iter().filter_map(|(_, live)| *live);
        let worst = live.map(|live| live.saturating_sub(outage.at[1])).max().unwrap_or(0);
        json!({
            "fault": outage.fault.to_string(),
            "at_us": outage.at[0].saturating_sub(self.started),
            "dead_us": outage.at[1] - outage.at[0],
            "lost": outage.lost(),
            "as_said": outage.as_said(),
            "misnamed": outage.misnamed,
            "recovered_ms_max": worst as f64 / 1e3,
        })
    }

    /// A line a second: IOPS as a bar, longest gap, and what was going on.
    pub fn plot(&self) -> String {
        let ticks: Vec<&Tick> = self.ticks.iter().filter(|t| t.at >= self.started).collect();
        let seconds: Vec<&[&Tick]> = ticks.chunks(4).filter(|chunk| chunk.len() == 4).collect();
        let ios = |chunk: &[&Tick]| chunk.iter().map(|t| t.ios).sum::<u64>();
        let most = seconds.iter().map(|chunk| ios(chunk)).max().unwrap_or(1).max(1);
        let mut text = String::from("    s     IOPS  max gap\n");
        for (second, chunk) in seconds.iter().enumerate() {
            let bar = "#".repeat((ios(chunk) * 40 / most) as usize);
            let gap = chunk.iter().map(|t| t.gap).max().unwrap_or(0) as f64 / 1e3;
            let at = chunk[3].at;
            let under_way = self.outages.iter().find(|o| (o.at[0]..o.at[1]).contains(&at));
            let what = under_way.map_or_else(String::new, |outage| outage.fault.to_string());
            // Writing to a string does not fail.
            let _ = writeln!(text, "{second:5} {:8} {gap:6.1}ms {bar:40} {what}", ios(chunk));
        }
        text
    }
}

fn checks(scenario: &Scenario, report: &Value) -> Vec<Value> {
    let (healthy, dead) = (&report["healthy"], &report["dead"]);
    let most = |name: &str, limit: u64, seen: &Value| {
        let pass = seen.as_f64().is_some_and(|seen| seen <= limit as f64);
        json!({ "name": name, "limit": limit, "seen": seen, "pass": pass })
    };
    let mut checks = vec![
        most("healthy errors", 0, &healthy["errors"]),
        most("healthy keep alives lost", 0, &healthy["keepalives_lost"]),
        most("deadlines early", 0, &dead["deadline_early"]),
        most("deadlines later than one turn", 0, &dead["deadlines_late"]),
        most("dead controllers not live again", 0, &dead["unrecovered"]),
    ];
    let outages = || report["outages"].as_array().into_iter().flatten();
    if scenario.timeline.faults.iter().any(|step| step.loses.is_some()) {
        let not = outages().filter(|outage| outage["as_said"] == false).count();
        checks.push(most("outages that lost others than they had to", 0, &not.into()));
    }
    if scenario.timeline.faults.iter().any(|step| step.reason.is_some()) {
        let other: u64 = outages().filter_map(|outage| outage["misnamed"].as_u64()).sum();
        checks.push(most("dead that gave another reason than they had", 0, &other.into()));
    }
    let verify = &report["verify"];
    if scenario.verify.is_some() {
        for (name, key) in [
            ("verify: blocks wrong", "mismatches"),
            ("verify: writes lost", "lost"),
            ("verify: writes repeated", "repeated"),
            ("verify: blocks not read in the end", "unread"),
            ("verify: errors other than a lost path's", "errors"),
            ("commands completed twice", "double"),
            ("commands not completed", "missing"),
        ] {
            checks.push(most(name, 0, &verify[key]));
        }
    }
    let expect = &scenario.expect;
    if let Some(limit) = expect.ctl_p90_us_max {
        let ctl = &report["ctl"];
        checks.push(most("ctl, p90 of 100 calls, us", limit, &ctl["p90_us"]));
        let unexplained = &ctl["unexplained"];
        checks.push(most("dead without state, reason or time in ctl", 0, unexplained));
        let pass = ctl["dead_seen"].as_u64() > Some(0);
        checks.push(json!({ "name": "dead seen by ctl, at least", "limit": 1,
                            "seen": ctl["dead_seen"], "pass": pass }));
    }
    if let Some(limit) = expect.max_gap_less_run_delay_us {
        let seen = &healthy["max_gap_less_run_delay_us"];
        checks.push(most("healthy gap less run delay, us", limit, seen));
    }
    if let Some(limit) = expect.recovered_ms_max {
        checks.push(most("all live after listening, ms", limit, &dead["recovered_ms_max"]));
        checks.push(most("outages too long to miss, and missed", 0, &dead["unnoticed"]));
    }
    if let Some(limit) = expect.cold_ms_max {
        checks.push(most("all live after the first connect, ms", limit, &report["cold"]["max"]));
    }
    if let Some(limit) = expect.syns_per_s_max {
        checks.push(most("SYNs a second", limit, &report["syns_per_s_max"]));
    }
    if expect.within_interval {
        let (iops, low) = (&healthy["iops_ratio"], &healthy["interval"][0]);
        let pass = iops.as_f64().zip(low.as_f64()).is_some_and(|(seen, low)| seen >= low);
        checks.push(json!({ "name": "IOPS ratio, at least", "limit": low, "seen": iops,
                            "pass": pass }));
        let (p99, high) = (&healthy["p99_ratio"], &healthy["p99_interval"][1]);
        let pass = p99.as_f64().zip(high.as_f64()).is_some_and(|(seen, high)| seen <= high);
        checks.push(json!({ "name": "p99 ratio, at most", "limit": high, "seen": p99,
                            "pass": pass }));
    }
    checks
}

/// A report's longest gaps, and what went on meanwhile, for a person. The gap, the gap less run
/// delay, that of the host's and of the target's thread and of ksoftirqd of each CPU, the longest
/// turn of the host and the longest time between two, in milliseconds.
pub fn gap_table(report: &Value) -> String {
    let mut text = String::from(
        "  gaps, ms:  at s      gap     less     host   target     turn  between  retrans  \
         ksoftirqd, outage\n",
    );
    let ms = |value: &Value| value.as_f64().unwrap_or(f64::NAN) / 1e3;
    for gap in report["gaps"].as_array().into_iter().flatten() {
        let softirqs = gap["ksoftirqd_delay_us"].as_array().into_iter().flatten();
        let softirqs: Vec<_> = softirqs.map(|delay| format!("{:.1}", ms(delay))).collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  {:14.1} {:8.1} {:8.1} {:8.1} {:8.1} {:8.1} {:8.1} {:8}  {} {}",
            ms(&gap["at_us"]) / 1e3,
            ms(&gap["gap_us"]),
            ms(&gap["gap_less_run_delay_us"]),
            ms(&gap["host_delay_us"]),
            ms(&gap["target_delay_us"]),
            ms(&gap["turn_us"]),
            ms(&gap["between_turns_us"]),
            gap["retransmits"].as_u64().unwrap_or(0),
            softirqs.join(" "),
            gap["outage"].as_str().unwrap_or_default(),
        );
    }
    text
}

/// A report's outages and checks, for a person.
pub fn table(report: &Value) -> String {
    let mut text = String::new();
    let (healthy, dead) = (&report["healthy"], &report["dead"]);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} on {}, QD {}: IOPS before {:.0}, during {:.0}; p99 {:.0} us, {:.0} us; recovered p50 \
         {:.1} ms, max {:.1} ms",
        report["scenario"].as_str().unwrap_or_default(),
        report["transport"].as_str().unwrap_or_default(),
        report["iodepth"],
        healthy["iops_before"].as_f64().unwrap_or(f64::NAN),
        healthy["iops_during"].as_f64().unwrap_or(f64::NAN),
        healthy["p99_before_us"].as_f64().unwrap_or(f64::NAN),
        healthy["p99_during_us"].as_f64().unwrap_or(f64::NAN),
        dead["recovered_ms_p50"].as_f64().unwrap_or(f64::NAN),
        dead["recovered_ms_max"].as_f64().unwrap_or(f64::NAN),
    );
    let spread = |what: &str, of: &Value| {
        let ms = |name: &str| of[name].as_f64().unwrap_or(f64::NAN);
        let (min, p10, p50, p90, max) = (ms("min"), ms("p10"), ms("p50"), ms("p90"), ms("max"));
        format!("  {what}: {min:.1} {p10:.1} {p50:.1} {p90:.1} {max:.1} ms (min p10 p50 p90 max)\n")
    };
    if report["cold"]["count"].as_u64() > Some(0) {
        text.push_str(&spread("live after the first connect", &report["cold"]));
    }
    text.push_str(&spread("live after listening", &dead["recovered_ms"]));
    for outage in report["outages"].as_array().into_iter().flatten() {
        let recovered = outage["recovered_ms_max"].as_f64().unwrap_or(f64::NAN);
        let back = match outage["lost"].as_u64() {
            Some(0) => "nobody lost".to_owned(),
            _ => format!("{} lost, all live {recovered:.1} ms after listening", outage["lost"]),
        };
        let _ = writeln!(
            text,
            "  {:9}  away {:6.2} s, {back}",
            outage["fault"].as_str().unwrap_or_default(),
            outage["dead_us"].as_f64().unwrap_or(f64::NAN) / 1e6,
        );
    }
    if let (Some(host), Some(dead)) =
        (report["memory"]["host_peak_kib"].as_u64(), report["memory"]["dead_peak_kib"].as_u64())
    {
        let (host, dead) = (host / 1024, dead / 1024);
        let _ = writeln!(text, "  memory at most: host {host} MiB, dead targets {dead} MiB");
    }
    for (reason, times) in dead["reasons"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "  {times:>4} times  {reason}");
    }
    for check in report["expectations"].as_array().into_iter().flatten() {
        let name = check["name"].as_str().unwrap_or_default();
        let word = if check["pass"] == true { "ok" } else { "MISSED" };
        let round = |value: &Value| value.as_f64().map_or(f64::NAN, |v| (v * 1e3).round() / 1e3);
        let (limit, seen) = (round(&check["limit"]), round(&check["seen"]));
        let _ = writeln!(text, "  {word:6}  {name}: {seen} (limit {limit})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Fault, Loses};

    /// A run of ten seconds, 100 I/Os a tick, with one outage from second 2 to second 6.
    fn seen(ctrls: Vec<(bool, Option<u64>)>) -> Seen {
        let tick = |i: u64| Tick {
            at: i * 250_000,
            ios: 100,
            p99: 40,
            gap: i,
            gap_less: i / 2,
            syns: 7,
            live: 1,
        };
        let at = [2_000_000, 6_000_000, 10_000_000];
        Seen {
            depth: 1,
            ticks: (1..=40).map(tick).collect(),
            outages: vec![Outage { fault: Fault::Exit, at, ctrls, loses: None, misnamed: None }],
            end: json!({
                "ios": 4000, "errors": 0, "losses": 0, "deadlines_early": 0, "deadlines_late": 0,
            }),
            started: 0,
            ..Seen::default()
        }
    }

    fn scenario() -> Scenario {
        Scenario::load(std::path::Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/rig/scenarios/restart.toml"
        )))
        .unwrap()
    }

    #[test]
    fn who_was_lost_and_came_back_is_measured_from_listening() {
        let back = vec![(true, Some(6_100_000)), (true, Some(6_040_000)), (false, None)];
        let report = seen(back).report(&scenario(), TransportKind::Xdp);
        assert_eq!(report["dead"]["recovered_ms_max"], 100.0);
        assert_eq!(report["dead"]["recovered"], 3);
        assert_eq!(report["dead"]["lost"], 2);
        assert_eq!(report["healthy"]["iops_ratio"], 1.0);
        assert_eq!(report["healthy"]["max_gap_us"], 40);
        assert_eq!(report["healthy"]["max_gap_before_us"], 8);
        assert_eq!(report["pass"], true, "{:#}", report["expectations"]);
    }

    #[test]
    fn who_did_not_come_back_is_a_failed_check() {
        let report =
            seen(vec![(true, None), (false, None)]).report(&scenario(), TransportKind::Xdp);
        assert_eq!(report["dead"]["recovered"], 1);
        assert_eq!(report["pass"], false);
        assert!(table(&report).contains("MISSED  dead controllers not live again: 1"));
    }

    #[test]
    fn an_outage_that_nobody_noticed_is_no_recovery() {
        let mut short = seen(vec![(false, None)]);
        let report = short.report(&scenario(), TransportKind::Xdp);
        assert_eq!(report["pass"], true, "too short to be noticed");
        assert!(table(&report).contains("nobody lost"));
        short.outages[0].at = [2_000_000, 12_000_000, 14_000_000];
        let report = short.report(&scenario(), TransportKind::Xdp);
        assert_eq!(report["pass"], false);
    }

    #[test]
    fn an_outage_that_lost_others_than_it_had_to_is_a_failed_check() {
        let mut scenario = scenario();
        scenario.timeline.faults[0].loses = Some(Loses::All);
        for (lost, pass) in [(true, true), (false, false)] {
            let mut seen = seen(vec![(true, Some(6_100_000)), (lost, Some(6_100_000))]);
            seen.outages[0].loses = Some(Loses::All);
            assert_eq!(seen.report(&scenario, TransportKind::Xdp)["pass"], pass);
        }
    }

    #[test]
    fn a_lost_write_or_a_command_completed_twice_is_a_failed_check() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/scenarios/freeze.toml");
        let scenario = Scenario::load(std::path::Path::new(path)).unwrap();
        let counts = ["mismatches", "lost", "repeated", "unread", "errors", "double", "missing"];
        let none: serde_json::Map<_, _> =
            counts.map(|name| (name.to_owned(), json!(0))).into_iter().collect();
        let verdict = |verify: Value| {
            let mut seen = seen(vec![(true, Some(6_100_000))]);
            seen.end["verify"] = verify;
            seen.report(&scenario, TransportKind::Xdp)["pass"].clone()
        };
        assert_eq!(verdict(none.clone().into()), true);
        for count in counts {
            let mut one = none.clone();
            one[count] = json!(1);
            assert_eq!(verdict(one.into()), false, "{count}");
        }
        assert_eq!(verdict(Value::Null), false, "nothing was verified");
    }
}
