//! A target and peers of which each byte is ours: what `tests/scripts` cannot see, its buffers
//! and devices among them.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ConnOptions;
use moorline_stack::{ConnId, Event, Instant, Transport};
use zerocopy::IntoBytes;

use super::{Subsystem, Target, TargetConfig};
use crate::bdev::{Bdev, Ram};
use crate::pdu::digest::crc32c;
use crate::pdu::{Data, Decoder, HeaderBuf, ICReq, Item, Limits, Params, Pdu, R2T, Role};
use crate::spec::identify::{IDENTIFY_BYTES, cns};
use crate::spec::opcode::{admin, fctype, io};
use crate::spec::{
    Abort, BlockCommand, Cc, Connect, ConnectData, Cqe, Csts, GetFeatures, GetLogPage, HostId,
    Identify, Nqn, Property, SetFeatures, Sqe, Status, features, property,
};

const NQN: &str = "nqn.2026-01.io.moorline:test";
const HOSTNQN: &str = "nqn.2026-01.io.moorline:host";

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A target, and connections to it of which each byte is ours.
pub(super) struct Raw {
    pub now: Instant,
    pub pipe: Pipe,
    pub target: Target<Pipe>,
    pub peers: Vec<Peer>,
}

/// What came over a connection.
pub(super) struct Peer {
    pub id: ConnId,
    decoder: Decoder,
    params: Params,
    pub pdus: Vec<Pdu>,
    data: Vec<u8>,
    pub closed: bool,
}

impl Raw {
    pub fn new(config: TargetConfig) -> Self {
        Self::with(config, Box::new(Ram::new(512, 4096)))
    }

    pub fn with(config: TargetConfig, bdev: Box<dyn Bdev>) -> Self {
        let (pipe, far) = Pipe::pair(1, PipeOptions::default());
        let mut target = Target::new(far, config);
        let mut subsystem = Subsystem::new(NQN);
        subsystem.add_namespace(1, bdev).unwrap();
        target.add_subsystem(subsystem).unwrap();
        let mut private = Subsystem::new("nqn.2026-01.io.moorline:private");
        private.hosts = Some(vec!["nqn.2026-01.io.moorline:friend".into()]);
        target.add_subsystem(private).unwrap();
        target.listen(Instant::ZERO, addr()).unwrap();
        Self { now: Instant::ZERO, pipe, target, peers: Vec::new() }
    }

    pub fn open(&mut self) -> usize {
        let id = self.pipe.connect(self.now, addr(), &ConnOptions::default()).unwrap();
        self.peers.push(Peer {
            id,
            decoder: Decoder::new(Role::Host, Limits::default()),
            params: Params::default(),
            pdus: Vec::new(),
            data: Vec::new(),
            closed: false,
        });
        self.run(ms(1));
        self.peers.len() - 1
    }

    pub fn send(&mut self, peer: usize, bytes: &[u8]) {
        assert_eq!(self.pipe.send(self.peers[peer].id, bytes), bytes.len());
        self.pipe.flush(self.now);
    }

    pub fn send_pdu(&mut self, peer: usize, pdu: &Pdu, data: &[u8]) {
        let params = self.peers[peer].params;
        let mut bytes = HeaderBuf::encode(pdu, &params).bytes().to_vec();
        bytes.extend_from_slice(data);
        if params.ddgst && !data.is_empty() {
            bytes.extend_from_slice(&crc32c(data).to_le_bytes());
        }
        self.send(peer, &bytes);
    }

    /// Lets time pass; what arrives is collected.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.pipe.turn(self.now);
            while let Some(event) = self.pipe.poll_event() {
                if let Event::Closed(id, _) | Event::PeerClosed(id) = event
                    && let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == id)
                {
                    peer.closed = true;
                }
            }
            for peer in &mut self.peers {
                self.pipe.recv(peer.id, &mut |bytes| {
                    let mut rest = bytes;
                    while let Ok(Some(item)) = peer.decoder.next(&mut rest) {
                        match item {
                            Item::Pdu(pdu) => {
                                if let Pdu::ICResp(ic) = pdu {
                                    let (hdgst, ddgst) = (ic.hdgst, ic.ddgst);
                                    peer.params = Params { hdgst, ddgst, pda: ic.cpda };
                                    peer.decoder.set_params(Params { hdgst, ddgst, pda: 0 });
                                }
                                peer.pdus.push(pdu);
                            }
                            Item::Data(data) => peer.data.extend_from_slice(data),
                            Item::DataEnd { digest_ok } => assert!(digest_ok),
                        }
                    }
                    bytes.len()
                });
            }
            self.pipe.flush(self.now);
            self.target.turn(self.now);
            self.target.flush(self.now);
            let next = earliest(self.pipe.poll_timeout(), self.target.poll_timeout());
            self.now = next.unwrap_or(until).min(until).max(self.now + Duration::from_micros(1));
        }
    }

    /// Sends a command and gives its completion.
    pub fn command(&mut self, peer: usize, sqe: &Sqe, data: &[u8]) -> Cqe {
        let data_len = data.len() as u32;
        self.send_pdu(peer, &Pdu::CapsuleCmd { sqe: *sqe, data_len }, data);
        self.completion(peer)
    }

    pub fn completion(&mut self, peer: usize) -> Cqe {
        self.run(ms(2));
        match self.peers[peer].pdus.pop() {
            Some(Pdu::CapsuleResp { cqe }) => cqe,
            pdu => panic!("{pdu:?}"),
        }
    }

    pub fn ic(&mut self, peer: usize, hdgst: bool, ddgst: bool) {
        let ic = ICReq { hdgst, ddgst, ..ICReq::default() };
        self.send_pdu(peer, &Pdu::ICReq(ic), &[]);
        self.run(ms(1));
        assert!(matches!(self.peers[peer].pdus.pop(), Some(Pdu::ICResp(_))));
    }

    /// An enabled controller; gives its admin connection and CNTLID.
    pub fn admin(&mut self, kato_ms: u32) -> (usize, u16) {
        let peer = self.open();
        self.ic(peer, false, false);
        let (sqe, data) = connect(0, 0xFFFF, kato_ms);
        let cqe = self.command(peer, &sqe, data.as_bytes());
        assert_eq!(cqe.status(), Status::SUCCESS);
        let enabled = self.command(peer, &Property::set(property::CC, Cc::ENABLE.0), &[]);
        assert_eq!(enabled.status(), Status::SUCCESS);
        (peer, cqe.dw0.get() as u16)
    }

    /// An I/O queue, without SQ flow control.
    pub fn io_queue(&mut self, cntlid: u16, hdgst: bool, ddgst: bool) -> usize {
        let peer = self.open();
        self.ic(peer, hdgst, ddgst);
        let (sqe, data) = connect(1, cntlid, 0);
        let cqe = self.command(peer, &sqe, data.as_bytes());
        assert_eq!((cqe.status(), cqe.sqhd.get()), (Status::SUCCESS, 0xFFFF), "DISSQFC");
        peer
    }
}

fn addr() -> SocketAddr {
    "10.0.0.2:4420".parse().unwrap()
}

pub(super) fn connect(qid: u16, cntlid: u16, kato_ms: u32) -> (Sqe, ConnectData) {
    let cattr = Connect::CATTR_DISSQFC;
    let mut sqe = Connect { recfmt: 0, qid, sqsize: 31, cattr, kato_ms }.to_sqe();
    sqe.cid.set(0x1234);
    let (subnqn, hostnqn) = (Nqn::new(NQN).unwrap(), Nqn::new(HOSTNQN).unwrap());
    (sqe, ConnectData::new(&HostId::from_bytes([7; 16]), cntlid, &subnqn, &hostnqn))
}

pub(super) fn write(cid: u16, blocks: u32, in_capsule: bool) -> Sqe {
    let mut sqe = BlockCommand::new(1, 0, blocks).to_sqe(io::WRITE);
    sqe.cid.set(cid);
    if in_capsule { sqe.with_in_capsule(blocks * 512) } else { sqe.with_transport(blocks * 512) }
}

#[test]
fn identify_says_what_a_linux_host_needs() {
    let mut raw = Raw::new(TargetConfig::default());
    let (peer, cntlid) = raw.admin(0);
    let mut identify = |cns, nsid| {
        raw.peers[peer].data.clear();
        let sqe = Identify::new(cns, nsid).to_sqe().with_transport(4096);
        raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
        raw.run(ms(2));
        let status = match raw.peers[peer].pdus.pop() {
            Some(Pdu::C2HData(data)) if data.success => Status::SUCCESS,
            Some(Pdu::CapsuleResp { cqe }) => cqe.status(),
            pdu => panic!("{pdu:?}"),
        };
        (status, raw.peers[peer].data.clone())
    };
    let (status, id) = identify(cns::CONTROLLER, 0);
    assert_eq!((status, id.len()), (Status::SUCCESS, IDENTIFY_BYTES));
    let le = |at: usize, len: usize| {
        id[at..at + len].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    };
    assert_eq!(&id[24..34], b"moorline  ");
    assert_eq!((le(77, 1), le(78, 2), le(80, 4)), (8, cntlid.into(), 0x2_0000));
    assert_eq!((le(111, 1), le(258, 1), le(259, 1), le(320, 2)), (1, 3, 3, 1));
    assert_eq!((le(512, 1), le(513, 1), le(514, 2)), (0x66, 0x44, 128));
    assert_eq!((le(520, 2), le(525, 1), le(536, 4)), (0b1101, 5, 0x10_0001));
    assert_eq!(&id[768..768 + NQN.len() + 1], format!("{NQN}\0").as_bytes());
    assert_eq!((le(1792, 4), le(1796, 4), le(1803, 1)), ((8192 + 64) / 16, 1, 1));
    let (_, ns) = identify(cns::NAMESPACE, 1);
    assert_eq!((ns[0..3].to_vec(), ns[30], ns[130]), (vec![0, 16, 0], 1, 9));
    assert_eq!(identify(cns::NAMESPACE, 2), (Status::SUCCESS, vec![0; 4096]), "inactive");
    let (_, list) = identify(cns::ACTIVE_NSIDS, 0);
    assert_eq!(list[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    let (_, ids) = identify(cns::NS_DESCRIPTORS, 1);
    assert_eq!(
        (&ids[..4], &ids[20..24], &ids[40..46]),
        (&[2, 16, 0, 0][..], &[3, 16, 0, 0][..], &[4, 1, 0, 0, 0, 0][..])
    );
    assert_eq!(ids[4..20], ns[104..120]);
    assert!(identify(cns::INDEPENDENT_NAMESPACE, 1).1[14] == 1);
    assert_eq!(identify(cns::NAMESPACE, 0).0, Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(identify(cns::NAMESPACE, u32::MAX).0, Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(identify(cns::ACTIVE_NSIDS, u32::MAX).0, Status::INVALID_NAMESPACE.with_dnr());
    assert_eq!(identify(0x1C, 0).0, Status::INVALID_FIELD.with_dnr());
}

#[test]
fn features_logs_and_aborts_are_answered() {
    let mut raw = Raw::new(TargetConfig::default());
    let (peer, _) = raw.admin(5000);
    let feature = |raw: &mut Raw, fid| {
        let cqe = raw.command(peer, &GetFeatures::new(fid).to_sqe(), &[]);
        (cqe.status(), cqe.dw0.get())
    };
    let set = |raw: &mut Raw, fid, value| {
        let cqe = raw.command(peer, &SetFeatures::new(fid, value).to_sqe(), &[]);
        (cqe.status(), cqe.dw0.get())
    };
    use features::fid;
    assert_eq!(feature(&mut raw, fid::KEEP_ALIVE_TIMER), (Status::SUCCESS, 5000));
    assert_eq!(set(&mut raw, fid::KEEP_ALIVE_TIMER, 7001), (Status::SUCCESS, 0));
    assert_eq!(feature(&mut raw, fid::KEEP_ALIVE_TIMER), (Status::SUCCESS, 7100));
    assert_eq!(set(&mut raw, fid::NUMBER_OF_QUEUES, 0x0003_0007), (Status::SUCCESS, 0x3_0003));
    assert_eq!(set(&mut raw, fid::NUMBER_OF_QUEUES, 0xFFFE_FFFE), (Status::SUCCESS, 0x3F_003F));
    assert_eq!(
        set(&mut raw, fid::NUMBER_OF_QUEUES, 0xFFFF_FFFF).0,
        Status::INVALID_FIELD.with_dnr()
    );
    assert_eq!(set(&mut raw, fid::WRITE_CACHE, 0).0, Status::FEATURE_NOT_CHANGEABLE.with_dnr());
    assert_eq!(feature(&mut raw, 0x02).0, Status::INVALID_FIELD.with_dnr());
    let log = |raw: &mut Raw, lid, offset| {
        let sqe = GetLogPage::new(lid, offset, 512).to_sqe();
        raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
        raw.run(ms(2));
        match raw.peers[peer].pdus.pop() {
            Some(Pdu::C2HData(data)) if data.success && data.datal == 512 => Status::SUCCESS,
            Some(Pdu::CapsuleResp { cqe }) => cqe.status(),
            pdu => panic!("{pdu:?}"),
        }
    };
    for lid in 0..=5 {
        assert_eq!(log(&mut raw, lid, 0), Status::SUCCESS, "log {lid}");
    }
    assert_eq!(log(&mut raw, 0x70, 0), Status::INVALID_LOG_PAGE.with_dnr());
    assert_eq!(log(&mut raw, 2, 516), Status::INVALID_FIELD.with_dnr());
    // Events wait; a fifth does not; an aborted one ends, then its Abort.
    for cid in 0..4 {
        let mut sqe = features::async_event_request();
        sqe.cid.set(cid + 100);
        raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
    }
    let fifth = raw.command(peer, &features::async_event_request(), &[]);
    assert_eq!(fifth.status(), Status::AER_LIMIT_EXCEEDED.with_dnr());
    let cqe = raw.command(peer, &Abort { sqid: 0, cid: 101 }.to_sqe(), &[]);
    assert_eq!((cqe.status(), cqe.dw0.get()), (Status::SUCCESS, 0));
    let Some(Pdu::CapsuleResp { cqe }) = raw.peers[peer].pdus.pop() else { panic!() };
    assert_eq!((cqe.cid.get(), cqe.status()), (101, Status::ABORT_REQUESTED));
    let cqe = raw.command(peer, &Abort { sqid: 9, cid: 1 }.to_sqe(), &[]);
    assert_eq!((cqe.status(), cqe.dw0.get()), (Status::SUCCESS, 1));
    for code in [0x00, 0x01, 0x04, 0x05, 0x7C, 0xC0] {
        let cqe = raw.command(peer, &Sqe::new(code, 0), &[]);
        assert_eq!(cqe.status(), Status::INVALID_OPCODE.with_dnr());
    }
    // A reset ends the other three, in order.
    raw.command(peer, &Property::set(property::CC, 0), &[]);
    let ended: Vec<_> = raw.peers[peer].pdus.drain(..).collect();
    assert_eq!(ended.len(), 3);
    let cqe = raw.command(peer, &Property::get(property::CSTS), &[]);
    assert_eq!(Csts(cqe.dw0.get()).rdy(), 0);
}

#[test]
fn commands_that_are_malformed_fail_and_the_queue_lives() {
    let mut raw = Raw::new(TargetConfig::default());
    let (_, cntlid) = raw.admin(0);
    let peer = raw.io_queue(cntlid, false, false);
    let data = [0x5A; 1024];
    let mut status = |sqe: Sqe, data: &[u8]| raw.command(peer, &sqe, data).status();
    assert_eq!(status(write(1, 2, true), &data), Status::SUCCESS);
    let wrong_length = Status::SGL_LENGTH_INVALID.with_dnr();
    assert_eq!(status(write(1, 2, true), &data[..512]), wrong_length);
    assert_eq!(status(write(1, 2, true).with_in_capsule(512), &data[..512]), wrong_length);
    assert_eq!(status(write(1, 2, false), &data), Status::INVALID_FIELD.with_dnr());
    let mut prp = write(1, 2, true);
    prp.flags = 0;
    assert_eq!(status(prp, &data), Status::INVALID_FIELD.with_dnr());
    let mut nsid = write(1, 2, true);
    nsid.nsid.set(2);
    assert_eq!(status(nsid, &data), Status::INVALID_NAMESPACE.with_dnr());
    nsid.nsid.set(u32::MAX);
    assert_eq!(status(nsid, &data), Status::INVALID_NAMESPACE.with_dnr());
    let flush_all = Sqe::new(io::FLUSH, u32::MAX); // VWC says that there is no such
    assert_eq!(status(flush_all, &[]), Status::INVALID_NAMESPACE.with_dnr());
    let beyond = BlockCommand::new(1, 4095, 2).to_sqe(io::WRITE).with_in_capsule(1024);
    assert_eq!(status(beyond, &data), Status::LBA_OUT_OF_RANGE.with_dnr());
    let read = BlockCommand::new(1, 0, 2).to_sqe(io::READ).with_in_capsule(1024);
    assert_eq!(status(read, &data), Status::INVALID_FIELD.with_dnr());
    assert_eq!(status(Sqe::new(0x7D, 1), &[]), Status::INVALID_OPCODE.with_dnr());
    let compare = BlockCommand::new(1, 0, 2).to_sqe(io::COMPARE).with_in_capsule(1024);
    assert_eq!(status(compare, &data), Status::SUCCESS);
    assert_eq!(status(compare, &[1; 1024]), Status::COMPARE_FAILURE.with_dnr());
    assert_eq!(
        status(Sqe::fabrics(fctype::AUTHENTICATION_SEND), &[]),
        Status::INVALID_OPCODE.with_dnr()
    );
    assert_eq!(status(Sqe::fabrics(fctype::DISCONNECT), &[]), Status::SUCCESS);
    raw.run(ms(1100));
    assert!(raw.peers[peer].closed);
    assert!(raw.target.core.pool.is_whole());
}

fn r2t(raw: &mut Raw, peer: usize, blocks: u32) -> R2T {
    let sqe = write(1, blocks, false);
    raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
    raw.run(ms(1));
    match raw.peers[peer].pdus.pop() {
        Some(Pdu::R2T(r2t)) => r2t,
        pdu => panic!("{pdu:?}"),
    }
}

#[test]
fn data_are_acknowledged_at_once_where_no_answer_does_it() {
    let mut raw = Raw::new(TargetConfig::default());
    let (_, cntlid) = raw.admin(0);
    let peer = raw.io_queue(cntlid, false, false);
    let R2T { cccid, ttag, r2tl, .. } = r2t(&mut raw, peer, 32);
    assert_eq!(r2tl, 16384);
    let before = raw.target.transport().acks();
    for (datao, last, acks) in [(0, false, 1), (8192, true, 1)] {
        let data = Data { cccid, ttag, datao, datal: 8192, last, success: false };
        raw.send_pdu(peer, &Pdu::H2CData(data), &[7; 8192]);
        raw.run(ms(1));
        assert_eq!(raw.target.transport().acks() - before, acks);
    }
    assert!(matches!(raw.peers[peer].pdus.pop(), Some(Pdu::CapsuleResp { .. })));
}

#[test]
fn our_own_stall_kills_nobody() {
    let mut raw = Raw::new(TargetConfig::default());
    let (admin, _) = raw.admin(1000);
    // The keep alive was sent in time; the target did not run for long.
    let sqe = features::keep_alive();
    raw.send_pdu(admin, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
    raw.now += ms(2_500);
    assert_eq!(raw.completion(admin).status(), Status::SUCCESS);
    raw.run(ms(500));
    assert!(!raw.peers[admin].closed);
}

#[test]
fn writes_whose_data_do_not_come_end_their_queue() {
    let mut raw = Raw::new(TargetConfig::default());
    let (_, cntlid) = raw.admin(0);
    let peer = raw.io_queue(cntlid, false, false);
    raw.run(ms(100_000)); // idle is not stalled
    r2t(&mut raw, peer, 32);
    raw.run(ms(28_000));
    assert!(!raw.peers[peer].closed);
    raw.run(ms(4_000));
    assert!(raw.peers[peer].closed && raw.target.core.pool.is_whole());
}

#[test]
fn commands_wait_for_buffers_and_nothing_deadlocks() {
    let config = TargetConfig {
        in_capsule_buffers: 1,
        small_buffers: 1,
        medium_buffers: 1,
        large_buffers: 1,
        ..TargetConfig::default()
    };
    let mut raw = Raw::new(config);
    let (_, cntlid) = raw.admin(0);
    let peer = raw.io_queue(cntlid, false, false);
    // The one buffer of its size waits for data; what comes behind waits for it, or passes.
    let first = r2t(&mut raw, peer, 32);
    for cid in 2..6 {
        let sqe = write(cid, 32, false);
        raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
    }
    let in_capsule = Pdu::CapsuleCmd { sqe: write(9, 8, true), data_len: 4096 };
    raw.send_pdu(peer, &in_capsule, &[1; 4096]);
    raw.run(ms(1));
    assert_eq!(raw.peers[peer].pdus.len(), 1, "only the in-capsule write");
    raw.peers[peer].pdus.clear();
    let mut next = Some(first);
    let mut completed = Vec::new();
    while let Some(r2t) = next.take() {
        let data =
            Data { cccid: r2t.cccid, ttag: r2t.ttag, datal: 16384, last: true, ..Data::default() };
        raw.send_pdu(peer, &Pdu::H2CData(data), &[r2t.cccid as u8; 16384]);
        raw.run(ms(2));
        for pdu in raw.peers[peer].pdus.drain(..) {
            match pdu {
                Pdu::CapsuleResp { cqe } => completed.push(cqe.cid.get()),
                Pdu::R2T(r2t) => next = Some(r2t),
                pdu => panic!("{pdu:?}"),
            }
        }
    }
    assert_eq!(completed, [1, 2, 3, 4, 5]);
    assert!(raw.target.stats().buffer_waits >= 4 && raw.target.core.pool.is_whole());
}

#[test]
fn discovery_lists_the_subsystem_and_tells_of_changes() {
    let mut raw = Raw::new(TargetConfig::default());
    let peer = raw.open();
    raw.ic(peer, false, false);
    let (sqe, mut data) = connect(0, 0xFFFF, 30_000);
    data.subnqn = Nqn::discovery().to_field();
    assert_eq!(raw.command(peer, &sqe, data.as_bytes()).status(), Status::SUCCESS);
    raw.command(peer, &Property::set(property::CC, Cc::ENABLE.0), &[]);
    let read = |raw: &mut Raw| {
        raw.peers[peer].data.clear();
        let mut sqe = GetLogPage::new(0x70, 0, 4096).to_sqe();
        sqe.cid.set(900);
        raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 0 }, &[]);
        raw.run(ms(2));
        assert!(matches!(raw.peers[peer].pdus.pop(), Some(Pdu::C2HData(_))));
        raw.peers[peer].data.clone()
    };
    let log = read(&mut raw);
    let genctr = log[0];
    assert_eq!(log[8], 1, "the private subsystem is not for us");
    assert_eq!(&log[1024 + 256..1024 + 256 + NQN.len()], NQN.as_bytes());
    assert_eq!(&log[1024 + 512..1024 + 520], b"10.0.0.2");
    let set = SetFeatures::new(features::fid::ASYNC_EVENTS, 1 << 31).to_sqe();
    assert_eq!(raw.command(peer, &set, &[]).status(), Status::SUCCESS);
    let aer = features::async_event_request();
    raw.send_pdu(peer, &Pdu::CapsuleCmd { sqe: aer, data_len: 0 }, &[]);
    raw.run(ms(2));
    raw.target.add_subsystem(Subsystem::new("nqn.2026-01.io.moorline:new")).unwrap();
    assert_eq!(raw.completion(peer).dw0.get(), 0x0070_F002);
    let log = read(&mut raw);
    assert_eq!((log[0], log[8]), (genctr + 1, 2));
    let identify = Identify::new(cns::NAMESPACE, 1).to_sqe().with_transport(4096);
    let refused = raw.command(peer, &identify, &[]);
    assert_eq!(refused.status(), Status::INVALID_FIELD.with_dnr());
    assert_eq!(raw.command(peer, &Sqe::new(admin::KEEP_ALIVE, 0), &[]).status(), Status::SUCCESS);
}

#[test]
fn a_lost_admin_queue_ends_the_association_and_frees_everything() {
    let mut raw = Raw::new(TargetConfig::default());
    let (admin, cntlid) = raw.admin(0);
    let io = raw.io_queue(cntlid, false, false);
    r2t(&mut raw, io, 2048);
    let id = raw.peers[admin].id;
    raw.pipe.close(raw.now, id);
    raw.run(ms(10));
    assert!(raw.peers[io].closed);
    let stats = raw.target.stats();
    assert_eq!((stats.conns, stats.controllers), (0, 0));
    assert!(raw.target.core.pool.is_whole());
    // The next one is another controller.
    assert_ne!(raw.admin(0).1, cntlid);
}
