//! What a host is given: who it is, what it may use, and how each controller is to be reached.
//! Every wait has its own timeout here; none is a kernel's.

use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::transport::ConnOptions;

use super::ic::Ask;
use crate::spec::DISCOVERY_NQN;

/// Who the host is; the two always go together (NVMe Base, "Host Identifier").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Host NQN, at most 223 characters.
    pub hostnqn: String,
    /// Host identifier, 128 bits.
    pub hostid: [u8; 16],
}

/// Sizes of the host's tables; memory is taken when a controller is connected.
#[derive(Clone, Copy, Debug)]
pub struct HostLimits {
    /// Controllers at once.
    pub controllers: usize,
    /// I/O queues of one controller (each costs a connection's buffers and its slot table).
    pub io_queues: u16,
    /// Entries of one queue; at most 4096, for a CID has 12 bits for the slot.
    pub queue_size: u16,
    /// Connections started to one target address a second, once it is reachable again: a token
    /// bucket, for the controllers that reconnect.
    pub admission_per_s: u32,
    /// Connections started to one target address at once.
    pub admission_burst: u32,
    /// Connections started in a second over all addresses, of those whose place in their
    /// address's admission has come: what many addresses that return together cost a turn.
    pub starts_per_s: u32,
    /// Connections started at once over all addresses.
    pub starts_burst: u32,
    /// Tests of addresses that are not reachable, begun in a second, over all addresses.
    pub probes_per_s: u32,
    /// Such tests begun at once.
    pub probe_burst: u32,
    /// Such tests under way at once. Each holds a connection's buffers for `probe_timeout`.
    pub probes_under_way: u32,
    /// Standby connections at once, of all controllers ([`CtrlConfig::standby`]). A target may
    /// count them as strangers, and limit those.
    pub standby: usize,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self {
            controllers: 64,
            io_queues: 128,
            queue_size: 1024,
            admission_per_s: 4000,
            admission_burst: 64,
            starts_per_s: 8000,
            starts_burst: 16,
            probes_per_s: 1000,
            probe_burst: 64,
            probes_under_way: 256,
            standby: 64,
        }
    }
}

/// With what an address that is not reachable is tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// An attempt of one controller, which begins with a SYN: it tests the very thing that is
    /// wanted, passes the same firewalls, and when it succeeds it goes on to be the controller's.
    #[default]
    Syn,
    /// ICMP echo, asked of the node: no connection and no buffers while it is away, but one packet
    /// more when it is back, since an answer only starts a test by SYN at once. Every tenth test
    /// is a SYN all the same, and so is each test of a port that refuses, for there are nodes that
    /// answer no echo, and an echo says nothing of a port. Kernel sockets cannot ask: SYN there.
    Echo,
}

/// How a controller that was lost, or not reached, is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// Least pause before an attempt; decorrelated jitter between it and `delay_max`.
    pub delay_min: Duration,
    /// Longest pause before an attempt.
    pub delay_max: Duration,
    /// With what an address that is not reachable is tested.
    pub probe: Probe,
    /// TCP connect timeout of the one attempt that tests an address that is not reachable, or how
    /// long the answer to an echo request may take.
    pub probe_timeout: Duration,
    /// How often such an address is tested, by one controller for all of that address.
    pub probe_interval: Duration,
    /// How long an outage may last before the controller fails for good, an attempt under way
    /// with it; `None`: for ever.
    pub ctrl_loss: Option<Duration>,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_millis(20),
            delay_max: Duration::from_secs(2),
            probe: Probe::Syn,
            probe_timeout: Duration::from_millis(200),
            probe_interval: Duration::from_millis(100),
            ctrl_loss: Some(Duration::from_secs(600)),
        }
    }
}

/// What becomes of the I/O of a controller that was lost and is tried again: it stays with the
/// host, and is issued again when the controller is live; meanwhile new I/O is taken, as much as
/// the queues hold. Without [`CtrlConfig::reconnect`] there is nothing to wait for: it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requeue {
    /// Since the outage began: then all of it ends with Host Pathing Error, and new I/O does so
    /// at once, until the controller is live. A write that is not quiet by then ends too, be the
    /// controller live or not: so it does where the controller rounds KATO up far enough.
    pub fast_io_fail: Duration,
    /// How long writes wait that may still be executed by the old path.
    pub quiesce: Quiesce,
}

impl Default for Requeue {
    fn default() -> Self {
        Self { fast_io_fail: Duration::from_secs(20), quiesce: Quiesce::Auto }
    }
}

/// How long a write (Write Zeroes, Deallocate) that was on the wire of a path waits before it is
/// issued again, when that path fell silent: the controller may still execute it. A path that the
/// controller ended (RST, FIN, TermReq) needs no wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quiesce {
    /// By when the controller has stopped: 2 · KATO (3 · KATO with TBKAS) and CQT since the loss
    /// was noticed (NVMe Base 2.1, "Communication Loss Handling"). With KATO 0 no bound is
    /// known, and such writes wait for `fast_io_fail`, to end.
    #[default]
    Auto,
    /// So long, whatever the controller says.
    For(Duration),
    /// Not at all: a write may then be executed once more after others that follow it.
    Off,
}

/// How a controller is to be reached and used.
#[derive(Clone, Debug)]
pub struct CtrlConfig {
    /// The target's address and TCP port.
    pub addr: SocketAddr,
    /// The subsystem's NQN.
    pub subnqn: String,
    /// I/O queues asked for; the controller may grant fewer. 0 for a discovery controller.
    pub io_queues: u16,
    /// Entries of an I/O queue asked for; one less is the number of commands at once.
    pub queue_size: u16,
    /// Keep alive timeout asked for; zero turns keep alive off.
    pub kato: Duration,
    /// Header digests on.
    pub hdgst: bool,
    /// Data digests on.
    pub ddgst: bool,
    /// Alignment asked for data sent to us, dwords, 0's based (Linux targets want 0).
    pub hpda: u8,
    /// A discovery controller: no I/O queues, no namespaces.
    pub discovery: bool,
    /// Use SQ flow control; off (DISSQFC) allows the controller to skip a read's completion PDU.
    pub sq_flow_control: bool,
    /// The deadlines.
    pub timeouts: Timeouts,
    /// Options of the TCP connections, their own deadlines among them.
    pub conn: ConnOptions,
    /// Whether and how it is tried again; `None`: it fails once, for good.
    pub reconnect: Option<Reconnect>,
    /// Connections kept ready beside those in use, once the controller is live: TCP and ICReq
    /// done, and nothing sent or received since. When a queue is lost, the next attempt takes
    /// them, at once. At most as many as the controller has queues; 0: none.
    ///
    /// For targets that let a connection wait for its Connect: one that ends it after a time (ours
    /// does, after 5 s) is learned, and the connection renewed before; one that ends it within 1 s
    /// is asked less and less often.
    pub standby: u16,
    /// Whether its I/O outlives the loss of its path; `None`: it ends with Host Pathing Error.
    pub requeue: Option<Requeue>,
}

impl CtrlConfig {
    /// The defaults for a subsystem at an address: one I/O queue of 128 entries, KATO 5 s, no
    /// digests, no SQ flow control.
    pub fn new(addr: SocketAddr, subnqn: impl Into<String>) -> Self {
        Self {
            addr,
            subnqn: subnqn.into(),
            io_queues: 1,
            queue_size: 128,
            kato: Duration::from_secs(5),
            hdgst: false,
            ddgst: false,
            hpda: 0,
            discovery: false,
            sq_flow_control: false,
            timeouts: Timeouts::default(),
            conn: ConnOptions::default(),
            reconnect: None,
            standby: 0,
            requeue: None,
        }
    }

    pub(super) fn ask(&self) -> Ask {
        Ask { hdgst: self.hdgst, ddgst: self.ddgst, hpda: self.hpda }
    }

    /// The defaults for the discovery service at an address: no I/O queues, KATO 0 (not
    /// persistent).
    pub fn discovery(addr: SocketAddr) -> Self {
        Self {
            io_queues: 0,
            kato: Duration::ZERO,
            discovery: true,
            ..Self::new(addr, DISCOVERY_NQN)
        }
    }
}

/// How long each thing may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From `connect` to live, all stages.
    pub connect_total: Duration,
    /// ICReq sent to ICResp received.
    pub icresp: Duration,
    /// Connect sent to its completion.
    pub connect: Duration,
    /// TermReq sent, or close asked for, to the connection being gone.
    pub term: Duration,
    /// An admin command.
    pub admin: Duration,
    /// An I/O command, before it is aborted.
    pub io: Duration,
    /// An I/O command whose timeout has passed, until it was aborted; then the controller is
    /// reset. No longer than `admin`: where that is shorter, it counts.
    pub abort: Duration,
    /// Orderly shutdown: outstanding I/O ends, and then CSTS.SHST says done, each within this.
    pub shutdown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect_total: Duration::from_secs(3),
            icresp: Duration::from_secs(1),
            connect: Duration::from_secs(2),
            term: Duration::from_secs(1),
            admin: Duration::from_secs(10),
            io: Duration::from_secs(30),
            abort: Duration::from_secs(1),
            shutdown: Duration::from_secs(2),
        }
    }
}
