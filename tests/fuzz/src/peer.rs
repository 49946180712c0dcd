//! The target as a whole, against a host that sends what the input says: any bytes, PDUs built
//! around any command, data for any transfer, on two connections at most, at any time.
//!
//! What is asserted: whatever comes, the target answers in valid PDUs; a connection that it sent a
//! TermReq on is closed within that one's deadline; what it holds is bounded; a stranger is served
//! afterwards; and when all hosts have gone silent, it lets go of everything.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::pdu::{
    Data, DataDigest, Decoder, HeaderBuf, ICReq, Item, Limits, Params, Pdu, Role,
};
use moorline_nvme::spec::{
    Cc, Connect, ConnectData, HostId, Nqn, Property, Sqe, connect::CNTLID_DYNAMIC, property,
};
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Instant, Transport};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;

/// The name of the subsystem that is fuzzed.
pub(crate) const SUBNQN: &str = "nqn.2026-01.org.moorline:fuzz";
const HOSTNQN: &str = "nqn.2026-01.org.moorline:host";
/// Bytes of a connection's buffers, each way.
pub(crate) const BUFFER: usize = 16 << 10;
/// Operations in one run.
const OPS: usize = 64;
/// More than the longest of the target's timeouts below.
const LONG: Duration = Duration::from_secs(200);

/// Where the target listens.
pub(crate) fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 4420))
}

/// Connections with small buffers, which cost little to make.
pub(crate) fn conn_options() -> ConnOptions {
    ConnOptions { rx_buffer: BUFFER, tx_buffer: BUFFER, ..ConnOptions::default() }
}

/// A target with little of everything, so that each limit is soon reached.
pub(crate) fn small_target(pipe: Pipe) -> Target<Pipe> {
    let config = TargetConfig {
        in_capsule_bytes: 4096,
        h2c_data_bytes_max: 8192,
        mdts: 3,
        mqes: 31,
        io_queues_max: 2,
        controllers_max: 3,
        conns_max: 6,
        in_capsule_buffers: 2,
        small_buffers: 3,
        medium_buffers: 2,
        large_buffers: 0,
        listen: ListenOptions { conn: conn_options(), ..ListenOptions::default() },
        ..TargetConfig::default()
    };
    let mut target = Target::new(pipe, config);
    let mut subsystem = Subsystem::new(SUBNQN);
    subsystem.add_namespace(1, Box::new(Ram::new(512, 256))).expect("the number is free");
    target.add_subsystem(subsystem).expect("the name is free");
    target.listen(Instant::from_nanos(1), address()).expect("the address is free");
    target
}

/// Fuzzes a target; the first byte says how far the host behaves before it goes wild.
pub fn target(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let options = PipeOptions { cut_max: usize::from(input.byte()), ..PipeOptions::default() };
    let (a, b) = Pipe::pair(1, options);
    let mut world = World::new(a, small_target(b));
    world.open();
    if choice & 3 > 0 {
        let icreq = ICReq { hdgst: choice & 4 != 0, ddgst: choice & 8 != 0, ..ICReq::default() };
        world.initialize(icreq);
    }
    if choice & 3 > 1 {
        let cntlid = world.connect(0, CNTLID_DYNAMIC);
        world.send_command(Property::set(property::CC, Cc::ENABLE.0), &[]);
        world.settle(SHORT);
        if choice & 3 > 2 {
            world.open();
            world.initialize(ICReq::default());
            world.connect(1, cntlid);
        }
    }
    let mut ops = 0;
    while !input.is_empty() && ops < OPS {
        world.act(&mut input);
        ops += 1;
    }
    world.end();
}

/// Longer than anything takes that nobody delays.
const SHORT: Duration = Duration::from_millis(10);

/// A target, and a host's connections to it.
struct World {
    target: Target<Pipe>,
    pipe: Pipe,
    conns: Vec<Conn>,
    /// The connection that operations are about.
    at: usize,
    now: Instant,
}

/// A connection as the host sees it.
struct Conn {
    id: ConnId,
    decoder: Decoder,
    params: Params,
    /// What came last that operations can refer to: CID and TTAG of an R2T, CNTLID.
    r2t: (u16, u16),
    dw0: u32,
    pdus: usize,
    /// The target said that it ends this, at that time.
    told: Option<Instant>,
    gone: bool,
}

impl World {
    fn new(pipe: Pipe, target: Target<Pipe>) -> Self {
        Self { target, pipe, conns: Vec::new(), at: 0, now: Instant::from_nanos(1) }
    }

    fn open(&mut self) {
        let connected = self.pipe.connect(self.now, address(), &conn_options());
        let id = connected.expect("the pipe has room");
        self.at = self.conns.len();
        self.conns.push(Conn {
            id,
            decoder: Decoder::new(Role::Host, Limits::default()),
            params: Params::default(),
            r2t: (0, 0),
            dw0: 0,
            pdus: 0,
            told: None,
            gone: false,
        });
        self.settle(SHORT);
    }

    fn conn(&mut self) -> &mut Conn {
        &mut self.conns[self.at]
    }

    fn initialize(&mut self, icreq: ICReq) {
        self.conn().params = Params { hdgst: icreq.hdgst, ddgst: icreq.ddgst, pda: 0 };
        self.send(HeaderBuf::encode(&Pdu::ICReq(icreq), &Params::default()).bytes());
        self.settle(SHORT);
    }

    /// Connects a queue as it should be; returns CNTLID.
    fn connect(&mut self, qid: u16, cntlid: u16) -> u16 {
        let connect = Connect { qid, sqsize: 31, kato_ms: 1000, ..Connect::default() };
        let subnqn = Nqn::new(SUBNQN).expect("a valid name");
        let hostnqn = Nqn::new(HOSTNQN).expect("a valid name");
        let data = ConnectData::new(&HostId::from_bytes([7; 16]), cntlid, &subnqn, &hostnqn);
        self.send_command(connect.to_sqe(), data.as_bytes());
        self.settle(SHORT);
        self.conn().dw0 as u16
    }

    fn send(&mut self, bytes: &[u8]) {
        let Conn { id, gone, .. } = *self.conn();
        if !gone {
            self.pipe.send(id, bytes);
        }
    }

    fn send_command(&mut self, sqe: Sqe, data: &[u8]) {
        let pdu = Pdu::CapsuleCmd { sqe, data_len: data.len() as u32 };
        self.send_pdu(&pdu, data);
    }

    fn send_pdu(&mut self, pdu: &Pdu, data: &[u8]) {
        let params = self.conn().params;
        let mut bytes = HeaderBuf::encode(pdu, &params).bytes().to_vec();
        bytes.extend_from_slice(data);
        if params.ddgst && !data.is_empty() {
            let mut digest = DataDigest::new();
            digest.update(data);
            bytes.extend_from_slice(&digest.finish().to_le_bytes());
        }
        self.send(&bytes);
    }

    /// One operation of the input.
    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            // Bytes as they are.
            0 => {
                let len = usize::from(input.word() % 2048);
                self.send(input.take(len));
            }
            // A command as it is, with data.
            1 => {
                let sqe = Sqe::read_from_bytes(&input.array::<64>()).expect("64 bytes");
                let len = usize::from(input.word() % 9000);
                self.send_command(sqe, input.take(len));
            }
            // A command of few fields, with an SGL that makes sense.
            2 => self.plausible(input),
            // Data for the last R2T, or nearly.
            3 => {
                let (cid, ttag) = self.conn().r2t;
                let (dc, dt) = (input.byte(), input.byte());
                let datao = u32::from(input.word()) & !3;
                let datal = u32::from(input.word() % 8200) + 1;
                let data = Data {
                    cccid: cid ^ u16::from(dc / 128),
                    ttag: ttag ^ u16::from(dt / 128),
                    datao,
                    datal,
                    last: dc & 1 != 0,
                    success: false,
                };
                self.send_pdu(&Pdu::H2CData(data), &vec![dt; datal as usize]);
            }
            4 => self.settle(SHORT),
            5 => self.settle(Duration::from_millis(u64::from(input.word()))),
            6 => self.at = usize::from(input.byte()) % self.conns.len(),
            7 if self.conns.len() < 4 => self.open(),
            8 => {
                let choice = input.byte();
                let (hdgst, ddgst) = (choice & 1 != 0, choice & 2 != 0);
                self.initialize(ICReq { hdgst, ddgst, hpda: choice >> 3, ..ICReq::default() });
            }
            9 => {
                let (qid, cntlid) = (u16::from(input.byte() % 4), input.word());
                let cntlid = if cntlid > 8 { CNTLID_DYNAMIC } else { cntlid };
                self.connect(qid, cntlid);
            }
            10 => {
                let Conn { id, gone, .. } = *self.conn();
                match (gone, input.byte() & 1) {
                    (true, _) => {}
                    (false, 0) => self.pipe.close(self.now, id),
                    (false, _) => self.pipe.reset(self.now, id),
                }
            }
            _ => {
                let property = u32::from(input.byte() % 32) * 4;
                let value = input.dword();
                self.send_command(Property::set(property, value), &[]);
            }
        }
    }

    fn plausible(&mut self, input: &mut Input<'_>) {
        let (opcode, how) = (input.byte(), input.byte());
        let nsid = match input.byte() {
            0xFF => u32::MAX,
            n => u32::from(n % 4),
        };
        let len = u32::from(input.word());
        let sqe = Sqe::new(opcode, nsid);
        let mut sqe = if how & 1 == 0 { sqe.with_transport(len) } else { sqe.with_in_capsule(len) };
        sqe.cid.set(u16::from(how >> 1));
        sqe.cdw10.set(input.dword());
        sqe.cdw11.set(u32::from(input.byte()));
        sqe.cdw12.set(input.dword());
        let data = vec![how; if how & 1 == 0 { 0 } else { (len % 9000) as usize }];
        self.send_command(sqe, &data);
    }

    /// Lets time pass to `horizon` from here, in turns.
    fn settle(&mut self, horizon: Duration) {
        let end = self.now + horizon;
        for _ in 0..10_000 {
            self.target.turn(self.now);
            self.host_turn();
            self.target.flush(self.now);
            self.pipe.flush(self.now);
            let stats = self.target.stats();
            assert!(stats.conns <= 6 && stats.controllers <= 3, "{stats:?}");
            match earliest(self.target.poll_timeout(), self.pipe.poll_timeout()) {
                Some(next) if next <= end => self.now = next.max(self.now),
                Some(_) | None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("does not settle");
    }

    fn host_turn(&mut self) {
        self.pipe.turn(self.now);
        while let Some(event) = self.pipe.poll_event() {
            match event {
                Event::Readable(id) | Event::PeerClosed(id) => {
                    let conn = self.conns.iter_mut().find(|conn| conn.id == id && !conn.gone);
                    let conn = conn.expect("one of ours");
                    conn.receive(self.now, &mut self.pipe);
                    if matches!(event, Event::PeerClosed(_)) {
                        conn.told = None;
                        self.pipe.close(self.now, id);
                    }
                }
                Event::Closed(id, _) => {
                    let conn = self.conns.iter_mut().find(|conn| conn.id == id && !conn.gone);
                    let conn = conn.expect("closed once");
                    (conn.gone, conn.told) = (true, None);
                }
                Event::Accepted { .. } | Event::Connected(_) | Event::Writable(_) => {}
                Event::Reachable(_) | Event::LinkUp => {}
            }
        }
    }

    /// A stranger is served; then nobody says anything any more, and all ends.
    fn end(&mut self) {
        self.settle(Duration::from_millis(1100));
        let late = self.conns.iter().filter_map(|conn| conn.told);
        for told in late {
            assert!(self.now - told <= Duration::from_secs(1), "told, and still open");
        }
        if self.target.stats().conns < 6 {
            self.open();
            self.initialize(ICReq { hdgst: true, ..ICReq::default() });
            assert_eq!(self.conn().pdus, 1, "a stranger is not served");
        }
        for at in 0..self.conns.len() {
            let Conn { id, gone, .. } = self.conns[at];
            if !gone && at % 2 == 0 {
                self.pipe.close(self.now, id);
            }
        }
        self.settle(LONG);
        let stats = self.target.stats();
        assert_eq!((stats.conns, stats.controllers, stats.stale_writes), (0, 0, 0), "{stats:?}");
        assert!(self.conns.iter().all(|conn| conn.gone), "the target left them");
    }
}

impl Conn {
    fn receive(&mut self, now: Instant, pipe: &mut Pipe) {
        let Self { decoder, params, r2t, dw0, pdus, told, .. } = self;
        pipe.recv(self.id, &mut |bytes| {
            let mut input = bytes;
            while let Some(item) = decoder.next(&mut input).expect("the target sends valid PDUs") {
                let Item::Pdu(pdu) = item else { continue };
                assert!(told.is_none(), "something came after a TermReq");
                *pdus += 1;
                match pdu {
                    Pdu::ICResp(ic) => {
                        *params = Params { hdgst: ic.hdgst, ddgst: ic.ddgst, pda: ic.cpda };
                        decoder.set_params(Params { pda: 0, ..*params });
                    }
                    Pdu::R2T(asked) => *r2t = (asked.cccid, asked.ttag),
                    Pdu::CapsuleResp { cqe } => *dw0 = cqe.dw0.get(),
                    Pdu::C2HTermReq(_) => *told = Some(now),
                    _ => {}
                }
            }
            bytes.len()
        });
    }
}
