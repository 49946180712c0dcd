//! The corpus, and a fixed number of seeded mutations of it, without libFuzzer: what `make test`
//! runs of the fuzz targets. `MOORLINE_FUZZ=N` sets how many mutations of each.

#![allow(clippy::unwrap_used)] // a test, helpers included

use std::alloc::System;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use moorline_fuzz::TARGETS;
use moorline_stack::rng::Rng;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that one run may ask for, all in all: several times what the largest takes.
const ALLOCATED_MAX: usize = 64 << 20;
/// Longest input.
const INPUT_MAX: usize = 8192;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// One run, whose input is kept when it fails.
fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    let region = Region::new(ALLOCATOR);
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    let change = region.change();
    let left = change.bytes_allocated as isize - change.bytes_deallocated as isize;
    let fits = change.bytes_allocated <= ALLOCATED_MAX && left <= 4096;
    if outcome.is_err() || !fits {
        let path = std::env::temp_dir().join(format!("moorline-fuzz-{name}"));
        std::fs::write(&path, input).unwrap();
        panic!(
            "{name}: fails with {} ({} bytes allocated, {left} left)",
            path.display(),
            change.bytes_allocated
        );
    }
}

fn mutate(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(4) {
        let len = input.len() as u64;
        let at = rng.below(len + 1) as usize;
        let end = (at + rng.below(9) as usize).min(input.len());
        match rng.below(7) {
            0 => input.insert(at, rng.bits() as u8),
            1 => drop(input.drain(at..end)),
            2 => input.truncate(at),
            3 if at < input.len() => input[at] ^= 1 << rng.below(8),
            4 if at < input.len() => {
                input[at] = [0, 1, 0x7F, 0x80, 0xFF][rng.below(5) as usize];
            }
            5 => {
                let from = rng.below(other.len() as u64 + 1) as usize;
                let len = rng.below(130) as usize;
                let part = other[from..].iter().take(len).copied();
                input.splice(at..end, part);
            }
            _ => input.extend((0..rng.below(16)).map(|_| rng.bits() as u8)),
        }
    }
    input.truncate(INPUT_MAX);
}

#[test]
fn the_corpus_and_mutations_of_it_break_nothing() {
    let times = std::env::var("MOORLINE_FUZZ").ok().map(|times| times.parse().unwrap());
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        // The first run makes what is made once.
        target(&inputs[0].1);
        inputs.iter().for_each(|(_, input)| run(name, target, input));
        let times = times.unwrap_or(match name {
            "target" | "host" | "frames" => 2_000,
            _ => 20_000,
        });
        let mut rng = Rng::new(1);
        for _ in 0..times {
            let mut pick = || &inputs[rng.below(inputs.len() as u64) as usize].1;
            let (mut input, other) = (pick().clone(), pick());
            mutate(&mut rng, &mut input, other);
            run(name, target, &input);
        }
        eprintln!("{name}: {} inputs, {times} mutations", inputs.len());
    }
}
