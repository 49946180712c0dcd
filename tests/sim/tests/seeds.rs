//! Seeds that once found something, and a few more: all run clean, and each run of a seed is the
//! same.

use sim::{Level, run};

/// The seeds of `seeds/LEVEL`: a number a line, and what it was.
fn kept(text: &str) -> impl Iterator<Item = u64> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().next().and_then(|n| n.parse().ok()).expect(line))
}

fn runs_clean(level: Level, seed: u64) -> u64 {
    let outcome = run(seed, level, false);
    let name = level.name();
    assert!(outcome.violations.is_empty(), "{name} {seed}: {:?}", outcome.violations);
    outcome.ios
}

#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    kept(include_str!("../seeds/bytes")).for_each(|seed| {
        runs_clean(Level::Bytes, seed);
    });
}

#[test]
fn the_first_seeds_run_clean_and_do_something() {
    let ios: u64 = (0..15).map(|seed| runs_clean(Level::Bytes, seed)).sum();
    assert!(ios > 50_000, "{ios}");
}

#[test]
fn two_runs_of_a_seed_are_the_same() {
    for seed in 0..3 {
        let [one, two] = [(); 2].map(|()| run(seed, Level::Bytes, false));
        let of = |outcome: &sim::Outcome| (outcome.hash, outcome.events, outcome.ios);
        assert_eq!(of(&one), of(&two), "{seed}");
    }
}
