//! `moorline target` as a process of its own, for `perf --rig`: started with a pipe as its
//! standard input, so that it ends when we do, however we end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// From start to "listening".
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// From being asked to being gone.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A target that runs. It is ended when this is dropped.
#[derive(Debug)]
pub struct TargetProcess {
    child: Child,
    /// What it prints, a line of JSON each.
    lines: Receiver<Value>,
}

impl TargetProcess {
    /// Starts this program as `target` with `args`, and returns when it listens.
    ///
    /// # Errors
    /// When it does not come to that; it has told why on standard error.
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let program = std::env::current_exe().context("finding this program's file")?;
        let mut child = Command::new(program)
            .args(["target", "--json", "--until-stdin-ends"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is ours: the target goes on until we have finished with it.
            .process_group(0)
            .spawn()
            .context("starting the target")?;
        let stdout = child.stdout.take().expect("it was asked for");
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str(&line)
                    && tell.send(value).is_err()
                {
                    return;
                }
            }
        });
        let started = Self { child, lines };
        started.until("listening", START_TIMEOUT).context("the target did not start")?;
        Ok(started)
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, and returns what it says about its life.
    ///
    /// # Errors
    /// When it had ended before, or does not end by itself; it is gone then all the same.
    pub fn stop(mut self) -> Result<Value> {
        drop(self.child.stdin.take());
        self.until("end", END_TIMEOUT).context("the target did not end in order")
    }

    fn until(&self, event: &str, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(value) if value["event"] == event => return Ok(value),
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("no word of it within {timeout:?}"),
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended by itself"),
            }
        }
    }
}

impl Drop for TargetProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It had its time. Both can only fail when it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
