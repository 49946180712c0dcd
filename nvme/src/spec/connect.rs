//! Fabrics Connect: the command, its data and its response (NVMe-oF, "Connect").

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::nqn::{HostId, Nqn};
use super::opcode::fctype;
use super::{Cqe, Sqe, Status};

/// CNTLID that asks for any controller (dynamic model).
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;
/// CNTLID that asks for any controller of a static model.
pub const CNTLID_STATIC: u16 = 0xFFFE;
/// Largest CNTLID that names a controller.
pub const CNTLID_MAX: u16 = 0xFFEF;

/// The Connect command's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Connect {
    /// Record format: 0.
    pub recfmt: u16,
    /// Queue: 0 for the admin queue.
    pub qid: u16,
    /// Submission queue size, 0's based; 0 is invalid.
    pub sqsize: u16,
    /// Connect attributes.
    pub cattr: u8,
    /// Keep alive timeout, ms (admin queue only).
    pub kato_ms: u32,
}

impl Connect {
    /// CATTR: SQ flow control is disabled.
    pub const CATTR_DISSQFC: u8 = 1 << 2;
    /// CATTR: the host can delete single I/O queues.
    pub const CATTR_IOQ_DELETION: u8 = 1 << 3;

    /// Whether SQ flow control is to be disabled.
    pub const fn dissqfc(&self) -> bool {
        self.cattr & Self::CATTR_DISSQFC != 0
    }

    /// As a command, with its [`ConnectData`] in the capsule.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = Sqe::fabrics(fctype::CONNECT).with_in_capsule(ConnectData::BYTES);
        sqe.cdw10.set(u32::from(self.recfmt) | u32::from(self.qid) << 16);
        sqe.cdw11.set(u32::from(self.sqsize) | u32::from(self.cattr) << 16);
        sqe.cdw12.set(self.kato_ms);
        sqe
    }

    /// From a Connect command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        Self {
            recfmt: sqe.cdw10.get() as u16,
            qid: (sqe.cdw10.get() >> 16) as u16,
            sqsize: sqe.cdw11.get() as u16,
            cattr: (sqe.cdw11.get() >> 16) as u8,
            kato_ms: sqe.cdw12.get(),
        }
    }
}

/// Connect data, 1024 bytes, in the capsule.
#[derive(
    Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Eq,
)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller asked for; [`CNTLID_DYNAMIC`] on the admin queue.
    pub cntlid: U16,
    rsvd18: [u8; 238],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; 256],
    /// Host NQN, NUL-terminated.
    pub hostnqn: [u8; 256],
    rsvd768: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == ConnectData::BYTES as usize);
const _: () = assert!(std::mem::offset_of!(ConnectData, cntlid) == 16);
const _: () = assert!(std::mem::offset_of!(ConnectData, subnqn) == 256);
const _: () = assert!(std::mem::offset_of!(ConnectData, hostnqn) == 512);

impl ConnectData {
    /// Its size.
    pub const BYTES: u32 = 1024;

    /// Connect data of this host for `cntlid` of subsystem `subnqn`.
    pub fn new(hostid: &HostId, cntlid: u16, subnqn: &Nqn, hostnqn: &Nqn) -> Self {
        Self {
            hostid: *hostid.as_bytes(),
            cntlid: U16::new(cntlid),
            rsvd18: [0; 238],
            subnqn: subnqn.to_field(),
            hostnqn: hostnqn.to_field(),
            rsvd768: [0; 256],
        }
    }
}

/// What a successful Connect's DW0 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConnectResponse {
    /// The controller.
    pub cntlid: u16,
    /// Authentication is required (ATR).
    pub auth_required: bool,
    /// Authentication with a secure channel is required (ASCR).
    pub secure_channel_required: bool,
}

impl ConnectResponse {
    /// From the completion of a Connect that succeeded.
    pub const fn from_cqe(cqe: &Cqe) -> Self {
        let dw0 = cqe.dw0.get();
        Self {
            cntlid: dw0 as u16,
            auth_required: dw0 & 1 << 17 != 0,
            secure_channel_required: dw0 & 1 << 18 != 0,
        }
    }

    /// As DW0.
    pub const fn to_dw0(&self) -> u32 {
        self.cntlid as u32
            | (self.auth_required as u32) << 17
            | (self.secure_channel_required as u32) << 18
    }
}

/// What is wrong with a Connect's parameters: DW0 beside
/// [`Status::CONNECT_INVALID_PARAMETERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidParameter {
    /// Byte offset of the parameter.
    pub ipo: u16,
    /// The offset is in the data, not in the SQE.
    pub in_data: bool,
}

impl InvalidParameter {
    /// QID in the SQE.
    pub const QID: Self = Self { ipo: 42, in_data: false };
    /// SQSIZE in the SQE.
    pub const SQSIZE: Self = Self { ipo: 44, in_data: false };
    /// CATTR in the SQE.
    pub const CATTR: Self = Self { ipo: 46, in_data: false };
    /// KATO in the SQE.
    pub const KATO: Self = Self { ipo: 48, in_data: false };
    /// HOSTID in the data.
    pub const HOSTID: Self = Self { ipo: 0, in_data: true };
    /// CNTLID in the data.
    pub const CNTLID: Self = Self { ipo: 16, in_data: true };
    /// SUBNQN in the data.
    pub const SUBNQN: Self = Self { ipo: 256, in_data: true };
    /// HOSTNQN in the data.
    pub const HOSTNQN: Self = Self { ipo: 512, in_data: true };

    /// The completion that says it; not to be retried.
    pub fn to_cqe(self, cid: u16) -> Cqe {
        let mut cqe = Cqe::new(cid, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
        cqe.dw0.set(u32::from(self.ipo) | u32::from(self.in_data) << 16);
        cqe
    }

    /// From such a completion.
    pub const fn from_cqe(cqe: &Cqe) -> Self {
        let dw0 = cqe.dw0.get();
        Self { ipo: dw0 as u16, in_data: dw0 & 1 << 16 != 0 }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn a_connect_is_laid_out_as_in_the_spec() {
        let connect = Connect {
            recfmt: 0,
            qid: 0x0201,
            sqsize: 0x0403,
            cattr: Connect::CATTR_DISSQFC | Connect::CATTR_IOQ_DELETION,
            kato_ms: 0x0807_0605,
        };
        let sqe = connect.to_sqe();
        assert_eq!(sqe.as_bytes()[..8], [0x7F, 0x40, 0, 0, 1, 0, 0, 0]);
        assert_eq!(sqe.as_bytes()[32..40], [0, 4, 0, 0, 0, 0, 0, 1]);
        assert_eq!(sqe.as_bytes()[40..52], [0, 0, 1, 2, 3, 4, 0x0C, 0, 5, 6, 7, 8]);
        assert_eq!(Connect::from_sqe(&sqe), connect);
        assert!(connect.dissqfc() && !Connect::default().dissqfc());
    }

    #[test]
    fn connect_data_are_laid_out_as_in_the_spec() {
        let hostid = HostId::from_bytes([7; 16]);
        let subnqn = Nqn::new("nqn.2026-01.org.moorline:sub").unwrap();
        let hostnqn = Nqn::new("nqn.2026-01.org.moorline:host").unwrap();
        let data = ConnectData::new(&hostid, 0x0201, &subnqn, &hostnqn);
        let bytes = data.as_bytes();
        assert_eq!(bytes[..16], [7; 16]);
        assert_eq!(bytes[16..18], [1, 2]);
        assert_eq!(&bytes[256..285], b"nqn.2026-01.org.moorline:sub\0");
        assert_eq!(&bytes[512..542], b"nqn.2026-01.org.moorline:host\0");
        assert!(bytes[768..].iter().all(|byte| *byte == 0));
        assert_eq!(Nqn::from_field(&data.subnqn).unwrap(), subnqn);
    }

    #[test]
    fn responses_round_trip() {
        let response =
            ConnectResponse { cntlid: 0x1234, auth_required: true, secure_channel_required: false };
        assert_eq!(response.to_dw0(), 0x0002_1234);
        let mut cqe = Cqe::new(1, Status::SUCCESS);
        cqe.dw0.set(0x0006_FFEF);
        let response = ConnectResponse::from_cqe(&cqe);
        assert!(response.auth_required && response.secure_channel_required);
        assert_eq!((response.cntlid, response.to_dw0()), (CNTLID_MAX, 0x0006_FFEF));
        let cqe = InvalidParameter::SUBNQN.to_cqe(9);
        assert_eq!(cqe.dw0.get(), 0x0001_0100);
        assert!(cqe.status().is(Status::CONNECT_INVALID_PARAMETERS) && cqe.status().dnr());
        assert_eq!(InvalidParameter::from_cqe(&cqe), InvalidParameter::SUBNQN);
    }
}
