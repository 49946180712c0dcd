//! What one I/O puts on the wire, as sizes: what the floors send in place of it.
//!
//! An exchange is a list of legs, the host's and the target's by turns, the host's first. A leg is
//! the bytes of its PDUs together, for TCP cuts a stream without regard to them. Acknowledgements
//! are left out: they ride on data where we can help it.

/// ICReq/ICResp aside, a command capsule: common header and SQE (NVMe-TCP 1.1 §3.6.2.5).
const CAPSULE_CMD: usize = 72;
/// A response capsule: common header and CQE.
const CAPSULE_RESP: usize = 24;
/// Header of C2HData and H2CData, and a whole R2T.
const DATA_HEADER: usize = 24;
/// Our target takes this much data with a write's capsule (IOCCSZ).
const IN_CAPSULE_MAX: usize = 8192;
/// Our target takes this much data in one H2CData (MAXH2CDATA), and asks for it in one R2T.
const H2C_DATA_MAX: usize = 128 << 10;
/// IPv4 and TCP headers without options.
pub const L3_L4_HEADERS: usize = 40;
/// Ethernet header.
pub const L2_HEADER: usize = 14;

/// An I/O as sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    legs: Vec<usize>,
}

impl Exchange {
    /// That of a read or write of `bs` bytes, without digests.
    pub fn of(read: bool, bs: usize) -> Self {
        let legs = if read {
            vec![CAPSULE_CMD, DATA_HEADER + bs] // SUCCESS in the last C2HData: no response capsule
        } else if bs <= IN_CAPSULE_MAX {
            vec![CAPSULE_CMD + bs, CAPSULE_RESP]
        } else {
            let data = bs + DATA_HEADER * bs.div_ceil(H2C_DATA_MAX);
            vec![CAPSULE_CMD, DATA_HEADER, data, CAPSULE_RESP]
        };
        Self { legs }
    }

    /// Of the legs given, the host's first; each at least a byte, and an even number of them.
    pub fn from_legs(legs: Vec<usize>) -> Option<Self> {
        let whole = !legs.is_empty() && legs.len().is_multiple_of(2) && !legs.contains(&0);
        whole.then_some(Self { legs })
    }

    /// Bytes of each leg.
    pub fn legs(&self) -> &[usize] {
        &self.legs
    }

    /// The largest leg, bytes.
    pub fn leg_max(&self) -> usize {
        self.legs.iter().copied().max().unwrap_or(0)
    }

    /// Frames of all legs.
    pub fn frames(&self, mtu: usize) -> usize {
        self.legs.iter().map(|&leg| Cut::new(leg, mtu).count()).sum()
    }
}

/// The frames of a leg, as their lengths, Ethernet header included: full segments, then the rest.
#[derive(Clone, Debug)]
pub struct Cut {
    left: usize,
    mss: usize,
}

impl Cut {
    /// Of `leg` bytes at this MTU.
    pub fn new(leg: usize, mtu: usize) -> Self {
        Self { left: leg, mss: mtu.saturating_sub(L3_L4_HEADERS).max(1) }
    }
}

impl Iterator for Cut {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        let segment = self.left.min(self.mss);
        self.left -= segment;
        Some(L2_HEADER + L3_L4_HEADERS + segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(leg: usize, mtu: usize) -> Vec<usize> {
        Cut::new(leg, mtu).collect()
    }

    #[test]
    fn a_4k_read_is_one_frame_up_and_three_down_at_1500() {
        let read = Exchange::of(true, 4096);
        assert_eq!(read.legs(), [72, 4120]);
        assert_eq!(cut(72, 1500), [126]);
        assert_eq!(cut(4120, 1500), [1514, 1514, 1254]);
        assert_eq!(cut(4120, 9000), [4174]);
        assert_eq!((read.frames(1500), read.frames(9000)), (4, 2));
    }

    #[test]
    fn a_small_write_carries_its_data_and_a_large_one_waits_for_r2t() {
        assert_eq!(Exchange::of(false, 4096).legs(), [4168, 24]);
        assert_eq!(Exchange::of(false, 8192).legs(), [8264, 24]);
        assert_eq!(Exchange::of(false, 128 << 10).legs(), [72, 24, 131_096, 24]);
        assert_eq!(Exchange::of(false, 256 << 10).legs(), [72, 24, 262_192, 24]);
    }

    #[test]
    fn an_exact_multiple_of_the_mss_has_no_empty_frame() {
        assert_eq!(cut(2920, 1500), [1514, 1514]);
        assert_eq!(cut(2921, 1500), [1514, 1514, 55]);
    }

    #[test]
    fn legs_come_in_pairs_and_are_not_empty() {
        assert!(Exchange::from_legs(vec![72]).is_none());
        assert!(Exchange::from_legs(vec![72, 0]).is_none());
        assert!(Exchange::from_legs(vec![]).is_none());
        assert!(Exchange::from_legs(vec![72, 24]).is_some());
    }
}
