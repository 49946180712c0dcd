//! Submission queue flow control: how many commands the controller has not fetched.

use crate::pdu::Fatal;
use crate::pdu::fes::offset;

/// Byte offset of SQHD in a CapsuleResp.
const RESP_SQHD: u32 = offset::RESP_CID - 4;

/// Submission queue credit, where SQ flow control is on (NVMe over Fabrics, "Flow control").
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    on: bool,
    head: u16,
    tail: u16,
}

impl Credit {
    /// What Connect's completion agreed on: SQHD FFFFh is to do without SQ flow control.
    pub(super) fn agreed(sqhd: u16) -> Self {
        let on = sqhd != 0xFFFF;
        let at = if on { sqhd } else { 0 };
        Self { on, head: at, tail: at }
    }

    /// A queue of D entries takes D - 1 commands that the controller has not fetched.
    pub(super) fn available(&self, queue_size: u16) -> bool {
        !self.on || (self.tail + 1) % queue_size != self.head
    }

    pub(super) fn take(&mut self, queue_size: u16) {
        self.tail = (self.tail + 1) % queue_size;
    }

    /// A completion's SQHD: the controller has fetched everything before it.
    pub(super) fn returned(&mut self, sqhd: u16, queue_size: u16) -> Result<(), Fatal> {
        if !self.on {
            return Ok(());
        }
        if sqhd >= queue_size {
            return Err(Fatal::InvalidHeaderField(RESP_SQHD));
        }
        self.head = sqhd;
        Ok(())
    }

    /// A read that ended without a CapsuleResp conveys no SQHD: one more was fetched.
    pub(super) fn returned_silently(&mut self, queue_size: u16) {
        if self.on && self.head != self.tail {
            self.head = (self.head + 1) % queue_size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_holds_one_command_less_than_its_size() {
        let mut credit = Credit::agreed(1);
        for _ in 0..3 {
            assert!(credit.available(4));
            credit.take(4);
        }
        assert!(!credit.available(4));
        credit.returned(2, 4).unwrap();
        assert!(credit.available(4));
        credit.take(4);
        assert!(!credit.available(4));
        credit.returned_silently(4);
        assert!(credit.available(4));
    }

    #[test]
    fn sqhd_beyond_the_queue_is_fatal() {
        let mut credit = Credit::agreed(1);
        assert_eq!(credit.returned(4, 4), Err(Fatal::InvalidHeaderField(16)));
        let mut without = Credit::agreed(0xFFFF);
        for _ in 0..10 {
            assert!(without.available(2));
            without.take(2);
        }
        assert_eq!(without.returned(9, 2), Ok(()));
    }
}
