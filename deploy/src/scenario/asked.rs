//! `moorline ctl` in the middle of an outage: how long it takes, and whether it says of each dead
//! controller where it stands, why, and when it is tried again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use moorline_stack::Instant;
use serde_json::{Value, json};

use super::host::delays::Delays;
use crate::commands::ctl;
use crate::serve::proto::Cmd;

/// Calls of each kind: by this process, and by a process of its own.
const CALLS: u32 = 100;
/// Controllers that are told by name when something is missing.
const TOLD_MAX: usize = 8;

/// What was asked, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// From connecting to the socket to the last row of the list, microseconds.
    socket_us: Vec<u64>,
    /// The same less run delay of who asks and who answers: how it would be on a free machine.
    less_us: Vec<u64>,
    /// From starting `moorline ctl` to its end.
    process_us: Vec<u64>,
    /// Answers about dead controllers.
    dead: u64,
    /// Of these, those without a state, a reason, or a time.
    unexplained: u64,
    told: Vec<String>,
}

/// Asks process `host`, evenly over `time`.
///
/// # Errors
/// When nobody answers.
pub fn ask(socket: &Path, host: u32, time: Duration) -> Result<Asked> {
    let mut asked = Asked::default();
    let mut delays = Delays::new(Some(host));
    let pause = time / (2 * CALLS);
    for call in 0..CALLS {
        let what = if call % 2 == 0 { Cmd::List } else { Cmd::Connections };
        delays.mark();
        let begun = Instant::monotonic();
        let rows = ctl::rows(socket, what)?;
        let delayed = delays.since_mark();
        let took = rest(begun, pause);
        let delay = (delayed.host + delayed.target).as_micros() as u64;
        asked.socket_us.push(took);
        asked.less_us.push(took.saturating_sub(delay));
        if what == Cmd::List {
            rows.iter().for_each(|row| asked.look_at(row));
        }
        let begun = Instant::monotonic();
        run(socket, if what == Cmd::List { "list" } else { "connections" })?;
        asked.process_us.push(rest(begun, pause));
    }
    for times in [&mut asked.socket_us, &mut asked.less_us, &mut asked.process_us] {
        times.sort_unstable();
    }
    Ok(asked)
}

/// How long it took; sleeps for what is left of `pause`.
fn rest(begun: Instant, pause: Duration) -> u64 {
    let took = Instant::monotonic() - begun;
    thread::sleep(pause.saturating_sub(took));
    took.as_micros() as u64
}

/// The program, as somebody would type it.
fn run(socket: &Path, what: &str) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["ctl", "--json", what, "--socket"]).arg(socket);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    ensure!(status.context("starting `moorline ctl`")?.success(), "`moorline ctl {what}` failed");
    Ok(())
}

impl Asked {
    fn look_at(&mut self, ctrl: &Value) {
        let state = ctrl["state"].as_str().unwrap_or_default();
        if state == "live" {
            return;
        }
        self.dead += 1;
        // While an attempt is under way, its own deadline is the time to the next one.
        let has_time = ctrl["next_attempt_ms"].is_number()
            || ctrl["timers"].as_array().is_some_and(|timers| !timers.is_empty());
        let has_reason = ctrl["reason"].as_str().is_some_and(|reason| !reason.is_empty());
        if state.is_empty() || !has_reason || !has_time {
            self.unexplained += 1;
            if self.told.len() < TOLD_MAX {
                self.told.push(ctrl.to_string());
            }
        }
    }

    /// For the report.
    pub fn report(&self) -> Value {
        let at = |sorted: &[u64], tenths| sorted.get(sorted.len() * tenths / 10).copied();
        let p90 = |sorted: &[u64]| at(sorted, 9);
        json!({
            "calls": self.socket_us.len(), "p50_us": at(&self.socket_us, 5),
            "p90_us": p90(&self.socket_us), "p90_less_run_delay_us": p90(&self.less_us),
            "max_us": self.socket_us.last(), "process_p90_us": p90(&self.process_us),
            "process_max_us": self.process_us.last(), "dead_seen": self.dead,
            "unexplained": self.unexplained, "told": self.told,
        })
    }
}

/// Somebody who asks, while others go on.
#[derive(Debug)]
pub struct Asking(thread::JoinHandle<Result<Asked>>);

impl Asking {
    /// Begins after `before`, and takes `time`.
    pub fn start(socket: PathBuf, host: u32, before: Duration, time: Duration) -> Self {
        Self(thread::spawn(move || {
            thread::sleep(before);
            ask(&socket, host, time)
        }))
    }

    /// What came of it.
    ///
    /// # Errors
    /// When nobody answered.
    pub fn end(self) -> Result<Asked> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_controller_has_a_state_a_reason_and_a_time() {
        let mut asked = Asked { socket_us: (1..=100).collect(), ..Asked::default() };
        let timers = json!([{ "name": "stage", "left_ms": 3.0 }]);
        for ctrl in [
            json!({ "state": "live", "reason": null }),
            json!({ "state": "wait-reconnect", "reason": "reset", "next_attempt_ms": 2.0 }),
            json!({ "state": "connecting", "reason": "reset", "timers": timers }),
            json!({ "state": "wait-reconnect", "reason": "reset", "timers": [] }),
            json!({ "state": "connecting", "reason": null, "timers": timers }),
        ] {
            asked.look_at(&ctrl);
        }
        let report = asked.report();
        assert_eq!((&report["dead_seen"], &report["unexplained"]), (&json!(4), &json!(2)));
        assert_eq!(report["p90_us"], 91);
    }
}
