//! What a run is told as: text for people, JSON for scripts.
//!
//! The JSON's keys are a contract (schema 1): keys may be added, never renamed or dropped. Times
//! are in microseconds, rates per second, sizes in bytes, unless a key says otherwise.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::workload::Bytes;

/// Schema of everything that is printed as JSON.
pub const SCHEMA: u32 = 1;

/// The program's version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("MOORLINE_COMMIT"), ")");

/// Which transport carried a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Our own TCP over AF_XDP.
    Xdp,
    /// Non-blocking kernel sockets.
    Kernel,
}

impl TransportKind {
    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Kernel => "kernel",
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`VERSION`].
    pub version: &'static str,
    /// What carried it.
    pub transport: TransportKind,
    /// fio's name of the workload.
    pub rw: &'static str,
    /// Bytes per I/O.
    pub bs: u32,
    /// I/Os under way per qpair.
    pub iodepth: u16,
    /// I/O qpairs.
    pub qpairs: u16,
    /// Measured seconds.
    pub seconds: f64,
    /// I/Os that succeeded in that time.
    pub ios: u64,
    /// I/Os per second.
    pub iops: f64,
    /// Payload per second.
    pub bytes_per_s: f64,
    /// I/Os that failed, ramp and verification included.
    pub errors: u64,
    /// How they failed: status and count.
    pub errors_by_status: Vec<ErrorCount>,
    /// What `--verify` found.
    pub verify: Option<Verify>,
    /// Latency.
    pub lat_us: Latency,
    /// CPU time per I/O.
    pub cpu: Cpu,
    /// Work per I/O.
    pub counts: Counts,
    /// Under which conditions.
    pub conditions: Conditions,
}

/// Failures of one status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorCount {
    /// What the status means.
    pub status: String,
    /// How often it was seen.
    pub count: u64,
}

/// What `--verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verify {
    /// Blocks checked.
    pub blocks: u64,
    /// Blocks that were wrong.
    pub mismatches: u64,
    /// The first of them, in words.
    pub first: Vec<String>,
}

/// Latency in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean: f64,
    /// Fastest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// 99.99 %.
    pub p9999: f64,
    /// Slowest.
    pub max: f64,
}

impl Latency {
    /// From nanoseconds.
    pub fn from_histogram(nanos: &Histogram<u64>) -> Self {
        let us = |n: u64| n as f64 / 1e3;
        let at = |q| us(nanos.value_at_quantile(q));
        if nanos.is_empty() {
            return Self::default();
        }
        Self {
            mean: nanos.mean() / 1e3,
            min: us(nanos.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: us(nanos.max()),
        }
    }
}

/// CPU time per I/O, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// The host's thread.
    pub host_us_per_io: f64,
    /// The target's process, where it is one that we started.
    pub target_us_per_io: Option<f64>,
}

/// Work per I/O on the host's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Allocations.
    pub allocs_per_io: f64,
    /// Times that a received payload byte is copied in user space.
    pub copies_in: f64,
    /// Times that a sent payload byte is copied in user space.
    pub copies_out: f64,
    /// System calls of the transport.
    pub syscalls_per_io: f64,
    /// Frames sent and received (0 on kernel sockets).
    pub frames_per_io: f64,
    /// Segments sent again, in all.
    pub retransmits: u64,
}

/// What a figure is worth nothing without.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Conditions {
    /// The interface's MTU.
    pub mtu: usize,
    /// `native` or `skb`; `None` where XDP is not used.
    pub xdp_mode: Option<String>,
    /// Whether the rings are zero-copy.
    pub zerocopy: bool,
    /// Header digests.
    pub hdgst: bool,
    /// Data digests.
    pub ddgst: bool,
    /// TCP checksums: `on` or `off` in our stack; of kernel sockets `offloaded` to the interface,
    /// which on veth means none, or else `on`; `unknown` where the interface is.
    pub tcp_checksum: &'static str,
    /// Offloads of both ends.
    pub offloads: Offloads,
    /// Queueing discipline of the host's interface.
    pub qdisc: String,
    /// `busy` or `adaptive`.
    pub poll: &'static str,
    /// Kernel release.
    pub kernel: String,
    /// CPUs on line.
    pub cpus: usize,
    /// Share of the machine's CPU time that the hypervisor took.
    pub steal_pct: f64,
    /// Most time within a sampling interval (100 ms) that the host's thread waited for a CPU.
    pub run_delay_us_max: f64,
    /// How many CPUs each end has: where they are pinned.
    pub pinning: String,
    /// What else a reader must know.
    pub notes: Vec<String>,
}

/// Offloads of both ends, as `rx on tx on tso off gso on gro off`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Offloads {
    /// The host's.
    pub local: String,
    /// The target's; `unknown` where it is not ours.
    pub peer: String,
}

/// Two ways of doing one workload, compared: medians over interleaved rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// fio's name of the workload.
    pub rw: &'static str,
    /// Bytes per I/O.
    pub bs: u32,
    /// I/Os under way per qpair.
    pub iodepth: u16,
    /// The interface's MTU.
    pub mtu: usize,
    /// What is divided by what: `xdp/kernel`.
    pub of: &'static str,
    /// Of the medians; below 1 the first is faster.
    pub p50: f64,
    /// Of the 99 % latencies; below 1 the first is faster.
    pub p99: f64,
    /// Of the rates; above 1 the first is faster.
    pub iops: f64,
    /// Rounds.
    pub rounds: usize,
    /// (largest − smallest) ÷ median of the rounds' ratios of IOPS.
    pub spread: f64,
    /// Raw AF_XDP echo of the same frame sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_p50_us: Option<f64>,
    /// Raw AF_XDP rate at this depth of the same frame sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_iops: Option<f64>,
    /// Ping-pong of the same sizes over plain kernel sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_socket_p50_us: Option<f64>,
}

/// Several runs and what they say together.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`VERSION`].
    pub version: &'static str,
    /// Every run, in the order in which they were made.
    pub runs: Vec<Run>,
    /// The comparisons.
    pub ratios: Vec<Ratio>,
    /// Conditions that all runs share, in words.
    pub conditions: Vec<String>,
}

/// Writes a report to a file, or to standard output for `-`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(report: &impl Serialize, to: &str) -> Result<()> {
    let mut json = serde_json::to_string_pretty(report).context("report as JSON")?;
    json.push('\n');
    if to == "-" {
        return crate::out::text(&json);
    }
    std::fs::write(to, json).with_context(|| format!("cannot write the report to {to}"))
}

/// The middle value (the mean of the middle two); `NaN` of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// (largest − smallest) ÷ median.
pub fn spread(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::MIN, f64::max);
    let min = values.iter().copied().fold(f64::MAX, f64::min);
    (max - min) / median(values.iter().copied())
}

/// A rate for people: `812`, `104.2k`, `1.20M`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 1e6 => format!("{:.2}M", r / 1e6),
        r if r >= 1e4 => format!("{:.1}k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

impl Run {
    /// For people: a dozen lines.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let (lat, cpu, counts) = (&self.lat_us, &self.cpu, &self.counts);
        let bs = Bytes(u64::from(self.bs));
        writeln!(
            out,
            "{} {bs}, depth {} × {} qpair{}, {}, {:.2} s",
            self.rw,
            self.iodepth,
            self.qpairs,
            if self.qpairs == 1 { "" } else { "s" },
            self.transport.description(),
            self.seconds
        )?;
        let mb = self.bytes_per_s / 1e6;
        writeln!(out, "  rate      {} IOPS, {mb:.1} MB/s, {} I/Os", rate(self.iops), self.ios)?;
        writeln!(
            out,
            "  latency   mean {:.1}  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  p99.99 {:.1}  \
             min {:.1}  max {:.1} µs",
            lat.mean, lat.p50, lat.p90, lat.p99, lat.p999, lat.p9999, lat.min, lat.max
        )?;
        let target = cpu.target_us_per_io.map_or("not known".into(), |us| format!("{us:.2} µs"));
        writeln!(out, "  CPU       host {:.2} µs per I/O, target {target}", cpu.host_us_per_io)?;
        writeln!(
            out,
            "  per I/O   {:.2} system calls, {:.2} frames, {:.3} allocations; copies {:.2} in, \
             {:.2} out; {} retransmits in all",
            counts.syscalls_per_io,
            counts.frames_per_io,
            counts.allocs_per_io,
            counts.copies_in,
            counts.copies_out,
            counts.retransmits
        )?;
        self.write_faults(out)?;
        self.conditions.write_text(out)
    }

    fn write_faults(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "  errors    {}", self.errors)?;
        for ErrorCount { status, count } in &self.errors_by_status {
            writeln!(out, "            {count} × {status}")?;
        }
        let Some(verify) = &self.verify else { return Ok(()) };
        writeln!(out, "  verify    {} blocks, {} mismatches", verify.blocks, verify.mismatches)?;
        for line in &verify.first {
            writeln!(out, "            {line}")?;
        }
        Ok(())
    }

    /// Whether something fell short.
    pub fn failed(&self) -> bool {
        self.errors > 0 || self.verify.as_ref().is_some_and(|v| v.mismatches > 0)
    }
}

impl TransportKind {
    const fn description(self) -> &'static str {
        match self {
            Self::Xdp => "own TCP over AF_XDP",
            Self::Kernel => "kernel sockets",
        }
    }
}

impl Conditions {
    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let on = |on| if on { "on" } else { "off" };
        let copy = if self.zerocopy { "zero-copy" } else { "copy mode" };
        let xdp = self.xdp_mode.as_ref();
        let xdp = xdp.map_or("XDP not used".into(), |mode| format!("XDP {mode}, {copy}"));
        writeln!(
            out,
            "  with      MTU {}, {xdp}, digests header {} data {}, TCP checksum {},",
            self.mtu,
            on(self.hdgst),
            on(self.ddgst),
            self.tcp_checksum
        )?;
        writeln!(out, "            polling {}, {}", self.poll, self.pinning)?;
        let Offloads { local, peer } = &self.offloads;
        writeln!(out, "            offloads: host [{local}], target [{peer}]")?;
        writeln!(
            out,
            "            Linux {}, {} CPUs, qdisc {}, steal {:.1} %, longest run delay {:.0} µs",
            self.kernel, self.cpus, self.qdisc, self.steal_pct, self.run_delay_us_max
        )?;
        for note in &self.notes {
            writeln!(out, "  note      {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::Value;

    pub(crate) fn sample() -> Run {
        Run {
            schema: SCHEMA,
            version: VERSION,
            transport: TransportKind::Xdp,
            rw: "randread",
            bs: 4096,
            iodepth: 32,
            qpairs: 1,
            seconds: 5.0,
            ios: 500_000,
            iops: 100_000.0,
            bytes_per_s: 409.6e6,
            errors: 0,
            errors_by_status: Vec::new(),
            verify: None,
            lat_us: Latency::default(),
            cpu: Cpu::default(),
            counts: Counts::default(),
            conditions: Conditions { poll: "busy", ..Conditions::default() },
        }
    }

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    fn assert_keys(value: &Value, contract: &[&str]) {
        let seen = keys(value);
        for key in contract {
            assert!(seen.contains(key), "{key} is missing from {seen:?}");
        }
    }

    #[test]
    fn a_run_has_every_key_of_the_contract() {
        let run = serde_json::to_value(sample()).unwrap();
        assert_keys(
            &run,
            &[
                "schema",
                "version",
                "transport",
                "rw",
                "bs",
                "iodepth",
                "qpairs",
                "seconds",
                "ios",
                "iops",
                "bytes_per_s",
                "errors",
                "verify",
                "lat_us",
                "cpu",
                "counts",
                "conditions",
            ],
        );
        assert_keys(&run["lat_us"], &["mean", "min", "p50", "p90", "p99", "p999", "p9999", "max"]);
        assert_keys(&run["cpu"], &["host_us_per_io", "target_us_per_io"]);
        assert_keys(
            &run["counts"],
            &[
                "allocs_per_io",
                "copies_in",
                "copies_out",
                "syscalls_per_io",
                "frames_per_io",
                "retransmits",
            ],
        );
        assert_keys(
            &run["conditions"],
            &[
                "mtu",
                "xdp_mode",
                "zerocopy",
                "hdgst",
                "ddgst",
                "tcp_checksum",
                "offloads",
                "poll",
                "kernel",
                "cpus",
                "steal_pct",
                "run_delay_us_max",
            ],
        );
        assert_keys(&run["conditions"]["offloads"], &["local", "peer"]);
        assert_eq!(run["transport"], "xdp");
        assert_eq!(run["schema"], 1);
        assert!(run["verify"].is_null() && run["cpu"]["target_us_per_io"].is_null());
    }

    #[test]
    fn a_ratio_has_every_key_of_the_contract() {
        let ratio = Ratio {
            rw: "randread",
            bs: 4096,
            iodepth: 1,
            mtu: 1500,
            of: "xdp/kernel",
            p50: 0.6,
            p99: 0.7,
            iops: 1.6,
            rounds: 5,
            spread: 0.1,
            floor_p50_us: Some(6.8),
            floor_iops: Some(141e3),
            plain_socket_p50_us: Some(14.4),
        };
        let json = serde_json::to_value(&ratio).unwrap();
        assert_keys(
            &json,
            &[
                "rw",
                "bs",
                "iodepth",
                "mtu",
                "of",
                "p50",
                "p99",
                "iops",
                "rounds",
                "spread",
                "floor_p50_us",
                "floor_iops",
                "plain_socket_p50_us",
            ],
        );
    }

    #[test]
    fn the_text_names_what_went_wrong() {
        let mut run = sample();
        assert!(!run.failed());
        run.errors = 3;
        run.errors_by_status = vec![ErrorCount { status: "LBA out of range".into(), count: 3 }];
        run.verify = Some(Verify { blocks: 8, mismatches: 1, first: vec!["LBA 5".into()] });
        let text = run.text();
        assert!(run.failed());
        assert!(text.contains("3 × LBA out of range") && text.contains("LBA 5"), "{text}");
        assert!(text.contains("100.0k IOPS, 409.6 MB/s"), "{text}");
    }

    #[test]
    fn percentiles_are_microseconds() {
        let mut nanos = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for n in 1..=1000 {
            nanos.record(n * 1000).unwrap();
        }
        let lat = Latency::from_histogram(&nanos);
        assert!((lat.p50 - 500.0).abs() < 1.0 && (lat.p99 - 990.0).abs() < 1.0, "{lat:?}");
        assert_eq!(Latency::from_histogram(&Histogram::new(3).unwrap()), Latency::default());
    }

    #[test]
    fn the_median_is_the_middle_and_the_spread_is_relative() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([1.0, 2.0, 3.0, 4.0]), 2.5);
        assert_eq!(spread(&[9.0, 10.0, 11.0]), 0.2);
        assert_eq!(rate(104_200.0), "104.2k");
    }
}
