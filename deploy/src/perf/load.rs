//! The closed loop: which I/O is next, and what becomes of one that ended. Pure.
//!
//! Every qpair has `iodepth` slots, each with a buffer that it keeps for the whole run; an ended
//! I/O makes its slot the next to be issued. Nothing allocates after `new`, but for the words of
//! the first few mismatches. A latency runs from the turn in which an I/O was submitted to the
//! turn in which its end was seen, so that depth ÷ mean latency is the rate.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use moorline_nvme::spec::Status;
use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};

use super::report::Verify;
use super::workload::{Pattern, Region, Step, Steps, Workload, Written};

/// Longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Mismatches that are reported in words.
const MISMATCHES_SHOWN: usize = 16;
/// Failed I/Os after which a run ends: something is wrong that more I/Os will not show better.
pub const ERRORS_MAX: u64 = 1000;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before measuring.
    Ramp,
    /// Measuring.
    Measure,
    /// Measured; I/Os under way are waited for.
    Drain,
    /// What was written is read and checked.
    ReadBack,
    /// Nothing is under way, and nothing is left to do.
    Done,
}

/// An I/O to submit. The buffer comes back with its end.
#[derive(Debug)]
pub struct Next {
    /// Names the slot.
    pub tag: u64,
    /// Which I/O qpair, from 0.
    pub qpair: usize,
    /// Read or write.
    pub read: bool,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u32,
    /// The data, or room for it.
    pub buf: IoBuf,
}

#[derive(Debug)]
struct Slot {
    qpair: u16,
    buf: Option<IoBuf>,
    step: Step,
    /// Its data is to be checked when it was read.
    check: bool,
    /// `step` was refused and is to be issued again.
    again: bool,
}

/// A run under way.
#[derive(Debug)]
pub struct Load {
    workload: Workload,
    region: Region,
    pattern: Pattern,
    steps: Vec<Steps>,
    slots: Vec<Slot>,
    idle: Vec<u32>,
    phase: Phase,
    started: Instant,
    measure_end: Instant,
    written: Option<Written>,
    read_back: u64,
    abandoned: bool,
    tally: Tally,
}

/// What a run has come to.
#[derive(Debug)]
pub struct Tally {
    /// Latencies of the measured I/Os, nanoseconds.
    pub latency: Histogram<u64>,
    /// I/Os that succeeded while measuring.
    pub ios: u64,
    /// I/Os that failed, in any phase.
    pub errors: u64,
    /// The same by status.
    pub by_status: Vec<(Status, u64)>,
    /// How long was measured.
    pub measured: Duration,
    /// What was checked.
    pub verify: Option<Verify>,
}

impl Load {
    /// A run that starts at `now`, its buffers taken from `arena`.
    ///
    /// # Errors
    /// When the arena does not hold the buffers ([`Load::memory`] says how much they need).
    pub fn new(
        now: Instant,
        workload: &Workload,
        region: Region,
        block_size: u32,
        qpairs: u16,
        arena: &mut Arena,
    ) -> Result<Self> {
        let count = usize::from(qpairs) * usize::from(workload.iodepth);
        let mut slots = Vec::with_capacity(count);
        for index in 0..count {
            let buf = arena.take(workload.bs as usize).context("I/O memory is used up")?;
            slots.push(Slot {
                qpair: (index % usize::from(qpairs)) as u16,
                buf: Some(buf),
                step: Step { read: true, slot: 0 },
                check: false,
                again: false,
            });
        }
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)
            .context("histogram of latencies")?;
        let tracked = workload.verify && workload.rw.writes();
        Ok(Self {
            region,
            pattern: Pattern::new(workload.seed, block_size),
            steps: (0..qpairs).map(|i| Steps::new(workload, &region, i, qpairs)).collect(),
            slots,
            idle: (0..count as u32).rev().collect(),
            phase: Phase::Ramp,
            started: now,
            measure_end: now,
            written: tracked.then(|| Written::new(region.slots)),
            read_back: 0,
            abandoned: false,
            tally: Tally {
                latency,
                ios: 0,
                errors: 0,
                by_status: Vec::with_capacity(16),
                measured: Duration::ZERO,
                verify: workload.verify.then(Verify::default),
            },
            workload: workload.clone(),
        })
    }

    /// Bytes of I/O memory that a run needs.
    pub fn memory(workload: &Workload, qpairs: u16) -> usize {
        let each = (workload.bs as usize).next_multiple_of(4096);
        each * usize::from(qpairs) * usize::from(workload.iodepth)
    }

    /// Where the run stands.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// What it has come to so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What it came to.
    pub fn into_tally(self) -> Tally {
        self.tally
    }

    /// When [`Load::advance`] has something to do, if no I/O ends before.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Ramp => Some(self.started + self.workload.ramp),
            Phase::Measure => Some(self.measure_end),
            Phase::Drain | Phase::ReadBack | Phase::Done => None,
        }
    }

    /// Share of the ramp and measured time that has passed, 0 to 1.
    pub fn progress(&self, now: Instant) -> f64 {
        let whole = (self.workload.ramp + self.workload.runtime).as_secs_f64();
        (now.since(self.started).as_secs_f64() / whole.max(1e-9)).min(1.0)
    }

    /// Moves on to the next phase where that is due (one step per call), and says so. `stop` ends
    /// the run at once: nothing more is issued, but for reading back what was written.
    pub fn advance(&mut self, now: Instant, stop: bool) -> Option<Phase> {
        let next = match self.phase {
            Phase::Ramp
                if stop || self.has_failed() || now >= self.started + self.workload.ramp =>
            {
                Phase::Measure
            }
            Phase::Measure if stop || now >= self.measure_end || self.is_enough() => Phase::Drain,
            Phase::Drain if self.is_drained() => match &self.written {
                Some(written) if written.count() > 0 && !self.has_failed() => Phase::ReadBack,
                _ => Phase::Done,
            },
            Phase::ReadBack
                if self.is_drained() && (self.next_written().is_none() || self.has_failed()) =>
            {
                Phase::Done
            }
            Phase::Ramp | Phase::Measure | Phase::Drain | Phase::ReadBack | Phase::Done => {
                return None;
            }
        };
        match next {
            Phase::Measure => {
                self.started = now;
                self.measure_end = now + self.workload.runtime;
                self.workload.ramp = Duration::ZERO;
            }
            Phase::Drain => self.tally.measured = now.since(self.started),
            Phase::Ramp | Phase::ReadBack | Phase::Done => {}
        }
        self.phase = next;
        Some(next)
    }

    fn is_enough(&self) -> bool {
        self.has_failed() || self.workload.ios_max.is_some_and(|max| self.tally.ios >= max)
    }

    const fn has_failed(&self) -> bool {
        self.abandoned || self.tally.errors >= ERRORS_MAX
    }

    /// Ends the run, for its controller is lost: nothing more is issued, not even to read back.
    pub const fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Whether no I/O is under way.
    fn is_drained(&self) -> bool {
        self.idle.len() == self.slots.len()
    }

    fn next_written(&self) -> Option<u64> {
        self.written.as_ref()?.next(self.read_back)
    }

    /// The next I/O to submit, or `None` while all slots are in use or nothing is to be issued.
    #[expect(clippy::should_implement_trait, reason = "it is not an iterator: more come later")]
    pub fn next(&mut self) -> Option<Next> {
        let index = *self.idle.last()?;
        let qpair = self.slots[index as usize].qpair;
        let step = match self.phase {
            Phase::Ramp | Phase::Measure if self.slots[index as usize].again => {
                self.slots[index as usize].step
            }
            Phase::Ramp | Phase::Measure => self.steps[usize::from(qpair)].next(),
            Phase::ReadBack if self.has_failed() => return None,
            Phase::ReadBack => {
                let slot = self.next_written()?;
                self.read_back = slot + 1;
                Step { read: true, slot }
            }
            Phase::Drain | Phase::Done => return None,
        };
        self.idle.pop();
        let lba = self.region.lba(step.slot);
        let slot = &mut self.slots[index as usize];
        let mut buf = slot.buf.take().expect("an idle slot has its buffer");
        if self.workload.verify && !step.read {
            self.pattern.fill(lba, &mut buf);
        }
        // Where this run writes, a slot holds the pattern once it was written.
        slot.check = self.workload.verify
            && step.read
            && self.written.as_ref().is_none_or(|written| written.contains(step.slot));
        slot.step = step;
        slot.again = false;
        let blocks = self.region.blocks_per_slot;
        Some(Next {
            tag: u64::from(index),
            qpair: usize::from(qpair),
            read: step.read,
            lba,
            blocks,
            buf,
        })
    }

    /// Takes back an I/O that could not be submitted; it will be the next again.
    pub fn refused(&mut self, tag: u64, buf: IoBuf) {
        let slot = &mut self.slots[tag as usize];
        slot.buf = Some(buf);
        if self.phase == Phase::ReadBack {
            self.read_back = slot.step.slot;
        } else {
            slot.again = true;
        }
        self.idle.push(tag as u32);
    }

    /// Takes in the end of an I/O that was submitted at `submitted`.
    pub fn complete(
        &mut self,
        now: Instant,
        tag: u64,
        status: Status,
        buf: IoBuf,
        submitted: Instant,
    ) {
        let slot = &mut self.slots[tag as usize];
        assert!(slot.buf.is_none(), "I/O {tag} ended twice");
        let (step, check) = (slot.step, slot.check);
        self.idle.push(tag as u32);
        if status == Status::default() {
            if self.phase == Phase::Measure {
                self.tally.ios += 1;
                self.tally.latency.saturating_record(now.since(submitted).as_nanos() as u64);
            }
            if check {
                self.check(step.slot, &buf);
            }
            if let Some(written) = self.written.as_mut().filter(|_| !step.read) {
                written.insert(step.slot);
            }
        } else {
            self.tally.fail(status);
        }
        self.slots[tag as usize].buf = Some(buf);
    }

    fn check(&mut self, slot: u64, bytes: &[u8]) {
        let Some(verify) = self.tally.verify.as_mut() else { return };
        let first = &mut verify.first;
        let wrong = self.pattern.check(self.region.lba(slot), bytes, |mismatch| {
            if first.len() < MISMATCHES_SHOWN {
                first.push(mismatch.to_string());
            }
        });
        verify.blocks += u64::from(self.region.blocks_per_slot);
        verify.mismatches += wrong;
    }
}

impl Tally {
    fn fail(&mut self, status: Status) {
        self.errors += 1;
        match self.by_status.iter_mut().find(|(seen, _)| *seen == status) {
            Some((_, count)) => *count += 1,
            None => self.by_status.push((status, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::workload::Rw;

    const BLOCK: u32 = 512;

    fn load(workload: &Workload, blocks: u64) -> Load {
        let region = workload.region(blocks, BLOCK).unwrap();
        let mut arena = Arena::new(Load::memory(workload, 1));
        Load::new(Instant::ZERO, workload, region, BLOCK, 1, &mut arena).unwrap()
    }

    fn at(us: u64) -> Instant {
        Instant::from_nanos(us * 1000)
    }

    /// Plays a disk in memory: each I/O takes 10 µs, all under way end together.
    fn play(load: &mut Load, disk: &mut [u8], until_us: u64) {
        let mut now = 0;
        while load.phase() != Phase::Done {
            load.advance(at(now), now >= until_us);
            let mut under_way: Vec<_> = std::iter::from_fn(|| load.next()).collect();
            for io in &mut under_way {
                let bytes = io.lba as usize * BLOCK as usize..;
                let bytes = &mut disk[bytes][..(io.blocks * BLOCK) as usize];
                if io.read { io.buf.copy_from_slice(bytes) } else { bytes.copy_from_slice(&io.buf) }
            }
            for io in under_way {
                load.complete(at(now + 10), io.tag, Status::default(), io.buf, at(now));
            }
            now += 10;
            assert!(now < 1_000_000, "stuck in {:?}", load.phase());
        }
    }

    #[test]
    fn ramp_is_not_measured_and_runtime_is() {
        let workload = Workload {
            ramp: Duration::from_micros(100),
            runtime: Duration::from_micros(1000),
            iodepth: 4,
            ..Workload::default()
        };
        let mut load = load(&workload, 1024);
        play(&mut load, &mut vec![0; 1024 * 512], u64::MAX);
        let tally = load.into_tally();
        assert_eq!(tally.measured, workload.runtime);
        assert_eq!(tally.ios, 4 * 100);
        assert_eq!((tally.latency.len(), tally.latency.min()), (400, 10_000));
        assert_eq!((tally.errors, tally.verify), (0, None));
    }

    #[test]
    fn what_was_written_is_read_back_and_checked() {
        let workload = Workload {
            rw: Rw::RandWrite,
            verify: true,
            iodepth: 8,
            runtime: Duration::from_micros(500),
            ..Workload::default()
        };
        let mut load = load(&workload, 8192);
        let mut disk = vec![0; 8192 * 512];
        play(&mut load, &mut disk, u64::MAX);
        let written = load.written.as_ref().unwrap().count();
        let verify = load.into_tally().verify.unwrap();
        assert_eq!(verify.blocks, written * 8);
        assert_eq!((verify.mismatches, verify.first.len()), (0, 0));
        assert!((300..=400).contains(&written), "{written}");
    }

    #[test]
    fn a_byte_that_flips_on_the_disk_is_named() {
        let write = Workload {
            rw: Rw::Write,
            verify: true,
            size: Some(64 << 10),
            runtime: Duration::from_micros(500),
            ..Workload::default()
        };
        let mut disk = vec![0; 128 * 512];
        play(&mut load(&write, 128), &mut disk, u64::MAX);
        disk[77 * 512 + 9] ^= 1;
        let read = Workload { rw: Rw::Read, ios_max: Some(16), ..write };
        let mut load = load(&read, 128);
        play(&mut load, &mut disk, u64::MAX);
        let verify = load.into_tally().verify.unwrap();
        assert_eq!((verify.blocks, verify.mismatches), (128, 1));
        assert!(verify.first[0].starts_with("LBA 77 offset 8: expected "), "{:?}", verify.first);
    }

    #[test]
    fn a_refused_io_is_issued_again_unchanged() {
        let mut load = load(&Workload::default(), 1024);
        load.advance(at(0), false);
        let first = load.next().unwrap();
        let lba = first.lba;
        assert!(load.next().is_none());
        load.refused(first.tag, first.buf);
        assert_eq!(load.next().unwrap().lba, lba);
    }

    #[test]
    fn failures_are_counted_by_status_and_end_the_run() {
        let mut load = load(&Workload::default(), 1024);
        load.advance(at(0), false);
        for _ in 0..ERRORS_MAX {
            let io = load.next().unwrap();
            load.complete(at(1), io.tag, Status(0x80), io.buf, at(0));
        }
        assert_eq!(load.advance(at(2), false), Some(Phase::Drain));
        assert_eq!(load.advance(at(2), false), Some(Phase::Done));
        assert_eq!(load.tally().by_status, [(Status(0x80), ERRORS_MAX)]);
    }

    #[test]
    fn stopping_waits_for_what_is_under_way() {
        let mut load = load(&Workload::default(), 1024);
        load.advance(at(0), false);
        let io = load.next().unwrap();
        assert_eq!(load.advance(at(7), true), Some(Phase::Drain));
        assert_eq!(load.advance(at(8), true), None);
        load.complete(at(9), io.tag, Status::default(), io.buf, at(0));
        assert_eq!(load.advance(at(9), true), Some(Phase::Done));
        assert_eq!((load.tally().ios, load.tally().measured), (0, Duration::from_micros(7)));
    }
}
