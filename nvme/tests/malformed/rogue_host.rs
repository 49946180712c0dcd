//! Hosts that break the protocol, and what the target says to them.

use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::pdu::fes::offset;
use moorline_nvme::pdu::{Data, DataDigest, Fatal, HeaderBuf, ICReq, Params, Pdu, Role};
use moorline_nvme::spec::connect::CNTLID_DYNAMIC;
use moorline_nvme::spec::opcode::{admin, io};
use moorline_nvme::spec::{
    BlockCommand, Cc, Connect, ConnectData, Cqe, HostId, Nqn, Property, Sqe, Status, property,
};
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ConnOptions;
use moorline_stack::{Instant, Transport};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use super::{Raw, SUBNQN, address, field, garbage, header, icresp, r2t, spoilt};

/// How far a host goes before it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Upto {
    /// TCP only.
    Tcp,
    /// ICResp came.
    ICResp,
    /// The admin queue is live.
    Admin,
    /// An I/O queue is live.
    Io,
    /// A write of [`WRITE_BYTES`] awaits its data: the target sent R2T.
    R2T,
}

const WRITE_BYTES: u32 = 16 << 10;
const WRITE_CID: u16 = 0x0177;

/// A target, and a host that is about to misbehave.
struct Victim {
    target: Target<Pipe>,
    raw: Raw,
    now: Instant,
}

impl Victim {
    fn new(seed: u64, options: PipeOptions) -> Self {
        let (a, b) = Pipe::pair(seed, options);
        let now = Instant::from_nanos(1);
        let mut target = Target::new(b, TargetConfig::default());
        let mut subsystem = Subsystem::new(SUBNQN);
        subsystem.add_namespace(1, Box::new(Ram::new(512, 1024))).unwrap();
        target.add_subsystem(subsystem).unwrap();
        target.listen(now, address()).unwrap();
        Self { target, raw: Raw::new(a, Role::Host), now }
    }

    /// Lets time pass as long as something is due within `horizon` from here.
    fn run(&mut self, horizon: Duration) {
        let end = self.now + horizon;
        for _ in 0..100_000 {
            self.target.turn(self.now);
            self.raw.turn(self.now);
            self.target.flush(self.now);
            self.raw.pipe.flush(self.now);
            match earliest(self.target.poll_timeout(), self.raw.pipe.poll_timeout()) {
                Some(next) if next <= end => self.now = next.max(self.now),
                Some(_) | None => return,
            }
        }
        panic!("does not settle");
    }

    /// The next PDU, which must come soon.
    fn answer(&mut self) -> Pdu {
        self.run(Duration::from_millis(100));
        self.raw.conn().pdus.pop_front().expect("an answer")
    }

    fn command(&mut self, sqe: Sqe, data: &[u8]) -> Cqe {
        self.raw.send(&capsule(sqe, data));
        match self.answer() {
            Pdu::CapsuleResp { cqe } => cqe,
            other => panic!("{other:?} is no completion"),
        }
    }

    fn open(&mut self, upto: Upto) {
        let id = self.raw.pipe.connect(self.now, address(), &ConnOptions::default()).unwrap();
        self.raw.open(id);
        self.run(Duration::from_millis(100));
        if upto >= Upto::ICResp {
            self.raw.send(&header(Pdu::ICReq(ICReq::default())));
            assert!(matches!(self.answer(), Pdu::ICResp(_)));
        }
    }

    /// Connects a queue; returns CNTLID.
    fn connect(&mut self, qid: u16, cntlid: u16) -> u16 {
        let (sqe, data) = connect_capsule(qid, cntlid);
        let cqe = self.command(sqe, data.as_bytes());
        assert_eq!(cqe.status(), Status::SUCCESS);
        cqe.dw0.get() as u16
    }

    /// Behaves until `upto`; returns the TTAG of the R2T, if it came so far.
    fn behave(&mut self, upto: Upto) -> u16 {
        self.open(upto);
        if upto < Upto::Admin {
            return 0;
        }
        let cntlid = self.connect(0, CNTLID_DYNAMIC);
        if upto < Upto::Io {
            return 0;
        }
        let cqe = self.command(Property::set(property::CC, Cc::ENABLE.0), &[]);
        assert_eq!(cqe.status(), Status::SUCCESS);
        self.open(upto);
        self.connect(1, cntlid);
        if upto < Upto::R2T {
            return 0;
        }
        let blocks = WRITE_BYTES / 512;
        let sqe = BlockCommand::new(1, 0, blocks).to_sqe(io::WRITE).with_transport(WRITE_BYTES);
        self.raw.send(&capsule(Sqe { cid: U16::new(WRITE_CID), ..sqe }, &[]));
        match self.answer() {
            Pdu::R2T(r2t) => {
                assert_eq!((r2t.cccid, r2t.r2to, r2t.r2tl), (WRITE_CID, 0, WRITE_BYTES));
                r2t.ttag
            }
            other => panic!("{other:?} is no R2T"),
        }
    }
}

fn connect_capsule(qid: u16, cntlid: u16) -> (Sqe, ConnectData) {
    let connect = Connect { qid, sqsize: 31, ..Connect::default() };
    let subnqn = Nqn::new(SUBNQN).unwrap();
    let hostnqn = Nqn::new("nqn.2026-01.org.moorline:host").unwrap();
    let data = ConnectData::new(&HostId::from_bytes([7; 16]), cntlid, &subnqn, &hostnqn);
    (connect.to_sqe(), data)
}

fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let data_len = data.len() as u32;
    [&header(Pdu::CapsuleCmd { sqe, data_len }), data].concat()
}

fn h2c(cccid: u16, ttag: u16, datao: u32, datal: u32, last: bool) -> Vec<u8> {
    let mut bytes = header(Pdu::H2CData(Data { cccid, ttag, datao, datal, last, success: false }));
    bytes.resize(bytes.len() + datal as usize, 0xDA);
    bytes
}

/// What a host can do wrong, given the TTAG of its R2T, and what the target says to it.
type HostSin = (&'static str, Upto, fn(u16) -> Vec<u8>, Fatal);

fn icreq(changes: &[(usize, u8)]) -> Vec<u8> {
    spoilt(Pdu::ICReq(ICReq::default()), changes)
}

fn flush() -> Pdu {
    Pdu::CapsuleCmd { sqe: Sqe::new(io::FLUSH, 1), data_len: 0 }
}

const HOST_SINS: &[HostSin] = &[
    ("garbage", Upto::Tcp, |_| vec![0xFF; 300], field(offset::TYPE)),
    ("an HTTP client", Upto::Tcp, |_| b"GET / HTTP/1.1\r\n\r\n".to_vec(), field(offset::TYPE)),
    ("command before ICReq", Upto::Tcp, |_| header(flush()), Fatal::PduSequence),
    ("ICResp from a host", Upto::Tcp, |_| icresp(&[]), Fatal::PduSequence),
    ("ICReq HLEN", Upto::Tcp, |_| icreq(&[(2, 24)]), field(offset::HLEN)),
    ("ICReq PLEN", Upto::Tcp, |_| icreq(&[(4, 0)]), field(offset::PLEN)),
    ("ICReq PFV", Upto::Tcp, |_| icreq(&[(8, 1)]), field(offset::PFV)),
    ("HPDA 32", Upto::Tcp, |_| icreq(&[(10, 32)]), field(offset::PDA)),
    ("ICReq HDGSTF", Upto::Tcp, |_| icreq(&[(1, 1)]), field(offset::FLAGS)),
    ("second ICReq", Upto::ICResp, |_| icreq(&[]), Fatal::PduSequence),
    ("R2T from a host", Upto::ICResp, |_| header(r2t(0)), Fatal::PduSequence),
    ("reserved type 8", Upto::ICResp, |_| spoilt(flush(), &[(0, 8)]), field(offset::TYPE)),
    ("HLEN 255", Upto::ICResp, |_| spoilt(flush(), &[(2, 255)]), field(offset::HLEN)),
    ("data before Connect", Upto::ICResp, |_| h2c(0, 0, 0, 512, true), Fatal::PduSequence),
    ("PLEN 0", Upto::Admin, |_| spoilt(flush(), &[(4, 0)]), field(offset::PLEN)),
    ("HDGSTF not agreed on", Upto::Admin, |_| spoilt(flush(), &[(1, 1)]), field(offset::FLAGS)),
    (
        "SGL of another transport",
        Upto::Admin,
        |_| capsule(Sqe { sgl_id: 0x40, ..Sqe::new(admin::IDENTIFY, 0).with_transport(4096) }, &[]),
        Fatal::UnsupportedParameter(offset::SGL_ID),
    ),
    (
        "in-capsule offset",
        Upto::Io,
        |_| {
            let sqe = BlockCommand::new(1, 0, 1).to_sqe(io::WRITE).with_in_capsule(512);
            capsule(Sqe { sgl_addr: U64::new(64), ..sqe }, &[0; 512])
        },
        Fatal::UnsupportedParameter(offset::SGL_ADDR),
    ),
    (
        "in-capsule data too long",
        Upto::Io,
        |_| {
            let len = TargetConfig::default().in_capsule_bytes + 512;
            let sqe = BlockCommand::new(1, 0, len / 512).to_sqe(io::WRITE).with_in_capsule(len);
            header(Pdu::CapsuleCmd { sqe, data_len: len })
        },
        Fatal::LimitExceeded,
    ),
    (
        "PDO beyond PLEN",
        Upto::Io,
        |_| spoilt(Pdu::CapsuleCmd { sqe: Sqe::new(io::WRITE, 1), data_len: 4 }, &[(3, 80)]),
        field(offset::PLEN),
    ),
    ("data without R2T", Upto::Io, |_| h2c(0, 0, 0, 512, true), Fatal::PduSequence),
    ("TTAG of nobody", Upto::R2T, |ttag| h2c(WRITE_CID, !ttag, 0, 512, false), Fatal::PduSequence),
    ("another command's data", Upto::R2T, |ttag| h2c(1, ttag, 0, 512, false), field(offset::CCCID)),
    (
        "data not from the start",
        Upto::R2T,
        |ttag| h2c(WRITE_CID, ttag, 512, 512, false),
        Fatal::DataOutOfRange,
    ),
    (
        "data beyond the R2T",
        Upto::R2T,
        |ttag| h2c(WRITE_CID, ttag, 0, WRITE_BYTES + 4, true),
        Fatal::DataOutOfRange,
    ),
    (
        "DATAL beyond MAXH2CDATA",
        Upto::R2T,
        |ttag| h2c(WRITE_CID, ttag, 0, TargetConfig::default().h2c_data_bytes_max + 4, true),
        Fatal::LimitExceeded,
    ),
    (
        "LAST_PDU too early",
        Upto::R2T,
        |ttag| h2c(WRITE_CID, ttag, 0, 512, true),
        field(offset::FLAGS),
    ),
    (
        "LAST_PDU missing",
        Upto::R2T,
        |ttag| h2c(WRITE_CID, ttag, 0, WRITE_BYTES, false),
        field(offset::FLAGS),
    ),
    (
        "the same data twice",
        Upto::R2T,
        |ttag| [h2c(WRITE_CID, ttag, 0, 512, false), h2c(WRITE_CID, ttag, 0, 512, false)].concat(),
        Fatal::DataOutOfRange,
    ),
    (
        "data after the last",
        Upto::R2T,
        |ttag| {
            [h2c(WRITE_CID, ttag, 0, WRITE_BYTES, true), h2c(WRITE_CID, ttag, 0, 512, false)]
                .concat()
        },
        Fatal::PduSequence,
    ),
];

fn target_against(seed: u64, options: PipeOptions, sin: &HostSin) {
    let &(name, upto, bad, fatal) = sin;
    let mut victim = Victim::new(seed, options);
    let bad = bad(victim.behave(upto));
    victim.raw.send(&bad);
    victim.run(Duration::from_millis(100));
    victim.raw.conn().assert_told(name, fatal, &bad);
    // A host that does not close its side is left within the TermReq's deadline.
    victim.run(TargetConfig::default().term_timeout + Duration::from_millis(100));
    let conn = victim.raw.conn();
    assert!(conn.closed || conn.peer_closed, "{name}: still open");
    assert_eq!(victim.target.stats().fatal, 1, "{name}");
    // Whoever comes next is served.
    victim.behave(Upto::Io);
}

#[test]
fn a_target_tells_a_host_what_it_did_wrong_and_serves_the_next() {
    assert!(HOST_SINS.len() >= 20);
    for sin in HOST_SINS {
        target_against(1, PipeOptions::default(), sin);
    }
}

#[test]
fn a_target_sees_the_same_wherever_the_stream_is_cut() {
    for (seed, sin) in HOST_SINS.iter().enumerate() {
        let options = PipeOptions { cut_max: 9, ..PipeOptions::default() };
        target_against(seed as u64, options, sin);
    }
}

#[test]
fn a_target_withstands_random_pdus() {
    for seed in 0..300 {
        let upto = [Upto::Tcp, Upto::ICResp, Upto::Admin, Upto::Io, Upto::R2T][seed as usize % 5];
        let mut victim = Victim::new(seed, PipeOptions::default());
        let ttag = victim.behave(upto);
        let sqe = BlockCommand::new(1, 0, 8).to_sqe(io::WRITE).with_transport(4096);
        let data =
            Data { cccid: WRITE_CID, ttag, datao: 0, datal: 512, last: false, success: false };
        let pdus = [
            Pdu::ICReq(ICReq::default()),
            Pdu::CapsuleCmd { sqe, data_len: 0 },
            Pdu::CapsuleCmd { sqe: sqe.with_in_capsule(512), data_len: 512 },
            Pdu::H2CData(data),
        ];
        victim.raw.send(&garbage(seed, pdus[seed as usize / 5 % 4]));
        victim.run(Duration::from_secs(3));
        victim.behave(Upto::R2T);
    }
}

const DIGESTS: Params = Params { hdgst: true, ddgst: true, pda: 0 };

/// A connection with both digests, up to ICResp.
fn with_digests() -> Victim {
    let mut victim = Victim::new(1, PipeOptions::default());
    victim.raw.params = DIGESTS;
    victim.open(Upto::Tcp);
    let icreq = ICReq { hdgst: true, ddgst: true, ..ICReq::default() };
    victim.raw.send(&header(Pdu::ICReq(icreq)));
    match victim.answer() {
        Pdu::ICResp(icresp) => assert!(icresp.hdgst && icresp.ddgst),
        other => panic!("{other:?} is no ICResp"),
    }
    victim
}

#[test]
fn a_bad_header_digest_is_fatal_and_told_with_the_digest_received() {
    let mut victim = with_digests();
    let mut bad = HeaderBuf::encode(&flush(), &DIGESTS).bytes().to_vec();
    bad[72..].copy_from_slice(&[1, 2, 3, 4]);
    victim.raw.send(&bad);
    victim.run(Duration::from_millis(100));
    victim.raw.conn().assert_told("bad digest", Fatal::HeaderDigest(0x0403_0201), &bad);
}

#[test]
fn a_bad_data_digest_fails_the_command_only() {
    let mut victim = with_digests();
    let (sqe, data) = connect_capsule(0, CNTLID_DYNAMIC);
    let pdu = Pdu::CapsuleCmd { sqe, data_len: data.as_bytes().len() as u32 };
    let mut digest = DataDigest::new();
    digest.update(data.as_bytes());
    for (digest, status) in
        [(!digest.finish(), Status::TRANSIENT_TRANSPORT), (digest.finish(), Status::SUCCESS)]
    {
        let head = HeaderBuf::encode(&pdu, &DIGESTS);
        victim.raw.send(&[head.bytes(), data.as_bytes(), &digest.to_le_bytes()].concat());
        match victim.answer() {
            Pdu::CapsuleResp { cqe } => assert_eq!(cqe.status(), status),
            other => panic!("{other:?} is no completion"),
        }
    }
    assert_eq!(victim.target.stats().digest_errors, 1);
}

#[test]
fn a_term_req_is_not_answered_with_one() {
    let mut victim = Victim::new(1, PipeOptions::default());
    victim.behave(Upto::Admin);
    let term = Fatal::PduSequence.term_req(Role::Host, &[0; 24]);
    victim.raw.send(term.bytes());
    victim.run(TargetConfig::default().term_timeout + Duration::from_millis(100));
    let conn = victim.raw.conn();
    assert!(conn.pdus.is_empty() && (conn.closed || conn.peer_closed));
}

#[test]
fn who_says_nothing_is_left_at_the_deadline() {
    let config = TargetConfig::default();
    for (upto, timeout, half) in [
        (Upto::Tcp, config.icreq_timeout, vec![]),
        (Upto::Tcp, config.icreq_timeout, icreq(&[])[..127].to_vec()),
        (Upto::ICResp, config.connect_timeout, vec![]),
        (Upto::ICResp, config.connect_timeout, header(flush())[..71].to_vec()),
    ] {
        let mut victim = Victim::new(1, PipeOptions::default());
        victim.behave(upto);
        victim.raw.send(&half);
        victim.run(timeout - Duration::from_millis(200));
        assert!(!victim.raw.conn().closed && !victim.raw.conn().peer_closed, "{upto:?}");
        victim.run(Duration::from_secs(2));
        assert!(victim.raw.conn().closed || victim.raw.conn().peer_closed, "{upto:?}");
    }
}
