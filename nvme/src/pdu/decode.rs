//! Bytes to PDUs, cut anywhere (NVMe-TCP 1.x, "PDU definitions").
//!
//! The decoder's state is what remains to be read: a header being gathered in a fixed buffer, or
//! padding, data and digest still to pass. Data are handed out where they lie in the input. Every
//! length, offset and flag is checked before it is used; a violation is a [`Fatal`], after which
//! the decoder gives nothing but that error. Checks that need to know commands (CCCID, TTAG,
//! offsets within a transfer) belong to the qpair.

use zerocopy::FromBytes;

use super::digest::{DIGEST_BYTES, DataDigest, crc32c};
use super::encode::HeaderBuf;
use super::fes::{Fatal, offset};
use super::{
    Data, ICReq, ICResp, MAXH2CDATA_MIN, PDA_MAX, Params, Pdu, R2T, Role, TermReq, flag, hlen,
    pdu_type, takes_digests,
};
use crate::limits::{
    ADMIN_IN_CAPSULE_BYTES_MAX, DIGEST_BLOCK_BYTES, PDU_HEADER_BYTES_MAX, PDU_PAD_BYTES_MAX,
    TERM_REQ_BYTES_MAX,
};
use crate::spec::{Cqe, Sqe};

/// Bytes of the common header.
const CH_BYTES: usize = 8;

/// What a decoder yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A PDU's header, complete and valid: once per PDU.
    Pdu(Pdu),
    /// The next bytes of that PDU's data, in place; never empty.
    Data(&'a [u8]),
    /// All data of that PDU have been given and its digest was read. Always follows a PDU whose
    /// `data_len` is not 0.
    DataEnd {
        /// False when a data digest is in use and does not match: the command fails with
        /// Transient Transport Error, the connection lives on.
        digest_ok: bool,
    },
}

/// Most data a controller takes in one PDU. A host needs none: it knows its commands' lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In-capsule data of a command that is not a Fabrics command, bytes.
    pub in_capsule_max: u32,
    /// Our MAXH2CDATA, bytes.
    pub h2c_data_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_capsule_max: ADMIN_IN_CAPSULE_BYTES_MAX,
            h2c_data_max: crate::limits::H2C_DATA_BYTES_MAX,
        }
    }
}

/// Where the connection's initialization stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ic {
    /// ICReq or ICResp must come first.
    Awaited,
    /// It came; nothing may follow until both sides know the parameters.
    Seen,
    /// Parameters are set.
    Done(Params),
}

/// What remains to be read of the PDU at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Its header, with its digest: bytes gathered, and needed before the next check.
    Header { filled: usize, need: usize },
    /// The copy of a header in a TermReq, which nobody reads.
    Skip { left: usize },
    /// Padding, then data.
    Body { pad: usize, data: u32, digest: DataDigest },
    /// The data digest.
    Digest { filled: usize, computed: u32 },
    /// Nothing: the data's end is still to be said.
    End { digest_ok: bool },
}

const HEADER_START: Rest = Rest::Header { filled: 0, need: CH_BYTES };

/// An incremental decoder for one direction of one connection.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    ic: Ic,
    limits: Limits,
    rest: Rest,
    /// The header at hand and its digest; kept until the next one starts.
    header: [u8; PDU_HEADER_BYTES_MAX],
    /// Bytes of `header` that are one PDU's, for a TermReq.
    known: usize,
    tail: [u8; DIGEST_BYTES],
    fatal: Option<Fatal>,
}

impl Decoder {
    /// A decoder for what `role` receives on a new connection: ICReq or ICResp must come first.
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            ic: Ic::Awaited,
            limits,
            rest: HEADER_START,
            header: [0; PDU_HEADER_BYTES_MAX],
            known: 0,
            tail: [0; DIGEST_BYTES],
            fatal: None,
        }
    }

    /// Sets what was agreed on; `params.pda` is the alignment that *we* asked for. To be called
    /// after ICReq or ICResp was yielded (a controller: when it answers); until then every other
    /// PDU is out of sequence.
    pub fn set_params(&mut self, params: Params) {
        assert!(self.ic == Ic::Seen, "parameters are set once, after ICReq or ICResp");
        assert!(params.pda <= PDA_MAX);
        self.ic = Ic::Done(params);
    }

    /// Changes the limits for PDUs whose header has not begun (after Connect told which queue
    /// this is).
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Yields the next item and moves `input` past what it consumed. `None`: all of `input` is
    /// consumed and more is needed. Call it until then, even when `input` is already empty.
    ///
    /// # Errors
    /// What the peer did wrong; again and again, whatever the input, once it has.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, Fatal> {
        match self.fatal {
            Some(fatal) => Err(fatal),
            None => self.step(input).inspect_err(|fatal| self.fatal = Some(*fatal)),
        }
    }

    /// The TermReq that says `fatal` about the PDU whose header came last, or `None` when that was
    /// a TermReq itself, which is never answered with one.
    pub fn term_req(&self, fatal: Fatal) -> Option<HeaderBuf> {
        let offending = &self.header[..self.known];
        match offending.first() {
            Some(&(pdu_type::H2C_TERM_REQ | pdu_type::C2H_TERM_REQ)) => None,
            Some(_) | None => Some(fatal.term_req(self.role, offending)),
        }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, Fatal> {
        // Each pass consumes input or leaves a state for good: at most five for one item.
        loop {
            match self.rest {
                Rest::Header { filled, need } => {
                    let filled = filled + fill(&mut self.header[filled..need], input);
                    self.rest = Rest::Header { filled, need };
                    if filled > 0 {
                        self.known = filled;
                    }
                    if filled < need {
                        return Ok(None);
                    }
                    if need == CH_BYTES {
                        let need = self.check_common_header()?;
                        self.rest = Rest::Header { filled, need };
                    } else {
                        return self.header_complete().map(|pdu| Some(Item::Pdu(pdu)));
                    }
                }
                Rest::Skip { left } => {
                    let left = left - take(input, left).len();
                    self.rest = if left == 0 { HEADER_START } else { Rest::Skip { left } };
                    if left > 0 {
                        return Ok(None);
                    }
                }
                Rest::Body { pad, data, digest } if pad > 0 => {
                    let pad = pad - take(input, pad).len();
                    self.rest = Rest::Body { pad, data, digest };
                    if pad > 0 {
                        return Ok(None);
                    }
                }
                Rest::Body { pad: _, data, digest } => return Ok(self.data(input, data, digest)),
                Rest::Digest { filled, computed } => {
                    let filled = filled + fill(&mut self.tail[filled..], input);
                    self.rest = Rest::Digest { filled, computed };
                    if filled < DIGEST_BYTES {
                        return Ok(None);
                    }
                    self.rest = Rest::End { digest_ok: u32::from_le_bytes(self.tail) == computed };
                }
                Rest::End { digest_ok } => {
                    self.rest = HEADER_START;
                    return Ok(Some(Item::DataEnd { digest_ok }));
                }
            }
        }
    }

    /// Hands out the next data, of which `left` bytes are outstanding.
    fn data<'a>(
        &mut self,
        input: &mut &'a [u8],
        left: u32,
        mut digest: DataDigest,
    ) -> Option<Item<'a>> {
        let ddgst = self.params().ddgst;
        let most = if ddgst { (left as usize).min(DIGEST_BLOCK_BYTES) } else { left as usize };
        let chunk = take(input, most);
        if ddgst {
            digest.update(chunk);
        }
        let left = left - chunk.len() as u32;
        self.rest = match (left, ddgst) {
            (1.., _) => Rest::Body { pad: 0, data: left, digest },
            (0, true) => Rest::Digest { filled: 0, computed: digest.finish() },
            (0, false) => Rest::End { digest_ok: true },
        };
        (!chunk.is_empty()).then_some(Item::Data(chunk))
    }

    /// Parameters in force for PDUs that take digests; the default before they are known.
    fn params(&self) -> Params {
        match self.ic {
            Ic::Done(params) => params,
            Ic::Awaited | Ic::Seen => Params::default(),
        }
    }

    /// Checks the first 8 bytes; returns how many the header has with its digest.
    fn check_common_header(&self) -> Result<usize, Fatal> {
        let ch = CommonHeader::parse(&self.header);
        let Some(hlen) = hlen(ch.pdu_type) else {
            return Err(Fatal::InvalidHeaderField(offset::TYPE));
        };
        self.check_sequence(ch.pdu_type)?;
        if usize::from(ch.hlen) != hlen {
            return Err(Fatal::InvalidHeaderField(offset::HLEN));
        }
        let params = if takes_digests(ch.pdu_type) { self.params() } else { Params::default() };
        let head = hlen + if params.hdgst { DIGEST_BYTES } else { 0 };
        ch.check_plen(head)?;
        ch.check_flags(head, &params)?;
        if ch.has_data(head) {
            ch.check_pdo(head, &params)?;
        }
        Ok(head)
    }

    /// Whether this PDU may come now, and from that side.
    fn check_sequence(&self, pdu_type: u8) -> Result<(), Fatal> {
        let to = match pdu_type {
            pdu_type::ICREQ
            | pdu_type::H2C_TERM_REQ
            | pdu_type::CAPSULE_CMD
            | pdu_type::H2C_DATA => Role::Controller,
            _ => Role::Host,
        };
        let is_ic = matches!(pdu_type, pdu_type::ICREQ | pdu_type::ICRESP);
        let is_term = matches!(pdu_type, pdu_type::H2C_TERM_REQ | pdu_type::C2H_TERM_REQ);
        let in_sequence = match self.ic {
            Ic::Awaited => is_ic || is_term,
            Ic::Seen => is_term,
            Ic::Done(_) => !is_ic,
        };
        if to == self.role && in_sequence { Ok(()) } else { Err(Fatal::PduSequence) }
    }

    /// The header is here: checks its digest, then its fields, and says what follows it.
    fn header_complete(&mut self) -> Result<Pdu, Fatal> {
        let ch = CommonHeader::parse(&self.header);
        let hlen = usize::from(ch.hlen);
        self.known = hlen;
        let params = if takes_digests(ch.pdu_type) { self.params() } else { Params::default() };
        let mut head = hlen;
        if params.hdgst {
            let received = le32(&self.header, hlen);
            if received != crc32c(&self.header[..hlen]) {
                return Err(Fatal::HeaderDigest(received));
            }
            head += DIGEST_BYTES;
        }
        let data_len = ch.data_len(head, &params);
        let pdu = parse(&self.header, &ch, data_len)?;
        self.check_limits(&pdu)?;
        self.rest = match &pdu {
            Pdu::ICReq(_) | Pdu::ICResp(_) => {
                self.ic = Ic::Seen;
                HEADER_START
            }
            Pdu::H2CTermReq(_) | Pdu::C2HTermReq(_) => Rest::Skip { left: ch.plen as usize - hlen },
            Pdu::CapsuleCmd { .. }
            | Pdu::CapsuleResp { .. }
            | Pdu::H2CData(_)
            | Pdu::C2HData(_)
            | Pdu::R2T(_) => match data_len {
                0 => HEADER_START,
                data => {
                    Rest::Body { pad: usize::from(ch.pdo) - head, data, digest: DataDigest::new() }
                }
            },
        };
        Ok(pdu)
    }

    /// What a controller accepts at most; a host's qpair knows its commands' lengths.
    fn check_limits(&self, pdu: &Pdu) -> Result<(), Fatal> {
        let (len, max) = match pdu {
            Pdu::CapsuleCmd { sqe, data_len } if sqe.is_fabrics() => {
                (*data_len, ADMIN_IN_CAPSULE_BYTES_MAX)
            }
            Pdu::CapsuleCmd { sqe: _, data_len } => (*data_len, self.limits.in_capsule_max),
            Pdu::H2CData(data) => (data.datal, self.limits.h2c_data_max),
            Pdu::ICReq(_)
            | Pdu::ICResp(_)
            | Pdu::H2CTermReq(_)
            | Pdu::C2HTermReq(_)
            | Pdu::CapsuleResp { .. }
            | Pdu::C2HData(_)
            | Pdu::R2T(_) => return Ok(()),
        };
        if len > max { Err(Fatal::LimitExceeded) } else { Ok(()) }
    }
}

/// The common header, as received.
struct CommonHeader {
    pdu_type: u8,
    flags: u8,
    hlen: u8,
    pdo: u8,
    plen: u32,
}

impl CommonHeader {
    fn parse(header: &[u8; PDU_HEADER_BYTES_MAX]) -> Self {
        let [pdu_type, flags, hlen, pdo, ..] = *header;
        Self { pdu_type, flags, hlen, pdo, plen: le32(header, 4) }
    }

    fn is_data(&self) -> bool {
        matches!(self.pdu_type, pdu_type::H2C_DATA | pdu_type::C2H_DATA)
    }

    /// Whether data follow; `head` is HLEN and the header digest.
    fn has_data(&self, head: usize) -> bool {
        let is_cmd = self.pdu_type == pdu_type::CAPSULE_CMD;
        self.is_data() || is_cmd && self.plen as usize != head
    }

    /// Bytes of data, once PDO and PLEN are checked.
    fn data_len(&self, head: usize, params: &Params) -> u32 {
        if self.has_data(head) { self.plen - u32::from(self.pdo) - tail(params) } else { 0 }
    }

    fn check_plen(&self, head: usize) -> Result<(), Fatal> {
        let plen = self.plen as usize;
        let in_range = match self.pdu_type {
            pdu_type::H2C_TERM_REQ | pdu_type::C2H_TERM_REQ => {
                (head..=TERM_REQ_BYTES_MAX).contains(&plen)
            }
            pdu_type::CAPSULE_CMD => plen >= head,
            pdu_type::H2C_DATA | pdu_type::C2H_DATA => plen > head,
            _ => plen == head,
        };
        if in_range { Ok(()) } else { Err(Fatal::InvalidHeaderField(offset::PLEN)) }
    }

    /// Digest flags must say what was agreed on: a flag left out is an error, not "no digest".
    fn check_flags(&self, head: usize, params: &Params) -> Result<(), Fatal> {
        let mut required = if params.hdgst { flag::HDGSTF } else { 0 };
        required |= if params.ddgst && self.has_data(head) { flag::DDGSTF } else { 0 };
        let last = self.flags & flag::LAST_PDU != 0;
        let optional = match self.pdu_type {
            pdu_type::H2C_DATA => flag::LAST_PDU,
            pdu_type::C2H_DATA if last => flag::LAST_PDU | flag::SUCCESS,
            _ => 0,
        };
        let flags = self.flags & flag::ALL;
        let right = flags & !optional == required;
        if right { Ok(()) } else { Err(Fatal::InvalidHeaderField(offset::FLAGS)) }
    }

    /// Data begin behind the header, on our alignment, with bounded padding, and there are some.
    fn check_pdo(&self, head: usize, params: &Params) -> Result<(), Fatal> {
        let pdo = usize::from(self.pdo);
        let aligned = pdo.is_multiple_of(params.alignment());
        if pdo < head || pdo > head + PDU_PAD_BYTES_MAX || !aligned {
            return Err(Fatal::InvalidHeaderField(offset::PDO));
        }
        if self.plen <= u32::from(self.pdo) + tail(params) {
            return Err(Fatal::InvalidHeaderField(offset::PLEN));
        }
        Ok(())
    }
}

/// Bytes behind the data.
fn tail(params: &Params) -> u32 {
    if params.ddgst { DIGEST_BYTES as u32 } else { 0 }
}

/// Parses the type-specific part of a header whose lengths are checked.
fn parse(
    header: &[u8; PDU_HEADER_BYTES_MAX],
    ch: &CommonHeader,
    data_len: u32,
) -> Result<Pdu, Fatal> {
    Ok(match ch.pdu_type {
        pdu_type::ICREQ => Pdu::ICReq(parse_icreq(header)?),
        pdu_type::ICRESP => Pdu::ICResp(parse_icresp(header)?),
        pdu_type::H2C_TERM_REQ => Pdu::H2CTermReq(parse_term(header)),
        pdu_type::C2H_TERM_REQ => Pdu::C2HTermReq(parse_term(header)),
        pdu_type::CAPSULE_CMD => {
            let (sqe, _) = Sqe::read_from_prefix(&header[CH_BYTES..]).expect("120 bytes hold 64");
            Pdu::CapsuleCmd { sqe, data_len }
        }
        pdu_type::CAPSULE_RESP => {
            let (cqe, _) = Cqe::read_from_prefix(&header[CH_BYTES..]).expect("120 bytes hold 16");
            Pdu::CapsuleResp { cqe }
        }
        pdu_type::H2C_DATA => Pdu::H2CData(parse_data(header, ch, data_len)?),
        pdu_type::C2H_DATA => Pdu::C2HData(parse_data(header, ch, data_len)?),
        _ => Pdu::R2T(parse_r2t(header)?),
    })
}

fn parse_icreq(header: &[u8]) -> Result<ICReq, Fatal> {
    let ic = ICReq {
        pfv: le16(header, 8),
        hpda: header[10],
        hdgst: header[11] & 1 != 0,
        ddgst: header[11] & 2 != 0,
        maxr2t: le32(header, 12),
    };
    check_ic(ic.pfv, ic.hpda)?;
    Ok(ic)
}

fn parse_icresp(header: &[u8]) -> Result<ICResp, Fatal> {
    let ic = ICResp {
        pfv: le16(header, 8),
        cpda: header[10],
        hdgst: header[11] & 1 != 0,
        ddgst: header[11] & 2 != 0,
        maxh2cdata: le32(header, 12),
    };
    check_ic(ic.pfv, ic.cpda)?;
    if ic.maxh2cdata < MAXH2CDATA_MIN || !ic.maxh2cdata.is_multiple_of(4) {
        return Err(Fatal::InvalidHeaderField(offset::MAXH2CDATA));
    }
    Ok(ic)
}

fn check_ic(pfv: u16, pda: u8) -> Result<(), Fatal> {
    if pfv != 0 {
        return Err(Fatal::InvalidHeaderField(offset::PFV));
    }
    if pda > PDA_MAX { Err(Fatal::InvalidHeaderField(offset::PDA)) } else { Ok(()) }
}

fn parse_term(header: &[u8]) -> TermReq {
    TermReq { fes: le16(header, 8), fei: le32(header, 10) }
}

fn parse_data(header: &[u8], ch: &CommonHeader, data_len: u32) -> Result<Data, Fatal> {
    let h2c = ch.pdu_type == pdu_type::H2C_DATA;
    let data = Data {
        cccid: le16(header, 8),
        ttag: if h2c { le16(header, 10) } else { 0 },
        datao: le32(header, 12),
        datal: le32(header, 16),
        last: ch.flags & flag::LAST_PDU != 0,
        success: ch.flags & flag::SUCCESS != 0,
    };
    if data.datal != data_len {
        return Err(Fatal::InvalidHeaderField(offset::DATAL));
    }
    check_range(data.datao, data.datal)?;
    Ok(data)
}

fn parse_r2t(header: &[u8]) -> Result<R2T, Fatal> {
    let r2t = R2T {
        cccid: le16(header, 8),
        ttag: le16(header, 10),
        r2to: le32(header, 12),
        r2tl: le32(header, 16),
    };
    if r2t.r2tl == 0 {
        return Err(Fatal::InvalidHeaderField(offset::DATAL));
    }
    check_range(r2t.r2to, r2t.r2tl)?;
    Ok(r2t)
}

/// No command is longer than an SGL's length can say: a range ends within 32 bits.
fn check_range(start: u32, len: u32) -> Result<(), Fatal> {
    start.checked_add(len).map(|_| ()).ok_or(Fatal::DataOutOfRange)
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Takes at most `most` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, left) = input.split_at(most.min(input.len()));
    *input = left;
    taken
}

/// Moves bytes from `input` into `room`, as many as there are; returns how many.
fn fill(room: &mut [u8], input: &mut &[u8]) -> usize {
    let taken = take(input, room.len());
    room[..taken.len()].copy_from_slice(taken);
    taken.len()
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
