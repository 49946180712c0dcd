//! NVMe/TCP PDUs: typed, parsed and built here, and nowhere else (NVMe-TCP 1.x, "PDU
//! definitions").
//!
//! [`Pdu`] is what a decoder yields for a header, after every length, offset and flag in it was
//! checked against the role, the state of the connection and the negotiated parameters.

pub mod decode;
pub mod digest;
pub mod encode;
pub mod fes;

pub use decode::{Decoder, Item, Limits};
pub use digest::{DataDigest, crc32c};
pub use encode::HeaderBuf;
pub use fes::Fatal;

use crate::spec::{Cqe, Sqe};

/// PDU type bytes.
pub mod pdu_type {
    /// Initialize connection request.
    pub const ICREQ: u8 = 0x00;
    /// Initialize connection response.
    pub const ICRESP: u8 = 0x01;
    /// Host to controller termination request.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// Controller to host termination request.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Host to controller data.
    pub const H2C_DATA: u8 = 0x06;
    /// Controller to host data.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to transfer.
    pub const R2T: u8 = 0x09;
}

/// Bits of a PDU's FLAGS.
pub mod flag {
    /// A header digest follows the header.
    pub const HDGSTF: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DDGSTF: u8 = 1 << 1;
    /// Last PDU of a transfer (H2CData, C2HData).
    pub const LAST_PDU: u8 = 1 << 2;
    /// The command succeeded, no CapsuleResp follows (C2HData).
    pub const SUCCESS: u8 = 1 << 3;
    /// All of them; the other bits are reserved and not looked at.
    pub const ALL: u8 = HDGSTF | DDGSTF | LAST_PDU | SUCCESS;
}

/// Which end of the connection we are: a host receives C2H PDUs, a controller H2C PDUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The initiator.
    Host,
    /// The target's end.
    Controller,
}

/// What ICReq and ICResp agreed on, for one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Params {
    /// Header digests in use.
    pub hdgst: bool,
    /// Data digests in use.
    pub ddgst: bool,
    /// The receiver's data alignment (HPDA or CPDA), dwords, 0's based, 0 to 31.
    pub pda: u8,
}

impl Params {
    /// The receiver's data alignment, bytes: 4 to 128.
    pub const fn alignment(&self) -> usize {
        assert!(self.pda <= PDA_MAX);
        (self.pda as usize + 1) * 4
    }
}

/// Largest HPDA and CPDA.
pub const PDA_MAX: u8 = 31;

/// Smallest MAXH2CDATA, bytes.
pub const MAXH2CDATA_MIN: u32 = 4096;

/// One PDU's header, parsed. Data, where there is any, follows as separate items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// Initialize connection request (host to controller).
    ICReq(ICReq),
    /// Initialize connection response.
    ICResp(ICResp),
    /// Fatal error, said by the host.
    H2CTermReq(TermReq),
    /// Fatal error, said by the controller.
    C2HTermReq(TermReq),
    /// A command, with `data_len` bytes of in-capsule data.
    CapsuleCmd {
        /// The command.
        sqe: Sqe,
        /// Bytes of in-capsule data.
        data_len: u32,
    },
    /// A completion.
    CapsuleResp {
        /// The completion.
        cqe: Cqe,
    },
    /// Data for a write, answering an R2T.
    H2CData(Data),
    /// Data of a read.
    C2HData(Data),
    /// Ready to transfer: the controller asks for data of a write.
    R2T(R2T),
}

impl Pdu {
    /// The PDU type on the wire.
    pub const fn type_byte(&self) -> u8 {
        match self {
            Self::ICReq(_) => pdu_type::ICREQ,
            Self::ICResp(_) => pdu_type::ICRESP,
            Self::H2CTermReq(_) => pdu_type::H2C_TERM_REQ,
            Self::C2HTermReq(_) => pdu_type::C2H_TERM_REQ,
            Self::CapsuleCmd { .. } => pdu_type::CAPSULE_CMD,
            Self::CapsuleResp { .. } => pdu_type::CAPSULE_RESP,
            Self::H2CData(_) => pdu_type::H2C_DATA,
            Self::C2HData(_) => pdu_type::C2H_DATA,
            Self::R2T(_) => pdu_type::R2T,
        }
    }

    /// HLEN: bytes of the header without digest.
    pub const fn hlen(&self) -> usize {
        match hlen(self.type_byte()) {
            Some(hlen) => hlen,
            None => unreachable!(),
        }
    }

    /// Bytes of data that follow the header (a TermReq's copy of a header is not data).
    pub const fn data_len(&self) -> u32 {
        match self {
            Self::CapsuleCmd { data_len, .. } => *data_len,
            Self::H2CData(data) | Self::C2HData(data) => data.datal,
            Self::ICReq(_)
            | Self::ICResp(_)
            | Self::H2CTermReq(_)
            | Self::C2HTermReq(_)
            | Self::CapsuleResp { .. }
            | Self::R2T(_) => 0,
        }
    }
}

/// HLEN of a PDU type; `None` for a type we do not know.
const fn hlen(pdu_type: u8) -> Option<usize> {
    match pdu_type {
        pdu_type::ICREQ | pdu_type::ICRESP => Some(128),
        pdu_type::CAPSULE_CMD => Some(72),
        pdu_type::H2C_TERM_REQ
        | pdu_type::C2H_TERM_REQ
        | pdu_type::CAPSULE_RESP
        | pdu_type::H2C_DATA
        | pdu_type::C2H_DATA
        | pdu_type::R2T => Some(24),
        _ => None,
    }
}

/// Whether a PDU type takes digests at all: ICReq, ICResp and the TermReqs never do.
const fn takes_digests(pdu_type: u8) -> bool {
    pdu_type >= pdu_type::CAPSULE_CMD
}

/// Initialize connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ICReq {
    /// PDU format version: 0.
    pub pfv: u16,
    /// Host PDU data alignment, dwords, 0's based (0 to 31).
    pub hpda: u8,
    /// Header digest asked for.
    pub hdgst: bool,
    /// Data digest asked for.
    pub ddgst: bool,
    /// R2Ts outstanding per command, 0's based.
    pub maxr2t: u32,
}

/// Initialize connection response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ICResp {
    /// PDU format version: 0.
    pub pfv: u16,
    /// Controller PDU data alignment, dwords, 0's based (0 to 31).
    pub cpda: u8,
    /// Header digest in use.
    pub hdgst: bool,
    /// Data digest in use.
    pub ddgst: bool,
    /// Largest DATAL of an H2CData PDU, bytes.
    pub maxh2cdata: u32,
}

/// H2CTermReq or C2HTermReq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermReq {
    /// Fatal error status.
    pub fes: u16,
    /// Fatal error information.
    pub fei: u32,
}

/// H2CData or C2HData.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Data {
    /// Command whose data this is.
    pub cccid: u16,
    /// The R2T's tag (H2CData only, 0 in C2HData).
    pub ttag: u16,
    /// Offset in the command's data, bytes.
    pub datao: u32,
    /// Bytes of data in this PDU.
    pub datal: u32,
    /// Last PDU of the R2T's data (H2CData), or of the command's (C2HData).
    pub last: bool,
    /// No CapsuleResp follows (C2HData with `last` only).
    pub success: bool,
}

/// Ready to transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct R2T {
    /// Command whose data is asked for.
    pub cccid: u16,
    /// Tag to be echoed in H2CData.
    pub ttag: u16,
    /// Offset in the command's data, bytes.
    pub r2to: u32,
    /// Bytes asked for.
    pub r2tl: u32,
}
