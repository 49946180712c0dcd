//! The controllers that are held, by name: what the control socket asks of them, and what is told
//! of them.
//!
//! What always holds: a name is one controller's; one that was given up keeps its name and its
//! reason until it is reset or disconnected; each outage is told once.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use moorline_nvme::host::{CtrlConfig, CtrlId, Host, HostEvent};
use moorline_stack::{Instant, Transport};
use serde_json::{Value, json};

use super::config::Settings;
use super::proto::{self, Cmd, Conn, Conns, Ctrl, List, PAGE, Request, Timer, V};
use super::server::{Answers, Server};

/// Log lines in a second; what is more is counted, and the count told.
const LOGS_PER_S: u32 = 64;

/// A host, and names for its controllers.
pub struct Held<T: Transport> {
    host: Host<T>,
    defaults: Settings,
    ctrls: BTreeMap<String, One>,
    names: BTreeMap<CtrlId, String>,
    log: Log,
    /// How long turns took, microseconds.
    turn_us: Histogram<u64>,
}

/// A controller.
struct One {
    ctrl: CtrlId,
    config: CtrlConfig,
    /// It was given up: since when, and why.
    given_up: Option<(Instant, String)>,
    /// It is being shut down as asked.
    is_leaving: bool,
}

impl<T: Transport> Held<T> {
    /// No controllers yet; those to come start from `defaults`.
    ///
    /// # Errors
    /// None that can happen: the histogram's bounds are fixed.
    pub fn new(host: Host<T>, defaults: Settings) -> Result<Self> {
        Ok(Self {
            host,
            defaults,
            ctrls: BTreeMap::new(),
            names: BTreeMap::new(),
            log: Log::default(),
            turn_us: Histogram::new_with_bounds(1, 10_000_000, 2)?,
        })
    }

    /// The host, for the steps of a turn that are its own.
    pub fn host_mut(&mut self) -> &mut Host<T> {
        &mut self.host
    }

    /// When the next turn is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.host.poll_timeout()
    }

    /// A turn took this long.
    pub fn took(&mut self, time: Duration) {
        self.turn_us.saturating_record(time.as_micros() as u64);
    }

    /// Holds one more controller, and starts to connect it.
    ///
    /// # Errors
    /// When the name is taken, or the host cannot hold it.
    pub fn connect(&mut self, now: Instant, name: String, config: CtrlConfig) -> Result<()> {
        ensure!(!self.ctrls.contains_key(&name), "there is a controller {name:?} already");
        let ctrl = self.host.connect(now, config.clone())?;
        self.names.insert(ctrl, name.clone());
        let one = One { ctrl, config, given_up: None, is_leaving: false };
        self.ctrls.insert(name, one);
        Ok(())
    }

    /// Tries a controller anew, at once.
    fn reset(&mut self, now: Instant, name: &str) -> Result<()> {
        let one = self.ctrls.get_mut(name).with_context(|| unknown(name))?;
        ensure!(!one.is_leaving, "{name:?} is being disconnected");
        if one.given_up.is_none() {
            self.host.reset(now, one.ctrl);
            return Ok(());
        }
        one.ctrl = self.host.connect(now, one.config.clone())?;
        one.given_up = None;
        self.names.insert(one.ctrl, name.to_owned());
        Ok(())
    }

    /// Shuts a controller down; `Closed` or `Failed` will tell that it is gone.
    fn disconnect(&mut self, now: Instant, name: &str) -> Result<()> {
        let one = self.ctrls.get_mut(name).with_context(|| unknown(name))?;
        if one.given_up.is_some() {
            self.ctrls.remove(name);
        } else if !one.is_leaving {
            one.is_leaving = true;
            self.host.disconnect(now, one.ctrl);
        }
        Ok(())
    }

    /// Shuts all controllers down.
    pub fn leave(&mut self, now: Instant) {
        let names: Vec<_> = self.ctrls.keys().cloned().collect();
        for name in names {
            // It is there: the names were just taken.
            let _ = self.disconnect(now, &name);
        }
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.ctrls.is_empty()
    }

    /// Takes in what has arrived and what is due, and tells what came of it.
    pub fn turn(&mut self, now: Instant, server: &mut Server) {
        self.host.turn(now);
        // At most a few for each controller.
        while let Some(event) = self.host.poll_event() {
            if let Some(event) = self.event(now, event) {
                server.publish(&event);
            }
        }
        self.log.turn(now);
    }

    /// Notes an event, logs it, and makes of it what followers are told.
    fn event(&mut self, now: Instant, event: HostEvent) -> Option<Value> {
        let ctrl = match event {
            HostEvent::Live { ctrl, .. }
            | HostEvent::Disconnected { ctrl, .. }
            | HostEvent::Failed { ctrl, .. }
            | HostEvent::Closed { ctrl }
            | HostEvent::Aen { ctrl, .. } => ctrl,
        };
        let name = self.names.get(&ctrl)?.clone();
        let is_leaving = self.ctrls.get(&name).is_some_and(|one| one.is_leaving);
        let allowed = self.log.allows(now);
        let mut told = match event {
            HostEvent::Live { after, .. } => {
                if allowed {
                    tracing::info!(controller = name, after_ms = ms(after), "live");
                }
                json!({ "event": "live", "after_ms": ms(after) })
            }
            HostEvent::Disconnected { failure, .. } => {
                if allowed {
                    tracing::warn!(controller = name, %failure, "disconnected: it is tried again");
                }
                json!({ "event": "disconnected", "reason": failure.to_string() })
            }
            HostEvent::Failed { failure, .. } => {
                if allowed && !is_leaving {
                    tracing::error!(controller = name, %failure, "given up");
                }
                let reason = failure.to_string();
                self.over(now, ctrl, &name, Some(reason.clone()));
                json!({ "event": "failed", "reason": reason })
            }
            HostEvent::Closed { .. } => {
                if allowed {
                    tracing::info!(controller = name, "disconnected as asked");
                }
                self.over(now, ctrl, &name, None);
                json!({ "event": "closed" })
            }
            HostEvent::Aen { kind, info, lid, .. } => {
                if allowed {
                    tracing::info!(controller = name, kind, info, lid, "asynchronous event");
                }
                json!({ "event": "aen", "kind": kind, "info": info, "lid": lid })
            }
        };
        told["v"] = V.into();
        told["name"] = name.into();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        told["time"] = time.as_secs_f64().into();
        Some(told)
    }

    /// The host has done with a controller: its name goes, unless it was given up.
    fn over(&mut self, now: Instant, ctrl: CtrlId, name: &str, reason: Option<String>) {
        self.names.remove(&ctrl);
        match (self.ctrls.get_mut(name), reason) {
            (Some(one), Some(reason)) if !one.is_leaving => one.given_up = Some((now, reason)),
            _ => drop(self.ctrls.remove(name)),
        }
    }

    fn list(&self, now: Instant, after: Option<&str>) -> List {
        let from = after.map_or(Unbounded, Excluded);
        let mut rest = self.ctrls.range::<str, _>((from, Unbounded));
        let page = rest.by_ref().take(PAGE);
        let controllers: Vec<_> = page.map(|(name, one)| self.show(now, name, one)).collect();
        let more = rest.next().is_some();
        let next = controllers.last().filter(|_| more).map(|last| last.name.clone());
        List { v: V, ok: true, controllers, next }
    }

    fn show(&self, now: Instant, name: &str, one: &One) -> Ctrl {
        let shown = Ctrl {
            name: name.to_owned(),
            addr: one.config.addr.to_string(),
            nqn: one.config.subnqn.clone(),
            ..Ctrl::default()
        };
        if let Some((since, reason)) = &one.given_up {
            return Ctrl {
                state: "lost".to_owned(),
                since_ms: ms(now - *since),
                awaited: "a reset".to_owned(),
                reach: "unknown".to_owned(),
                reason: Some(reason.clone()),
                ..shown
            };
        }
        let status = self.host.status(one.ctrl);
        // Who waits for an address is tried when that is found, by the next test of it.
        let test = status.timers.iter().find(|(name, _)| *name == "probe").map(|&(_, at)| at);
        let next = status.next_attempt.or(test);
        Ctrl {
            state: status.state.to_string(),
            since_ms: ms(now - status.since),
            awaited: status.awaited.to_owned(),
            attempts: status.attempts,
            reconnects: status.reconnects,
            reach: status.reach.to_string(),
            reason: status.failure.map(|failure| failure.to_string()),
            next_attempt_ms: next.map(|at| left(now, at)),
            timers: timers(now, &status.timers),
            ..shown
        }
    }

    fn connections(&self, now: Instant, after: Option<&str>) -> Result<Conns> {
        let from = match after {
            None => 0,
            Some(slot) => slot.parse::<u32>().context("\"after\" is a slot")?.saturating_add(1),
        };
        let mut page = self.host.transport().connections_from(from, PAGE + 1);
        let more = page.len() > PAGE;
        page.truncate(PAGE);
        let connections = page.into_iter().map(|report| Conn {
            slot: report.conn.index,
            local: report.local.to_string(),
            remote: report.remote.to_string(),
            stage: report.stage.to_string(),
            since_ms: ms(now - report.since),
            send_queue: report.send_queue,
            recv_queue: report.recv_queue,
            retransmits: report.retransmits,
            timers: timers(now, &report.timers),
        });
        let connections: Vec<_> = connections.collect();
        let next = connections.last().filter(|_| more).map(|last| last.slot.to_string());
        Ok(Conns { v: V, ok: true, connections, next })
    }

    fn figures(&self) -> Value {
        let f = self.host.figures();
        let quantile = |q| self.turn_us.value_at_quantile(q);
        json!({
            "controllers": self.ctrls.len(),
            "attempts": f.attempts,
            "keep_alives": f.keep_alives,
            "keep_alives_lost": f.keep_alives_lost,
            "keep_alive_late_max_us": f.keep_alive_late_max.as_micros() as u64,
            "deadlines": f.deadlines,
            "deadlines_early": f.deadlines_early,
            "deadline_late_max_us": f.deadline_late_max.as_micros() as u64,
            "work_per_turn_max": {
                "events": f.events_per_turn_max,
                "deadlines": f.deadlines_per_turn_max,
            },
            "turns": self.turn_us.len(),
            "turn_us": {
                "p50": quantile(0.5),
                "p99": quantile(0.99),
                "p999": quantile(0.999),
                "max": self.turn_us.max(),
            },
        })
    }

    fn try_answer(&mut self, now: Instant, request: &Request) -> Result<Value> {
        let name = || request.name.as_deref().context("it needs a \"name\"");
        match request.cmd {
            Cmd::List => {
                return Ok(serde_json::to_value(self.list(now, request.after.as_deref()))?);
            }
            Cmd::Connections => {
                let page = self.connections(now, request.after.as_deref())?;
                return Ok(serde_json::to_value(page)?);
            }
            Cmd::Figures => {
                let mut answer = proto::done(Cmd::Figures);
                answer["figures"] = self.figures();
                return Ok(answer);
            }
            Cmd::Events => bail!("events are the server's own"),
            Cmd::Reset => self.reset(now, name()?)?,
            Cmd::Disconnect => self.disconnect(now, name()?)?,
            Cmd::Connect => {
                let settings = request.controller.as_ref().context("it needs a \"controller\"")?;
                let (name, config) = settings.controller(&self.defaults)?;
                self.connect(now, name, config)?;
            }
        }
        Ok(proto::done(request.cmd))
    }
}

impl<T: Transport> Answers for Held<T> {
    fn answer(&mut self, now: Instant, request: &Request) -> Value {
        self.try_answer(now, request).unwrap_or_else(|error| proto::refused(&error))
    }
}

fn unknown(name: &str) -> String {
    format!("there is no controller {name:?}")
}

fn timers(now: Instant, armed: &[(&'static str, Instant)]) -> Vec<Timer> {
    let timer = |&(name, at): &(&str, _)| Timer { name: name.to_owned(), left_ms: left(now, at) };
    armed.iter().map(timer).collect()
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// Milliseconds until `at`, below zero when it is past.
fn left(now: Instant, at: Instant) -> f64 {
    if at >= now { ms(at - now) } else { -ms(now - at) }
}

/// How much may be logged: [`LOGS_PER_S`], whatever happens.
#[derive(Default)]
struct Log {
    since: Instant,
    logged: u32,
    held_back: u64,
}

impl Log {
    fn allows(&mut self, now: Instant) -> bool {
        self.turn(now);
        let allowed = self.logged < LOGS_PER_S;
        self.logged += u32::from(allowed);
        self.held_back += u64::from(!allowed);
        allowed
    }

    /// Begins another second when the last is over, and tells what was held back in it.
    fn turn(&mut self, now: Instant) {
        if now.since(self.since) < Duration::from_secs(1) {
            return;
        }
        if self.held_back > 0 {
            tracing::warn!(events = self.held_back, "more happened than is logged");
        }
        *self = Self { since: now, logged: 0, held_back: 0 };
    }
}

#[cfg(test)]
mod tests {
    use moorline_nvme::host::{HostIdentity, HostLimits};
    use moorline_stack::kernel::KernelSockets;

    use super::*;

    /// Nobody listens at port 1 of the loopback.
    const NOBODY: &str = "127.0.0.1";

    struct Bench {
        held: Held<KernelSockets>,
        server: Server,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(HostLimits::default())
        }

        fn with(limits: HostLimits) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let server = Server::open(&dir.path().join("ctl.sock")).unwrap();
            let hostnqn = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef";
            let identity = HostIdentity { hostnqn: hostnqn.into(), hostid: [7; 16] };
            let transport = KernelSockets::new(256).unwrap();
            let host = Host::new(transport, identity, limits);
            Self { held: Held::new(host, Settings::default()).unwrap(), server, _dir: dir }
        }

        fn ask(&mut self, cmd: Cmd, name: &str) -> Value {
            let mut request = Request { name: Some(name.into()), ..Request::new(cmd) };
            if cmd == Cmd::Connect {
                let controller = json!({
                    "name": name, "traddr": NOBODY, "trsvcid": 1, "nqn": "nqn.2026-11.io.moorline:x"
                });
                request.controller = Some(serde_json::from_value(controller).unwrap());
            }
            self.held.answer(Instant::monotonic(), &request)
        }

        fn list(&mut self) -> Vec<Ctrl> {
            self.held.list(Instant::monotonic(), None).controllers
        }

        fn turn_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
            for _ in 0..2000 {
                let now = Instant::monotonic();
                self.held.turn(now, &mut self.server);
                self.held.host_mut().flush(now);
                if done(self) {
                    return;
                }
                self.held.host_mut().wait(Some(now + Duration::from_millis(5)), &[]).unwrap();
            }
            panic!("it did not come about: {:?}", self.list());
        }
    }

    #[test]
    fn a_controller_whose_target_is_not_there_waits_and_says_why() {
        let mut bench = Bench::new();
        assert_eq!(bench.ask(Cmd::Connect, "a")["ok"], true);
        bench.turn_until(|bench| bench.list()[0].state == "wait-reconnect");
        let ctrl = &bench.list()[0];
        assert!(ctrl.reason.as_ref().unwrap().contains("refused"), "{ctrl:?}");
        assert!(ctrl.attempts > 0 && !ctrl.timers.is_empty(), "{ctrl:?}");
        assert_eq!(bench.ask(Cmd::Reset, "a")["ok"], true);
        assert_eq!(bench.ask(Cmd::Figures, "")["figures"]["controllers"], 1);
        assert_eq!(bench.ask(Cmd::Disconnect, "a")["ok"], true);
        bench.turn_until(|bench| bench.held.is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_name() {
        let mut bench = Bench::new();
        for cmd in [Cmd::Reset, Cmd::Disconnect] {
            let answer = bench.ask(cmd, "a");
            assert!(answer["error"].as_str().unwrap().contains("no controller \"a\""), "{answer}");
        }
        bench.ask(Cmd::Connect, "a");
        let answer = bench.ask(Cmd::Connect, "a");
        assert!(answer["error"].as_str().unwrap().contains("already"), "{answer}");
        let answer = bench.ask(Cmd::Connect, "a b");
        assert!(answer["error"].as_str().unwrap().contains("letters"), "{answer}");
    }

    #[test]
    fn a_controller_that_was_given_up_keeps_its_reason_until_it_is_reset() {
        let mut bench = Bench::new();
        bench.ask(Cmd::Connect, "a");
        let one = bench.held.ctrls.get("a").unwrap();
        let (now, ctrl) = (Instant::monotonic(), one.ctrl);
        bench.held.host_mut().disconnect(now, ctrl); // so that the host has done with it
        bench.held.over(now, ctrl, "a", Some("host not allowed".into()));
        let shown = &bench.list()[0];
        assert_eq!(
            (shown.state.as_str(), shown.reason.as_deref()),
            ("lost", Some("host not allowed"))
        );
        assert_eq!(bench.ask(Cmd::Reset, "a")["ok"], true);
        assert_ne!(bench.list()[0].state, "lost");
        let ctrl = bench.held.ctrls.get("a").unwrap().ctrl;
        bench.held.over(now, ctrl, "a", Some("host not allowed".into()));
        assert_eq!(bench.ask(Cmd::Disconnect, "a")["ok"], true);
        assert!(bench.held.is_empty());
    }

    #[test]
    fn a_long_list_comes_in_pages() {
        let limits = HostLimits { controllers: 2 * PAGE, ..HostLimits::default() };
        let mut bench = Bench::with(limits);
        for number in 0..=PAGE {
            assert_eq!(bench.ask(Cmd::Connect, &format!("c{number:03}"))["ok"], true);
        }
        let now = Instant::monotonic();
        let first = bench.held.list(now, None);
        assert_eq!((first.controllers.len(), first.next.as_deref()), (PAGE, Some("c063")));
        let second = bench.held.list(now, first.next.as_deref());
        assert_eq!((second.controllers.len(), second.next), (1, None));
    }

    #[test]
    fn a_second_has_room_for_so_many_log_lines() {
        let mut log = Log::default();
        let now = Instant::ZERO + Duration::from_secs(9);
        let allowed = (0..100).filter(|_| log.allows(now)).count();
        assert_eq!((allowed, log.held_back), (64, 36));
        assert!(log.allows(now + Duration::from_secs(1)));
        assert_eq!(log.held_back, 0);
    }
}
