//! A fault as a person writes it: `KIND[=VALUE][,key=value…]`.
//!
//! What always holds: what is printed reads back as the same; what would have no effect is refused
//! and not left out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use moorline_nvme::target::{Fault, FaultScope, Hold};
use moorline_stack::link::fault::Faults as LinkFaults;

use crate::perf::workload::parse_duration;

/// The kinds, for whom it may concern.
pub const KINDS: &str = "drop=P delay=TIME duplicate=P reorder=P corrupt=P blackhole=in|out|both \
    no-neighbour swallow-syn port-closed rst withhold-window \
    hold=icreq|connect|property|keep-alive|io|completions late=TIME close-mid-pdu freeze=TIME \
    flip-digest wrong-datao fes=N busy; keys port=N share=P seed=N for=TIME";

/// How far frames are overtaken by others.
const REORDER_BY: Duration = Duration::from_millis(1);

/// A fault, whom it concerns, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What goes wrong.
    pub kind: Kind,
    /// Only with this listener.
    pub port: Option<u16>,
    /// Which share of the frames, commands or connections that it concerns.
    pub share: Option<f64>,
    /// Where that is drawn from.
    pub seed: Option<u64>,
    /// Then it ends by itself.
    pub lasts: Option<Duration>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Frames are lost, with this probability.
    Drop(f64),
    /// Frames come so much later.
    Delay(Duration),
    /// Frames come twice.
    Duplicate(f64),
    /// Frames are overtaken by others.
    Reorder(f64),
    /// A bit is wrong.
    Corrupt(f64),
    /// Nothing comes in, nothing goes out.
    Blackhole {
        /// Nothing comes in.
        incoming: bool,
        /// Nothing goes out.
        outgoing: bool,
    },
    /// ARP and ND are lost, both ways.
    NoNeighbour,
    /// SYNs are lost.
    SwallowSyn,
    /// What the target does by itself.
    Target(Fault),
}

/// What a kind may be combined with.
struct Takes {
    port: bool,
    share: bool,
    lasts: bool,
}

impl Spec {
    /// One of the link's, or `None` for the target's.
    pub fn link(&self) -> Option<LinkFaults> {
        let share = self.share.unwrap_or(1.0);
        let none = LinkFaults { port: self.port, ..LinkFaults::default() };
        Some(match self.kind {
            Kind::Drop(drop) => LinkFaults { drop, ..none },
            Kind::Delay(delay_by) => LinkFaults { delay: share, delay_by, ..none },
            Kind::Duplicate(duplicate) => LinkFaults { duplicate, ..none },
            Kind::Reorder(reorder) => LinkFaults { reorder, reorder_by: REORDER_BY, ..none },
            Kind::Corrupt(corrupt) => LinkFaults { corrupt, ..none },
            Kind::Blackhole { incoming, outgoing } => {
                LinkFaults { blackhole: incoming, blackhole_out: outgoing, ..none }
            }
            Kind::NoNeighbour => LinkFaults { no_neighbour: true, ..none },
            Kind::SwallowSyn => LinkFaults { swallow_syn: share, ..none },
            Kind::Target(_) => return None,
        })
    }

    /// Whom the target's concerns.
    pub fn scope(&self) -> FaultScope {
        let default = FaultScope::default();
        let share = self.share.unwrap_or(default.share);
        FaultScope { port: self.port, share, seed: self.seed() }
    }

    /// The seed, or the default.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(FaultScope::default().seed)
    }

    /// When it ends by itself.
    pub fn lasts(&self) -> Option<Duration> {
        match self.kind {
            Kind::Target(Fault::Freeze(time)) => Some(time),
            _ => self.lasts,
        }
    }

    fn check(&self) -> Result<()> {
        let takes = self.kind.takes();
        let refuse = |key| format!("{key} has no meaning with {}", self.kind);
        ensure!(takes.port || self.port.is_none(), refuse("port"));
        ensure!(takes.share || self.share.is_none(), refuse("share"));
        ensure!(takes.lasts || self.lasts.is_none(), refuse("for"));
        Ok(())
    }
}

impl Kind {
    fn parse(name: &str, value: Option<&str>) -> Result<Self> {
        let need =
            |what: &str| value.with_context(|| format!("{name} needs a value: {name}={what}"));
        let share = || probability(need("P")?);
        let time = || parse_duration(need("TIME")?);
        let plain = |kind| match value {
            None => Ok(kind),
            Some(value) => bail!("{name} has no value, and not {value:?}"),
        };
        let target = |fault| plain(Self::Target(fault));
        match name {
            "drop" => Ok(Self::Drop(share()?)),
            "delay" => Ok(Self::Delay(time()?)),
            "duplicate" => Ok(Self::Duplicate(share()?)),
            "reorder" => Ok(Self::Reorder(share()?)),
            "corrupt" => Ok(Self::Corrupt(share()?)),
            "blackhole" => match need("in|out|both")? {
                "in" => Ok(Self::Blackhole { incoming: true, outgoing: false }),
                "out" => Ok(Self::Blackhole { incoming: false, outgoing: true }),
                "both" => Ok(Self::Blackhole { incoming: true, outgoing: true }),
                other => bail!("blackhole={other}: write in, out or both"),
            },
            "no-neighbour" => plain(Self::NoNeighbour),
            "swallow-syn" => plain(Self::SwallowSyn),
            "port-closed" => target(Fault::PortClosed),
            "rst" => target(Fault::Reset),
            "withhold-window" => target(Fault::WithholdWindow),
            "hold" => {
                let what = need("icreq|connect|property|keep-alive|io|completions")?;
                let named = HOLDS.iter().find(|(name, _)| *name == what);
                let (_, hold) = named.with_context(|| {
                    let names: Vec<_> = HOLDS.iter().map(|(name, _)| *name).collect();
                    format!("hold={what}: write one of {}", names.join(", "))
                })?;
                Ok(Self::Target(Fault::Hold(*hold)))
            }
            "late" => Ok(Self::Target(Fault::Late(time()?))),
            "close-mid-pdu" => target(Fault::CloseMidPdu),
            "freeze" => Ok(Self::Target(Fault::Freeze(time()?))),
            "flip-digest" => target(Fault::FlipDigest),
            "wrong-datao" => target(Fault::WrongDatao),
            "fes" => {
                let fes = need("N")?;
                let told = || format!("fes={fes}: write a number, 1 to 6 for those of the spec");
                Ok(Self::Target(Fault::TermReq(fes.parse().with_context(told)?)))
            }
            "busy" => target(Fault::Busy),
            _ => bail!("there is no fault {name:?}; there are {KINDS}"),
        }
    }

    fn takes(&self) -> Takes {
        let all = Takes { port: true, share: true, lasts: true };
        match self {
            // The share is the value.
            Self::Drop(_) | Self::Duplicate(_) | Self::Reorder(_) | Self::Corrupt(_) => {
                Takes { share: false, ..all }
            }
            Self::Blackhole { .. } => Takes { share: false, ..all },
            Self::NoNeighbour => Takes { port: false, share: false, ..all },
            Self::Target(Fault::PortClosed) => Takes { share: false, ..all },
            Self::Target(Fault::Reset) => Takes { lasts: false, ..all },
            Self::Target(Fault::Freeze(_)) => Takes { port: false, share: false, lasts: false },
            Self::Delay(_) | Self::SwallowSyn | Self::Target(_) => all,
        }
    }
}

/// What can be held, by name.
const HOLDS: [(&str, Hold); 6] = [
    ("icreq", Hold::IcReq),
    ("connect", Hold::Connect),
    ("property", Hold::Property),
    ("keep-alive", Hold::KeepAlive),
    ("io", Hold::Io),
    ("completions", Hold::Completions),
];

fn probability(text: &str) -> Result<f64> {
    let share = text.parse().unwrap_or(-1.0);
    ensure!((0.0..=1.0).contains(&share), "{text:?}: write a share, from 0 to 1");
    Ok(share)
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|error| format!("{error:#}"))
    }
}

impl Spec {
    fn read(text: &str) -> Result<Self> {
        let told = || format!("fault {text:?}");
        let mut parts = text.split(',').map(|part| match part.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (part.trim(), None),
        });
        let (name, value) = parts.next().unwrap_or_default();
        let kind = Kind::parse(name, value).with_context(told)?;
        let mut spec = Self { kind, port: None, share: None, seed: None, lasts: None };
        for (key, value) in parts {
            let value = value.unwrap_or_default();
            let number = || format!("fault {text:?}: {key}={value}: write a number");
            match key {
                "port" => spec.port = Some(value.parse().with_context(number)?),
                "seed" => spec.seed = Some(value.parse().with_context(number)?),
                "share" => spec.share = Some(probability(value).with_context(told)?),
                "for" => spec.lasts = Some(parse_duration(value).with_context(told)?),
                _ => bail!("fault {text:?}: the keys are port, share, seed and for, not {key:?}"),
            }
        }
        spec.check().with_context(told)?;
        Ok(spec)
    }
}

/// A time that reads back as the same.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_micros() {
            us if us % 1_000_000 == 0 => write!(f, "{}s", us / 1_000_000),
            us if us % 1000 == 0 => write!(f, "{}ms", us / 1000),
            us => write!(f, "{us}us"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Drop(p) => write!(f, "drop={p}"),
            Self::Delay(by) => write!(f, "delay={}", Time(by)),
            Self::Duplicate(p) => write!(f, "duplicate={p}"),
            Self::Reorder(p) => write!(f, "reorder={p}"),
            Self::Corrupt(p) => write!(f, "corrupt={p}"),
            Self::Blackhole { incoming, outgoing } => f.write_str(match (incoming, outgoing) {
                (true, true) => "blackhole=both",
                (false, true) => "blackhole=out",
                (_, false) => "blackhole=in",
            }),
            Self::NoNeighbour => f.write_str("no-neighbour"),
            Self::SwallowSyn => f.write_str("swallow-syn"),
            Self::Target(fault) => match fault {
                Fault::PortClosed => f.write_str("port-closed"),
                Fault::Reset => f.write_str("rst"),
                Fault::WithholdWindow => f.write_str("withhold-window"),
                Fault::Hold(hold) => {
                    let named = HOLDS.iter().find(|(_, other)| *other == hold);
                    write!(f, "hold={}", named.expect("all of them are in the table").0)
                }
                Fault::Late(by) => write!(f, "late={}", Time(by)),
                Fault::CloseMidPdu => f.write_str("close-mid-pdu"),
                Fault::Freeze(time) => write!(f, "freeze={}", Time(time)),
                Fault::FlipDigest => f.write_str("flip-digest"),
                Fault::WrongDatao => f.write_str("wrong-datao"),
                Fault::TermReq(fes) => write!(f, "fes={fes}"),
                Fault::Busy => f.write_str("busy"),
            },
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(port) = self.port {
            write!(f, ",port={port}")?;
        }
        if let Some(share) = self.share {
            write!(f, ",share={share}")?;
        }
        if let Some(seed) = self.seed {
            write!(f, ",seed={seed}")?;
        }
        if let Some(time) = self.lasts {
            write!(f, ",for={}", Time(time))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        for text in [
            "drop=0.25,port=4420,seed=7",
            "delay=5ms,share=0.5",
            "duplicate=1",
            "reorder=0.01",
            "corrupt=0.001,for=3s",
            "blackhole=in",
            "blackhole=out,port=8009",
            "blackhole=both,for=250us",
            "no-neighbour",
            "swallow-syn,port=4420,share=0.9,seed=3,for=20s",
            "port-closed,port=4420",
            "rst,port=4420,share=0.5",
            "withhold-window",
            "hold=icreq",
            "hold=connect,for=1500ms",
            "hold=property",
            "hold=keep-alive",
            "hold=io,share=0.125",
            "hold=completions",
            "late=100ms",
            "close-mid-pdu,share=0.5",
            "freeze=6s",
            "flip-digest",
            "wrong-datao",
            "fes=3",
            "busy,port=4421",
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            let known = KINDS
                .split([' ', ';'])
                .any(|kind| kind.split('=').next() == text.split(['=', ',']).next());
            assert!(known, "{text}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_and_the_message_says_why() {
        for (text, why) in [
            ("", "there is no fault"),
            ("lost", "there is no fault \"lost\""),
            ("drop", "drop needs a value"),
            ("drop=2", "from 0 to 1"),
            ("drop=0.1,share=0.5", "share has no meaning with drop"),
            ("busy=1", "has no value"),
            ("hold=ic", "write one of icreq"),
            ("blackhole=up", "in, out or both"),
            ("late=soon", "time"),
            ("fes=x", "write a number"),
            ("busy,port=x", "write a number"),
            ("busy,where=x", "the keys are"),
            ("freeze=1s,for=2s", "for has no meaning with freeze"),
            ("rst,for=2s", "for has no meaning"),
            ("no-neighbour,port=4420", "port has no meaning"),
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
