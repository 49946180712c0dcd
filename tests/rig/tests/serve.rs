//! `moorline serve` and `moorline ctl`: controllers are held through the loss of their targets.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use moorline_rig::{End, Rig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{MOORLINE, Run, finish, rig, rights};
use crate::target::Target;

/// Longer than anything here takes; what is not so by then never will be.
const LONG: Duration = Duration::from_secs(20);
const NQN: &str = "nqn.2026-11.io.moorline:target";

/// A configuration, and the socket that it names, in a directory of their own.
pub struct Config {
    pub dir: tempfile::TempDir,
    file: PathBuf,
}

impl Config {
    pub fn write(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("serve.toml");
        let socket = dir.path().join("ctl.sock");
        std::fs::write(&file, format!("{text}[control]\nsocket = {socket:?}\n")).unwrap();
        Self { dir, file }
    }

    fn check(&self) -> Run {
        let file = self.file.to_str().unwrap();
        finish(crate::support::start(Command::new(MOORLINE).args(["serve", "--check", "-c", file])))
    }

    /// `moorline ctl` with arguments separated by blanks.
    pub fn ctl(&self, args: &str) -> Run {
        let socket = self.dir.path().join("ctl.sock");
        let mut command = Command::new(MOORLINE);
        command.arg("ctl").arg("--socket").arg(socket).args(args.split_whitespace());
        finish(crate::support::start(&mut command))
    }

    /// A controller, as `ctl list` shows it.
    #[track_caller]
    pub fn controller(&self, name: &str) -> Value {
        let list = self.ctl("list --json").ok().json();
        let controllers = list["controllers"].as_array().unwrap();
        let found = controllers.iter().find(|ctrl| ctrl["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    }

    /// Waits until a controller is as it should be.
    #[track_caller]
    pub fn until(&self, name: &str, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LONG;
        loop {
            let ctrl = self.controller(name);
            if is(&ctrl) {
                return ctrl;
            }
            assert!(Instant::now() < end, "{ctrl:#}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// `moorline serve`, killed when dropped.
pub struct Serve {
    child: Option<Child>,
}

impl Serve {
    #[track_caller]
    pub fn start(config: &Config) -> Self {
        let mut child = Command::new(MOORLINE)
            .env_remove("RUST_LOG")
            .args(["serve", "-c"])
            .arg(&config.file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let serve = Self { child: Some(child) };
        assert!(line.starts_with("holding "), "{line:?}");
        serve
    }

    /// Ends it by a signal.
    pub fn end(mut self, signal: Signal) -> Run {
        let child = self.child.take().unwrap();
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
        finish(child)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn controller(name: &str, addr: IpAddr) -> String {
    format!("[[controller]]\nname = {name:?}\ntraddr = \"{addr}\"\nnqn = {NQN:?}\n")
}

/// Our own stack, on an end of a rig.
pub fn xdp_lane(end: &End) -> String {
    format!(
        "[lane]\nnetns = {:?}\ndev = {:?}\naddr = [\"{}/{}\"]\n",
        end.netns(),
        end.dev(),
        end.xdp_addr(false),
        End::prefix(false)
    )
}

pub fn kernel_lane(end: &End) -> String {
    format!("[lane]\ntransport = \"kernel\"\nnetns = {:?}\n", end.netns())
}

/// What must hold whatever carries the connections.
fn held_through_the_loss_of_a_target(lane: &str, addr: IpAddr, start: impl Fn() -> Target) {
    let nobody: IpAddr = "10.99.0.99".parse().unwrap();
    let controllers = controller("absent", nobody) + &controller("here", addr);
    let timers = "[defaults]\nkeep_alive_tmo = \"1s\"\nack_timeout_exp = 9\n";
    let config = Config::write(&format!("{lane}{timers}{controllers}"));
    assert!(config.check().ok().stdout.contains("ok, 2 controller(s)"));
    let mut target = start();
    let serve = Serve::start(&config);

    let is_live = |ctrl: &Value| ctrl["state"] == "live";
    config.until("here", is_live);
    let absent = config.until("absent", |ctrl| !ctrl["reason"].is_null());
    assert!(!is_live(&absent) && absent["attempts"].as_u64() > Some(0), "{absent:#}");
    let table = config.ctl("list").ok().stdout;
    assert!(table.contains("live") && table.contains(absent["addr"].as_str().unwrap()), "{table}");

    target.kill();
    let lost = config.until("here", |ctrl| !is_live(ctrl) && !ctrl["reason"].is_null());
    assert_ne!(lost["reason"], "", "{lost:#}");
    let _again = start();
    let back = config.until("here", is_live);
    assert!(back["reconnects"].as_u64() > Some(0), "{back:#}");

    config.ctl("reset here").ok();
    config.until("here", |ctrl| is_live(ctrl) && ctrl["reconnects"].as_u64() > Some(1));
    config.ctl(&format!("connect more -a {addr} -n {NQN}")).ok();
    config.until("more", is_live);
    config.ctl("disconnect more").ok();
    config.until("more", Value::is_null);
    config.ctl("reset more").failed(1, "no controller \"more\"");
    let connections = config.ctl("connections --json").ok().json();
    let seen = connections["connections"].as_array().unwrap();
    let ours = seen.iter().filter(|conn| conn["remote"] == format!("{addr}:4420")).count();
    // Admin and I/O; kernel sockets are not seen into.
    assert_eq!(ours, if lane.contains("kernel") { 0 } else { 2 }, "{connections:#}");
    assert_eq!(config.ctl("figures --json").ok().json()["figures"]["deadlines_early"], 0);

    let run = serve.end(Signal::TERM).ok();
    assert_eq!(run.stderr.matches("controller=\"absent\"").count(), 1, "once per outage: {run:#?}");
    config.ctl("list").failed(2, "nobody serves at");
}

#[test]
fn controllers_are_held_through_the_loss_of_a_target_on_af_xdp() {
    let Some(rig) = rig(1500) else { return };
    let rig: &Rig = &rig;
    let addr = rig.target().xdp_addr(false);
    held_through_the_loss_of_a_target(&xdp_lane(rig.host()), addr, || {
        Target::xdp(rig, "--backend ram:16M")
    });
}

#[test]
fn controllers_are_held_through_the_loss_of_a_target_on_kernel_sockets() {
    let Some(rig) = rig(1500) else { return };
    let rig: &Rig = &rig;
    let addr = rig.target().kernel_addr(false);
    held_through_the_loss_of_a_target(&kernel_lane(rig.host()), addr, || {
        Target::kernel(rig, "--backend ram:16M")
    });
}

#[test]
fn ctrl_c_ends_it_in_order_with_its_own_code() {
    if !rights() {
        return;
    }
    let nobody =
        controller("absent", "127.0.0.1".parse().unwrap()).replace("name", "trsvcid = 1\nname");
    let config = Config::write(&format!("[lane]\ntransport = \"kernel\"\n{nobody}"));
    let serve = Serve::start(&config);
    config.until("absent", |ctrl| !ctrl["reason"].is_null());
    assert_eq!(serve.end(Signal::INT).code, Some(130));
}

#[test]
fn a_wrong_configuration_is_told_with_file_line_and_rule() {
    let config = Config::write("[lane]\ntransport = \"kernel\"\ndevice = \"eth0\"\n");
    let told = format!("{}:3: ", config.file.display());
    let run = config.check();
    run.failed(2, &told);
    run.failed(2, "device");
}

#[test]
fn standby_connections_are_taken_and_a_target_that_lets_none_wait_long_is_learned() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:16M");
    let disk = controller("disk", rig.target().xdp_addr(false)) + "standby = 2\n";
    let config = Config::write(&format!("{}{disk}", xdp_lane(rig.host())));
    let serve = Serve::start(&config);
    let figure =
        |name: &str| config.ctl("figures --json").ok().json()["figures"][name].as_u64().unwrap();
    config.until("disk", |ctrl| ctrl["standby"] == 2);
    config.ctl("reset disk").ok();
    config.until("disk", |ctrl| ctrl["reconnects"] == 1 && ctrl["standby"] == 2);
    assert_eq!((figure("standby_taken"), figure("standby_lost")), (2, 0));
    // The target ends both after 5 s, and none after that.
    config.until("disk", |_| figure("standby_lost") == 2);
    thread::sleep(Duration::from_millis(6500));
    assert_eq!((figure("standby"), figure("standby_lost")), (2, 2));
    assert!(config.controller("disk")["reconnects"] == 1);
    serve.end(Signal::TERM).ok();
}
