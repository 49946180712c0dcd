//! NVMe/TCP PDUs: typed, parsed and built here, and nowhere else (NVMe-TCP 1.x, "PDU
//! definitions").
//!
//! [`Pdu`] is what a decoder yields for a header, after every length, offset and flag in it was
//! checked against the role, the state of the connection and the negotiated parameters.

use crate::spec::{Cqe, Sqe};

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
