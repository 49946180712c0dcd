//! A process of our own that plays the other end: it says when it is ready, and is gone when its
//! owner is.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::measure::{self, cpus};

/// How long a process gets to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// A process that was started, and says when it is ready. It is ended when this is dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `command` on the last CPU, away from us on the first. Its standard input ends when
    /// this is dropped, or when we are killed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.process_group(0); // Ctrl-C is for us: the target is needed until we are done
        // A child inherits the affinity of the thread that starts it.
        measure::pin(cpus() - 1);
        let started = command.spawn();
        measure::pin(0);
        let shown = || format!("starting {}", command.get_program().to_string_lossy());
        let mut child = started.with_context(shown)?;
        let said = BufReader::new(child.stdout.take().expect("it was asked for a pipe"));
        Ok(Self { child, said })
    }

    /// The first line that it says for which `is_it` finds something: that it is ready.
    ///
    /// # Errors
    /// When it ends without; what it had to say went to standard error.
    pub fn expect<R>(&mut self, mut is_it: impl FnMut(&str) -> Option<R>) -> Result<R> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.said.read_line(&mut line).context("listening to the other end")? == 0 {
                bail!("the other end ended before it was ready; see its message above");
            }
            if let Some(found) = is_it(line.trim()) {
                return Ok(found);
            }
        }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn has_ended_by(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM); // it may be gone
        }
        if !self.has_ended_by(Instant::now() + GRACE) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_says_when_it_is_ready_and_ends_with_its_owner() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo not yet; echo ready 5; cat"]);
        let mut peer = Peer::start(command).unwrap();
        let ready = peer.expect(|line| line.strip_prefix("ready ").map(str::to_owned)).unwrap();
        assert_eq!(ready, "5");
        let pid = peer.pid();
        drop(peer);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_peer_that_ends_early_is_an_error() {
        let mut peer = Peer::start(Command::new("true")).unwrap();
        assert!(peer.expect(|_| None::<()>).is_err());
    }
}
