//! Scripts as they are read: one line, one step. Numbers are relative, as they are written.

use std::time::Duration;

/// A script.
#[derive(Debug, Default)]
pub struct Script {
    /// `set` lines: key, value, line.
    pub settings: Vec<(String, String, usize)>,
    pub steps: Vec<Step>,
}

/// One line, or one of the connections that it is about.
#[derive(Clone, Debug)]
pub struct Step {
    pub line: usize,
    pub at: Duration,
    /// The connection's name.
    pub name: String,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub enum Act {
    /// `<`: the peer sends.
    In(Frame),
    /// `>`: we send.
    Out(Frame),
    /// `!`: the driver is told.
    Event(Vec<String>),
    /// `=`: what can be seen.
    See(Vec<String>),
    /// What the driver does.
    Call(Vec<String>),
}

#[derive(Clone, Debug)]
pub enum Frame {
    Tcp(Tcp),
    /// Anything else, by its words.
    Other(Vec<String>),
}

/// A segment; what is `None` is not compared, or is the usual.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    pub flags: u8,
    pub seq: u32,
    pub len: u32,
    pub ack: Option<u32>,
    pub win: Option<u16>,
    /// Options, each as written.
    pub options: Option<Vec<String>>,
    /// What is done to it before it leaves, `key=value`.
    pub changes: Vec<(String, String)>,
}

/// Flags by their letters; PSH says nothing that anybody acts on, and is not compared.
pub const FLAGS: [(char, u8); 6] = [('F', 1), ('S', 2), ('R', 4), ('P', 8), ('.', 16), ('U', 32)];

const CALLS: [&str; 14] = [
    "connect", "listen", "unlisten", "send", "recv", "room", "ack", "close", "abort", "set",
    "renew", "stall", "go", "quiet",
];

impl Script {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self::default();
        let mut at = Duration::ZERO;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let number = number + 1;
            script.line(number, line, &mut at).map_err(|e| format!("line {number}: {e}"))?;
        }
        Ok(script)
    }

    fn line(&mut self, line: usize, text: &str, at: &mut Duration) -> Result<(), String> {
        let mut words = words(text);
        if words.is_empty() {
            return Ok(());
        }
        if words[0] == "set" {
            let [_, key, value] = &words[..] else { return Err("set KEY VALUE".into()) };
            self.settings.push((key.clone(), value.clone(), line));
            return Ok(());
        }
        let time = words.remove(0);
        match time.strip_prefix('+') {
            Some(more) => *at += duration(more)?,
            None => {
                let absolute = duration(&time)?;
                if absolute < *at {
                    return Err(format!("{time} is in the past"));
                }
                *at = absolute;
            }
        }
        let mut sign = None;
        if words.first().is_some_and(|word| ["<", ">", "!", "="].contains(&&word[..])) {
            sign = Some(words.remove(0));
        }
        let names = match words.first().and_then(|word| word.strip_suffix(':')) {
            Some(name) => names(name)?,
            None => vec!["a".to_owned()],
        };
        if words.first().is_some_and(|word| word.ends_with(':')) {
            words.remove(0);
        }
        let act = match sign.as_deref() {
            Some("<") => Act::In(frame(&words)?),
            Some(">") => Act::Out(frame(&words)?),
            Some("!") => Act::Event(words),
            Some(_) => Act::See(words),
            None if words.first().is_some_and(|word| CALLS.contains(&&word[..])) => {
                Act::Call(words)
            }
            None => return Err(format!("{text:?} is nothing that can be done")),
        };
        let steps = names.into_iter();
        self.steps.extend(steps.map(|name| Step { line, at: *at, name, act: act.clone() }));
        Ok(())
    }
}

/// Words; what stands in `<…>` is one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for word in text.split_whitespace() {
        match open {
            true => *words.last_mut().unwrap() += &format!(" {word}"),
            false => words.push(word.to_owned()),
        }
        open = (open || (word.starts_with('<') && word != "<")) && !word.ends_with('>');
    }
    words
}

/// `x`, or `x[2..5]`: x2, x3, x4; or `x[*3]`: x, three times.
fn names(text: &str) -> Result<Vec<String>, String> {
    let Some((name, range)) = text.strip_suffix(']').and_then(|text| text.split_once('[')) else {
        return Ok(vec![text.to_owned()]);
    };
    if let Some(times) = range.strip_prefix('*') {
        return Ok(vec![name.to_owned(); number(times)? as usize]);
    }
    let (from, to) = range.split_once("..").ok_or("x[FROM..TO] or x[*TIMES]")?;
    Ok((number(from)?..number(to)?).map(|n| format!("{name}{n}")).collect())
}

pub fn number(text: &str) -> Result<i64, String> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    i64::from_str_radix(digits, radix).map_err(|_| format!("{text:?} is no number"))
}

pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(format!("{text:?} is no time: ns, us, ms, s")),
    };
    Ok(Duration::from_nanos(number(digits)? as u64 * unit))
}

fn frame(words: &[String]) -> Result<Frame, String> {
    match words.first().map(String::as_str) {
        Some("arp" | "nd" | "icmp" | "echo") => Ok(Frame::Other(words.to_vec())),
        Some(_) => Ok(Frame::Tcp(tcp(words)?)),
        None => Err("no frame".into()),
    }
}

/// `FLAGS SEQ:END(LEN) [ack N] [win N] [<OPTIONS>] [KEY=VALUE]…`
fn tcp(words: &[String]) -> Result<Tcp, String> {
    let [letters, range, rest @ ..] = words else { return Err("FLAGS SEQ:END(LEN) …".into()) };
    let mut tcp = Tcp::default();
    for letter in letters.chars().filter(|&letter| letter != '-') {
        let flag = FLAGS.iter().find(|(name, _)| *name == letter);
        tcp.flags |= flag.ok_or(format!("no flag {letter}"))?.1;
    }
    let (seq, end) = range.split_once(':').ok_or("SEQ:END(LEN)")?;
    let (end, len) =
        end.strip_suffix(')').and_then(|end| end.split_once('(')).ok_or("SEQ:END(LEN)")?;
    let (seq, end, len) = (number(seq)?, number(end)?, number(len)?);
    if seq + len != end {
        return Err(format!("{range} is not {len} long"));
    }
    (tcp.seq, tcp.len) = (seq as u32, len as u32);
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let mut value = || number(rest.next().map_or("", String::as_str));
        match word.as_str() {
            "ack" => tcp.ack = Some(value()? as u32),
            "win" => tcp.win = Some(value()? as u16),
            word if word.starts_with('<') => {
                let inner = word.trim_start_matches('<').trim_end_matches('>');
                let parts = inner.split(',').map(str::trim).filter(|part| !part.is_empty());
                tcp.options = Some(parts.map(str::to_owned).collect());
            }
            word => {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                tcp.changes.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    Ok(tcp)
}
