//! The L4 seam: an engine that holds many byte-stream connections.
//!
//! A driver's turn is always the same: [`Transport::turn`] takes in what has arrived and what is
//! due, [`Transport::poll_event`] says which connections changed, [`Transport::recv`] lets a
//! protocol machine parse in place, [`Transport::send`] takes what it emits, and
//! [`Transport::flush`] puts it on the wire with one wakeup. Events are edges: a machine that
//! leaves bytes unread, or is refused room, must come back by itself.
//!
//! A connection handed out is reported `Closed` exactly once, with the reason, and not used after.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::Instant;
use crate::buckets::Buckets;

/// Names a connection: its slot, and a generation so that a late use of a reused slot is noticed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId {
    /// Slot in the engine's table; small, for use as an array index.
    pub index: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

/// What an engine has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A listener's peer is connected.
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// The address that it was made to.
        local: SocketAddr,
        /// Who it is.
        peer: SocketAddr,
    },
    /// A connection of ours is established.
    Connected(ConnId),
    /// Bytes arrived since the last turn.
    Readable(ConnId),
    /// There is room again, after a `send` that took less than it was given.
    Writable(ConnId),
    /// The peer will send no more (FIN); what was received before can still be read, and sending
    /// is still possible. `Closed` follows when the driver closes or aborts.
    PeerClosed(ConnId),
    /// The connection is gone, and its `ConnId` with it.
    Closed(ConnId, Why),
    /// A node that was looked for before shows that it is there, by no connection: it announced
    /// itself on our link, or answered [`Transport::echo`]. Nothing proves that the sender is who
    /// it says, nor that it listens: a reason to try, no more.
    Reachable(IpAddr),
    /// Our link was down or gone, and is up again: peers may be reachable that were not. A hint.
    LinkUp,
}

/// The stage in which a connection was, or is. A host's qpair has its own stages above these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Looking for the next hop's hardware address.
    Resolving,
    /// SYN sent.
    SynSent,
    /// SYN received, waiting for the peer's ACK.
    SynReceived,
    /// Bytes can flow.
    Established,
    /// Closed by one side, the rest under way.
    Draining,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolving => "looking for the next hop",
            Self::SynSent => "waiting for SYN-ACK",
            Self::SynReceived => "waiting for the ACK of our SYN-ACK",
            Self::Established => "established",
            Self::Draining => "closing",
        })
    }
}

/// Why a connection ended, in enough detail that nobody has to guess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What ended it.
    pub cause: Cause,
    /// The stage in which it happened.
    pub stage: Stage,
    /// How long the connection had been in that stage.
    pub after: Duration,
    /// Segments retransmitted over its life.
    pub retransmits: u32,
    /// The retransmission timeout that it had come to, if it sent something again.
    pub rto: Option<Duration>,
    /// The last ICMP error about it, if there was one: a hint, unless it is the cause.
    pub hint: Option<IcmpError>,
}

/// What an ICMP error says of a packet that we sent (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// There is no way to its network or node.
    NoRoute,
    /// Nobody listens there: no such port, or no such protocol.
    Port,
    /// A firewall does not let it pass.
    Prohibited,
    /// It passed too many routers: they send it around in a circle.
    HopLimit,
    /// Its header is found wrong.
    Parameter,
    /// It is too long for a link on the way.
    TooBig {
        /// The longest packet that is not, bytes; 0 if that is not said.
        mtu: u32,
    },
}

impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route to it"),
            Self::Port => f.write_str("nobody listens there"),
            Self::Prohibited => f.write_str("prohibited by a firewall"),
            Self::HopLimit => f.write_str("hop limit exceeded"),
            Self::Parameter => f.write_str("bad header"),
            Self::TooBig { mtu } => write!(f, "packet too big, MTU {mtu}"),
        }
    }
}

/// What can end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// We closed it, and it is closed on both sides.
    Closed,
    /// We aborted it.
    Aborted,
    /// The peer sent RST. While `SynSent`: the port is closed.
    Reset,
    /// No hardware address for the next hop within its deadline.
    NeighbourTimeout,
    /// The connect deadline passed.
    ConnectTimeout,
    /// Data stayed unacknowledged for too long.
    AckTimeout,
    /// A graceful close did not end within its deadline.
    DrainTimeout,
    /// No route, or no local address of that family.
    Unroutable,
    /// Our own address is in use by another node, and so not by us.
    AddressConflict,
    /// An ICMP error answered our SYN.
    Icmp(IcmpError),
    /// The link or the kernel failed.
    Errno(i32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Closed => write!(f, "closed")?,
            Cause::Aborted => write!(f, "aborted by us")?,
            Cause::Reset if self.stage == Stage::SynSent => write!(f, "connection refused")?,
            Cause::Reset => write!(f, "reset by the peer")?,
            Cause::NeighbourTimeout => write!(f, "no answer to ARP/ND")?,
            Cause::ConnectTimeout => write!(f, "connect timed out")?,
            Cause::AckTimeout => write!(f, "peer stopped acknowledging")?,
            Cause::DrainTimeout => write!(f, "close timed out")?,
            Cause::Unroutable => write!(f, "no route")?,
            Cause::AddressConflict => write!(f, "another node has our address")?,
            Cause::Icmp(error) => write!(f, "ICMP says: {error}")?,
            Cause::Errno(errno) => write!(f, "{}", io::Error::from_raw_os_error(errno))?,
        }
        write!(f, " (while {}, after {:.1?}", self.stage, self.after)?;
        if self.retransmits > 0 {
            write!(f, ", {} retransmits", self.retransmits)?;
        }
        if let Some(rto) = self.rto {
            write!(f, ", RTO {rto:?}")?;
        }
        if let Some(hint) = self.hint.filter(|hint| self.cause != Cause::Icmp(*hint)) {
            write!(f, ", ICMP said: {hint}")?;
        }
        write!(f, ")")
    }
}

/// What a connection is given when it is made. Every wait has its own deadline.
#[derive(Clone, Debug)]
pub struct ConnOptions {
    /// TCP connect, from the first SYN.
    pub connect_timeout: Duration,
    /// Longest time that sent data may stay unacknowledged.
    pub ack_timeout: Duration,
    /// Longest time that a graceful close may take.
    pub drain_timeout: Duration,
    /// Receive buffer, bytes; the window never exceeds it.
    pub rx_buffer: usize,
    /// Send buffer, bytes.
    pub tx_buffer: usize,
    /// How much faster than real time the connection's TCP clock runs, once established
    /// (its RTO is at least 1 s divided by this).
    pub clock_factor: u32,
}

impl ConnOptions {
    /// The ack timeout that an exponent stands for, as SPDK's `transport_ack_timeout` does: 2ⁿ ms,
    /// n above 31 being 31. 0 is `None`: our own default, never a kernel's.
    pub fn ack_timeout_of_exp(n: u8) -> Option<Duration> {
        (n > 0).then(|| Duration::from_millis(1 << n.min(31)))
    }
}

impl Default for ConnOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            ack_timeout: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(1),
            rx_buffer: 256 << 10,
            tx_buffer: 256 << 10,
            clock_factor: 100,
        }
    }
}

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Options of the accepted connections.
    pub conn: ConnOptions,
    /// Connections that may be half open (SYN received) at once; more SYNs are dropped.
    pub half_open_max: usize,
    /// Connections that may be open at once, half-open ones included; more are refused with RST.
    pub open_max: usize,
    /// How long a connection may be half open.
    pub half_open_timeout: Duration,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            conn: ConnOptions::default(),
            half_open_max: 128,
            open_max: 4096,
            half_open_timeout: Duration::from_secs(3),
        }
    }
}

/// An engine of byte-stream connections: our TCP, kernel sockets, or a simulated pipe.
pub trait Transport {
    /// Starts a connection; `Connected` or `Closed` will tell how it went.
    ///
    /// # Errors
    /// Only for what is known at once: no room for another connection, no route.
    fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: &ConnOptions,
    ) -> io::Result<ConnId>;

    /// Accepts connections to `local` from now on.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable` (not one of our addresses), or the kernel's.
    fn listen(
        &mut self,
        now: Instant,
        local: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<()>;

    /// Accepts no more connections to `local`, an address that was listened on: they are refused,
    /// until it is listened on again. Those that are open stay.
    ///
    /// # Errors
    /// `NotFound` when nobody listens there, `Unsupported`, or the kernel's.
    fn unlisten(&mut self, local: SocketAddr) -> io::Result<()> {
        let _ = local;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Asks the node at `ip` whether it is there, by ICMP echo: [`Event::Reachable`] tells if it
    /// answers within `timeout`, nothing if it does not. False where nobody can be asked: not by
    /// kernel sockets, nor when too many are being asked.
    fn echo(&mut self, now: Instant, ip: IpAddr, timeout: Duration) -> bool {
        let _ = (now, ip, timeout);
        false
    }

    /// Takes in, within its budget, what has arrived and what is due.
    fn turn(&mut self, now: Instant);

    /// Whether what had arrived when we last came to it has been taken in. While not, the very
    /// thing that a deadline misses may wait, and the deadline is judged in a later turn; bounded:
    /// a lasting overload puts it off by a few turns only.
    fn is_caught_up(&self) -> bool {
        true
    }

    /// The next thing to tell, or `None` until the next turn.
    fn poll_event(&mut self) -> Option<Event>;

    /// Shows received bytes, in order, in one or (at the ring's wrap) two calls of `parse`, which
    /// returns how many it is done with; fewer than shown ends the loop, and the rest is shown
    /// again next time. Returns the bytes taken in all.
    fn recv(&mut self, conn: ConnId, parse: &mut dyn FnMut(&[u8]) -> usize) -> usize;

    /// Copies bytes into the send buffer; returns how many it took.
    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> usize;

    /// Free bytes in the send buffer; 0 for a connection that can no longer send.
    fn send_room(&self, conn: ConnId) -> usize;

    /// The peer waits for our acknowledgement: it leaves with the next flush at the latest.
    fn ack(&mut self, conn: ConnId);

    /// Sends what is buffered, then FIN; `Closed` follows within the drain deadline.
    fn close(&mut self, now: Instant, conn: ConnId);

    /// Sends RST and forgets; `Closed` follows.
    fn abort(&mut self, now: Instant, conn: ConnId);

    /// Gives a connection the timeouts of `options` (nothing else of them): what is armed is moved,
    /// as if it had been armed with them. `false`: the engine cannot, or the connection is gone.
    fn set_timeouts(&mut self, conn: ConnId, options: &ConnOptions) -> bool {
        let _ = (conn, options);
        false
    }

    /// Puts on the wire what was sent in this turn, within its budget, with one wakeup.
    fn flush(&mut self, now: Instant);

    /// When the next turn is due if nothing arrives before.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Sleeps until something arrives, one of `also` becomes readable, or `until` is reached
    /// (`None`: no limit). The only call that may block.
    ///
    /// # Errors
    /// Of the wait itself; a signal ends the wait without an error.
    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()>;

    /// The connections in slots from `from` on, in order, `max` at most: none from an engine that
    /// does not see into its connections, as kernel sockets do not.
    fn connections_from(&self, from: u32, max: usize) -> Vec<ConnReport> {
        let _ = (from, max);
        Vec::new()
    }

    /// What turns came to; `None` from an engine that does not count it.
    fn work(&self) -> Option<Work> {
        None
    }

    /// Counters since the engine was made.
    fn stats(&self) -> TransportStats;
}

/// A connection as its engine sees it, for a person who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnReport {
    /// Its name.
    pub conn: ConnId,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Where it stands.
    pub stage: Stage,
    /// Since when.
    pub since: Instant,
    /// Armed deadlines, by name.
    pub timers: Vec<(&'static str, Instant)>,
    /// Bytes that the peer has not acknowledged.
    pub send_queue: usize,
    /// Bytes that the driver has not taken.
    pub recv_queue: usize,
    /// Segments sent again.
    pub retransmits: u32,
    /// The last ICMP error about it: a hint.
    pub hint: Option<IcmpError>,
}

/// What the turns of an engine came to, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Frames received in a turn.
    pub rx_frames: Buckets,
    /// Connections that had something to send, or were to be looked at, in a flush.
    pub connections: Buckets,
    /// Segments sent in a flush.
    pub tx_segments: Buckets,
    /// Deadlines of connections honoured in a turn where any was due.
    pub deadlines: Buckets,
    /// How much later than due such a deadline was honoured, microseconds.
    pub deadline_late_us: Buckets,
}

/// What an engine has done since it was made. Payload copies are counted here, at the seam.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Frames received (0 for kernel sockets).
    pub rx_frames: u64,
    /// Frames sent (0 for kernel sockets).
    pub tx_frames: u64,
    /// Stream bytes received.
    pub rx_bytes: u64,
    /// Stream bytes sent, each counted once.
    pub tx_bytes: u64,
    /// Stream bytes copied in user space below the seam on the way in.
    pub copied_in_bytes: u64,
    /// Stream bytes copied in user space below the seam on the way out.
    pub copied_out_bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// SYNs of connections that we start, those sent again included. Of kernel sockets, only the
    /// first of each: the kernel does not tell of the others.
    pub syns: u64,
    /// System calls made.
    pub syscalls: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_timeout_is_a_power_of_two_milliseconds() {
        assert_eq!(ConnOptions::ack_timeout_of_exp(0), None);
        let of_exp = |n| ConnOptions::ack_timeout_of_exp(n).unwrap().as_millis();
        assert_eq!([of_exp(1), of_exp(12), of_exp(31), of_exp(99)], [2, 4096, 1 << 31, 1 << 31]);
    }

    #[test]
    fn an_end_is_told_in_words() {
        let why = Why {
            cause: Cause::Reset,
            stage: Stage::SynSent,
            after: Duration::from_nanos(28_900),
            retransmits: 0,
            rto: None,
            hint: None,
        };
        let text = "connection refused (while waiting for SYN-ACK, after 28.9µs)";
        assert_eq!(why.to_string(), text);
        let (cause, stage) = (Cause::AckTimeout, Stage::Established);
        let after = Duration::from_secs(3);
        let why = Why {
            cause,
            stage,
            after,
            retransmits: 2,
            rto: Some(Duration::from_millis(40)),
            hint: None,
        };
        let text =
            "peer stopped acknowledging (while established, after 3.0s, 2 retransmits, RTO 40ms)";
        assert_eq!(why.to_string(), text);
        let why = Why { hint: Some(IcmpError::TooBig { mtu: 1400 }), ..why };
        let text = text.replace(')', ", ICMP said: packet too big, MTU 1400)");
        assert_eq!(why.to_string(), text);
        let error = IcmpError::NoRoute;
        let (cause, stage) = (Cause::Icmp(error), Stage::SynSent);
        let why = Why { cause, stage, hint: Some(error), retransmits: 0, rto: None, ..why };
        let text = "ICMP says: no route to it (while waiting for SYN-ACK, after 3.0s)";
        assert_eq!(why.to_string(), text);
    }
}
