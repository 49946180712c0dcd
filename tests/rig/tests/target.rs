//! A target that runs for a test, and hosts that use it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use moorline_rig::{End, Rig};
use serde_json::Value;

use crate::support::{MOORLINE, Run, finish, lane, start};

/// `moorline target` in a rig's target end, killed when dropped.
pub struct Target {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Target {
    /// Starts it with `args` beside those of its lane, and returns when it listens.
    #[track_caller]
    pub fn start(lane: &str, args: &str) -> Self {
        let mut child = Command::new(MOORLINE)
            .args(["target", "--json", "--until-stdin-ends"])
            .args(lane.split_whitespace())
            .args(args.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "target {args}: {line:?}");
        Self { child, said }
    }

    /// On the rig's AF_XDP addresses.
    #[track_caller]
    pub fn xdp(rig: &Rig, args: &str) -> Self {
        Self::start(&lane(rig.target()), args)
    }

    /// On the rig's kernel addresses.
    #[track_caller]
    pub fn kernel(rig: &Rig, args: &str) -> Self {
        let listen = rig.target().kernel_addr(false);
        Self::start(&kernel_lane(rig.target()), &format!("--listen {listen} {args}"))
    }

    /// kill −9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in order, and returns what it counted.
    #[track_caller]
    pub fn stop(mut self) -> Value {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{rest}");
        serde_json::from_str(rest.trim()).unwrap_or_else(|e| panic!("{e}: {rest:?}"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Either may fail: it may be gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Options that put kernel sockets on an end of a rig.
pub fn kernel_lane(end: &End) -> String {
    format!("--transport kernel --netns {}", end.netns())
}

/// Starts `perf` at the host's end of a rig, towards `to`.
pub fn start_perf(lane: &str, to: std::net::IpAddr, args: &str) -> Child {
    start(
        Command::new(MOORLINE)
            .args(["perf", "--quiet", "--json", "-", "-a", &to.to_string()])
            .args(lane.split_whitespace())
            .args(args.split_whitespace()),
    )
}

/// Runs `perf` over AF_XDP from the host's end of a rig to its target's.
pub fn perf(rig: &Rig, args: &str) -> Run {
    finish(start_perf(&lane(rig.host()), rig.target().xdp_addr(false), args))
}

/// Asserts that a run of `perf` did I/O, all of it well, and returns its report.
#[track_caller]
pub fn clean(run: Run) -> Value {
    let run = run.ok();
    let report = run.json();
    assert!(report["ios"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    if !report["verify"].is_null() {
        assert_eq!(report["verify"]["mismatches"], 0, "{report}");
        assert!(report["verify"]["blocks"].as_u64().unwrap() > 0, "{report}");
    }
    report
}
