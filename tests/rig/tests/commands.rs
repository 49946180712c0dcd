//! `rig`, `doctor`, and what a person gets who asks for something that cannot be.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{MOORLINE, finish, lane, moorline, rig, rights, start};

fn netns_exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

/// Runs the program as nobody, without any capability.
pub fn as_nobody(args: &str) -> crate::support::Run {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
    command.arg(MOORLINE).args(args.split_whitespace());
    finish(start(&mut command))
}

#[test]
fn a_rig_is_kept_open_until_it_is_taken_down() {
    if !rights() {
        return;
    }
    let name = moorline_rig::RigSpec::unique("ml-t-kept").name;
    let up = moorline(&format!("rig up --name {name} --mtu 3506")).ok();
    assert!(up.stdout.contains("10.99.0.12"), "{up:#?}");
    assert!(netns_exists(&format!("{name}-host")));
    let status = moorline("rig status").ok();
    assert!(status.stdout.contains(&format!("{name}: kept open")), "{status:#?}");
    moorline(&format!("rig up --name {name}")).failed(2, "rig down");
    moorline(&format!("rig down --name {name}")).ok();
    assert!(!netns_exists(&format!("{name}-host")));
    moorline(&format!("rig down --name {name}")).failed(1, "there is no rig");
}

/// Starts the program with nobody reading its results.
fn start_unread(args: &str) -> Child {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Command::new(MOORLINE)
        .args(args.split_whitespace())
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn results_that_nobody_reads_end_a_command_quietly() {
    for args in [
        "rig status",
        "identify --help",
        "doctor",
        "target --backend ram:1m --transport kernel --listen 127.0.0.1:44201",
    ] {
        let run = finish(start_unread(args)).ok();
        assert_eq!(run.stderr, "", "{args}");
    }
}

#[test]
fn results_that_nobody_reads_leave_no_rig_and_no_program() {
    let Some(rig) = rig(1500) else { return };
    let run = finish(start_unread(&format!("target --backend ram:1m {}", lane(rig.target())))).ok();
    assert_eq!(run.stderr, "");
    // The interface is free again.
    let _target = crate::target::Target::xdp(&rig, "--backend ram:1m");
    let perf = start_unread("perf --rig --quiet --number-ios 100");
    let mine = format!("moorline-perf-{}-", perf.id());
    let run = finish(perf).ok();
    assert_eq!(run.stderr, "");
    let left = std::fs::read_dir("/run/netns").unwrap();
    let mut names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.any(|name| name.starts_with(&mine)), "{mine}");
}

#[test]
fn a_rig_that_cannot_be_is_refused_and_leaves_nothing() {
    if !rights() {
        return;
    }
    moorline("rig up --name ml-t-bad --mtu 100000").failed(2, "MTU 100000");
    moorline("rig up --name ml/t").failed(2, "letters");
    assert!(!netns_exists("ml-t-bad-host"));
}

#[test]
fn doctor_sees_both_ends_of_a_pair() {
    let Some(rig) = rig(9000) else { return };
    let end = rig.host();
    let report = moorline(&format!("doctor --json --netns {} --dev {}", end.netns(), end.dev()));
    let report = report.json();
    assert_eq!(report["schema"], 1);
    let check = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
    };
    assert_eq!(check("link")["result"], "ok");
    assert!(check("driver")["found"].as_str().unwrap().contains("veth"));
    assert!(check("MTU")["found"].as_str().unwrap().contains("9000"));
    assert_eq!(check("XDP program")["result"], "ok");
    let peer = check("veth peer");
    assert_eq!(peer["result"], "warn");
    assert!(peer["mend"].as_str().unwrap().contains("ethtool -K t0 tx off"), "{peer}");
    rig.target().offloads(false).unwrap();
    let again = moorline(&format!("doctor --netns {} --dev {}", end.netns(), end.dev()));
    assert!(again.stdout.contains("offloads off"), "{again:#?}");
}

#[test]
fn doctor_tells_what_rights_are_missing() {
    if !rights() {
        return;
    }
    let run = as_nobody("doctor");
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("missing CAP_NET_ADMIN"), "{run:#?}");
    as_nobody("rig up --name ml-t-nobody").failed(2, "run as root");
}

#[test]
fn what_is_not_there_is_named() {
    moorline("doctor --dev nosuch0").failed(2, "no network interface \"nosuch0\"");
    if rights() {
        moorline("doctor --dev h0 --netns ml-t-nosuch").failed(2, "no network namespace");
    }
    moorline("target --backend ram:64M --transport xdp").failed(2, "--dev IFNAME");
    moorline("target --backend ram:64M --transport kernel").failed(2, "--listen");
    moorline("target --backend tape:64M").failed(2, "ram:SIZE, null:SIZE or file:PATH");
    moorline("target --backend ram:1000 --transport kernel --listen 127.0.0.1")
        .failed(2, "not a whole number of blocks");
    moorline("target --backend file:/nosuch/disk --transport kernel --listen 127.0.0.1")
        .failed(2, "/nosuch/disk");
    moorline("identify -a 127.0.0.1 --transport xdp --dev lo --addr 10.0.0.1")
        .failed(2, "10.0.0.5/24");
}

#[test]
fn wrong_options_end_with_2_and_usage() {
    for args in ["", "perf", "perf -a here", "perf -a ::1 --rw readwrite", "target", "rig"] {
        let run = moorline(args);
        assert_eq!(run.code, Some(2), "{args}: {run:#?}");
        assert!(run.stderr.contains("Usage") || run.stderr.contains("--help"), "{run:#?}");
    }
}

#[test]
fn a_lane_that_cannot_be_opened_says_what_to_do() {
    let Some(rig) = rig(1500) else { return };
    let lane = lane(rig.target());
    let serve = |lane: &str| moorline(&format!("target --backend ram:64M {lane}"));
    serve(&lane.replace("--dev t0", "--dev nosuch0")).failed(2, "nosuch0");
    serve(&format!("{lane} --queue 7")).failed(2, "queue 7");
    as_nobody(&format!("target --backend ram:64M {}", lane.replace("--netns", "--vlan 5 --netns")))
        .failed(2, "root");
    as_nobody("target --backend ram:64M --dev lo --addr 10.0.0.1/8").failed(2, "run as root");
    ip(&format!("-n {} link set t0 down", rig.target().netns()));
    serve(&lane).failed(2, "is down");
}

#[test]
fn an_interface_with_an_xdp_program_is_not_taken_over() {
    let Some(rig) = rig(1500) else { return };
    let args = format!("target --backend ram:64M {}", lane(rig.target()));
    let mut owner = rig.target().command(MOORLINE);
    owner.args(["floor-server", "--dev", "t0", "--addr", "10.99.0.12"]);
    let mut owner = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(owner.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.starts_with("ready"), "{ready}");
    moorline(&args).failed(2, "already carries an XDP program");
    let doctor = format!("doctor --netns {} --dev t0", rig.target().netns());
    assert!(moorline(&doctor).stdout.contains("FAIL  XDP program"));
    // Killed, it leaves nothing: the program goes with its process.
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(moorline(&doctor).stdout.contains("none attached"));
}

#[test]
fn an_mtu_beyond_af_xdp_is_refused() {
    let Some(rig) = rig(65_535) else { return };
    let run = moorline(&format!("target --backend ram:64M {}", lane(rig.target())));
    run.failed(2, "MTU 65535");
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {args}");
}

#[test]
fn an_address_that_the_kernel_has_is_refused() {
    let Some(rig) = rig(1500) else { return };
    let (end, kernels) = (rig.host(), rig.host().kernel_addr(false));
    let place = format!("--netns {} --dev {} --addr", end.netns(), end.dev());
    let to = rig.target().xdp_addr(false);
    moorline(&format!("identify -a {to} {place} {kernels}/24")).failed(2, "is the kernel's");
    let doctor = moorline(&format!("doctor {place} {kernels}/24"));
    assert!(doctor.stdout.contains(&format!("{kernels} is the kernel's")), "{doctor:#?}");
    assert_eq!(doctor.code, Some(1));
    let free = moorline(&format!("doctor {place} {}/24", end.xdp_addr(false)));
    assert!(free.stdout.contains("is not the kernel's"), "{free:#?}");
}
