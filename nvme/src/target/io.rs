//! I/O commands: what one asks for, checked against its namespace before anything moves
//! (NVM Command Set 1.x).

use crate::spec::io::DSM_RANGES_MAX;
use crate::spec::{BlockCommand, DatasetManagement, DsmRange, Sgl, Sqe, Status, opcode};

/// Most data of a Dataset Management.
const DSM_BYTES_MAX: u32 = (DSM_RANGES_MAX * size_of::<DsmRange>()) as u32;

/// What an I/O command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing of a device (admin and Fabrics commands).
    None,
    /// Blocks to the host.
    Read { lba: u64, blocks: u32 },
    /// Blocks from the host.
    Write { lba: u64, blocks: u32, fua: bool },
    /// Blocks to be compared with the host's.
    Compare { lba: u64, blocks: u32 },
    /// Blocks to be zeroed; with `fua`, made durable after.
    WriteZeroes { lba: u64, blocks: u32, fua: bool },
    /// Ranges to be deallocated, in the command's data, this many.
    Deallocate { ranges: u16 },
    /// Writes to be made durable.
    Flush,
}

/// The shape of a namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub block_size: u32,
    pub blocks: u64,
    /// Largest transfer, bytes.
    pub transfer_max: u32,
}

impl Work {
    /// Parses a command; returns what it asks for, and how many bytes of data go with it.
    ///
    /// # Errors
    /// The status that the command fails with; such would fail again (DNR).
    pub fn parse(sqe: &Sqe, sgl: Sgl, geometry: &Geometry) -> Result<(Self, u32), Status> {
        let command = BlockCommand::from_sqe(sqe);
        let BlockCommand { slba: lba, blocks, fua, .. } = command;
        let with_data = || geometry.check_data(&command, sgl);
        if sqe.fuse() != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        match sqe.opcode {
            opcode::io::READ => Ok((Self::Read { lba, blocks }, with_data()?)),
            opcode::io::WRITE => Ok((Self::Write { lba, blocks, fua }, with_data()?)),
            opcode::io::COMPARE => Ok((Self::Compare { lba, blocks }, with_data()?)),
            opcode::io::WRITE_ZEROES => {
                geometry.check_range(&command)?;
                Ok((Self::WriteZeroes { lba, blocks, fua }, 0))
            }
            opcode::io::FLUSH => Ok((Self::Flush, 0)),
            opcode::io::DATASET_MANAGEMENT => {
                let command = DatasetManagement::from_sqe(sqe);
                if sgl.len() < command.data_len() {
                    return Err(Status::SGL_LENGTH_INVALID.with_dnr());
                }
                if sgl.len() > DSM_BYTES_MAX {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                // Other attributes are hints that we do not take; their data are still to come.
                let ranges = if command.deallocate { command.ranges } else { 0 };
                Ok((Self::Deallocate { ranges }, sgl.len()))
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }
}

impl Geometry {
    /// All blocks exist.
    fn check_range(&self, command: &BlockCommand) -> Result<(), Status> {
        let within = command.is_within(self.blocks);
        if within { Ok(()) } else { Err(Status::LBA_OUT_OF_RANGE.with_dnr()) }
    }

    /// All blocks exist, the transfer is within MDTS, and the SGL is as long as the blocks.
    fn check_data(&self, command: &BlockCommand, sgl: Sgl) -> Result<u32, Status> {
        let len = u64::from(command.blocks) * u64::from(self.block_size);
        if len > u64::from(self.transfer_max) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        self.check_range(command)?;
        if u64::from(sgl.len()) != len {
            return Err(Status::SGL_LENGTH_INVALID.with_dnr());
        }
        Ok(sgl.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry { block_size: 512, blocks: 4096, transfer_max: 128 << 10 };

    fn rw(code: u8, lba: u64, blocks: u32, len: u32) -> Result<(Work, u32), Status> {
        let sqe = BlockCommand::new(1, lba, blocks).to_sqe(code);
        Work::parse(&sqe, Sgl::Transport(len), &DISK)
    }

    #[test]
    fn a_read_is_parsed() {
        let work = Work::Read { lba: 5, blocks: 8 };
        assert_eq!(rw(opcode::io::READ, 5, 8, 4096), Ok((work, 4096)));
        let last = Work::Read { lba: 4095, blocks: 1 };
        assert_eq!(rw(opcode::io::READ, 4095, 1, 512), Ok((last, 512)));
    }

    #[test]
    fn fua_is_seen() {
        let sqe = BlockCommand { fua: true, ..BlockCommand::new(1, 0, 1) };
        let sqe = sqe.to_sqe(opcode::io::WRITE);
        let work = Work::Write { lba: 0, blocks: 1, fua: true };
        assert_eq!(Work::parse(&sqe, Sgl::InCapsule(512), &DISK), Ok((work, 512)));
    }

    #[test]
    fn blocks_beyond_the_end_are_out_of_range() {
        let beyond = Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        for code in [opcode::io::READ, opcode::io::WRITE, opcode::io::COMPARE] {
            assert_eq!(rw(code, 4096, 1, 512), beyond);
            assert_eq!(rw(code, 4095, 2, 1024), beyond);
            assert_eq!(rw(code, u64::MAX, 1, 512), beyond);
        }
        assert_eq!(rw(opcode::io::WRITE_ZEROES, 4095, 2, 0), beyond);
    }

    #[test]
    fn the_sgl_is_as_long_as_the_blocks() {
        let wrong = Err(Status::SGL_LENGTH_INVALID.with_dnr());
        assert_eq!(rw(opcode::io::READ, 0, 8, 4095), wrong);
        assert_eq!(rw(opcode::io::WRITE, 0, 8, 4608), wrong);
        assert_eq!(rw(opcode::io::DATASET_MANAGEMENT, 1, 1, 16), wrong);
    }

    #[test]
    fn a_transfer_beyond_mdts_is_refused() {
        let refused = Err(Status::INVALID_FIELD.with_dnr());
        assert_eq!(rw(opcode::io::READ, 0, 257, 257 * 512), refused);
        assert!(rw(opcode::io::READ, 0, 256, 256 * 512).is_ok());
    }

    #[test]
    fn unknown_opcodes_and_fused_commands_are_refused() {
        assert_eq!(rw(0x99, 0, 1, 0), Err(Status::INVALID_OPCODE.with_dnr()));
        let mut sqe = Sqe::new(opcode::io::FLUSH, 1);
        sqe.flags |= 1;
        let refused = Err(Status::INVALID_FIELD.with_dnr());
        assert_eq!(Work::parse(&sqe, Sgl::Transport(0), &DISK), refused);
    }
}
