//! TCP conversations as text: each `tests/scripts/tcp/**/*.pkt` is played against our own [`Tcp`]
//! on a simulated wire in virtual time. What the text does not foresee, a frame, an event, another
//! instant, fails it. The syntax is in `tests/scripts/tcp/README.md`.
//!
//! `MOORLINE_SCRIPT=part-of-a-name` plays some of them, and shows all that happened.
//!
//! [`Tcp`]: moorline_stack::tcp::Tcp
#![allow(clippy::unwrap_used)]

mod play;
mod text;
mod wire;

use std::path::{Path, PathBuf};

use play::play;
use text::Script;

fn scripts(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scripts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "pkt") {
            found.push(path);
        }
    }
}

#[test]
fn every_script_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts/tcp");
    let wanted = std::env::var("MOORLINE_SCRIPT").ok();
    let mut found = Vec::new();
    scripts(&root, &mut found);
    found.sort();
    let name = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
    found.retain(|path| wanted.as_ref().is_none_or(|wanted| name(path).contains(wanted)));
    assert!(!found.is_empty(), "no script of that name");
    let mut failed = Vec::new();
    for path in &found {
        let text = std::fs::read_to_string(path).unwrap();
        let result = Script::parse(&text).and_then(|script| play(&script, wanted.is_some()));
        failed.extend(result.err().map(|error| format!("{}: {error}", name(path))));
    }
    eprintln!("{} scripts, {} failed", found.len(), failed.len());
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

/// Why a script fails.
fn failure(text: &str) -> String {
    Script::parse(text).and_then(|script| play(&script, false)).unwrap_err()
}

#[test]
fn a_script_that_foresees_something_else_fails() {
    let handshake = "0 connect\n0 > S 0:0(0)\n+1ms < S. 0:0(0) ack 1 win 1000\n";
    let rest = "+0 > . 1:1(0) ack 1\n+0 ! Connected\n";
    let whole = format!("{handshake}{rest}");
    Script::parse(&whole).and_then(|script| play(&script, false)).unwrap();
    for (end, error) in [
        ("+0 ! Connected\n", "nobody foresaw"),
        ("+0 > . 1:1(0) ack 1\n", "nobody foresaw"),
        ("+1us > . 1:1(0) ack 1\n+0 ! Connected\n", "nobody foresaw"),
        ("+0 > . 1:1(0) ack 2\n+0 ! Connected\n", "expected"),
        ("+0 > . 2:2(0) ack 1\n+0 ! Connected\n", "expected"),
        ("+0 > F. 1:1(0) ack 1\n+0 ! Connected\n", "expected"),
        ("+0 > . 1:1(0) ack 1 win 5\n+0 ! Connected\n", "expected"),
        ("+0 > . 1:1(0) ack 1 <mss 1>\n+0 ! Connected\n", "expected"),
        ("+0 > . 1:1(0) ack 1\n+0 ! Accepted\n", "expected"),
        ("+0 > . 1:1(0) ack 1\n+0 ! Connected\n+1s > . 1:1(0) ack 1\n", "nothing"),
        ("+0 > . 1:1(0) ack 1\n+0 ! Connected\n+1s ! Readable\n", "nothing"),
        ("+0 > . 1:1(0) ack 1\n+0 ! Connected\n+0 = connections 2\n", "connections"),
        ("+0 > . 1:1(0) ack 1\n+0 ! Connected\n+0 recv 1\n", "recv"),
    ] {
        let why = failure(&format!("{handshake}{end}"));
        assert!(why.contains(error), "{end}: {why}");
    }
}

#[test]
fn a_script_that_cannot_be_read_names_its_line() {
    for text in ["0 dance", "x connect", "0 < S 0:1(0)", "0 < Q 0:0(0)", "set colour 3", "0 > S"] {
        let why = failure(&format!("# head\n{text}\n"));
        assert!(why.starts_with("line 2"), "{text}: {why}");
    }
}
