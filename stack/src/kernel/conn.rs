//! One kernel socket with its rings, and the listeners that connections come from.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType,
    bind, getsockname, listen, recv, send, sendmsg, shutdown, socket_with, sockopt,
};

use super::ring::Ring;
use crate::Instant;
use crate::transport::{Cause, ConnOptions, IcmpError, ListenOptions, Stage, Why};

/// A connection of ours, from SYN to the end.
#[derive(Debug)]
pub(super) struct Conn {
    pub fd: OwnedFd,
    pub stage: Stage,
    since: Instant,
    pub rx: Ring,
    pub tx: Ring,
    pub drain_timeout: Duration,
    /// Index of the listener that it came from.
    pub listener: Option<usize>,
    /// The peer's FIN was read.
    pub peer_closed: bool,
    /// Our FIN was sent.
    shut: bool,
    /// The kernel's send buffer is full; an edge will tell when there is room.
    pub blocked: bool,
    /// A `send` took less than it was given.
    pub wants_room: bool,
    /// More may be had from the socket: it stands in the list of those to read.
    pub to_read: bool,
    /// Stands in the list of those to write.
    pub to_write: bool,
    /// The peer waits for an acknowledgement.
    pub to_ack: bool,
    /// FIN, RST or an error is behind what was received: read until it shows.
    pub hung_up: bool,
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub bytes: usize,
    pub fin: bool,
    /// There may be more.
    pub more: bool,
}

/// How long sent data may stay unacknowledged. The kernel's own rule gives up after minutes.
fn limit_acks(fd: &OwnedFd, options: &ConnOptions) -> rustix::io::Result<()> {
    let ms = options.ack_timeout.as_millis().clamp(1, u128::from(u32::MAX)) as u32;
    sockopt::set_tcp_user_timeout(fd, ms)
}

impl Conn {
    pub fn new(
        now: Instant,
        fd: OwnedFd,
        stage: Stage,
        listener: Option<usize>,
        options: &ConnOptions,
    ) -> rustix::io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        limit_acks(&fd, options)?;
        Ok(Self {
            fd,
            stage,
            since: now,
            rx: Ring::new(options.rx_buffer),
            tx: Ring::new(options.tx_buffer),
            drain_timeout: options.drain_timeout,
            listener,
            peer_closed: false,
            shut: false,
            blocked: false,
            wants_room: false,
            to_read: false,
            to_write: false,
            to_ack: false,
            hung_up: false,
        })
    }

    /// Takes over the timeouts of `options`; returns the deadline of the stage, if it has one.
    pub fn set_timeouts(&mut self, options: &ConnOptions) -> rustix::io::Result<Option<Instant>> {
        limit_acks(&self.fd, options)?;
        self.drain_timeout = options.drain_timeout;
        Ok(match self.stage {
            Stage::SynSent => Some(self.since + options.connect_timeout),
            Stage::Draining => Some(self.since + options.drain_timeout),
            Stage::Resolving | Stage::SynReceived | Stage::Established => None,
        })
    }

    pub fn enter(&mut self, now: Instant, stage: Stage) {
        self.stage = stage;
        self.since = now;
    }

    pub fn why(&self, now: Instant, cause: Cause) -> Why {
        let after = now.since(self.since);
        Why { cause, stage: self.stage, after, retransmits: 0, rto: None, hint: None }
    }

    /// What an errno of this socket means.
    pub fn cause(&self, errno: Errno) -> Cause {
        match errno {
            Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE => Cause::Reset,
            Errno::TIMEDOUT if self.stage == Stage::SynSent => Cause::ConnectTimeout,
            Errno::TIMEDOUT => Cause::AckTimeout,
            // What the kernel makes of ICMP errors that have no other source. EHOSTUNREACH and
            // ENETUNREACH may also be ARP's, or the routes'.
            Errno::HOSTDOWN | Errno::NONET => Cause::Icmp(IcmpError::NoRoute),
            Errno::NOPROTOOPT => Cause::Icmp(IcmpError::Port),
            Errno::PROTO => Cause::Icmp(IcmpError::Parameter),
            other => Cause::Errno(other.raw_os_error()),
        }
    }

    /// Reads up to `budget` bytes and what the last read brought beyond, as far as there is room.
    pub fn read(&mut self, budget: usize, syscalls: &mut u64) -> Result<Arrived, Errno> {
        let mut arrived = Arrived { bytes: 0, fin: false, more: false };
        if self.stage == Stage::Draining {
            self.rx.clear(); // nobody reads it any more
        }
        while arrived.bytes < budget {
            let free = self.rx.free();
            let asked = free.len();
            if asked == 0 {
                break;
            }
            *syscalls += 1;
            match recv(&self.fd, free, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    arrived.fin = true;
                    return Ok(arrived);
                }
                Ok((_, n)) => {
                    self.rx.fill(n);
                    arrived.bytes += n;
                    // epoll(7): a short read means that the socket is drained.
                    if n < asked && !self.hung_up {
                        return Ok(arrived);
                    }
                }
                Err(Errno::AGAIN) => return Ok(arrived),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        arrived.more = true;
        Ok(arrived)
    }

    /// Writes what the send buffer holds, with one call; then FIN, if that is due.
    pub fn write(&mut self, syscalls: &mut u64) -> Result<usize, Errno> {
        let (first, second) = self.tx.filled();
        let len = self.tx.len();
        let mut written = 0;
        if len > 0 {
            *syscalls += 1;
            let result = if second.is_empty() {
                send(&self.fd, first, SendFlags::NOSIGNAL)
            } else {
                let both = [IoSlice::new(first), IoSlice::new(second)];
                let mut none = SendAncillaryBuffer::default();
                sendmsg(&self.fd, &both, &mut none, SendFlags::NOSIGNAL)
            };
            written = match result {
                Ok(written) => written,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(errno) => return Err(errno),
            };
            self.tx.consume(written);
        }
        self.blocked = written < len;
        if self.stage == Stage::Draining && !self.blocked && !self.shut {
            self.shut = true;
            *syscalls += 1;
            shutdown(&self.fd, Shutdown::Write)?;
        }
        Ok(written)
    }

    /// Whether both directions are done with.
    pub fn finished(&self) -> bool {
        self.stage == Stage::Draining && self.shut && self.peer_closed
    }

    /// Makes the end of this connection a RST.
    pub fn reset_on_close(&self) {
        reset_on_close(&self.fd);
    }
}

/// A socket that connections are accepted from.
#[derive(Debug)]
pub(super) struct Listener {
    pub fd: OwnedFd,
    /// With the port that the kernel chose, if that was 0.
    pub local: SocketAddr,
    pub options: ListenOptions,
    /// Its connections that are open.
    pub open: usize,
    /// Nobody listens any more; its connections still count here.
    pub is_closed: bool,
}

impl Listener {
    pub fn open(local: SocketAddr, options: &ListenOptions) -> io::Result<Self> {
        let fd = socket(local)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        if local.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        bind(&fd, &local)?;
        listen(&fd, i32::try_from(options.half_open_max).unwrap_or(i32::MAX))?;
        let local = SocketAddr::try_from(getsockname(&fd)?)?;
        Ok(Self { fd, local, options: options.clone(), open: 0, is_closed: false })
    }

    /// Ends listening; the socket keeps its port, if that was asked for by number. Who asks for it
    /// is refused.
    pub fn close(&mut self) -> io::Result<()> {
        shutdown(&self.fd, Shutdown::Read)?; // Linux: a listener becomes a closed socket
        self.is_closed = true;
        Ok(())
    }

    /// Listens again.
    pub fn reopen(&mut self, options: &ListenOptions) -> io::Result<()> {
        listen(&self.fd, i32::try_from(options.half_open_max).unwrap_or(i32::MAX))?;
        (self.options, self.is_closed) = (options.clone(), false);
        self.local = SocketAddr::try_from(getsockname(&self.fd)?)?;
        Ok(())
    }
}

/// Makes closing this socket send RST and forget. Best effort: the socket is given up in any case.
pub(super) fn reset_on_close(fd: &OwnedFd) {
    let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
}

/// A non-blocking TCP socket of the family of `address`.
pub(super) fn socket(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}
