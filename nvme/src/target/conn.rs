//! One qpair's connection as a pure machine: bytes in, commands out; completions in, bytes out.
//!
//! ```text
//! IcWait ──ICReq──> ConnectWait ──Connect──> Live
//!    └──────────────────┴── fatal error ──────┴──> Terminating ──> Dead
//! ```
//! A command lives in a slot from its capsule until its completion is in the send buffer. Every
//! slot is in exactly one phase, and its buffer with it. How data move is in [`super::transfer`].

use std::collections::VecDeque;
use std::net::SocketAddr;

use moorline_stack::mem::IoBuf;
use moorline_stack::{ConnId, Instant};

use super::TargetConfig;
use super::faults::{Fate, Late};
use super::io::Work;
use super::pool::{Class, Pool};
use super::transfer::Sending;
use crate::pdu::{
    Decoder, Fatal, HeaderBuf, ICReq, ICResp, Item, Limits, Params, Pdu, Role, TermReq,
};
use crate::spec::{ConnectData, Sqe, Status};

/// No command's: CIDs have 16 bits.
const NO_CID: u32 = u32::MAX;

/// Where a connection stands; the deadline of a state is in [`Conn::deadline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// ICReq must come.
    IcWait,
    /// Connect must come.
    ConnectWait,
    /// A queue of a controller.
    Live,
    /// A C2HTermReq is under way; what comes in is dropped.
    Terminating,
    /// The connection is gone; device requests may still be under way.
    Dead,
}

/// Where a slot's command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No command.
    Free,
    /// Just received, or being executed without waiting for anything.
    Admitted,
    /// Its in-capsule data are arriving.
    InCapsule,
    /// Waits for a buffer, or for room in its device.
    Waiting,
    /// R2T to be sent.
    SendR2T,
    /// R2T sent, data are arriving.
    AwaitData,
    /// The device works; it has the buffer.
    Device,
    /// Never to be answered: a fault's.
    Withheld,
    /// An Asynchronous Event Request, kept until there is an event.
    Held,
    /// Data of a read to be sent, then its completion.
    SendData,
    /// Completion to be sent.
    SendResp,
}

/// A command.
#[derive(Debug)]
pub(super) struct Slot {
    pub phase: Phase,
    pub sqe: Sqe,
    /// What an I/O command asks for.
    pub work: Work,
    pub buf: Option<IoBuf>,
    pub class: Class,
    /// Host data of a Compare, while its blocks are read into `buf`.
    pub compared: Option<(Class, IoBuf)>,
    /// Bytes of data, and how many of them were received or sent.
    pub len: u32,
    pub moved: u32,
    /// Counts the slot's R2Ts, so that a late TTAG is noticed.
    pub r2ts: u8,
    /// The step of a command that takes several device requests.
    pub step: u16,
    /// The completion.
    pub status: Status,
    pub result: u64,
    /// What is done wrong with it.
    pub fate: Fate,
}

impl Slot {
    fn new() -> Self {
        Self {
            phase: Phase::Free,
            sqe: Sqe::default(),
            work: Work::None,
            buf: None,
            class: Class::Small,
            compared: None,
            len: 0,
            moved: 0,
            r2ts: 0,
            step: 0,
            status: Status::SUCCESS,
            result: 0,
            fate: Fate::None,
        }
    }

    /// Whether it needs no buffer, or has it, so that it waits for nothing but its device.
    pub(super) fn passes(&self) -> bool {
        self.len == 0 || self.buf.is_some()
    }

    /// Whether its device request changes blocks.
    pub(super) fn changes_blocks(&self) -> bool {
        match self.work {
            Work::Write { .. } | Work::Deallocate { .. } => true,
            // A Flush follows, with FUA.
            Work::WriteZeroes { .. } => self.step == 0,
            Work::Read { .. } | Work::Compare { .. } | Work::Flush | Work::None => false,
        }
    }

    /// Gives the slot's buffers back.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        if let Some(buf) = self.buf.take() {
            pool.put(self.class, buf);
        }
        if let Some((class, buf)) = self.compared.take() {
            pool.put(class, buf);
        }
    }
}

/// What a connection has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A command came, with this much in-capsule data behind it.
    Command { slot: u16, data_len: u32 },
    /// All data of a command came; `ok` is false after a data digest error.
    Received { slot: u16, ok: bool },
}

/// Where data of the PDU at hand go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rx {
    /// Nowhere: their command has failed already.
    Discard,
    /// Connect's data.
    Connect { slot: u16, filled: u16 },
    /// A command's buffer, at its `moved`.
    Slot { slot: u16 },
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub id: ConnId,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub state: State,
    /// ICReq, Connect or the end of a termination is due.
    pub deadline: Option<Instant>,
    /// Bytes of transfers moved, either way.
    pub moved: u64,
    /// What `moved` was when it was last looked at and had changed, and when that was.
    pub seen: (u64, Instant),
    /// Index of its controller, and which queue of it this is.
    pub controller: Option<u16>,
    pub qid: u16,
    /// Room for a Connect's data until there was one: all that is held for an unknown peer.
    pub connect_data: Option<Box<[u8; ConnectData::BYTES as usize]>>,
    pub slots: Box<[Slot]>,
    /// CID of each slot's command, for one look at all; [`NO_CID`] where there is none.
    cids: Box<[u32]>,
    free: Vec<u16>,
    /// Commands that wait for a buffer or their device, in order.
    pub waiting: VecDeque<u16>,
    /// A command whose in-capsule data wait for a buffer: nothing is read until then.
    pub paused: Option<u16>,
    /// Requests that devices hold.
    pub in_flight: u32,
    /// Commands whose R2T is not answered in full.
    pub awaiting_data: u16,
    /// SQ flow control is on: SQHD counts.
    pub flow_control: bool,
    sqhd: u16,
    pub rx: Rx,
    decoder: Decoder,
    pub(super) params: Params,
    /// Slots with something to send, in order.
    pub(super) tx: VecDeque<u16>,
    /// ICResp or C2HTermReq, before everything that is not begun.
    pub(super) special: Option<HeaderBuf>,
    pub(super) sending: Option<Sending>,
    pub(super) h2c_data_bytes_max: u32,
    /// In the target's lists of connections to be served, sent for, retried.
    pub in_ready: bool,
    pub in_dirty: bool,
    /// Data came whole in this turn: the peer may wait for our acknowledgement.
    pub ack_wanted: bool,
    pub in_starved: bool,
    /// Answers that a fault holds back.
    pub late: VecDeque<Late>,
    /// A fault keeps us from reading.
    pub is_withheld: bool,
    /// A fault ended it within a PDU.
    pub is_cut: bool,
    /// The peer sent FIN.
    pub peer_closed: bool,
    /// The host deleted the queue by Disconnect, and is to close.
    pub disconnected: bool,
    /// Its Connect waits, until then at most, for what devices still do for its host.
    pub held: Option<Instant>,
    /// What the peer did wrong.
    pub fatal: Option<Fatal>,
    grant: (bool, bool),
    connect_timeout: std::time::Duration,
    term_timeout: std::time::Duration,
}

impl Conn {
    /// A connection just accepted.
    pub fn new(
        now: Instant,
        id: ConnId,
        local: SocketAddr,
        peer: SocketAddr,
        config: &TargetConfig,
    ) -> Self {
        let limits = Limits { h2c_data_max: config.h2c_data_bytes_max, ..Limits::default() };
        Self {
            id,
            peer,
            local,
            state: State::IcWait,
            deadline: Some(now + config.icreq_timeout),
            moved: 0,
            seen: (0, now),
            controller: None,
            qid: 0,
            connect_data: Some(Box::new([0; ConnectData::BYTES as usize])),
            slots: [Slot::new()].into(),
            cids: [NO_CID].into(),
            free: vec![0],
            waiting: VecDeque::new(),
            paused: None,
            in_flight: 0,
            awaiting_data: 0,
            flow_control: true,
            sqhd: 0,
            rx: Rx::Discard,
            decoder: Decoder::new(Role::Controller, limits),
            params: Params::default(),
            tx: VecDeque::with_capacity(1),
            special: None,
            sending: None,
            h2c_data_bytes_max: config.h2c_data_bytes_max,
            in_ready: false,
            in_dirty: false,
            ack_wanted: false,
            in_starved: false,
            late: VecDeque::new(),
            is_withheld: false,
            is_cut: false,
            peer_closed: false,
            disconnected: false,
            held: None,
            fatal: None,
            grant: (config.hdgst, config.ddgst),
            connect_timeout: config.connect_timeout,
            term_timeout: config.term_timeout,
        }
    }

    /// Connect succeeded in `slot`: the connection is queue `qid` of a controller, `depth`
    /// entries long.
    pub fn go_live(&mut self, slot: u16, controller: u16, qid: u16, depth: u16, limits: Limits) {
        assert!(self.state == State::ConnectWait && slot == 0);
        self.state = State::Live;
        self.deadline = None;
        self.controller = Some(controller);
        self.qid = qid;
        self.connect_data = None;
        self.decoder.set_limits(limits);
        let mut slots = std::mem::take(&mut self.slots).into_vec();
        slots.resize_with(usize::from(depth), Slot::new);
        self.slots = slots.into();
        let first = self.cids[0];
        self.cids = vec![NO_CID; usize::from(depth)].into();
        self.cids[0] = first;
        self.sqhd = 1; // Connect was its first entry
        self.free = (1..depth).rev().collect();
        self.free.reserve_exact(1);
        self.waiting.reserve_exact(usize::from(depth));
        self.tx.reserve_exact(usize::from(depth));
    }

    /// Parses until there is something to tell, the input is used up, or reading is paused.
    pub fn next(&mut self, now: Instant, input: &mut &[u8]) -> Option<Event> {
        // Each pass takes an item; items are at most as many as the input has bytes, and two.
        while self.paused.is_none() {
            match self.state {
                State::IcWait | State::ConnectWait | State::Live => {}
                State::Terminating | State::Dead => {
                    *input = &[];
                    return None;
                }
            }
            let event = match self.decoder.next(input) {
                Ok(None) => return None,
                Ok(Some(Item::Pdu(pdu))) => self.pdu(now, &pdu),
                Ok(Some(Item::Data(chunk))) => {
                    self.data(chunk);
                    self.moved += chunk.len() as u64;
                    Ok(None)
                }
                Ok(Some(Item::DataEnd { digest_ok })) => Ok(self.data_end(digest_ok)),
                Err(fatal) => Err(fatal),
            };
            match event {
                Ok(None) => {}
                Ok(Some(event)) => return Some(event),
                Err(fatal) => self.fail(now, fatal),
            }
        }
        None
    }

    fn pdu(&mut self, now: Instant, pdu: &Pdu) -> Result<Option<Event>, Fatal> {
        match pdu {
            Pdu::ICReq(ic) => {
                self.ic_req(now, ic);
                Ok(None)
            }
            Pdu::H2CTermReq(term) => {
                tracing::warn!(peer = %self.peer, fes = term.fes, fei = term.fei, "H2CTermReq");
                self.state = State::Dead;
                Ok(None)
            }
            Pdu::CapsuleCmd { sqe, data_len } => self.capsule(sqe, *data_len).map(Some),
            Pdu::H2CData(data) => self.h2c_data(data).map(|()| None),
            Pdu::ICResp(_)
            | Pdu::C2HTermReq(_)
            | Pdu::CapsuleResp { .. }
            | Pdu::C2HData(_)
            | Pdu::R2T(_) => Err(Fatal::PduSequence),
        }
    }

    /// ICReq: digests are granted where asked for and allowed; CPDA is 0 (a Linux host wants it).
    fn ic_req(&mut self, now: Instant, ic: &ICReq) {
        let (hdgst, ddgst) = (ic.hdgst && self.grant.0, ic.ddgst && self.grant.1);
        self.decoder.set_params(Params { hdgst, ddgst, pda: 0 });
        self.params = Params { hdgst, ddgst, pda: ic.hpda };
        let maxh2cdata = self.h2c_data_bytes_max;
        let resp = Pdu::ICResp(ICResp { pfv: 0, cpda: 0, hdgst, ddgst, maxh2cdata });
        self.special = Some(HeaderBuf::encode(&resp, &Params::default()));
        self.state = State::ConnectWait;
        self.deadline = Some(now + self.connect_timeout);
    }

    fn capsule(&mut self, sqe: &Sqe, data_len: u32) -> Result<Event, Fatal> {
        // More commands than the queue has entries: the peer does not keep to SQSIZE.
        let index = self.free.pop().ok_or(Fatal::LimitExceeded)?;
        let conflict = self.cids.contains(&sqe.cid.get().into());
        self.cids[usize::from(index)] = sqe.cid.get().into();
        let depth = self.slots.len() as u16;
        self.sqhd = (self.sqhd + 1) % depth.max(1);
        self.rx = Rx::Discard;
        let slot = &mut self.slots[usize::from(index)];
        slot.phase = Phase::Admitted;
        slot.sqe = *sqe;
        slot.work = Work::None;
        (slot.len, slot.moved, slot.step) = (0, 0, 0);
        slot.status = if conflict { Status::CID_CONFLICT } else { Status::SUCCESS };
        slot.result = 0;
        slot.fate = Fate::None;
        Ok(Event::Command { slot: index, data_len })
    }

    /// Ends the connection for what the peer did: a TermReq, then nothing more.
    pub fn fail(&mut self, now: Instant, fatal: Fatal) {
        tracing::warn!(peer = %self.peer, qid = self.qid, %fatal, "protocol violation");
        self.fatal = Some(fatal);
        let term = self.decoder.term_req(fatal);
        self.terminate(now, term);
    }

    /// The same for nothing that the peer did: a fault's.
    pub(super) fn end_by(&mut self, now: Instant, fes: u16) {
        let term = Pdu::C2HTermReq(TermReq { fes, fei: 0 });
        self.terminate(now, Some(HeaderBuf::encode(&term, &Params::default())));
    }

    /// Ends the connection, with a TermReq if that is its own fault: nothing more is executed,
    /// and the peer is to close.
    pub(super) fn terminate(&mut self, now: Instant, term: Option<HeaderBuf>) {
        self.special = term;
        self.state = State::Terminating;
        // Armed whether the TermReq can be sent or not.
        self.deadline = Some(now + self.term_timeout);
        self.held = None;
        self.paused = None;
        self.waiting.clear();
        self.tx.clear();
        self.late.clear();
        // A PDU that is begun is finished, for the TermReq to be found behind it.
    }

    /// Completes a command; its buffers come back at once.
    pub fn complete(&mut self, pool: &mut Pool, slot: u16, status: Status, result: u64) {
        let s = &mut self.slots[usize::from(slot)];
        s.release(pool);
        debug_assert!(!matches!(s.phase, Phase::Free | Phase::SendResp | Phase::SendData));
        s.phase = Phase::SendResp;
        s.status = status;
        s.result = result;
        self.enqueue(slot);
    }

    /// Completes a read: `len` bytes of its buffer, then success.
    pub fn reply(&mut self, slot: u16, len: u32) {
        let s = &mut self.slots[usize::from(slot)];
        assert!(s.buf.as_ref().is_some_and(|buf| buf.len() >= len as usize));
        (s.phase, s.status, s.result) = (Phase::SendData, Status::SUCCESS, 0);
        (s.len, s.moved) = (len, 0);
        self.enqueue(slot);
    }

    /// Has a slot's phase sent.
    pub fn enqueue(&mut self, slot: u16) {
        if !matches!(self.state, State::ConnectWait | State::Live) {
            return;
        }
        let s = &mut self.slots[usize::from(slot)];
        match (s.fate, s.phase) {
            (Fate::NoCompletion, Phase::SendResp) => s.phase = Phase::Withheld,
            (Fate::Late(by), Phase::SendResp | Phase::SendData) => {
                s.fate = Fate::None;
                self.late.push_back(Late { slot, by, at: None });
            }
            _ => self.tx.push_back(slot),
        }
    }

    /// A completion is in the send buffer: the slot is free.
    pub(super) fn free(&mut self, slot: u16, pool: &mut Pool) {
        let s = &mut self.slots[usize::from(slot)];
        s.release(pool);
        s.phase = Phase::Free;
        self.cids[usize::from(slot)] = NO_CID;
        self.free.push(slot);
    }

    /// SQHD for a completion; FFFFh, in Connect's, is how a host learns that SQ flow control is off.
    pub(super) fn sqhd(&self) -> u16 {
        if self.flow_control { self.sqhd } else { 0xFFFF }
    }

    /// The slot of an outstanding command.
    pub fn slot_of(&self, cid: u16) -> Option<u16> {
        let held = self.cids.iter().position(|&held| held == u32::from(cid))?;
        Some(held as u16)
    }

    /// Looks whether a transfer moved since the last look; how long none has.
    pub fn stalled_for(&mut self, now: Instant) -> std::time::Duration {
        let transfers = self.awaiting_data > 0 || self.sending.is_some();
        if !transfers || self.seen.0 != self.moved {
            self.seen = (self.moved, now);
        }
        now.since(self.seen.1)
    }

    /// Whether no command is outstanding.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether anything waits to be sent.
    pub fn has_tx(&self) -> bool {
        self.sending.is_some() || self.special.is_some() || !self.tx.is_empty()
    }

    /// The connection is gone: gives back all buffers but those that devices hold.
    pub fn bury(&mut self, pool: &mut Pool) {
        self.state = State::Dead;
        self.deadline = None;
        self.held = None;
        self.paused = None;
        self.waiting.clear();
        self.tx.clear();
        self.late.clear();
        (self.special, self.sending) = (None, None);
        for slot in &mut self.slots {
            slot.release(pool);
        }
    }
}
