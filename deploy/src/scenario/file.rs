//! A scenario's file. Unknown keys are refused, so that a misspelt one is not a check left out.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use moorline_rig::ADDRS_MAX;
use serde::{Deserialize, Deserializer};

use super::host::VERIFY_DEPTH_MAX;
use crate::faults::spec::Spec;
use crate::perf::workload::{Bytes, parse_duration};

/// Blocks of 4 KiB of the dead targets' namespace, which their controllers share.
pub const NAMESPACE_BLOCKS: u64 = 16 << 10;

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in reports.
    pub name: String,
    /// Controllers whose targets come and go, all of these on one process and thread.
    pub dead: u16,
    /// Addresses that their targets have, and ports on each; the controllers are spread over them.
    #[serde(default = "one")]
    pub addresses: u16,
    /// See `addresses`.
    #[serde(default = "one")]
    pub ports: u16,
    /// I/O queues of each dead controller.
    #[serde(default = "one")]
    pub io_queues: u16,
    /// TCP buffers of all connections, each way and at each end; our default where not given.
    #[serde(default, deserialize_with = "size")]
    pub tcp_buffer: Option<u64>,
    /// Queue depths of the load on the healthy controller, a run each; 0 is no load.
    pub depths: Vec<u16>,
    /// Keep alive timeout of all controllers.
    #[serde(deserialize_with = "duration")]
    pub kato: Duration,
    /// How long data of the dead controllers may stay unacknowledged, where not our default.
    #[serde(default, deserialize_with = "some_duration")]
    pub ack_timeout: Option<Duration>,
    /// How long an I/O command of the dead controllers may take, where not our default.
    #[serde(default, deserialize_with = "some_duration")]
    pub io_timeout: Option<Duration>,
    /// Load on the dead controllers, of which each read is checked; none where not given.
    pub verify: Option<VerifyLoad>,
    /// The dead targets begin with the first fault, so that no controller of theirs is live before
    /// its end.
    #[serde(default)]
    pub cold: bool,
    /// What happens.
    pub timeline: Timeline,
    /// In place of the time line, where a short form is asked for.
    pub short: Option<Timeline>,
    /// What must hold.
    #[serde(default)]
    pub expect: Expect,
}

/// Writes and reads of each dead controller, on blocks of its own. Where a fault ends their
/// process, the targets serve a file, which outlives them.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyLoad {
    /// Commands under way of each.
    pub depth: u16,
    /// Blocks of each: few, so that each is written often.
    #[serde(default = "verify_blocks")]
    pub blocks: u32,
    /// From one command of each to its next, at least, so that some CPU is left for the healthy.
    #[serde(default = "verify_pace", deserialize_with = "duration")]
    pub pace: Duration,
    /// Whether the host keeps the commands of a lost path and issues them again; else they end,
    /// their fate is unknown, and the load does so.
    #[serde(default)]
    pub requeue: bool,
}

/// What happens, when. Each cycle has each fault once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Dead controllers, where not as many as the file says.
    pub dead: Option<u16>,
    /// Ways in which the targets go, in order.
    pub faults: Vec<Step>,
    /// Times that each comes.
    pub cycles: u32,
    /// Load alone before the first fault.
    #[serde(deserialize_with = "duration")]
    pub before: Duration,
    /// From a fault to its end, where that fault does not say otherwise.
    #[serde(deserialize_with = "duration")]
    pub away: Duration,
    /// From the end of a fault to the next one: time to recover.
    #[serde(deserialize_with = "duration")]
    pub back: Duration,
}

/// A fault on the time line: `"exit"`, or `{ fault = "freeze", away = "1s", loses = "all" }`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Written")]
pub struct Step {
    /// How targets go.
    pub fault: Fault,
    /// For how long, where not for as long as the time line says.
    pub away: Option<Duration>,
    /// Who must be lost by it; where nothing is said, it is not checked.
    pub loses: Option<Loses>,
    /// The same with kernel sockets: a stopped process's kernel still acknowledges.
    pub loses_on_kernel: Option<Loses>,
    /// The targets' process ends in order, and another begins with the fault; else the fault comes
    /// over controllers that are live. Only for what a target does wrong.
    pub restart: bool,
    /// What each dead controller gives as the reason for its last failure, just before the fault
    /// ends, in part.
    pub reason: Option<String>,
}

/// Which dead controllers an outage must lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loses {
    /// Each of them.
    All,
    /// None.
    None,
}

/// A step as it is written.
#[derive(Deserialize)]
#[serde(untagged, expecting = "want a fault's name, or a table of fault, away, loses")]
enum Written {
    Name(Fault),
    Table(Table),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    fault: Fault,
    #[serde(default, deserialize_with = "some_duration")]
    away: Option<Duration>,
    loses: Option<Loses>,
    loses_on_kernel: Option<Loses>,
    #[serde(default)]
    restart: bool,
    reason: Option<String>,
}

impl From<Written> for Step {
    fn from(written: Written) -> Self {
        match written {
            Written::Name(fault) => Self::of(fault),
            Written::Table(table) => {
                let Table { fault, away, loses, loses_on_kernel, restart, reason } = table;
                let loses_on_kernel = loses_on_kernel.or(loses);
                Self { fault, away, loses, loses_on_kernel, restart, reason }
            }
        }
    }
}

impl Step {
    /// A fault and nothing more said.
    pub fn of(fault: Fault) -> Self {
        let (away, loses, loses_on_kernel, restart, reason) = (None, None, None, false, None);
        Self { fault, away, loses, loses_on_kernel, restart, reason }
    }
}

/// A way in which targets go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum Fault {
    /// Their process ends in order: connections are reset.
    Exit,
    /// Their process is killed; on our own stack they fall silent, ARP included.
    Kill,
    /// The switch forwards nothing to and from them.
    Blackhole,
    /// Their process is stopped.
    Freeze,
    /// Their link goes down and up every 300 ms.
    Flap,
    /// They do something wrong, as `moorline ctl faults add` has it.
    Target(Spec),
}

impl TryFrom<String> for Fault {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.as_str() {
            "exit" => Self::Exit,
            "kill" => Self::Kill,
            "blackhole" => Self::Blackhole,
            "freeze" => Self::Freeze,
            "flap" => Self::Flap,
            spec => Self::Target(
                spec.parse()
                    .map_err(|error| format!("{error}; or exit, kill, blackhole, freeze, flap"))?,
            ),
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit => f.pad("exit"),
            Self::Kill => f.pad("kill"),
            Self::Blackhole => f.pad("blackhole"),
            Self::Freeze => f.pad("freeze"),
            Self::Flap => f.pad("flap"),
            Self::Target(spec) => f.pad(&spec.to_string()),
        }
    }
}

impl Step {
    /// Whether their process is gone meanwhile.
    pub fn ends_process(&self) -> bool {
        self.restart || matches!(self.fault, Fault::Exit | Fault::Kill)
    }
}

/// Limits; what is not given is reported and not checked. That nothing fails, nothing is lost and
/// no deadline is early, nor later than one turn, is always checked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Longest time without an end of a healthy I/O, less run delay, during outages.
    pub max_gap_less_run_delay_us: Option<u64>,
    /// Time that `moorline ctl` takes to answer in the middle of an outage, of 90 in 100 calls.
    pub ctl_p90_us_max: Option<u64>,
    /// Longest time from a target's listening to its last controller's being live.
    pub recovered_ms_max: Option<u64>,
    /// The same at the start, from the first connect.
    pub cold_ms_max: Option<u64>,
    /// SYNs on the wire in a quarter of a second, as a rate.
    pub syns_per_s_max: Option<u64>,
    /// Whether IOPS and p99 during outages are to lie within those of before.
    #[serde(default)]
    pub within_interval: bool,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// Where it cannot be read, or what is wrong in it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the scenario {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    fn timelines(&self) -> impl Iterator<Item = &Timeline> {
        std::iter::once(&self.timeline).chain(&self.short)
    }

    /// Addresses and ports of the dead targets.
    fn places(&self) -> u16 {
        self.addresses.saturating_mul(self.ports)
    }

    /// Whether a target does something wrong.
    pub fn has_target_faults(&self) -> bool {
        let mut steps = self.timelines().flat_map(|timeline| &timeline.faults);
        steps.any(|step| matches!(step.fault, Fault::Target(_)))
    }

    /// From a file's text.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn parse(text: &str) -> Result<Self> {
        let this: Self = toml::from_str(text)?;
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<()> {
        ensure!((1..=1000).contains(&self.dead), "dead: 1 to 1000 controllers");
        let counts = self.timelines().filter_map(|timeline| timeline.dead);
        let some_of_them = counts.min().is_none_or(|least| least >= self.places());
        ensure!(some_of_them, "dead of a time line: no fewer than addresses times ports");
        ensure!(!self.depths.is_empty(), "depths: at least one");
        ensure!(self.depths.iter().all(|d| (0..=127).contains(d)), "depths: 0 to 127");
        ensure!((1..=ADDRS_MAX.into()).contains(&self.addresses), "addresses: 1 to {ADDRS_MAX}");
        ensure!((1..=self.dead).contains(&self.places()), "ports: no more than controllers");
        ensure!((1..=16).contains(&self.io_queues), "io_queues: 1 to 16");
        let fits = |step: &Step| !step.restart || matches!(step.fault, Fault::Target(_));
        let all_fit = self.timelines().flat_map(|timeline| &timeline.faults).all(fits);
        ensure!(all_fit, "restart: only with what a target does wrong");
        let mut firsts = self.timelines().map(|timeline| (&timeline.faults, timeline.cycles));
        let fit = |(faults, cycles): (&Vec<Step>, u32)| {
            cycles == 1 && matches!(&faults[..], [Step { fault: Fault::Target(_), .. }])
        };
        ensure!(!self.cold || firsts.all(fit), "cold: only with one fault of a target, once");
        if let Some(verify) = &self.verify {
            let max = VERIFY_DEPTH_MAX;
            ensure!((1..=max).contains(&verify.depth), "verify: depth: 1 to {max}");
            let room = NAMESPACE_BLOCKS / u64::from(self.dead);
            ensure!((1..=room).contains(&verify.blocks.into()), "verify: blocks: 1 to {room}");
        }
        Ok(())
    }
}

fn one() -> u16 {
    1
}

fn verify_blocks() -> u32 {
    64
}

fn verify_pace() -> Duration {
    Duration::from_millis(1)
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<Bytes>().map(|bytes| Some(bytes.0)).map_err(serde::de::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

fn some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenarios_that_we_have_can_be_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/rig/scenarios");
        let mut read = 0;
        let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        for path in paths.filter(|path| path.extension().is_some_and(|ext| ext == "toml")) {
            let scenario = Scenario::load(&path).unwrap();
            assert_eq!(Some(scenario.name.as_str()), path.file_stem().unwrap().to_str());
            read += 1;
        }
        assert!(read >= 1);
    }

    #[test]
    fn the_one_that_is_explained_can_be_read() {
        let text = include_str!("../../../tests/rig/scenarios/README.md");
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let scenario = Scenario::parse(rest.split_once("```").unwrap().0).unwrap();
        assert_eq!(scenario.expect.ctl_p90_us_max, Some(10_000));
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let error = Scenario::parse("name = \"x\"\ndaed = 7\n").unwrap_err();
        assert!(format!("{error:#}").contains("daed"), "{error:#}");
    }

    #[test]
    fn a_fault_is_a_name_or_a_table_and_nothing_else() {
        let step = |text: &str| {
            #[derive(Debug, Deserialize)]
            struct One {
                step: Step,
            }
            toml::from_str::<One>(text).map(|one| one.step)
        };
        assert_eq!(step("step = \"flap\"").unwrap().fault, Fault::Flap);
        let table = "step = { fault = \"freeze\", away = \"250ms\", loses = \"none\" }";
        let table = step(table).unwrap();
        assert_eq!(table.away, Some(Duration::from_millis(250)));
        assert_eq!((table.loses, table.loses_on_kernel), (Some(Loses::None), Some(Loses::None)));
        assert!(step("step = { fault = \"freeze\", awya = \"1s\" }").is_err());
    }
}
