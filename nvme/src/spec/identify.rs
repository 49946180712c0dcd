//! Identify: the command and its 4096-byte data structures (NVMe Base 2.x, "Identify command").

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::opcode::admin;
use super::{Sqe, Status};

/// Bytes of every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// Namespace identifiers in a list.
pub const NSID_LIST_LEN: usize = 1024;

/// NSID that means all namespaces.
pub const NSID_ALL: u32 = 0xFFFF_FFFF;

/// What an Identify command asks for (CNS).
pub mod cns {
    /// Namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace identifiers above NSID.
    pub const ACTIVE_NSIDS: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NS_DESCRIPTORS: u8 = 0x03;
    /// Namespace, of one command set.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// Controller, of one command set.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Active namespace identifiers, of one command set.
    pub const CSI_ACTIVE_NSIDS: u8 = 0x07;
    /// Namespace, independent of command sets.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
}

/// An Identify command's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Identify {
    /// Namespace, where CNS wants one.
    pub nsid: u32,
    /// What is asked for, one of [`cns`].
    pub cns: u8,
    /// Controller, where CNS wants one.
    pub cntid: u16,
    /// CNS specific identifier.
    pub cnsspecid: u16,
    /// Command set identifier (0: NVM).
    pub csi: u8,
}

impl Identify {
    /// Asks for `cns` of `nsid`.
    pub fn new(cns: u8, nsid: u32) -> Self {
        Self { nsid, cns, ..Self::default() }
    }

    /// As a command that reads 4096 bytes.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = Sqe::new(admin::IDENTIFY, self.nsid).with_transport(IDENTIFY_BYTES as u32);
        sqe.cdw10.set(u32::from(self.cns) | u32::from(self.cntid) << 16);
        sqe.cdw11.set(u32::from(self.cnsspecid) | u32::from(self.csi) << 24);
        sqe
    }

    /// From such a command.
    pub const fn from_sqe(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Self {
            nsid: sqe.nsid.get(),
            cns: cdw10 as u8,
            cntid: (cdw10 >> 16) as u16,
            cnsspecid: cdw11 as u16,
            csi: (cdw11 >> 24) as u8,
        }
    }
}

/// Identify Controller, 4096 bytes. Fields that nobody here reads or sets are reserved.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor.
    pub vid: U16,
    /// PCI subsystem vendor.
    pub ssvid: U16,
    /// Serial number, space padded.
    pub sn: [u8; 20],
    /// Model number, space padded.
    pub mn: [u8; 40],
    /// Firmware revision, space padded.
    pub fr: [u8; 8],
    /// Recommended arbitration burst.
    pub rab: u8,
    /// IEEE OUI.
    pub ieee: [u8; 3],
    /// Multi-path: bit 0 several ports, 1 several controllers, 3 ANA.
    pub cmic: u8,
    /// Most data of a command: 2^n × 4 KiB, 0 for no limit.
    pub mdts: u8,
    /// Controller identifier.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    /// RTD3 resume latency, µs.
    pub rtd3r: U32,
    /// RTD3 entry latency, µs.
    pub rtd3e: U32,
    /// Asynchronous events supported, laid out as their configuration.
    pub oaes: U32,
    /// Attributes: bit 0 128-bit host identifier, 6 traffic based keep alive.
    pub ctratt: U32,
    rsvd100: [u8; 11],
    /// Controller type: 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    /// FRU identifier.
    pub fguid: [u8; 16],
    /// Command retry delay times 1 to 3, 100 ms.
    pub crdt: [U16; 3],
    rsvd134: u8,
    /// Controller instance uniquifier.
    pub ciu: u8,
    /// Controller instance random number.
    pub cirn: U64,
    rsvd144: [u8; 112],
    /// Optional admin commands.
    pub oacs: U16,
    /// Abort commands at once, 0's based.
    pub acl: u8,
    /// Asynchronous event requests at once, 0's based.
    pub aerl: u8,
    /// Firmware updates.
    pub frmw: u8,
    /// Log page attributes: bit 1 commands-effects log, 2 extended data.
    pub lpa: u8,
    /// Error log entries, 0's based.
    pub elpe: u8,
    /// Power states, 0's based.
    pub npss: u8,
    rsvd264: [u8; 56],
    /// Keep alive granularity, 100 ms; 0 for no keep alive.
    pub kas: U16,
    rsvd322: [u8; 20],
    /// ANA transition time, s.
    pub anatt: u8,
    /// ANA capabilities.
    pub anacap: u8,
    /// Largest ANA group identifier.
    pub anagrpmax: U32,
    /// Number of ANA groups.
    pub nanagrpid: U32,
    rsvd352: [u8; 34],
    /// Command quiesce time, ms.
    pub cqt: U16,
    rsvd388: [u8; 124],
    /// SQ entry sizes, 2^n: largest 7:4, required 3:0 (66h).
    pub sqes: u8,
    /// CQ entry sizes, 2^n: largest 7:4, required 3:0 (44h).
    pub cqes: u8,
    /// Most commands outstanding on an I/O queue.
    pub maxcmd: U16,
    /// Number of namespaces.
    pub nn: U32,
    /// Optional I/O commands, see [`oncs`].
    pub oncs: U16,
    /// Fused operations.
    pub fuses: U16,
    /// Format attributes.
    pub fna: u8,
    /// Volatile write cache: bit 0 present, 2:1 Flush to all namespaces.
    pub vwc: u8,
    /// Atomic write unit, normal, 0's based.
    pub awun: U16,
    /// Atomic write unit, power fail, 0's based.
    pub awupf: U16,
    rsvd530: [u8; 2],
    /// Atomic compare and write unit, 0's based.
    pub acwu: U16,
    rsvd534: [u8; 2],
    /// SGL support, see [`sgls`].
    pub sgls: U32,
    /// Most namespaces allowed.
    pub mnan: U32,
    rsvd544: [u8; 224],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; 256],
    rsvd1024: [u8; 768],
    /// I/O command capsule size, 16 bytes.
    pub ioccsz: U32,
    /// I/O response capsule size, 16 bytes (1).
    pub iorcsz: U32,
    /// In-capsule data offset, 16 bytes (0 on TCP).
    pub icdoff: U16,
    /// Fabrics controller attributes: bit 0 static model.
    pub fcatt: u8,
    /// Most SGL data block descriptors (1 on TCP).
    pub msdbd: u8,
    /// Optional Fabrics commands: bit 0 Disconnect.
    pub ofcs: U16,
    /// Discovery controller type.
    pub dctype: u8,
    /// Cross-controller reset limit.
    pub ccrl: u8,
    rsvd1808: [u8; 240],
    /// Power state descriptors.
    pub psd: [[u8; 32]; 32],
    /// Vendor specific.
    pub vendor: [u8; 1024],
}

/// Bits of ONCS.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Save and select in Features.
    pub const SAVE_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
}

/// Bits of CTRATT.
pub mod ctratt {
    /// Host identifiers of 128 bits.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Traffic based keep alive.
    pub const TBKAS: u32 = 1 << 6;
}

/// Values of CNTRLTYPE.
pub mod cntrltype {
    /// I/O controller.
    pub const IO: u8 = 1;
    /// Discovery controller.
    pub const DISCOVERY: u8 = 2;
}

/// Fields of VWC.
pub mod vwc {
    /// There is a volatile write cache.
    pub const PRESENT: u8 = 1 << 0;
    /// Flush to all namespaces (NSID FFFFFFFFh) is not supported.
    pub const NO_FLUSH_ALL: u8 = 0b10 << 1;
    /// Flush to all namespaces is supported.
    pub const FLUSH_ALL: u8 = 0b11 << 1;
}

/// Bits of SGLS.
pub mod sgls {
    /// SGLs are supported, without alignment.
    pub const SUPPORTED: u32 = 1 << 0;
    /// An address that is an offset is supported (in-capsule data).
    pub const OFFSET: u32 = 1 << 20;
}

impl IdentifyController {
    /// All fields 0.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// Most in-capsule data on an I/O queue, bytes.
    pub fn in_capsule_max(&self) -> u32 {
        self.ioccsz.get().saturating_mul(16).saturating_sub(64)
    }

    /// Most data of a command, bytes, where memory pages have 2^(12 + `mpsmin`) bytes; `None` for
    /// no limit.
    pub fn mdts_bytes(&self, mpsmin: u8) -> Option<u64> {
        let shift = u32::from(self.mdts) + 12 + u32::from(mpsmin);
        (self.mdts != 0).then(|| 1u64.checked_shl(shift).unwrap_or(u64::MAX))
    }
}

/// A text field (SN, MN, FR, TRADDR) as text: cut at a NUL, without the spaces around it, and with
/// `?` for what is not printable ASCII.
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let printable = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
    field[..end].iter().map(printable).collect::<String>().trim().to_owned()
}

/// Text in a field, space padded, cut where it is too long.
pub fn text_field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (byte, text) in field.iter_mut().zip(text.bytes()) {
        *byte = text;
    }
    field
}

/// LBA format: metadata size, block size, relative performance.
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
pub struct LbaFormat {
    /// Metadata bytes per block.
    pub ms: U16,
    /// Block size, 2^n bytes.
    pub lbads: u8,
    /// Relative performance, bits 1:0.
    pub rp: u8,
}

/// Identify Namespace (NVM command set), 4096 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size, blocks.
    pub nsze: U64,
    /// Capacity, blocks.
    pub ncap: U64,
    /// Blocks in use.
    pub nuse: U64,
    /// Features: bit 0 thin provisioning, 4 the NPxx hints are valid.
    pub nsfeat: u8,
    /// Number of LBA formats, 0's based.
    pub nlbaf: u8,
    /// LBA format in use: index 3:0, metadata inline 4, high index bits 6:5.
    pub flbas: u8,
    /// Metadata capabilities.
    pub mc: u8,
    /// Protection capabilities.
    pub dpc: u8,
    /// Protection in use, type in 2:0.
    pub dps: u8,
    /// Bit 0: several controllers can attach it.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// Deallocate features: bits 2:0 what reads return (1: zeroes), 3 DEAC in Write Zeroes.
    pub dlfeat: u8,
    /// Atomic write unit, normal, 0's based.
    pub nawun: U16,
    /// Atomic write unit, power fail, 0's based.
    pub nawupf: U16,
    /// Atomic compare and write unit, 0's based.
    pub nacwu: U16,
    /// Atomic boundary size, normal, 0's based.
    pub nabsn: U16,
    /// Atomic boundary offset.
    pub nabo: U16,
    /// Atomic boundary size, power fail, 0's based.
    pub nabspf: U16,
    /// Optimal I/O boundary, blocks.
    pub noiob: U16,
    /// NVM capacity, bytes.
    pub nvmcap: [u8; 16],
    /// Preferred write granularity, 0's based.
    pub npwg: U16,
    /// Preferred write alignment, 0's based.
    pub npwa: U16,
    /// Preferred deallocate granularity, 0's based.
    pub npdg: U16,
    /// Preferred deallocate alignment, 0's based.
    pub npda: U16,
    /// Optimal write size, 0's based.
    pub nows: U16,
    /// Most blocks of a source range in Copy.
    pub mssrl: U16,
    /// Most blocks of a Copy.
    pub mcl: U32,
    /// Most source ranges of a Copy, 0's based.
    pub msrc: u8,
    rsvd81: [u8; 11],
    /// ANA group.
    pub anagrpid: U32,
    rsvd96: [u8; 3],
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM set.
    pub nvmsetid: U16,
    /// Endurance group.
    pub endgid: U16,
    /// NGUID.
    pub nguid: [u8; 16],
    /// EUI64.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vendor: [u8; 3712],
}

impl IdentifyNamespace {
    /// All fields 0.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// The LBA format in use; `None` when FLBAS points beyond NLBAF.
    pub fn format(&self) -> Option<LbaFormat> {
        let index = usize::from(self.flbas & 0xF | (self.flbas >> 5 & 0b11) << 4);
        (index <= usize::from(self.nlbaf)).then(|| self.lbaf.get(index).copied()).flatten()
    }

    /// Bytes per block; `None` for a format that does not exist or has blocks outside 512 B to
    /// 64 KiB.
    pub fn block_size(&self) -> Option<u32> {
        let lbads = self.format()?.lbads;
        (9..=16).contains(&lbads).then(|| 1 << lbads)
    }
}

/// Identify Namespace independent of command sets (CNS 08h), 4096 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndependentNamespace {
    /// Features.
    pub nsfeat: u8,
    /// Bit 0: several controllers can attach it.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// ANA group.
    pub anagrpid: U32,
    /// Attributes: bit 0 write protected.
    pub nsattr: u8,
    rsvd9: u8,
    /// NVM set.
    pub nvmsetid: U16,
    /// Endurance group.
    pub endgid: U16,
    /// Status: bit 0 ready.
    pub nstat: u8,
    rsvd15: [u8; 4081],
}

macro_rules! at {
    ($ty:ty: $($field:ident $offset:literal)*) => {
        $(const _: () = assert!(std::mem::offset_of!($ty, $field) == $offset);)*
    };
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(size_of::<IndependentNamespace>() == IDENTIFY_BYTES);
at!(IndependentNamespace: nmic 1 anagrpid 4 nsattr 8 nvmsetid 10 endgid 12 nstat 14);
at!(IdentifyController: vid 0 sn 4 mn 24 fr 64 cmic 76 mdts 77 cntlid 78 ver 80 rtd3r 84 oaes 92
    ctratt 96 cntrltype 111 fguid 112 crdt 128 ciu 135 cirn 136 oacs 256 acl 258 aerl 259
    frmw 260 lpa 261 elpe 262 kas 320 anatt 342 anacap 343 anagrpmax 344 nanagrpid 348 cqt 386
    sqes 512 cqes 513 maxcmd 514 nn 516 oncs 520 fuses 522 fna 524 vwc 525 awun 526 awupf 528
    acwu 532 sgls 536 mnan 540 subnqn 768 ioccsz 1792 iorcsz 1796 icdoff 1800 fcatt 1802
    msdbd 1803 ofcs 1804 dctype 1806 ccrl 1807 psd 2048 vendor 3072);
at!(IdentifyNamespace: nsze 0 ncap 8 nuse 16 nsfeat 24 nlbaf 25 flbas 26 mc 27 dpc 28 dps 29
    nmic 30 rescap 31 fpi 32 dlfeat 33 nawun 34 nawupf 36 nabsn 40 noiob 46 npwg 64 npwa 66
    npdg 68 npda 70 nows 72 mssrl 74 mcl 76 msrc 80 anagrpid 92 nsattr 99 nvmsetid 100
    endgid 102 nguid 104 eui64 120 lbaf 128);

/// A list of namespace identifiers, ascending, ended by 0: CNS 02h and the changed-namespaces log.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NsidList([U32; NSID_LIST_LEN]);

const _: () = assert!(size_of::<NsidList>() == IDENTIFY_BYTES);

impl NsidList {
    /// The first 1024 of `nsids`, which ascend.
    pub fn new(nsids: impl IntoIterator<Item = u32>) -> Self {
        let mut list = Self([U32::new(0); NSID_LIST_LEN]);
        for (entry, nsid) in list.0.iter_mut().zip(nsids) {
            entry.set(nsid);
        }
        list
    }

    /// The identifiers.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|nsid| nsid.get()).take_while(|nsid| *nsid != 0)
    }
}

/// A namespace identification descriptor (CNS 03h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NsDescriptor {
    /// EUI64.
    Eui64([u8; 8]),
    /// NGUID.
    Nguid([u8; 16]),
    /// UUID.
    Uuid([u8; 16]),
    /// Command set identifier.
    Csi(u8),
}

impl NsDescriptor {
    /// Writes descriptors, and the end of their list, into Identify data.
    ///
    /// # Errors
    /// Internal Error when they do not fit.
    pub fn encode(descriptors: &[Self], data: &mut [u8; IDENTIFY_BYTES]) -> Result<(), Status> {
        data.fill(0);
        let mut at = 0;
        for descriptor in descriptors {
            let (nidt, nid): (u8, &[u8]) = match descriptor {
                Self::Eui64(id) => (1, id),
                Self::Nguid(id) => (2, id),
                Self::Uuid(id) => (3, id),
                Self::Csi(csi) => (4, std::slice::from_ref(csi)),
            };
            let end = at + 4 + nid.len();
            let room = data.get_mut(at..end).ok_or(Status::INTERNAL_ERROR)?;
            room[0] = nidt;
            room[1] = nid.len() as u8;
            room[4..].copy_from_slice(nid);
            at = end;
        }
        Ok(())
    }

    /// The descriptors in Identify data; unknown types are passed over, and a descriptor that
    /// does not fit ends the list.
    pub fn iter(data: &[u8]) -> impl Iterator<Item = Self> + '_ {
        let mut rest = data;
        std::iter::from_fn(move || {
            loop {
                let (&[nidt, nidl, _, _], body) = rest.split_first_chunk::<4>()?;
                let nid = body.get(..usize::from(nidl)).filter(|nid| !nid.is_empty())?;
                rest = &body[nid.len()..];
                let known = match nidt {
                    1 => nid.try_into().ok().map(Self::Eui64),
                    2 => nid.try_into().ok().map(Self::Nguid),
                    3 => nid.try_into().ok().map(Self::Uuid),
                    4 => Some(Self::Csi(nid[0])),
                    _ => None,
                };
                if known.is_some() {
                    return known;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identify_is_laid_out_as_in_the_spec() {
        let identify = Identify { nsid: 1, cns: 0x05, cntid: 0x0201, cnsspecid: 0x0403, csi: 0x06 };
        let sqe = identify.to_sqe();
        assert_eq!(sqe.as_bytes()[32..36], [0, 0x10, 0, 0]);
        assert_eq!(sqe.as_bytes()[40..48], [5, 0, 1, 2, 3, 4, 0, 6]);
        assert_eq!(Identify::from_sqe(&sqe), identify);
    }

    #[test]
    fn controller_fields_round_trip() {
        let mut id = IdentifyController::zeroed();
        id.sn = text_field("ML1");
        id.mn = text_field("moorline");
        id.mdts = 5;
        id.ioccsz = U32::new((64 + 4096) / 16);
        id.sgls = U32::new(sgls::SUPPORTED | sgls::OFFSET);
        id.crdt[2] = U16::new(0x0201);
        let bytes = id.as_bytes();
        assert_eq!(&bytes[4..8], b"ML1 ");
        assert_eq!(bytes[132..134], [1, 2]);
        assert_eq!(bytes[536..540], [1, 0, 0x10, 0]);
        assert_eq!(bytes[1792..1796], [4, 1, 0, 0]);
        let id = IdentifyController::read_from_bytes(bytes).unwrap();
        assert_eq!((text(&id.sn), text(&id.mn)), ("ML1".into(), "moorline".into()));
        assert_eq!(text(b" a\xFF \0b"), "a?");
        assert_eq!((id.mdts_bytes(0), id.in_capsule_max()), (Some(128 << 10), 4096));
        let mut odd = id.clone();
        (odd.mdts, odd.ioccsz) = (0, U32::new(0));
        assert_eq!((odd.mdts_bytes(0), odd.in_capsule_max()), (None, 0));
        (odd.mdts, odd.ioccsz) = (255, U32::new(u32::MAX));
        assert_eq!(odd.mdts_bytes(15), Some(u64::MAX));
        assert_eq!(odd.in_capsule_max(), u32::MAX - 64);
    }

    #[test]
    fn namespace_formats_are_found() {
        let mut ns = IdentifyNamespace::zeroed();
        assert_eq!(ns.block_size(), None);
        ns.lbaf[0].lbads = 9;
        ns.lbaf[17] = LbaFormat { ms: U16::new(8), lbads: 12, rp: 0 };
        assert_eq!(ns.block_size(), Some(512));
        ns.flbas = 0x21;
        assert_eq!(ns.format(), None);
        ns.nlbaf = 17;
        assert_eq!(ns.block_size(), Some(4096));
        assert_eq!(ns.format().unwrap().ms.get(), 8);
        assert_eq!(ns.as_bytes()[128 + 4 * 17..][..4], [8, 0, 12, 0]);
        ns.lbaf[17].lbads = 255;
        assert_eq!(ns.block_size(), None);
    }

    #[test]
    fn lists_and_descriptors_round_trip() {
        let list = NsidList::new([1, 2, 7]);
        assert_eq!(list.as_bytes()[..16], [1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 2, 7]);
        assert_eq!(NsidList::new(1..=5000).iter().count(), NSID_LIST_LEN);

        let all = [
            NsDescriptor::Eui64([1; 8]),
            NsDescriptor::Nguid([2; 16]),
            NsDescriptor::Uuid([3; 16]),
            NsDescriptor::Csi(2),
        ];
        let mut data = [0xFF; IDENTIFY_BYTES];
        NsDescriptor::encode(&all, &mut data).unwrap();
        assert_eq!(data[..5], [1, 8, 0, 0, 1]);
        assert_eq!(data[12..17], [2, 16, 0, 0, 2]);
        assert_eq!(data[52..58], [4, 1, 0, 0, 2, 0]);
        assert!(NsDescriptor::iter(&data).eq(all));
        assert_eq!(NsDescriptor::iter(&[9, 2, 0, 0, 7, 7, 4, 1, 0, 0, 5]).count(), 1);
        assert_eq!(NsDescriptor::iter(&[1, 4, 0, 0, 7, 7, 7, 7]).count(), 0);
        assert_eq!(NsDescriptor::iter(&[3, 200, 0, 0, 1, 2]).count(), 0);
        let too_many = [NsDescriptor::Uuid([0; 16]); 300];
        assert_eq!(NsDescriptor::encode(&too_many, &mut data), Err(Status::INTERNAL_ERROR));
    }
}
