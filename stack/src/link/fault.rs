//! Faults on demand: a wrapper around any link that ill-treats frames, mostly those it receives.
//!
//! Wrapping both ends covers both directions; what must not leave ([`Faults::blackhole_out`],
//! [`Faults::no_neighbour`]) is lost on the way out. Everything is drawn from a seed and the order
//! of frames, so a failure can be repeated. Frames held back live in memory of their own, bounded;
//! when that is full the frame is lost and counted. A [`FaultsHandle`] changes the faults of a link
//! that somebody else owns by now.

mod outgoing;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use super::{Link, LinkEvent, LinkStats, LinkTx};
use crate::Instant;
use crate::eth::{Frame, Packet};
use crate::rng::Rng;
use crate::time::earliest;

pub use outgoing::FaultyTx;

/// Frames held back at once, by default.
pub const HELD_FRAMES_MAX: usize = 1024;

/// Neighbour Discovery's message types, RFC 4861 §4.
const ND: std::ops::RangeInclusive<u8> = 133..=137;

/// What to do to frames, those received where nothing else is said. Probabilities are 0 to 1,
/// drawn for each frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Only TCP segments of this port of ours; everything else passes.
    pub port: Option<u16>,
    /// Lose everything: a dead peer, seen from here.
    pub blackhole: bool,
    /// Lose everything that is sent.
    pub blackhole_out: bool,
    /// Lose ARP and ND in both directions: a neighbour that nobody finds.
    pub no_neighbour: bool,
    /// Lose SYNs that open a connection to us.
    pub swallow_syn: f64,
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
    /// Lost while `blackhole` was on, or `blackhole_out`.
    pub blackholed: u64,
    /// Lost by `no_neighbour`.
    pub neighbours: u64,
    /// Lost by `swallow_syn`.
    pub syns: u64,
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

impl FaultCounts {
    /// How often any fault was met.
    pub fn total(&self) -> u64 {
        let lost = self.blackholed + self.neighbours + self.syns + self.dropped;
        lost + self.corrupted + self.duplicated + self.reordered + self.delayed
    }
}

/// Faults of a link, for who does not own it: they add to the link's own, and can be changed
/// whenever the link is not at work.
#[derive(Clone, Debug, Default)]
pub struct FaultsHandle(Rc<RefCell<Vec<(u64, Fate)>>>);

impl FaultsHandle {
    /// Adds faults by a name of the caller's, drawn from `seed`.
    pub fn add(&self, name: u64, seed: u64, faults: Faults) {
        self.0.borrow_mut().push((name, Fate::new(seed, faults)));
    }

    /// Removes what was added by that name.
    pub fn remove(&self, name: u64) {
        self.0.borrow_mut().retain(|&(other, _)| other != name);
    }

    /// Frames that met each of the faults of that name so far.
    pub fn counts(&self, name: u64) -> FaultCounts {
        let fates = self.0.borrow();
        let found = fates.iter().find(|&&(other, _)| other == name);
        found.map(|(_, fate)| fate.counts).unwrap_or_default()
    }
}

/// A link whose frames meet [`Faults`]. What is sent is copied once more than without it.
#[derive(Debug)]
pub struct Faulty<L> {
    inner: L,
    fate: Fate,
    shared: FaultsHandle,
    held: Held,
    tx: FaultyTx,
    /// For frames whose bits are flipped.
    scratch: Vec<u8>,
}

/// Decides, and counts.
#[derive(Debug)]
struct Fate {
    faults: Faults,
    rng: Rng,
    counts: FaultCounts,
    /// The direction is stopped until then.
    stopped_until: Instant,
}

/// What faults look at in a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    /// Our port, of a TCP segment.
    port: Option<u16>,
    /// It opens a connection.
    syn: bool,
    /// ARP or ND.
    neighbour: bool,
}

/// What becomes of a received frame.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    lost: bool,
    copies: u32,
    /// The bit to be flipped.
    flip: Option<usize>,
    /// When it is let go.
    at: Instant,
}

/// Frames held back, in the order in which they are let go.
#[derive(Debug)]
struct Held {
    frames: VecDeque<(Instant, Vec<u8>)>,
    free: Vec<Vec<u8>>,
    overflowed: u64,
}

impl<L: Link> Faulty<L> {
    /// Wraps `inner`; nothing happens until [`Faulty::faults_mut`] says so.
    pub fn new(mut inner: L, seed: u64) -> Self {
        let frame_bytes_max = inner.mtu() + 18;
        let buffer = || Vec::with_capacity(frame_bytes_max);
        let room = inner.tx().room();
        Self {
            inner,
            fate: Fate::new(seed, Faults::default()),
            shared: FaultsHandle::default(),
            held: Held {
                frames: VecDeque::with_capacity(HELD_FRAMES_MAX),
                free: (0..HELD_FRAMES_MAX).map(|_| buffer()).collect(),
                overflowed: 0,
            },
            tx: FaultyTx::new(room, frame_bytes_max),
            scratch: buffer(),
        }
    }

    /// Wraps `inner` with faults from the start.
    pub fn with(inner: L, seed: u64, faults: Faults) -> Self {
        let mut link = Self::new(inner, seed);
        link.fate.faults = faults;
        link
    }

    /// Takes the faults of a handle as well, from the first frame on.
    #[must_use]
    pub fn sharing(mut self, handle: FaultsHandle) -> Self {
        self.shared = handle;
        self
    }

    /// The faults in force, to be changed at any time.
    pub fn faults_mut(&mut self) -> &mut Faults {
        &mut self.fate.faults
    }

    /// More faults, from outside, now and later.
    pub fn handle(&self) -> FaultsHandle {
        self.shared.clone()
    }

    /// Frames that met each of the link's own faults so far, and all that had no room to be held.
    pub fn counts(&self) -> FaultCounts {
        FaultCounts { overflowed: self.held.overflowed, ..self.fate.counts }
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

impl Kind {
    /// Of a frame that comes in, or goes out: then the sender's port is ours.
    fn of(frame: &[u8], is_outgoing: bool) -> Self {
        let Ok(frame) = Frame::parse(frame) else { return Self::default() };
        match frame.packet {
            Packet::Arp(_) => Self { neighbour: true, ..Self::default() },
            Packet::Icmp(icmp) => {
                let neighbour = icmp.dst.is_ipv6() && ND.contains(&icmp.message[0]);
                Self { neighbour, ..Self::default() }
            }
            Packet::Tcp(segment, _) => {
                let (tuple, flags) = (segment.tuple, segment.flags);
                let ours = if is_outgoing { tuple.remote } else { tuple.local };
                Self { port: Some(ours.port()), syn: flags.syn() && !flags.ack(), neighbour: false }
            }
            Packet::Other => Self::default(),
        }
    }
}

impl Fate {
    fn new(seed: u64, faults: Faults) -> Self {
        let (counts, stopped_until) = (FaultCounts::default(), Instant::ZERO);
        Self { faults, rng: Rng::new(seed), counts, stopped_until }
    }

    fn concerns(&self, kind: Kind) -> bool {
        self.faults.port.is_none() || self.faults.port == kind.port
    }

    /// Whether a frame that goes out is lost.
    fn stops(&mut self, kind: Kind) -> bool {
        if !self.concerns(kind) {
            return false;
        }
        let neighbour = self.faults.no_neighbour && kind.neighbour;
        let lost = self.faults.blackhole_out;
        self.counts.blackholed += u64::from(lost);
        self.counts.neighbours += u64::from(neighbour && !lost);
        lost || neighbour
    }

    /// Whether a frame that comes in is lost, whatever is drawn.
    fn swallows(&mut self, kind: Kind) -> bool {
        let count = if self.faults.blackhole {
            &mut self.counts.blackholed
        } else if self.faults.no_neighbour && kind.neighbour {
            &mut self.counts.neighbours
        } else if kind.syn
            && self.faults.swallow_syn > 0.0
            && self.rng.chance(self.faults.swallow_syn)
        {
            &mut self.counts.syns
        } else {
            return false;
        };
        *count += 1;
        true
    }

    /// Adds what happens here to what becomes of a received frame.
    fn meet(&mut self, now: Instant, kind: Kind, frame_bytes: usize, verdict: &mut Verdict) {
        if verdict.lost || !self.concerns(kind) {
            return;
        }
        let Faults { drop, corrupt, duplicate, reorder, delay, .. } = self.faults;
        // Always the same number of draws, so that one fault's rate does not move another's.
        let [drop, corrupt, duplicate, reorder, delay] =
            [drop, corrupt, duplicate, reorder, delay].map(|p| self.rng.chance(p));
        let bit = self.rng.below(frame_bytes as u64 * 8) as usize;
        if self.swallows(kind) {
            verdict.lost = true;
            return;
        }
        if drop {
            self.counts.dropped += 1;
            verdict.lost = true;
            return;
        }
        if corrupt && frame_bytes > 0 {
            verdict.flip = Some(bit);
            self.counts.corrupted += 1;
        }
        if delay {
            self.stopped_until = self.stopped_until.max(now + self.faults.delay_by);
            self.counts.delayed += 1;
        }
        self.counts.duplicated += u64::from(duplicate);
        self.counts.reordered += u64::from(reorder);
        verdict.copies += u32::from(duplicate);
        verdict.at = verdict.at.max(self.stopped_until);
        if reorder {
            verdict.at = verdict.at.max(now) + self.faults.reorder_by;
        }
    }
}

impl Held {
    fn push(&mut self, at: Instant, frame: &[u8]) {
        let Some(mut buffer) = self.free.pop() else {
            self.overflowed += 1;
            return;
        };
        buffer.clear();
        buffer.extend_from_slice(frame);
        let place = self.frames.partition_point(|&(other, _)| other <= at);
        self.frames.insert(place, (at, buffer));
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
    type Tx = FaultyTx;

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
        let Self { inner, fate, shared, held, tx, scratch } = self;
        tx.look(inner.tx().room());
        let mut received = 0;
        while received < budget {
            let Some(buffer) = held.pop_due(now) else { break };
            each(&buffer, tx);
            held.free.push(buffer);
            received += 1;
        }
        let mut others = shared.0.borrow_mut();
        received
            + inner.receive(now, budget - received, &mut |frame, _| {
                let kind = Kind::of(frame, false);
                let mut verdict = Verdict { lost: false, copies: 1, flip: None, at: Instant::ZERO };
                fate.meet(now, kind, frame.len(), &mut verdict);
                for (_, fate) in others.iter_mut() {
                    fate.meet(now, kind, frame.len(), &mut verdict);
                }
                if verdict.lost {
                    return;
                }
                let mut frame = frame;
                if let Some(bit) = verdict.flip {
                    scratch.clear();
                    scratch.extend_from_slice(frame);
                    scratch[bit / 8] ^= 1 << (bit % 8);
                    frame = scratch;
                }
                for _ in 0..verdict.copies {
                    match verdict.at <= now {
                        true => each(frame, tx),
                        false => held.push(verdict.at, frame),
                    }
                }
            })
    }

    fn tx(&mut self) -> &mut Self::Tx {
        self.tx.look(self.inner.tx().room());
        &mut self.tx
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        let Self { inner, fate, shared, tx, .. } = self;
        let mut others = shared.0.borrow_mut();
        tx.leave(inner.tx(), |frame| {
            let kind = Kind::of(frame, true);
            let lost = fate.stops(kind);
            others.iter_mut().fold(lost, |lost, (_, fate)| lost || fate.stops(kind))
        });
        drop(others);
        self.inner.flush(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        earliest(self.inner.poll_timeout(), self.held.next())
    }

    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.inner.wait(earliest(until, self.held.next()), also)
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.inner.poll_event()
    }

    fn stats(&self) -> LinkStats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
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

    /// A frame of ARP, and a TCP segment to or from port 4420 with these flags.
    fn arp() -> Vec<u8> {
        let mut frame = vec![0xff; 14];
        frame[12..].copy_from_slice(&[8, 6]);
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame.resize(60, 0);
        frame
    }

    fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 14];
        frame[12..].copy_from_slice(&[8, 0]);
        let mut ip = vec![0; 40];
        (ip[0], ip[3], ip[9]) = (0x45, 40, 6);
        ip[20..22].copy_from_slice(&source.to_be_bytes());
        ip[22..24].copy_from_slice(&destination.to_be_bytes());
        (ip[32], ip[33]) = (5 << 4, flags);
        frame.extend_from_slice(&ip);
        frame
    }

    /// Which of `frames` get through from `a` to `b`, whose faults these are, and which back.
    fn through(faults: Faults, frames: &[Vec<u8>]) -> [Vec<bool>; 2] {
        let (a, b) = SimLink::pair(&WireOptions::default());
        let (mut a, mut b) = (Faulty::new(a, 1), Faulty::new(b, 1));
        b.handle().add(7, 1, faults);
        let pass = |from: &mut Faulty<SimLink>, to: &mut Faulty<SimLink>, frame: &[u8]| {
            from.tx().transmit(frame.len(), |out| out.copy_from_slice(frame));
            from.flush(us(0)).unwrap();
            let mut seen = false;
            to.receive(us(100), 8, &mut |got, _| seen = got == frame);
            seen
        };
        let there = frames.iter().map(|frame| pass(&mut a, &mut b, frame)).collect();
        let back = frames.iter().map(|frame| pass(&mut b, &mut a, frame)).collect();
        let lost = [&there, &back].into_iter().flatten().filter(|&&seen: &&bool| !seen).count();
        assert_eq!(b.handle().counts(7).total(), lost as u64);
        b.handle().remove(7);
        assert!(frames.iter().all(|frame| pass(&mut a, &mut b, frame)), "healed");
        [there, back]
    }

    const SYN: u8 = 2;
    const ACK: u8 = 16;

    #[test]
    fn what_is_lost_depends_on_what_it_is_and_where_it_goes() {
        let to = |port| tcp(50_000, port, SYN);
        let frames = [arp(), to(4420), to(8009), tcp(50_000, 4420, SYN | ACK), tcp(4420, 5, ACK)];
        let none = Faults::default();
        let check = |faults: Faults, there: [u8; 5], back: [u8; 5]| {
            let seen = through(faults.clone(), &frames)
                .map(|seen| seen.into_iter().map(u8::from).collect::<Vec<_>>());
            assert_eq!(seen, [there.to_vec(), back.to_vec()], "{faults:?}");
        };
        check(Faults { no_neighbour: true, ..none.clone() }, [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]);
        check(Faults { swallow_syn: 1.0, ..none.clone() }, [1, 0, 0, 1, 1], [1; 5]);
        let port = Some(4420);
        let one = Faults { swallow_syn: 1.0, port, ..none.clone() };
        check(one, [1, 0, 1, 1, 1], [1; 5]);
        check(Faults { blackhole: true, ..none.clone() }, [0; 5], [1; 5]);
        check(Faults { blackhole: true, port, ..none.clone() }, [1, 0, 1, 0, 1], [1; 5]);
        check(Faults { blackhole_out: true, ..none.clone() }, [1; 5], [0; 5]);
        check(Faults { blackhole_out: true, port, ..none }, [1; 5], [1, 1, 1, 1, 0]);
    }

    #[test]
    fn there_is_no_more_room_than_the_link_inside_has() {
        let options = WireOptions { ring_frames: 3, ..WireOptions::default() };
        let (a, _b) = SimLink::pair(&options);
        let mut a = Faulty::new(a, 1);
        for left in (0..3).rev() {
            a.tx().transmit(60, |frame| frame.fill(0));
            assert_eq!(a.tx().room(), left);
        }
        a.flush(us(0)).unwrap();
        assert_eq!(a.tx().room(), 3);
    }

    #[test]
    fn held_frames_are_bounded() {
        let delay_by = Duration::from_secs(1);
        let (seen, counts) = run(1, 3000, Faults { delay: 1.0, delay_by, ..Faults::default() });
        assert_eq!(seen.len(), HELD_FRAMES_MAX);
        assert_eq!(counts.overflowed, 3000 - HELD_FRAMES_MAX as u64);
    }
}
