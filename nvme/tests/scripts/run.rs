//! Runs a script against the end under test, in virtual time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Instant, Transport};

use super::end::{End, address};
use super::script::{Action, Line, Script, Term};
use super::wire::{Came, Conn};

/// Turns of one line, at most: more is a loop without end.
const TURNS_MAX: usize = 100_000;

/// The end under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Target,
    Host,
}

pub struct Run {
    now: Instant,
    start: Instant,
    pipe: Pipe,
    end: End,
    conns: Vec<Conn>,
    current: usize,
    /// Connections that the host made and no line accepted.
    accepted: Vec<Conn>,
    variables: BTreeMap<String, u64>,
    transcript: String,
}

impl Run {
    /// # Errors
    /// What did not come as the script has it, with all that came until then.
    pub fn script(role: Role, script: &Script, options: PipeOptions) -> Result<(), String> {
        let mut run = Self::new(role, script, options)?;
        for line in &script.lines {
            run.log(&format!("      {}", line.text));
            let done = run.line(line);
            if let Err(what) = done {
                run.turn().ok();
                return Err(format!("{}: {}\n  {what}\n{}", line.place, line.text, run.report()));
            }
        }
        let ended = run.settle().and_then(|()| run.all_quiet());
        ended.map_err(|what| format!("at the end: {what}\n{}", run.report()))
    }

    fn new(role: Role, script: &Script, options: PipeOptions) -> Result<Self, String> {
        let (near, far) = Pipe::pair(7, options);
        let start = Instant::from_nanos(1_000_000_000);
        let (pipe, end) = match role {
            Role::Target => (near, End::target(far, start, &script.options)?),
            Role::Host => {
                let mut far = far;
                far.listen(start, address(), &ListenOptions::default()).unwrap();
                (far, End::host(near))
            }
        };
        Ok(Self {
            now: start,
            start,
            pipe,
            end,
            conns: Vec::new(),
            current: 0,
            accepted: Vec::new(),
            variables: BTreeMap::new(),
            transcript: String::new(),
        })
    }

    fn log(&mut self, text: &str) {
        let ms = (self.now - self.start).as_micros() as f64 / 1000.0;
        writeln!(self.transcript, "  {ms:>10.3} ms {text}").expect("a string takes all");
    }

    fn report(&self) -> String {
        let lines: Vec<_> = self.transcript.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!("  what was said (script indented, the other side marked):\n{}", last.join("\n"))
    }

    fn turn(&mut self) -> Result<(), String> {
        self.end.turn(self.now);
        self.pipe.turn(self.now);
        while let Some(event) = self.pipe.poll_event() {
            self.event(event)?;
        }
        self.pipe.flush(self.now);
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        let (id, came) = match event {
            Event::Accepted { conn, .. } => {
                self.accepted.push(Conn::new("", conn));
                return Ok(());
            }
            Event::Readable(id) => (id, None),
            Event::PeerClosed(id) => (id, Some(Came::Fin)),
            Event::Closed(id, _) => (id, Some(Came::Reset)),
            Event::Connected(_) | Event::Writable(_) | Event::Reachable(_) | Event::LinkUp => {
                return Ok(());
            }
        };
        let mut all = self.conns.iter_mut().chain(&mut self.accepted);
        let conn = all.find(|conn| conn.id == id).ok_or("an event of nobody's connection")?;
        let known = conn.inbox.len();
        if !matches!(came, Some(Came::Reset)) {
            let mut bytes = Vec::new();
            self.pipe.recv(id, &mut |chunk| {
                bytes.extend_from_slice(chunk);
                chunk.len()
            });
            conn.receive(&bytes)?;
        }
        match came {
            Some(_) if !conn.open => {} // we closed it ourselves
            Some(Came::Reset) => {
                conn.open = false;
                conn.inbox.push_back(Came::Reset);
            }
            Some(came) => conn.inbox.push_back(came),
            None => {}
        }
        let new: Vec<_> = conn.inbox.iter().skip(known).map(text).collect();
        let name = conn.name.clone();
        for text in new {
            self.log(&format!("{name}< {text}"));
        }
        Ok(())
    }

    /// Turns until `done` says so or `time` has passed; true in the first case.
    fn until(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<bool, String> {
        let end = self.now + time;
        for _ in 0..TURNS_MAX {
            self.turn()?;
            if done(self) {
                return Ok(true);
            }
            match self.end.next(&self.pipe) {
                Some(next) if next <= end => self.now = next.max(self.now),
                Some(_) | None => {
                    self.now = end;
                    return Ok(false);
                }
            }
        }
        Err(format!("not done after {TURNS_MAX} turns"))
    }

    fn settle(&mut self) -> Result<(), String> {
        self.until(Duration::from_millis(20), |_| false).map(|_| ())
    }

    /// Nothing came that no line expects.
    fn all_quiet(&mut self) -> Result<(), String> {
        if let Some(told) = self.end.told()
            && let Some(first) = told.front()
        {
            return Err(format!("told, and not expected: {first}"));
        }
        for conn in self.conns.iter().chain(&self.accepted) {
            if let Some(came) = conn.inbox.front() {
                return Err(format!("came on {:?}, and not expected: {}", conn.name, text(came)));
            }
        }
        if self.accepted.is_empty() { Ok(()) } else { Err("a connection nobody expects".into()) }
    }

    fn line(&mut self, line: &Line) -> Result<(), String> {
        match &line.action {
            Action::Connect(name) => {
                let options = ConnOptions::default();
                let id = self.pipe.connect(self.now, address(), &options).unwrap();
                self.adopt(Conn::new(name, id));
                let soon = Duration::from_millis(100);
                self.until(soon, |run| run.pipe.send_room(id) > 0 || run.has_come(id))?;
            }
            Action::Accept(name) => {
                let soon = Duration::from_secs(1);
                if !self.until(soon, |run| !run.accepted.is_empty())? {
                    return Err("no connection".into());
                }
                let mut conn = self.accepted.remove(0);
                conn.name.clone_from(name);
                self.adopt(conn);
            }
            Action::On(name) => {
                let at = self.conns.iter().rposition(|conn| conn.name == *name);
                self.current = at.ok_or("no such connection")?;
            }
            Action::Send(name, terms) => {
                let Self { conns, current, variables, .. } = self;
                let conn = conns.get_mut(*current).ok_or("no connection")?;
                let bytes = conn.build(name, terms, variables)?;
                self.send(&bytes)?;
            }
            Action::Bytes(bytes) => self.send(bytes)?,
            Action::Cut(at) => self.conn()?.cut.clone_from(at),
            Action::Close => {
                let id = self.conn()?.id;
                self.conn()?.open = false;
                self.pipe.close(self.now, id);
            }
            Action::Reset => {
                let id = self.conn()?.id;
                self.conn()?.open = false;
                self.pipe.abort(self.now, id);
            }
            Action::Expect(within, name, terms) => self.expect(*within, name, terms)?,
            Action::ExpectEnd(within, how) => self.expect_end(*within, how)?,
            Action::Silence(time) => {
                self.all_quiet()?;
                self.until(*time, |_| false)?;
                self.all_quiet()?;
            }
            Action::Pass(time) => {
                self.until(*time, |_| false)?;
                self.conns.iter_mut().for_each(|conn| conn.inbox.clear());
            }
            Action::Do(what, terms) => {
                // What arrived at this very moment is taken in first, as a caller would.
                self.turn()?;
                self.end.ask(self.now, what, terms)?;
            }
            Action::Told(within, words) => self.told(*within, words)?,
        }
        Ok(())
    }

    fn has_come(&self, id: ConnId) -> bool {
        self.conns.iter().any(|conn| conn.id == id && !conn.inbox.is_empty())
    }

    fn adopt(&mut self, conn: Conn) {
        self.current = self.conns.len();
        self.conns.push(conn);
    }

    fn conn(&mut self) -> Result<&mut Conn, String> {
        self.conns.get_mut(self.current).ok_or("no connection".to_owned())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let conn = self.conn()?;
        conn.sent.extend_from_slice(bytes);
        let (id, cuts) = (conn.id, std::mem::take(&mut conn.cut));
        let mut from = 0;
        for to in cuts.into_iter().chain([bytes.len()]) {
            let piece = bytes.get(from..to).ok_or("cut beyond the PDU's end")?;
            if self.pipe.send(id, piece) != piece.len() {
                return Err("there is no room to send that".into());
            }
            self.pipe.flush(self.now);
            if to < bytes.len() {
                self.until(Duration::from_millis(1), |_| false)?;
            }
            from = to;
        }
        Ok(())
    }

    fn next(&mut self, within: Duration) -> Result<Came, String> {
        self.conn()?;
        let at = self.current;
        let came = self.until(within, |run| !run.conns[at].inbox.is_empty())?;
        if !came {
            let others: Vec<_> = self.conns.iter().filter(|conn| !conn.inbox.is_empty()).collect();
            let others: Vec<_> = others.iter().map(|conn| &conn.name[..]).collect();
            return Err(format!("nothing came within {within:?} (but on {others:?})"));
        }
        Ok(self.conns[at].inbox.pop_front().expect("something came"))
    }

    fn expect(&mut self, within: Duration, name: &str, terms: &[Term]) -> Result<(), String> {
        let came = self.next(within)?;
        let Came::Pdu(pdu) = came else { return Err(format!("{} came", text(&came))) };
        let compared = Conn::compare(&pdu, name, terms, &mut self.variables);
        compared.map_err(|what| format!("{what}: {pdu} came"))
    }

    fn expect_end(&mut self, within: Duration, how: &str) -> Result<(), String> {
        let came = self.next(within)?;
        let right = match &came {
            Came::Pdu(_) => false,
            Came::Fin => how != "reset",
            Came::Reset => how != "fin",
        };
        if !right {
            return Err(format!("{} came", text(&came)));
        }
        let (now, conn) = (self.now, self.conn()?);
        let id = conn.id;
        if std::mem::replace(&mut conn.open, false) {
            self.pipe.close(now, id);
        }
        Ok(())
    }

    /// Checks the words of an event of the host's, or figures.
    fn told(&mut self, within: Duration, words: &[String]) -> Result<(), String> {
        if words.first().is_some_and(|word| word == "figures") {
            self.turn()?;
            let figures = self.end.figures().replace([',', '}'], " ");
            for word in &words[1..] {
                let wanted = format!("{} ", word.replace('=', ": "));
                if !figures.contains(&format!(" {wanted}")) && !figures.starts_with(&wanted) {
                    return Err(format!("figures are {figures}"));
                }
            }
            return Ok(());
        }
        if words.first().is_some_and(|word| word.starts_with("conns=")) {
            let conns = self.end.conns();
            let wanted = super::script::number(&words[0]["conns=".len()..])?;
            return if conns as u64 == wanted { Ok(()) } else { Err(format!("conns={conns}")) };
        }
        let told = self.until(within, |run| run.end.told().is_some_and(|told| !told.is_empty()))?;
        if !told {
            return Err(format!("nothing told within {within:?}"));
        }
        let told = self.end.told().and_then(|told| told.pop_front()).expect("something was told");
        self.log(&format!("= {told}"));
        let has = |wanted: &String| told.split(' ').any(|word| same(word, wanted));
        match words.iter().find(|word| !has(word)) {
            None => Ok(()),
            Some(word) => Err(format!("told without {word}: {told}")),
        }
    }
}

/// Whether two words say the same, numbers in whatever base.
fn same(a: &str, b: &str) -> bool {
    let (Some((name, a_value)), Some((other, b_value))) = (a.split_once('='), b.split_once('='))
    else {
        return a == b;
    };
    let number = super::script::number;
    let equal = a_value == b_value || number(a_value).is_ok_and(|a| number(b_value) == Ok(a));
    name == other && equal
}

fn text(came: &Came) -> String {
    match came {
        Came::Pdu(pdu) => pdu.to_string(),
        Came::Fin => "fin".to_owned(),
        Came::Reset => "reset".to_owned(),
    }
}
