//! Log pages: the command, and the pages themselves (NVMe Base 2.x, "Get Log Page command";
//! NVMe-oF, "Discovery log page").

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Sqe;
use super::opcode::admin;

/// Log page identifiers.
pub mod lid {
    /// Supported log pages.
    pub const SUPPORTED_PAGES: u8 = 0x00;
    /// Error information.
    pub const ERROR: u8 = 0x01;
    /// SMART and health.
    pub const SMART: u8 = 0x02;
    /// Firmware slots.
    pub const FW_SLOT: u8 = 0x03;
    /// Changed namespaces.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands supported and effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Asymmetric namespace access.
    pub const ANA: u8 = 0x0C;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation notifications.
    pub const RESERVATION: u8 = 0x80;
}

/// A Get Log Page command's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GetLogPage {
    /// Namespace, where the page has one; all ones for the controller.
    pub nsid: u32,
    /// Page, one of [`lid`].
    pub lid: u8,
    /// Log specific parameter, 7 bits.
    pub lsp: u8,
    /// Retain the asynchronous event.
    pub rae: bool,
    /// Log specific identifier.
    pub lsi: u16,
    /// Byte offset in the page.
    pub offset: u64,
    /// Bytes to read, a multiple of 4, not 0 (0's based dwords on the wire).
    pub len: u64,
}

impl GetLogPage {
    /// Reads `len` bytes of the controller's page `lid` from `offset`.
    pub fn new(lid: u8, offset: u64, len: u32) -> Self {
        Self {
            nsid: super::identify::NSID_ALL,
            lid,
            offset,
            len: u64::from(len),
            ..Self::default()
        }
    }

    /// As a command with its data described. `len` is at most 4 GiB less 4.
    pub fn to_sqe(&self) -> Sqe {
        debug_assert!(self.len >= 4 && self.len.is_multiple_of(4));
        let numd = (self.len / 4).wrapping_sub(1) as u32;
        let sqe = Sqe::new(admin::GET_LOG_PAGE, self.nsid);
        let mut sqe = sqe.with_transport(self.len as u32);
        sqe.cdw10.set(
            u32::from(self.lid)
                | u32::from(self.lsp & 0x7F) << 8
                | u32::from(self.rae) << 15
                | (numd & 0xFFFF) << 16,
        );
        sqe.cdw11.set(numd >> 16 | u32::from(self.lsi) << 16);
        sqe.cdw12.set(self.offset as u32);
        sqe.cdw13.set((self.offset >> 32) as u32);
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        let numd = cdw10 >> 16 | (cdw11 & 0xFFFF) << 16;
        Self {
            nsid: sqe.nsid.get(),
            lid: cdw10 as u8,
            lsp: (cdw10 >> 8 & 0x7F) as u8,
            rae: cdw10 & 1 << 15 != 0,
            lsi: (cdw11 >> 16) as u16,
            offset: sqe.cdw12.get() as u64 | (sqe.cdw13.get() as u64) << 32,
            len: (numd as u64 + 1) * 4,
        }
    }
}

/// SMART and health, 512 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warnings.
    pub critical_warning: u8,
    /// Composite temperature, K.
    pub temperature: U16,
    /// Available spare, %.
    pub avail_spare: u8,
    /// Available spare threshold, %.
    pub spare_thresh: u8,
    /// Life used, %.
    pub percent_used: u8,
    /// Endurance group critical warnings.
    pub endurance_warning: u8,
    rsvd7: [u8; 25],
    /// Data read, thousands of 512-byte units, 128 bits.
    pub data_units_read: [u8; 16],
    /// Data written, thousands of 512-byte units, 128 bits.
    pub data_units_written: [u8; 16],
    /// Read commands, 128 bits.
    pub host_reads: [u8; 16],
    /// Write commands, 128 bits.
    pub host_writes: [u8; 16],
    /// Minutes busy, 128 bits.
    pub busy_minutes: [u8; 16],
    /// Power cycles, 128 bits.
    pub power_cycles: [u8; 16],
    /// Hours powered on, 128 bits.
    pub power_on_hours: [u8; 16],
    /// Unsafe shutdowns, 128 bits.
    pub unsafe_shutdowns: [u8; 16],
    /// Media errors, 128 bits.
    pub media_errors: [u8; 16],
    /// Error log entries ever written, 128 bits.
    pub error_log_entries: [u8; 16],
    rsvd192: [u8; 320],
}

/// An entry of the error log, 64 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Number of the error; 0 for an empty entry.
    pub error_count: U64,
    /// Submission queue.
    pub sqid: U16,
    /// Command.
    pub cid: U16,
    /// Status, laid out as in a CQE.
    pub status: U16,
    /// Parameter at fault: byte 7:0, bit 10:8.
    pub parameter: U16,
    /// First block in error.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    rsvd28: [u8; 36],
}

/// Firmware slots, 512 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FwSlotLog {
    /// Active slot 2:0, slot after the next reset 6:4.
    pub afi: u8,
    rsvd1: [u8; 7],
    /// Revisions in slots 1 to 7.
    pub frs: [[u8; 8]; 7],
    rsvd64: [u8; 448],
}

/// Commands supported and effects, 4096 bytes: one dword per opcode, bit 0 supported, bit 1
/// changes blocks.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandEffectsLog {
    /// Admin commands.
    pub admin: [U32; 256],
    /// I/O commands.
    pub io: [U32; 256],
    rsvd2048: [u8; 2048],
}

impl CommandEffectsLog {
    /// CSUPP: the command is supported.
    pub const SUPPORTED: u32 = 1 << 0;
    /// LBCC: it can change blocks.
    pub const CHANGES_BLOCKS: u32 = 1 << 1;
}

/// Discovery log page header, 1024 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogHeader {
    /// Generation: changes with the page's content.
    pub genctr: U64,
    /// Number of entries.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    /// Flags.
    pub flags: u8,
    rsvd19: u8,
    /// Length of the whole page, bytes.
    pub tdlpl: U32,
    rsvd24: [u8; 1000],
}

/// Discovery log page entry, 1024 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogEntry {
    /// Transport type, one of [`trtype`].
    pub trtype: u8,
    /// Address family: 1 IPv4, 2 IPv6.
    pub adrfam: u8,
    /// Subsystem type, one of [`subtype`].
    pub subtype: u8,
    /// Requirements: secure channel 1:0, DISSQFC possible 2.
    pub treq: u8,
    /// Port.
    pub portid: U16,
    /// Controller; FFFFh dynamic, FFFEh static.
    pub cntlid: U16,
    /// Most entries of the admin queue.
    pub asqsz: U16,
    /// Flags.
    pub eflags: U16,
    rsvd12: [u8; 20],
    /// Service (TCP port), ASCII, space padded.
    pub trsvcid: [u8; 32],
    rsvd64: [u8; 192],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; 256],
    /// Address, ASCII, space padded.
    pub traddr: [u8; 256],
    /// Transport specific: byte 0 SECTYPE.
    pub tsas: [u8; 256],
}

/// Transport types.
pub mod trtype {
    /// RDMA.
    pub const RDMA: u8 = 1;
    /// Fibre Channel.
    pub const FC: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 3;
}

/// Address families.
pub mod adrfam {
    /// IPv4.
    pub const IPV4: u8 = 1;
    /// IPv6.
    pub const IPV6: u8 = 2;
}

/// Subsystem types.
pub mod subtype {
    /// Another discovery service.
    pub const REFERRAL: u8 = 1;
    /// NVM subsystem.
    pub const NVM: u8 = 2;
    /// This discovery subsystem.
    pub const CURRENT_DISCOVERY: u8 = 3;
}

/// ANA log header, 16 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaLogHeader {
    /// Change count.
    pub chgcnt: U64,
    /// Number of groups.
    pub ngrps: U16,
    rsvd10: [u8; 6],
}

/// ANA group descriptor, 32 bytes; its NSIDs follow, 4 bytes each.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaGroup {
    /// Group.
    pub anagrpid: U32,
    /// Number of NSIDs that follow.
    pub nnsids: U32,
    /// Change count.
    pub chgcnt: U64,
    /// State 3:0, one of [`ana_state`].
    pub state: u8,
    rsvd17: [u8; 15],
}

/// ANA states.
pub mod ana_state {
    /// Optimized.
    pub const OPTIMIZED: u8 = 1;
    /// Non-optimized.
    pub const NON_OPTIMIZED: u8 = 2;
    /// Inaccessible.
    pub const INACCESSIBLE: u8 = 3;
    /// Persistent loss.
    pub const PERSISTENT_LOSS: u8 = 4;
    /// Change.
    pub const CHANGE: u8 = 0xF;
}

/// LSP of the ANA log: groups only, without their NSIDs.
pub const ANA_LSP_RGO: u8 = 1;

/// The groups of an ANA log with their NSIDs, `nsids` as raw dwords; a group that does not fit
/// ends the list.
pub fn ana_groups(log: &[u8]) -> impl Iterator<Item = (&AnaGroup, &[U32])> {
    let header = AnaLogHeader::ref_from_prefix(log).ok();
    let (left, mut rest) = header.map_or((0, &[][..]), |(header, rest)| (header.ngrps.get(), rest));
    (0..left).map_while(move |_| {
        let (group, behind) = AnaGroup::ref_from_prefix(rest).ok()?;
        let nnsids = usize::try_from(group.nnsids.get()).ok()?;
        let (nsids, behind) = <[U32]>::ref_from_prefix_with_elems(behind, nnsids).ok()?;
        rest = behind;
        Some((group, nsids))
    })
}

macro_rules! pages {
    ($($ty:ident $size:literal: $($field:ident $offset:literal)*;)*) => {
        $(
            const _: () = assert!(size_of::<$ty>() == $size);
            $(const _: () = assert!(std::mem::offset_of!($ty, $field) == $offset);)*

            impl $ty {
                /// All fields 0.
                pub fn zeroed() -> Self {
                    Self::new_zeroed()
                }
            }
        )*
    };
}

pages! {
    SmartLog 512: critical_warning 0 temperature 1 avail_spare 3 spare_thresh 4 percent_used 5
        data_units_read 32 data_units_written 48 host_reads 64 host_writes 80 busy_minutes 96
        power_cycles 112 power_on_hours 128 unsafe_shutdowns 144 media_errors 160
        error_log_entries 176;
    ErrorLogEntry 64: error_count 0 sqid 8 cid 10 status 12 parameter 14 lba 16 nsid 24;
    FwSlotLog 512: afi 0 frs 8;
    CommandEffectsLog 4096: admin 0 io 1024;
    DiscoveryLogHeader 1024: genctr 0 numrec 8 recfmt 16 flags 18 tdlpl 20;
    DiscoveryLogEntry 1024: trtype 0 adrfam 1 subtype 2 treq 3 portid 4 cntlid 6 asqsz 8 eflags 10
        trsvcid 32 subnqn 256 traddr 512 tsas 768;
    AnaLogHeader 16: chgcnt 0 ngrps 8;
    AnaGroup 32: anagrpid 0 nnsids 4 chgcnt 8 state 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::identify::{text, text_field};

    #[test]
    fn get_log_page_is_laid_out_as_in_the_spec() {
        let command = GetLogPage {
            nsid: 0xFFFF_FFFF,
            lid: lid::DISCOVERY,
            lsp: 0x7F,
            rae: true,
            lsi: 0x0201,
            offset: 0x0807_0605_0403_0201,
            len: 0x0004_0008 * 4,
        };
        let sqe = command.to_sqe();
        assert_eq!(sqe.as_bytes()[32..36], [0x20, 0, 0x10, 0]);
        #[rustfmt::skip]
        assert_eq!(sqe.as_bytes()[40..56], [
            0x70, 0xFF, 0x07, 0, 4, 0, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8,
        ]);
        assert_eq!(GetLogPage::from_sqe(&sqe), command);
        let mut longest = sqe;
        longest.cdw10.set(u32::MAX);
        longest.cdw11.set(u32::MAX);
        assert_eq!(GetLogPage::from_sqe(&longest).len, 1 << 34);
        let plain = GetLogPage::new(lid::SMART, 0, 512);
        assert_eq!(GetLogPage::from_sqe(&plain.to_sqe()), plain);
    }

    #[test]
    fn pages_are_laid_out_as_in_the_spec() {
        let mut smart = SmartLog::zeroed();
        smart.temperature = U16::new(0x0130);
        assert_eq!(smart.as_bytes()[1..3], [0x30, 1]);
        let mut entry = DiscoveryLogEntry::zeroed();
        (entry.trtype, entry.adrfam, entry.subtype) = (trtype::TCP, adrfam::IPV6, subtype::NVM);
        entry.cntlid = U16::new(0xFFFF);
        entry.trsvcid = text_field("4420");
        entry.traddr = text_field("fd00::1");
        let bytes = entry.as_bytes();
        assert_eq!(bytes[..8], [3, 2, 2, 0, 0, 0, 0xFF, 0xFF]);
        assert_eq!(&bytes[32..37], b"4420 ");
        assert_eq!(text(&bytes[512..768]), "fd00::1");
        let mut header = DiscoveryLogHeader::zeroed();
        (header.numrec, header.tdlpl) = (U64::new(2), U32::new(3072));
        assert_eq!(header.as_bytes()[8], 2);
        assert_eq!(header.as_bytes()[20..22], [0, 12]);
        let mut effects = CommandEffectsLog::zeroed();
        effects.io[1] = U32::new(CommandEffectsLog::SUPPORTED | CommandEffectsLog::CHANGES_BLOCKS);
        assert_eq!(effects.as_bytes()[1028], 3);
    }

    #[test]
    fn ana_groups_are_walked_within_bounds() {
        let mut log = AnaLogHeader::zeroed().as_bytes().to_vec();
        log[8] = 3;
        for (id, nsids) in [(1u32, &[1u32, 2][..]), (2, &[])] {
            let mut group = AnaGroup::zeroed();
            group.anagrpid = U32::new(id);
            group.nnsids = U32::new(nsids.len() as u32);
            group.state = ana_state::OPTIMIZED;
            log.extend_from_slice(group.as_bytes());
            nsids.iter().for_each(|nsid| log.extend_from_slice(&nsid.to_le_bytes()));
        }
        let groups: Vec<_> =
            ana_groups(&log).map(|(group, nsids)| (group.anagrpid.get(), nsids.len())).collect();
        assert_eq!(groups, [(1, 2), (2, 0)]);
        log[20..24].fill(0xFF);
        assert_eq!(ana_groups(&log).count(), 0);
        assert_eq!(ana_groups(&[]).count(), 0);
    }
}
