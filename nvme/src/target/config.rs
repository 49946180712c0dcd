//! What a target allows, and what that costs. Every wait has its own timeout here.

use std::time::Duration;

use moorline_stack::transport::ListenOptions;

/// Largest MQES: a slot's index has 10 bits in a TTAG.
pub(super) const MQES_MAX: u16 = 1023;

/// A target's limits and timeouts.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Largest in-capsule data of an I/O command, bytes (IOCCSZ); a multiple of 16, at most
    /// [`TargetConfig::IN_CAPSULE_MAX`]. On the admin queue it is 8192, by the transport's spec.
    pub in_capsule_bytes: u32,
    /// Largest H2CData, bytes (MAXH2CDATA); a multiple of 4, at least 4096.
    pub h2c_data_bytes_max: u32,
    /// Largest transfer, as 2ⁿ × 4 KiB (MDTS); 8 is 1 MiB, the largest there is.
    pub mdts: u8,
    /// Largest queue, 0's based (CAP.MQES), 31 to 1023.
    pub mqes: u16,
    /// I/O queues of one controller.
    pub io_queues_max: u16,
    /// Digests that are granted to a host that asks for them.
    pub hdgst: bool,
    /// See `hdgst`.
    pub ddgst: bool,
    /// Traffic based keep alive (CTRATT.TBKAS): every command says that the host is alive, and
    /// hosts send no Keep Alive while there is traffic. Off, only Keep Alive counts, which also
    /// finds an admin queue that hangs while I/O goes on.
    pub tbkas: bool,
    /// Controllers at once, over all subsystems.
    pub controllers_max: usize,
    /// Connections at once; each costs its transport's buffers and a slot table.
    pub conns_max: usize,
    /// Connections of one peer address that have not got through Connect; more are refused.
    pub unauthenticated_per_peer_max: usize,
    /// Accepted → ICReq received.
    pub icreq_timeout: Duration,
    /// ICResp sent → Connect received.
    pub connect_timeout: Duration,
    /// How long a Connect waits for the writes that devices still have of its host's ended
    /// associations, before it is refused with Controller Busy. Less than what a host waits for
    /// its Connect (ours: 2 s).
    pub drain_timeout: Duration,
    /// C2HTermReq sent → connection gone.
    pub term_timeout: Duration,
    /// Longest silence of a host in the middle of a transfer: data of its R2Ts that does not
    /// come, or data of its reads that it does not take.
    pub stall_timeout: Duration,
    /// A discovery controller without KATO is closed after this.
    pub discovery_timeout: Duration,
    /// Buffers of [`TargetConfig::in_capsule_bytes`], held by writes whose data came along.
    pub in_capsule_buffers: usize,
    /// Buffers of 4 KiB for all other transfers.
    pub small_buffers: usize,
    /// Buffers of 128 KiB.
    pub medium_buffers: usize,
    /// Buffers of 2^`mdts` × 4 KiB, where that is more than 128 KiB.
    pub large_buffers: usize,
    /// Options of the listeners and the connections they accept.
    pub listen: ListenOptions,
}

impl TargetConfig {
    /// Largest in-capsule data, bytes.
    pub const IN_CAPSULE_MAX: u32 = 128 << 10;

    /// Largest transfer, bytes.
    pub const fn transfer_max(&self) -> u32 {
        4096 << self.mdts
    }

    /// # Panics
    /// For values outside the ranges that the fields state.
    pub(super) fn check(&self) {
        let in_capsule = self.in_capsule_bytes;
        assert!(in_capsule.is_multiple_of(16) && in_capsule <= Self::IN_CAPSULE_MAX);
        assert!(self.h2c_data_bytes_max >= 4096 && self.h2c_data_bytes_max.is_multiple_of(4));
        assert!((1..=8).contains(&self.mdts), "MDTS is 1 to 8");
        assert!((31..=MQES_MAX).contains(&self.mqes), "MQES is 31 to 1023");
        assert!((1..=256).contains(&self.io_queues_max), "I/O queues are 1 to 256");
        assert!((1..=0x7FFF).contains(&self.controllers_max), "controllers are 1 to 32767");
        assert!(self.conns_max > 0 && self.in_capsule_buffers > 0 && self.small_buffers > 0);
        assert!(self.medium_buffers > 0 && (self.mdts <= 5 || self.large_buffers > 0));
    }
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            in_capsule_bytes: 8192,
            h2c_data_bytes_max: 128 << 10,
            mdts: 8,
            mqes: 127,
            io_queues_max: 64,
            hdgst: true,
            ddgst: true,
            tbkas: false,
            controllers_max: 256,
            conns_max: 1024,
            // A host that has lost all its controllers comes back with all of them at once.
            unauthenticated_per_peer_max: 256,
            icreq_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_millis(1500),
            term_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
            discovery_timeout: Duration::from_secs(120),
            in_capsule_buffers: 512,
            small_buffers: 1024,
            medium_buffers: 160,
            large_buffers: 32,
            listen: ListenOptions::default(),
        }
    }
}
