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
    let networks = [
        ("whole", PipeOptions::default()),
        ("cut", PipeOptions { cut_max: 9, ..PipeOptions::default() }),
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
