//! An AF_XDP socket bound to one queue, with its UMEM.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::socket::Fd;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

use crate::error::bind_hint;
use crate::rx::Receiver;
use crate::tx::Parts;
use crate::{BATCH, CHUNK, Copying, Error, Options, Report, Sender, huge, sockopt};

/// Pause between two tries to bind.
const BIND_PAUSE: Duration = Duration::from_millis(5);

/// Descriptors that one wakeup may send, and the send buffer that goes with it: the kernel's own
/// 32 and 208 KiB (some 90 frames) would cut a burst in pieces.
const TX_BUDGET: u32 = 1024;
const SEND_BUFFER: c_int = 4 << 20;

/// `XDP_MAX_TX_SKB_BUDGET`, newer than the C library's headers.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// An AF_XDP socket, bound until it is closed. The XDP program is not its business.
#[derive(Debug)]
pub struct Socket {
    /// `None`: it is closed.
    rx: Option<Receiver>,
    tx: Sender,
    /// What it had counted when it was closed.
    counted: RingStats,
    report: Report,
}

/// The socket's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes copied to make frames of several descriptors linear.
    pub rx_linearised_bytes: u64,
    /// Frames larger than the MTU allows: dropped by us.
    pub rx_oversize: u64,
    /// Frames that the kernel dropped: no chunk posted, or too large for one.
    pub rx_dropped: u64,
    /// Frames that the kernel dropped: the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the kernel found the fill ring empty.
    pub rx_fill_empty: u64,
    /// Frames queued for sending.
    pub tx_frames: u64,
    /// Bytes queued for sending.
    pub tx_bytes: u64,
    /// Of the frames queued, those dropped because the interface was down or gone.
    pub tx_discarded: u64,
    /// Descriptors that the kernel refused as invalid: a bug of ours.
    pub invalid_descs: u64,
    /// Wakeups that the kernel refused for the time being.
    pub wakeups_refused: u64,
    /// System calls made.
    pub syscalls: u64,
}

impl Socket {
    /// Opens a socket on a queue of interface `ifname`, in the calling thread's network namespace,
    /// and posts its receive frames.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(ifname: &str, options: &Options) -> Result<Self, Error> {
        options.check()?;
        raise_memlock();
        let deadline = Instant::now() + options.bind_deadline;
        let mut retries = 0;
        let bound = loop {
            match Bound::try_new(ifname, options) {
                Err(Error::Bind { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                    if Instant::now() >= deadline {
                        return Err(Error::Busy {
                            ifname: ifname.to_owned(),
                            queue: options.queue,
                            waited: options.bind_deadline,
                        });
                    }
                    retries += 1;
                    thread::sleep(BIND_PAUSE);
                }
                bound => break bound?,
            }
        };
        Ok(bound.into_socket(options, retries))
    }

    /// Takes back sent frames, then gives at most `budget` received frames to `each`, in order,
    /// with the sending half. Returns how many.
    pub fn receive(&mut self, budget: usize, each: &mut impl FnMut(&[u8], &mut Sender)) -> usize {
        self.tx.reap();
        self.rx.as_mut().map_or(0, |rx| rx.receive(budget, &mut self.tx, each))
    }

    /// Closes it, and frees its UMEM: nothing is received from now on, and what is sent is dropped.
    pub fn close(&mut self) {
        self.counted = self.stats();
        self.rx = None;
        self.tx.close();
    }

    /// Takes back sent frames.
    pub fn reap(&mut self) {
        self.tx.reap();
    }

    /// The sending half.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.tx
    }

    /// What the socket got.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Counters since it was opened; one system call.
    pub fn stats(&self) -> RingStats {
        let tx = self.tx.counts();
        let tx = RingStats {
            tx_frames: tx.frames,
            tx_bytes: tx.bytes,
            tx_discarded: tx.discarded,
            wakeups_refused: tx.kicks_refused,
            syscalls: tx.kicks,
            ..RingStats::default()
        };
        let (Some(rx), Some(fd)) = (&self.rx, self.tx.fd()) else {
            let RingStats { tx_frames, tx_bytes, tx_discarded, .. } = tx;
            return RingStats { tx_frames, tx_bytes, tx_discarded, ..self.counted };
        };
        let rx = rx.counts();
        // It fails only for a socket without the option: then the kernel's counters stay 0.
        let kernel = fd.xdp_statistics().unwrap_or_default();
        RingStats {
            rx_frames: rx.frames,
            rx_bytes: rx.bytes,
            rx_linearised_bytes: rx.linearised_bytes,
            rx_oversize: rx.oversize,
            rx_dropped: kernel.rx_dropped(),
            rx_ring_full: kernel.rx_ring_full(),
            rx_fill_empty: kernel.rx_fill_ring_empty_descs(),
            invalid_descs: kernel.rx_invalid_descs() + kernel.tx_invalid_descs(),
            syscalls: rx.syscalls + tx.syscalls,
            ..tx
        }
    }

    /// Whether the kernel has let go of the socket because its interface is gone: told once, and
    /// by neither `poll` nor the rings. Where it is not gone but its driver busy, a wakeup may
    /// give the same `ENXIO`.
    ///
    /// # Errors
    /// Of the system call.
    pub fn is_unbound(&self) -> io::Result<bool> {
        let Some(fd) = self.fd() else { return Ok(true) };
        let errno: c_int = sockopt::read(fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
        Ok(errno != 0)
    }

    /// Whether each chunk is in exactly one place. Slow: for tests.
    pub fn is_whole(&self) -> bool {
        self.rx.as_ref().is_none_or(Receiver::is_whole) && self.tx.is_whole()
    }

    /// The socket, while it is open.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.tx.fd().map(borrow)
    }
}

impl RingStats {
    /// These and `other`, of another socket, together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            rx_frames: self.rx_frames + other.rx_frames,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            rx_linearised_bytes: self.rx_linearised_bytes + other.rx_linearised_bytes,
            rx_oversize: self.rx_oversize + other.rx_oversize,
            rx_dropped: self.rx_dropped + other.rx_dropped,
            rx_ring_full: self.rx_ring_full + other.rx_ring_full,
            rx_fill_empty: self.rx_fill_empty + other.rx_fill_empty,
            tx_frames: self.tx_frames + other.tx_frames,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            tx_discarded: self.tx_discarded + other.tx_discarded,
            invalid_descs: self.invalid_descs + other.invalid_descs,
            wakeups_refused: self.wakeups_refused + other.wakeups_refused,
            syscalls: self.syscalls + other.syscalls,
        }
    }
}

fn borrow(fd: &Fd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as the queue that `fd` is borrowed from.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// A socket just bound, its chunks not yet handed out.
struct Bound {
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Umem,
    frames: Vec<FrameDesc>,
    ring_len: u32,
    huge_pages: bool,
}

impl Bound {
    fn try_new(ifname: &str, options: &Options) -> Result<Self, Error> {
        let tx_chunks = options.tx_frames as usize * options.frame_chunks();
        // Not below the budget, which may not exceed it.
        let ring_len = (tx_chunks + BATCH).next_power_of_two().max(TX_BUDGET as usize) as u32;
        let ring = |len: u32| QueueSize::new(len).expect("a power of two");
        let frame_size = FrameSize::new(CHUNK as u32).expect("not less than the least");
        let umem_config = UmemConfig::builder()
            .frame_size(frame_size)
            .fill_queue_size(ring(fill_len(options)))
            .comp_queue_size(ring(ring_len))
            .build()
            .expect("headroom leaves room in a chunk of 4096");
        let chunks = options.rx_frames as usize + tx_chunks;
        let (umem, frames, huge_pages) = new_umem(umem_config, chunks, options.huge_pages)?;

        let mut flags = BindFlags::empty();
        flags.set(BindFlags::XDP_COPY, options.copy == Copying::Copy);
        flags.set(BindFlags::XDP_ZEROCOPY, options.copy == Copying::ZeroCopy);
        flags.set(BindFlags::XDP_USE_NEED_WAKEUP, options.need_wakeup);
        flags.set(BindFlags::XDP_USE_SG, options.multi_buffer());
        let socket_config = SocketConfig::builder()
            .rx_queue_size(ring(options.rx_frames))
            .tx_queue_size(ring(ring_len))
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let interface = Interface::from_str(ifname)
            .map_err(|_| Error::Options(format!("{ifname:?} is no interface name")))?;
        // SAFETY: this UMEM is bound to one socket, and its rings used by one thread, only.
        let made = unsafe { xsk_rs::Socket::new(socket_config, &umem, &interface, options.queue) };
        let (tx, rx, rings) = made.map_err(|error| {
            let source = os_error(&error);
            Error::Bind {
                ifname: ifname.to_owned(),
                queue: options.queue,
                hint: bind_hint(source.raw_os_error()),
                source,
            }
        })?;
        let (fill, completion) = rings.expect("the first socket of a UMEM gets its rings");
        Ok(Self { tx, rx, fill, completion, umem, frames, ring_len, huge_pages })
    }

    fn into_socket(mut self, options: &Options, bind_retries: u32) -> Socket {
        let tx_chunks = options.tx_frames as usize * options.frame_chunks();
        let rx_frames = options.rx_frames as usize;
        let descs = self.frames[rx_frames..rx_frames + tx_chunks].into();
        self.frames.truncate(rx_frames);
        let report = tune(borrow(self.tx.fd()), options, self.huge_pages, bind_retries);
        let frame_max = options.frame_max();
        let rx = Receiver::new(self.rx, self.fill, self.umem.clone(), &self.frames, frame_max);
        let tx = Sender::new(Parts {
            tx: self.tx,
            completion: self.completion,
            umem: self.umem,
            descs,
            chunks: options.frame_chunks(),
            frame_max,
            ring_len: self.ring_len,
            need_wakeup: options.need_wakeup,
        });
        Socket { rx: Some(rx), tx, counted: RingStats::default(), report }
    }
}

/// Twice the receive chunks. The kernel shows a frame in the RX ring before it shows that it took
/// the chunk from the fill ring (`xsk_flush`): a quick reader posts it again while the old entry
/// still seems to be there.
fn fill_len(options: &Options) -> u32 {
    2 * options.rx_frames
}

/// A UMEM of at least `chunks`, on huge pages if asked for and possible.
fn new_umem(
    config: UmemConfig,
    chunks: usize,
    huge_pages: bool,
) -> Result<(Umem, Vec<FrameDesc>, bool), Error> {
    let bytes = chunks * CHUNK;
    let count = |n: usize| NonZeroU32::new(n as u32).expect("not zero, and bounded by `Options`");
    if huge_pages && let Some(page) = huge::page_size_if_free(bytes) {
        // Whole pages, or unmapping it fails.
        let whole = bytes.next_multiple_of(page) / CHUNK;
        match Umem::new(config, count(whole), true) {
            Ok((umem, frames)) => return Ok((umem, frames, true)),
            Err(error) => tracing::warn!("UMEM on huge pages failed: {}", os_error(&error)),
        }
    } else if huge_pages {
        static SAID: Once = Once::new();
        huge::warn_missing(&SAID, "UMEM", bytes);
    }
    match Umem::new(config, count(chunks), false) {
        Ok((umem, frames)) => Ok((umem, frames, false)),
        Err(error) => Err(Error::Umem { bytes, source: os_error(&error) }),
    }
}

/// Sets what the kernel allows, and reads back what it did.
fn tune(fd: BorrowedFd<'_>, options: &Options, huge_pages: bool, bind_retries: u32) -> Report {
    let sol = libc::SOL_SOCKET;
    let _ = sockopt::set(fd, sol, libc::SO_SNDBUFFORCE, SEND_BUFFER)
        .or_else(|_| sockopt::set(fd, sol, libc::SO_SNDBUF, SEND_BUFFER));
    let budget = sockopt::set(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, TX_BUDGET as c_int);
    let busy_poll = options.busy_poll_us.is_some_and(|us| {
        sockopt::set(fd, sol, libc::SO_PREFER_BUSY_POLL, 1)
            .and_then(|()| sockopt::set(fd, sol, libc::SO_BUSY_POLL, us as c_int))
            .and_then(|()| sockopt::set(fd, sol, libc::SO_BUSY_POLL_BUDGET, 64))
            .is_ok()
    });
    let flags: c_int = sockopt::read(fd, libc::SOL_XDP, libc::XDP_OPTIONS).unwrap_or(0);
    Report {
        zero_copy: flags as u32 & libc::XDP_OPTIONS_ZEROCOPY != 0,
        huge_pages,
        multi_buffer: options.multi_buffer(),
        tx_budget: if budget.is_ok() { TX_BUDGET } else { 32 },
        send_buffer: sockopt::read::<c_int>(fd, sol, libc::SO_SNDBUF).unwrap_or(0) as usize,
        busy_poll,
        bind_retries,
    }
}

/// The operating system's error below one of xsk-rs's.
fn os_error(error: &dyn std::error::Error) -> io::Error {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }
}

/// The UMEM counts as locked memory, unless we have CAP_IPC_LOCK. Best effort: if it matters, the
/// UMEM's error says so.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is initialised and outlives the call.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}
