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

    /// Makes the header digest wrong, if there is one: a target's fault on demand.
    pub(crate) fn spoil_digest(&mut self) {
        if self.bytes[1] & flag::HDGSTF != 0 {
            let hlen = usize::from(self.bytes[2]);
            self.bytes[hlen] ^= 1;
        }
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

#[cfg(test)]
mod tests {
    use zerocopy::little_endian::U16;

    use super::*;
    use crate::spec::{Cqe, Sqe};

    const PLAIN: Params = Params { hdgst: false, ddgst: false, pda: 0 };
    const DIGESTS: Params = Params { hdgst: true, ddgst: true, pda: 0 };

    fn encoded(pdu: Pdu, params: Params) -> Vec<u8> {
        HeaderBuf::encode(&pdu, &params).bytes().to_vec()
    }

    /// The first bytes as given, the rest 0, `len` in all.
    fn padded(start: &[u8], len: usize) -> Vec<u8> {
        let mut bytes = start.to_vec();
        bytes.resize(len, 0);
        bytes
    }

    #[test]
    fn icreq_has_no_digest_and_128_bytes() {
        let ic = ICReq { pfv: 0, hpda: 31, hdgst: true, ddgst: false, maxr2t: 0x0403_0201 };
        let expected = padded(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 31, 1, 1, 2, 3, 4], 128);
        assert_eq!(encoded(Pdu::ICReq(ic), PLAIN), expected);
        assert_eq!(encoded(Pdu::ICReq(ic), DIGESTS), expected);
    }

    #[test]
    fn icresp_has_no_digest_and_128_bytes() {
        let ic = ICResp { pfv: 0, cpda: 7, hdgst: false, ddgst: true, maxh2cdata: 0x0002_0000 };
        let expected = padded(&[1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 7, 2, 0, 0, 2, 0], 128);
        assert_eq!(encoded(Pdu::ICResp(ic), PLAIN), expected);
        assert_eq!(encoded(Pdu::ICResp(ic), DIGESTS), expected);
    }

    #[test]
    fn term_reqs_are_never_digested() {
        let term = TermReq { fes: 0x0201, fei: 0x0605_0403 };
        let tail = [0, 24, 0, 24, 0, 0, 0, 1, 2, 3, 4, 5, 6];
        for (pdu, pdu_type) in [(Pdu::H2CTermReq(term), 2), (Pdu::C2HTermReq(term), 3)] {
            let expected = padded(&[&[pdu_type][..], &tail].concat(), 24);
            assert_eq!(encoded(pdu, DIGESTS), expected);
        }
    }

    #[test]
    fn a_command_without_data_has_neither_pdo_nor_data_digest() {
        let sqe = Sqe { cid: U16::new(0x0201), ..Sqe::new(2, 1) };
        let mut expected = padded(&[4, 0, 72, 0, 72, 0, 0, 0, 2, 0x40, 1, 2, 1], 72);
        expected[8 + 39] = 0x5A;
        assert_eq!(encoded(Pdu::CapsuleCmd { sqe, data_len: 0 }, PLAIN), expected);
        let bytes = encoded(Pdu::CapsuleCmd { sqe, data_len: 0 }, Params { pda: 31, ..DIGESTS });
        assert_eq!(bytes[..8], [4, 1, 72, 0, 76, 0, 0, 0]);
        assert_eq!(bytes[8..72], expected[8..]);
        assert_eq!(bytes[72..], crc32c(&bytes[..72]).to_le_bytes());
    }

    #[test]
    fn in_capsule_data_begin_on_the_receivers_alignment() {
        let sqe = Sqe::new(1, 1).with_in_capsule(512);
        let pdu = Pdu::CapsuleCmd { sqe, data_len: 512 };
        let bytes = encoded(pdu, PLAIN);
        assert_eq!((bytes.len(), &bytes[..8]), (72, &[4, 0, 72, 72, 0x48, 2, 0, 0][..]));
        let bytes = encoded(pdu, DIGESTS);
        assert_eq!((bytes.len(), &bytes[..8]), (76, &[4, 3, 72, 76, 0x50, 2, 0, 0][..]));
        let buf = HeaderBuf::encode(&pdu, &Params { pda: 31, ..DIGESTS });
        let bytes = buf.bytes();
        assert_eq!((bytes.len(), &bytes[..8]), (128, &[4, 3, 72, 128, 0x84, 2, 0, 0][..]));
        assert_eq!(buf.plen(), 128 + 512 + 4);
        assert!(bytes[76..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_response_carries_its_completion() {
        let mut cqe = Cqe::new(0x0201, crate::spec::Status::INVALID_FIELD);
        cqe.dw0.set(0x0403_0201);
        let mut expected = padded(&[5, 0, 24, 0, 24, 0, 0, 0, 1, 2, 3, 4], 24);
        expected[20..].copy_from_slice(&[1, 2, 4, 0]);
        assert_eq!(encoded(Pdu::CapsuleResp { cqe }, PLAIN), expected);
        let bytes = encoded(Pdu::CapsuleResp { cqe }, DIGESTS);
        assert_eq!(bytes[..8], [5, 1, 24, 0, 28, 0, 0, 0]);
        assert_eq!(bytes[24..], crc32c(&bytes[..24]).to_le_bytes());
    }

    #[test]
    fn data_pdus_say_where_their_data_belong() {
        let data = Data {
            cccid: 0x0201,
            ttag: 0x0403,
            datao: 0x0807_0605,
            datal: 0x0000_1000,
            last: true,
            success: false,
        };
        #[rustfmt::skip]
        let expected = [
            6, 4, 24, 24, 0x18, 0x10, 0, 0,
            1, 2, 3, 4, 5, 6, 7, 8, 0, 0x10, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(encoded(Pdu::H2CData(data), PLAIN), expected);
        let data = Data { ttag: 0, success: true, ..data };
        let bytes = encoded(Pdu::C2HData(data), Params { pda: 15, ..DIGESTS });
        assert_eq!((bytes.len(), &bytes[..8]), (64, &[7, 15, 24, 64, 0x44, 0x10, 0, 0][..]));
        assert_eq!(bytes[8..12], [1, 2, 0, 0]);
    }

    #[test]
    fn r2t_with_header_digest_is_the_published_vector() {
        let r2t = R2T { cccid: 5, ttag: 7, r2to: 0, r2tl: 8192 };
        #[rustfmt::skip]
        let expected = [
            0x09, 0x01, 0x18, 0x00, 0x1C, 0, 0, 0, 0x05, 0, 0x07, 0, 0, 0, 0, 0,
            0x00, 0x20, 0, 0, 0, 0, 0, 0, 0x8F, 0xB2, 0x6C, 0x0B,
        ];
        assert_eq!(encoded(Pdu::R2T(r2t), DIGESTS), expected);
        assert_eq!(encoded(Pdu::R2T(r2t), PLAIN)[..8], [9, 0, 24, 0, 24, 0, 0, 0]);
    }
}
