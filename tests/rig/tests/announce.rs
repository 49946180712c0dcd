//! A target that restarts announces itself over the bridge: the host tries it at once, whenever its
//! next test would have been due. What is counted are tests; the next one is ten minutes away.

use moorline_rig::{End, RigSpec, Star};
use serde_json::Value;

use crate::serve::{Config, Serve, controller};
use crate::support::{lane, rights};
use crate::target::Target;

/// Our own stack with both addresses of an end.
fn both(end: &End) -> String {
    let addrs = [false, true].map(|v6| format!("{}/{}", end.xdp_addr(v6), End::prefix(v6)));
    format!("[lane]\nnetns = {:?}\ndev = {:?}\naddr = {addrs:?}\n", end.netns(), end.dev())
}

fn figure(config: &Config, name: &str) -> u64 {
    config.ctl("figures --json").ok().json()["figures"][name].as_u64().unwrap()
}

fn tried_at_once(v6: bool, probe: &str) {
    if !rights() {
        return;
    }
    let star = Star::up(&RigSpec::unique("ml-net"), 1).unwrap();
    let end = &star.targets()[0];
    let start = || Target::start(&lane(end), "--backend ram:16M");
    let timers = format!(
        "[defaults]\nkeep_alive_tmo = \"1s\"\nack_timeout_exp = 9\nprobe_interval = \"10m\"\n\
         probe = {probe:?}\n"
    );
    let disk = controller("disk", end.xdp_addr(v6));
    let config = Config::write(&format!("{}{timers}{disk}", both(star.host())));
    let mut target = start();
    let _serve = Serve::start(&config);
    let is_live = |ctrl: &Value| ctrl["state"] == "live";
    config.until("disk", is_live);

    target.kill();
    let far = |ctrl: &Value| ctrl["next_attempt_ms"].as_f64().is_some_and(|ms| ms > 500_000.0);
    let waits = config.until("disk", far);
    assert_eq!(waits["reach"], "silent", "{waits:#}");
    let before = ["probes", "attempts", "announcements"].map(|name| figure(&config, name));

    let _again = start();
    config.until("disk", is_live);
    let [probes, attempts, announcements] = before;
    assert_eq!(figure(&config, "probes"), probes + 1, "one test, and it found the target");
    assert_eq!(figure(&config, "attempts"), attempts + 1);
    assert!(figure(&config, "announcements") > announcements);
}

#[test]
fn a_target_that_restarts_is_tried_at_once_by_gratuitous_arp() {
    tried_at_once(false, "syn");
}

#[test]
fn a_target_that_restarts_is_tried_at_once_by_unsolicited_advertisement() {
    tried_at_once(true, "syn");
}

#[test]
fn a_target_that_restarts_is_tried_at_once_where_tests_are_by_echo_too() {
    tried_at_once(false, "echo");
}
