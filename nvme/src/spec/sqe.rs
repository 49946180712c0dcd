//! Submission queue entries: what is common to all commands, and how data are described on TCP.
//!
//! PSDT is 01b on every capsule and only SGL1 is used (NVMe-TCP 1.x, "Capsules and data
//! transfer"): in-capsule data by an offset data block (01h), all other data by a transport data
//! block (5Ah).

use zerocopy::little_endian::{U32, U64};

use super::opcode::{Direction, FABRICS};
use super::{Sqe, Status};

/// PSDT 01b: SGLs are used.
const FLAGS_SGL: u8 = 0x40;
/// SGL identifier: data block, offset (in-capsule data).
pub const SGL_IN_CAPSULE: u8 = 0x01;
/// SGL identifier: transport data block (data in PDUs of their own).
pub const SGL_TRANSPORT: u8 = 0x5A;

/// Where a command's data are, from SGL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// In the capsule, this many bytes.
    InCapsule(u32),
    /// In the host's buffer, to be moved by H2CData or C2HData: this many bytes, 0 for no data.
    Transport(u32),
}

impl Sgl {
    /// Bytes described.
    pub const fn len(self) -> u32 {
        match self {
            Self::InCapsule(len) | Self::Transport(len) => len,
        }
    }

    /// Whether no data are described.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// An SGL1 that TCP does not have: fatal for the connection (FES 6, Unsupported Parameter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglError {
    /// Type and subtype are not allowed.
    Type,
    /// In-capsule data do not begin at offset 0.
    Offset,
}

impl SglError {
    /// The status that says the same, for a target that rather fails the command.
    pub const fn status(self) -> Status {
        match self {
            Self::Type => Status::SGL_TYPE_INVALID.with_dnr(),
            Self::Offset => Status::SGL_OFFSET_INVALID.with_dnr(),
        }
    }
}

impl Sqe {
    /// A command without data; the qpair sets its CID.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        Self {
            opcode,
            flags: FLAGS_SGL,
            nsid: U32::new(nsid),
            sgl_id: SGL_TRANSPORT,
            ..Self::default()
        }
    }

    /// A Fabrics command without data.
    pub fn fabrics(fctype: u8) -> Self {
        Self::new(FABRICS, u32::from(fctype))
    }

    /// Describes `len` bytes of in-capsule data.
    #[must_use]
    pub fn with_in_capsule(mut self, len: u32) -> Self {
        self.sgl_id = SGL_IN_CAPSULE;
        self.sgl_addr = U64::new(0);
        self.sgl_len.set(len);
        self
    }

    /// Describes `len` bytes of data that H2CData or C2HData move.
    #[must_use]
    pub fn with_transport(mut self, len: u32) -> Self {
        self.sgl_id = SGL_TRANSPORT;
        self.sgl_addr = U64::new(0);
        self.sgl_len.set(len);
        self
    }

    /// Whether this is a Fabrics command.
    pub const fn is_fabrics(&self) -> bool {
        self.opcode == FABRICS
    }

    /// FCTYPE of a Fabrics command.
    pub const fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// PSDT: 01b on fabrics.
    pub const fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// FUSE: 0 for a command by itself, 1 and 2 for the first and second of a fused pair.
    pub const fn fuse(&self) -> u8 {
        self.flags & 0b11
    }

    /// Which way the command's data go: the opcode's bits 1:0, or the FCTYPE's.
    pub const fn direction(&self) -> Direction {
        if self.is_fabrics() { Direction::of(self.fctype()) } else { Direction::of(self.opcode) }
    }

    /// Where the data are. An all-zero SGL1 is accepted as "no data".
    ///
    /// # Errors
    /// For descriptors that TCP does not have.
    pub const fn sgl(&self) -> Result<Sgl, SglError> {
        let (addr, len) = (self.sgl_addr.get(), self.sgl_len.get());
        match self.sgl_id {
            SGL_IN_CAPSULE if addr == 0 => Ok(Sgl::InCapsule(len)),
            SGL_IN_CAPSULE => Err(SglError::Offset),
            SGL_TRANSPORT => Ok(Sgl::Transport(len)),
            0 if addr == 0 && len == 0 => Ok(Sgl::Transport(0)),
            _ => Err(SglError::Type),
        }
    }

    /// CDW10 and CDW11 as one value (SLBA).
    pub const fn cdw10_11(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    /// Sets CDW10 and CDW11.
    pub fn set_cdw10_11(&mut self, value: u64) {
        self.cdw10.set(value as u32);
        self.cdw11.set((value >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::super::opcode::{admin, fctype, io};
    use super::*;

    #[test]
    fn a_read_is_laid_out_as_in_the_spec() {
        let mut sqe = Sqe::new(io::READ, 0x0403_0201).with_transport(0x1000);
        sqe.cid.set(0xBBAA);
        sqe.set_cdw10_11(0x8877_6655_4433_2211);
        sqe.cdw15.set(0xDDCC_BBAA);
        let mut bytes = [0u8; 64];
        bytes[..8].copy_from_slice(&[0x02, 0x40, 0xAA, 0xBB, 1, 2, 3, 4]);
        bytes[32..36].copy_from_slice(&[0, 0x10, 0, 0]);
        bytes[39] = 0x5A;
        bytes[40..48].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        bytes[60..].copy_from_slice(&[0xAA, 0xBB, 0xCC, 0xDD]);
        assert_eq!(sqe.as_bytes(), bytes);
        assert_eq!(Sqe::read_from_bytes(&bytes).unwrap(), sqe);
        assert_eq!(sqe.cdw10_11(), 0x8877_6655_4433_2211);
        assert_eq!((sqe.psdt(), sqe.fuse()), (1, 0));
    }

    #[test]
    fn direction_is_in_the_opcode_or_the_fctype() {
        let of = |sqe: Sqe| sqe.direction();
        assert_eq!(of(Sqe::new(io::WRITE, 1)), Direction::HostToController);
        assert_eq!(of(Sqe::new(io::READ, 1)), Direction::ControllerToHost);
        assert_eq!(of(Sqe::new(io::FLUSH, 1)), Direction::None);
        assert_eq!(of(Sqe::new(admin::IDENTIFY, 0)), Direction::ControllerToHost);
        assert_eq!(of(Sqe::fabrics(fctype::CONNECT)), Direction::HostToController);
        assert_eq!(of(Sqe::fabrics(fctype::PROPERTY_GET)), Direction::None);
        assert_eq!(of(Sqe::fabrics(fctype::AUTHENTICATION_RECEIVE)), Direction::ControllerToHost);
        assert_eq!(Direction::of(3), Direction::Both);
    }

    #[test]
    fn only_the_two_descriptors_of_tcp_are_taken() {
        let sqe = Sqe::new(io::WRITE, 1);
        assert_eq!(sqe.sgl(), Ok(Sgl::Transport(0)));
        assert!(sqe.sgl().unwrap().is_empty());
        assert_eq!(sqe.with_in_capsule(512).sgl(), Ok(Sgl::InCapsule(512)));
        assert_eq!(sqe.with_transport(8192).sgl(), Ok(Sgl::Transport(8192)));
        let shifted = Sqe { sgl_addr: U64::new(4), ..sqe.with_in_capsule(512) };
        assert_eq!(shifted.sgl(), Err(SglError::Offset));
        assert_eq!(Sqe { sgl_id: 0, ..sqe }.sgl(), Ok(Sgl::Transport(0)));
        assert_eq!(Sqe { sgl_id: 0, ..sqe.with_transport(1) }.sgl(), Err(SglError::Type));
        assert_eq!(Sqe { sgl_id: 0x40, ..sqe }.sgl(), Err(SglError::Type));
        assert!(SglError::Type.status().is(Status::SGL_TYPE_INVALID));
    }
}
