//! The controllers that are held, by name: what the control socket asks of them, and what is told
//! of them. Their host is the caller's, and comes with each call.
//!
//! What always holds: a name is one controller's; one that was given up keeps its name and its
//! reason until it is reset or disconnected; each outage is told once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use moorline_nvme::host::{Applied, Cause, CtrlConfig, CtrlId, Failure, Host, HostEvent, When};
use moorline_stack::{Instant, Transport};
use serde_json::{Value, json};

use super::config::Settings;
use super::log::Log;
use super::proto::{self, Cmd, Request, V};
use super::server::{Answer, Answers};
use super::show::{self, ms};

/// Names for a host's controllers.
pub struct Held {
    defaults: Settings,
    pub(super) ctrls: BTreeMap<String, One>,
    names: BTreeMap<CtrlId, String>,
    log: Log,
    /// How long turns took, microseconds.
    pub(super) turn_us: Histogram<u64>,
}

/// A controller.
pub(super) struct One {
    pub ctrl: CtrlId,
    pub config: CtrlConfig,
    /// It was given up: since when, and why.
    pub given_up: Option<(Instant, String)>,
    /// It is being shut down as asked.
    is_leaving: bool,
}

/// Names, and the host whose controllers they are.
pub struct Over<'a, T: Transport> {
    held: &'a mut Held,
    host: &'a mut Host<T>,
}

impl Held {
    /// No controllers yet; those to come start from `defaults`.
    pub fn new(defaults: Settings) -> Self {
        let turn_us = Histogram::new_with_bounds(1, 10_000_000, 2);
        Self {
            defaults,
            ctrls: BTreeMap::new(),
            names: BTreeMap::new(),
            log: Log::default(),
            turn_us: turn_us.expect("2 digits of 1 to 10^7 are within a histogram's bounds"),
        }
    }

    /// To answer requests about `host`.
    pub fn over<'a, T: Transport>(&'a mut self, host: &'a mut Host<T>) -> Over<'a, T> {
        Over { held: self, host }
    }

    /// A turn took this long.
    pub fn took(&mut self, time: Duration) {
        self.turn_us.saturating_record(time.as_micros() as u64);
    }

    /// Tells now and then what was not logged.
    pub fn tick(&mut self, now: Instant) {
        self.log.turn(now);
    }

    /// Holds one more controller, and starts to connect it.
    ///
    /// # Errors
    /// When the name is taken, or the host cannot hold it.
    pub fn connect<T: Transport>(
        &mut self,
        now: Instant,
        host: &mut Host<T>,
        name: String,
        config: CtrlConfig,
    ) -> Result<CtrlId> {
        ensure!(!self.ctrls.contains_key(&name), "there is a controller {name:?} already");
        let ctrl = host.connect(now, config.clone())?;
        self.names.insert(ctrl, name.clone());
        self.ctrls.insert(name, One { ctrl, config, given_up: None, is_leaving: false });
        Ok(ctrl)
    }

    /// Tries a controller anew, at once.
    fn reset<T: Transport>(&mut self, now: Instant, host: &mut Host<T>, name: &str) -> Result<()> {
        let one = self.ctrls.get_mut(name).with_context(|| unknown(name))?;
        ensure!(!one.is_leaving, "{name:?} is being disconnected");
        if one.given_up.is_none() {
            host.reset(now, one.ctrl);
            return Ok(());
        }
        one.ctrl = host.connect(now, one.config.clone())?;
        one.given_up = None;
        self.names.insert(one.ctrl, name.to_owned());
        Ok(())
    }

    /// Changes a controller's timers; returns from when on which of them count.
    fn set<T: Transport>(
        &mut self,
        now: Instant,
        host: &mut Host<T>,
        name: &str,
        settings: &Settings,
    ) -> Result<Value> {
        let one = self.ctrls.get_mut(name).with_context(|| unknown(name))?;
        ensure!(!one.is_leaving, "{name:?} is being disconnected");
        let config = settings.changed(&one.config)?;
        let applied = match one.given_up {
            None => host.set(now, one.ctrl, &config)?,
            Some(_) => Applied::default(), // for when it is reset
        };
        one.config = config;
        let from = |when| match when {
            When::Now => "now",
            When::Answer => "answer",
            When::NextConnection => "next-connection",
        };
        let timers = applied.timers.iter();
        let timers = timers.map(|&(timer, when)| json!({ "timer": timer, "from": from(when) }));
        let timers = Value::from_iter(timers);
        if self.log.allows(now) {
            tracing::info!(controller = name, %timers, "timers changed");
        }
        Ok(timers)
    }

    /// Shuts a controller down; `Closed` or `Failed` will tell that it is gone.
    fn disconnect<T: Transport>(
        &mut self,
        now: Instant,
        host: &mut Host<T>,
        name: &str,
    ) -> Result<()> {
        let one = self.ctrls.get_mut(name).with_context(|| unknown(name))?;
        if one.given_up.is_some() {
            self.ctrls.remove(name);
        } else if !one.is_leaving {
            one.is_leaving = true;
            host.disconnect(now, one.ctrl);
        }
        Ok(())
    }

    /// Shuts all controllers down.
    pub fn leave<T: Transport>(&mut self, now: Instant, host: &mut Host<T>) {
        let names: Vec<_> = self.ctrls.keys().cloned().collect();
        for name in names {
            // It is there: the names were just taken.
            let _ = self.disconnect(now, host, &name);
        }
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.ctrls.is_empty()
    }

    /// Notes an event, logs it, and makes of it what followers are told.
    pub fn event(&mut self, now: Instant, event: &HostEvent) -> Option<Value> {
        let ctrl = match event {
            HostEvent::Live { ctrl, .. }
            | HostEvent::Disconnected { ctrl, .. }
            | HostEvent::Failed { ctrl, .. }
            | HostEvent::Closed { ctrl }
            | HostEvent::Aen { ctrl, .. } => *ctrl,
        };
        let name = self.names.get(&ctrl)?.clone();
        let is_leaving = self.ctrls.get(&name).is_some_and(|one| one.is_leaving);
        let allowed = self.log.allows(now);
        let mut told = match event {
            HostEvent::Live { after, .. } => {
                if allowed {
                    tracing::info!(controller = name, after_ms = ms(*after), "live");
                }
                json!({ "event": "live", "after_ms": ms(*after) })
            }
            HostEvent::Disconnected { failure, .. } => {
                if allowed {
                    let (retransmits, rto_ms) = of_tcp(failure);
                    tracing::warn!(
                        controller = name, addr = %failure.addr, qid = failure.qid,
                        state = %failure.stage, reason = %failure.kind(),
                        awaited = failure.awaited, awaited_ms = ms(failure.after),
                        retransmits, rto_ms, %failure,
                        "disconnected: it is tried again"
                    );
                }
                told_failure("disconnected", failure)
            }
            HostEvent::Failed { failure, .. } => {
                if allowed && !is_leaving {
                    let (retransmits, rto_ms) = of_tcp(failure);
                    tracing::error!(
                        controller = name, addr = %failure.addr, qid = failure.qid,
                        state = %failure.stage, reason = %failure.kind(),
                        awaited = failure.awaited, awaited_ms = ms(failure.after),
                        retransmits, rto_ms, %failure,
                        "given up"
                    );
                }
                self.over_with(now, ctrl, &name, Some(failure.to_string()));
                told_failure("failed", failure)
            }
            HostEvent::Closed { .. } => {
                if allowed {
                    tracing::info!(controller = name, "disconnected as asked");
                }
                self.over_with(now, ctrl, &name, None);
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
    fn over_with(&mut self, now: Instant, ctrl: CtrlId, name: &str, reason: Option<String>) {
        self.names.remove(&ctrl);
        match (self.ctrls.get_mut(name), reason) {
            (Some(one), Some(reason)) if !one.is_leaving => one.given_up = Some((now, reason)),
            _ => drop(self.ctrls.remove(name)),
        }
    }
}

impl<T: Transport> Over<'_, T> {
    fn try_answer(&mut self, now: Instant, request: &Request) -> Result<Answer> {
        let Self { held, host } = self;
        let name = || request.name.as_deref().context("it needs a \"name\"");
        let after = request.after.as_deref();
        let mut answer = proto::done(request.cmd);
        match request.cmd {
            Cmd::List => {
                let list = show::list(held, host, now, after);
                let line = serde_json::to_string(&list)?;
                return Ok(Answer { line, rest: request.another_page(list.next) });
            }
            Cmd::Connections => {
                let list = show::connections(host.transport(), now, after)?;
                let line = serde_json::to_string(&list)?;
                return Ok(Answer { line, rest: request.another_page(list.next) });
            }
            Cmd::Figures => answer["figures"] = show::figures(held, host),
            Cmd::Faults | Cmd::AddFault | Cmd::ClearFaults => {
                bail!("faults are a target's: `moorline target --allow-faults --ctl PATH`")
            }
            Cmd::Show => {
                let name = name()?;
                let one = held.ctrls.get(name).with_context(|| unknown(name))?;
                answer["controller"] = serde_json::to_value(show::one(host, now, name, one))?;
            }
            Cmd::Events => bail!("events are the server's own"),
            Cmd::Reset => held.reset(now, host, name()?)?,
            Cmd::Set => {
                let settings = request.controller.as_ref().context("it needs a \"controller\"")?;
                answer["applied"] = held.set(now, host, name()?, settings)?;
            }
            Cmd::Disconnect => held.disconnect(now, host, name()?)?,
            Cmd::Connect => {
                let settings = request.controller.as_ref().context("it needs a \"controller\"")?;
                let (name, config) = settings.controller(&held.defaults)?;
                held.connect(now, host, name, config)?;
            }
        }
        Ok(answer.into())
    }
}

impl<T: Transport> Answers for Over<'_, T> {
    fn answer(&mut self, now: Instant, request: &Request) -> Answer {
        self.try_answer(now, request).unwrap_or_else(|error| proto::refused(&error).into())
    }
}

/// What our TCP knows of the connection that ended: segments sent again, and its RTO then.
fn of_tcp(failure: &Failure) -> (Option<u32>, Option<f64>) {
    match &failure.cause {
        Cause::Tcp(why) => (Some(why.retransmits), why.rto.map(ms)),
        _ => (None, None),
    }
}

fn told_failure(event: &str, failure: &Failure) -> Value {
    let (retransmits, rto_ms) = of_tcp(failure);
    json!({
        "event": event,
        "reason": failure.to_string(),
        "kind": failure.kind().name(),
        "state": failure.stage.to_string(),
        "awaited": failure.awaited,
        "awaited_ms": ms(failure.after),
        "retransmits": retransmits,
        "rto_ms": rto_ms,
    })
}

fn unknown(name: &str) -> String {
    format!("there is no controller {name:?}")
}

#[cfg(test)]
mod tests {
    use moorline_nvme::host::{HostIdentity, HostLimits};
    use moorline_stack::kernel::KernelSockets;

    use super::*;
    use crate::serve::proto::{Ctrl, PAGE};

    /// Nobody listens at port 1 of the loopback.
    const NOBODY: &str = "127.0.0.1";

    struct Bench {
        held: Held,
        host: Host<KernelSockets>,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(HostLimits::default())
        }

        fn with(limits: HostLimits) -> Self {
            let hostnqn = "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef";
            let identity = HostIdentity { hostnqn: hostnqn.into(), hostid: [7; 16] };
            let transport = KernelSockets::new(256).unwrap();
            let host = Host::new(transport, identity, limits);
            Self { held: Held::new(Settings::default()), host }
        }

        fn ask(&mut self, cmd: Cmd, name: &str) -> Value {
            let mut request = Request { name: Some(name.into()), ..Request::new(cmd) };
            if cmd == Cmd::Connect {
                let controller = json!({
                    "name": name, "traddr": NOBODY, "trsvcid": 1, "nqn": "nqn.2026-11.io.moorline:x"
                });
                request.controller = Some(serde_json::from_value(controller).unwrap());
            }
            let answer = self.held.over(&mut self.host).answer(Instant::monotonic(), &request);
            serde_json::from_str(&answer.line).unwrap()
        }

        fn list(&mut self) -> Vec<Ctrl> {
            show::list(&self.held, &self.host, Instant::monotonic(), None).controllers
        }

        fn turn_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
            for _ in 0..2000 {
                let now = Instant::monotonic();
                self.host.turn(now);
                while let Some(event) = self.host.poll_event() {
                    self.held.event(now, &event);
                }
                self.host.flush(now);
                if done(self) {
                    return;
                }
                self.host.wait(Some(now + Duration::from_millis(5)), &[]).unwrap();
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
        let whole = bench.ask(Cmd::Show, "a")["controller"].clone();
        let last = whole["history"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["state"], &last["kind"]), (&"wait-reconnect".into(), &"refused".into()));
        assert_eq!(whole["errors"]["refused"], last["times"], "{whole}");
        assert_eq!((&whole["name"], &whole["kato_ms"]), (&"a".into(), &5000.0.into()));
        assert_eq!(bench.ask(Cmd::Reset, "a")["ok"], true);
        assert_eq!(bench.ask(Cmd::Figures, "")["figures"]["controllers"], 1);
        assert_eq!(bench.ask(Cmd::Disconnect, "a")["ok"], true);
        bench.turn_until(|bench| bench.held.is_empty());
    }

    #[test]
    fn timers_are_set_and_said_from_when_on_they_count() {
        let mut bench = Bench::new();
        bench.ask(Cmd::Connect, "a");
        let mut set = |text: &str| {
            let controller = Some(Box::new(toml::from_str(text).unwrap()));
            let name = Some("a".into());
            let request = Request { name, controller, ..Request::new(Cmd::Set) };
            let answer = bench.held.over(&mut bench.host).answer(Instant::monotonic(), &request);
            serde_json::from_str::<Value>(&answer.line).unwrap()
        };
        let answer = set("io_timeout = 5\nkeep_alive_tmo = 2");
        let expected = json!([
            { "timer": "keep alive timeout", "from": "answer" },
            { "timer": "I/O timeout", "from": "now" }
        ]);
        assert_eq!(answer["applied"], expected, "{answer}");
        assert_eq!(set("io_timeout = 5")["applied"], json!([]));
        let refused = set("ack_timeout_exp = 2");
        assert!(refused["error"].as_str().unwrap().contains("twice the RTO"), "{refused}");
        assert!(set("queue_size = 2")["error"].as_str().unwrap().contains("no timer"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_name() {
        let mut bench = Bench::new();
        for cmd in [Cmd::Show, Cmd::Reset, Cmd::Disconnect] {
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
        bench.host.disconnect(now, ctrl); // so that the host has done with it
        bench.held.over_with(now, ctrl, "a", Some("host not allowed".into()));
        let shown = &bench.list()[0];
        assert_eq!(
            (shown.state.as_str(), shown.reason.as_deref()),
            ("lost", Some("host not allowed"))
        );
        assert_eq!(bench.ask(Cmd::Reset, "a")["ok"], true);
        assert_ne!(bench.list()[0].state, "lost");
        let ctrl = bench.held.ctrls.get("a").unwrap().ctrl;
        bench.held.over_with(now, ctrl, "a", Some("host not allowed".into()));
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
        let first = show::list(&bench.held, &bench.host, now, None);
        assert_eq!((first.controllers.len(), first.next.as_deref()), (PAGE, Some("c063")));
        let second = show::list(&bench.held, &bench.host, now, first.next.as_deref());
        assert_eq!((second.controllers.len(), second.next), (1, None));
    }
}
