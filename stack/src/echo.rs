//! Asking nodes whether they are there: ICMP echo requests of ours, and the replies to them.
//!
//! What always holds: [`ASKED_MAX`] nodes are asked at once; a reply counts if it comes from the
//! node that was asked, in time, with the token that only the request carried. Pure: whoever drives
//! it resolves next hops and sends what [`Echoes::poll_transmit`] writes.

use std::net::IpAddr;
use std::time::Duration;

use crate::Instant;
use crate::eth::{Datagram, Mac};
use crate::icmp::{self, Echo};

/// Nodes that can be asked at once.
pub const ASKED_MAX: usize = 1024;

/// Requests to one node before the last that a late reply may answer.
const EARLIER: u16 = 16;

/// What has come of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EchoFigures {
    /// Requests sent.
    pub sent: u64,
    /// Nodes that answered.
    pub answered: u64,
    /// Replies that nobody waited for.
    pub stray: u64,
}

/// Whereto a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The next hop is being looked for.
    Unknown,
    /// There, as soon as there is room.
    Ready(Mac),
    /// It has gone.
    Sent,
}

/// A node that was asked.
#[derive(Debug)]
struct Asked {
    ip: IpAddr,
    source: IpAddr,
    next_hop: IpAddr,
    token: u64,
    seq: u16,
    until: Instant,
    way: Way,
}

/// The nodes that were asked.
#[derive(Debug)]
pub struct Echoes {
    id: u16,
    /// Sorted by address.
    asked: Vec<Asked>,
    /// Of these, how many requests can be sent.
    ready: usize,
    figures: EchoFigures,
}

impl Echoes {
    /// Nobody is asked; `id` goes into each request.
    pub fn new(id: u16) -> Self {
        let asked = Vec::with_capacity(ASKED_MAX);
        Self { id, asked, ready: 0, figures: EchoFigures::default() }
    }

    /// Asks the node at `ip`, by way of `next_hop`; `token` is one that nobody can foresee. A node
    /// that is being asked is asked again, under its first token. False: too many are.
    pub fn ask(
        &mut self,
        now: Instant,
        [source, ip, next_hop]: [IpAddr; 3],
        token: u64,
        timeout: Duration,
    ) -> bool {
        let until = now + timeout;
        match self.find(ip) {
            Ok(at) if self.asked[at].until > now => {
                let asked = &mut self.asked[at];
                asked.until = until;
                if asked.way == Way::Sent {
                    asked.seq = asked.seq.wrapping_add(1);
                    asked.way = Way::Unknown;
                }
            }
            found => {
                let asked = Asked { ip, source, next_hop, token, seq: 0, until, way: Way::Unknown };
                if let Ok(at) = found {
                    self.remove(at);
                }
                if self.asked.len() >= ASKED_MAX {
                    self.asked.retain(|asked| asked.until > now);
                    self.count_ready();
                }
                if self.asked.len() >= ASKED_MAX {
                    return false;
                }
                let at = self.find(ip).unwrap_or_else(|at| at);
                self.asked.insert(at, asked);
            }
        }
        true
    }

    /// The next hop was found, or not: then nobody behind it is asked.
    pub fn next_hop(&mut self, next_hop: IpAddr, mac: Option<Mac>) {
        let waits = |asked: &Asked| asked.next_hop == next_hop && asked.way == Way::Unknown;
        match mac {
            Some(mac) => {
                let waiting = self.asked.iter_mut().filter(|asked| waits(asked));
                waiting.for_each(|asked| asked.way = Way::Ready(mac));
            }
            None => self.asked.retain(|asked| !waits(asked)),
        }
        self.count_ready();
    }

    /// Whether [`Echoes::poll_transmit`] has something to write.
    pub fn wants_transmit(&self) -> bool {
        self.ready > 0
    }

    /// Writes the next request, an IP packet, to the front of `out`; to whom, and its length.
    ///
    /// # Panics
    /// When `out` is shorter than [`icmp::ECHO_LEN_MAX`].
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<(Mac, usize)> {
        if self.ready == 0 {
            return None;
        }
        let ready = |asked: &Asked| matches!(asked.way, Way::Ready(_));
        let at = self.asked.iter().position(ready)?;
        let asked = &mut self.asked[at];
        let Way::Ready(mac) = std::mem::replace(&mut asked.way, Way::Sent) else { return None };
        self.ready -= 1;
        self.figures.sent += 1;
        let echo = Echo { id: self.id, seq: asked.seq, token: asked.token };
        Some((mac, icmp::echo_request(asked.source, asked.ip, echo, out)))
    }

    /// Takes in an echo reply; the node, if it is one that was asked. Each is told once.
    pub fn reply(&mut self, now: Instant, datagram: &Datagram<'_>, echo: Echo) -> Option<IpAddr> {
        let answers = |asked: &Asked| {
            let recent = asked.seq.wrapping_sub(echo.seq) < EARLIER;
            let ours = echo.id == self.id && echo.token == asked.token && recent;
            ours && asked.source == datagram.dst && now <= asked.until
        };
        let at = self.find(datagram.src).ok().filter(|&at| answers(&self.asked[at]));
        let Some(at) = at else {
            self.figures.stray += 1;
            return None;
        };
        self.figures.answered += 1;
        self.remove(at);
        Some(datagram.src)
    }

    /// What has come of the requests so far.
    pub fn figures(&self) -> EchoFigures {
        self.figures
    }

    fn find(&self, ip: IpAddr) -> Result<usize, usize> {
        self.asked.binary_search_by_key(&ip, |asked| asked.ip)
    }

    fn remove(&mut self, at: usize) {
        let asked = self.asked.remove(at);
        self.ready -= usize::from(matches!(asked.way, Way::Ready(_)));
    }

    fn count_ready(&mut self) {
        let ready = |asked: &&Asked| matches!(asked.way, Way::Ready(_));
        self.ready = self.asked.iter().filter(ready).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eth::{Frame, HEADER_LEN, Header, Packet, ethertype};

    const US: [u8; 4] = [10, 0, 0, 1];
    const ROUTER: Mac = [2, 0, 0, 0, 0, 9];
    const TIMEOUT: Duration = Duration::from_millis(200);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(1) + Duration::from_millis(ms)
    }

    fn node(n: u16) -> IpAddr {
        IpAddr::from([10, 1, (n >> 8) as u8, n as u8])
    }

    fn ask(echoes: &mut Echoes, now: Instant, n: u16) -> bool {
        echoes.ask(now, [US.into(), node(n), [10, 0, 0, 9].into()], u64::from(n) + 7000, TIMEOUT)
    }

    fn resolve(echoes: &mut Echoes) {
        echoes.next_hop([10, 0, 0, 9].into(), Some(ROUTER));
    }

    /// Answers each request that leaves.
    fn replies(echoes: &mut Echoes) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut packet = [0; icmp::ECHO_LEN_MAX];
        while let Some((mac, len)) = echoes.poll_transmit(&mut packet) {
            assert_eq!(mac, ROUTER);
            let framed = |packet: &[u8]| {
                let mut frame = vec![0; HEADER_LEN];
                Header { dst: mac, src: mac, vlan: None, ethertype: ethertype::IPV4 }
                    .write(&mut frame);
                frame.extend(packet);
                frame
            };
            let request = framed(&packet[..len]);
            let Packet::Icmp(datagram) = Frame::parse(&request).unwrap().packet else { panic!() };
            let mut reply = [0; icmp::ECHO_LEN_MAX];
            let len = icmp::echo_reply(&datagram, &mut reply).unwrap();
            frames.push(framed(&reply[..len]));
        }
        frames
    }

    fn hear(echoes: &mut Echoes, now: Instant, frame: &[u8]) -> Option<IpAddr> {
        let Packet::Icmp(datagram) = Frame::parse(frame).unwrap().packet else { panic!() };
        let echo = icmp::echoed(&datagram).unwrap();
        echoes.reply(now, &datagram, echo)
    }

    #[test]
    fn a_node_that_answers_in_time_is_there_once() {
        let mut echoes = Echoes::new(5);
        assert!(ask(&mut echoes, at(0), 1) && !echoes.wants_transmit(), "next hop unknown");
        resolve(&mut echoes);
        let reply = &replies(&mut echoes)[0];
        assert_eq!(hear(&mut echoes, at(200), reply), Some(node(1)));
        assert_eq!(hear(&mut echoes, at(200), reply), None);
        assert_eq!(echoes.figures(), EchoFigures { sent: 1, answered: 1, stray: 1 });
    }

    #[test]
    fn late_forged_and_foreign_replies_count_for_nothing() {
        let mut echoes = Echoes::new(5);
        ask(&mut echoes, at(0), 1);
        resolve(&mut echoes);
        let reply = replies(&mut echoes).remove(0);
        let with = |at: usize| {
            let mut frame = reply.clone();
            frame[at] ^= 1;
            let Packet::Icmp(datagram) = Frame::parse(&frame).unwrap().packet else { panic!() };
            let (src, dst) = (datagram.src, datagram.dst);
            icmp::fill_checksum(src, dst, &mut frame[34..]);
            frame
        };
        for at_byte in [29, 33, 38, 40, 42, 49] {
            // The node, our address, id, sequence number, token.
            assert_eq!(hear(&mut echoes, at(1), &with(at_byte)), None, "byte {at_byte}");
        }
        assert_eq!(hear(&mut echoes, at(201), &reply), None, "late");
        assert_eq!(echoes.figures().stray, 7);
    }

    #[test]
    fn a_node_that_is_asked_again_may_answer_the_first_request() {
        let mut echoes = Echoes::new(5);
        ask(&mut echoes, at(0), 1);
        resolve(&mut echoes);
        let first = replies(&mut echoes).remove(0);
        ask(&mut echoes, at(100), 1);
        resolve(&mut echoes);
        assert_eq!(replies(&mut echoes).len(), 1);
        assert_eq!(hear(&mut echoes, at(150), &first), Some(node(1)));
    }

    #[test]
    fn the_table_is_bounded_and_gives_up_those_whose_time_is_over() {
        let mut echoes = Echoes::new(5);
        assert_eq!((0..2000).filter(|&n| ask(&mut echoes, at(0), n)).count(), ASKED_MAX);
        resolve(&mut echoes);
        assert_eq!(replies(&mut echoes).len(), ASKED_MAX);
        assert!(ask(&mut echoes, at(201), 1999));
        assert_eq!(echoes.asked.len(), 1);
        echoes.next_hop([10, 0, 0, 9].into(), None);
        assert!(echoes.asked.is_empty(), "no way there");
    }
}
