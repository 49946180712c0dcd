//! The faults of a running target: those that are in force, and until when.
//!
//! What always holds: there are none unless they were allowed when the target was started; one
//! that has its time ends by itself; at most [`FAULTS_MAX`] are in force at once.

pub mod ctl;
pub mod spec;

use anyhow::{Context, Result, bail, ensure};
use moorline_nvme::target::Target;
use moorline_stack::link::fault::FaultsHandle;
use moorline_stack::{Instant, Transport};
use serde::{Deserialize, Serialize};

use spec::{Kind, Spec};

/// Faults in force at once.
pub const FAULTS_MAX: usize = 64;

/// The faults of a target.
#[derive(Debug)]
pub struct Faults {
    allowed: bool,
    /// Of its link, where that is ours.
    link: Option<FaultsHandle>,
    all: Vec<One>,
    /// Those it was started with, while there was no target yet.
    waiting: Vec<Spec>,
    /// Faults there were, which names them.
    names: u64,
}

#[derive(Debug)]
struct One {
    name: u64,
    spec: Spec,
    until: Option<Instant>,
}

/// A fault, for who asks.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Shown {
    /// As it was written.
    pub fault: String,
    /// Frames, commands or connections that have met it.
    pub met: u64,
    /// Until it ends by itself.
    pub left_ms: Option<f64>,
}

impl Faults {
    /// None yet. `link`: the faults of the link that the target is to have, if that is ours.
    pub fn new(allowed: bool, link: Option<FaultsHandle>) -> Self {
        Self { allowed, link, all: Vec::new(), waiting: Vec::new(), names: 0 }
    }

    /// Begins with these: the link's hold from the first frame on, the target's from
    /// [`Faults::start`] on.
    ///
    /// # Errors
    /// When faults are not allowed, or there are too many.
    pub fn begin(&mut self, now: Instant, specs: &[Spec]) -> Result<()> {
        for spec in specs {
            self.check(spec)?;
            match spec.kind {
                Kind::Target(_) => self.waiting.push(spec.clone()),
                _ => self.enter(now, spec.clone()),
            }
        }
        Ok(())
    }

    /// The target is there.
    ///
    /// # Errors
    /// The transport's, of closing a port.
    pub fn start<T: Transport>(&mut self, now: Instant, target: &mut Target<T>) -> Result<()> {
        for spec in std::mem::take(&mut self.waiting) {
            self.add(now, target, spec)?;
        }
        Ok(())
    }

    /// Adds one. Returns how many connections it has met at once.
    ///
    /// # Errors
    /// When faults are not allowed, there are too many, or the transport cannot do it.
    pub fn add<T: Transport>(
        &mut self,
        now: Instant,
        target: &mut Target<T>,
        spec: Spec,
    ) -> Result<u64> {
        self.check(&spec)?;
        let Kind::Target(fault) = spec.kind else {
            self.enter(now, spec);
            return Ok(0);
        };
        let told = || format!("fault {spec}");
        let met = target.add_fault(now, self.names, fault, spec.scope());
        if met.is_err() {
            // Of several ports, some may be closed.
            let _ = target.remove_fault(now, self.names);
        }
        let met = met.with_context(told)?;
        tracing::warn!(fault = %spec, "a fault on demand");
        if fault != moorline_nvme::target::Fault::Reset {
            self.enter(now, spec);
        }
        Ok(met)
    }

    /// Ends all of them, or `only` those.
    ///
    /// # Errors
    /// When faults are not allowed, a port cannot be listened on again, or there are none of those.
    pub fn clear<T: Transport>(
        &mut self,
        now: Instant,
        target: &mut Target<T>,
        only: Option<&Spec>,
    ) -> Result<()> {
        self.allow()?;
        let mut first = Ok(());
        let ends = |one: &mut One| only.is_none_or(|only| one.spec == *only);
        let ending: Vec<_> = self.all.extract_if(.., ends).collect();
        ensure!(only.is_none() || !ending.is_empty(), "there is no such fault in force");
        for one in ending {
            let ended = self.end(now, target, &one);
            first = first.and(ended);
        }
        first
    }

    /// Ends those whose time is over.
    ///
    /// # Errors
    /// When a port cannot be listened on again.
    pub fn turn<T: Transport>(&mut self, now: Instant, target: &mut Target<T>) -> Result<()> {
        while let Some(at) = self.all.iter().position(|one| one.until.is_some_and(|at| at <= now)) {
            let one = self.all.remove(at);
            self.end(now, target, &one)?;
        }
        Ok(())
    }

    /// When the next ends by itself.
    pub fn next(&self) -> Option<Instant> {
        self.all.iter().filter_map(|one| one.until).min()
    }

    /// All that are in force, oldest first.
    pub fn list<T: Transport>(&self, now: Instant, target: &Target<T>) -> Vec<Shown> {
        let met = |one: &One| match (&one.spec.kind, &self.link) {
            (Kind::Target(_), _) => target.fault_hits(one.name),
            (_, Some(link)) => link.counts(one.name).total(),
            (_, None) => 0,
        };
        let left = |at: Instant| at.since(now).as_micros() as f64 / 1e3;
        let shown = |one: &One| Shown {
            fault: one.spec.to_string(),
            met: met(one),
            left_ms: one.until.map(left),
        };
        self.all.iter().map(shown).collect()
    }

    fn allow(&self) -> Result<()> {
        ensure!(self.allowed, "faults are not allowed here: start the target with --allow-faults");
        Ok(())
    }

    fn check(&self, spec: &Spec) -> Result<()> {
        self.allow()?;
        if self.link.is_none() && spec.link().is_some() {
            bail!("{} is a fault of our own stack's link: it needs --transport xdp", spec.kind);
        }
        let count = self.all.len() + self.waiting.len();
        ensure!(count < FAULTS_MAX, "{FAULTS_MAX} faults are in force: clear them first");
        Ok(())
    }

    /// It is in force from now on.
    fn enter(&mut self, now: Instant, spec: Spec) {
        let name = self.names;
        self.names += 1;
        if let (Some(link), Some(faults)) = (&self.link, spec.link()) {
            tracing::warn!(fault = %spec, "a fault on demand");
            link.add(name, spec.seed(), faults);
        }
        let until = spec.lasts().map(|time| now + time);
        self.all.push(One { name, spec, until });
    }

    fn end<T: Transport>(&mut self, now: Instant, target: &mut Target<T>, one: &One) -> Result<()> {
        tracing::warn!(fault = %one.spec, "ended");
        if let Some(link) = &self.link {
            link.remove(one.name);
        }
        target.remove_fault(now, one.name).with_context(|| format!("ending {}", one.spec))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use moorline_nvme::target::{Subsystem, TargetConfig};
    use moorline_stack::pipe::{Pipe, PipeOptions};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn target() -> Target<Pipe> {
        let (_, far) = Pipe::pair(1, PipeOptions::default());
        let mut target = Target::new(far, TargetConfig::default());
        target.add_subsystem(Subsystem::new("nqn.2026-11.io.moorline:faults")).unwrap();
        target.listen(Instant::ZERO, "10.0.0.2:4420".parse().unwrap()).unwrap();
        target
    }

    fn spec(text: &str) -> Spec {
        text.parse().unwrap()
    }

    fn shown(faults: &Faults, now: Instant, target: &Target<Pipe>) -> Vec<(String, Option<f64>)> {
        faults.list(now, target).into_iter().map(|one| (one.fault, one.left_ms)).collect()
    }

    #[test]
    fn nothing_goes_wrong_where_that_was_not_allowed() {
        let (mut faults, mut target) = (Faults::new(false, None), target());
        let add = faults.add(Instant::ZERO, &mut target, spec("busy")).unwrap_err();
        let clear = faults.clear(Instant::ZERO, &mut target, None).unwrap_err();
        for error in [add, clear, faults.begin(Instant::ZERO, &[spec("busy")]).unwrap_err()] {
            assert!(error.to_string().contains("--allow-faults"), "{error}");
        }
        assert!(faults.list(Instant::ZERO, &target).is_empty());
    }

    #[test]
    fn those_of_the_link_hold_before_there_is_a_target_and_need_a_link_of_ours() {
        let link = FaultsHandle::default();
        let mut faults = Faults::new(true, Some(link));
        let begin = [spec("busy"), spec("no-neighbour,for=1s")];
        faults.begin(Instant::ZERO, &begin).unwrap();
        let mut target = target();
        let first = [("no-neighbour,for=1s".to_owned(), Some(1000.0))];
        assert_eq!(shown(&faults, Instant::ZERO, &target), first);
        faults.start(Instant::ZERO, &mut target).unwrap();
        assert_eq!(faults.list(Instant::ZERO, &target).len(), 2);

        let mut faults = Faults::new(true, None);
        let error = faults.begin(Instant::ZERO, &[spec("swallow-syn")]).unwrap_err();
        assert!(error.to_string().contains("--transport xdp"), "{error}");
    }

    #[test]
    fn a_fault_ends_when_its_time_is_over_and_the_others_stay() {
        let (mut faults, mut target) = (Faults::new(true, None), target());
        let mut now = Instant::ZERO;
        for text in ["busy,for=3s", "freeze=2s", "late=5ms", "port-closed,for=1s", "rst"] {
            faults.add(now, &mut target, spec(text)).unwrap();
        }
        assert_eq!(target.frozen_until(), Some(now + 2 * SECOND));
        for (left, then) in [
            (4, Some(Instant::ZERO + SECOND)),
            (3, Some(Instant::ZERO + 2 * SECOND)),
            (2, Some(Instant::ZERO + 3 * SECOND)),
            (1, None),
        ] {
            faults.turn(now, &mut target).unwrap();
            assert_eq!((faults.list(now, &target).len(), faults.next()), (left, then));
            now += SECOND;
        }
        assert_eq!(shown(&faults, now, &target), [("late=5ms".to_owned(), None)]);
        assert_eq!(target.frozen_until(), None);
        // The port is open again, or it could not be closed.
        faults.add(now, &mut target, spec("port-closed")).unwrap();
        let only = spec("late=5ms");
        faults.clear(now, &mut target, Some(&only)).unwrap();
        assert_eq!(shown(&faults, now, &target), [("port-closed".to_owned(), None)]);
        assert!(faults.clear(now, &mut target, Some(&only)).is_err());
        faults.clear(now, &mut target, None).unwrap();
        assert!(faults.list(now, &target).is_empty());
    }

    #[test]
    fn there_are_64_at_most() {
        let (mut faults, mut target) = (Faults::new(true, None), target());
        for _ in 0..FAULTS_MAX {
            faults.add(Instant::ZERO, &mut target, spec("busy")).unwrap();
        }
        assert!(faults.add(Instant::ZERO, &mut target, spec("busy")).is_err());
        faults.clear(Instant::ZERO, &mut target, None).unwrap();
        faults.add(Instant::ZERO, &mut target, spec("busy")).unwrap();
    }
}
