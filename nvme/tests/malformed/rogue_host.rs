//! Hosts that send anything, and a target that serves the next one.

use std::time::Duration;

use moorline_nvme::bdev::Ram;
use moorline_nvme::pdu::{Data, ICReq, Pdu, Role};
use moorline_nvme::spec::connect::CNTLID_DYNAMIC;
use moorline_nvme::spec::opcode::io;
use moorline_nvme::spec::{
    BlockCommand, Cc, Connect, ConnectData, Cqe, HostId, Nqn, Property, Sqe, Status, property,
};
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ConnOptions;
use moorline_stack::{Instant, Transport};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::{Raw, SUBNQN, address, garbage, header};

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
