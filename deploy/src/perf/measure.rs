//! What the machine says about a run: CPU time, run delay, steal, allocations, offloads.
//!
//! Everything is read from the kernel at the start and the end, or at the slow tick between; a
//! figure that cannot be read is `None` or zero, never an error: a run is worth more than its
//! footnotes.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use stats_alloc::INSTRUMENTED_SYSTEM;

/// Allocations and reallocations since the program started, all threads together; zero where
/// `main.rs` did not make the counting allocator the global one.
pub fn allocations() -> u64 {
    let stats = INSTRUMENTED_SYSTEM.stats();
    (stats.allocations + stats.reallocations) as u64
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// CPU time of a process, all its threads together; `None` when it is gone.
pub fn process_cpu(pid: u32) -> Option<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let schedstat = fs::read(task.ok()?.path().join("schedstat")).ok()?;
        nanos += number(&schedstat, 0)?;
    }
    Some(Duration::from_nanos(nanos))
}

/// The `index`th number of a line of them.
fn number(line: &[u8], index: usize) -> Option<u64> {
    let word = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).nth(index)?;
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// The time that the calling thread was runnable, but not running. Sampled without allocation.
#[derive(Debug)]
pub struct RunDelay {
    schedstat: Option<File>,
    last: u64,
    max: u64,
}

impl RunDelay {
    /// For the calling thread.
    pub fn new() -> Self {
        let mut this =
            Self { schedstat: File::open("/proc/thread-self/schedstat").ok(), last: 0, max: 0 };
        this.last = this.read();
        this
    }

    fn read(&self) -> u64 {
        let mut line = [0; 96];
        let length = self.schedstat.as_ref().and_then(|f| f.read_at(&mut line, 0).ok());
        length.and_then(|n| number(&line[..n], 1)).unwrap_or(self.last)
    }

    /// Closes an interval.
    pub fn sample(&mut self) {
        let total = self.read();
        self.max = self.max.max(total - self.last);
        self.last = total;
    }

    /// Starts again, as from `new`.
    pub fn restart(&mut self) {
        self.last = self.read();
        self.max = 0;
    }

    /// The most run delay within one interval.
    pub const fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }
}

impl Default for RunDelay {
    fn default() -> Self {
        Self::new()
    }
}

/// The machine's CPU time so far, in ticks: stolen by the hypervisor, and in all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    steal: u64,
    all: u64,
}

impl Ticks {
    /// Now.
    pub fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Self {
        let first = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is within user and nice.
        let ticks = first.split_whitespace().skip(1).take(8).map(|w| w.parse().unwrap_or(0));
        let ticks: Vec<u64> = ticks.collect();
        Self { steal: ticks.get(7).copied().unwrap_or(0), all: ticks.iter().sum() }
    }

    /// Percent of the machine's CPU time stolen since `earlier`.
    pub fn steal_percent_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        if all == 0 {
            return 0.0;
        }
        100.0 * self.steal.saturating_sub(earlier.steal) as f64 / all as f64
    }
}

/// The kernel's release.
pub fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// CPUs on line, whatever this thread is pinned to.
pub fn cpus() -> usize {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let per_cpu = stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu "));
    per_cpu.count().max(1)
}

/// Pins the calling thread to one CPU; returns whether that worked (there may be only one).
pub fn pin(cpu: usize) -> bool {
    if cpu >= cpus() {
        return false;
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).is_ok()
}

/// The interface by which an address is reached from this thread's namespace.
pub fn route_dev(addr: IpAddr) -> Option<String> {
    let out = Command::new("ip").args(["-o", "route", "get", &addr.to_string()]).output().ok()?;
    word_after(&String::from_utf8_lossy(&out.stdout), "dev").map(str::to_owned)
}

/// An interface as the kernel has set it up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Largest IP packet, bytes.
    pub mtu: usize,
    /// Queueing discipline.
    pub qdisc: String,
}

impl Device {
    /// That of this thread's namespace with this name.
    pub fn of(name: &str) -> Option<Self> {
        let out = Command::new("ip").args(["-o", "link", "show", "dev", name]).output().ok()?;
        Self::parse(&String::from_utf8_lossy(&out.stdout))
    }

    fn parse(line: &str) -> Option<Self> {
        let mtu = word_after(line, "mtu")?.parse().ok()?;
        let qdisc = word_after(line, "qdisc").unwrap_or("unknown").to_owned();
        Some(Self { mtu, qdisc })
    }
}

fn word_after<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.split_whitespace().skip_while(|w| *w != word).nth(1)
}

/// The offloads of an interface in this thread's namespace, or in the named one:
/// `rx on tx on tso on gso on gro off`.
pub fn offloads(netns: Option<&str>, interface: &str) -> String {
    let mut command = match netns {
        Some(name) => {
            let mut ip = Command::new("ip");
            ip.args(["netns", "exec", name, "ethtool"]);
            ip
        }
        None => Command::new("ethtool"),
    };
    match command.args(["-k", interface]).output() {
        Ok(out) if out.status.success() => summary(&String::from_utf8_lossy(&out.stdout)),
        _ => "unknown".to_owned(),
    }
}

fn summary(features: &str) -> String {
    const NAMES: [(&str, &str); 5] = [
        ("rx-checksumming", "rx"),
        ("tx-checksumming", "tx"),
        ("tcp-segmentation-offload", "tso"),
        ("generic-segmentation-offload", "gso"),
        ("generic-receive-offload", "gro"),
    ];
    let state = |name| {
        let line = features.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|l| l.split_whitespace().next()).unwrap_or("?")
    };
    NAMES.map(|(name, short)| format!("{short} {}", state(name))).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_is_seen_from_inside_and_outside() {
        let before = thread_cpu();
        let mut x = 1u64;
        while thread_cpu() - before < Duration::from_millis(2) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(process_cpu(std::process::id()).unwrap() >= Duration::from_millis(2));
        assert_eq!(process_cpu(u32::MAX), None);
    }

    #[test]
    fn run_delay_is_the_largest_interval_since_the_restart() {
        let mut delay = RunDelay { schedstat: None, last: 0, max: 7 };
        delay.sample();
        assert_eq!(delay.max(), Duration::from_nanos(7));
        delay.restart();
        assert_eq!(delay.max(), Duration::ZERO);
    }

    #[test]
    fn steal_is_a_share_of_all_ticks() {
        let before = Ticks::parse("cpu 10 0 10 80 0 0 0 0 5 5\ncpu0 1");
        let after = Ticks::parse("cpu 20 0 20 150 0 0 0 10 9 9");
        assert_eq!(after.steal_percent_since(before), 10.0);
        assert_eq!(before.steal_percent_since(before), 0.0);
        assert!(cpus() >= 1);
    }

    #[test]
    fn a_device_is_read_from_one_line() {
        let line = "2: h0@if2: <BROADCAST,UP> mtu 9000 qdisc noqueue state UP mode DEFAULT";
        let device = Device { mtu: 9000, qdisc: "noqueue".into() };
        assert_eq!(Device::parse(line), Some(device));
        assert_eq!(Device::parse(""), None);
    }

    #[test]
    fn offloads_are_the_five_that_move_the_figures() {
        let features = "Features for x:\nrx-checksumming: on\ntx-checksumming: on\n\
            \ttx-checksum-ipv4: off [fixed]\ntcp-segmentation-offload: off [requested on]\n\
            generic-segmentation-offload: on\ngeneric-receive-offload: off\n";
        assert_eq!(summary(features), "rx on tx on tso off gso on gro off");
        assert_eq!(offloads(None, "no-such-interface"), "unknown");
    }
}
