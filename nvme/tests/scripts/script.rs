//! A script's lines, parsed: `tests/scripts/README.md` has the syntax.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A value of a script: a number, a variable, or one to be captured.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(u64),
    /// `$name`, `$name+n` or `$name^n`.
    Variable(String, char, u64),
    /// `?name`: takes what came.
    Capture(String),
    Text(String),
}

/// `name op value`.
#[derive(Clone, Debug)]
pub struct Term {
    pub name: String,
    pub op: &'static str,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Action {
    /// The script's end opens a connection of this name.
    Connect(String),
    /// The end under test opens one.
    Accept(String),
    /// The lines that follow are about that connection.
    On(String),
    Send(String, Vec<Term>),
    Bytes(Vec<u8>),
    /// Where the next PDU is cut.
    Cut(Vec<usize>),
    Close,
    Reset,
    Expect(Duration, String, Vec<Term>),
    /// FIN or RST, just FIN, just RST.
    ExpectEnd(Duration, &'static str),
    /// Time passes in silence.
    Silence(Duration),
    /// Time passes, and what comes is not looked at.
    Pass(Duration),
    /// The end under test is asked for something.
    Do(String, Vec<Term>),
    /// It tells of something.
    Told(Duration, Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Line {
    /// File and line.
    pub place: String,
    pub text: String,
    pub action: Action,
}

#[derive(Debug, Default)]
pub struct Script {
    pub options: Vec<Term>,
    pub covers: Vec<String>,
    pub lines: Vec<Line>,
}

/// How long an expectation waits where the script does not say.
const SOON: Duration = Duration::from_millis(100);

impl Script {
    pub fn read(path: &Path) -> Self {
        let mut script = Self::default();
        script.include(path);
        script
    }

    fn include(&mut self, path: &Path) {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.parse(path, &text);
    }

    /// The lines of `text`, as if they stood in the file at `path`.
    pub fn parse(&mut self, path: &Path, text: &str) {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        for (number, line) in text.lines().enumerate() {
            let line = line.split(" # ").next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = format!("{name}:{}", number + 1);
            let parsed = self.line(path, &place, line);
            parsed.unwrap_or_else(|what| panic!("{place}: {what}: {line}"));
        }
    }

    fn line(&mut self, path: &Path, place: &str, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "covers" => self.covers.extend(rest.split_whitespace().map(str::to_owned)),
            "option" => self.options.extend(terms(rest)?),
            "include" => {
                let of_role = path.parent().expect("in a directory").join(format!("{rest}.inc"));
                self.include(&of_role);
            }
            "repeat" => {
                let (count, rest) = rest.split_once(' ').ok_or("repeat COUNT LINE")?;
                let count: u64 = count.parse().map_err(|_| "COUNT is no number")?;
                for i in 0..count {
                    self.line(path, place, &rest.replace("$i", &i.to_string()))?;
                }
            }
            _ => {
                let action = action(word, rest)?;
                self.lines.push(Line { place: place.to_owned(), text: line.to_owned(), action });
            }
        }
        Ok(())
    }
}

fn action(word: &str, rest: &str) -> Result<Action, String> {
    let name = || rest.to_owned();
    let mut words = rest.splitn(2, ' ');
    let first = words.next().unwrap_or_default();
    let others = words.next().unwrap_or_default();
    let (mark, time) = word.split_at(1);
    let within = || if time.is_empty() { Ok(SOON) } else { duration(time) };
    Ok(match mark {
        "+" => Action::Silence(duration(time)?),
        "~" => Action::Pass(duration(time)?),
        "!" => Action::Do(first.to_owned(), terms(others)?),
        "=" => Action::Told(within()?, rest.split_whitespace().map(str::to_owned).collect()),
        ">" => match first {
            "close" => Action::Close,
            "reset" => Action::Reset,
            "bytes" => Action::Bytes(bytes(others)?),
            "cut" => Action::Cut(numbers(others)?),
            pdu => Action::Send(pdu.to_owned(), terms(others)?),
        },
        "<" => match first {
            "close" => Action::ExpectEnd(within()?, "close"),
            "fin" => Action::ExpectEnd(within()?, "fin"),
            "reset" => Action::ExpectEnd(within()?, "reset"),
            pdu => Action::Expect(within()?, pdu.to_owned(), terms(others)?),
        },
        _ => match word {
            "connect" => Action::Connect(name()),
            "accept" => Action::Accept(name()),
            "on" => Action::On(name()),
            _ => return Err("no such line".into()),
        },
    })
}

fn numbers(text: &str) -> Result<Vec<usize>, String> {
    text.split_whitespace().map(|word| number(word).map(|n| n as usize)).collect()
}

/// Hexadecimal bytes, or a text in quotes; `N*xx` is N times a byte.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    if let Some(text) = text.strip_prefix('"') {
        let text = text.strip_suffix('"').ok_or("no closing quote")?;
        return Ok(text.replace("\\r", "\r").replace("\\n", "\n").into_bytes());
    }
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        let (count, byte) = word.split_once('*').unwrap_or(("1", word));
        let byte = u8::from_str_radix(byte, 16).map_err(|_| format!("{byte} is no byte"))?;
        bytes.extend(std::iter::repeat_n(byte, number(count)? as usize));
    }
    Ok(bytes)
}

pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text} is no number"))
}

pub fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or("a time has a unit")?;
    let n = number(&text[..unit])?;
    match &text[unit..] {
        "us" => Ok(Duration::from_micros(n)),
        "ms" => Ok(Duration::from_millis(n)),
        "s" => Ok(Duration::from_secs(n)),
        unit => Err(format!("{unit} is no unit of time")),
    }
}

pub fn terms(text: &str) -> Result<Vec<Term>, String> {
    text.split_whitespace().map(term).collect()
}

fn term(word: &str) -> Result<Term, String> {
    for op in ["!=", ">=", "<=", "="] {
        if let Some((name, value)) = word.split_once(op) {
            return Ok(Term { name: name.to_owned(), op, value: value_of(value)? });
        }
    }
    Ok(Term { name: word.to_owned(), op: "=", value: Value::Number(1) })
}

fn value_of(text: &str) -> Result<Value, String> {
    if let Some(name) = text.strip_prefix('?') {
        return Ok(Value::Capture(name.to_owned()));
    }
    let Some(rest) = text.strip_prefix('$') else {
        return Ok(match (number(text), duration(text)) {
            (Ok(n), _) => Value::Number(n),
            _ => Value::Text(text.to_owned()),
        });
    };
    match rest.find(['+', '^']) {
        Some(at) => {
            let op = if rest[at..].starts_with('+') { '+' } else { '^' };
            Ok(Value::Variable(rest[..at].to_owned(), op, number(&rest[at + 1..])?))
        }
        None => Ok(Value::Variable(rest.to_owned(), '+', 0)),
    }
}

impl Value {
    /// Its number, with the variables as they are.
    pub fn number(&self, variables: &BTreeMap<String, u64>) -> Result<u64, String> {
        match self {
            Self::Number(n) => Ok(*n),
            Self::Variable(name, op, n) => {
                let value = variables.get(name).ok_or_else(|| format!("${name} is not set"))?;
                Ok(if *op == '+' { value.wrapping_add(*n) } else { value ^ n })
            }
            Self::Capture(name) => Err(format!("?{name} captures, which only < can")),
            Self::Text(text) => Err(format!("{text} is no number")),
        }
    }
}
