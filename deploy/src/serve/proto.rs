//! The control protocol: JSON, one object a line, over a Unix socket; `deploy/CTL.md` tells it
//! with examples. Each request has one answer, in order; `events` is answered, and then the
//! connection carries events until it is closed.
//!
//! Everything carries `"v"`. A request of another version, or with a word that we do not know, is
//! refused and not guessed at; keys may be added to answers.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::Settings;

/// Version of the protocol.
pub const V: u32 = 1;
/// Controllers in an answer to `list` at most; `next` tells how to go on.
pub const PAGE: usize = 64;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cmd {
    /// The controllers by name, a page of them: those after `after`.
    List,
    /// All that is known of `name`: its last transitions too.
    Show,
    /// The TCP connections, a page of them: those in slots after `after`; none of kernel sockets.
    Connections,
    /// Counters and latenesses of the reactor.
    Figures,
    /// Everything that happens from now on.
    Events,
    /// Drop the connections of `name` and reconnect at once.
    Reset,
    /// Hold one more, `controller`.
    Connect,
    /// Change timers of `name` to those of `controller`.
    Set,
    /// Shut `name` down in order, and forget it.
    Disconnect,
    /// Of a target: the faults in force.
    Faults,
    /// Of a target: do `spec` wrong from now on.
    AddFault,
    /// Of a target: end all faults.
    ClearFaults,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`V`].
    pub v: u32,
    /// What is asked for.
    pub cmd: Cmd,
    /// `list`, `connections`: `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// `list`, `connections`: answer with so many pages at most, each a line; 1 if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<u32>,
    /// `show`, `reset`, `set`, `disconnect`: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `connect`, `set`: as in the configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<Box<Settings>>,
    /// `add-fault`, and `clear-faults` of one: as on the command line of `moorline target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
}

impl Request {
    /// A request without parameters.
    pub const fn new(cmd: Cmd) -> Self {
        Self { v: V, cmd, after: None, pages: None, name: None, controller: None, spec: None }
    }

    /// The request for the next page, where there is one and it was asked for.
    pub fn another_page(&self, next: Option<String>) -> Option<Box<Self>> {
        let pages = self.pages?.checked_sub(1).filter(|pages| *pages > 0)?;
        let after = Some(next?);
        Some(Box::new(Self { after, pages: Some(pages), ..Self::new(self.cmd) }))
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(line: &[u8]) -> Result<Self> {
        let request: Self = serde_json::from_slice(line)?;
        ensure!(request.v == V, "version {} of the protocol: we speak {V}", request.v);
        Ok(request)
    }
}

/// An answer to `cmd` that says no more than that it was done.
pub fn done(cmd: Cmd) -> Value {
    json!({ "v": V, "ok": true, "cmd": cmd })
}

/// An answer that says why not.
pub fn refused(error: &anyhow::Error) -> Value {
    json!({ "v": V, "ok": false, "error": format!("{error:#}") })
}

/// The answer to `list`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct List {
    /// [`V`].
    pub v: u32,
    /// True.
    pub ok: bool,
    /// The page, by name.
    pub controllers: Vec<Ctrl>,
    /// Ask for what is `after` this; `null`: it was the last page.
    pub next: Option<String>,
}

/// A controller, as it is now. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Ctrl {
    /// Our own name for it.
    pub name: String,
    /// The target's address and port.
    pub addr: String,
    /// The subsystem's NQN.
    pub nqn: String,
    /// As Linux calls it: `live`, `connecting`, `wait-reconnect`, …
    pub state: String,
    /// How long it has been in it.
    pub since_ms: f64,
    /// What it waits for.
    pub awaited: String,
    /// Attempts in this outage.
    pub attempts: u32,
    /// Times that it became live again.
    pub reconnects: u64,
    /// Standby connections that are ready.
    #[serde(default)]
    pub standby: usize,
    /// Keep alives that had no answer when it was lost.
    #[serde(default)]
    pub keep_alives_lost: u64,
    /// I/O that outlived its path, or was taken since, and waits.
    #[serde(default)]
    pub waiting: usize,
    /// Of these, writes that the old path may still execute.
    #[serde(default)]
    pub quiescing: usize,
    /// What is known of the target's address.
    pub reach: String,
    /// Why it was lost the last time.
    pub reason: Option<String>,
    /// Until the next attempt.
    pub next_attempt_ms: Option<f64>,
    /// The deadlines that run.
    pub timers: Vec<Timer>,
}

/// A controller, with what became of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Whole {
    /// As in a list.
    #[serde(flatten)]
    pub controller: Ctrl,
    /// The keep alive timeout that the controller knows.
    pub kato_ms: Option<f64>,
    /// Its last transitions, the oldest first.
    pub history: Vec<Step>,
    /// Why attempts and connections ended that were not to, by kind.
    pub errors: BTreeMap<String, u64>,
}

/// A transition; what repeats itself is one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Step {
    /// Into this state.
    pub state: String,
    /// When; the last time, if it was several times.
    pub ago_ms: f64,
    /// When it was the first time.
    pub first_ago_ms: f64,
    /// How often.
    pub times: u64,
    /// What kind of failure led there, if one did.
    pub kind: Option<String>,
    /// And which it was.
    pub reason: Option<String>,
}

/// The answer to `connections`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Conns {
    /// [`V`].
    pub v: u32,
    /// True.
    pub ok: bool,
    /// The page, by slot.
    pub connections: Vec<Conn>,
    /// Ask for what is `after` this; `null`: it was the last page.
    pub next: Option<String>,
}

/// A TCP connection of our own stack, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Conn {
    /// Its slot in the table.
    pub slot: u32,
    /// Our end.
    pub local: String,
    /// The target's.
    pub remote: String,
    /// What it does, or waits for.
    pub stage: String,
    /// For how long.
    pub since_ms: f64,
    /// Bytes that the target has not acknowledged.
    pub send_queue: usize,
    /// Bytes that have not been taken in.
    pub recv_queue: usize,
    /// Segments sent again.
    pub retransmits: u32,
    /// The last ICMP error about it; it ends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// The deadlines that run.
    pub timers: Vec<Timer>,
}

/// A deadline that runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Timer {
    /// Of what.
    pub name: String,
    /// What is left of it; below zero while it waits for its turn.
    pub left_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let text = br#"{"v":1,"cmd":"list","after":"a"}"#;
        let request = Request::parse(text).unwrap();
        assert_eq!(request, Request { after: Some("a".into()), ..Request::new(Cmd::List) });
        assert_eq!(serde_json::to_string(&request).unwrap().as_bytes(), text);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (line, what) in [
            (r#"{"v":2,"cmd":"list"}"#, "version 2"),
            (r#"{"cmd":"list"}"#, "missing field `v`"),
            (r#"{"v":1,"cmd":"lost"}"#, "unknown variant"),
            (r#"{"v":1,"cmd":"list","before":"a"}"#, "unknown field"),
            (r#"{"v":1,"cmd":"connect","controller":{"nqm":"x"}}"#, "nqm"),
            ("list", "expected value"),
        ] {
            let error = Request::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what), "{line}: {error}");
        }
    }
}
