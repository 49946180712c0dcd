//! Rigs, and runs of the program that cannot outlast a test.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use moorline_rig::{End, Rig, RigSpec};
use serde_json::Value;

/// The program under test.
pub const MOORLINE: &str = env!("CARGO_BIN_EXE_moorline");

/// No run takes longer: whatever hangs is killed, and its test fails.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether rigs can be made; says so where they cannot.
pub fn rights() -> bool {
    static SAID: AtomicBool = AtomicBool::new(false);
    match moorline_rig::possible() {
        Ok(()) => true,
        Err(why) if std::env::var_os("MOORLINE_REQUIRE_RIG").is_some() => panic!("{why}"),
        Err(why) => {
            if !SAID.swap(true, Ordering::Relaxed) {
                eprintln!("SKIPPED: rig tests: {why}");
            }
            false
        }
    }
}

/// A rig of this test's own, or `None` where there are no rights for one.
pub fn rig(mtu: u32) -> Option<Rig> {
    rights().then(|| Rig::up(RigSpec::unique("ml-t").mtu(mtu)).expect("a rig"))
}

/// A run that ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Its standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    /// Asserts that it ended with `code` and said `what` on standard error.
    #[track_caller]
    pub fn failed(&self, code: i32, what: &str) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.contains(what), "{what:?} is not in {self:#?}");
    }

    /// Asserts that it ended well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }
}

/// Runs the program with arguments separated by blanks.
pub fn moorline(args: &str) -> Run {
    finish(start(Command::new(MOORLINE).args(args.split_whitespace())))
}

/// Starts a command with its output piped.
pub fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Waits for a run to end, and kills it if it does not.
pub fn finish(mut child: Child) -> Run {
    let read = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            from.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = child.stdout.take().map(|out| read(Box::new(out)));
    let stderr = read(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + RUN_TIMEOUT;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let run = Run {
        code: status.and_then(|s| s.code()),
        stdout: stdout.map_or(String::new(), |out| out.join().unwrap()),
        stderr: stderr.join().unwrap(),
    };
    assert!(status.is_some(), "it hung for {RUN_TIMEOUT:?}: {run:#?}");
    run
}

/// Options that put our own stack on an end of a rig, with its IPv4 and IPv6 address.
pub fn lane(end: &End) -> String {
    let addrs = [false, true].map(|v6| {
        let addr = end.xdp_addr(v6);
        format!("--addr {addr}/{}", End::prefix(v6))
    });
    format!("--transport xdp --netns {} --dev {} {}", end.netns(), end.dev(), addrs.join(" "))
}
