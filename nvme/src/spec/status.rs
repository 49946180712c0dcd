//! Command status by the spec's names (NVMe Base 2.x, "Status field").

use std::fmt;

use zerocopy::little_endian::U16;

use super::{Cqe, Status};

const DNR: u16 = 1 << 14;
const SC_SCT: u16 = 0x07FF;

/// Status code types.
pub mod sct {
    /// Generic command status.
    pub const GENERIC: u8 = 0;
    /// Command specific status.
    pub const COMMAND_SPECIFIC: u8 = 1;
    /// Media and data integrity errors.
    pub const MEDIA: u8 = 2;
    /// Path related status.
    pub const PATH: u8 = 3;
    /// Vendor specific.
    pub const VENDOR: u8 = 7;
}

/// Declares one constant per status and its printed name from the same row.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* #[doc = $text] pub const $name: Self = Self::new($sct, $sc);)*
        }

        /// The spec's name of a status; command-specific ones by the commands we know.
        const fn name(sct: u8, sc: u8) -> Option<&'static str> {
            match (sct, sc) {
                $(($sct, $sc) => Some($text),)*
                _ => None,
            }
        }

        #[cfg(test)]
        const ALL: &[(Status, u8, u8)] = &[$((Status::$name, $sct, $sc),)*];
    };
}

statuses! {
    SUCCESS = 0, 0x00, "Successful Completion";
    INVALID_OPCODE = 0, 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0, 0x02, "Invalid Field in Command";
    CID_CONFLICT = 0, 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "Data Transfer Error";
    POWER_LOSS = 0, 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0, 0x06, "Internal Error";
    ABORT_REQUESTED = 0, 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0, 0x08, "Command Aborted due to SQ Deletion";
    FUSED_FAILED = 0, 0x09, "Command Aborted due to Failed Fused Command";
    FUSED_MISSING = 0, 0x0A, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = 0, 0x0B, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0C, "Command Sequence Error";
    SGL_SEGMENT_INVALID = 0, 0x0D, "Invalid SGL Segment Descriptor";
    SGL_COUNT_INVALID = 0, 0x0E, "Invalid Number of SGL Descriptors";
    SGL_LENGTH_INVALID = 0, 0x0F, "Data SGL Length Invalid";
    SGL_METADATA_LENGTH_INVALID = 0, 0x10, "Metadata SGL Length Invalid";
    SGL_TYPE_INVALID = 0, 0x11, "SGL Descriptor Type Invalid";
    OPERATION_DENIED = 0, 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL Offset Invalid";
    HOST_ID_INCONSISTENT = 0, 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0, 0x1A, "Keep Alive Timeout Invalid";
    PREEMPTED = 0, 0x1B, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0, 0x1C, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0, 0x1D, "Sanitize In Progress";
    NS_WRITE_PROTECTED = 0, 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0, 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT = 0, 0x22, "Transient Transport Error";
    ADMIN_MEDIA_NOT_READY = 0, 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0, 0x81, "Capacity Exceeded";
    NS_NOT_READY = 0, 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0, 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "Format In Progress";
    INVALID_QUEUE_ID = 1, 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 1, 0x03, "Abort Command Limit Exceeded";
    AER_LIMIT_EXCEEDED = 1, 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_LOG_PAGE = 1, 0x09, "Invalid Log Page";
    FEATURE_NOT_SAVEABLE = 1, 0x0D, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0E, "Feature Not Changeable";
    FEATURE_NOT_NS_SPECIFIC = 1, 0x0F, "Feature Not Namespace Specific";
    /// Fabrics Connect only; for I/O commands 1/80h means Conflicting Attributes.
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "Incompatible Format / Conflicting Attributes";
    /// Fabrics Connect only; for I/O commands 1/81h means Invalid Protection Information.
    CONNECT_CONTROLLER_BUSY = 1, 0x81, "Controller Busy / Invalid Protection Information";
    /// Fabrics Connect only; for I/O commands 1/82h means Write to Read Only Range.
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "Connect Invalid Parameters / Read Only Range";
    CONNECT_RESTART_DISCOVERY = 1, 0x83, "Connect Restart Discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "Connect Invalid Host";
    INVALID_QUEUE_TYPE = 1, 0x85, "Invalid Queue Type";
    DISCOVER_RESTART = 1, 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "Authentication Required";
    WRITE_FAULT = 2, 0x80, "Write Fault";
    UNRECOVERED_READ = 2, 0x81, "Unrecovered Read Error";
    GUARD_CHECK = 2, 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK = 2, 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK = 2, 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 2, 0x85, "Compare Failure";
    ACCESS_DENIED = 2, 0x86, "Access Denied";
    DEALLOCATED_BLOCK = 2, 0x87, "Deallocated or Unwritten Logical Block";
    INTERNAL_PATH_ERROR = 3, 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3, 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3, 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 3, 0x60, "Controller Pathing Error";
    HOST_PATHING_ERROR = 3, 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 3, 0x71, "Command Aborted By Host";
}

impl Status {
    /// A status of its code type (0 to 7) and code.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sct as u16 & 0x7) << 8 | sc as u16)
    }

    /// Status code type.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8 & 0x7) as u8
    }

    /// Status code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Command retry delay: which of CRDT1 to CRDT3 to wait, 0 for none.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11 & 0x3) as u8
    }

    /// More information is in the error log.
    pub const fn more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Do not retry: it would fail again.
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same status with DNR set.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.0 & SC_SCT == 0
    }

    /// Whether code type and code are those of `other`, whatever CRD, M and DNR say.
    pub const fn is(self, other: Self) -> bool {
        self.0 & SC_SCT == other.0 & SC_SCT
    }

    /// From a CQE's status word (its phase bit is left out).
    pub const fn from_cqe(word: u16) -> Self {
        Self(word >> 1)
    }

    /// As a CQE's status word, phase 0.
    pub const fn to_cqe(self) -> u16 {
        self.0 << 1
    }

    /// `Ok` on success, the status otherwise: for `?` in sequences of commands.
    ///
    /// # Errors
    /// The status itself when it is not success.
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.sct(), self.sc()) {
            Some(name) => write!(f, "{name}")?,
            None => write!(f, "unknown status")?,
        }
        write!(f, " ({:x}/{:02x}h", self.sct(), self.sc())?;
        if self.dnr() {
            write!(f, ", do not retry")?;
        }
        write!(f, ")")
    }
}

impl Cqe {
    /// A completion of command `cid`. SQHD and DW0/DW1 are 0: set them where they mean something.
    pub fn new(cid: u16, status: Status) -> Self {
        Self { cid: U16::new(cid), status: U16::new(status.to_cqe()), ..Self::default() }
    }

    /// The status, without phase.
    pub const fn status(&self) -> Status {
        Status::from_cqe(self.status.get())
    }

    /// DW0 and DW1 as one value (Property Get).
    pub const fn result(&self) -> u64 {
        self.dw0.get() as u64 | (self.dw1.get() as u64) << 32
    }

    /// Sets DW0 and DW1.
    #[must_use]
    pub fn with_result(mut self, value: u64) -> Self {
        self.dw0.set(value as u32);
        self.dw1.set((value >> 32) as u32);
        self
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn every_status_has_its_codes_and_name() {
        for &(status, sct, sc) in ALL {
            assert_eq!((status.sct(), status.sc()), (sct, sc));
            assert!(!status.to_string().contains("unknown"));
            assert_eq!(Status::from_cqe(status.to_cqe()), status);
            assert!(!status.dnr() && status.with_dnr().dnr() && status.with_dnr().is(status));
            assert_eq!(status.is_success(), status == Status::SUCCESS);
        }
        assert_eq!(Status::new(7, 0x12).to_string(), "unknown status (7/12h)");
        assert_eq!(
            Status::LBA_OUT_OF_RANGE.with_dnr().to_string(),
            "LBA Out of Range (0/80h, do not retry)"
        );
    }

    #[test]
    fn status_words_are_those_of_the_wire() {
        // DNR, M, CRD 2, SCT 3, SC 70h, phase 1.
        let status = Status::from_cqe(0b1110_0110_1110_0001);
        assert_eq!((status.sct(), status.sc(), status.crd()), (3, 0x70, 2));
        assert!(status.dnr() && status.more());
        assert_eq!(status.to_cqe(), 0xE6E0);
        assert_eq!(status.ok(), Err(status));
        assert_eq!(Status::SUCCESS.ok(), Ok(()));
    }

    #[test]
    fn a_completion_has_its_fields_in_place() {
        let mut cqe = Cqe::new(0x1234, Status::INVALID_FIELD).with_result(0x8877_6655_4433_2211);
        cqe.sqhd.set(0xBBAA);
        #[rustfmt::skip]
        let bytes = [
            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
            0xAA, 0xBB, 0, 0, 0x34, 0x12, 0x04, 0x00,
        ];
        assert_eq!(cqe.as_bytes(), bytes);
        assert_eq!(cqe.result(), 0x8877_6655_4433_2211);
        assert_eq!(cqe.status(), Status::INVALID_FIELD);
    }
}
