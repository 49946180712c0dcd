//! The load of the healthy controller, what a tick of it came to, and its longest gaps: how long
//! nothing ended, and what went on meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use moorline_nvme::host::{Io, IoDone, IoOp};
use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::rng::Rng;
use serde_json::{Value, json};

use super::delays::{Delayed, Delays};
use super::us;
use crate::scenario::TICK;

/// Bytes of one I/O.
const BS: usize = 4096;
/// How often run delay is read, so that it can be told whose a gap is.
const DELAY_EVERY: Duration = Duration::from_millis(10);
/// A gap above this is looked at.
const GAP: Duration = Duration::from_millis(2);

/// The load.
#[derive(Debug)]
pub struct Load {
    idle: Vec<(u64, IoBuf)>,
    random: Rng,
    /// I/Os that ended well, in the ticks that are over.
    pub ios_all: u64,
    /// I/Os that did not.
    pub errors: u64,
    ios: u64,
    latency_us: Histogram<u64>,
    last: Instant,
    /// The tick's longest gap, and the longest less run delay.
    gap: Duration,
    gap_less_delay: Duration,
    /// What is known of the tick's longest gap less run delay, where one was looked at.
    longest: Option<Gap>,
    delays: Delays,
    /// Segments sent again when run delay was last read.
    retransmits: u64,
    busy: Busy,
    next_delay: Instant,
    /// When the tick is over.
    pub next_tick: Instant,
}

/// What the host was busy with, at longest, since the last I/O ended.
#[derive(Clone, Copy, Debug, Default)]
struct Busy {
    turn: Duration,
    between: Duration,
}

/// A gap, and what went on meanwhile: since run delay was read last before it, at most 10 ms.
#[derive(Clone, Debug)]
struct Gap {
    end: Instant,
    length: Duration,
    /// Less run delay of the host and the target.
    less_delay: Duration,
    delayed: Delayed,
    busy: Busy,
    retransmits: u64,
}

impl Gap {
    fn report(&self) -> Value {
        let micros = |d: Duration| d.as_micros() as u64;
        let softirqs: Vec<_> = self.delayed.softirqs.iter().map(|d| micros(*d)).collect();
        json!({
            "t_us": us(self.end), "gap_us": micros(self.length),
            "gap_less_run_delay_us": micros(self.less_delay),
            "host_delay_us": micros(self.delayed.host),
            "target_delay_us": micros(self.delayed.target),
            "ksoftirqd_delay_us": softirqs,
            "turn_us": micros(self.busy.turn), "between_turns_us": micros(self.busy.between),
            "retransmits": self.retransmits,
        })
    }
}

impl Load {
    /// `depth` reads under way.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(now: Instant, depth: u16, delays: Delays) -> Result<Self> {
        let depth = usize::from(depth);
        let mut arena = Arena::new(depth * BS);
        let mut idle = Vec::with_capacity(depth);
        for tag in 0..depth {
            idle.push((tag as u64, arena.take(BS).context("I/O memory is used up")?));
        }
        Ok(Self {
            idle,
            random: Rng::new(1),
            ios_all: 0,
            errors: 0,
            ios: 0,
            latency_us: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            last: Instant::ZERO,
            gap: Duration::ZERO,
            gap_less_delay: Duration::ZERO,
            longest: None,
            delays,
            retransmits: 0,
            busy: Busy::default(),
            next_delay: now,
            next_tick: now + TICK,
        })
    }

    /// The next I/O, on a namespace of `blocks` blocks, if one is not under way.
    pub fn next_io(&mut self, blocks: u64) -> Option<Io> {
        let (tag, buf) = self.idle.pop()?;
        let lba = self.random.below(blocks);
        Some(Io { tag, op: IoOp::Read, nsid: 1, lba, blocks: 1, buf: Some(buf), buf_offset: 0 })
    }

    /// An I/O was not taken.
    pub fn refused(&mut self, io: Io) {
        self.idle.push((io.tag, io.buf.expect("it was submitted with one")));
    }

    /// An I/O has ended; `retransmits` counts the segments sent again so far.
    pub fn ended(&mut self, now: Instant, done: IoDone, retransmits: impl FnOnce() -> u64) {
        let buf = done.buf.expect("reads come back with their buffer");
        self.idle.push((done.tag, buf));
        if !done.status.is_success() {
            self.errors += 1;
            return;
        }
        self.ios += 1;
        self.latency_us.saturating_record(now.since(done.submitted).as_micros() as u64);
        if self.last != Instant::ZERO {
            self.gap_until(now, retransmits);
        }
        self.last = now;
        self.busy = Busy::default();
    }

    /// A turn begins, `between` after the one before had ended.
    pub fn turn_begins(&mut self, between: Duration) {
        self.busy.between = self.busy.between.max(between);
    }

    /// A turn took `turn`.
    pub fn turn_ended(&mut self, turn: Duration) {
        self.busy.turn = self.busy.turn.max(turn);
    }

    /// Nothing ended from the last end until `now`.
    fn gap_until(&mut self, now: Instant, retransmits: impl FnOnce() -> u64) {
        let length = now.since(self.last);
        let mut less_delay = length;
        if length >= GAP {
            let delayed = self.delays.since_mark();
            less_delay = length.saturating_sub(delayed.host + delayed.target);
            if self.longest.as_ref().is_none_or(|longest| less_delay > longest.less_delay) {
                let retransmits = retransmits().saturating_sub(self.retransmits);
                let (end, busy) = (now, self.busy);
                self.longest = Some(Gap { end, length, less_delay, delayed, busy, retransmits });
            }
        }
        self.gap = self.gap.max(length);
        self.gap_less_delay = self.gap_less_delay.max(less_delay);
    }

    /// Reads run delay now and then, and closes a tick when it is over. `clock` is read after
    /// that, not at the turn's begin: where the turn itself was held up, after its I/O ended, a
    /// gap has begun whose delay has already been counted.
    pub fn tick(
        &mut self,
        now: Instant,
        clock: impl Fn() -> Instant,
        retransmits: impl Fn() -> u64,
    ) -> Option<Value> {
        if now >= self.next_delay && now.since(self.last) < GAP {
            // Only between two ends that are close: what a gap lost is not to be split.
            let sent_again = retransmits();
            self.delays.mark();
            if clock().since(self.last) < GAP {
                self.retransmits = sent_again;
                self.next_delay = now + DELAY_EVERY;
            } else {
                self.delays.unmark();
            }
        }
        if now < self.next_tick {
            return None;
        }
        if self.last != Instant::ZERO {
            self.gap_until(now, retransmits);
        }
        let line = json!({
            "event": "tick", "t_us": us(now), "ios": self.ios,
            "p99_us": self.latency_us.value_at_quantile(0.99),
            "gap_us": self.gap.as_micros() as u64,
            "gap_less_run_delay_us": self.gap_less_delay.as_micros() as u64,
            "gap": self.longest.take().map(|gap| gap.report()),
        });
        self.ios_all += self.ios;
        self.ios = 0;
        self.latency_us.reset();
        (self.gap, self.gap_less_delay) = (Duration::ZERO, Duration::ZERO);
        self.next_tick = now + TICK;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use moorline_nvme::host::CtrlId;
    use moorline_nvme::spec::Status;

    use super::*;

    fn at(us: u64) -> Instant {
        Instant::from_nanos(us * 1000)
    }

    /// A read that ends.
    fn end(load: &mut Load, us: u64) {
        let io = load.next_io(8).expect("one at a time");
        let (ctrl, submitted) = (CtrlId { index: 0, generation: 0 }, at(us - 20));
        let (tag, status) = (io.tag, Status::SUCCESS);
        let done = IoDone { ctrl, qpair: 0, tag, status, buf: io.buf, submitted };
        load.ended(at(us), done, || 2);
    }

    /// Reads that end at these microseconds, each with the length of its turn; then the tick.
    fn play(ends: &[(u64, u64)]) -> Value {
        let mut load = Load::new(at(1), 1, Delays::default()).unwrap();
        for &(us, turn) in ends {
            load.turn_begins(Duration::from_micros(3));
            end(&mut load, us);
            load.turn_ended(Duration::from_micros(turn));
            assert!(load.tick(at(us), || at(us), || 0).is_none());
        }
        let over = load.next_tick;
        load.tick(over, || over, || 0).expect("it is over")
    }

    #[test]
    fn run_delay_of_a_turn_that_was_held_up_counts_for_the_gap_that_it_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let waited = |us: u64| std::fs::write(file.path(), format!("1 {us}000 1\n")).unwrap();
        waited(0);
        let delays = Delays::of(file.path().to_str().unwrap(), "", &[]);
        let mut load = Load::new(at(1), 1, delays).unwrap();
        end(&mut load, 20_000);
        // Only now, behind the end, others have the CPU for 30 ms.
        waited(30_000);
        assert!(load.tick(at(20_000), || at(50_010), || 0).is_none());
        end(&mut load, 50_020);
        assert_eq!(load.gap_less_delay, Duration::from_micros(20));
        assert!(load.tick(at(50_020), || at(50_030), || 0).is_none());
        end(&mut load, 53_000);
        assert_eq!(load.gap_less_delay, Duration::from_micros(2980), "it is marked now");
    }

    #[test]
    fn the_longest_gap_is_told_with_what_went_on_in_it() {
        let mut ends = vec![(100, 10), (200, 500), (9200, 10)];
        ends.extend((10..=249).map(|ms| (ms * 1000 + 500, 700)));
        let tick = play(&ends);
        assert_eq!((&tick["ios"], &tick["gap_us"]), (&json!(243), &json!(9000)));
        let longest = &tick["gap"];
        assert_eq!(longest["gap_less_run_delay_us"], 9000);
        assert_eq!((&longest["turn_us"], &longest["between_turns_us"]), (&json!(500), &json!(3)));
        assert_eq!(longest["retransmits"], 2);
    }

    #[test]
    fn a_gap_that_has_not_ended_when_the_tick_does_counts() {
        assert_eq!(play(&[(100, 10)])["gap"]["gap_us"], 249_901);
    }

    #[test]
    fn short_gaps_are_not_looked_at() {
        let ends: Vec<_> = (1..=250).map(|ms| (ms * 1000 - 500, 10)).collect();
        let tick = play(&ends);
        assert_eq!((&tick["gap"], &tick["gap_us"]), (&Value::Null, &json!(1000)));
    }
}
