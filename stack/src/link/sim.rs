//! A simulated wire between two links, in virtual time.
//!
//! A frame handed over at [`Link::flush`] takes its turn on the wire (bandwidth), travels (delay
//! and, if asked for, jitter), and is delivered by the first [`Link::receive`] at or after its
//! arrival. Order is kept. A wire holds a bounded number of frames; what does not fit is lost and
//! counted by its receiver. The same options and the same calls give the same frames.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use super::{Link, LinkEvent, LinkStats, LinkTx};
use crate::Instant;
use crate::rng::Rng;

/// Bytes of Ethernet header and one 802.1Q tag.
const L2_BYTES_MAX: usize = 18;

/// What a wire is like, the same in both directions.
#[derive(Clone, Debug)]
pub struct WireOptions {
    /// The largest IP packet, bytes.
    pub mtu: usize,
    /// Travel time of a frame.
    pub delay: Duration,
    /// Up to this much more, at random, per frame. Order is kept.
    pub jitter: Duration,
    /// Bits per second; 0 for no limit.
    pub bits_per_s: u64,
    /// Frames that one direction can hold; more are lost.
    pub wire_frames: usize,
    /// Frames that a sender can queue between two flushes.
    pub ring_frames: usize,
    /// Seeds the jitter.
    pub seed: u64,
}

impl Default for WireOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            delay: Duration::from_micros(10),
            jitter: Duration::ZERO,
            bits_per_s: 0,
            wire_frames: 4096,
            ring_frames: 256,
            seed: 0,
        }
    }
}

/// One direction: frames on their way, oldest first.
#[derive(Debug)]
struct Direction {
    flying: VecDeque<(Instant, Vec<u8>)>,
    /// When the last frame handed over has left the sender.
    busy_until: Instant,
    lost: u64,
}

#[derive(Debug)]
struct Wire {
    options: WireOptions,
    directions: [Direction; 2],
    rng: Rng,
    /// Buffers not in use, each of room for a whole frame.
    free: Vec<Vec<u8>>,
}

impl Wire {
    fn buffer(&mut self) -> Vec<u8> {
        let capacity = self.options.mtu + L2_BYTES_MAX;
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    fn carry(&mut self, now: Instant, direction: usize, frame: Vec<u8>) {
        let jitter = self.rng.duration(self.options.jitter);
        let way = &mut self.directions[direction];
        if way.flying.len() >= self.options.wire_frames {
            way.lost += 1;
            self.free.push(frame);
            return;
        }
        let bits = frame.len() as u64 * 8;
        let on_wire = match self.options.bits_per_s {
            0 => Duration::ZERO,
            rate => Duration::from_nanos(bits.saturating_mul(1_000_000_000).div_ceil(rate)),
        };
        way.busy_until = way.busy_until.max(now) + on_wire;
        let last = way.flying.back().map_or(Instant::ZERO, |&(at, _)| at);
        let at = (way.busy_until + self.options.delay + jitter).max(last);
        way.flying.push_back((at, frame));
    }
}

/// One end of a simulated wire.
#[derive(Debug)]
pub struct SimLink {
    /// 0 or 1; also the direction that this end sends in.
    end: usize,
    mac: [u8; 6],
    mtu: usize,
    wire: Rc<RefCell<Wire>>,
    tx: SimTx,
    stats: LinkStats,
    is_up: bool,
    event: Option<LinkEvent>,
}

/// The sending half of a [`SimLink`].
#[derive(Debug)]
pub struct SimTx {
    wire: Rc<RefCell<Wire>>,
    queued: VecDeque<Vec<u8>>,
    ring_frames: usize,
    frame_bytes_max: usize,
    frames: u64,
    bytes: u64,
}

impl SimLink {
    /// The two ends of a new wire. Their addresses end in 1 and 2.
    pub fn pair(options: &WireOptions) -> (Self, Self) {
        let direction = || Direction {
            flying: VecDeque::with_capacity(options.wire_frames),
            busy_until: Instant::ZERO,
            lost: 0,
        };
        let wire = Rc::new(RefCell::new(Wire {
            options: options.clone(),
            directions: [direction(), direction()],
            rng: Rng::new(options.seed),
            free: Vec::with_capacity(2 * (options.wire_frames + options.ring_frames)),
        }));
        let end = |end: usize| Self {
            end,
            mac: [2, 0, 0, 0, 0, end as u8 + 1],
            mtu: options.mtu,
            wire: wire.clone(),
            tx: SimTx {
                wire: wire.clone(),
                queued: VecDeque::with_capacity(options.ring_frames),
                ring_frames: options.ring_frames,
                frame_bytes_max: options.mtu + L2_BYTES_MAX,
                frames: 0,
                bytes: 0,
            },
            stats: LinkStats::default(),
            is_up: true,
            event: None,
        };
        (end(0), end(1))
    }

    /// The device goes away: what is sent or arrives meanwhile is lost.
    pub fn goes_away(&mut self) {
        self.is_up = false;
        self.event = Some(LinkEvent::Down);
    }

    /// The device comes back, as one with the hardware address `mac`.
    pub fn comes_back(&mut self, mac: [u8; 6]) {
        self.mac = mac;
        self.is_up = true;
        self.event = Some(LinkEvent::Up);
    }

    /// Takes the next frame that has arrived by `now` off the wire.
    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        let mut wire = self.wire.borrow_mut();
        let flying = &mut wire.directions[1 - self.end].flying;
        if flying.front().is_none_or(|&(at, _)| at > now) {
            return None;
        }
        flying.pop_front().map(|(_, frame)| frame)
    }
}

impl LinkTx for SimTx {
    fn room(&self) -> usize {
        self.ring_frames - self.queued.len()
    }

    fn transmit<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(self.room() > 0, "transmit without room");
        assert!(len <= self.frame_bytes_max, "frame of {len} bytes on this MTU");
        let mut frame = self.wire.borrow_mut().buffer();
        frame.clear();
        frame.resize(len, 0);
        let result = fill(&mut frame);
        self.queued.push_back(frame);
        self.frames += 1;
        self.bytes += len as u64;
        result
    }
}

impl Link for SimLink {
    type Tx = SimTx;

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        each: &mut impl FnMut(&[u8], &mut Self::Tx),
    ) -> usize {
        for received in 0..budget {
            let Some(frame) = self.arrived(now) else { return received };
            if !self.is_up {
                self.wire.borrow_mut().free.push(frame);
                continue;
            }
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += frame.len() as u64;
            each(&frame, &mut self.tx);
            self.wire.borrow_mut().free.push(frame);
        }
        budget
    }

    fn tx(&mut self) -> &mut Self::Tx {
        &mut self.tx
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        let mut wire = self.wire.borrow_mut();
        for frame in self.tx.queued.drain(..) {
            if self.is_up {
                wire.carry(now, self.end, frame);
            } else {
                wire.free.push(frame);
            }
        }
        Ok(())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.wire.borrow().directions[1 - self.end].flying.front().map(|&(at, _)| at)
    }

    fn wait(&mut self, _until: Option<Instant>, _also: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.event.take()
    }

    fn stats(&self) -> LinkStats {
        LinkStats {
            rx_dropped: self.wire.borrow().directions[1 - self.end].lost,
            tx_frames: self.tx.frames,
            tx_bytes: self.tx.bytes,
            ..self.stats
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(link: &mut SimLink, now: Instant, bytes: &[u8]) {
        link.tx().transmit(bytes.len(), |frame| frame.copy_from_slice(bytes));
        link.flush(now).unwrap();
    }

    fn received(link: &mut SimLink, now: Instant) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        link.receive(now, 100, &mut |frame, _| frames.push(frame.to_vec()));
        frames
    }

    fn us(n: u64) -> Instant {
        Instant::ZERO + Duration::from_micros(n)
    }

    #[test]
    fn frame_arrives_after_its_delay_and_not_before() {
        let (mut a, mut b) = SimLink::pair(&WireOptions::default());
        send(&mut a, us(5), b"hello");
        assert_eq!(b.poll_timeout(), Some(us(15)));
        assert!(received(&mut b, us(14)).is_empty());
        assert_eq!(received(&mut b, us(15)), [b"hello"]);
        assert_eq!(b.poll_timeout(), None);
        assert_eq!((a.stats().tx_bytes, b.stats().rx_bytes), (5, 5));
    }

    #[test]
    fn bandwidth_spaces_frames_out() {
        let options = WireOptions { bits_per_s: 8_000_000, ..WireOptions::default() };
        let (mut a, mut b) = SimLink::pair(&options);
        send(&mut a, us(0), &[0; 100]);
        send(&mut a, us(0), &[1; 100]);
        assert!(received(&mut b, us(109)).is_empty());
        assert_eq!(received(&mut b, us(110)), [vec![0; 100]]);
        assert_eq!(b.poll_timeout(), Some(us(210)));
    }

    #[test]
    fn full_wire_loses_and_counts() {
        let options = WireOptions { wire_frames: 2, ..WireOptions::default() };
        let (mut a, mut b) = SimLink::pair(&options);
        for n in 0..3 {
            send(&mut a, us(0), &[n]);
        }
        assert_eq!(received(&mut b, us(10)), [[0], [1]]);
        assert_eq!(b.stats().rx_dropped, 1);
    }

    #[test]
    fn jitter_keeps_order_and_repeats_with_its_seed() {
        let run = |seed| {
            let jitter = Duration::from_micros(100);
            let (mut a, mut b) =
                SimLink::pair(&WireOptions { jitter, seed, ..WireOptions::default() });
            (0..50u8).for_each(|n| send(&mut a, us(u64::from(n)), &[n]));
            let mut seen = Vec::new();
            while let Some(at) = b.poll_timeout() {
                seen.extend(received(&mut b, at).into_iter().map(|frame| (at, frame[0])));
            }
            assert!(seen.iter().map(|&(_, n)| n).eq(0..50));
            seen
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn received_frame_can_be_answered_in_place() {
        let (mut a, mut b) = SimLink::pair(&WireOptions::default());
        send(&mut a, us(0), b"ping");
        b.receive(us(10), 1, &mut |frame, tx| {
            tx.transmit(frame.len(), |reply| reply.copy_from_slice(frame));
        });
        b.flush(us(10)).unwrap();
        assert_eq!(received(&mut a, us(20)), [b"ping"]);
    }
}
