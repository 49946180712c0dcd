//! Scenarios in their short form. Counts only: this machine is shared, so times say little here.

use serde_json::{Value, json};

use crate::support::{moorline, rights};

/// Runs the short form of a scenario, which no healthy controller may notice.
fn short(name: &str) -> Option<Value> {
    if !rights() {
        return None;
    }
    let scenarios = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/scenarios");
    let run = moorline(&format!("rig run {scenarios}/{name}.toml --short --json -"));
    // Times may be missed on a busy machine; that is a 1, and not looked at here.
    assert!(matches!(run.code, Some(0 | 1)), "{run:#?}");
    let report = run.json();
    assert_eq!(report["scenario"], name, "{run:#?}");
    assert_eq!(report["healthy"]["errors"], 0, "{run:#?}");
    assert_eq!(report["healthy"]["keepalives_lost"], 0, "{run:#?}");
    assert_eq!(report["dead"]["deadline_early"], 0, "{run:#?}");
    Some(report)
}

#[test]
fn a_healthy_controller_does_not_notice_that_the_targets_of_others_go() {
    let Some(report) = short("restart") else { return };
    assert!(report["healthy"]["ios"].as_u64() > Some(100), "{report:#}");
    assert_eq!(report["dead"]["recovered"], 7, "{report:#}");
    assert_eq!(report["dead"]["outages"], 3, "{report:#}");
    assert!(report["dead"]["lost"].as_u64() >= Some(7), "an exit is always noticed: {report:#}");
}

#[test]
fn a_storm_of_controllers_comes_back_by_one_attempt_each() {
    let Some(report) = short("storm") else { return };
    let dead = &report["dead"];
    assert_eq!((&dead["lost"], &dead["recovered"]), (&json!(100), &json!(100)), "{report:#}");
    assert_eq!(report["cold"]["count"], 100, "{report:#}");
    // One each when cold, one each when back; and the tests in between, on a machine as it is.
    let attempts = dead["attempts"].as_u64().unwrap();
    assert!((201..300).contains(&attempts), "{report:#}");
}

/// A scenario of targets that fall silent at some stage: each of their controllers says at which.
fn silent(name: &str) {
    let Some(report) = short(name) else { return };
    assert_eq!((&report["dead"]["lost"], &report["dead"]["recovered"]), (&json!(7), &json!(7)));
    assert_eq!(report["outages"][0]["misnamed"], 0, "{report:#}");
}

#[test]
fn a_neighbour_that_does_not_answer_is_named_and_found_when_it_does() {
    silent("silent-neighbour");
}

#[test]
fn a_target_that_says_nothing_after_tcp_is_named_and_found_when_it_does() {
    silent("silent-icreq");
}

/// Runs the short form of a scenario that checks what it writes.
fn verified(name: &str) -> Option<Value> {
    let report = short(name)?;
    let verify = &report["verify"];
    for count in ["mismatches", "lost", "repeated", "unread", "errors", "double", "missing"] {
        assert_eq!(verify[count], 0, "{count}: {report:#}");
    }
    assert_eq!(verify["submitted"], verify["completed"], "each exactly once: {report:#}");
    assert!(verify["blocks"].as_u64() > Some(7 * 64), "more than in the end: {report:#}");
    Some(report)
}

#[test]
fn a_freeze_of_any_length_loses_and_repeats_no_write() {
    let Some(report) = verified("freeze") else { return };
    let lost: Vec<_> = report["outages"].as_array().unwrap().iter().map(|o| &o["lost"]).collect();
    // The shortest and the one between depend on the time that this machine has for us.
    assert_eq!((lost.len(), lost[2]), (3, &Value::from(7)), "{report:#}");
}

#[test]
fn a_flapping_link_loses_and_repeats_no_write() {
    let Some(report) = verified("flap") else { return };
    assert_eq!(report["outages"][0]["lost"], 7, "{report:#}");
}

#[test]
fn targets_that_exit_are_killed_or_cut_off_lose_and_repeat_no_write() {
    let Some(report) = verified("restart-verify") else { return };
    let lost = report["outages"].as_array().unwrap().iter().all(|outage| outage["lost"] == 7);
    assert!(lost, "{report:#}");
}
