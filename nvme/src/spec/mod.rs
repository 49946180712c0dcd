//! The spec's types: what NVMe and NVMe over Fabrics put into commands, completions and data.
//!
//! Layouts are `zerocopy` structs with little-endian fields, named as in the spec; each has its
//! size asserted and a hand-built vector in its tests.

pub mod aer;
pub mod connect;
pub mod features;
pub mod identify;
pub mod io;
pub mod log;
pub mod nqn;
pub mod opcode;
pub mod properties;
pub mod sqe;
pub mod status;

pub use aer::AsyncEvent;
pub use connect::{Connect, ConnectData, ConnectResponse, InvalidParameter};
pub use features::{Abort, GetFeatures, NumberOfQueues, SetFeatures};
pub use identify::{
    Identify, IdentifyController, IdentifyNamespace, IndependentNamespace, LbaFormat, NsDescriptor,
    NsidList,
};
pub use io::{BlockCommand, DatasetManagement, DsmRange};
pub use log::GetLogPage;
pub use nqn::{DISCOVERY_NQN, HostId, Nqn, NqnError};
pub use opcode::Direction;
pub use properties::{Cap, Cc, Csts, Property, Vs, property};
pub use sqe::{Sgl, SglError};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Submission queue entry, 64 bytes (NVMe Base 2.x, "Submission Queue Entry"). On fabrics the
/// command capsule carries it unchanged; only SGL1 describes data.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct Sqe {
    /// Opcode; bits 1:0 give the data direction. 0x7F: a Fabrics command, its FCTYPE in `nsid`'s
    /// first byte.
    pub opcode: u8,
    /// FUSE 1:0, PSDT 7:6 (always 01b on fabrics).
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Namespace identifier.
    pub nsid: U32,
    /// CDW2, CDW3.
    pub cdw2_3: [U32; 2],
    /// Metadata pointer (unused on TCP).
    pub mptr: U64,
    /// SGL1: address (0, or the in-capsule offset).
    pub sgl_addr: U64,
    /// SGL1: length in bytes.
    pub sgl_len: U32,
    /// SGL1: reserved.
    pub sgl_rsvd: [u8; 3],
    /// SGL1: descriptor type 7:4, subtype 3:0.
    pub sgl_id: u8,
    /// CDW10 to CDW15.
    pub cdw10: U32,
    /// See `cdw10`.
    pub cdw11: U32,
    /// See `cdw10`.
    pub cdw12: U32,
    /// See `cdw10`.
    pub cdw13: U32,
    /// See `cdw10`.
    pub cdw14: U32,
    /// See `cdw10`.
    pub cdw15: U32,
}

/// Completion queue entry, 16 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct Cqe {
    /// DW0: command specific.
    pub dw0: U32,
    /// DW1: command specific.
    pub dw1: U32,
    /// Submission queue head; 0xFFFF or not meaningful without SQ flow control.
    pub sqhd: U16,
    /// Submission queue identifier; reserved on fabrics.
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Phase (0 on fabrics) in bit 0, then [`Status`] in bits 15:1.
    pub status: U16,
}

/// A command's status as 15 bits: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14 (the CQE's status
/// field without its phase bit). A value, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

const _: () = assert!(size_of::<Sqe>() == 64);
const _: () = assert!(size_of::<Cqe>() == 16);
