//! I/O commands of the NVM command set (NVM Command Set specification 1.x).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Sqe;
use super::opcode::io;

/// Most blocks of one Read, Write, Compare or Write Zeroes.
pub const BLOCKS_MAX: u32 = 0x1_0000;

/// Most ranges of one Dataset Management.
pub const DSM_RANGES_MAX: usize = 256;

/// What Read, Write, Compare, Write Zeroes and Verify have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BlockCommand {
    /// Namespace.
    pub nsid: u32,
    /// First block.
    pub slba: u64,
    /// Number of blocks, 1 to [`BLOCKS_MAX`] (0's based on the wire).
    pub blocks: u32,
    /// Force unit access.
    pub fua: bool,
    /// Limited retry.
    pub limited_retry: bool,
    /// Protection information field: PRACT and PRCHK, 4 bits.
    pub prinfo: u8,
    /// Deallocate (Write Zeroes).
    pub deac: bool,
}

impl BlockCommand {
    /// Blocks `slba` to `slba + blocks` of a namespace.
    pub fn new(nsid: u32, slba: u64, blocks: u32) -> Self {
        Self { nsid, slba, blocks, ..Self::default() }
    }

    /// As a command with that opcode; the caller describes its data.
    pub fn to_sqe(&self, opcode: u8) -> Sqe {
        debug_assert!((1..=BLOCKS_MAX).contains(&self.blocks));
        let mut sqe = Sqe::new(opcode, self.nsid);
        sqe.set_cdw10_11(self.slba);
        let nlb = self.blocks.wrapping_sub(1) & 0xFFFF;
        sqe.cdw12.set(
            nlb | u32::from(self.deac) << 25
                | u32::from(self.prinfo & 0xF) << 26
                | u32::from(self.fua) << 30
                | u32::from(self.limited_retry) << 31,
        );
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        let cdw12 = sqe.cdw12.get();
        Self {
            nsid: sqe.nsid.get(),
            slba: sqe.cdw10_11(),
            blocks: (cdw12 & 0xFFFF) + 1,
            fua: cdw12 & 1 << 30 != 0,
            limited_retry: cdw12 & 1 << 31 != 0,
            prinfo: (cdw12 >> 26 & 0xF) as u8,
            deac: cdw12 & 1 << 25 != 0,
        }
    }

    /// Whether all blocks are within a namespace of `size` blocks.
    pub const fn is_within(&self, size: u64) -> bool {
        match self.slba.checked_add(self.blocks as u64) {
            Some(end) => end <= size,
            None => false,
        }
    }
}

/// Flush of one namespace, or of all with [`super::identify::NSID_ALL`].
pub fn flush(nsid: u32) -> Sqe {
    Sqe::new(io::FLUSH, nsid)
}

/// Dataset Management; its data are [`DsmRange`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetManagement {
    /// Namespace.
    pub nsid: u32,
    /// Number of ranges, 1 to [`DSM_RANGES_MAX`] (0's based on the wire).
    pub ranges: u16,
    /// AD: the ranges are no longer used.
    pub deallocate: bool,
}

impl DatasetManagement {
    /// Bytes of its data.
    pub const fn data_len(&self) -> u32 {
        self.ranges as u32 * size_of::<DsmRange>() as u32
    }

    /// As a command; the caller describes its data.
    pub fn to_sqe(&self) -> Sqe {
        debug_assert!((1..=DSM_RANGES_MAX).contains(&usize::from(self.ranges)));
        let mut sqe = Sqe::new(io::DATASET_MANAGEMENT, self.nsid);
        sqe.cdw10.set(u32::from(self.ranges.wrapping_sub(1)) & 0xFF);
        sqe.cdw11.set(u32::from(self.deallocate) << 2);
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        Self {
            nsid: sqe.nsid.get(),
            ranges: (sqe.cdw10.get() & 0xFF) as u16 + 1,
            deallocate: sqe.cdw11.get() & 1 << 2 != 0,
        }
    }
}

/// A range of Dataset Management, 16 bytes.
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
pub struct DsmRange {
    /// Context attributes.
    pub cattr: U32,
    /// Number of blocks (**not** 0's based).
    pub nlb: U32,
    /// First block.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

impl DsmRange {
    /// A range without attributes.
    pub const fn new(slba: u64, blocks: u32) -> Self {
        Self { cattr: U32::new(0), nlb: U32::new(blocks), slba: U64::new(slba) }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn block_commands_are_laid_out_as_in_the_spec() {
        let command = BlockCommand::new(1, 0x0807_0605_0403_0201, BLOCKS_MAX);
        let bytes = command.to_sqe(io::WRITE);
        assert_eq!(bytes.as_bytes()[40..52], [1, 2, 3, 4, 5, 6, 7, 8, 0xFF, 0xFF, 0, 0]);
        for (command, cdw12) in [
            (BlockCommand { fua: true, ..command }, 0x4000_FFFF),
            (BlockCommand { limited_retry: true, ..command }, 0x8000_FFFF),
            (BlockCommand { prinfo: 0xF, ..command }, 0x3C00_FFFF),
            (BlockCommand { deac: true, ..command }, 0x0200_FFFF),
            (BlockCommand { blocks: 1, ..command }, 0),
        ] {
            let sqe = command.to_sqe(io::WRITE);
            assert_eq!(sqe.cdw12.get(), cdw12);
            assert_eq!(BlockCommand::from_sqe(&sqe), command);
        }
        assert_eq!(flush(7).nsid.get(), 7);
    }

    #[test]
    fn ranges_end_within_the_namespace() {
        assert!(BlockCommand::new(1, 8, 8).is_within(16));
        assert!(!BlockCommand::new(1, 9, 8).is_within(16));
        assert!(!BlockCommand::new(1, u64::MAX, 8).is_within(u64::MAX));
    }

    #[test]
    fn dataset_management_is_laid_out_as_in_the_spec() {
        let dsm = DatasetManagement { nsid: 1, ranges: 256, deallocate: true };
        assert_eq!(dsm.to_sqe().as_bytes()[40..48], [0xFF, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(DatasetManagement::from_sqe(&dsm.to_sqe()), dsm);
        assert_eq!(dsm.data_len(), 4096);
        let range = DsmRange::new(0x0807_0605_0403_0201, 0x0C0B_0A09);
        assert_eq!(range.as_bytes(), [0, 0, 0, 0, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(DsmRange::read_from_bytes(range.as_bytes()), Ok(range));
    }
}
