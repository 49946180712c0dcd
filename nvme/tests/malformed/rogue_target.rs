//! Targets that send anything, and a host that gives them up, once.

use std::time::Duration;

use moorline_nvme::host::{CtrlConfig, Host, HostEvent, HostIdentity, HostLimits};
use moorline_nvme::pdu::{Data, ICResp, Pdu, Role};
use moorline_nvme::spec::opcode::{admin, fctype};
use moorline_nvme::spec::{Cap, Cc, Cqe, Csts, Property, Sqe, Status, property};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ListenOptions;
use moorline_stack::{Instant, Transport};
use zerocopy::little_endian::U16;

use super::{Raw, SUBNQN, address, garbage, header, r2t};

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
