//! Fatal errors: what a peer did wrong, as the TermReq that says so (NVMe-TCP 1.x, "Transport
//! error handling").
//!
//! A [`Fatal`] ends its connection. A TermReq is never answered with a TermReq.

use super::encode::HeaderBuf;
use super::{Pdu, Role, TermReq};

/// Byte offsets of header fields, as reported in FEI.
pub mod offset {
    /// PDU type.
    pub const TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// HLEN.
    pub const HLEN: u32 = 2;
    /// PDO.
    pub const PDO: u32 = 3;
    /// PLEN.
    pub const PLEN: u32 = 4;
    /// PFV of ICReq and ICResp.
    pub const PFV: u32 = 8;
    /// HPDA of ICReq, CPDA of ICResp.
    pub const PDA: u32 = 10;
    /// DGST of ICReq and ICResp.
    pub const DGST: u32 = 11;
    /// MAXR2T of ICReq.
    pub const MAXR2T: u32 = 12;
    /// MAXH2CDATA of ICResp.
    pub const MAXH2CDATA: u32 = 12;
    /// CCCID of data PDUs and R2T.
    pub const CCCID: u32 = 8;
    /// TTAG of H2CData and R2T.
    pub const TTAG: u32 = 10;
    /// DATAO of data PDUs, R2TO of R2T.
    pub const DATAO: u32 = 12;
    /// DATAL of data PDUs, R2TL of R2T.
    pub const DATAL: u32 = 16;
    /// SGL1's address in CapsuleCmd.
    pub const SGL_ADDR: u32 = 8 + 24;
    /// SGL1's length in CapsuleCmd.
    pub const SGL_LEN: u32 = 8 + 32;
    /// SGL1's identifier byte in CapsuleCmd.
    pub const SGL_ID: u32 = 8 + 39;
    /// CID of CapsuleResp.
    pub const RESP_CID: u32 = 8 + 12;
}

/// A violation of the protocol by the peer: one variant per fatal error status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// FES 1: a header field has a value it cannot have; its byte offset in the header.
    #[error("invalid PDU header field at byte {0}")]
    InvalidHeaderField(u32),
    /// FES 2: a PDU that cannot come now, or not from this side.
    #[error("PDU sequence error")]
    PduSequence,
    /// FES 3: the header digest does not match; the digest received.
    #[error("header digest error (received {0:#010x})")]
    HeaderDigest(u32),
    /// FES 4: an offset or length outside the command's data or the R2T.
    #[error("data transfer out of range")]
    DataOutOfRange,
    /// FES 5: more data, or more R2Ts, than the limit agreed on.
    #[error("data transfer or R2T limit exceeded")]
    LimitExceeded,
    /// FES 6: a parameter not supported; its byte offset in the header.
    #[error("unsupported parameter at byte {0}")]
    UnsupportedParameter(u32),
}

impl Fatal {
    /// Fatal error status.
    pub const fn fes(&self) -> u16 {
        match self {
            Self::InvalidHeaderField(_) => 1,
            Self::PduSequence => 2,
            Self::HeaderDigest(_) => 3,
            Self::DataOutOfRange => 4,
            Self::LimitExceeded => 5,
            Self::UnsupportedParameter(_) => 6,
        }
    }

    /// Fatal error information: a field's offset or a digest, 0 where the status has none.
    pub const fn fei(&self) -> u32 {
        match *self {
            Self::InvalidHeaderField(at) | Self::UnsupportedParameter(at) => at,
            Self::HeaderDigest(received) => received,
            Self::PduSequence | Self::DataOutOfRange | Self::LimitExceeded => 0,
        }
    }

    /// The TermReq that `from` sends, with a copy of the offending header (cut at 128 bytes).
    pub fn term_req(&self, from: Role, offending: &[u8]) -> HeaderBuf {
        let term = TermReq { fes: self.fes(), fei: self.fei() };
        let pdu = match from {
            Role::Host => Pdu::H2CTermReq(term),
            Role::Controller => Pdu::C2HTermReq(term),
        };
        HeaderBuf::term_req(&pdu, offending)
    }
}

/// The name of a fatal error status received in a TermReq.
pub const fn fes_name(fes: u16) -> &'static str {
    match fes {
        1 => "Invalid PDU Header Field",
        2 => "PDU Sequence Error",
        3 => "Header Digest Error",
        4 => "Data Transfer Out of Range",
        5 => "Data Transfer Limit Exceeded / R2T Limit Exceeded",
        6 => "Unsupported Parameter",
        _ => "reserved",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fatal_has_its_status_and_information() {
        let rows = [
            (Fatal::InvalidHeaderField(offset::PDA), 1, 10),
            (Fatal::PduSequence, 2, 0),
            (Fatal::HeaderDigest(0xDEAD_BEEF), 3, 0xDEAD_BEEF),
            (Fatal::DataOutOfRange, 4, 0),
            (Fatal::LimitExceeded, 5, 0),
            (Fatal::UnsupportedParameter(offset::SGL_ID), 6, 47),
        ];
        for (fatal, fes, fei) in rows {
            assert_eq!((fatal.fes(), fatal.fei()), (fes, fei));
            assert!(!fatal.to_string().is_empty());
            assert_ne!(fes_name(fes), "reserved");
        }
        assert_eq!(fes_name(0), "reserved");
    }

    #[test]
    fn a_term_req_carries_the_offending_header() {
        let header = [6, 0, 24, 0, 1, 2, 3, 4];
        let buf = Fatal::InvalidHeaderField(4).term_req(Role::Controller, &header);
        #[rustfmt::skip]
        let expected = [
            3, 0, 24, 0, 32, 0, 0, 0, // CH
            1, 0, 4, 0, 0, 0, // FES, FEI
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // reserved
            6, 0, 24, 0, 1, 2, 3, 4, // the copy
        ];
        assert_eq!(buf.bytes(), expected);
        let long = Fatal::HeaderDigest(0x0403_0201).term_req(Role::Host, &[7; 200]);
        assert_eq!(long.bytes().len(), 152);
        assert_eq!(long.bytes()[..8], [2, 0, 24, 0, 152, 0, 0, 0]);
        assert_eq!(long.bytes()[8..14], [3, 0, 1, 2, 3, 4]);
    }
}
