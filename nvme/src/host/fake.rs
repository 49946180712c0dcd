//! A target for tests: as small as can be, its answers laid out by hand, and willing to misbehave
//! in whatever way a test wants.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::pipe::{Pipe, PipeOptions};
use moorline_stack::time::earliest;
use moorline_stack::transport::ListenOptions;
use moorline_stack::{ConnId, Event, Instant, Transport};

use super::{CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits};
use crate::pdu::{
    Data, DataDigest, Decoder, HeaderBuf, ICResp, Item, Limits, Params, Pdu, R2T, Role, TermReq,
};
use crate::spec::opcode::FABRICS;
use crate::spec::{Abort, Cqe, Direction, Sqe, Status};

const MS: Duration = Duration::from_millis(1);
pub(super) const BLOCK: usize = 512;
pub(super) const BLOCKS: u64 = 8192;

/// What a hook may make of an I/O command.
pub(super) enum Hook {
    /// Serve it as usual.
    Serve,
    /// Never answer.
    Ignore,
    /// Serve it so much later, with its data in the capsule; also when its connection is gone.
    Late(Duration),
    /// Answer with this status, without data.
    Fail(Status),
    /// Send these PDUs, with that many bytes of data each, instead.
    Send(Vec<Pdu>),
    /// Send these bytes instead.
    Bytes(Vec<u8>),
}

/// How the fake behaves.
pub(super) struct Knobs {
    pub silent_ic: bool,
    pub silent_connect: bool,
    pub silent_keep_alive: bool,
    pub silent_shutdown: bool,
    pub silent_admin: Option<u8>,
    /// An Abort ends its command; else it is answered "not aborted".
    pub aborts: bool,
    /// Identify's ACL, 0's based.
    pub acl: u8,
    pub never_ready: bool,
    pub refuse: Option<(Status, u32)>,
    pub cpda: u8,
    pub maxh2cdata: u32,
    pub queues: u32,
    pub kas: u16,
    pub tbkas: bool,
    pub mdts: u8,
    pub ioccsz: u32,
    /// Command quiesce time, ms.
    pub cqt: u16,
    pub nguid: u8,
    /// SUCCESS in C2HData where allowed.
    pub success_flag: bool,
    /// Deny DISSQFC.
    pub flow_control: bool,
    /// SQHD is 0 in every completion.
    pub stuck_sqhd: bool,
    /// Bytes of data of one C2HData PDU, and of one R2T.
    pub chunk: usize,
    /// How long a connection may wait for its Connect; then it is closed.
    pub patience: Option<Duration>,
    /// A Connect that comes later than at once is answered with RST.
    pub forgets_waiters: bool,
    pub hook: Box<dyn FnMut(&Sqe) -> Hook>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            silent_ic: false,
            silent_connect: false,
            silent_keep_alive: false,
            silent_shutdown: false,
            silent_admin: None,
            aborts: false,
            acl: 3,
            never_ready: false,
            refuse: None,
            cpda: 0,
            maxh2cdata: 8192,
            queues: 64,
            kas: 1,
            tbkas: false,
            mdts: 5,
            ioccsz: (64 + 4096) / 16,
            cqt: 0,
            nguid: 0xAB,
            success_flag: true,
            flow_control: false,
            stuck_sqhd: false,
            chunk: 16384,
            patience: None,
            forgets_waiters: false,
            hook: Box::new(|_| Hook::Serve),
        }
    }
}

struct Write {
    sqe: Sqe,
    data: Vec<u8>,
    got: usize,
}

struct Late {
    due: Instant,
    conn: ConnId,
    association: u32,
    sqe: Sqe,
    data: Vec<u8>,
}

/// A write that was executed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Executed {
    pub at: Instant,
    pub association: u32,
    pub lba: u64,
    pub blocks: u64,
    /// The first 8 bytes of its data.
    pub mark: u64,
}

struct Conn {
    id: ConnId,
    association: u32,
    /// When ICReq came.
    greeted: Option<Instant>,
    decoder: Decoder,
    params: Params,
    out: Vec<u8>,
    qid: u16,
    dissqfc: bool,
    stuck_sqhd: bool,
    cc: u32,
    sq_size: u16,
    sqhd: u16,
    writes: Vec<Write>,
    /// The write whose data come now, and where in it.
    filling: Option<(u16, usize)>,
    capsule: Option<(Sqe, Vec<u8>)>,
}

pub(super) struct Fake {
    pub pipe: Pipe,
    pub knobs: Knobs,
    conns: Vec<Conn>,
    pub storage: Vec<u8>,
    kato: u32,
    /// Every command seen, with its queue, in order.
    pub seen: Vec<(u16, Sqe)>,
    pub term_reqs: Vec<TermReq>,
    pub aers: Vec<(ConnId, u16)>,
    pub h2c_pdus: usize,
    pub outstanding_max: usize,
    /// Take data of writes that were ended early, and count them.
    pub tolerate_stray_data: bool,
    pub stray_bytes: usize,
    now: Instant,
    late: Vec<Late>,
    /// Admin queues connected so far.
    pub associations: u32,
    /// Connections accepted so far.
    pub accepted: u32,
    pub executed: Vec<Executed>,
}

impl Fake {
    fn new(mut pipe: Pipe) -> Self {
        pipe.listen(Instant::ZERO, address(), &ListenOptions::default()).unwrap();
        Self {
            pipe,
            knobs: Knobs::default(),
            conns: Vec::new(),
            storage: vec![0; BLOCK * BLOCKS as usize],
            kato: 0,
            seen: Vec::new(),
            term_reqs: Vec::new(),
            aers: Vec::new(),
            h2c_pdus: 0,
            outstanding_max: 0,
            tolerate_stray_data: false,
            stray_bytes: 0,
            now: Instant::ZERO,
            late: Vec::new(),
            associations: 0,
            accepted: 0,
            executed: Vec::new(),
        }
    }

    pub(super) fn commands(&self, qid: u16, opcode: u8) -> Vec<Sqe> {
        let of = |(q, sqe): &&(u16, Sqe)| *q == qid && sqe.opcode == opcode;
        self.seen.iter().filter(of).map(|(_, sqe)| *sqe).collect()
    }

    /// Resets the connection of a queue.
    pub(super) fn reset(&mut self, now: Instant, qid: u16) {
        let of = |conn: &&Conn| conn.qid == qid && conn.association > 0;
        let conn = self.conns.iter().find(of).unwrap().id;
        self.pipe.reset(now, conn);
    }

    /// Connections that have said ICReq and no Connect.
    pub(super) fn waiters(&self) -> usize {
        self.conns.iter().filter(|conn| conn.is_waiter()).count()
    }

    /// Sends bytes to all of them.
    pub(super) fn address_waiters(&mut self, bytes: &[u8]) {
        for conn in self.conns.iter_mut().filter(|conn| conn.is_waiter()) {
            conn.out.extend_from_slice(bytes);
        }
    }

    /// When the next of them has waited for too long.
    fn impatient_at(&self) -> Option<Instant> {
        let patience = self.knobs.patience?;
        let waiters = self.conns.iter().filter(|conn| conn.is_waiter());
        waiters.filter_map(|conn| Some(conn.greeted? + patience)).min()
    }

    fn close_waiters(&mut self, now: Instant) {
        let Some(patience) = self.knobs.patience else { return };
        for conn in self.conns.iter_mut().filter(|conn| conn.is_waiter()) {
            if conn.greeted.is_some_and(|greeted| greeted + patience <= now) {
                conn.greeted = None;
                self.pipe.close(now, conn.id);
            }
        }
    }

    /// Resets every connection.
    pub(super) fn reset_all(&mut self, now: Instant) {
        self.conns.iter().for_each(|conn| self.pipe.reset(now, conn.id));
    }

    /// Ends the association as a controller does: connections reset, its commands dropped.
    pub(super) fn end_association(&mut self, now: Instant) {
        let association = self.associations;
        self.late.retain(|late| late.association != association);
        self.reset_all(now);
    }

    fn late(&mut self) {
        while let Some(at) = self.late.iter().position(|late| late.due <= self.now) {
            let Late { conn: id, association, sqe, data, .. } = self.late.remove(at);
            let at = self.conns.iter().position(|conn| conn.id == id);
            let gone = || Conn { qid: 1, association, ..Conn::new(id) };
            let mut conn = at.map_or_else(gone, |at| self.conns.remove(at));
            self.execute(&mut conn, &sqe, &data);
            if at.is_some() {
                self.conns.push(conn);
            }
        }
    }

    /// Sends a PDU on a queue, from nowhere.
    pub(super) fn inject(&mut self, qid: u16, pdu: &Pdu) {
        let conn = self.conns.iter_mut().find(|conn| conn.qid == qid).unwrap();
        conn.push(pdu, &vec![0; pdu.data_len() as usize]);
    }

    /// Completes a command that was ignored.
    pub(super) fn complete(&mut self, qid: u16, cid: u16, status: Status) {
        self.inject(qid, &Pdu::CapsuleResp { cqe: Cqe::new(cid, status) });
    }

    pub(super) fn inject_bytes(&mut self, qid: u16, bytes: &[u8]) {
        let conn = self.conns.iter_mut().find(|conn| conn.qid == qid).unwrap();
        conn.out.extend_from_slice(bytes);
    }

    pub(super) fn complete_aer(&mut self, dw0: u32) {
        let (id, cid) = self.aers.remove(0);
        let mut cqe = Cqe::new(cid, Status::SUCCESS);
        cqe.dw0.set(dw0);
        let conn = self.conns.iter_mut().find(|conn| conn.id == id).unwrap();
        conn.push(&Pdu::CapsuleResp { cqe }, &[]);
    }

    pub(super) fn turn(&mut self, now: Instant) {
        self.now = now;
        self.pipe.turn(now);
        while let Some(event) = self.pipe.poll_event() {
            match event {
                Event::Accepted { conn, .. } => {
                    self.accepted += 1;
                    self.conns.push(Conn::new(conn));
                }
                Event::Readable(conn) => self.readable(conn),
                Event::PeerClosed(conn) => self.pipe.close(now, conn),
                Event::Closed(conn, _) => self.conns.retain(|c| c.id != conn),
                Event::Connected(_) | Event::Writable(_) => {}
                Event::Reachable(_) | Event::LinkUp => {}
            }
        }
        self.late();
        self.close_waiters(now);
        for conn in &mut self.conns {
            let sent = self.pipe.send(conn.id, &conn.out);
            conn.out.drain(..sent);
        }
        self.pipe.flush(now);
    }

    fn readable(&mut self, id: ConnId) {
        let mut bytes = Vec::new();
        self.pipe.recv(id, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            chunk.len()
        });
        let at = self.conns.iter().position(|conn| conn.id == id).unwrap();
        let mut conn = self.conns.remove(at);
        let mut input = &bytes[..];
        while let Some(item) = conn.decoder.next(&mut input).unwrap() {
            self.item(&mut conn, item);
        }
        self.conns.push(conn);
    }

    fn item(&mut self, conn: &mut Conn, item: Item<'_>) {
        match item {
            Item::Pdu(Pdu::ICReq(icreq)) => {
                conn.greeted = Some(self.now);
                let params =
                    Params { hdgst: icreq.hdgst, ddgst: icreq.ddgst, pda: self.knobs.cpda };
                conn.decoder.set_params(params);
                conn.params = Params { pda: icreq.hpda, ..params };
                let (cpda, maxh2cdata) = (self.knobs.cpda, self.knobs.maxh2cdata);
                let icresp =
                    ICResp { pfv: 0, cpda, hdgst: icreq.hdgst, ddgst: icreq.ddgst, maxh2cdata };
                if !self.knobs.silent_ic {
                    conn.push(&Pdu::ICResp(icresp), &[]);
                }
            }
            Item::Pdu(Pdu::H2CTermReq(term)) => self.term_reqs.push(term),
            Item::Pdu(Pdu::CapsuleCmd { sqe, data_len: 0 }) => self.command(conn, sqe, &[]),
            Item::Pdu(Pdu::CapsuleCmd { sqe, .. }) => conn.capsule = Some((sqe, Vec::new())),
            Item::Pdu(Pdu::H2CData(data)) => {
                assert!(data.datal <= self.knobs.maxh2cdata);
                self.h2c_pdus += 1;
                if self.tolerate_stray_data {
                    return;
                }
                let write = conn.write(data.cccid);
                assert_eq!(data.datao as usize, write.got, "in order");
                conn.filling = Some((data.cccid, data.datao as usize));
            }
            Item::Data(chunk) => match (&mut conn.capsule, conn.filling) {
                (Some((_, data)), _) => data.extend_from_slice(chunk),
                (None, Some((cid, at))) => {
                    let write = conn.write(cid);
                    write.data[at..at + chunk.len()].copy_from_slice(chunk);
                    write.got = at + chunk.len();
                    conn.filling = Some((cid, at + chunk.len()));
                }
                (None, None) if self.tolerate_stray_data => self.stray_bytes += chunk.len(),
                (None, None) => panic!("data of nothing"),
            },
            Item::DataEnd { digest_ok } => {
                assert!(digest_ok);
                if let Some((sqe, data)) = conn.capsule.take() {
                    return self.command(conn, sqe, &data);
                }
                if let Some((cid, _)) = conn.filling.take() {
                    self.write_progress(conn, cid);
                }
            }
            Item::Pdu(other) => panic!("a host sends no {other:?}"),
        }
    }

    fn write_progress(&mut self, conn: &mut Conn, cid: u16) {
        let chunk = self.knobs.chunk;
        let write = conn.write(cid);
        if write.got == write.data.len() {
            let at = conn.writes.iter().position(|w| w.sqe.cid.get() == cid).unwrap();
            let write = conn.writes.remove(at);
            return self.execute(conn, &write.sqe, &write.data);
        }
        if write.got.is_multiple_of(chunk) {
            let r2tl = (write.data.len() - write.got).min(chunk) as u32;
            let r2t = R2T { cccid: cid, ttag: 7, r2to: write.got as u32, r2tl };
            conn.push(&Pdu::R2T(r2t), &[]);
        }
    }

    fn command(&mut self, conn: &mut Conn, sqe: Sqe, data: &[u8]) {
        self.seen.push((conn.qid, sqe));
        conn.sqhd = if conn.sq_size > 0 { (conn.sqhd + 1) % conn.sq_size } else { 0 };
        let is_io = conn.qid > 0 && sqe.opcode != FABRICS;
        if is_io {
            match (self.knobs.hook)(&sqe) {
                Hook::Serve => {}
                Hook::Ignore => return,
                Hook::Late(by) => {
                    let (conn, association) = (conn.id, conn.association);
                    let due = self.now + by;
                    self.late.push(Late { due, conn, association, sqe, data: data.to_vec() });
                    return;
                }
                Hook::Fail(status) => return conn.respond(Cqe::new(sqe.cid.get(), status)),
                Hook::Bytes(bytes) => return conn.out.extend_from_slice(&bytes),
                Hook::Send(pdus) => {
                    for pdu in pdus {
                        conn.push(&pdu, &vec![0; pdu.data_len() as usize]);
                    }
                    return;
                }
            }
        }
        let len = sqe.sgl_len.get() as usize;
        if sqe.direction() == Direction::HostToController && data.len() < len {
            conn.writes.push(Write { sqe, data: vec![0; len], got: 0 });
            self.outstanding_max = self.outstanding_max.max(conn.writes.len());
            return self.write_progress(conn, sqe.cid.get());
        }
        self.execute(conn, &sqe, data);
    }

    fn execute(&mut self, conn: &mut Conn, sqe: &Sqe, data: &[u8]) {
        match (conn.qid, sqe.opcode) {
            (_, FABRICS) => self.fabrics(conn, sqe, data),
            (0, _) => self.admin(conn, sqe),
            (_, _) => self.io(conn, sqe, data),
        }
    }

    fn fabrics(&mut self, conn: &mut Conn, sqe: &Sqe, data: &[u8]) {
        let mut cqe = Cqe::new(sqe.cid.get(), Status::SUCCESS);
        match (sqe.fctype(), sqe.cdw11.get()) {
            (0x01, cdw11) => {
                assert_eq!(data.len(), 1024);
                if self.knobs.silent_connect {
                    return;
                }
                let waited = conn.greeted.is_some_and(|greeted| greeted + MS < self.now);
                if self.knobs.forgets_waiters && waited {
                    return self.pipe.reset(self.now, conn.id);
                }
                if let Some((status, dw0)) = self.knobs.refuse {
                    cqe = Cqe::new(sqe.cid.get(), status);
                    cqe.dw0.set(dw0);
                    return conn.respond(cqe);
                }
                conn.qid = (sqe.cdw10.get() >> 16) as u16;
                if conn.qid == 0 {
                    self.associations += 1;
                    self.kato = sqe.cdw12.get().next_multiple_of(u32::from(self.knobs.kas) * 100);
                }
                conn.association = self.associations;
                conn.sq_size = cdw11 as u16 + 1;
                conn.stuck_sqhd = self.knobs.stuck_sqhd;
                conn.dissqfc = cdw11 >> 16 & 4 != 0 && !self.knobs.flow_control;
                conn.sqhd = 1;
                cqe.dw0.set(0x17);
            }
            (0x04, 0x00) => cqe = cqe.with_result(127 | 1 << 16 | 2 << 24 | 1 << 37),
            (0x04, 0x08) => cqe.dw0.set(0x0002_0000),
            (0x04, 0x1C) => {
                let ready = conn.cc & 1 == 1 && !self.knobs.never_ready;
                let done = conn.cc >> 14 & 3 == 1 && !self.knobs.silent_shutdown;
                cqe.dw0.set(u32::from(ready) | if done { 2 << 2 } else { 0 });
            }
            (0x00, 0x14) => {
                conn.cc = sqe.cdw12.get();
            }
            other => panic!("fabrics command {other:?}"),
        }
        conn.respond(cqe);
    }

    fn admin(&mut self, conn: &mut Conn, sqe: &Sqe) {
        if self.knobs.silent_admin == Some(sqe.opcode) {
            return;
        }
        let mut cqe = Cqe::new(sqe.cid.get(), Status::SUCCESS);
        match sqe.opcode {
            0x06 => {
                let data = self.identify(sqe);
                return self.read_out(conn, sqe, &data);
            }
            0x02 => {
                let data = vec![0x5A; sqe.sgl_len.get() as usize];
                return self.read_out(conn, sqe, &data);
            }
            0x08 if self.knobs.aborts => {
                let Abort { sqid, cid } = Abort::from_sqe(sqe);
                self.complete(sqid, cid, Status::ABORT_REQUESTED);
            }
            0x08 => cqe.dw0.set(1),
            0x0C => return self.aers.push((conn.id, sqe.cid.get())),
            0x18 if self.knobs.silent_keep_alive => return,
            0x18 => {}
            0x09 => match sqe.cdw10.get() {
                0x07 => cqe.dw0.set((self.knobs.queues - 1) * 0x1_0001),
                0x0F => self.kato = sqe.cdw11.get(),
                _ => {}
            },
            0x0A => cqe.dw0.set(self.kato),
            _ => cqe = Cqe::new(sqe.cid.get(), Status::INVALID_OPCODE),
        }
        conn.respond(cqe);
    }

    fn identify(&self, sqe: &Sqe) -> Vec<u8> {
        let mut data = vec![0u8; 4096];
        match sqe.cdw10.get() & 0xFF {
            0x01 => {
                data[4..24].copy_from_slice(b"SERIAL              ");
                data[24..64].fill(b' ');
                data[24..28].copy_from_slice(b"fake");
                data[77] = self.knobs.mdts;
                data[92..96].copy_from_slice(&(1u32 << 8).to_le_bytes());
                data[96] = u8::from(self.knobs.tbkas) << 6;
                data[111] = 1;
                data[258] = self.knobs.acl;
                data[259] = 3;
                data[320..322].copy_from_slice(&self.knobs.kas.to_le_bytes());
                data[386..388].copy_from_slice(&self.knobs.cqt.to_le_bytes());
                data[514..516].copy_from_slice(&128u16.to_le_bytes());
                data[520..522].copy_from_slice(&0x0Cu16.to_le_bytes());
                data[525] = 1;
                data[536..540].copy_from_slice(&(1u32 | 1 << 20).to_le_bytes());
                data[1792..1796].copy_from_slice(&self.knobs.ioccsz.to_le_bytes());
                data[1796] = 1;
            }
            0x02 => data[..8].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]),
            0x00 => {
                data[..8].copy_from_slice(&BLOCKS.to_le_bytes());
                // Namespace 5 has metadata, which we cannot use.
                data[128] = if sqe.nsid.get() == 5 { 8 } else { 0 };
                data[130] = 9;
                data[104..120].fill(self.knobs.nguid);
            }
            0x03 => {
                data[..4].copy_from_slice(&[3, 16, 0, 0]);
                data[4..20].fill(0xCD);
            }
            cns => panic!("CNS {cns}"),
        }
        data
    }

    fn io(&mut self, conn: &mut Conn, sqe: &Sqe, data: &[u8]) {
        let start = sqe.cdw10_11() as usize * BLOCK;
        let len = ((sqe.cdw12.get() & 0xFFFF) as usize + 1) * BLOCK;
        match sqe.opcode {
            0x01 => {
                assert_eq!(data.len(), len);
                let mark = u64::from_le_bytes(data[..8].try_into().unwrap());
                let (at, lba, association) = (self.now, sqe.cdw10_11(), conn.association);
                let blocks = (len / BLOCK) as u64;
                self.executed.push(Executed { at, association, lba, blocks, mark });
                self.storage[start..start + len].copy_from_slice(data);
            }
            0x02 => {
                let data = self.storage[start..start + len].to_vec();
                return self.read_out(conn, sqe, &data);
            }
            0x08 => self.storage[start..start + len].fill(0),
            0x09 => {
                let nlb = u32::from_le_bytes(data[4..8].try_into().unwrap()) as usize;
                let slba = u64::from_le_bytes(data[8..16].try_into().unwrap()) as usize;
                self.storage[slba * BLOCK..][..nlb * BLOCK].fill(0);
            }
            _ => {}
        }
        conn.respond(Cqe::new(sqe.cid.get(), Status::SUCCESS));
    }

    fn read_out(&mut self, conn: &mut Conn, sqe: &Sqe, data: &[u8]) {
        let cid = sqe.cid.get();
        let success = self.knobs.success_flag && conn.dissqfc;
        let pieces = data.chunks(self.knobs.chunk);
        let count = pieces.len();
        for (index, piece) in pieces.enumerate() {
            let last = index + 1 == count;
            let datao = (index * self.knobs.chunk) as u32;
            let datal = piece.len() as u32;
            let success = last && success;
            let pdu = Data { cccid: cid, ttag: 0, datao, datal, last, success };
            conn.push(&Pdu::C2HData(pdu), piece);
        }
        if !success {
            conn.respond(Cqe::new(cid, Status::SUCCESS));
        }
    }
}

impl Conn {
    fn new(id: ConnId) -> Self {
        Self {
            id,
            association: 0,
            greeted: None,
            decoder: Decoder::new(Role::Controller, Limits::default()),
            params: Params::default(),
            out: Vec::new(),
            qid: 0,
            dissqfc: false,
            stuck_sqhd: false,
            cc: 0,
            sq_size: 0,
            sqhd: 0,
            writes: Vec::new(),
            filling: None,
            capsule: None,
        }
    }

    fn is_waiter(&self) -> bool {
        self.greeted.is_some() && self.association == 0
    }

    fn write(&mut self, cid: u16) -> &mut Write {
        self.writes.iter_mut().find(|write| write.sqe.cid.get() == cid).unwrap()
    }

    fn respond(&mut self, mut cqe: Cqe) {
        let sqhd = if self.dissqfc { 0xFFFF } else { self.sqhd };
        cqe.sqhd.set(if self.stuck_sqhd { 0 } else { sqhd });
        self.push(&Pdu::CapsuleResp { cqe }, &[]);
    }

    fn push(&mut self, pdu: &Pdu, data: &[u8]) {
        self.out.extend_from_slice(HeaderBuf::encode(pdu, &self.params).bytes());
        self.out.extend_from_slice(data);
        if self.params.ddgst && !data.is_empty() {
            let mut digest = DataDigest::new();
            digest.update(data);
            self.out.extend_from_slice(&digest.finish().to_le_bytes());
        }
    }
}

pub(super) fn address() -> SocketAddr {
    "10.0.0.2:4420".parse().unwrap()
}

/// A host, the fake, and a clock that jumps to whatever is next.
pub(super) struct World {
    pub now: Instant,
    pub host: Host<Pipe>,
    pub fake: Fake,
    pub events: Vec<HostEvent>,
}

impl World {
    pub(super) fn new(seed: u64, options: PipeOptions) -> Self {
        Self::with_limits(seed, options, HostLimits::default())
    }

    pub(super) fn with_limits(seed: u64, options: PipeOptions, limits: HostLimits) -> Self {
        let (near, far) = Pipe::pair(seed, options);
        let hostnqn = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
        let identity = HostIdentity { hostnqn: hostnqn.to_owned(), hostid: [1; 16] };
        let host = Host::new(near, identity, limits);
        let now = Instant::from_nanos(1_000_000_000);
        Self { now, host, fake: Fake::new(far), events: Vec::new() }
    }

    pub(super) fn turn(&mut self) {
        self.host.turn(self.now);
        self.events.extend(std::iter::from_fn(|| self.host.poll_event()));
        self.host.flush(self.now);
        let figures = self.host.figures();
        assert_eq!((figures.deadlines_early, figures.deadlines_late), (0, 0), "{:?}", self.now);
        self.fake.turn(self.now);
    }

    /// When something is to come.
    pub(super) fn next(&self) -> Option<Instant> {
        let late = self.fake.late.iter().map(|late| late.due).min();
        let late = earliest(late, self.fake.impatient_at());
        earliest(earliest(self.host.poll_timeout(), self.fake.pipe.poll_timeout()), late)
    }

    /// Turns and jumps until `done`; panics when nothing more will happen.
    pub(super) fn until<R>(&mut self, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        for _ in 0..200_000 {
            self.turn();
            if let Some(result) = done(self) {
                return result;
            }
            self.now = self.now.max(self.next().expect("something is to come"));
        }
        panic!("does not get there");
    }

    pub(super) fn event(&mut self) -> HostEvent {
        self.until(|world| (!world.events.is_empty()).then(|| world.events.remove(0)))
    }

    pub(super) fn connect(&mut self, config: CtrlConfig) -> CtrlId {
        self.host.connect(self.now, config).unwrap()
    }

    /// A live controller with the given configuration.
    pub(super) fn live(&mut self, config: CtrlConfig) -> CtrlId {
        let id = self.connect(config);
        let event = self.event();
        assert!(matches!(event, HostEvent::Live { .. }), "{event:?}");
        id
    }
}

pub(super) fn config() -> CtrlConfig {
    CtrlConfig::new(address(), "nqn.2026-01.org.moorline:test")
}
