//! The end under test: the real target or the real host, with what a script asks of it and what
//! it tells.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{
    AdminCommand, Cause, CtrlConfig, CtrlId, Failure, Host, HostEvent, HostIdentity, HostLimits,
    Io, IoOp, Reconnect, Requeue,
};
use moorline_nvme::spec::Status;
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::mem::Arena;
use moorline_stack::pipe::Pipe;
use moorline_stack::{Instant, Transport};

use super::script::{Term, Value};
use super::wire::{HOSTNQN, SUBNQN};

pub const BLOCK: usize = 512;

pub fn address() -> SocketAddr {
    "10.0.0.2:4420".parse().unwrap()
}

pub enum End {
    Target(Box<Target<Pipe>>),
    Host { host: Box<Host<Pipe>>, ctrl: Option<CtrlId>, told: VecDeque<String>, arena: Arena },
}

impl End {
    pub fn target(pipe: Pipe, now: Instant, options: &[Term]) -> Result<Self, String> {
        let mut config = TargetConfig::default();
        for option in options {
            let n = number(option)?;
            match &option.name[..] {
                "hdgst" => config.hdgst = n != 0,
                "ddgst" => config.ddgst = n != 0,
                "tbkas" => config.tbkas = n != 0,
                "controllers" => config.controllers_max = n as usize,
                "strangers" => config.unauthenticated_per_peer_max = n as usize,
                "maxh2cdata" => config.h2c_data_bytes_max = n as u32,
                "in_capsule" => config.in_capsule_bytes = n as u32,
                "buffers" => {
                    config.in_capsule_buffers = n as usize;
                    config.small_buffers = n as usize;
                    config.medium_buffers = n as usize;
                    config.large_buffers = n as usize;
                }
                "mdts" => config.mdts = n as u8,
                other => return Err(format!("a target has no option {other}")),
            }
        }
        let mut target = Target::new(pipe, config);
        for (name, friend) in [(SUBNQN, None), ("nqn.2026-01.org.moorline:private", Some("x"))] {
            let mut subsystem = Subsystem::new(name);
            subsystem.hosts = friend.map(|name| vec![format!("nqn.2026-01.org.moorline:{name}")]);
            subsystem.add_namespace(1, Box::new(Ram::new(BLOCK as u32, 4096))).unwrap();
            target.add_subsystem(subsystem).unwrap();
        }
        target.listen(now, address()).unwrap();
        Ok(Self::Target(Box::new(target)))
    }

    pub fn host(pipe: Pipe) -> Self {
        let identity = HostIdentity { hostnqn: HOSTNQN.to_owned(), hostid: [7; 16] };
        let host = Host::new(pipe, identity, HostLimits::default());
        let arena = Arena::new(8 << 20);
        Self::Host { host: Box::new(host), ctrl: None, told: VecDeque::new(), arena }
    }

    pub fn turn(&mut self, now: Instant) {
        match self {
            Self::Target(target) => {
                target.turn(now);
                target.flush(now);
            }
            Self::Host { host, told, .. } => {
                host.turn(now);
                told.extend(
                    std::iter::from_fn(|| host.poll_event()).map(|event| event_text(&event)),
                );
                while let Some(done) = host.poll_io() {
                    let bytes = done.buf.as_deref().unwrap_or(&[]);
                    let fill = match bytes.first() {
                        Some(first) if bytes.iter().all(|byte| byte == first) => {
                            format!(" fill={first}")
                        }
                        Some(_) | None => String::new(),
                    };
                    told.push_back(format!("done tag={}{}{fill}", done.tag, status(done.status)));
                }
                while let Some(done) = host.poll_admin() {
                    told.push_back(format!("admin{}", status(done.status())));
                }
                host.flush(now);
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Target(target) => target.poll_timeout(),
            Self::Host { host, .. } => host.poll_timeout(),
        }
    }

    /// What was told and not expected yet.
    pub fn told(&mut self) -> Option<&mut VecDeque<String>> {
        match self {
            Self::Target(_) => None,
            Self::Host { told, .. } => Some(told),
        }
    }

    /// A figure of the target's by its name.
    pub fn figures(&self) -> String {
        match self {
            Self::Target(target) => format!("{:?}", target.stats()),
            Self::Host { host, ctrl, .. } => {
                let info = ctrl.map(|ctrl| host.controller(ctrl));
                info.map_or_else(String::new, |info| {
                    format!("kato: {}, cntlid: {} ", info.kato.as_millis(), info.cntlid)
                })
            }
        }
    }

    pub fn ask(&mut self, now: Instant, what: &str, terms: &[Term]) -> Result<(), String> {
        let Self::Host { host, ctrl, arena, .. } = self else {
            return Err("a target is asked for nothing".into());
        };
        match what {
            "connect" => {
                let config = config(terms)?;
                *ctrl = Some(host.connect(now, config).map_err(|error| error.to_string())?);
                return Ok(());
            }
            "disconnect" => {
                host.disconnect(now, ctrl.ok_or("no controller")?);
                return Ok(());
            }
            _ => {}
        }
        let ctrl = ctrl.ok_or("no controller")?;
        let value = |name: &str, default: u64| {
            let term = terms.iter().find(|term| term.name == name);
            term.map_or(Ok(default), number)
        };
        let op = match what {
            "read" => IoOp::Read,
            "write" => IoOp::Write { fua: value("fua", 0)? != 0 },
            "flush" => IoOp::Flush,
            "zeroes" => IoOp::WriteZeroes,
            "dealloc" => IoOp::Deallocate,
            "admin" => {
                let data = vec![0; value("len", 0)? as usize];
                let opcode = value("op", 0)? as u8;
                let command = AdminCommand { opcode, data, ..AdminCommand::default() };
                let full = |_| "no room for an admin command".to_owned();
                return host.admin(now, ctrl, value("tag", 0)?, command).map_err(full);
            }
            other => return Err(format!("a host cannot {other}")),
        };
        let blocks = value("nlb", 0)? as u32 + 1;
        let buf = matches!(op, IoOp::Read | IoOp::Write { .. }).then(|| {
            let mut buf = arena.take(blocks as usize * BLOCK).expect("scripts are short");
            buf.fill(if op == IoOp::Read { 0 } else { 0xDA });
            buf
        });
        let (tag, lba) = (value("tag", 0)?, value("slba", 0)?);
        let io = Io { tag, op, nsid: 1, lba, blocks, buf, buf_offset: 0 };
        host.submit(now, ctrl, 0, io).map_err(|_| "no room for an I/O".to_owned())
    }
}

fn number(term: &Term) -> Result<u64, String> {
    match &term.value {
        Value::Text(text) => super::script::duration(text).map(|time| time.as_millis() as u64),
        value => value.number(&Default::default()),
    }
}

fn config(terms: &[Term]) -> Result<CtrlConfig, String> {
    let mut config = CtrlConfig::new(address(), SUBNQN);
    config.kato = Duration::ZERO;
    for term in terms {
        let n = number(term)?;
        let time = Duration::from_millis(n);
        match &term.name[..] {
            "kato" => config.kato = time,
            "hdgst" => config.hdgst = n != 0,
            "ddgst" => config.ddgst = n != 0,
            "hpda" => config.hpda = n as u8,
            "queues" => config.io_queues = n as u16,
            "queue_size" => config.queue_size = n as u16,
            "flow_control" => config.sq_flow_control = n != 0,
            "connect_total" => config.timeouts.connect_total = time,
            "reconnect" => {
                let pauses = Reconnect { delay_min: time, delay_max: time, ..Reconnect::default() };
                config.reconnect = Some(pauses);
            }
            "requeue" => {
                config.requeue = Some(Requeue { fast_io_fail: time, ..Requeue::default() });
            }
            "discovery" => {
                let discovery = CtrlConfig::discovery(address());
                config = CtrlConfig { kato: config.kato, ..discovery };
            }
            other => return Err(format!("a host has no option {other}")),
        }
    }
    Ok(config)
}

fn event_text(event: &HostEvent) -> String {
    match event {
        HostEvent::Live { .. } => "live".to_owned(),
        HostEvent::Disconnected { failure, .. } => format!("disconnected {}", reason(failure)),
        HostEvent::Failed { failure, .. } => format!("failed {}", reason(failure)),
        HostEvent::Closed { .. } => "closed".to_owned(),
        HostEvent::Aen { kind, info, lid, .. } => {
            format!("event kind={kind} info={info} lid={lid}")
        }
    }
}

fn reason(failure: &Failure) -> String {
    let cause = match &failure.cause {
        Cause::Tcp(why) => format!("tcp {:?}", why.cause),
        Cause::NotStarted(kind) => format!("not-started {kind:?}"),
        Cause::PeerClosed => "peer-closed".to_owned(),
        Cause::Timeout => "timeout".to_owned(),
        Cause::Protocol(fatal) => format!("protocol fes={} fei={}", fatal.fes(), fatal.fei()),
        Cause::Terminated(term) => format!("terminated fes={} fei={}", term.fes, term.fei),
        Cause::ConnectRefused { status: s, dw0 } => format!("refused{} dw0={dw0}", status(*s)),
        Cause::Status(s) => format!("status{}", status(*s)),
        Cause::Unsupported(what) => format!("unsupported {what}"),
        Cause::ControllerFatal => "controller-fatal".to_owned(),
    };
    format!("{cause} qid={} stage={:?}", failure.qid, failure.stage)
}

fn status(status: Status) -> String {
    format!(" sct={} sc={:#x} dnr={}", status.sct(), status.sc(), u8::from(status.dnr()))
}

impl End {
    /// Connections that the end under test holds.
    pub fn conns(&self) -> usize {
        match self {
            Self::Target(target) => target.transport().conns(),
            Self::Host { host, .. } => host.transport().conns(),
        }
    }

    /// Whatever happens next, at `now` or later.
    pub fn next(&self, pipe: &Pipe) -> Option<Instant> {
        moorline_stack::time::earliest(self.poll_timeout(), pipe.poll_timeout())
    }
}
