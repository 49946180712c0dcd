//! Targets that break the protocol, and what the host says to them.

use std::time::Duration;

use moorline_nvme::host::{Cause, CtrlConfig, Host, HostEvent, HostIdentity, HostLimits};
use moorline_nvme::pdu::fes::offset;
use moorline_nvme::pdu::{Data, Fatal, ICResp, Pdu, Role};
use moorline_nvme::spec::opcode::{admin, fctype};
use moorline_nvme::spec::{Cap, Cc, Cqe, Csts, Property, Sqe, Status, property};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ListenOptions;
use moorline_stack::{Instant, Transport};
use zerocopy::little_endian::U16;

use super::{Raw, SUBNQN, address, field, garbage, header, icresp, r2t, spoilt};

fn response(cid: u16, status: Status) -> Pdu {
    let mut cqe = Cqe::new(cid, status);
    cqe.sqhd = U16::new(0xFFFF);
    Pdu::CapsuleResp { cqe }
}

/// When the target begins to misbehave: instead of the answer to this.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    ICReq,
    Connect,
    PropertyGet,
    Identify,
}

/// A target that answers as it should until its moment comes.
struct Rogue {
    raw: Raw,
    when: When,
    bad: Box<dyn Fn(u16) -> Vec<u8>>,
    /// What it sent then.
    sent: Option<Vec<u8>>,
    cc: Cc,
}

impl Rogue {
    fn next_pdu(&mut self) -> Option<Pdu> {
        self.raw.conns.last_mut()?.pdus.pop_front()
    }

    fn turn(&mut self, now: Instant) {
        self.raw.turn(now);
        while self.sent.is_none()
            && let Some(pdu) = self.next_pdu()
        {
            self.answer(pdu);
        }
    }

    fn answer(&mut self, pdu: Pdu) {
        let (when, cid) = match pdu {
            Pdu::ICReq(_) => (Some(When::ICReq), 0),
            Pdu::CapsuleCmd { sqe, .. } => (moment(&sqe), sqe.cid.get()),
            other => panic!("{other:?} from a host that was asked for nothing"),
        };
        if when == Some(self.when) {
            let bad = (self.bad)(cid);
            self.raw.send(&bad);
            self.sent = Some(bad);
            return;
        }
        let good = match pdu {
            Pdu::CapsuleCmd { sqe, .. } => self.complete(&sqe),
            _ => Pdu::ICResp(ICResp { maxh2cdata: 8192, ..ICResp::default() }),
        };
        self.raw.send(&header(good));
    }

    fn complete(&mut self, sqe: &Sqe) -> Pdu {
        let property = Property::from_sqe(sqe).filter(|_| sqe.is_fabrics());
        let result = match (sqe.fctype(), property) {
            (fctype::PROPERTY_SET, Some(Property { offset: property::CC, value, .. })) => {
                self.cc = Cc(value as u32);
                0
            }
            (fctype::PROPERTY_GET, Some(Property { offset, .. })) => match offset {
                property::CAP => {
                    Cap::default().with_mqes(127).with_cqr(1).with_to(30).with_css(1).0
                }
                property::VS => 0x0002_0000,
                property::CC => u64::from(self.cc.0),
                property::CSTS => u64::from(Csts::default().with_rdy(self.cc.en()).0),
                _ => 0,
            },
            (fctype::CONNECT, _) if sqe.is_fabrics() => 1,
            _ => 0,
        };
        let Pdu::CapsuleResp { cqe } = response(sqe.cid.get(), Status::SUCCESS) else {
            unreachable!()
        };
        Pdu::CapsuleResp { cqe: cqe.with_result(result) }
    }
}

fn moment(sqe: &Sqe) -> Option<When> {
    match (sqe.opcode, sqe.fctype()) {
        (admin::FABRICS, fctype::CONNECT) => Some(When::Connect),
        (admin::FABRICS, fctype::PROPERTY_GET) => Some(When::PropertyGet),
        (admin::IDENTIFY, _) => Some(When::Identify),
        _ => None,
    }
}

/// C2HData with as many bytes as its header says.
fn c2h(cccid: u16, datao: u32, datal: u32, last: bool, success: bool) -> Vec<u8> {
    let mut bytes = header(Pdu::C2HData(Data { cccid, ttag: 0, datao, datal, last, success }));
    bytes.resize(bytes.len() + datal as usize, 0xDA);
    bytes
}

/// What a target can do wrong, and what the host says to it.
type TargetSin = (&'static str, When, fn(u16) -> Vec<u8>, Fatal);

const TARGET_SINS: &[TargetSin] = &[
    ("garbage", When::ICReq, |_| vec![0xFF; 300], field(offset::TYPE)),
    ("an HTTP server", When::ICReq, |_| b"HTTP/1.1 400 Bad".to_vec(), field(offset::TYPE)),
    ("ICReq echoed", When::ICReq, |_| [0, 0, 128, 0, 128, 0, 0, 0].to_vec(), Fatal::PduSequence),
    (
        "response before ICResp",
        When::ICReq,
        |_| header(response(0, Status::SUCCESS)),
        Fatal::PduSequence,
    ),
    ("ICResp HLEN", When::ICReq, |_| icresp(&[(2, 24)]), field(offset::HLEN)),
    ("ICResp PLEN", When::ICReq, |_| icresp(&[(5, 1)]), field(offset::PLEN)),
    ("ICResp PFV", When::ICReq, |_| icresp(&[(8, 1)]), field(offset::PFV)),
    ("CPDA 32", When::ICReq, |_| icresp(&[(10, 32)]), field(offset::PDA)),
    ("digests not asked for", When::ICReq, |_| icresp(&[(11, 3)]), field(offset::DGST)),
    ("MAXH2CDATA 0", When::ICReq, |_| icresp(&[(13, 0)]), field(offset::MAXH2CDATA)),
    ("second ICResp", When::Connect, |_| icresp(&[]), Fatal::PduSequence),
    (
        "HDGSTF not agreed on",
        When::Connect,
        |cid| spoilt(response(cid, Status::SUCCESS), &[(1, 1)]),
        field(offset::FLAGS),
    ),
    (
        "response for nobody",
        When::Connect,
        |cid| header(response(cid ^ 0x0FFF, Status::SUCCESS)),
        field(offset::RESP_CID),
    ),
    (
        "response of an old generation",
        When::Connect,
        |cid| header(response(cid ^ 0x1000, Status::SUCCESS)),
        field(offset::RESP_CID),
    ),
    (
        "command from a target",
        When::Connect,
        |_| header(Pdu::CapsuleCmd { sqe: Sqe::new(2, 1), data_len: 0 }),
        Fatal::PduSequence,
    ),
    ("R2T for in-capsule data", When::Connect, |cid| header(r2t(cid)), field(offset::CCCID)),
    ("R2T for nobody", When::Connect, |cid| header(r2t(!cid)), field(offset::CCCID)),
    ("R2T of nothing", When::Connect, |cid| spoilt(r2t(cid), &[(17, 0)]), field(offset::DATAL)),
    ("data for a write", When::Connect, |cid| c2h(cid, 0, 8, true, false), field(offset::CCCID)),
    (
        "data for a command without",
        When::PropertyGet,
        |cid| c2h(cid, 0, 8, true, true),
        field(offset::CCCID),
    ),
    (
        "R2T for a command without data",
        When::PropertyGet,
        |cid| header(r2t(cid)),
        field(offset::CCCID),
    ),
    ("R2T for a read", When::Identify, |cid| header(r2t(cid)), field(offset::CCCID)),
    (
        "data not from the start",
        When::Identify,
        |cid| c2h(cid, 8, 4088, true, false),
        Fatal::DataOutOfRange,
    ),
    (
        "data beyond the buffer",
        When::Identify,
        |cid| c2h(cid, 0, 4100, true, false),
        Fatal::DataOutOfRange,
    ),
    (
        "data after the last",
        When::Identify,
        |cid| [c2h(cid, 0, 8, true, false), c2h(cid, 8, 8, true, false)].concat(),
        Fatal::PduSequence,
    ),
    (
        "data twice",
        When::Identify,
        |cid| [c2h(cid, 0, 8, false, false), c2h(cid, 0, 8, true, false)].concat(),
        Fatal::DataOutOfRange,
    ),
    (
        "success without LAST_PDU",
        When::Identify,
        |cid| {
            let mut bytes = c2h(cid, 0, 4096, true, true);
            bytes[1] = 8;
            bytes
        },
        field(offset::FLAGS),
    ),
    ("success cut short", When::Identify, |cid| c2h(cid, 0, 512, true, true), Fatal::PduSequence),
    (
        "success without data",
        When::Identify,
        |cid| header(response(cid, Status::SUCCESS)),
        Fatal::PduSequence,
    ),
    (
        "DATAL and PLEN differ",
        When::Identify,
        |cid| {
            let mut bytes = c2h(cid, 0, 4096, true, true);
            bytes[17] = 8;
            bytes
        },
        field(offset::DATAL),
    ),
    (
        "PDO inside the header",
        When::Identify,
        |cid| {
            let mut bytes = c2h(cid, 0, 4096, true, true);
            bytes[3] = 20;
            bytes
        },
        field(offset::PDO),
    ),
];

fn host(pipe: Pipe) -> Host<Pipe> {
    let hostnqn = "nqn.2026-01.org.moorline:host".to_owned();
    Host::new(pipe, HostIdentity { hostnqn, hostid: [7; 16] }, HostLimits::default())
}

/// Lets a host and a rogue target talk until nothing is due for 100 ms.
fn talk(host: &mut Host<Pipe>, rogue: &mut Rogue, now: &mut Instant) -> Vec<HostEvent> {
    let mut events = Vec::new();
    for _ in 0..10_000 {
        host.turn(*now);
        rogue.turn(*now);
        events.extend(std::iter::from_fn(|| host.poll_event()));
        host.flush(*now);
        rogue.raw.pipe.flush(*now);
        match earliest(host.poll_timeout(), rogue.raw.pipe.poll_timeout()) {
            Some(next) if next <= *now + Duration::from_millis(100) => *now = next.max(*now),
            Some(_) | None => return events,
        }
    }
    panic!("does not settle");
}

fn host_against(seed: u64, options: PipeOptions, sin: &TargetSin) {
    let &(name, when, bad, fatal) = sin;
    let (a, b) = Pipe::pair(seed, options);
    let mut now = Instant::from_nanos(1);
    let mut raw = Raw::new(b, Role::Controller);
    raw.pipe.listen(now, address(), &ListenOptions::default()).unwrap();
    let mut rogue = Rogue { raw, when, bad: Box::new(bad), sent: None, cc: Cc::default() };
    let mut host = host(a);
    let ctrl = host.connect(now, CtrlConfig::new(address(), SUBNQN)).unwrap();

    let events = talk(&mut host, &mut rogue, &mut now);
    let [HostEvent::Failed { ctrl: failed, failure }] = &events[..] else {
        panic!("{name}: {events:?}");
    };
    assert_eq!((*failed, &failure.cause), (ctrl, &Cause::Protocol(fatal)), "{name}");
    let bad = rogue.sent.take().expect("it had its moment");
    rogue.raw.conn().assert_told(name, fatal, &bad);
    let conn = rogue.raw.conn();
    assert!(conn.peer_closed || conn.closed, "{name}: still open");
    // A target that does not close its side either is left within the TermReq's deadline.
    while let Some(next) = host.poll_timeout() {
        assert!(next <= now + Duration::from_secs(2), "{name}: something waits for long");
        now = next.max(now);
        host.turn(now);
        host.flush(now);
        assert!(host.poll_event().is_none(), "{name}: told twice");
    }
    assert_eq!(host.transport().conns(), 0, "{name}");
}

#[test]
fn a_host_tells_a_target_what_it_did_wrong_and_leaves() {
    assert!(TARGET_SINS.len() >= 20);
    for sin in TARGET_SINS {
        host_against(1, PipeOptions::default(), sin);
    }
}

#[test]
fn a_host_sees_the_same_wherever_the_stream_is_cut() {
    for (seed, sin) in TARGET_SINS.iter().enumerate() {
        let options = PipeOptions { cut_max: 9, ..PipeOptions::default() };
        host_against(seed as u64, options, sin);
    }
}

#[test]
fn a_host_withstands_random_pdus() {
    for seed in 0..300 {
        let whens = [When::ICReq, When::Connect, When::PropertyGet, When::Identify];
        let bad = move |cid| {
            let data = Data { cccid: cid, datal: 256, last: true, ..Data::default() };
            let pdus = [
                Pdu::ICResp(ICResp { maxh2cdata: 8192, ..ICResp::default() }),
                response(cid, Status::SUCCESS),
                Pdu::C2HData(data),
                r2t(cid),
            ];
            garbage(seed, pdus[seed as usize / 4 % 4])
        };
        let (a, b) = Pipe::pair(seed, PipeOptions::default());
        let mut now = Instant::from_nanos(1);
        let mut raw = Raw::new(b, Role::Controller);
        raw.pipe.listen(now, address(), &ListenOptions::default()).unwrap();
        let when = whens[seed as usize % 4];
        let mut rogue = Rogue { raw, when, bad: Box::new(bad), sent: None, cc: Cc::default() };
        let mut host = host(a);
        host.connect(now, CtrlConfig::new(address(), SUBNQN)).unwrap();
        let mut events = talk(&mut host, &mut rogue, &mut now);
        // Told at once, or given up at a deadline of its own; never both, never neither.
        while let Some(next) = host.poll_timeout() {
            assert!(next <= now + Duration::from_secs(10), "seed {seed}");
            now = next.max(now);
            events.extend(talk(&mut host, &mut rogue, &mut now));
        }
        assert!(matches!(events[..], [HostEvent::Failed { .. }]), "seed {seed}: {events:?}");
        assert_eq!(host.transport().conns(), 0, "seed {seed}");
    }
}
