//! Features: Set and Get, number of queues, keep alive, asynchronous events; and the small admin
//! commands Keep Alive, Abort and Asynchronous Event Request (NVMe Base 2.x, "Features").

use super::Sqe;
use super::opcode::admin;

/// Feature identifiers.
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power management.
    pub const POWER: u8 = 0x02;
    /// Temperature threshold.
    pub const TEMPERATURE: u8 = 0x04;
    /// Error recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile write cache.
    pub const WRITE_CACHE: u8 = 0x06;
    /// Number of queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Write atomicity.
    pub const WRITE_ATOMICITY: u8 = 0x0A;
    /// Asynchronous event configuration.
    pub const ASYNC_EVENTS: u8 = 0x0B;
    /// Keep alive timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    /// Host behaviour support.
    pub const HOST_BEHAVIOUR: u8 = 0x16;
    /// Host identifier; set only by Connect on fabrics.
    pub const HOST_ID: u8 = 0x81;
}

/// Set Features without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetFeatures {
    /// Namespace, where the feature has one.
    pub nsid: u32,
    /// Feature, one of [`fid`].
    pub fid: u8,
    /// To be saved.
    pub save: bool,
    /// The value.
    pub value: u32,
}

impl SetFeatures {
    /// Sets a feature of the controller, not saved.
    pub const fn new(fid: u8, value: u32) -> Self {
        Self { nsid: 0, fid, save: false, value }
    }

    /// As a command.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = Sqe::new(admin::SET_FEATURES, self.nsid);
        sqe.cdw10.set(u32::from(self.fid) | u32::from(self.save) << 31);
        sqe.cdw11.set(self.value);
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            nsid: sqe.nsid.get(),
            fid: cdw10 as u8,
            save: cdw10 >> 31 != 0,
            value: sqe.cdw11.get(),
        }
    }
}

/// Get Features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetFeatures {
    /// Namespace, where the feature has one.
    pub nsid: u32,
    /// Feature, one of [`fid`].
    pub fid: u8,
    /// Which value: 0 current, 1 default, 2 saved, 3 capabilities.
    pub sel: u8,
}

impl GetFeatures {
    /// Reads the current value of a feature of the controller.
    pub const fn new(fid: u8) -> Self {
        Self { nsid: 0, fid, sel: 0 }
    }

    /// As a command.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = Sqe::new(admin::GET_FEATURES, self.nsid);
        sqe.cdw10.set(u32::from(self.fid) | u32::from(self.sel & 0b111) << 8);
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self { nsid: sqe.nsid.get(), fid: cdw10 as u8, sel: (cdw10 >> 8 & 0b111) as u8 }
    }
}

/// Number of queues, asked for (CDW11) or granted (DW0). Counts, not 0's based: 1 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues.
    pub submission: u32,
    /// I/O completion queues.
    pub completion: u32,
}

impl NumberOfQueues {
    /// From a feature's value.
    pub const fn from_value(value: u32) -> Self {
        Self { submission: (value & 0xFFFF) + 1, completion: (value >> 16) + 1 }
    }

    /// As a feature's value; counts outside 1 to 65536 are brought into that range.
    pub fn to_value(self) -> u32 {
        let zeroes_based = |count: u32| count.clamp(1, 0x1_0000) - 1;
        zeroes_based(self.submission) | zeroes_based(self.completion) << 16
    }

    /// Usable queue pairs.
    pub fn pairs(self) -> u32 {
        self.submission.min(self.completion)
    }
}

/// Bits of the asynchronous event configuration, and of OAES.
pub mod async_event {
    /// Critical warnings of the SMART log, bits 7:0.
    pub const SMART: u32 = 0xFF;
    /// Namespace attribute changed.
    pub const NS_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation starting.
    pub const FW_ACTIVATION: u32 = 1 << 9;
    /// ANA change.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Discovery log page change.
    pub const DISCOVERY_LOG: u32 = 1 << 31;
}

/// Keep Alive.
pub fn keep_alive() -> Sqe {
    Sqe::new(admin::KEEP_ALIVE, 0)
}

/// Asynchronous Event Request.
pub fn async_event_request() -> Sqe {
    Sqe::new(admin::ASYNC_EVENT_REQUEST, 0)
}

/// Abort: of one command of one queue. DW0 bit 0 of its completion says *not* aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Queue of the command.
    pub sqid: u16,
    /// The command.
    pub cid: u16,
}

impl Abort {
    /// As a command.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = Sqe::new(admin::ABORT, 0);
        sqe.cdw10.set(u32::from(self.sqid) | u32::from(self.cid) << 16);
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self { sqid: cdw10 as u16, cid: (cdw10 >> 16) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn feature_commands_are_laid_out_as_in_the_spec() {
        let set = SetFeatures { nsid: 3, fid: fid::KEEP_ALIVE_TIMER, save: true, value: 5000 };
        let sqe = set.to_sqe();
        assert_eq!(sqe.as_bytes()[..8], [0x09, 0x40, 0, 0, 3, 0, 0, 0]);
        assert_eq!(sqe.as_bytes()[40..48], [0x0F, 0, 0, 0x80, 0x88, 0x13, 0, 0]);
        assert_eq!(SetFeatures::from_sqe(&sqe), set);
        let get = GetFeatures { nsid: 3, fid: fid::ASYNC_EVENTS, sel: 2 };
        assert_eq!(get.to_sqe().as_bytes()[40..44], [0x0B, 2, 0, 0]);
        assert_eq!(GetFeatures::from_sqe(&get.to_sqe()), get);
    }

    #[test]
    fn small_commands_round_trip() {
        let abort = Abort { sqid: 0x0201, cid: 0x0403 };
        assert_eq!(abort.to_sqe().as_bytes()[40..44], [1, 2, 3, 4]);
        assert_eq!(Abort::from_sqe(&abort.to_sqe()), abort);
        assert_eq!((keep_alive().opcode, async_event_request().opcode), (0x18, 0x0C));
    }

    #[test]
    fn queue_counts_are_zeroes_based_on_the_wire() {
        let queues = NumberOfQueues { submission: 4, completion: 65536 };
        assert_eq!(queues.to_value(), 0xFFFF_0003);
        assert_eq!(NumberOfQueues::from_value(0xFFFF_0003), queues);
        assert_eq!(queues.pairs(), 4);
        assert_eq!(NumberOfQueues { submission: 0, completion: 70_000 }.to_value(), 0xFFFF_0000);
    }
}
