//! Why a socket cannot be opened, and what to do about it.

use std::io;
use std::time::Duration;

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other, or what AF_XDP can do.
    #[error("{0}")]
    Options(String),
    /// The UMEM was refused.
    #[error(
        "cannot make a UMEM of {bytes} bytes: {source} (without CAP_IPC_LOCK it counts against \
         `ulimit -l`)"
    )]
    Umem {
        /// Its size.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else holds the queue.
    #[error(
        "queue {queue} of {ifname} stayed busy for {waited:?}: another AF_XDP socket is bound to it"
    )]
    Busy {
        /// The interface.
        ifname: String,
        /// The queue.
        queue: u32,
        /// For how long it was tried.
        waited: Duration,
    },
    /// The socket could not be bound.
    #[error("cannot bind an AF_XDP socket to queue {queue} of {ifname}: {source}{hint}")]
    Bind {
        /// The interface.
        ifname: String,
        /// The queue.
        queue: u32,
        /// What to do about it, where that is known.
        hint: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What to do about a bind that failed.
pub(crate) fn bind_hint(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EINVAL) => " (is there such a queue? `ethtool -l DEV` shows them)",
        Some(libc::EOPNOTSUPP) => " (the driver has no zero copy: leave that option off)",
        Some(libc::ENODEV | libc::ENXIO) => " (no such interface in this network namespace)",
        Some(libc::ENETDOWN) => " (the interface is down: `ip link set dev DEV up`)",
        Some(libc::EPERM | libc::EACCES) => " (root, or CAP_NET_RAW and CAP_NET_ADMIN, is needed)",
        Some(libc::ENOBUFS) => " (memlock limit: raise `ulimit -l`)",
        _ => "",
    }
}
