//! The configuration of `moorline serve`, TOML: our end of the network, who we are, and the
//! controllers to hold, each with its own timers. Whatever is wrong is told with file, line and
//! the rule that it breaks; nothing unknown is passed over.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use moorline_nvme::host::{CtrlConfig, Probe, Quiesce, Reconnect, Timeouts};
use moorline_nvme::spec::Nqn;
use moorline_stack::transport::ConnOptions;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::cli::{Cidr, LaneArgs, PollMode, TcpChecksum, XdpMode};
use crate::perf::report::TransportKind;
use crate::perf::workload::parse_duration;

/// Where the control socket is unless told otherwise.
pub const SOCKET: &str = "/run/moorline/ctl.sock";
/// NVMe/TCP (IANA).
const PORT: u16 = 4420;
/// Most controllers that a file may name.
const CONTROLLERS_MAX: usize = 4096;
/// Longest name of a controller.
const NAME_MAX: usize = 64;

/// What a file says, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our end of the network.
    pub lane: LaneArgs,
    /// Our host NQN, where the file says it.
    pub hostnqn: Option<String>,
    /// Our host ID, where the file says it.
    pub hostid: Option<String>,
    /// Path of the control socket.
    pub socket: PathBuf,
    /// What controllers made later start from.
    pub defaults: Settings,
    /// The controllers, by name.
    pub controllers: BTreeMap<String, CtrlConfig>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, and all that is wrong in it, a line each: file, line, rule.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the configuration {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Checks the text of a file named `file`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let place = |at: usize| {
            let line = 1 + text.bytes().take(at).filter(|&b| b == b'\n').count();
            format!("{file}:{line}")
        };
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let at = place(error.span().map_or(0, |span| span.start));
            anyhow!("{at}: {}", error.message())
        })?;
        let defaults = raw.defaults;
        let mut wrong = Vec::new();
        if let Err(error) = defaults.get_ref().check_defaults() {
            wrong.push(format!("{}: [defaults]: {error:#}", place(defaults.span().start)));
        }
        let defaults = defaults.into_inner();
        let mut controllers = BTreeMap::new();
        for entry in raw.controller {
            let at = place(entry.span().start);
            match entry.get_ref().controller(&defaults) {
                Ok((name, _)) if controllers.contains_key(&name) => {
                    wrong.push(format!("{at}: the name {name:?} is taken by another controller"));
                }
                Ok((name, config)) => drop(controllers.insert(name, config)),
                Err(error) => wrong.push(format!("{at}: {error:#}")),
            }
        }
        if controllers.len() > CONTROLLERS_MAX {
            wrong.push(format!("{file}: more than {CONTROLLERS_MAX} controllers"));
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(Self {
            lane: raw.lane.args(),
            hostnqn: raw.host.hostnqn,
            hostid: raw.host.hostid,
            socket: raw.control.socket,
            defaults,
            controllers,
        })
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    lane: Lane,
    #[serde(default)]
    host: HostSection,
    #[serde(default)]
    control: Control,
    #[serde(default = "no_defaults")]
    defaults: Spanned<Settings>,
    #[serde(default)]
    controller: Vec<Spanned<Settings>>,
}

fn no_defaults() -> Spanned<Settings> {
    Spanned::new(0..0, Settings::default())
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostSection {
    hostnqn: Option<String>,
    hostid: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: SOCKET.into() }
    }
}

/// The options of the command line that say what our end of the network is.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Lane {
    transport: Option<Named<TransportKind>>,
    dev: Option<String>,
    addr: Vec<Parsed<Cidr>>,
    gateway: Vec<IpAddr>,
    vlan: Option<u16>,
    queue: u32,
    xdp_mode: Option<Named<XdpMode>>,
    tcp_checksum: Option<Named<TcpChecksum>>,
    poll: Option<Named<PollMode>>,
    netns: Option<String>,
}

impl Lane {
    fn args(self) -> LaneArgs {
        LaneArgs {
            transport: self.transport.map_or(TransportKind::Xdp, |named| named.0),
            dev: self.dev,
            addr: self.addr.into_iter().map(|parsed| parsed.0).collect(),
            gateway: self.gateway,
            queue: self.queue,
            xdp_mode: self.xdp_mode.map_or(XdpMode::Auto, |named| named.0),
            tcp_checksum: self.tcp_checksum.map(|named| named.0),
            vlan: self.vlan,
            poll: self.poll.map_or(PollMode::Adaptive, |named| named.0),
            netns: self.netns,
            allow_faults: false,
            drop: None,
        }
    }
}

/// A value by its name on the command line.
struct Named<V>(V);

impl<'de, V: ValueEnum> Deserialize<'de> for Named<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        V::from_str(&text, false).map(Self).map_err(|_| {
            let known = V::value_variants().iter().filter_map(V::to_possible_value);
            let known: Vec<_> = known.map(|value| value.get_name().to_owned()).collect();
            D::Error::custom(format!("{text:?}: want one of {}", known.join(", ")))
        })
    }
}

/// A value in the form that the command line takes.
struct Parsed<V>(V);

impl<'de, V: FromStr<Err: Display>> Deserialize<'de> for Parsed<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// A time: `"20ms"`, `"3s"`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "TimeText", into = "String")]
pub struct Time(pub Duration);

#[derive(Deserialize)]
#[serde(untagged, expecting = "want a time: \"20ms\", \"3s\", or a number of seconds")]
enum TimeText {
    Seconds(u32),
    Text(String),
}

impl TryFrom<TimeText> for Time {
    type Error = anyhow::Error;

    fn try_from(text: TimeText) -> Result<Self> {
        Ok(Self(match text {
            TimeText::Seconds(seconds) => Duration::from_secs(seconds.into()),
            TimeText::Text(text) => parse_duration(&text)?,
        }))
    }
}

impl From<Time> for String {
    fn from(Time(time): Time) -> Self {
        format!("{}s", time.as_secs_f64())
    }
}

/// How long to try before a controller is given up: a time, or `"forever"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "TimeText", into = "String")]
pub struct Loss(pub Option<Duration>);

impl TryFrom<TimeText> for Loss {
    type Error = anyhow::Error;

    fn try_from(text: TimeText) -> Result<Self> {
        match text {
            TimeText::Text(text) if text == "forever" => Ok(Self(None)),
            text => Time::try_from(text).map(|time| Self(Some(time.0))),
        }
    }
}

impl From<Loss> for String {
    fn from(Loss(loss): Loss) -> Self {
        loss.map_or("forever".into(), |loss| Time(loss).into())
    }
}

/// How long writes of a silent path wait: `"auto"`, `"off"`, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "TimeText", into = "String")]
pub struct QuiesceText(pub Quiesce);

impl TryFrom<TimeText> for QuiesceText {
    type Error = anyhow::Error;

    fn try_from(text: TimeText) -> Result<Self> {
        Ok(Self(match text {
            TimeText::Text(text) if text == "auto" => Quiesce::Auto,
            TimeText::Text(text) if text == "off" => Quiesce::Off,
            text => Quiesce::For(Time::try_from(text)?.0),
        }))
    }
}

impl From<QuiesceText> for String {
    fn from(QuiesceText(quiesce): QuiesceText) -> Self {
        match quiesce {
            Quiesce::Auto => "auto".into(),
            Quiesce::Off => "off".into(),
            Quiesce::For(time) => Time(time).into(),
        }
    }
}

/// With what an address that does not answer is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeName {
    /// An attempt of one controller.
    Syn,
    /// ICMP echo; then an attempt of one controller.
    Echo,
}

impl From<ProbeName> for Probe {
    fn from(name: ProbeName) -> Self {
        match name {
            ProbeName::Syn => Self::Syn,
            ProbeName::Echo => Self::Echo,
        }
    }
}

/// A controller's settings, as in `[[controller]]`, `[defaults]` and `ctl connect`. What is left
/// out is as in `[defaults]`, and else as without a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Our own name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The target's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traddr: Option<IpAddr>,
    /// Its TCP port; 4420.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trsvcid: Option<u16>,
    /// The subsystem's NQN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
    /// I/O queues asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_io_queues: Option<u16>,
    /// Entries of an I/O queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// Keep alive timeout; 0 turns keep alive off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_tmo: Option<Time>,
    /// CRC32C over PDU headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hdr_digest: Option<bool>,
    /// CRC32C over data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_digest: Option<bool>,
    /// Connections kept ready for when a queue is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<u16>,
    /// Receive buffer of a connection, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_buffer: Option<u32>,
    /// Send buffer of a connection, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_buffer: Option<u32>,
    /// From the first SYN to live, all stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_tmo: Option<Time>,
    /// The TCP handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_connect_tmo: Option<Time>,
    /// Sent data may stay unacknowledged for 2^n ms; 0: our default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_timeout_exp: Option<u8>,
    /// An I/O command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_timeout: Option<Time>,
    /// An admin command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_timeout: Option<Time>,
    /// An I/O command that is aborted, before its controller is reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort_tmo: Option<Time>,
    /// I/O stays with us when its path is lost, so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_io_fail_tmo: Option<Time>,
    /// And its writes wait so long, where the path fell silent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceText>,
    /// Shortest wait before another attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_delay_min: Option<Time>,
    /// Longest wait before another attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_delay_max: Option<Time>,
    /// With what an address that does not answer is tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeName>,
    /// How often an address that does not answer is tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<Time>,
    /// How long such a test waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_timeout: Option<Time>,
    /// How long to try before the controller is given up; `"forever"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctrl_loss_tmo: Option<Loss>,
}

impl Settings {
    /// The controller that these settings make over `defaults`: its name, and how to reach it.
    ///
    /// # Errors
    /// The rule that they break.
    pub fn controller(&self, defaults: &Self) -> Result<(String, CtrlConfig)> {
        let name = self.name.clone().context("a controller has a name (name = \"…\")")?;
        check_name(&name)?;
        let config = self.config(defaults).with_context(|| format!("controller {name:?}"))?;
        Ok((name, config))
    }

    fn config(&self, defaults: &Self) -> Result<CtrlConfig> {
        let traddr = self.traddr.context("it needs its target's address (traddr)")?;
        let port = self.trsvcid.or(defaults.trsvcid).unwrap_or(PORT);
        ensure!(port > 0, "trsvcid: port 0 is nobody's");
        let nqn = self.nqn.as_deref().context("it needs the subsystem's NQN (nqn)")?;
        Nqn::new(nqn).map_err(|error| anyhow!("nqn {nqn:?}: {error}"))?;
        let mut config = CtrlConfig::new(SocketAddr::new(traddr, port), nqn);
        self.over(defaults).apply(&mut config)?;
        Ok(config)
    }

    /// These settings, and where they say nothing, `defaults`.
    fn over(&self, defaults: &Self) -> Self {
        Self {
            name: self.name.clone(),
            traddr: self.traddr,
            nqn: self.nqn.clone(),
            trsvcid: self.trsvcid.or(defaults.trsvcid),
            nr_io_queues: self.nr_io_queues.or(defaults.nr_io_queues),
            queue_size: self.queue_size.or(defaults.queue_size),
            keep_alive_tmo: self.keep_alive_tmo.or(defaults.keep_alive_tmo),
            hdr_digest: self.hdr_digest.or(defaults.hdr_digest),
            data_digest: self.data_digest.or(defaults.data_digest),
            standby: self.standby.or(defaults.standby),
            rx_buffer: self.rx_buffer.or(defaults.rx_buffer),
            tx_buffer: self.tx_buffer.or(defaults.tx_buffer),
            connect_tmo: self.connect_tmo.or(defaults.connect_tmo),
            tcp_connect_tmo: self.tcp_connect_tmo.or(defaults.tcp_connect_tmo),
            ack_timeout_exp: self.ack_timeout_exp.or(defaults.ack_timeout_exp),
            io_timeout: self.io_timeout.or(defaults.io_timeout),
            admin_timeout: self.admin_timeout.or(defaults.admin_timeout),
            abort_tmo: self.abort_tmo.or(defaults.abort_tmo),
            fast_io_fail_tmo: self.fast_io_fail_tmo.or(defaults.fast_io_fail_tmo),
            quiesce: self.quiesce.or(defaults.quiesce),
            reconnect_delay_min: self.reconnect_delay_min.or(defaults.reconnect_delay_min),
            reconnect_delay_max: self.reconnect_delay_max.or(defaults.reconnect_delay_max),
            probe: self.probe.or(defaults.probe),
            probe_interval: self.probe_interval.or(defaults.probe_interval),
            probe_timeout: self.probe_timeout.or(defaults.probe_timeout),
            ctrl_loss_tmo: self.ctrl_loss_tmo.or(defaults.ctrl_loss_tmo),
        }
    }

    /// Sets what these settings name.
    fn apply(&self, config: &mut CtrlConfig) -> Result<()> {
        if let Some(queues) = self.nr_io_queues {
            ensure!((1..=128).contains(&queues), "nr_io_queues {queues}: it is 1 to 128");
            config.io_queues = queues;
        }
        if let Some(size) = self.queue_size {
            ensure!((2..=1024).contains(&size), "queue_size {size}: it is 2 to 1024");
            config.queue_size = size;
        }
        for (name, size, to) in [
            ("rx_buffer", self.rx_buffer, &mut config.conn.rx_buffer),
            ("tx_buffer", self.tx_buffer, &mut config.conn.tx_buffer),
        ] {
            let Some(size) = size else { continue };
            let fits = (16 << 10..=16 << 20).contains(&size);
            ensure!(fits, "{name} {size}: it is 16384 (16 KiB) to 16777216 (16 MiB)");
            *to = size as usize;
        }
        config.standby = self.standby.unwrap_or(config.standby);
        config.hdgst = self.hdr_digest.unwrap_or(config.hdgst);
        config.ddgst = self.data_digest.unwrap_or(config.ddgst);
        self.apply_timers(config)
    }

    /// Sets the timers that these settings name.
    fn apply_timers(&self, config: &mut CtrlConfig) -> Result<()> {
        let set = |to: &mut Duration, time: Option<Time>| *to = time.map_or(*to, |time| time.0);
        let mut reconnect = config.reconnect.unwrap_or_default();
        set(&mut reconnect.delay_min, self.reconnect_delay_min);
        set(&mut reconnect.delay_max, self.reconnect_delay_max);
        reconnect.probe = self.probe.map_or(reconnect.probe, Probe::from);
        set(&mut reconnect.probe_interval, self.probe_interval);
        set(&mut reconnect.probe_timeout, self.probe_timeout);
        reconnect.ctrl_loss = self.ctrl_loss_tmo.map_or(reconnect.ctrl_loss, |loss| loss.0);
        check_reconnect(&reconnect)?;
        config.reconnect = Some(reconnect);
        if self.fast_io_fail_tmo.is_some() || self.quiesce.is_some() {
            let requeue = config.requeue.get_or_insert_default();
            set(&mut requeue.fast_io_fail, self.fast_io_fail_tmo);
            requeue.quiesce = self.quiesce.map_or(requeue.quiesce, |quiesce| quiesce.0);
        }
        set(&mut config.kato, self.keep_alive_tmo);
        if let Some(Time(total)) = self.connect_tmo {
            // Its stages are those of no other setting.
            let Timeouts { icresp, connect, .. } = Timeouts::default();
            config.timeouts = Timeouts { icresp, connect, ..config.timeouts };
            config.limit_connect(total);
            set(&mut config.conn.connect_timeout, self.tcp_connect_tmo);
            let reconnect = config.reconnect.get_or_insert_default();
            set(&mut reconnect.probe_timeout, self.probe_timeout);
        }
        set(&mut config.timeouts.io, self.io_timeout);
        set(&mut config.timeouts.admin, self.admin_timeout);
        set(&mut config.timeouts.abort, self.abort_tmo);
        set(&mut config.conn.connect_timeout, self.tcp_connect_tmo);
        if let Some(exp) = self.ack_timeout_exp {
            let ours = ConnOptions::default().ack_timeout;
            config.conn.ack_timeout = ConnOptions::ack_timeout_of_exp(exp).unwrap_or(ours);
        }
        config.lint()?;
        Ok(())
    }

    /// What `before` becomes by these settings, which may be timers only.
    ///
    /// # Errors
    /// The setting that is no timer, or the rule that they break.
    pub fn changed(&self, before: &CtrlConfig) -> Result<CtrlConfig> {
        for (name, is_set) in [
            ("name", self.name.is_some()),
            ("traddr", self.traddr.is_some()),
            ("trsvcid", self.trsvcid.is_some()),
            ("nqn", self.nqn.is_some()),
            ("nr_io_queues", self.nr_io_queues.is_some()),
            ("queue_size", self.queue_size.is_some()),
            ("hdr_digest", self.hdr_digest.is_some()),
            ("data_digest", self.data_digest.is_some()),
            ("standby", self.standby.is_some()),
            ("rx_buffer", self.rx_buffer.is_some()),
            ("tx_buffer", self.tx_buffer.is_some()),
        ] {
            ensure!(!is_set, "{name} is no timer: disconnect, and connect with another");
        }
        let mut config = before.clone();
        self.apply_timers(&mut config)?;
        let requeues = before.requeue.is_some() || config.requeue.is_none();
        ensure!(requeues, "I/O is not kept for it: connect it with fast_io_fail_tmo or quiesce");
        Ok(config)
    }

    /// What `[defaults]` may not say: who one controller is.
    fn check_defaults(&self) -> Result<()> {
        ensure!(self.name.is_none(), "a name is one controller's: write it in [[controller]]");
        ensure!(self.traddr.is_none(), "traddr is one controller's: write it in [[controller]]");
        ensure!(self.nqn.is_none(), "nqn is one controller's: write it in [[controller]]");
        let mut any = CtrlConfig::new(SocketAddr::from(([0; 4], PORT)), "nqn.any");
        self.apply(&mut any)
    }
}

/// What the linter of the host does not look at.
fn check_reconnect(r: &Reconnect) -> Result<()> {
    let least = Duration::from_millis(1);
    for (name, time) in [
        ("reconnect_delay_min", r.delay_min),
        ("probe_interval", r.probe_interval),
        ("probe_timeout", r.probe_timeout),
    ] {
        ensure!(time >= least, "{name} of {time:?}: at least {least:?}, or it never rests");
    }
    ensure!(
        r.delay_min <= r.delay_max,
        "reconnect_delay_min of {:?} exceeds reconnect_delay_max of {:?}",
        r.delay_min,
        r.delay_max
    );
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    ensure!(
        (1..=NAME_MAX).contains(&name.len()) && name.chars().all(plain),
        "name {name:?}: 1 to {NAME_MAX} letters, digits, dots, dashes and underscores"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[lane]
transport = "kernel"
addr = ["10.0.0.5/24"]
poll = "busy"

[control]
socket = "/tmp/x.sock"

[defaults]
connect_tmo = "500ms"
keep_alive_tmo = 2
ack_timeout_exp = 10

[[controller]]
name = "a"
traddr = "10.0.0.1"
nqn = "nqn.2026-11.io.moorline:a"

[[controller]]
name = "b"
traddr = "fd00::1"
trsvcid = 4421
nqn = "nqn.2026-11.io.moorline:b"
keep_alive_tmo = "5s"
ack_timeout_exp = 0
ctrl_loss_tmo = "forever"
"#;

    fn error(text: &str) -> String {
        Config::parse("f.toml", text).unwrap_err().to_string()
    }

    fn controller(lines: &str) -> String {
        let text = format!("\n[[controller]]\nname = \"a\"\ntraddr = \"::1\"\n{lines}\n");
        Config::parse("f.toml", &text).err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn a_controller_takes_the_defaults_and_its_own_over_them() {
        let config = Config::parse("f.toml", GOOD).unwrap();
        assert_eq!(config.lane.transport, TransportKind::Kernel);
        assert_eq!(config.lane.poll, PollMode::Busy);
        assert_eq!(config.lane.addr[0].prefix, 24);
        let (a, b) = (&config.controllers["a"], &config.controllers["b"]);
        assert_eq!(a.addr, "10.0.0.1:4420".parse().unwrap());
        assert_eq!(b.addr, "[fd00::1]:4421".parse().unwrap());
        assert_eq!((a.kato.as_secs(), b.kato.as_secs()), (2, 5));
        assert_eq!(a.conn.ack_timeout, Duration::from_millis(1024));
        assert_eq!(a.timeouts.connect_total, Duration::from_millis(500));
        let loss = |config: &CtrlConfig| config.reconnect.unwrap().ctrl_loss;
        assert_eq!((loss(a), loss(b)), (Reconnect::default().ctrl_loss, None));
    }

    #[test]
    fn an_unknown_word_is_told_with_its_line() {
        let text = error("[lane]\ndev = \"eth0\"\nadr = []\n");
        assert!(text.starts_with("f.toml:3: ") && text.contains("adr"), "{text}");
        let text = controller("nqn = \"nqn.2026-11.x\"\nio_tmo = \"3s\"");
        assert!(text.starts_with("f.toml:6: ") && text.contains("io_tmo"), "{text}");
    }

    #[test]
    fn values_are_told_with_the_form_that_they_have() {
        let text = error("[lane]\ntransport = \"udp\"\n");
        assert!(text.contains("f.toml:2") && text.contains("xdp, kernel"), "{text}");
        let text = error("[lane]\naddr = [\"10.0.0.5\"]\n");
        assert!(text.contains("f.toml:2") && text.contains("10.0.0.5/24"), "{text}");
        let text = controller("nqn = \"nqn.2026-11.x\"\nconnect_tmo = \"3 weeks\"");
        assert!(text.contains("f.toml:6") && text.contains("3 weeks"), "{text}");
    }

    #[test]
    fn a_broken_rule_is_told_with_the_line_of_its_controller() {
        assert!(controller("nqn = \"nqn.2026-11.x\"").is_empty());
        for (lines, what) in [
            ("", "needs the subsystem's NQN"),
            ("nqn = \"x\"", "begins with"),
            ("nqn = \"nqn.2026-11.x\"\nnr_io_queues = 129", "1 to 128"),
            ("nqn = \"nqn.2026-11.x\"\nqueue_size = 1", "2 to 1024"),
            ("nqn = \"nqn.2026-11.x\"\nrx_buffer = 1", "16 KiB"),
            ("nqn = \"nqn.2026-11.x\"\nack_timeout_exp = 1", "ack timeout of 2ms"),
            ("nqn = \"nqn.2026-11.x\"\ntrsvcid = 0", "port 0"),
            ("nqn = \"nqn.2026-11.x\"\nreconnect_delay_min = 3", "exceeds reconnect_delay_max"),
            ("nqn = \"nqn.2026-11.x\"\nprobe_interval = 0", "never rests"),
            ("nqn = \"nqn.2026-11.x\"\nconnect_tmo = 0", "connect timeout of"),
        ] {
            let text = controller(lines);
            assert!(text.starts_with("f.toml:2: ") && text.contains(what), "{text}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let text = error(&(GOOD.replace("\"b\"", "\"a\"") + "[[controller]]\nname = \"c d\"\n"));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("taken") && lines[1].contains("c d"), "{text}");
    }

    #[test]
    fn the_defaults_are_nobodys_in_particular() {
        let text = error("[defaults]\nnqn = \"nqn.2026-11.x\"\n");
        assert!(text.contains("f.toml:1: [defaults]: nqn is one"), "{text}");
    }

    #[test]
    fn timers_are_changed_over_what_they_are_and_nothing_else_is() {
        let config = Config::parse("f.toml", GOOD).unwrap();
        let a = &config.controllers["a"];
        let changed = |text: &str| toml::from_str::<Settings>(text).unwrap().changed(a);
        let longer = changed("connect_tmo = 2\nack_timeout_exp = 0\nabort_tmo = 4").unwrap();
        assert_eq!(longer.timeouts.connect_total, Duration::from_secs(2));
        assert_eq!(longer.timeouts.icresp, Duration::from_secs(1), "no longer limited to 500 ms");
        assert_eq!(longer.conn.ack_timeout, Duration::from_secs(3));
        assert_eq!((longer.timeouts.abort.as_secs(), longer.kato), (4, a.kato));
        let error = |text| format!("{:#}", changed(text).unwrap_err());
        assert!(error("nr_io_queues = 2").contains("nr_io_queues is no timer"));
        assert!(error("tcp_connect_tmo = 2").contains("exceeds connect timeout"));
        assert!(error("quiesce = \"off\"").contains("connect it with"));
    }

    #[test]
    fn standby_connections_are_asked_for_by_number() {
        let text = GOOD.replace("[defaults]", "[defaults]\nstandby = 2");
        let config = Config::parse("f.toml", &text).unwrap();
        assert_eq!(config.controllers["a"].standby, 2);
        let told = controller("nqn = \"nqn.2026-01.x:y\"\nstandby = 3");
        assert!(told.contains("standby of 3 exceeds 2: a controller has no more queues"), "{told}");
    }

    #[test]
    fn io_is_kept_where_one_says_for_how_long() {
        let config = |lines: &str| {
            let text = GOOD.replace("[defaults]", &format!("[defaults]\n{lines}"));
            Config::parse("f.toml", &text).unwrap().controllers["a"].clone()
        };
        assert_eq!(config("").requeue, None);
        let kept = config("fast_io_fail_tmo = 30\nquiesce = \"4s\"").requeue.unwrap();
        assert_eq!(kept.fast_io_fail, Duration::from_secs(30));
        assert_eq!(kept.quiesce, Quiesce::For(Duration::from_secs(4)));
        assert_eq!(config("probe = \"echo\"").reconnect.unwrap().probe, Probe::Echo);
        assert_eq!(config("quiesce = \"auto\"").requeue.unwrap().quiesce, Quiesce::Auto);
    }

    #[test]
    fn settings_survive_the_way_through_json() {
        let settings = Settings {
            name: Some("a".into()),
            keep_alive_tmo: Some(Time(Duration::from_millis(1500))),
            ctrl_loss_tmo: Some(Loss(None)),
            quiesce: Some(QuiesceText(Quiesce::Off)),
            probe: Some(ProbeName::Echo),
            ..Settings::default()
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
    }
}
