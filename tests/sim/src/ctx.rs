//! What all nodes of a world share: the clock, the record, the shadows, and what was found wrong.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use moorline_stack::Instant;
use moorline_stack::rng::Rng;

use crate::shadow::Shadow;
use crate::trace::Trace;

/// Of one world.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub now: Instant,
    /// The same, for the disks.
    pub clock: Rc<Cell<Instant>>,
    pub rng: Rng,
    pub trace: Trace,
    /// Of each target's disk.
    pub shadows: Vec<Shadow>,
    /// I/Os that ended well.
    pub ios: u64,
    /// Those that did not.
    pub failed: u64,
    /// Faults, by name.
    pub faults: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
}

impl Ctx {
    pub fn violates(&mut self, what: fmt::Arguments<'_>) {
        self.trace.tell(self.now, "VIOLATION", what);
        let now = self.now;
        self.violations.push(format!("{now:?}: {what}"));
    }

    pub fn fault(&mut self, name: &'static str, who: impl fmt::Display, what: fmt::Arguments<'_>) {
        *self.faults.entry(name).or_default() += 1;
        self.trace.tell(self.now, who, what);
    }
}
