//! One queue pair: a TCP connection as the host sees it. Pure: bytes and `now` in; bytes,
//! completions and the next deadline out.
//!
//! ```text
//! Idle ─connect→ Tcp ─connected→ IcSent ─ICResp→ ConnectSent ─success→ Live
//!                 any of them ─violation, TermReq, timeout, lost→ Ended
//! ```
//!
//! What always holds: nothing is sent before its turn in that figure; a command's buffer is
//! neither read nor written once its completion was given out; `Ended` has one reason, the first.
//!
//! A CID that is not on the wire is fatal (FES 1), a stale generation too: a CID is used again
//! only after its completion, that of an aborted command too, and a new connection starts with new
//! tables, so nothing of an old one can be meant.
//!
//! SQHD is not looked at. A queue of D entries carries at most D - 1 commands at once here, so the
//! controller never has more than that to fetch, with SQ flow control or without; waiting for
//! SQHD as well would only let a controller that reports it badly stall the queue.

use std::collections::VecDeque;
use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::time::earliest;

use super::emission::Emission;
use super::failure::{Cause, Stage};
use super::ic::{Agreed, Ask};
use super::table::{Grant, Table};
use super::work::{Owner, Work, WorkDone};
use crate::limits::ADMIN_IN_CAPSULE_BYTES_MAX;
use crate::pdu::fes::offset;
use crate::pdu::{Data, Decoder, Fatal, HeaderBuf, ICResp, Item, Limits, Params, Pdu, R2T, Role};
use crate::spec::{Cqe, Direction, Status};

/// What a qpair asks for when it is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct QpairConfig {
    pub queue_size: u16,
    pub ask: Ask,
    pub icresp_timeout: Duration,
    /// In-capsule data that this queue takes, bytes.
    pub in_capsule_max: u32,
}

/// Where a qpair stands, since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Tcp { since: Instant },
    IcSent { since: Instant, deadline: Instant },
    ConnectSent { since: Instant },
    Live,
    Ended,
}

/// Why a qpair ended. What is not said here, the controller knows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    pub stage: Option<Stage>,
    pub awaited: Option<&'static str>,
    pub after: Option<Duration>,
    pub cause: Cause,
}

/// Where received data go: the command, and the next byte of its data.
#[derive(Clone, Copy, Debug)]
struct Receiving {
    slot: u16,
    at: usize,
    success: bool,
}

/// One queue pair.
#[derive(Debug)]
pub(super) struct Qpair {
    pub(super) config: QpairConfig,
    state: State,
    /// Connect, until ICResp allows it.
    connect: Option<Work>,
    pub(super) table: Table,
    decoder: Decoder,
    receiving: Option<Receiving>,
    /// For PDUs that we send, once ICResp said so.
    params: Params,
    h2c_data_max: u32,
    /// Slots with something to send, in order; a slot is in it once.
    tx: VecDeque<u16>,
    control: Option<HeaderBuf>,
    emission: Option<Emission>,
    /// No command's deadline is earlier; found again by a scan when it comes.
    pub(super) armed: Option<Instant>,
    /// Commands whose Abort waits for its turn.
    pub(super) aborts_wanted: u16,
    end: Option<End>,
    connect_response: Option<Cqe>,
    ack_wanted: bool,
    /// PDUs received since it was last asked.
    pdus: u64,
    /// When the newest of the commands that have completed was submitted.
    newest_done: Instant,
}

impl Qpair {
    /// A qpair with its tables; the only allocation.
    pub(super) fn new(config: QpairConfig) -> Self {
        let commands = usize::from(config.queue_size) - 1;
        Self {
            config,
            state: State::Idle,
            connect: None,
            table: Table::new(commands),
            decoder: Decoder::new(Role::Host, Limits::default()),
            receiving: None,
            params: Params::default(),
            h2c_data_max: 0,
            tx: VecDeque::with_capacity(commands),
            control: None,
            emission: None,
            armed: None,
            aborts_wanted: 0,
            end: None,
            connect_response: None,
            ack_wanted: false,
            pdus: 0,
            newest_done: Instant::ZERO,
        }
    }

    /// The TCP connection was asked for; `connect` will be this queue's first command.
    pub(super) fn start(&mut self, now: Instant, connect: Work) {
        assert!(self.state == State::Idle, "a qpair is connected once");
        self.connect = Some(connect);
        self.state = State::Tcp { since: now };
    }

    /// The TCP connection is established: ICReq goes out.
    pub(super) fn connected(&mut self, now: Instant) {
        let State::Tcp { .. } = self.state else { return };
        self.control = Some(self.config.ask.icreq());
        self.state = State::IcSent { since: now, deadline: now + self.config.icresp_timeout };
    }

    /// There is a connection that has received ICResp (as `decoder` has seen): Connect goes out.
    pub(super) fn adopt(&mut self, now: Instant, decoder: Decoder, agreed: Agreed) {
        assert!(matches!(self.state, State::Tcp { .. }), "in place of a TCP connection");
        self.decoder = decoder;
        self.send_connect(now, agreed);
    }

    /// Whether a work would be accepted while leaving `reserve` commands free.
    pub(super) fn has_room(&self, reserve: usize) -> bool {
        self.is_live() && self.table.has_room(reserve)
    }

    /// Takes a work for which there is room.
    pub(super) fn submit(&mut self, now: Instant, work: Work) {
        self.table.accept(now, work);
        self.issue(now);
    }

    /// Takes a work for which there is room, and which cannot be done: ends it with `status`.
    pub(super) fn reject(&mut self, now: Instant, work: Work, status: Status) {
        self.table.reject(now, work, status);
    }

    /// Turns what waits into commands, as far as slots go.
    fn issue(&mut self, now: Instant) {
        let in_capsule_max = match self.state {
            State::ConnectSent { .. } => ADMIN_IN_CAPSULE_BYTES_MAX, // every Fabrics command
            _ => self.config.in_capsule_max,
        };
        while let Some(index) = self.table.next_command(now, in_capsule_max) {
            let first = self.table.work(index).owner == Owner::KeepAlive;
            let slot = self.table.slot_mut(index);
            slot.queued = true;
            self.armed = earliest(self.armed, slot.deadline);
            // Keep alive overtakes what waits; a PDU half sent is finished before it.
            if first { self.tx.push_front(index) } else { self.tx.push_back(index) }
        }
    }

    /// Takes in what was received: all of it, always.
    pub(super) fn recv(&mut self, now: Instant, mut bytes: &[u8]) {
        while self.state != State::Ended {
            let outcome = match self.decoder.next(&mut bytes) {
                Ok(Some(Item::Data(chunk))) => {
                    self.data(chunk);
                    Ok(())
                }
                Ok(Some(Item::Pdu(pdu))) => {
                    self.pdus += 1;
                    self.pdu(now, pdu)
                }
                Ok(Some(Item::DataEnd { digest_ok })) => self.data_end(now, digest_ok),
                Ok(None) => return,
                Err(fatal) => Err(fatal),
            };
            if let Err(fatal) = outcome {
                self.violated(now, fatal);
            }
        }
    }

    fn pdu(&mut self, now: Instant, pdu: Pdu) -> Result<(), Fatal> {
        match pdu {
            Pdu::ICResp(icresp) => self.icresp(now, icresp),
            Pdu::CapsuleResp { cqe } => self.capsule_resp(now, cqe),
            Pdu::C2HData(data) => self.c2h_data(data),
            Pdu::R2T(r2t) => self.r2t(r2t),
            Pdu::C2HTermReq(term) => {
                self.end(now, Cause::Terminated(term));
                Ok(())
            }
            Pdu::ICReq(_) | Pdu::H2CTermReq(_) | Pdu::CapsuleCmd { .. } | Pdu::H2CData(_) => {
                Err(Fatal::PduSequence) // the decoder lets none of them through
            }
        }
    }

    fn icresp(&mut self, now: Instant, icresp: ICResp) -> Result<(), Fatal> {
        let State::IcSent { .. } = self.state else { return Err(Fatal::PduSequence) };
        let agreed = self.config.ask.agree(&mut self.decoder, icresp)?;
        self.send_connect(now, agreed);
        Ok(())
    }

    fn send_connect(&mut self, now: Instant, agreed: Agreed) {
        self.params = agreed.params;
        self.h2c_data_max = agreed.h2c_data_max;
        self.state = State::ConnectSent { since: now };
        let connect = self.connect.take().expect("start() left it here");
        self.submit(now, connect);
    }

    fn capsule_resp(&mut self, now: Instant, mut cqe: Cqe) -> Result<(), Fatal> {
        let index = self.table.lookup(cqe.cid.get());
        let index = index.ok_or(Fatal::InvalidHeaderField(offset::RESP_CID))?;
        let slot = self.table.slot(index);
        if cqe.status().is_success() {
            let missing = match slot.direction {
                // There is no short read in NVMe, nor a write done without its data.
                Direction::ControllerToHost => slot.received < slot.len,
                Direction::HostToController => {
                    !slot.in_capsule && (slot.requested < slot.len || slot.grant.is_some())
                }
                Direction::None | Direction::Both => false,
            };
            if missing {
                return Err(Fatal::PduSequence);
            }
            if slot.digest_failed {
                cqe.status.set(Status::TRANSIENT_TRANSPORT.to_cqe());
            }
        }
        if self.table.work(index).owner == Owner::Connect {
            self.connect_done(now, &cqe);
        }
        self.complete(now, index, cqe);
        Ok(())
    }

    fn connect_done(&mut self, now: Instant, cqe: &Cqe) {
        if cqe.status().is_success() {
            self.connect_response = Some(*cqe);
            self.state = State::Live;
        } else {
            let cause = Cause::ConnectRefused { status: cqe.status(), dw0: cqe.dw0.get() };
            self.end(now, cause);
        }
    }

    fn c2h_data(&mut self, data: Data) -> Result<(), Fatal> {
        let index = self
            .table
            .lookup(data.cccid)
            .filter(|&index| self.table.slot(index).direction == Direction::ControllerToHost);
        let index = index.ok_or(Fatal::InvalidHeaderField(offset::CCCID))?;
        let slot = self.table.slot_mut(index);
        if slot.last_seen {
            return Err(Fatal::PduSequence);
        }
        let end = u64::from(data.datao) + u64::from(data.datal);
        if data.datao != slot.received || end > u64::from(slot.len) {
            return Err(Fatal::DataOutOfRange);
        }
        slot.last_seen = data.last;
        let at = data.datao as usize;
        self.receiving = Some(Receiving { slot: index, at, success: data.success });
        Ok(())
    }

    /// The one copy of received payload: from the receive ring into the caller's buffer.
    fn data(&mut self, chunk: &[u8]) {
        let receiving = self.receiving.as_mut().expect("data follow a C2HData header");
        let at = receiving.at;
        receiving.at += chunk.len();
        self.table.sink(receiving.slot)[at..at + chunk.len()].copy_from_slice(chunk);
    }

    fn data_end(&mut self, now: Instant, digest_ok: bool) -> Result<(), Fatal> {
        let Receiving { slot: index, at, success } =
            self.receiving.take().expect("data follow a C2HData header");
        let slot = self.table.slot_mut(index);
        slot.received = at as u32;
        slot.digest_failed |= !digest_ok;
        if !success {
            self.ack_wanted = true; // its CapsuleResp may wait for our ACK
            return Ok(());
        }
        if slot.received < slot.len {
            return Err(Fatal::PduSequence);
        }
        let status = if slot.digest_failed { Status::TRANSIENT_TRANSPORT } else { Status::SUCCESS };
        let cqe = Cqe::new(slot.sqe.cid.get(), status);
        self.complete(now, index, cqe);
        Ok(())
    }

    fn r2t(&mut self, r2t: R2T) -> Result<(), Fatal> {
        let index = self.table.lookup(r2t.cccid).filter(|&index| {
            let slot = self.table.slot(index);
            slot.direction == Direction::HostToController && !slot.in_capsule
        });
        let index = index.ok_or(Fatal::InvalidHeaderField(offset::CCCID))?;
        let slot = self.table.slot_mut(index);
        if slot.grant.is_some() {
            return Err(Fatal::LimitExceeded); // MAXR2T 0: one at a time
        }
        if r2t.r2tl == 0 {
            return Err(Fatal::InvalidHeaderField(offset::DATAL));
        }
        let end = u64::from(r2t.r2to) + u64::from(r2t.r2tl);
        if r2t.r2to != slot.requested || end > u64::from(slot.len) {
            return Err(Fatal::DataOutOfRange);
        }
        slot.requested = end as u32;
        slot.grant = Some(Grant { ttag: r2t.ttag, at: r2t.r2to, end: end as u32 });
        self.enqueue(index);
        Ok(())
    }

    fn enqueue(&mut self, index: u16) {
        let slot = self.table.slot_mut(index);
        if !slot.queued {
            slot.queued = true;
            self.tx.push_back(index);
        }
    }

    /// Ends a command; one of whose PDUs half is sent ends when the other half is, for until then
    /// its buffer is read.
    fn complete(&mut self, now: Instant, index: u16, cqe: Cqe) {
        self.newest_done = self.newest_done.max(self.table.submitted(index));
        self.settle_abort(index);
        if self.emission.as_ref().is_some_and(|emission| emission.slot == Some(index)) {
            self.table.slot_mut(index).held = Some(cqe);
            return;
        }
        if self.table.slot(index).queued {
            self.tx.retain(|&queued| queued != index); // failed before all its data were sent
        }
        self.table.finish(index, cqe);
        self.issue(now);
    }

    /// Emits what is to be sent, as far as `send` takes it. True: nothing is left.
    pub(super) fn emit(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]) -> usize) -> bool {
        loop {
            if self.emission.is_none() {
                self.emission = self.next_pdu();
            }
            let Some(emission) = &mut self.emission else { return true };
            let source = match emission.slot {
                Some(index) if emission.data_at < emission.data_end => self.table.source(index),
                Some(_) | None => &[],
            };
            if !emission.push(source, send) {
                return false;
            }
            let slot = emission.slot;
            self.emission = None;
            if let Some(index) = slot {
                self.pdu_sent(now, index);
            }
        }
    }

    /// The next PDU to send: ICReq and TermReq first, then commands and their data in turn.
    fn next_pdu(&mut self) -> Option<Emission> {
        if let Some(header) = self.control.take() {
            return Some(Emission::header_only(header, None));
        }
        let index = self.tx.pop_front()?;
        let slot = self.table.slot_mut(index);
        slot.queued = false;
        if !slot.begun {
            self.table.begin(index);
            let slot = self.table.slot(index);
            let data_len = if slot.in_capsule { slot.len } else { 0 };
            let pdu = Pdu::CapsuleCmd { sqe: slot.sqe, data_len };
            let header = HeaderBuf::encode(&pdu, &self.params);
            return Some(match data_len {
                0 => Emission::header_only(header, Some(index)),
                len => Emission::with_data(header, index, 0, len as usize, self.params.ddgst),
            });
        }
        let grant = slot.grant.as_mut().expect("a begun command is queued for its data");
        let (at, datal) = (grant.at, (grant.end - grant.at).min(self.h2c_data_max));
        grant.at += datal;
        let data = Data {
            cccid: slot.sqe.cid.get(),
            ttag: grant.ttag,
            datao: at,
            datal,
            last: grant.at == grant.end,
            success: false,
        };
        let header = HeaderBuf::encode(&Pdu::H2CData(data), &self.params);
        let (at, end) = (at as usize, (at + datal) as usize);
        Some(Emission::with_data(header, index, at, end, self.params.ddgst))
    }

    fn pdu_sent(&mut self, now: Instant, index: u16) {
        let slot = self.table.slot_mut(index);
        if let Some(cqe) = slot.held.take() {
            self.table.finish(index, cqe);
            self.issue(now);
            return;
        }
        if let Some(grant) = slot.grant {
            if grant.at == grant.end {
                slot.grant = None;
            } else {
                self.enqueue(index);
            }
        }
    }

    /// Honours what is due; early or repeated calls do nothing. `grace` is for commands that can
    /// be aborted.
    pub(super) fn handle_timeout(&mut self, now: Instant, grace: Option<Duration>) {
        if let State::IcSent { deadline, .. } = self.state
            && deadline <= now
        {
            self.end(now, Cause::Timeout);
        }
        if self.armed.is_none_or(|armed| now < armed) || self.end.is_some() {
            return;
        }
        self.commands_due(now, grace);
    }

    /// Another ICResp timeout, also for the one that is awaited.
    pub(super) fn set_icresp_timeout(&mut self, now: Instant, timeout: Duration) {
        let before = std::mem::replace(&mut self.config.icresp_timeout, timeout);
        if let State::IcSent { deadline, .. } = &mut self.state
            && before != timeout
        {
            *deadline = deadline.retimed(before, timeout).max(now);
        }
    }

    /// The next deadline.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let of_state = match self.state {
            State::IcSent { deadline, .. } => Some(deadline),
            State::Ended => return None,
            State::Idle | State::Tcp { .. } | State::ConnectSent { .. } | State::Live => None,
        };
        earliest(of_state, self.armed)
    }

    /// The peer broke the protocol: it is told with a TermReq, unless a PDU is half sent, in
    /// which nothing else can be said.
    fn violated(&mut self, now: Instant, fatal: Fatal) {
        let term_req = self.decoder.term_req(fatal);
        let clean = self.emission.is_none();
        self.end(now, Cause::Protocol(fatal));
        self.control = term_req.filter(|_| clean);
    }

    /// The connection is lost, or never was.
    pub(super) fn lost(&mut self, now: Instant, cause: Cause) {
        self.end(now, cause);
    }

    fn end(&mut self, now: Instant, cause: Cause) {
        let after = self.since().map(|since| now - since);
        let (stage, awaited) = (self.stage(), self.awaited());
        self.end_with(End { stage, awaited, after, cause });
    }

    pub(super) fn end_with(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.tx.clear();
            self.control = None;
            self.emission = None;
            self.receiving = None;
            self.state = State::Ended;
        }
    }

    /// Ends everything accepted with `status`; nothing more is sent but a TermReq that waits.
    pub(super) fn abandon(&mut self, status: Status) {
        self.state = State::Ended;
        self.tx.clear();
        self.emission = None;
        self.receiving = None;
        self.armed = None;
        self.aborts_wanted = 0;
        self.table.abandon(status);
    }

    /// Why it ended, once.
    pub(super) fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }

    /// The next work that ended.
    pub(super) fn poll_done(&mut self) -> Option<WorkDone> {
        self.table.poll_done()
    }

    /// Whether something ended that was not polled.
    pub(super) fn has_done(&self) -> bool {
        self.table.has_done()
    }

    /// Whether there is something to send.
    pub(super) fn has_tx(&self) -> bool {
        self.emission.is_some() || self.control.is_some() || !self.tx.is_empty()
    }

    /// Whether a TermReq waits to be sent.
    pub(super) fn has_control(&self) -> bool {
        self.control.is_some()
    }

    /// Whether no work is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.table.is_idle()
    }

    pub(super) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// The answer to Connect, once.
    pub(super) fn take_connect_response(&mut self) -> Option<Cqe> {
        self.connect_response.take()
    }

    /// PDUs received since this was last asked.
    pub(super) fn take_pdus(&mut self) -> u64 {
        std::mem::take(&mut self.pdus)
    }

    /// The peer may wait for our ACK; asked once per data received.
    pub(super) fn take_ack_wanted(&mut self) -> bool {
        std::mem::take(&mut self.ack_wanted)
    }

    /// When the newest of the commands that have completed was submitted: the controller has
    /// seen one that is no older than that.
    pub(super) fn newest_done(&self) -> Instant {
        self.newest_done
    }

    /// Since when it is in its stage, while it is not live.
    fn since(&self) -> Option<Instant> {
        match self.state {
            State::Tcp { since } | State::IcSent { since, .. } | State::ConnectSent { since } => {
                Some(since)
            }
            State::Idle | State::Live | State::Ended => None,
        }
    }

    /// Its stage, while it is not live.
    pub(super) fn stage(&self) -> Option<Stage> {
        match self.state {
            State::Idle | State::Tcp { .. } => Some(Stage::Tcp),
            State::IcSent { .. } => Some(Stage::InitializeConnection),
            State::ConnectSent { .. } => Some(Stage::Connect),
            State::Live | State::Ended => None,
        }
    }

    /// What it awaits, while it is not live.
    pub(super) fn awaited(&self) -> Option<&'static str> {
        match self.state {
            State::Idle | State::Tcp { .. } => Some("TCP connection"),
            State::IcSent { .. } => Some("ICResp"),
            State::ConnectSent { .. } => Some("Connect response"),
            State::Live | State::Ended => None,
        }
    }
}
