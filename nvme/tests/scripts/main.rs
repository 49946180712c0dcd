//! Conversations as text (`tests/scripts/**/*.pdu`, syntax in `tests/scripts/README.md`): each
//! drives the real target from a scripted host, or the real host from a scripted target, over the
//! pipe in virtual time; once as it is, and again with the stream cut anywhere.

#![allow(clippy::unwrap_used)] // a test, helpers included

mod coverage;
mod end;
mod pdu;
mod run;
mod script;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use moorline_stack::pipe::PipeOptions;

use run::{Role, Run};
use script::Script;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/scripts"))
}

fn scripts(role: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(role)).unwrap().map(|entry| entry.unwrap().path());
    let is_script = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "pdu");
    let mut paths: Vec<_> = entries.filter(is_script).collect();
    paths.sort();
    paths
}

fn run_all(directory: &str, role: Role) {
    let only = std::env::var("PDU").unwrap_or_default();
    let cut = |cut_max| PipeOptions { cut_max, ..PipeOptions::default() };
    let networks = [
        ("whole", PipeOptions::default()),
        ("cut", cut(9)),
        ("cut to bytes", cut(1)),
        ("cut about headers", cut(100)),
        ("far", PipeOptions { delay: Duration::from_millis(2), ..PipeOptions::default() }),
    ];
    let mut failures = Vec::new();
    for path in scripts(directory).iter().filter(|path| path.to_string_lossy().contains(&only)) {
        let script = Script::read(path);
        for (name, options) in &networks {
            if let Err(what) = Run::script(role, &script, options.clone()) {
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                failures.push(format!("{directory}/{file} ({name}): {what}"));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{} failed:\n\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn targets_keep_to_their_scripts() {
    run_all("target", Role::Target);
}

#[test]
fn hosts_keep_to_their_scripts() {
    run_all("host", Role::Host);
}

/// What is wrong with a script, run against the target.
fn fault(text: &str) -> String {
    let mut script = Script::default();
    script.parse(&root().join("target/inline.pdu"), text);
    let ran = Run::script(Role::Target, &script, PipeOptions::default());
    ran.map_or_else(|what| what, |()| String::new())
}

#[test]
fn what_is_not_as_the_script_has_it_is_found() {
    let faults = [
        ("include ic\n> KeepAlive cid=7\n< CapsuleResp cid=8", "cid is 7"),
        ("include ic\n> KeepAlive\n< C2HTermReq", "no C2HTermReq"),
        ("include ic\n> KeepAlive\n< close", "CapsuleResp"),
        ("include ic\n> KeepAlive\n+1ms", "not expected: CapsuleResp"),
        ("include ic\n> KeepAlive", "at the end: came"),
        ("include ic\n< CapsuleResp", "nothing came within 100ms"),
        ("include ic\n+5100ms", "not expected: reset"),
        ("connect a\n> ICReq\n< ICResp maxh2cdata<=4096", "maxh2cdata is 131072"),
        ("include io\n> Read nlb=0 len=512\n< C2HData fill=1", "fill is 0"),
        ("include io\n> Flush cid=$none", "$none is not set"),
        ("include ic\n= figures accepted=2", "accepted: 1"),
    ];
    for (text, wanted) in faults {
        let what = fault(text);
        assert!(what.contains(wanted), "{text}: {what}");
    }
    assert_eq!(fault("include ic\n> KeepAlive\n< CapsuleResp sc=0x0c"), "");
}
