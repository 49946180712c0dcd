//! How data move on a connection: in-capsule, R2T and H2CData, C2HData; and how PDUs are sent.
//!
//! One R2T a command, as long as the command. A PDU that is begun is finished before the next; a
//! long read is cut into PDUs so that others get their turn between them.

use super::conn::{Conn, Event, Phase, Rx, Slot};
use super::faults::Fate;
use super::pool::Pool;
use crate::limits::DIGEST_BLOCK_BYTES;
use crate::pdu::digest::DataDigest;
use crate::pdu::fes::offset;
use crate::pdu::{Data, Fatal, HeaderBuf, Pdu, R2T};
use crate::spec::{Cqe, Status};

/// Largest C2HData, so that a long read does not keep others waiting.
const C2H_DATA_BYTES_MAX: u32 = 128 << 10;

/// A TTAG is the slot below, and a count of its R2Ts above.
const TTAG_SLOT_BITS: u32 = 10;
const _: () = assert!(super::config::MQES_MAX < 1 << TTAG_SLOT_BITS);

/// How far off a wrong offset is.
const WRONG_BYTES: u32 = 4;

/// A PDU under way to the send buffer.
#[derive(Debug)]
pub(super) struct Sending {
    head: HeaderBuf,
    /// Bytes of `head` to be sent.
    head_len: usize,
    /// Bytes of `head`, then of `tail`, that are sent.
    head_at: usize,
    tail_at: usize,
    slot: Option<u16>,
    /// What of the slot's buffer is still to be sent.
    data: std::ops::Range<usize>,
    digest: DataDigest,
    tail: [u8; 4],
    tail_len: usize,
    /// The command ends with this PDU.
    ends: bool,
    /// What a fault makes of it: the connection ends with it, or its data digest is wrong.
    cut: bool,
    spoilt: bool,
}

impl Conn {
    /// R2T of a command that has its buffer.
    pub fn request_data(&mut self, slot: u16) {
        let s = &mut self.slots[usize::from(slot)];
        s.phase = Phase::SendR2T;
        s.r2ts = s.r2ts.wrapping_add(1);
        self.awaiting_data += 1;
        self.enqueue(slot);
    }

    fn ttag(&self, slot: u16) -> u16 {
        u16::from(self.slots[usize::from(slot)].r2ts) << TTAG_SLOT_BITS | slot
    }

    /// An H2CData: legal only for a command that awaits data, with its TTAG, at the next offset,
    /// within its R2T, and marked last exactly at its end.
    pub(super) fn h2c_data(&mut self, data: &Data) -> Result<(), Fatal> {
        let index = data.ttag & ((1 << TTAG_SLOT_BITS) - 1);
        let slot = self.slots.get(usize::from(index)).ok_or(Fatal::PduSequence)?;
        let awaited = slot.phase == Phase::AwaitData && self.ttag(index) == data.ttag;
        if !awaited {
            return Err(Fatal::PduSequence);
        }
        if slot.sqe.cid.get() != data.cccid {
            return Err(Fatal::InvalidHeaderField(offset::CCCID));
        }
        if data.datao != slot.moved || data.datal > slot.len - slot.moved {
            return Err(Fatal::DataOutOfRange);
        }
        if data.last != (data.datal == slot.len - slot.moved) {
            return Err(Fatal::InvalidHeaderField(offset::FLAGS));
        }
        self.rx = Rx::Slot { slot: index };
        Ok(())
    }

    /// Data of the PDU at hand: copied to their place, the one copy out of the receive window.
    pub(super) fn data(&mut self, chunk: &[u8]) {
        match &mut self.rx {
            Rx::Discard => {}
            Rx::Connect { filled, .. } => {
                let at = usize::from(*filled);
                let room = self.connect_data.as_mut().expect("kept until Connect succeeded");
                room[at..at + chunk.len()].copy_from_slice(chunk);
                *filled += chunk.len() as u16;
            }
            Rx::Slot { slot } => {
                let s = &mut self.slots[usize::from(*slot)];
                let at = s.moved as usize;
                let buf = s.buf.as_mut().expect("a command has its buffer before its data");
                buf[at..at + chunk.len()].copy_from_slice(chunk);
                s.moved += chunk.len() as u32;
            }
        }
    }

    /// All data of the PDU at hand came. A command with a wrong digest takes all its data, then
    /// fails.
    pub(super) fn data_end(&mut self, digest_ok: bool) -> Option<Event> {
        self.ack_wanted = true;
        let slot = match self.rx {
            Rx::Discard => return None,
            Rx::Connect { slot, .. } | Rx::Slot { slot } => slot,
        };
        self.rx = Rx::Discard;
        let s = &mut self.slots[usize::from(slot)];
        if !digest_ok {
            s.status = Status::TRANSIENT_TRANSPORT;
        }
        match s.phase {
            Phase::AwaitData if s.moved < s.len => return None,
            Phase::AwaitData => self.awaiting_data -= 1,
            _ => {}
        }
        s.phase = Phase::Admitted;
        Some(Event::Received { slot, ok: s.status.is_success() })
    }

    /// Gives `send` what is to be sent, until it takes less than it was given. Returns whether
    /// everything is sent.
    pub fn transmit(&mut self, pool: &mut Pool, send: &mut dyn FnMut(&[u8]) -> usize) -> bool {
        // Bounded: each pass sends a PDU, or is refused room.
        loop {
            if self.sending.is_none() && !self.begin() {
                return true;
            }
            let Some(mut sending) = self.sending.take() else { return true };
            let buf = sending.slot.and_then(|slot| self.slots[usize::from(slot)].buf.as_deref());
            let (moved, complete) = sending.push(buf.unwrap_or(&[]), self.params.ddgst, send);
            self.moved += u64::from(moved);
            if !complete {
                self.sending = Some(sending);
                return false;
            }
            if sending.cut {
                self.is_cut = true;
                return true;
            }
            self.sent(&sending, pool);
        }
    }

    /// Begins the next PDU; false if there is none.
    fn begin(&mut self) -> bool {
        if let Some(head) = self.special.take() {
            self.sending = Some(Sending::header(head));
            return true;
        }
        let Some(slot) = self.tx.pop_front() else { return false };
        let s = &self.slots[usize::from(slot)];
        let wrong = if s.fate == Fate::WrongDatao { WRONG_BYTES } else { 0 };
        let mut sending = match s.phase {
            Phase::SendR2T => {
                let r2t = R2T {
                    cccid: s.sqe.cid.get(),
                    ttag: self.ttag(slot),
                    r2to: s.moved + wrong,
                    r2tl: s.len - s.moved,
                };
                let head = HeaderBuf::encode(&Pdu::R2T(r2t), &self.params);
                Sending { slot: Some(slot), ..Sending::header(head) }
            }
            Phase::SendData => {
                let datal = (s.len - s.moved).min(C2H_DATA_BYTES_MAX);
                let last = s.moved + datal == s.len;
                // SUCCESS conveys no SQHD, so only without SQ flow control.
                let success = last && !self.flow_control && s.fate != Fate::NoCompletion;
                let cccid = s.sqe.cid.get();
                let datao = s.moved + wrong;
                let data = Data { cccid, ttag: 0, datao, datal, last, success };
                let start = s.moved as usize;
                Sending {
                    slot: Some(slot),
                    data: start..start + datal as usize,
                    tail_len: if self.params.ddgst { 4 } else { 0 },
                    ends: success,
                    ..Sending::header(HeaderBuf::encode(&Pdu::C2HData(data), &self.params))
                }
            }
            Phase::SendResp => {
                let mut cqe = Cqe::new(s.sqe.cid.get(), s.status).with_result(s.result);
                cqe.sqhd.set(self.sqhd());
                let head = HeaderBuf::encode(&Pdu::CapsuleResp { cqe }, &self.params);
                Sending { slot: Some(slot), ends: true, ..Sending::header(head) }
            }
            Phase::Free
            | Phase::Admitted
            | Phase::InCapsule
            | Phase::Waiting
            | Phase::AwaitData
            | Phase::Device
            | Phase::Withheld
            | Phase::Held => unreachable!("only slots with something to send are queued"),
        };
        if s.fate != Fate::None {
            self.slots[usize::from(slot)].fate = sending.spoil(s);
        }
        self.sending = Some(sending);
        true
    }

    /// A PDU is in the send buffer.
    fn sent(&mut self, sent: &Sending, pool: &mut Pool) {
        let Some(slot) = sent.slot else { return };
        if sent.ends {
            self.free(slot, pool);
            return;
        }
        let s = &mut self.slots[usize::from(slot)];
        if s.phase == Phase::SendR2T {
            s.phase = Phase::AwaitData;
            return;
        }
        s.moved = sent.data.end as u32;
        if s.moved == s.len {
            s.phase = Phase::SendResp;
            if s.fate == Fate::NoCompletion {
                s.release(pool);
            }
        }
        self.enqueue(slot);
    }
}

impl Sending {
    /// A PDU that is all header.
    fn header(head: HeaderBuf) -> Self {
        Self {
            head_len: head.bytes().len(),
            head,
            head_at: 0,
            tail_at: 0,
            slot: None,
            data: 0..0,
            digest: DataDigest::new(),
            tail: [0; 4],
            tail_len: 0,
            ends: false,
            cut: false,
            spoilt: false,
        }
    }

    /// Does what a fault has in store for the command that it answers; returns what is still to
    /// come of it.
    fn spoil(&mut self, slot: &Slot) -> Fate {
        match slot.fate {
            Fate::Cut if slot.phase != Phase::SendR2T => {
                self.cut = true;
                self.tail_len = 0;
                match self.data.len() {
                    0 => self.head_len /= 2,
                    len => self.data.end -= len.div_ceil(2),
                }
            }
            Fate::FlipDigest if self.tail_len > 0 => {
                self.spoilt = true;
                return Fate::None;
            }
            Fate::FlipDigest => self.head.spoil_digest(),
            _ => {}
        }
        slot.fate
    }

    /// Sends on. Returns whether any byte was taken, and whether all were.
    fn push(
        &mut self,
        buf: &[u8],
        ddgst: bool,
        send: &mut dyn FnMut(&[u8]) -> usize,
    ) -> (bool, bool) {
        let mut moved = false;
        let mut give = |bytes: &[u8], at: &mut usize| {
            let taken = send(bytes);
            *at += taken;
            moved |= taken > 0;
            taken == bytes.len()
        };
        let head = &self.head.bytes()[..self.head_len];
        if self.head_at < head.len() && !give(&head[self.head_at..], &mut self.head_at) {
            return (moved, false);
        }
        while !self.data.is_empty() {
            let most = if ddgst { DIGEST_BLOCK_BYTES } else { self.data.len() };
            let start = self.data.start;
            let end = self.data.end.min(start + most);
            let whole = give(&buf[start..end], &mut self.data.start);
            if ddgst {
                self.digest.update(&buf[start..self.data.start]);
            }
            if !whole {
                return (moved, false);
            }
        }
        if self.tail_at == 0 && self.tail_len > 0 {
            self.tail = self.digest.finish().to_le_bytes();
            self.tail[0] ^= u8::from(self.spoilt);
        }
        let tail = &self.tail[..self.tail_len];
        let whole = self.tail_at == tail.len() || give(&tail[self.tail_at..], &mut self.tail_at);
        (moved, whole)
    }
}
