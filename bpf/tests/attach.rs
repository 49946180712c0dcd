//! Attaching: refused where another program is, and gone with its process.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use moorline_bpf::{Error, Mode, Steering, SteeringConfig, netdev};
use moorline_rig::{End, Rig, RigSpec};
use rustix::process::{Pid, Signal, kill_process};

/// Set in a child of [`is_gone_with_its_process`]: the namespace to attach in.
const CHILD: &str = "MOORLINE_TEST_ATTACH_IN";

fn rig() -> Option<Rig> {
    if let Err(why) = moorline_rig::possible() {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    Some(Rig::up(RigSpec::unique("ml-bpf")).unwrap())
}

fn config(dev: &str, mode: Mode) -> SteeringConfig {
    let addrs = vec!["10.99.0.11".parse().unwrap()];
    SteeringConfig { ifindex: netdev::index(dev).unwrap(), mode, addrs, vlan: None }
}

/// Attaches to the host's end. A `bpf_link` may be held on any thread.
fn attach(end: &End, mode: Mode) -> Result<Steering, Error> {
    end.run(|| Steering::attach(&config(end.dev(), mode))).unwrap()
}

fn has_xdp(end: &End) -> bool {
    let show = end.command("ip").args(["-d", "link", "show", "dev", end.dev()]).output().unwrap();
    assert!(show.status.success());
    String::from_utf8_lossy(&show.stdout).contains("prog/xdp")
}

#[test]
fn auto_is_skb_on_veth_and_each_mode_is_as_asked() {
    let Some(rig) = rig() else { return };
    for (asked, got) in
        [(Mode::Auto, Mode::Skb), (Mode::Skb, Mode::Skb), (Mode::Native, Mode::Native)]
    {
        let steering = attach(rig.host(), asked).unwrap();
        assert_eq!(steering.mode(), got);
        assert!(has_xdp(rig.host()));
        drop(steering);
        assert!(!has_xdp(rig.host()));
    }
}

#[test]
fn an_occupied_interface_is_left_alone_whatever_the_modes() {
    let Some(rig) = rig() else { return };
    for first in [Mode::Native, Mode::Skb] {
        for second in [Mode::Native, Mode::Skb, Mode::Auto] {
            let steering = attach(rig.host(), first).unwrap();
            let error = attach(rig.host(), second).unwrap_err();
            assert!(matches!(error, Error::Occupied { program: 1.., .. }), "{error}");
            assert!(error.to_string().contains("ip link set dev h0 xdp off"), "{error}");
            assert!(has_xdp(rig.host()));
            drop(steering);
        }
    }
    assert!(!has_xdp(rig.host()));
}

#[test]
fn counters_start_at_zero() {
    let Some(rig) = rig() else { return };
    let steering = attach(rig.host(), Mode::Auto).unwrap();
    let counters = steering.counters().unwrap();
    assert_eq!((counters.ipv4, counters.arp, counters.malformed), (0, 0, 0));
}

#[test]
fn only_a_bound_socket_can_be_registered() {
    use std::os::fd::AsFd;
    let Some(rig) = rig() else { return };
    let steering = attach(rig.host(), Mode::Auto).unwrap();
    let other = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    assert!(matches!(steering.register(0, other.as_fd()), Err(Error::Map { .. })));
}

/// Runs the test `name` again in a child that attaches there and then does `last`; ends the child
/// with `signal`, if there is one; the program must go with it.
fn is_gone_with_its_process(name: &str, signal: Option<Signal>, last: fn()) {
    if let Ok(netns) = std::env::var(CHILD) {
        moorline_rig::enter(&netns).unwrap();
        let _steering = Steering::attach(&config("h0", Mode::Auto)).unwrap();
        println!("\nattached");
        let _ = std::io::stdin().read(&mut [0]); // until the parent has looked
        return last();
    }
    let Some(rig) = rig() else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, rig.host().netns())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "attached"), "the child failed");
    assert!(has_xdp(rig.host()));
    match signal {
        Some(signal) => kill_process(Pid::from_child(&child), signal).unwrap(),
        None => drop(stdin),
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), signal.map(Signal::as_raw));
    assert!(!status.success(), "it was to end badly");
    assert!(!has_xdp(rig.host()));
    attach(rig.host(), Mode::Auto).unwrap();
}

#[test]
fn the_program_is_gone_after_kill_9() {
    is_gone_with_its_process("the_program_is_gone_after_kill_9", Some(Signal::KILL), || {});
}

#[test]
fn the_program_is_gone_after_sigterm() {
    is_gone_with_its_process("the_program_is_gone_after_sigterm", Some(Signal::TERM), || {});
}

#[test]
fn the_program_is_gone_after_a_panic() {
    is_gone_with_its_process("the_program_is_gone_after_a_panic", None, || panic!("as asked"));
}
