//! The device under our stack goes down, or away, and comes back: what is held is held on.

use std::thread;
use std::time::Duration;

use moorline_rig::{End, Rig};
use rustix::process::Signal;
use serde_json::Value;

use crate::serve::{Config, Serve, controller, xdp_lane};
use crate::support::{finish, lane, rig};
use crate::target::{Target, clean, start_perf};

/// `moorline serve` with a controller `disk` on the rig's target, live.
fn held(rig: &Rig, timers: &str) -> (Config, Serve) {
    let disk = controller("disk", rig.target().xdp_addr(false));
    let config = Config::write(&format!("{}{timers}{disk}", xdp_lane(rig.host())));
    let serve = Serve::start(&config);
    config.until("disk", is_live);
    (config, serve)
}

fn is_live(ctrl: &Value) -> bool {
    ctrl["state"] == "live"
}

fn keep_alives(config: &Config) -> u64 {
    config.ctl("figures --json").ok().json()["figures"]["keep_alives"].as_u64().unwrap()
}

fn set(end: &End, state: &str) {
    let mut ip = end.command("ip");
    assert!(ip.args(["link", "set", "dev", end.dev(), state]).status().unwrap().success());
}

#[test]
fn connections_outlive_a_device_that_is_away_for_less_than_the_ack_timeout() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:16M");
    let (config, serve) = held(&rig, "[defaults]\nkeep_alive_tmo = \"2s\"\n");
    for away in [100, 600] {
        rig.unplug().unwrap();
        thread::sleep(Duration::from_millis(away));
        rig.plug().unwrap();
        let before = keep_alives(&config);
        config.until("disk", |_| keep_alives(&config) > before + 1);
        let disk = config.controller("disk");
        assert!(is_live(&disk) && disk["reconnects"] == 0, "{disk:#}");
    }
    let run = serve.end(Signal::TERM).ok();
    assert_eq!(run.stderr.matches("the interface is gone").count(), 2, "{run:#?}");
}

#[test]
fn controllers_are_live_again_after_a_device_was_away_for_longer() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:16M");
    let timers = "[defaults]\nkeep_alive_tmo = \"1s\"\nack_timeout_exp = 8\n";
    let (config, serve) = held(&rig, timers);
    for round in 1..=2 {
        rig.unplug().unwrap();
        let lost = config.until("disk", |ctrl| !is_live(ctrl));
        assert_ne!(lost["reason"], "", "{lost:#}");
        thread::sleep(Duration::from_millis(300));
        assert!(!is_live(&config.controller("disk")));
        rig.plug().unwrap();
        let disk = config.until("disk", is_live);
        assert_eq!(disk["reconnects"], round, "{disk:#}");
    }
    serve.end(Signal::TERM).ok();
}

#[test]
fn no_block_is_lost_wrong_or_repeated_over_outages_of_the_device() {
    let Some(rig) = rig(9000) else { return };
    let target = Target::xdp(&rig, "--backend ram:64M");
    let to = rig.target().xdp_addr(false);
    let perf = start_perf(&lane(rig.host()), to, "--rw randrw --iodepth 16 --runtime 4 --verify");
    let pause = || thread::sleep(Duration::from_millis(300));
    pause();
    for _ in 0..2 {
        pause();
        set(rig.host(), "down");
        pause();
        set(rig.host(), "up");
        pause();
        rig.unplug().unwrap();
        pause();
        rig.plug().unwrap();
    }
    clean(finish(perf));
    target.stop();
}
