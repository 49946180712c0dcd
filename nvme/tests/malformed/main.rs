//! Peers that send anything at all, over the pipe, in virtual time: the other side ends the
//! connection within its deadline, and lives on. What it says to which violation is in
//! `tests/scripts`.

#![allow(clippy::unwrap_used)] // a test, helpers included

mod rogue_host;
mod rogue_target;

use std::collections::VecDeque;
use std::net::SocketAddr;

use moorline_nvme::pdu::{Decoder, HeaderBuf, Item, Limits, Params, Pdu, R2T, Role};
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
    /// Connections, in the order in which they were made; the last is the one at hand.
    conns: Vec<RawConn>,
}

struct RawConn {
    id: ConnId,
    decoder: Decoder,
    /// PDUs received and not yet looked at.
    pdus: VecDeque<Pdu>,
}

impl Raw {
    fn new(pipe: Pipe, role: Role) -> Self {
        Self { pipe, role, conns: Vec::new() }
    }

    fn open(&mut self, id: ConnId) {
        self.conns.push(RawConn {
            id,
            decoder: Decoder::new(self.role, Limits::default()),
            pdus: VecDeque::new(),
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
                Event::Connected(_) | Event::Writable(_) | Event::PeerClosed(_) => {}
                Event::Closed(..) | Event::Reachable(_) | Event::LinkUp => {}
                Event::Readable(id) => self.receive(id),
            }
        }
    }

    fn receive(&mut self, id: ConnId) {
        let Self { pipe, conns, .. } = self;
        let conn = conns.iter_mut().find(|conn| conn.id == id).expect("one of ours");
        conn.receive(pipe);
    }
}

impl RawConn {
    fn receive(&mut self, pipe: &mut Pipe) {
        let Self { decoder, pdus, .. } = self;
        pipe.recv(self.id, &mut |bytes| {
            let mut input = bytes;
            while let Some(item) = decoder.next(&mut input).expect("the other side keeps the rules")
            {
                let Item::Pdu(pdu) = item else { continue };
                if matches!(pdu, Pdu::ICReq(_) | Pdu::ICResp(_)) {
                    decoder.set_params(PLAIN);
                }
                pdus.push_back(pdu);
            }
            bytes.len()
        });
    }
}

fn header(pdu: Pdu) -> Vec<u8> {
    HeaderBuf::encode(&pdu, &PLAIN).bytes().to_vec()
}

fn r2t(cccid: u16) -> Pdu {
    Pdu::R2T(R2T { cccid, ttag: 1, r2to: 0, r2tl: 1024 })
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
