//! `moorline ctl`: asks a running `moorline serve`, and prints the answer for people, or as JSON.

use std::array;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::iter;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::faults::Shown;
use crate::faults::spec::Spec;
use crate::out;
use crate::perf::report::{SCHEMA, VERSION};
use crate::serve::config::{SOCKET, Settings};
use crate::serve::proto::{Cmd, Conn, Ctrl, Request, Step, Whole};
use crate::signals::Stop;

/// More than any answer takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// More pages than any list has.
const PAGES_MAX: u32 = 4096;
/// How often a follower of the events looks whether the user wants an end.
const TICK: Duration = Duration::from_millis(100);

/// Options of `ctl`.
#[derive(Args, Clone, Debug)]
pub struct CtlArgs {
    /// The control socket of `moorline serve`, or of `moorline target --ctl PATH`.
    #[arg(long, value_name = "PATH", default_value = SOCKET, global = true)]
    pub socket: PathBuf,
    /// Print JSON, one line (of `events`: one a line).
    #[arg(long, global = true)]
    pub json: bool,
    /// What is asked.
    #[command(subcommand)]
    pub what: What,
}

/// What is asked.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// The controllers: state, since when, attempts, next attempt, and why.
    List,
    /// All that is known of a controller: deadlines, errors by kind, and its last transitions.
    Show {
        /// Its name.
        name: String,
    },
    /// The TCP connections of our own stack: stage, since when, bytes waiting, retransmits.
    Connections,
    /// What happens from now on, until you end it.
    Events,
    /// Counters and latenesses of the reactor.
    Figures,
    /// Drop a controller's connections and reconnect at once; one given up is tried anew.
    Reset {
        /// Its name.
        name: String,
    },
    /// Hold one more controller.
    Connect(ConnectArgs),
    /// Change timers of a controller, without a new connection where that can be.
    Set {
        /// Its name.
        name: String,
        /// A time of a [[controller]] in the configuration file.
        #[arg(value_name = "KEY=VALUE", required = true)]
        change: Vec<String>,
    },
    /// Shut a controller down in order, and forget it.
    Disconnect {
        /// Its name.
        name: String,
    },
    /// What a target does wrong on demand (`moorline target --allow-faults --ctl PATH`).
    #[command(subcommand)]
    Faults(FaultsWhat),
}

/// What of the faults of a target.
#[derive(Clone, Debug, Subcommand)]
pub enum FaultsWhat {
    /// Those in force: how often each was met, and until when it stays.
    List,
    /// Do one more thing wrong, KIND[=VALUE][,key=value…]; deploy/CTL.md has the kinds.
    Add {
        /// The fault.
        spec: String,
    },
    /// End all of them, or only those that are written so.
    Clear {
        /// The fault, as `list` shows it.
        spec: Option<String>,
    },
}

/// A new controller.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// Our own name for it.
    pub name: String,
    /// The target's address.
    #[arg(short = 'a', long, value_name = "IP")]
    pub traddr: IpAddr,
    /// Its TCP port [default: that of the file's defaults, else 4420].
    #[arg(short = 's', long, value_name = "PORT")]
    pub trsvcid: Option<u16>,
    /// The subsystem's NQN.
    #[arg(short = 'n', long, value_name = "NQN")]
    pub nqn: String,
    /// Any other setting of a [[controller]] in the configuration file; repeatable.
    #[arg(short = 'o', long, value_name = "KEY=VALUE")]
    pub option: Vec<String>,
}

/// Runs `ctl`.
///
/// # Errors
/// When nobody serves there, or what was asked cannot be said.
pub fn run(args: CtlArgs) -> Result<Exit> {
    match ask(args) {
        Err(error) if error.is::<Refused>() => {
            out::note(format_args!("moorline: {error}"));
            Ok(Exit::FellShort)
        }
        ended => ended,
    }
}

fn ask(args: CtlArgs) -> Result<Exit> {
    let request = match &args.what {
        What::List => Request::new(Cmd::List),
        What::Connections => Request::new(Cmd::Connections),
        What::Events => Request::new(Cmd::Events),
        What::Figures => Request::new(Cmd::Figures),
        What::Show { name } => named(Cmd::Show, name),
        What::Reset { name } => named(Cmd::Reset, name),
        What::Disconnect { name } => named(Cmd::Disconnect, name),
        What::Faults(FaultsWhat::List) => Request::new(Cmd::Faults),
        What::Faults(FaultsWhat::Clear { spec }) => {
            Request { spec: spec.clone(), ..Request::new(Cmd::ClearFaults) }
        }
        What::Faults(FaultsWhat::Add { spec }) => {
            Request { spec: Some(spec.clone()), ..Request::new(Cmd::AddFault) }
        }
        What::Set { name, change } => {
            let change = options(change)?;
            Request { controller: Some(Box::new(change)), ..named(Cmd::Set, name) }
        }
        What::Connect(connect) => {
            Request { controller: Some(Box::new(settings(connect)?)), ..Request::new(Cmd::Connect) }
        }
    };
    let mut client = Client::open(&args.socket)?;
    match args.what {
        What::List => list(&mut client, request, &args, "controllers", table),
        What::Connections => list(&mut client, request, &args, "connections", conn_table),
        What::Faults(FaultsWhat::List) => list(&mut client, request, &args, "faults", fault_table),
        What::Events => follow(client, &request, args.json),
        _ => {
            let mut answer = client.ask_value(&request)?;
            match args.what {
                _ if args.json => out::line(format_args!("{}", report(&args.socket, answer)))?,
                What::Set { .. } => out::text(&applied_text(&answer["applied"]))?,
                What::Show { .. } => out::text(&whole_text(&mut answer)?)?,
                What::Figures => out::text(&figures_text(&answer["figures"], 0))?,
                _ => {}
            }
            Ok(Exit::Ok)
        }
    }
}

fn named(cmd: Cmd, name: &str) -> Request {
    Request { name: Some(name.to_owned()), ..Request::new(cmd) }
}

/// Settings by the names that the file has for them.
fn options(options: &[String]) -> Result<Settings> {
    let mut table = toml::Table::new();
    for option in options {
        let (key, value) =
            option.split_once('=').with_context(|| format!("{option:?}: write it as KEY=VALUE"))?;
        let value = match (value.parse::<i64>(), value.parse::<bool>()) {
            (Ok(number), _) => number.into(),
            (_, Ok(flag)) => flag.into(),
            _ => toml::Value::from(value),
        };
        table.insert(key.to_owned(), value);
    }
    Settings::deserialize(table).context("KEY=VALUE")
}

/// The settings that the command line gives.
fn settings(args: &ConnectArgs) -> Result<Settings> {
    let settings = options(&args.option)?;
    Ok(Settings {
        name: Some(args.name.clone()),
        traddr: Some(args.traddr),
        trsvcid: args.trsvcid.or(settings.trsvcid),
        nqn: Some(args.nqn.clone()),
        ..settings
    })
}

/// A connection to the control socket.
struct Client {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Client {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
                "nobody serves at {}: start `moorline serve`, or say --socket",
                socket.display()
            ),
            _ => anyhow!("{}: {error}", socket.display()),
        })?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("the control socket")?;
        let stream = BufReader::with_capacity(64 << 10, stream);
        Ok(Self { stream, line: Vec::new() })
    }

    fn ask<A: DeserializeOwned>(&mut self, request: &Request) -> Result<A> {
        let line = serde_json::to_string(request)? + "\n";
        // Who turns us away says so before it closes: that is to be read, whatever becomes of this.
        let wrote = self.stream.get_mut().write_all(line.as_bytes());
        match self.read()? {
            Some(answer) => Ok(answer),
            None if wrote.is_err() => bail!("the server closed the connection"),
            None => bail!("no answer within {ANSWER_TIMEOUT:?}"),
        }
    }

    /// An answer that is good.
    fn ask_value(&mut self, request: &Request) -> Result<Value> {
        let answer: Value = self.ask(request)?;
        if answer["ok"] != true {
            bail!(Refused(answer["error"].as_str().unwrap_or("it was refused").to_owned()));
        }
        Ok(answer)
    }

    /// The next line, or `None` when none came in time; what came of it is kept.
    fn read<A: DeserializeOwned>(&mut self) -> Result<Option<A>> {
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {
                let value = serde_json::from_slice(&self.line).context("reading an answer")?;
                self.line.clear();
                Ok(Some(value))
            }
            Ok(_) => bail!("the server closed the connection"),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
                _ => Err(error).context("reading an answer"),
            },
        }
    }
}

/// The server's word on why it did not do what was asked.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// An answer as a report of ours.
fn report(socket: &Path, mut answer: Value) -> Value {
    answer["schema"] = SCHEMA.into();
    answer["version"] = VERSION.into();
    answer["conditions"] = json!({ "socket": socket });
    answer
}

/// A page of a list, its rows as whatever they are wanted as.
#[derive(Deserialize)]
struct Page<R> {
    ok: bool,
    error: Option<String>,
    #[serde(alias = "controllers", alias = "connections", alias = "faults")]
    rows: Option<Vec<R>>,
    next: Option<String>,
}

/// Asks for all pages of a list.
fn pages<R: DeserializeOwned>(client: &mut Client, mut request: Request) -> Result<Vec<R>> {
    request.pages = Some(PAGES_MAX);
    let mut page: Page<R> = client.ask(&request)?;
    let mut all = Vec::new();
    loop {
        if !page.ok {
            bail!(Refused(page.error.unwrap_or_else(|| "it was refused".into())));
        }
        all.extend(page.rows.into_iter().flatten());
        if page.next.is_none() {
            return Ok(all);
        }
        let next = client.read()?;
        page = next.with_context(|| format!("no answer within {ANSWER_TIMEOUT:?}"))?;
    }
}

/// All rows of a list, for who measures how long that takes.
///
/// # Errors
/// When nobody serves at `socket`, or what was asked is no list.
pub fn rows(socket: &Path, list: Cmd) -> Result<Vec<Value>> {
    pages(&mut Client::open(socket)?, Request::new(list))
}

/// Adds a fault to a target.
///
/// # Errors
/// When nobody serves at `socket`, or it is refused.
pub fn add_fault(socket: &Path, spec: &Spec) -> Result<()> {
    let spec = Some(spec.to_string());
    let request = Request { spec, ..Request::new(Cmd::AddFault) };
    Client::open(socket)?.ask_value(&request).map(drop)
}

/// Takes all faults from a target.
///
/// # Errors
/// When nobody serves at `socket`, or it is refused.
pub fn clear_faults(socket: &Path) -> Result<()> {
    Client::open(socket)?.ask_value(&Request::new(Cmd::ClearFaults)).map(drop)
}

/// A list as a report of ours, as [`report`] makes it, without a tree of values in between.
#[derive(Serialize)]
struct Listing<'a, R> {
    conditions: Conditions<'a>,
    #[serde(flatten)]
    rows: BTreeMap<&'a str, Vec<R>>,
    schema: u32,
    version: &'static str,
}

#[derive(Serialize)]
struct Conditions<'a> {
    socket: &'a Path,
}

/// Asks for all pages of what is called `what`, and shows it as a table, or as it is.
fn list<R: DeserializeOwned + Serialize>(
    client: &mut Client,
    request: Request,
    args: &CtlArgs,
    what: &str,
    table: fn(&[R]) -> String,
) -> Result<Exit> {
    let rows = pages(client, request)?;
    if args.json {
        let rows = BTreeMap::from([(what, rows)]);
        let conditions = Conditions { socket: &args.socket };
        let listing = Listing { conditions, rows, schema: SCHEMA, version: VERSION };
        out::line(format_args!("{}", serde_json::to_string(&listing)?))?;
    } else {
        out::text(&table(&rows))?;
    }
    Ok(Exit::Ok)
}

/// Prints events until the user has enough.
fn follow(mut client: Client, request: &Request, as_json: bool) -> Result<Exit> {
    let stop = Stop::on_signals()?;
    client.ask_value(request)?;
    client.stream.get_mut().set_read_timeout(Some(TICK)).context("the control socket")?;
    while !stop.requested() {
        match client.read::<Value>()? {
            Some(event) if as_json => out::line(format_args!("{event}"))?,
            Some(event) => out::line(format_args!("{}", event_text(&event)))?,
            None => {}
        }
    }
    Ok(stop.exit())
}

/// An event for a person.
fn event_text(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or("?");
    match text("event") {
        "missed" => format!("(too slow: {} events missed)", event["count"]),
        "live" => format!("{}: live, after {} ms", text("name"), event["after_ms"]),
        kind @ ("disconnected" | "failed") => {
            format!("{}: {kind}: {}", text("name"), text("reason"))
        }
        kind => format!("{}: {kind}", text("name")),
    }
}

/// All of a controller, for a person.
fn whole_text(answer: &mut Value) -> Result<String> {
    let whole: Whole = serde_json::from_value(answer["controller"].take()).context("an answer")?;
    let c = &whole.controller;
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let timers = c.timers.iter().map(|timer| format!("{} {}", timer.name, age(timer.left_ms)));
    let errors = whole.errors.iter().map(|(kind, count)| format!("{kind} {count}"));
    let mut text = String::new();
    for (name, value) in [
        ("name", c.name.clone()),
        ("address", c.addr.clone()),
        ("subsystem", c.nqn.clone()),
        ("state", format!("{}, for {}", c.state, age(c.since_ms))),
        ("awaits", or_none(&c.awaited)),
        ("attempts", format!("{} of this outage; {} reconnects", c.attempts, c.reconnects)),
        ("next attempt", c.next_attempt_ms.map_or("-".into(), |left| format!("in {}", age(left)))),
        ("reach", c.reach.clone()),
        ("reason", c.reason.clone().unwrap_or("-".into())),
        ("keep alive", whole.kato_ms.map_or("-".into(), age)),
        ("I/O waiting", format!("{}, of it {} for quiesce", c.waiting, c.quiescing)),
        ("deadlines", or_none(&timers.collect::<Vec<_>>().join(", "))),
        ("errors", or_none(&errors.collect::<Vec<_>>().join(", "))),
    ] {
        text += &format!("{name:14}{value}\n");
    }
    let row = |step: &Step| {
        [
            format!("{} ago", age(step.ago_ms)),
            step.state.clone(),
            match step.times {
                1 => "-".to_owned(),
                times => format!("{times} in {}", age(step.first_ago_ms - step.ago_ms)),
            },
            step.reason.clone().unwrap_or("-".into()),
        ]
    };
    let history = columns(["SINCE", "STATE", "TIMES", "REASON"], whole.history.iter().map(row));
    Ok(text + "\n" + &history)
}

/// What was changed, and from when on it counts.
fn applied_text(applied: &Value) -> String {
    let timers: Vec<_> = applied.as_array().into_iter().flatten().collect();
    let line = |timer: &&Value| {
        let from = match timer["from"].as_str() {
            Some("now") => "changed",
            Some("answer") => "told to the controller; what it answers counts",
            _ => "from the next connection on",
        };
        format!("{}: {from}\n", timer["timer"].as_str().unwrap_or("?"))
    };
    match timers.is_empty() {
        true => "nothing is changed\n".to_owned(),
        false => timers.iter().map(line).collect(),
    }
}

/// Figures as lines of `name value`, what lies within others further in.
fn figures_text(figures: &Value, depth: usize) -> String {
    let mut text = String::new();
    for (name, value) in figures.as_object().into_iter().flatten() {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(_) => {
                text += &format!("{indent}{name}\n{}", figures_text(value, depth + 1));
            }
            _ => text += &format!("{:32} {value}\n", format!("{indent}{name}")),
        }
    }
    text
}

/// The controllers as a table.
fn table(controllers: &[Ctrl]) -> String {
    let head = ["NAME", "ADDRESS", "STATE", "SINCE", "TRIES", "NEXT", "REACH", "AWAITS", "REASON"];
    let row = |c: &Ctrl| {
        [
            c.name.clone(),
            c.addr.clone(),
            c.state.clone(),
            age(c.since_ms),
            c.attempts.to_string(),
            c.next_attempt_ms.map_or("-".into(), age),
            c.reach.clone(),
            match (c.awaited.as_str(), c.waiting) {
                ("", _) => "-".into(),
                (awaited, 0) => awaited.into(),
                (awaited, waiting) => format!("{awaited}; {waiting} I/O wait"),
            },
            // Of one that is live, it is an old story: `--json` tells it.
            c.reason.clone().filter(|_| c.state != "live").unwrap_or("-".into()),
        ]
    };
    columns(head, controllers.iter().map(row))
}

/// The connections as a table.
fn conn_table(connections: &[Conn]) -> String {
    let head = ["LOCAL", "REMOTE", "STAGE", "SINCE", "UNACKED", "UNREAD", "RESENT", "TIMERS"];
    let row = |c: &Conn| {
        let timers = c.timers.iter().map(|timer| format!("{} {}", timer.name, age(timer.left_ms)));
        [
            c.local.clone(),
            c.remote.clone(),
            c.stage.clone(),
            age(c.since_ms),
            c.send_queue.to_string(),
            c.recv_queue.to_string(),
            c.retransmits.to_string(),
            timers.collect::<Vec<_>>().join(", "),
        ]
    };
    columns(head, connections.iter().map(row))
}

/// The faults as a table.
fn fault_table(faults: &[Shown]) -> String {
    let row = |f: &Shown| [f.fault.clone(), f.met.to_string(), f.left_ms.map_or("-".into(), age)];
    columns(["FAULT", "MET", "LEFT"], faults.iter().map(row))
}

/// Lines of columns that are as wide as what is in them.
fn columns<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        text += cells.collect::<String>().trim_end();
        text.push('\n');
    }
    text
}

/// A time in the unit that a person would choose.
fn age(ms: f64) -> String {
    match ms {
        ms if ms < 1e3 => format!("{ms:.0}ms"),
        ms if ms < 120e3 => format!("{:.1}s", ms / 1e3),
        ms if ms < 7200e3 => format!("{:.0}m", ms / 60e3),
        ms => format!("{:.0}h", ms / 3600e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(options: &[&str]) -> Result<Settings> {
        settings(&ConnectArgs {
            name: "a".into(),
            traddr: "10.0.0.1".parse().unwrap(),
            trsvcid: None,
            nqn: "nqn.x".into(),
            option: options.iter().map(|&option| option.into()).collect(),
        })
    }

    #[test]
    fn options_have_the_names_and_forms_of_the_file() {
        let made = connect(&["nr_io_queues=2", "hdr_digest=true", "connect_tmo=20ms"]).unwrap();
        assert_eq!((made.nr_io_queues, made.hdr_digest), (Some(2), Some(true)));
        assert_eq!(made.connect_tmo.unwrap().0, Duration::from_millis(20));
        let error = |option| format!("{:#}", connect(&[option]).unwrap_err());
        assert!(error("io_tmo=3").contains("io_tmo"));
        assert!(error("x").contains("KEY=VALUE"));
    }

    #[test]
    fn the_table_is_as_wide_as_what_is_in_it() {
        let ctrl = Ctrl {
            name: "a-long-name".into(),
            state: "wait-reconnect".into(),
            since_ms: 1500.0,
            next_attempt_ms: Some(20.0),
            reason: Some("connection refused".into()),
            ..Ctrl::default()
        };
        let text = table(&[ctrl]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("ADDRESS"), Some(13));
        assert_eq!(lines[0].find("STATE"), lines[1].find("wait-reconnect"));
        assert!(lines[1].contains("1.5s") && lines[1].ends_with("connection refused"));
    }

    #[test]
    fn a_whole_controller_is_told_with_its_past() {
        let history = json!([{
            "state": "wait-reconnect", "ago_ms": 100.0, "first_ago_ms": 20100.0, "times": 200,
            "kind": "refused", "reason": "connection refused"
        }]);
        let ctrl = Ctrl { name: "a".into(), state: "wait-reconnect".into(), ..Ctrl::default() };
        let mut answer = json!({ "controller": ctrl });
        answer["controller"]["kato_ms"] = 5000.0.into();
        answer["controller"]["history"] = history;
        answer["controller"]["errors"] = json!({ "refused": 200 });
        let text = whole_text(&mut answer).unwrap();
        assert!(text.contains("errors        refused 200"), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("100ms ago") && last.contains("200 in 20.0s"), "{text}");
    }

    #[test]
    fn a_list_is_a_report_like_any_other() {
        let socket = Path::new("/s");
        let ctrl = Ctrl { name: "a".into(), ..Ctrl::default() };
        let rows = BTreeMap::from([("controllers", vec![ctrl.clone()])]);
        let conditions = Conditions { socket };
        let listing = Listing { conditions, rows, schema: SCHEMA, version: VERSION };
        let made = serde_json::to_value(&listing).unwrap();
        assert_eq!(made, report(socket, json!({ "controllers": [ctrl] })));
    }

    #[test]
    fn figures_within_others_are_further_in() {
        let text = figures_text(&json!({ "turns": 5, "turn_us": { "max": 7 } }), 0);
        assert!(text.contains("turns") && text.contains("\n  max"), "{text}");
    }
}
