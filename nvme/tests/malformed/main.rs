//! Peers that break the protocol, over the pipe, in virtual time: whatever they send, the other
//! side says so with a TermReq (FES, FEI and the offending header), ends the connection within
//! its deadline, and lives on.

#![allow(clippy::unwrap_used)] // a test, helpers included

mod rogue_host;
mod rogue_target;

use std::collections::VecDeque;
use std::net::SocketAddr;

use moorline_nvme::pdu::{
    Decoder, Fatal, HeaderBuf, ICResp, Item, Limits, Params, Pdu, R2T, Role, TermReq,
};
use moorline_stack::pipe::Pipe;
use moorline_stack::{ConnId, Event, Instant, Transport};

const PLAIN: Params = Params { hdgst: false, ddgst: false, pda: 0 };
const SUBNQN: &str = "nqn.2026-01.org.moorline:malformed";

fn address() -> SocketAddr {
    "10.0.0.2:4420".parse().unwrap()
}

/// An end without any machine behind it: what came is kept, what to send is the test's.
struct Raw {
    pipe: Pipe,
    role: Role,
    /// What the PDUs received from here on keep to, once ICReq and ICResp were exchanged.
    params: Params,
    /// Connections, in the order in which they were made; the last is the one at hand.
    conns: Vec<RawConn>,
}

struct RawConn {
    id: ConnId,
    decoder: Decoder,
    /// PDUs received and not yet looked at.
    pdus: VecDeque<Pdu>,
    /// Every byte received.
    received: Vec<u8>,
    peer_closed: bool,
    closed: bool,
}

impl Raw {
    fn new(pipe: Pipe, role: Role) -> Self {
        Self { pipe, role, params: PLAIN, conns: Vec::new() }
    }

    fn open(&mut self, id: ConnId) {
        self.conns.push(RawConn {
            id,
            decoder: Decoder::new(self.role, Limits::default()),
            pdus: VecDeque::new(),
            received: Vec::new(),
            peer_closed: false,
            closed: false,
        });
    }

    fn conn(&mut self) -> &mut RawConn {
        self.conns.last_mut().expect("there is a connection")
    }

    fn send(&mut self, bytes: &[u8]) {
        let id = self.conn().id;
        assert_eq!(self.pipe.send(id, bytes), bytes.len());
    }

    fn turn(&mut self, now: Instant) {
        self.pipe.turn(now);
        while let Some(event) = self.pipe.poll_event() {
            match event {
                Event::Accepted { conn, .. } => self.open(conn),
                Event::Connected(_) | Event::Writable(_) => {}
                Event::Reachable(_) | Event::LinkUp => {}
                Event::Readable(id) => {
                    self.receive(id);
                }
                Event::PeerClosed(id) => self.receive(id).peer_closed = true,
                Event::Closed(id, _) => self.of(id).closed = true,
            }
        }
    }

    fn of(&mut self, id: ConnId) -> &mut RawConn {
        self.conns.iter_mut().find(|conn| conn.id == id).expect("one of ours")
    }

    fn receive(&mut self, id: ConnId) -> &mut RawConn {
        let Self { pipe, conns, params, .. } = self;
        let conn = conns.iter_mut().find(|conn| conn.id == id).expect("one of ours");
        conn.receive(pipe, *params);
        conn
    }
}

impl RawConn {
    fn receive(&mut self, pipe: &mut Pipe, params: Params) {
        let Self { decoder, pdus, received, .. } = self;
        pipe.recv(self.id, &mut |bytes| {
            received.extend_from_slice(bytes);
            let mut input = bytes;
            while let Some(item) = decoder.next(&mut input).expect("the other side keeps the rules")
            {
                let Item::Pdu(pdu) = item else { continue };
                if matches!(pdu, Pdu::ICReq(_) | Pdu::ICResp(_)) {
                    decoder.set_params(params);
                }
                pdus.push_back(pdu);
            }
            bytes.len()
        });
    }

    /// Checks that a TermReq came last, and that it is about one of the PDUs in `bad`.
    fn assert_told(&mut self, name: &str, fatal: Fatal, bad: &[u8]) {
        let told = match self.pdus.pop_back() {
            Some(Pdu::H2CTermReq(term) | Pdu::C2HTermReq(term)) => term,
            other => panic!("{name}: {other:?} is no TermReq"),
        };
        assert_eq!(told, TermReq { fes: fatal.fes(), fei: fatal.fei() }, "{name}");
        let received = &self.received;
        let copy = [8, 24, 72, 128].into_iter().find_map(|hlen| {
            let term = received.get(received.len().checked_sub(24 + hlen)?..)?;
            (term[2..8] == [24, 0, 24 + hlen as u8, 0, 0, 0]).then(|| &term[24..])
        });
        let copy = copy.unwrap_or_else(|| panic!("{name}: no copy of the header"));
        assert!(bad.windows(copy.len()).any(|bad| bad == copy), "{name}: {copy:02x?}");
    }
}

fn header(pdu: Pdu) -> Vec<u8> {
    HeaderBuf::encode(&pdu, &PLAIN).bytes().to_vec()
}

/// A header with some bytes changed.
fn spoilt(pdu: Pdu, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = header(pdu);
    changes.iter().for_each(|(at, value)| bytes[*at] = *value);
    bytes
}

fn icresp(changes: &[(usize, u8)]) -> Vec<u8> {
    spoilt(Pdu::ICResp(ICResp { maxh2cdata: 8192, ..ICResp::default() }), changes)
}

fn r2t(cccid: u16) -> Pdu {
    Pdu::R2T(R2T { cccid, ttag: 1, r2to: 0, r2tl: 1024 })
}

const fn field(offset: u32) -> Fatal {
    Fatal::InvalidHeaderField(offset)
}

/// Bytes that look like nothing, or like the PDU that they begin with: the same for a seed.
fn garbage(seed: u64, pdu: Pdu) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut bytes = header(pdu);
    bytes.extend((0..random() % 500).map(|_| 0xA5));
    for _ in 0..1 + random() % 4 {
        let at = random() % if random() % 2 == 0 { bytes.len() } else { 24 };
        bytes[at] = random() as u8;
    }
    bytes
}
