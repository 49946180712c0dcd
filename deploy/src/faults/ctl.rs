//! A target's control socket: its faults, its connections, what it counted.
//!
//! What always holds: while nobody asks, a turn costs a comparison, and a system call every
//! [`EVERY`]; a target that is frozen on demand still answers.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use moorline_nvme::target::Target;
use moorline_stack::{Instant, Transport};
use serde_json::{Value, json};

use super::Faults;
use super::spec::Spec;
use crate::serve::proto::{self, Cmd, Ctrl, List, PAGE, Request, V};
use crate::serve::server::{Answer, Answers, Server};
use crate::serve::show;

/// The socket is looked at no more often, so that a busy loop is not full of system calls.
const EVERY: Duration = Duration::from_micros(200);

/// The control socket of a target.
pub struct Ctl {
    server: Server,
    /// When the socket is looked at next.
    due: Instant,
}

/// Who knows the answers.
struct Told<'a, T: Transport> {
    target: &'a mut Target<T>,
    faults: &'a mut Faults,
}

impl Ctl {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When another server listens there, or it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { server: Server::open(path)?, due: Instant::ZERO })
    }

    /// Answers one request at most, if it is time to look.
    pub fn turn<T: Transport>(
        &mut self,
        now: Instant,
        target: &mut Target<T>,
        faults: &mut Faults,
    ) {
        if now < self.due {
            return;
        }
        let answered = self.server.turn(now, &mut Told { target, faults });
        self.due = if answered { now } else { now + EVERY };
    }

    /// When a turn is due even if nobody writes to us.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.server.poll_timeout()
    }

    /// Readable whenever a turn has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.server.fd()
    }
}

impl<T: Transport> Told<'_, T> {
    fn try_answer(&mut self, now: Instant, request: &Request) -> Result<Answer> {
        let mut answer = proto::done(request.cmd);
        match request.cmd {
            Cmd::Faults => answer["faults"] = json!(self.faults.list(now, self.target)),
            Cmd::AddFault => {
                let spec = spec(request)?.context("it needs a \"spec\"")?;
                answer["fault"] = spec.to_string().into();
                answer["met"] = self.faults.add(now, self.target, spec)?.into();
            }
            Cmd::ClearFaults => self.faults.clear(now, self.target, spec(request)?.as_ref())?,
            Cmd::List => {
                let list = self.list(now, request.after.as_deref())?;
                let line = serde_json::to_string(&list)?;
                return Ok(Answer { line, rest: request.another_page(list.next) });
            }
            Cmd::Connections => {
                let transport = self.target.transport();
                let page = show::connections(transport, now, request.after.as_deref())?;
                let line = serde_json::to_string(&page)?;
                return Ok(Answer { line, rest: request.another_page(page.next) });
            }
            Cmd::Figures => answer["figures"] = figures(self.target),
            _ => bail!(
                "this is a target: it knows list, faults, connections and figures; what else there \
                 is to ask, `moorline serve` knows"
            ),
        }
        Ok(answer.into())
    }

    /// A page of the target's controllers, those in places after `after`.
    fn list(&self, now: Instant, after: Option<&str>) -> Result<List> {
        let from = match after {
            None => 0,
            Some(place) => place.parse::<u32>().context("\"after\" is a place")?.saturating_add(1),
        };
        let mut page = self.target.controllers_from(from, PAGE + 1);
        let more = page.len() > PAGE;
        page.truncate(PAGE);
        let next = page.last().filter(|_| more).map(|last| last.index.to_string());
        let controllers = page.into_iter().map(|report| Ctrl {
            name: report.cntlid.to_string(),
            addr: report.peer.to_string(),
            nqn: report.hostnqn,
            state: if report.is_ready { "live" } else { "enabling" }.to_owned(),
            since_ms: now.since(report.since).as_micros() as f64 / 1e3,
            awaited: if report.keep_alive.is_some() { "Keep Alive" } else { "" }.to_owned(),
            reach: "reachable".to_owned(),
            timers: show::timers(now, report.keep_alive.map(|at| ("keep-alive", at)).as_slice()),
            ..Ctrl::default()
        });
        Ok(List { v: V, ok: true, controllers: controllers.collect(), next })
    }
}

fn spec(request: &Request) -> Result<Option<Spec>> {
    request.spec.as_deref().map(|text| text.parse().map_err(Error::msg)).transpose()
}

impl<T: Transport> Answers for Told<'_, T> {
    fn answer(&mut self, now: Instant, request: &Request) -> Answer {
        self.try_answer(now, request).unwrap_or_else(|error| proto::refused(&error).into())
    }
}

fn figures<T: Transport>(target: &Target<T>) -> Value {
    let s = target.stats();
    json!({
        "conns": s.conns,
        "controllers": s.controllers,
        "accepted": s.accepted,
        "refused": s.refused,
        "reads": s.reads,
        "writes": s.writes,
        "other_ios": s.other_ios,
        "admin": s.admin,
        "errors": s.errors,
        "fatal": s.fatal,
        "digest_errors": s.digest_errors,
        "timeouts": s.timeouts,
        "keep_alive_expired": s.keep_alive_expired,
        "buffer_waits": s.buffer_waits,
        "stale_writes": s.stale_writes,
        "connects_held": s.connects_held,
    })
}
