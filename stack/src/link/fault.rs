//! Faults on demand: a wrapper around any link that ill-treats the frames it receives.
//!
//! Wrapping the receivers of both ends covers both directions. Everything is drawn from one seed
//! and one order of frames, so a failure can be repeated. Frames held back live in memory of their
//! own, bounded; when that is full the frame is lost and counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{Link, LinkStats};
use crate::Instant;
use crate::rng::Rng;
use crate::time::earliest;

/// Frames held back at once, by default.
pub const HELD_FRAMES_MAX: usize = 1024;

/// What to do to received frames. Probabilities are 0 to 1, drawn for each frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Lose everything: a dead peer, seen from here.
    pub blackhole: bool,
    /// Lose the frame.
    pub drop: f64,
    /// Flip one bit of the frame, anywhere in it.
    pub corrupt: f64,
    /// Deliver the frame, and the same again behind it.
    pub duplicate: f64,
    /// Hold the frame back for `reorder_by`; those behind it overtake.
    pub reorder: f64,
    /// How long.
    pub reorder_by: Duration,
    /// Stop the direction for `delay_by`; those behind wait too, and order is kept.
    pub delay: f64,
    /// How long.
    pub delay_by: Duration,
}

/// Frames that met each fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Lost while `blackhole` was on.
    pub blackholed: u64,
    /// Lost by `drop`.
    pub dropped: u64,
    /// Bits flipped.
    pub corrupted: u64,
    /// Delivered once more.
    pub duplicated: u64,
    /// Overtaken by others.
    pub reordered: u64,
    /// Stops of the direction.
    pub delayed: u64,
    /// Lost because too many frames were held back.
    pub overflowed: u64,
}

/// A link whose received frames meet [`Faults`].
#[derive(Debug)]
pub struct Faulty<L> {
    inner: L,
    fate: Fate,
    held: Held,
}

/// Decides, and counts.
#[derive(Debug)]
struct Fate {
    faults: Faults,
    rng: Rng,
    counts: FaultCounts,
    /// The direction is stopped until then.
    stopped_until: Instant,
    /// For frames whose bits are flipped.
    scratch: Vec<u8>,
}

/// Frames held back, in the order in which they are let go.
#[derive(Debug)]
struct Held {
    frames: VecDeque<(Instant, Vec<u8>)>,
    free: Vec<Vec<u8>>,
}

impl<L: Link> Faulty<L> {
    /// Wraps `inner`; nothing happens until [`Faulty::faults_mut`] says so.
    pub fn new(inner: L, seed: u64) -> Self {
        let frame_bytes_max = inner.mtu() + 18;
        let buffer = || Vec::with_capacity(frame_bytes_max);
        Self {
            inner,
            fate: Fate {
                faults: Faults::default(),
                rng: Rng::new(seed),
                counts: FaultCounts::default(),
                stopped_until: Instant::ZERO,
                scratch: buffer(),
            },
            held: Held {
                frames: VecDeque::with_capacity(HELD_FRAMES_MAX),
                free: (0..HELD_FRAMES_MAX).map(|_| buffer()).collect(),
            },
        }
    }

    /// Wraps `inner` with faults from the start.
    pub fn with(inner: L, seed: u64, faults: Faults) -> Self {
        let mut link = Self::new(inner, seed);
        link.fate.faults = faults;
        link
    }

    /// The faults in force, to be changed at any time.
    pub fn faults_mut(&mut self) -> &mut Faults {
        &mut self.fate.faults
    }

    /// Frames that met each fault so far.
    pub fn counts(&self) -> FaultCounts {
        self.fate.counts
    }

    /// The link inside.
    pub fn inner(&self) -> &L {
        &self.inner
    }

    /// The link inside, for what only it can do.
    pub fn inner_mut(&mut self) -> &mut L {
        &mut self.inner
    }
}

impl Fate {
    /// Calls `each` now, or later by way of `held`, or never.
    fn meet(&mut self, now: Instant, frame: &[u8], held: &mut Held, mut each: impl FnMut(&[u8])) {
        let Faults { drop, corrupt, duplicate, reorder, delay, .. } = self.faults;
        // Always the same number of draws, so that one fault's rate does not move another's.
        let [drop, corrupt, duplicate, reorder, delay] =
            [drop, corrupt, duplicate, reorder, delay].map(|p| self.rng.chance(p));
        let bit = self.rng.below(frame.len() as u64 * 8) as usize;
        if self.faults.blackhole {
            self.counts.blackholed += 1;
            return;
        }
        if drop {
            self.counts.dropped += 1;
            return;
        }
        let mut frame = frame;
        if corrupt && !frame.is_empty() {
            self.scratch.clear();
            self.scratch.extend_from_slice(frame);
            self.scratch[bit / 8] ^= 1 << (bit % 8);
            frame = &self.scratch;
            self.counts.corrupted += 1;
        }
        if delay {
            self.stopped_until = self.stopped_until.max(now + self.faults.delay_by);
            self.counts.delayed += 1;
        }
        self.counts.duplicated += u64::from(duplicate);
        self.counts.reordered += u64::from(reorder);
        let mut at = self.stopped_until;
        if reorder {
            at = at.max(now) + self.faults.reorder_by;
        }
        for _ in 0..1 + usize::from(duplicate) {
            if at <= now {
                each(frame);
            } else if !held.push(at, frame) {
                self.counts.overflowed += 1;
            }
        }
    }
}

impl Held {
    fn push(&mut self, at: Instant, frame: &[u8]) -> bool {
        let Some(mut buffer) = self.free.pop() else { return false };
        buffer.clear();
        buffer.extend_from_slice(frame);
        let place = self.frames.partition_point(|&(other, _)| other <= at);
        self.frames.insert(place, (at, buffer));
        true
    }

    fn next(&self) -> Option<Instant> {
        self.frames.front().map(|&(at, _)| at)
    }

    fn pop_due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.frames.pop_front().map(|(_, buffer)| buffer)
    }
}

impl<L: Link> Link for Faulty<L> {
    type Tx = L::Tx;

    fn mtu(&self) -> usize {
        self.inner.mtu()
    }

    fn linear_frame_max(&self) -> usize {
        self.inner.linear_frame_max()
    }

    fn mac(&self) -> [u8; 6] {
        self.inner.mac()
    }

    /// Counts what the link inside gave, lost frames too: the budget bounds work, not luck.
    fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        each: &mut impl FnMut(&[u8], &mut Self::Tx),
    ) -> usize {
        let mut received = 0;
        while received < budget {
            let Some(buffer) = self.held.pop_due(now) else { break };
            each(&buffer, self.inner.tx());
            self.held.free.push(buffer);
            received += 1;
        }
        let Self { inner, fate, held } = self;
        received
            + inner.receive(now, budget - received, &mut |frame, tx| {
                fate.meet(now, frame, held, |frame| each(frame, tx));
            })
    }

    fn tx(&mut self) -> &mut Self::Tx {
        self.inner.tx()
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        self.inner.flush(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        earliest(self.inner.poll_timeout(), self.held.next())
    }

    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.inner.wait(earliest(until, self.held.next()), also)
    }

    fn stats(&self) -> LinkStats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::super::LinkTx;
    use super::super::sim::{SimLink, WireOptions};
    use super::*;

    fn us(n: u64) -> Instant {
        Instant::ZERO + Duration::from_micros(n)
    }

    /// Sends `count` numbered frames 1 µs apart; returns (arrival, number) and the counts.
    fn run(seed: u64, count: u64, faults: Faults) -> (Vec<(Instant, Vec<u8>)>, FaultCounts) {
        let (mut a, b) = SimLink::pair(&WireOptions::default());
        let mut b = Faulty::with(b, seed, faults);
        let mut seen = Vec::new();
        let mut drain = |b: &mut Faulty<SimLink>, now| {
            b.receive(now, 64, &mut |frame, _| seen.push((now, frame.to_vec())));
        };
        for n in 0..count {
            a.tx().transmit(8, |frame| frame.copy_from_slice(&n.to_be_bytes()));
            a.flush(us(n)).unwrap();
            drain(&mut b, us(n));
        }
        while let Some(at) = b.poll_timeout() {
            drain(&mut b, at);
        }
        let counts = b.counts();
        (seen, counts)
    }

    fn number(frame: &[u8]) -> u64 {
        u64::from_be_bytes(frame.try_into().unwrap())
    }

    fn everything() -> Faults {
        Faults {
            drop: 0.1,
            corrupt: 0.1,
            duplicate: 0.1,
            reorder: 0.1,
            reorder_by: Duration::from_micros(5),
            delay: 0.01,
            delay_by: Duration::from_micros(50),
            ..Faults::default()
        }
    }

    #[test]
    fn same_seed_gives_the_same_run() {
        assert_eq!(run(7, 2000, everything()), run(7, 2000, everything()));
        assert_ne!(run(7, 2000, everything()).0, run(8, 2000, everything()).0);
    }

    #[test]
    fn every_frame_is_accounted_for() {
        let (seen, counts) = run(3, 10_000, everything());
        let expected = 10_000 - counts.dropped + counts.duplicated - counts.overflowed;
        assert_eq!(seen.len() as u64, expected);
    }

    #[test]
    fn rates_are_those_asked_for() {
        let (_, counts) = run(3, 10_000, everything());
        for (count, of) in [
            (counts.dropped, 10_000),
            (counts.corrupted, 9_000),
            (counts.duplicated, 9_000),
            (counts.reordered, 9_000),
        ] {
            assert!((of / 10 * 8 / 10..of / 10 * 12 / 10).contains(&count), "{counts:?}");
        }
        assert!((60..120).contains(&counts.delayed), "{counts:?}");
    }

    #[test]
    fn delay_keeps_order_and_reorder_does_not() {
        let delay_by = Duration::from_micros(50);
        let (seen, counts) = run(1, 1000, Faults { delay: 0.05, delay_by, ..Faults::default() });
        assert!(counts.delayed > 0);
        assert!(seen.iter().map(|(_, frame)| number(frame)).eq(0..1000));

        let reorder_by = Duration::from_micros(5);
        let faults = Faults { reorder: 0.05, reorder_by, ..Faults::default() };
        let (seen, counts) = run(1, 1000, faults);
        assert!(counts.reordered > 0);
        assert!(!seen.iter().map(|(_, frame)| number(frame)).is_sorted());
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn corruption_flips_exactly_one_bit() {
        let (seen, _) = run(1, 100, Faults { corrupt: 1.0, ..Faults::default() });
        for (n, (_, frame)) in seen.iter().enumerate() {
            assert_eq!((number(frame) ^ n as u64).count_ones(), 1);
        }
    }

    #[test]
    fn blackhole_can_be_healed() {
        let (mut a, b) = SimLink::pair(&WireOptions::default());
        let mut b = Faulty::new(b, 0);
        b.faults_mut().blackhole = true;
        for healed in [false, true] {
            b.faults_mut().blackhole = !healed;
            a.tx().transmit(1, |frame| frame.fill(1));
            a.flush(us(0)).unwrap();
            let mut seen = 0;
            assert_eq!(b.receive(us(10), 8, &mut |_, _| seen += 1), 1);
            assert_eq!(seen, usize::from(healed));
        }
        assert_eq!(b.counts().blackholed, 1);
    }

    #[test]
    fn held_frames_are_bounded() {
        let delay_by = Duration::from_secs(1);
        let (seen, counts) = run(1, 3000, Faults { delay: 1.0, delay_by, ..Faults::default() });
        assert_eq!(seen.len(), HELD_FRAMES_MAX);
        assert_eq!(counts.overflowed, 3000 - HELD_FRAMES_MAX as u64);
    }
}
