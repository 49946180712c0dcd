//! Faults on demand: a target that does wrong as `moorline ctl` asks it to, and a host that is
//! there again when it does no more.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use moorline_rig::Rig;
use serde_json::Value;

use crate::serve::{Config, Serve, controller, kernel_lane, xdp_lane};
use crate::support::{MOORLINE, Run, finish, moorline, rig, start};
use crate::target::Target;

/// Deadlines that a test can wait for.
const TIMERS: &str = "[defaults]\nkeep_alive_tmo = \"1s\"\nack_timeout_exp = 9\n\
    io_timeout = \"1s\"\nadmin_timeout = \"900ms\"\n";

/// A target's control socket.
struct Ctl(PathBuf);

impl Ctl {
    fn beside(config: &Config) -> Self {
        Self(config.dir.path().join("target.sock"))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn ask(&self, args: &str) -> Run {
        let mut command = Command::new(MOORLINE);
        command.args(["ctl", "--socket"]).arg(&self.0);
        finish(start(command.args(args.split_whitespace())))
    }

    fn faults(&self, args: &str) -> Run {
        self.ask(&format!("faults {args}"))
    }

    /// The faults in force, and how often each was met.
    fn list(&self) -> Vec<(String, u64)> {
        let answer = self.faults("list --json").ok().json();
        let faults = answer["faults"].as_array().unwrap().iter();
        let fault = |f: &Value| (f["fault"].as_str().unwrap().into(), f["met"].as_u64().unwrap());
        faults.map(fault).collect()
    }
}

fn is_live(ctrl: &Value) -> bool {
    ctrl["state"] == "live"
}

/// A controller is lost to each fault, says why, and is back when the fault is gone. With `+rst`,
/// the fault is one of new connections: those that there are end.
#[track_caller]
fn lost_and_back(config: &Config, ctl: &Ctl, faults: &[(&str, &str)]) {
    for &(fault, why) in faults {
        let (fault, resets) = match fault.strip_suffix("+rst") {
            Some(fault) => (fault, true),
            None => (fault, false),
        };
        ctl.faults(&format!("add {fault}")).ok();
        if resets {
            let met = ctl.faults("add rst --json").ok().json();
            assert!(met["met"].as_u64() >= Some(1), "{fault}: {met}");
        }
        config.until("here", |ctrl| {
            !is_live(ctrl) && ctrl["reason"].as_str().is_some_and(|reason| reason.contains(why))
        });
        let list = ctl.list();
        assert!(list.len() == 1 && list[0].0 == fault && list[0].1 > 0, "{list:?}");
        ctl.faults("clear").ok();
        assert!(ctl.list().is_empty());
        config.until("here", is_live);
    }
}

const OF_TARGETS: &[(&str, &str)] = &[
    ("port-closed+rst", "connection refused"),
    ("hold=icreq+rst", "no ICResp"),
    ("hold=connect+rst", "no Connect response"),
    ("hold=property+rst", "no Property"),
    ("busy+rst", "controller busy"),
    ("hold=keep-alive", "Keep Alive"),
    ("fes=3", "FES 3 (Header Digest Error)"),
];

#[test]
fn a_controller_is_lost_to_each_fault_and_back_without_it_on_af_xdp() {
    let Some(rig) = rig(1500) else { return };
    let rig: &Rig = &rig;
    let addr: IpAddr = rig.target().xdp_addr(false);
    let text = format!("{}{TIMERS}{}", xdp_lane(rig.host()), controller("here", addr));
    let config = Config::write(&text);
    let ctl = Ctl::beside(&config);
    let path = ctl.path().display();
    let args = format!("--backend ram:16M --allow-faults --fault no-neighbour --ctl {path}");
    let _target = Target::xdp(rig, &args);
    let serve = Serve::start(&config);

    let why = "no answer to ARP/ND";
    config.until("here", |ctrl| ctrl["reason"].as_str().is_some_and(|r| r.contains(why)));
    assert_eq!(config.controller("here")["reach"], "neighbour-failed");
    ctl.faults("clear").ok();
    config.until("here", is_live);
    let of_links = [
        ("swallow-syn,port=4420+rst", "connect timed out"),
        ("blackhole=both,port=4420", "connect timed out"),
        ("blackhole=in", "connect timed out"),
        ("blackhole=out", "connect timed out"),
    ];
    lost_and_back(&config, &ctl, &of_links);
    lost_and_back(&config, &ctl, OF_TARGETS);

    // For a time: it ends by itself.
    ctl.faults("add freeze=2s").ok();
    let frozen = ctl.faults("list --json").ok().json();
    assert!(frozen["faults"][0]["left_ms"].as_f64() > Some(0.0), "it answers: {frozen}");
    config.until("here", |ctrl| !is_live(ctrl));
    config.until("here", is_live);
    assert!(ctl.list().is_empty());
    ctl.faults("add lost").failed(1, "there is no fault \"lost\"");
    ctl.faults("add drop=0.1,share=1").failed(1, "share has no meaning with drop");
    drop(serve);
}

#[test]
fn a_controller_is_lost_to_each_fault_and_back_without_it_on_kernel_sockets() {
    let Some(rig) = rig(1500) else { return };
    let rig: &Rig = &rig;
    let addr: IpAddr = rig.target().kernel_addr(false);
    let text = format!("{}{TIMERS}{}", kernel_lane(rig.host()), controller("here", addr));
    let config = Config::write(&text);
    let ctl = Ctl::beside(&config);
    let args = format!("--backend ram:16M --allow-faults --ctl {}", ctl.path().display());
    let _target = Target::kernel(rig, &args);
    let serve = Serve::start(&config);
    config.until("here", is_live);
    let list = ctl.ask("list --json").ok().json();
    let controllers = list["controllers"].as_array().unwrap();
    assert!(controllers.len() == 1 && is_live(&controllers[0]), "{list:#}");
    assert_eq!(controllers[0]["timers"][0]["name"], "keep-alive", "{list:#}");
    lost_and_back(&config, &ctl, OF_TARGETS);
    ctl.faults("add swallow-syn").failed(1, "it needs --transport xdp");
    drop(serve);
}

#[test]
fn faults_are_refused_where_they_were_not_allowed() {
    let local = "target --transport kernel --listen 127.0.0.1:4499 --backend null:1M";
    moorline(&format!("{local} --fault busy")).failed(2, "--allow-faults");
    moorline(&format!("{local} --allow-faults --fault sleepy")).failed(2, "no fault \"sleepy\"");
    let Some(rig) = rig(1500) else { return };
    let config = Config::write("");
    let ctl = Ctl::beside(&config);
    let args = format!("--backend ram:16M --ctl {}", ctl.path().display());
    let _target = Target::kernel(&rig, &args);
    for args in ["add busy", "clear"] {
        ctl.faults(args).failed(1, "start the target with --allow-faults");
    }
    assert!(ctl.list().is_empty());
}
