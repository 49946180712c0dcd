//! The processes of a scenario: what they say, and when they said it.
//!
//! What always holds: a process is ended when it is dropped, and ends by itself when we are
//! killed, for its standard input ends.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use moorline_stack::Instant;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::perf::measure;

/// How long a process gets to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// A process under way.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: Receiver<(u64, Value)>,
}

impl Process {
    /// Starts `command` on a CPU.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, cpu: usize) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.process_group(0); // Ctrl-C is for us
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "error"); // that controllers are lost is what this is about
        }
        // A child inherits the affinity of the thread that starts it.
        let spawned = thread::scope(|scope| {
            let pinned = scope.spawn(|| {
                measure::pin(cpu);
                command.spawn()
            });
            pinned.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let mut child = spawned.context("starting a process of the scenario")?;
        let out = child.stdout.take().expect("it was asked for a pipe");
        let (tell, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let now = Instant::monotonic().as_nanos() / 1000;
                let Ok(event) = serde_json::from_str(&line) else { continue };
                if tell.send((now, event)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, said })
    }

    /// What it says next, and when it did, before `until`; `None` when that has come.
    ///
    /// # Errors
    /// When it has ended.
    pub fn next(&self, until: Instant) -> Result<Option<(u64, Value)>> {
        match self.said.recv_timeout(until - Instant::monotonic()) {
            Ok(said) => Ok(Some(said)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("a process of the scenario has ended; see its message above")
            }
        }
    }

    /// When it said that it listens, microseconds of the monotonic clock.
    ///
    /// # Errors
    /// When it ends without, or takes too long.
    pub fn listening(&self) -> Result<u64> {
        let until = Instant::monotonic() + GRACE;
        while let Some((at, event)) = self.next(until)? {
            if event["event"] == "listening" {
                return Ok(at);
            }
        }
        bail!("a target did not listen within {GRACE:?}")
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has had, KiB; `None` when that cannot be read.
    pub fn memory_peak_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal); // it may be gone
        }
    }

    /// Ends it with a signal, and waits until it has ended.
    pub fn end(&mut self, signal: Signal) {
        self.signal(signal);
        self.wait();
    }

    /// Waits until it has ended; kills it where it does not.
    pub fn wait(&mut self) {
        let until = Instant::monotonic() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::monotonic() >= until {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        self.wait();
    }
}
