//! Who waited for a CPU: run delays of the threads that an I/O passes through, since a mark.
//!
//! On veth a frame may also wait for ksoftirqd, a thread in the run queue like any other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Run delays since a mark; by default of nobody.
#[derive(Debug, Default)]
pub struct Delays {
    host: Delay,
    target: Delay,
    softirqs: Vec<Delay>,
}

/// What they were.
#[derive(Clone, Debug, Default)]
pub struct Delayed {
    /// Of the calling thread.
    pub host: Duration,
    /// Of the target under load.
    pub target: Duration,
    /// Of ksoftirqd/0, /1, …
    pub softirqs: Vec<Duration>,
}

impl Delays {
    /// Those of this thread, of the process of a target, and of ksoftirqd.
    pub fn new(target: Option<u32>) -> Self {
        let target = target.map_or(String::new(), |pid| format!("/proc/{pid}/schedstat"));
        Self::of("/proc/thread-self/schedstat", &target, &softirqs())
    }

    /// Those that these files tell of.
    pub fn of(host: &str, target: &str, softirqs: &[String]) -> Self {
        let mut this = Self {
            host: Delay::new(host),
            target: Delay::new(target),
            softirqs: softirqs.iter().map(|path| Delay::new(path)).collect(),
        };
        this.mark();
        this
    }

    /// From now on.
    pub fn mark(&mut self) {
        self.all().for_each(Delay::mark);
    }

    /// From the mark before this one, as if there had been none since.
    pub fn unmark(&mut self) {
        self.all().for_each(|delay| delay.marked = delay.before);
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Delay> {
        [&mut self.host, &mut self.target].into_iter().chain(&mut self.softirqs)
    }

    /// Since the mark.
    pub fn since_mark(&self) -> Delayed {
        Delayed {
            host: self.host.since_mark(),
            target: self.target.since_mark(),
            softirqs: self.softirqs.iter().map(Delay::since_mark).collect(),
        }
    }
}

/// The files of ksoftirqd, by CPU; none where kernel threads cannot be seen.
fn softirqs() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let cpu = name.trim_end().strip_prefix("ksoftirqd/").and_then(|cpu| cpu.parse().ok());
        found.extend(cpu.map(|cpu: u32| (cpu, path.join("schedstat").display().to_string())));
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The run delay of a thread, since a mark.
#[derive(Debug, Default)]
struct Delay {
    schedstat: Option<File>,
    marked: u64,
    /// The mark before.
    before: u64,
}

impl Delay {
    fn new(path: &str) -> Self {
        Self { schedstat: File::open(path).ok(), marked: 0, before: 0 }
    }

    fn mark(&mut self) {
        self.before = self.marked;
        self.marked = self.read();
    }

    fn read(&self) -> u64 {
        let mut line = [0; 96];
        let length = self.schedstat.as_ref().and_then(|file| file.read_at(&mut line, 0).ok());
        let line = length.and_then(|n| std::str::from_utf8(&line[..n]).ok()).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(self.marked)
    }

    fn since_mark(&self) -> Duration {
        Duration::from_nanos(self.read().saturating_sub(self.marked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_counts_from_the_mark_or_from_the_one_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let waited = |ns: u64| fs::write(file.path(), format!("1 {ns} 1\n")).unwrap();
        waited(1000);
        let path = file.path().to_str().unwrap();
        let mut delays = Delays::of(path, "", &[path.to_owned()]);
        waited(4000);
        assert_eq!(delays.since_mark().host, Duration::from_nanos(3000));
        delays.mark();
        assert_eq!(delays.since_mark().softirqs, [Duration::ZERO]);
        delays.unmark();
        assert_eq!(delays.since_mark().softirqs, [Duration::from_nanos(3000)]);
    }

    #[test]
    fn a_thread_that_cannot_be_seen_has_no_delay() {
        let delays = Delays::new(None);
        assert_eq!(delays.since_mark().target, Duration::ZERO);
    }
}
