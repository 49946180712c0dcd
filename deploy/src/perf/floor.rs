//! The raw AF_XDP floor: the frames of an I/O, and nothing of what makes them one.
//!
//! A client sends the host's legs of an exchange as frames of the sizes that TCP would cut, and an
//! echo server answers each with as many bytes as its header asks for. No TCP, no PDUs, no copies
//! but the writing of the frames. What moorline adds to this is its own overhead.
//!
//! Frames are IPv4 of the experimental protocol 253 (RFC 3692), with 20 bytes of ours where a TCP
//! header would be. The server keeps nothing of a client but the answers that wait for room.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use moorline_stack::{Instant, Link, LinkTx};
use serde::Serialize;

use super::exchange::{Cut, Exchange, L2_HEADER};
use crate::signals::Stop;

/// Experimental (RFC 3692).
const PROTOCOL: u8 = 253;
/// Where our header starts.
const OURS: usize = L2_HEADER + 20;
/// Bytes of headers in all: as many as TCP's.
const HEADERS: usize = OURS + 20;
/// Frames taken in per turn.
const BUDGET: usize = 64;
/// Bytes under way at once towards either end: what our TCP's window allows.
const WINDOW: usize = 256 << 10;
/// After this long an exchange has lost a frame, and is begun again.
const LOST: Duration = Duration::from_millis(10);
/// How long to go on, on a machine that others use too, until an exchange comes back whole.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers that may wait for room, at the server.
const WAITING_MAX: usize = 1024;
/// Bytes of an answer, at most.
const ANSWER_MAX: usize = 4 << 20;

/// What a floor came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Floor {
    /// Median round trip of the exchange, µs.
    pub p50_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// Exchanges per second.
    pub rate: f64,
    /// Exchanges begun again.
    pub lost: u64,
}

impl Floor {
    /// From round trips in nanoseconds.
    pub fn new(nanos: &Histogram<u64>, measured: Duration, lost: u64) -> Self {
        Self {
            p50_us: nanos.value_at_quantile(0.5) as f64 / 1e3,
            p99_us: nanos.value_at_quantile(0.99) as f64 / 1e3,
            rate: nanos.len() as f64 / measured.as_secs_f64().max(1e-9),
            lost,
        }
    }
}

/// An end's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addr {
    /// Hardware address.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub ip: Ipv4Addr,
}

/// Our header: which exchange a frame belongs to, and what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// The client's slot.
    slot: u16,
    /// Counts the uses of the slot.
    generation: u16,
    /// The leg.
    leg: u8,
    /// The last frame of its leg.
    last: bool,
    /// Bytes that the leg is to be answered with.
    answer: u32,
}

impl Header {
    fn write(self, bytes: &mut [u8]) {
        bytes[0..2].copy_from_slice(&self.slot.to_be_bytes());
        bytes[2..4].copy_from_slice(&self.generation.to_be_bytes());
        bytes[4] = self.leg;
        bytes[5] = u8::from(self.last);
        bytes[6..10].copy_from_slice(&self.answer.to_be_bytes());
    }

    /// That of a frame, and who sent it; `None` if it is not one of ours.
    fn parse(frame: &[u8]) -> Option<(Self, Addr)> {
        let headers = frame.first_chunk::<HEADERS>()?;
        let is_ours = headers[12..15] == [0x08, 0x00, 0x45] && headers[23] == PROTOCOL;
        if !is_ours {
            return None;
        }
        let mac = *headers[6..].first_chunk()?;
        let ip = Ipv4Addr::from(*headers[26..].first_chunk()?);
        let ours = &headers[OURS..];
        let header = Self {
            slot: u16::from_be_bytes([ours[0], ours[1]]),
            generation: u16::from_be_bytes([ours[2], ours[3]]),
            leg: ours[4],
            last: ours[5] != 0,
            answer: u32::from_be_bytes(*ours[6..].first_chunk()?),
        };
        Some((header, Addr { mac, ip }))
    }
}

/// A leg on its way out: what is left of it goes when there is room.
#[derive(Clone, Debug)]
struct Sending {
    cut: Cut,
    header: Header,
    to: Addr,
}

impl Sending {
    /// Queues as many frames as there is room for; true when none is left.
    fn transmit(&mut self, tx: &mut impl LinkTx, from: Addr) -> bool {
        while tx.room() > 0 {
            let Some(len) = self.cut.next() else { return true };
            let mut header = self.header;
            header.last = self.cut.clone().next().is_none();
            tx.transmit(len, |frame| write_frame(frame, from, self.to, header));
        }
        self.cut.clone().next().is_none()
    }
}

fn write_frame(frame: &mut [u8], from: Addr, to: Addr, header: Header) {
    frame[0..6].copy_from_slice(&to.mac);
    frame[6..12].copy_from_slice(&from.mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let length = (frame.len() - L2_HEADER) as u16;
    let ip = &mut frame[L2_HEADER..OURS];
    ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[12..16].copy_from_slice(&from.ip.octets());
    ip[16..20].copy_from_slice(&to.ip.octets());
    let sum = ip.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame[OURS..].fill(0);
    header.write(&mut frame[OURS..]);
}

/// The echo server: call [`Server::turn`] until it is to end.
#[derive(Debug)]
pub struct Server {
    ip: Ipv4Addr,
    waiting: VecDeque<Sending>,
}

impl Server {
    /// One that answers as `ip`.
    pub fn new(ip: Ipv4Addr) -> Self {
        Self { ip, waiting: VecDeque::with_capacity(WAITING_MAX) }
    }

    /// One turn; returns whether anything was received.
    ///
    /// # Errors
    /// The link's.
    pub fn turn<L: Link>(&mut self, link: &mut L, now: Instant) -> Result<bool> {
        let (mac, mtu) = (link.mac(), link.mtu());
        let from = Addr { mac, ip: self.ip };
        let waiting = &mut self.waiting;
        let received = link.receive(now, BUDGET, &mut |frame, tx| {
            let Some((header, to)) = Header::parse(frame) else { return };
            if !header.last || header.answer as usize > ANSWER_MAX {
                return;
            }
            let cut = Cut::new(header.answer as usize, mtu);
            let header = Header { leg: header.leg.wrapping_add(1), answer: 0, ..header };
            let mut sending = Sending { cut, header, to };
            let sent = waiting.is_empty() && sending.transmit(tx, from);
            if !sent && waiting.len() < WAITING_MAX {
                waiting.push_back(sending);
            }
        });
        drain(waiting, link.tx(), from);
        link.flush(now)?;
        Ok(received > 0)
    }

    /// Spins until `stop`.
    ///
    /// # Errors
    /// The link's.
    pub fn serve<L: Link>(mut self, link: &mut L, stop: &Stop) -> Result<()> {
        while !stop.requested() {
            self.turn(link, Instant::monotonic())?;
        }
        Ok(())
    }
}

/// Sends what waits, in order, while there is room.
fn drain(waiting: &mut VecDeque<Sending>, tx: &mut impl LinkTx, from: Addr) {
    while let Some(first) = waiting.front_mut() {
        if !first.transmit(tx, from) {
            return;
        }
        waiting.pop_front();
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u16,
    /// The leg that is awaited.
    leg: u8,
    /// Frames of it that are still to come.
    frames: usize,
    since: Instant,
}

/// The client: `depth` exchanges under way, or as many as the window allows.
#[derive(Debug)]
pub struct Client {
    from: Addr,
    to: Addr,
    mtu: usize,
    legs: Vec<usize>,
    slots: Vec<Slot>,
    waiting: VecDeque<Sending>,
    next_check: Instant,
    nanos: Histogram<u64>,
    lost: u64,
}

impl Client {
    /// One that plays `exchange` with the server at `to`.
    ///
    /// # Errors
    /// For an MTU that holds no header, or a depth of 0.
    pub fn new(
        now: Instant,
        (from, to): (Addr, Addr),
        mtu: usize,
        exchange: &Exchange,
        depth: u16,
    ) -> Result<Self> {
        ensure!(depth > 0 && mtu >= 576, "the floor needs a depth above 0 and an MTU of 576");
        let window = (WINDOW / exchange.leg_max()).max(1);
        let depth = usize::from(depth).min(window);
        let mut this = Self {
            from,
            to,
            mtu,
            legs: exchange.legs().to_vec(),
            slots: vec![Slot { generation: 0, leg: 0, frames: 0, since: now }; depth],
            waiting: VecDeque::with_capacity(depth + 1),
            next_check: now + LOST,
            nanos: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
            lost: 0,
        };
        for slot in 0..depth {
            this.begin(now, slot);
        }
        Ok(this)
    }

    /// Begins an exchange in a slot.
    fn begin(&mut self, now: Instant, index: usize) {
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.since = now;
        self.send_leg(index, 0);
    }

    /// Queues a leg of ours, and awaits the answer.
    fn send_leg(&mut self, index: usize, leg: u8) {
        let answer = self.legs[usize::from(leg) + 1];
        let slot = &mut self.slots[index];
        slot.leg = leg + 1;
        slot.frames = Cut::new(answer, self.mtu).count();
        let header = Header {
            slot: index as u16,
            generation: slot.generation,
            leg,
            last: false,
            answer: answer as u32,
        };
        let cut = Cut::new(self.legs[usize::from(leg)], self.mtu);
        self.waiting.push_back(Sending { cut, header, to: self.to });
    }

    /// One turn: answers in, the next legs out.
    ///
    /// # Errors
    /// The link's.
    pub fn turn<L: Link>(&mut self, link: &mut L, now: Instant) -> Result<()> {
        link.receive(now, BUDGET, &mut |frame, _| self.take(now, frame));
        if now >= self.next_check {
            self.restart_lost(now);
        }
        drain(&mut self.waiting, link.tx(), self.from);
        link.flush(now)?;
        Ok(())
    }

    fn take(&mut self, now: Instant, frame: &[u8]) {
        let Some((header, _)) = Header::parse(frame) else { return };
        let index = usize::from(header.slot);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if (slot.generation, slot.leg) != (header.generation, header.leg) || slot.frames == 0 {
            return; // of an exchange that was given up
        }
        slot.frames -= 1;
        if slot.frames > 0 {
            return;
        }
        let next = slot.leg + 1;
        if usize::from(next) < self.legs.len() {
            return self.send_leg(index, next);
        }
        self.nanos.saturating_record(now.since(slot.since).as_nanos() as u64);
        self.begin(now, index);
    }

    fn restart_lost(&mut self, now: Instant) {
        self.next_check = now + LOST / 4;
        for index in 0..self.slots.len() {
            let queued = self.waiting.iter().any(|s| usize::from(s.header.slot) == index);
            if !queued && now.since(self.slots[index].since) >= LOST {
                self.lost += 1;
                self.begin(now, index);
            }
        }
    }

    /// Turns for a time, and until something was measured; returns how long it was.
    fn play<L: Link>(&mut self, link: &mut L, period: Duration, stop: &Stop) -> Result<Duration> {
        let begin = Instant::monotonic();
        let mut now = begin;
        while !stop.requested() {
            let passed = now.since(begin);
            if passed >= period && (!self.nanos.is_empty() || passed >= PATIENCE) {
                break;
            }
            self.turn(link, now)?;
            now = Instant::monotonic();
        }
        Ok(now.since(begin))
    }

    /// Forgets what was measured so far.
    fn restart_measuring(&mut self) {
        self.nanos.reset();
        self.lost = 0;
    }
}

/// Plays an exchange for a time, after a tenth of it to warm up.
///
/// # Errors
/// When the link fails, or nothing at all comes back.
pub fn run<L: Link>(
    link: &mut L,
    ends: (Addr, Addr),
    exchange: &Exchange,
    depth: u16,
    runtime: Duration,
    stop: &Stop,
) -> Result<Floor> {
    let now = Instant::monotonic();
    let mut client = Client::new(now, ends, link.mtu(), exchange, depth)?;
    client.play(link, runtime / 10, stop)?;
    client.restart_measuring();
    let measured = client.play(link, runtime, stop)?;
    let to = ends.1.ip;
    ensure!(
        !client.nanos.is_empty() || stop.requested(),
        "no {:?} came back whole from the echo server at {to} at depth {depth}: {} lost, link {:?}",
        exchange.legs(),
        client.lost,
        link.stats()
    );
    Ok(Floor::new(&client.nanos, measured, client.lost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_stack::link::sim::{SimLink, WireOptions};

    #[test]
    fn a_frame_says_who_sent_it_and_what_it_wants() {
        let from = Addr { mac: [2, 0, 0, 0, 0, 1], ip: Ipv4Addr::new(10, 99, 0, 11) };
        let to = Addr { mac: [2, 0, 0, 0, 0, 2], ip: Ipv4Addr::new(10, 99, 0, 12) };
        let header = Header { slot: 300, generation: 7, leg: 2, last: true, answer: 4120 };
        let mut frame = vec![0xff; 126];
        write_frame(&mut frame, from, to, header);
        assert_eq!(Header::parse(&frame), Some((header, from)));
        let sum: u32 =
            frame[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "IPv4 header checksum");
        assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 112);
        assert_eq!(Header::parse(&frame[..HEADERS - 1]), None);
        frame[23] = 6;
        assert_eq!(Header::parse(&frame), None);
    }

    const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 11);
    const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 12);

    /// Plays an exchange over a simulated wire of 10 µs each way, turning every microsecond.
    fn play(exchange: &Exchange, depth: u16, mtu: usize, until_us: u64) -> (Client, u64) {
        let (mut near, mut far) = SimLink::pair(&WireOptions { mtu, ..WireOptions::default() });
        let ends =
            (Addr { mac: near.mac(), ip: CLIENT_IP }, Addr { mac: far.mac(), ip: SERVER_IP });
        let mut client = Client::new(Instant::ZERO, ends, mtu, exchange, depth).unwrap();
        let mut server = Server::new(SERVER_IP);
        for us in 0..until_us {
            let now = Instant::from_nanos(us * 1000);
            client.turn(&mut near, now).unwrap();
            server.turn(&mut far, now).unwrap();
        }
        let frames = near.stats().rx_frames + near.stats().tx_frames;
        (client, frames)
    }

    #[test]
    fn an_exchange_is_as_many_frames_as_tcp_would_send() {
        for (exchange, mtu) in [
            (Exchange::of(true, 4096), 1500),
            (Exchange::of(false, 4096), 1500),
            (Exchange::of(true, 4096), 9000),
            (Exchange::of(false, 128 << 10), 9000),
        ] {
            let (client, frames) = play(&exchange, 1, mtu, 10_000);
            let done = client.nanos.len();
            let each = exchange.frames(mtu) as u64;
            assert!(done > 100, "{exchange:?}: {done}");
            assert!((done * each..=(done + 1) * each).contains(&frames), "{exchange:?}: {frames}");
            assert_eq!(client.lost, 0);
        }
    }

    #[test]
    fn the_round_trip_is_that_of_the_wire_at_any_depth() {
        let (one, _) = play(&Exchange::of(true, 4096), 1, 1500, 10_000);
        let (many, _) = play(&Exchange::of(true, 4096), 32, 1500, 10_000);
        assert!((20_000..=22_100).contains(&one.nanos.value_at_quantile(0.5)));
        assert!((20..=33).contains(&(many.nanos.len() / one.nanos.len())));
    }

    #[test]
    fn large_legs_are_bounded_by_the_window() {
        let (client, _) = play(&Exchange::of(true, 128 << 10), 32, 9000, 5_000);
        assert_eq!(client.slots.len(), 1);
        assert!(client.nanos.len() > 100 && client.lost == 0, "{}", client.lost);
    }
}
