//! The demonstration's tables: medians side by side, and how they stand to the goals.

use super::compare::Sample;
use super::demo::Row;
use super::report::{Run, TransportKind, median, rate, spread};
use super::workload::Bytes;

const RULE: usize = 96;
/// Run delay, µs in 100 ms, above which the figures are of somebody else's work too.
const BUSY_US: f64 = 5000.0;

/// One MTU's rows: both transports, then the floors.
pub fn comparison(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let rounds = first.xdp.len();
    let mut lines = vec![
        String::new(),
        format!("MTU {}: medians of {rounds} interleaved rounds; times in µs", first.subject.mtu),
        "─".repeat(RULE),
        format!(
            "{:<24} {:>8} {:>7} {:>7} │ {:>8} {:>7} {:>7} │ {:>18}",
            "", "AF_XDP", "p50", "p99", "kernel", "p50", "p99", "AF_XDP is better ×"
        ),
        format!(
            "{:<24} {:>8} {:>7} {:>7} │ {:>8} {:>7} {:>7} │ {:>5} {:>5} {:>6}",
            "workload", "IOPS", "", "", "IOPS", "", "", "rate", "p50", "spread"
        ),
    ];
    lines.extend(rows.iter().map(transports));
    lines.push("─".repeat(RULE));
    lines.push(format!(
        "{:<24} {:>8} {:>9} {:>9} │ {:>8} {:>9} │ {:>10}",
        "floors", "raw QD 1", "raw", "AF_XDP", "AF_XDP", "plain TCP", "kernel"
    ));
    lines.push(format!(
        "{:<24} {:>8} {:>9} {:>9} │ {:>8} {:>9} │ {:>10}",
        "same frames or sizes", "p50", "rate", "reaches", "p50 ÷raw", "p50 QD 1", "p50 ÷plain"
    ));
    lines.extend(rows.iter().map(floors));
    lines.push("─".repeat(RULE));
    lines.join("\n") + "\n"
}

fn name(row: &Row) -> String {
    let subject = &row.subject;
    let bs = Bytes(u64::from(subject.bs)).to_string();
    format!("{bs:>7} {:<9} QD {:<2}", subject.rw, subject.iodepth)
}

fn transports(row: &Row) -> String {
    let (xdp, kernel) = (Sample::median(&row.xdp), Sample::median(&row.kernel));
    let by_round: Vec<f64> =
        row.xdp.iter().zip(&row.kernel).map(|(a, b)| a.iops / b.iops).collect();
    format!(
        "{:<24} {:>8} {:>7.1} {:>7.1} │ {:>8} {:>7.1} {:>7.1} │ {:>5.2} {:>5.2} {:>4.0} %",
        name(row),
        rate(xdp.iops),
        xdp.p50,
        xdp.p99,
        rate(kernel.iops),
        kernel.p50,
        kernel.p99,
        xdp.iops / kernel.iops,
        kernel.p50 / xdp.p50,
        spread(&by_round) * 100.0
    )
}

fn floors(row: &Row) -> String {
    let (xdp, kernel) = (Sample::median(&row.xdp), Sample::median(&row.kernel));
    let (alone, flood) = (Sample::median(&row.alone), Sample::median(&row.flood));
    let plain = Sample::median(&row.plain);
    // A latency at depth says nothing beside one alone.
    let alone_only = |value: f64| match row.subject.iodepth {
        1 => format!("{value:.2}"),
        _ => "–".to_owned(),
    };
    format!(
        "{:<24} {:>8.1} {:>9} {:>7.0} % │ {:>8} {:>9.1} │ {:>9}",
        name(row),
        alone.p50,
        rate(flood.iops),
        100.0 * xdp.iops / flood.iops,
        alone_only(xdp.p50 / alone.p50),
        plain.p50,
        alone_only(kernel.p50 / plain.p50)
    )
}

/// How the figures stand to what we want of them.
pub fn goals(rows: &[Row]) -> String {
    let mut lines = vec![String::new()];
    let mut goal = |row: &Row, what: &str, seen: f64, want: f64, at_least: bool| {
        let met = if at_least { seen >= want } else { seen <= want };
        let (mark, sign) =
            (if met { "met   " } else { "missed" }, if at_least { '≥' } else { '≤' });
        let mtu = row.subject.mtu;
        lines.push(format!(
            "goal {mark}  MTU {mtu} {}: {what} {seen:.2} (want {sign} {want:.2})",
            name(row).trim()
        ));
    };
    for row in rows.iter().filter(|row| row.subject.bs == 4096 && !row.xdp.is_empty()) {
        let (xdp, kernel) = (Sample::median(&row.xdp), Sample::median(&row.kernel));
        let flood = Sample::median(&row.flood);
        match row.subject.iodepth {
            1 => {
                let want = if row.subject.mtu <= 1500 { 1.3 } else { 1.4 };
                goal(row, "kernel's p50 ÷ AF_XDP's", kernel.p50 / xdp.p50, want, true);
                let raw = Sample::median(&row.alone).p50;
                goal(row, "AF_XDP's p50 ÷ raw echo's", xdp.p50 / raw, 1.8, false);
                let plain = Sample::median(&row.plain).p50;
                goal(row, "kernel's p50 ÷ plain ping-pong's", kernel.p50 / plain, 1.3, false);
            }
            _ => goal(row, "AF_XDP's rate ÷ raw floor's", xdp.iops / flood.iops, 0.7, true),
        }
    }
    lines.join("\n") + "\n"
}

/// What all runs had in common, and what their I/Os came to.
pub fn conditions(runs: &[Run]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let errors: u64 = runs.iter().map(|run| run.errors).sum();
    let verified = runs.iter().filter_map(|run| run.verify.as_ref());
    let (blocks, mismatches) = verified.fold((0, 0), |(b, m), v| (b + v.blocks, m + v.mismatches));
    let ios: u64 = runs.iter().map(|run| run.ios).sum();
    let mut lines = vec![
        String::new(),
        format!("{ios} I/Os, {errors} errors; {blocks} blocks verified, {mismatches} mismatches"),
    ];
    for kind in [TransportKind::Xdp, TransportKind::Kernel] {
        let of_kind: Vec<&Run> = runs.iter().filter(|run| run.transport == kind).collect();
        if let Some(run) = of_kind.first() {
            lines.push(transport_conditions(run, &of_kind));
        }
    }
    let with = &first.conditions;
    let steal = median(runs.iter().map(|run| run.conditions.steal_pct));
    let delay = runs.iter().map(|run| run.conditions.run_delay_us_max).fold(0.0, f64::max);
    lines.push(format!(
        "Linux {}, {} CPUs, {}; qdisc {}; polling {}; steal {steal:.1} %, longest run delay \
         {delay:.0} µs",
        with.kernel, with.cpus, with.pinning, with.qdisc, with.poll
    ));
    let delays = runs.iter().map(|run| run.conditions.run_delay_us_max);
    if median(delays) > BUSY_US {
        lines.push("other processes used these CPUs: repeat it on a quiet machine".to_owned());
    }
    lines.extend(shared_conditions());
    lines.join("\n") + "\n"
}

fn transport_conditions(first: &Run, all: &[&Run]) -> String {
    let of = |f: fn(&Run) -> f64| median(all.iter().map(|run| f(run)));
    let host = of(|run| run.cpu.host_us_per_io);
    let target = of(|run| run.cpu.target_us_per_io.unwrap_or(f64::NAN));
    let with = &first.conditions;
    let mode = with.xdp_mode.as_ref().map_or("XDP detached".to_owned(), |mode| {
        let copy = if with.zerocopy { "zero-copy" } else { "copy mode" };
        format!("XDP {mode}, {copy}")
    });
    let most = |f: fn(&Run) -> f64| all.iter().map(|run| f(run)).fold(0.0, f64::max);
    format!(
        "{:<6} {mode}; TCP checksum {}; CPU per I/O, median of all: host {host:.1} µs, target {target:.1} µs; at \
         most {:.3} allocations per I/O, {:.2} copies in, {:.2} out\n       offloads: host [{}], \
         target [{}]",
        first.transport.name(),
        with.tcp_checksum,
        most(|run| run.counts.allocs_per_io),
        most(|run| run.counts.copies_in),
        most(|run| run.counts.copies_out),
        with.offloads.local,
        with.offloads.peer
    )
}

/// What holds for every figure of a demonstration, in words.
pub fn shared_conditions() -> Vec<String> {
    vec![
        "veth bills the receiver's work to the sender: read the CPU of both ends together".into(),
        "copy-mode AF_XDP cannot follow kernel TCP with TSO in bulk: raw is what it could reach"
            .into(),
        "at depth TCP puts several PDUs into one frame, raw AF_XDP each exchange's by themselves: \
         more than 100 % of the floor is possible, above all at MTU 9000"
            .into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::compare::Subject;

    fn row() -> Row {
        let sample = |p50: f64, iops| vec![Sample { p50, p99: 2.0 * p50, iops }; 5];
        Row {
            subject: Subject { rw: "randread", bs: 4096, iodepth: 1, mtu: 1500 },
            xdp: sample(9.3, 104_000.0),
            kernel: sample(14.4, 71_000.0),
            alone: sample(6.8, 141_000.0),
            flood: sample(6.8, 141_000.0),
            plain: sample(13.0, 76_000.0),
        }
    }

    #[test]
    fn the_table_has_both_transports_and_the_floors_and_fits_a_screen() {
        let text = comparison(&[row()]);
        for part in ["104.0k", "71.0k", "1.46", "1.55", "141.0k", "74 %", "1.37", "1.11"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "\n{text}");
    }

    #[test]
    fn goals_are_said_to_be_met_or_missed() {
        let text = goals(&[row()]);
        assert_eq!(text.matches("goal met").count(), 3, "{text}");
        let mut slow = row();
        slow.xdp = slow.kernel.clone();
        assert_eq!(goals(&[slow]).matches("goal missed").count(), 2);
    }
}
