//! What a host knows of a controller once it is live.

use std::time::Duration;

/// A controller as it introduced itself, and what was agreed with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Controller ID of the association.
    pub cntlid: u16,
    /// Serial number, trimmed.
    pub serial: String,
    /// Model number, trimmed.
    pub model: String,
    /// Firmware revision, trimmed.
    pub firmware: String,
    /// The subsystem's NQN, as the controller says it.
    pub subnqn: String,
    /// VS: major 31:16, minor 15:8, tertiary 7:0.
    pub version: u32,
    /// CAP, as read.
    pub cap: u64,
    /// Identify Controller, 4096 bytes as received (empty before it is).
    pub identify: Vec<u8>,
    /// Largest transfer of one command, bytes (MDTS, or our own limit where it has none).
    pub transfer_max: u32,
    /// Bytes of in-capsule data that I/O queues take.
    pub in_capsule_max: u32,
    /// Keep alive timeout in use, as read back; zero is off.
    pub kato: Duration,
    /// Traffic based keep alive (CTRATT.TBKAS).
    pub tbkas: bool,
    /// Command quiesce time (CQT): how long commands of a lost path may go on after KATO; zero
    /// where it is not reported.
    pub cqt: Duration,
    /// I/O queues that were granted and connected.
    pub io_queues: u16,
    /// Commands that one I/O qpair takes at once (queue size less one, and not above MAXCMD).
    pub commands_max: u16,
    /// There is a volatile write cache (VWC bit 0): Flush matters.
    pub volatile_write_cache: bool,
    /// Optional commands, ONCS: bit 2 Dataset Management, bit 3 Write Zeroes.
    pub oncs: u16,
    /// Active namespaces of a block size that we can use, by ascending NSID.
    pub namespaces: Vec<NamespaceInfo>,
}

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Namespace ID.
    pub nsid: u32,
    /// Size in blocks (NSZE).
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// NGUID, zero where there is none.
    pub nguid: [u8; 16],
    /// UUID, zero where there is none.
    pub uuid: [u8; 16],
    /// EUI64, zero where there is none.
    pub eui64: [u8; 8],
}

impl Info {
    /// The namespace of that ID.
    pub fn namespace(&self, nsid: u32) -> Option<&NamespaceInfo> {
        let at = self.namespaces.binary_search_by_key(&nsid, |ns| ns.nsid).ok()?;
        Some(&self.namespaces[at])
    }
}
