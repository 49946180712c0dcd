//! PDU headers to bytes: what stands before the data, complete with header digest and padding.
//!
//! A sender emits `HeaderBuf::bytes()`, then the data where there is any, then its data digest
//! where one is in use. Nothing here allocates, and a header built here always passes the checks
//! of [`super::decode`].

use zerocopy::IntoBytes;

use super::digest::{DIGEST_BYTES, crc32c};
use super::{Data, ICReq, ICResp, Params, Pdu, R2T, TermReq, flag, pdu_type, takes_digests};
use crate::limits::{PDU_HEADER_BYTES_MAX, TERM_REQ_BYTES_MAX};

/// One PDU's bytes up to its data.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBuf {
    bytes: [u8; TERM_REQ_BYTES_MAX],
    len: u8,
}

impl HeaderBuf {
    /// Encodes the header of `pdu` for a receiver with `params`: digests as negotiated (never on
    /// ICReq, ICResp and TermReq) and padding to the *receiver's* alignment (HPDA towards a host,
    /// CPDA towards a controller).
    pub fn encode(pdu: &Pdu, params: &Params) -> Self {
        let mut this = Self { bytes: [0; TERM_REQ_BYTES_MAX], len: 0 };
        let hlen = pdu.hlen();
        let bytes = &mut this.bytes;
        let (mut flags, data_len) = match pdu {
            Pdu::ICReq(ic) => (icreq(bytes, ic), 0),
            Pdu::ICResp(ic) => (icresp(bytes, ic), 0),
            Pdu::H2CTermReq(term) | Pdu::C2HTermReq(term) => (term_psh(bytes, term), 0),
            Pdu::CapsuleCmd { sqe, data_len } => {
                bytes[8..72].copy_from_slice(sqe.as_bytes());
                (0, *data_len)
            }
            Pdu::CapsuleResp { cqe } => {
                bytes[8..24].copy_from_slice(cqe.as_bytes());
                (0, 0)
            }
            Pdu::H2CData(data) | Pdu::C2HData(data) => (data_psh(bytes, data), data.datal),
            Pdu::R2T(r2t) => (r2t_psh(bytes, r2t), 0),
        };
        let hdgst = params.hdgst && takes_digests(pdu.type_byte());
        let ddgst = params.ddgst && data_len > 0;
        let head = hlen + if hdgst { DIGEST_BYTES } else { 0 };
        let data_start =
            if data_len > 0 { head.next_multiple_of(params.alignment()) } else { head };
        let tail = if ddgst { DIGEST_BYTES as u32 } else { 0 };
        flags |= if hdgst { flag::HDGSTF } else { 0 };
        flags |= if ddgst { flag::DDGSTF } else { 0 };
        bytes[0] = pdu.type_byte();
        bytes[1] = flags;
        bytes[2] = hlen as u8;
        bytes[3] = if data_len > 0 { data_start as u8 } else { 0 };
        let plen = data_start as u32 + data_len + tail;
        bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        if hdgst {
            let digest = crc32c(&bytes[..hlen]);
            bytes[hlen..head].copy_from_slice(&digest.to_le_bytes());
        }
        this.len = data_start as u8;
        this
    }

    /// A TermReq with its copy of the offending header. `pdu` is one of the two TermReqs.
    pub(super) fn term_req(pdu: &Pdu, offending: &[u8]) -> Self {
        debug_assert!(matches!(pdu.type_byte(), pdu_type::H2C_TERM_REQ | pdu_type::C2H_TERM_REQ));
        let mut this = Self::encode(pdu, &Params::default());
        let copy = &offending[..offending.len().min(PDU_HEADER_BYTES_MAX)];
        let end = usize::from(this.len) + copy.len();
        this.bytes[usize::from(this.len)..end].copy_from_slice(copy);
        this.bytes[4..8].copy_from_slice(&(end as u32).to_le_bytes());
        this.len = end as u8;
        this
    }

    /// The bytes to send before the data.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Bytes of the whole PDU (PLEN): these, the data and its digest.
    pub fn plen(&self) -> u32 {
        u32::from_le_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
    }
}

fn digest_bits(hdgst: bool, ddgst: bool) -> u8 {
    u8::from(hdgst) | u8::from(ddgst) << 1
}

fn icreq(bytes: &mut [u8], ic: &ICReq) -> u8 {
    bytes[8..10].copy_from_slice(&ic.pfv.to_le_bytes());
    bytes[10] = ic.hpda;
    bytes[11] = digest_bits(ic.hdgst, ic.ddgst);
    bytes[12..16].copy_from_slice(&ic.maxr2t.to_le_bytes());
    0
}

fn icresp(bytes: &mut [u8], ic: &ICResp) -> u8 {
    bytes[8..10].copy_from_slice(&ic.pfv.to_le_bytes());
    bytes[10] = ic.cpda;
    bytes[11] = digest_bits(ic.hdgst, ic.ddgst);
    bytes[12..16].copy_from_slice(&ic.maxh2cdata.to_le_bytes());
    0
}

fn term_psh(bytes: &mut [u8], term: &TermReq) -> u8 {
    bytes[8..10].copy_from_slice(&term.fes.to_le_bytes());
    bytes[10..14].copy_from_slice(&term.fei.to_le_bytes());
    0
}

fn data_psh(bytes: &mut [u8], data: &Data) -> u8 {
    bytes[8..10].copy_from_slice(&data.cccid.to_le_bytes());
    bytes[10..12].copy_from_slice(&data.ttag.to_le_bytes());
    bytes[12..16].copy_from_slice(&data.datao.to_le_bytes());
    bytes[16..20].copy_from_slice(&data.datal.to_le_bytes());
    let last = if data.last { flag::LAST_PDU } else { 0 };
    last | if data.success { flag::SUCCESS } else { 0 }
}

fn r2t_psh(bytes: &mut [u8], r2t: &R2T) -> u8 {
    bytes[8..10].copy_from_slice(&r2t.cccid.to_le_bytes());
    bytes[10..12].copy_from_slice(&r2t.ttag.to_le_bytes());
    bytes[12..16].copy_from_slice(&r2t.r2to.to_le_bytes());
    bytes[16..20].copy_from_slice(&r2t.r2tl.to_le_bytes());
    0
}
