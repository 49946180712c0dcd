//! Targets that are not there, do not want us, or die; users who change their minds. Each must
//! end soon, with words, with the right code, and with nothing left behind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{MOORLINE, finish, lane, moorline, rig, rights, start};
use crate::target::{Target, perf, start_perf};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[test]
fn a_host_that_is_not_on_the_list_is_not_admitted() {
    let Some(rig) = rig(1500) else { return };
    let friend = "nqn.2026-11.io.moorline:friend";
    let _target = Target::xdp(&rig, &format!("--backend ram:64M --allow {friend}"));
    perf(&rig, "--number-ios 10").failed(2, "not allowed");
    perf(&rig, &format!("--number-ios 10 -q {friend}")).ok();
}

#[test]
fn work_that_does_not_fit_the_namespace_is_refused() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:64M");
    perf(&rig, "--bs 512").failed(2, "block size");
    perf(&rig, "--size 65m").failed(2, "beyond the namespace");
    perf(&rig, "--offset 64m").failed(2, "--bs");
    perf(&rig, "--nsid 2").failed(2, "no namespace 2");
    perf(&rig, "--iodepth 1000").failed(2, "--iodepth 1000");
}

#[test]
fn a_subsystem_that_is_not_there_is_named() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:64M");
    perf(&rig, "-n nqn.2026-11.io.moorline:other").failed(2, "SUBNQN");
    // Its address answers, another port does not.
    perf(&rig, "-s 4421").failed(2, "refused");
}

#[test]
fn a_target_killed_in_mid_io_ends_the_run_with_errors_and_no_hang() {
    let Some(rig) = rig(9000) else { return };
    let mut target = Target::xdp(&rig, "--backend ram:64M");
    let to = rig.target().xdp_addr(false);
    let run = start_perf(&lane(rig.host()), to, "--rw randrw --iodepth 32 -i 2 --runtime 30");
    thread::sleep(Duration::from_millis(1500));
    target.kill();
    let run = finish(run);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let report = run.json();
    assert!(report["ios"].as_u64().unwrap() > 0, "{report}");
    // All that were under way, each told of once, and the loss itself.
    assert_eq!(report["errors"], 64 + 1, "{report}");
    // The interface is free again at once: another target can take it.
    let _next = Target::xdp(&rig, "--backend ram:64M");
    perf(&rig, "--number-ios 100").ok();
}

#[test]
fn a_target_that_ends_in_mid_io_is_noticed_at_once() {
    let Some(rig) = rig(1500) else { return };
    let target = Target::xdp(&rig, "--backend ram:64M");
    let to = rig.target().xdp_addr(false);
    let run = start_perf(&lane(rig.host()), to, "--rw randrw --iodepth 8 --runtime 30");
    thread::sleep(Duration::from_millis(1500));
    signal(target.pid(), Signal::TERM);
    let run = finish(run);
    assert_eq!(run.code, Some(1), "{run:#?}");
    // Not for lack of acknowledgements: the target said so.
    assert!(run.stdout.contains("the target closed the connection"), "{run:#?}");
}

#[test]
fn ctrl_c_prints_results_and_ends_with_130() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:64M");
    let to = rig.target().xdp_addr(false);
    let run = start_perf(&lane(rig.host()), to, "--runtime 60");
    thread::sleep(Duration::from_millis(1500));
    signal(run.id(), Signal::INT);
    let run = finish(run);
    assert_eq!(run.code, Some(130), "{run:#?}");
    assert!(run.json()["ios"].as_u64().unwrap() > 0);
}

#[test]
fn a_target_ends_in_order_on_sigterm_and_sigint() {
    let Some(rig) = rig(1500) else { return };
    for (with, code) in [(Signal::TERM, 0), (Signal::INT, 130)] {
        let args = format!("target --backend ram:64M {}", lane(rig.target()));
        let mut child = start(Command::new(MOORLINE).args(args.split_whitespace()));
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().starts_with("listening on 10.99.0.12:4420")));
        signal(child.id(), with);
        assert!(said.any(|line| line.unwrap().starts_with("served 0 reads")));
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn perf_makes_its_own_rig_and_leaves_nothing() {
    if !rights() {
        return;
    }
    let run = moorline("perf --rig --quiet --rw randrw --number-ios 500 --verify --json -").ok();
    let report = run.json();
    assert_eq!(report["errors"], 0, "{report}");
    assert_eq!(report["transport"], "xdp");
}

#[test]
fn a_killed_perf_leaves_a_rig_that_the_next_start_removes() {
    if !rights() {
        return;
    }
    let mut perf = Command::new(MOORLINE)
        .args(["perf", "--rig", "--quiet", "--runtime", "60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = perf.id();
    let mine = |status: &str| {
        status.lines().any(|line| line.ends_with(&format!("in use by process {pid}")))
    };
    for _ in 0..200 {
        if mine(&moorline("rig status").stdout) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(1000));
    let names: Vec<String> = std::fs::read_dir("/run/netns")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.contains(&format!("-{pid}-")))
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    perf.kill().unwrap();
    perf.wait().unwrap();
    moorline("rig sweep");
    for name in names {
        assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name}");
    }
}

#[test]
fn without_privileges_perf_runs_on_kernel_sockets_over_loopback() {
    if !rights() {
        return;
    }
    let run = crate::commands::as_nobody("perf --rig --quiet --number-ios 200 --json -");
    let run = run.ok();
    assert!(run.stderr.contains("kernel sockets"), "{run:#?}");
    assert_eq!(run.json()["transport"], "kernel");
}
