//! Asynchronous events: what DW0 of a completed request says (NVMe Base 2.x, "Asynchronous Event
//! Request command").

use super::log::lid;

/// An event. After it, its type stays masked until the log page is read with RAE 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Event type, 3 bits, one of the constants here.
    pub event_type: u8,
    /// Event information.
    pub info: u8,
    /// Log page that says more.
    pub lid: u8,
}

impl AsyncEvent {
    /// Type: error.
    pub const ERROR: u8 = 0;
    /// Type: SMART and health.
    pub const SMART: u8 = 1;
    /// Type: notice.
    pub const NOTICE: u8 = 2;
    /// Type: I/O command set.
    pub const IO_COMMAND_SET: u8 = 6;
    /// Type: vendor specific.
    pub const VENDOR: u8 = 7;

    /// A namespace was added, removed or changed.
    pub const NS_ATTRIBUTE_CHANGED: Self = Self::notice(0x00, lid::CHANGED_NAMESPACES);
    /// An ANA state changed.
    pub const ANA_CHANGE: Self = Self::notice(0x03, lid::ANA);
    /// The discovery log page changed.
    pub const DISCOVERY_LOG_CHANGE: Self = Self::notice(0xF0, lid::DISCOVERY);

    const fn notice(info: u8, lid: u8) -> Self {
        Self { event_type: Self::NOTICE, info, lid }
    }

    /// From a completion's DW0.
    pub const fn from_dw0(dw0: u32) -> Self {
        Self { event_type: (dw0 & 0b111) as u8, info: (dw0 >> 8) as u8, lid: (dw0 >> 16) as u8 }
    }

    /// As DW0.
    pub const fn to_dw0(self) -> u32 {
        (self.event_type & 0b111) as u32 | (self.info as u32) << 8 | (self.lid as u32) << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_laid_out_as_in_the_spec() {
        assert_eq!(AsyncEvent::DISCOVERY_LOG_CHANGE.to_dw0(), 0x0070_F002);
        assert_eq!(AsyncEvent::NS_ATTRIBUTE_CHANGED.to_dw0(), 0x0004_0002);
        assert_eq!(AsyncEvent::ANA_CHANGE.to_dw0(), 0x000C_0302);
        let event = AsyncEvent { event_type: AsyncEvent::VENDOR, info: 0xAB, lid: 0xCD };
        assert_eq!(AsyncEvent::from_dw0(event.to_dw0()), event);
        assert_eq!(AsyncEvent::from_dw0(0xFFFF_FFF8).event_type, 0);
    }
}
