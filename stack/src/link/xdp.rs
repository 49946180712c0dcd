//! The AF_XDP link: one queue of a real interface.
//!
//! It owns the steering program and the socket; both are gone when it is. Frames are copied by
//! nobody here but when one spans several descriptors. A turn costs one `sendto` when there is
//! something to send, and nothing otherwise. Announcements of other nodes come by way of the
//! program's ring buffer, as frames that the kernel has got too.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};

use moorline_bpf::{Announcements, Counters, Mode, Steering};
use moorline_xsk::{Report, RingStats, Sender, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Link, LinkStats, LinkTx};
use crate::Instant;
use crate::time::{Duration, earliest};

/// How long the completion of a sent frame may take.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// When to repeat a wakeup that did not take everything.
const FLUSH_RETRY: Duration = Duration::from_micros(20);

/// How often to ask whether the interface is still there; also the longest sleep.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// After as many announcements as are heard at once, the others wait, or are lost: a storm of them
/// costs no more than 32 looks at a table a millisecond.
const HEAR_PAUSE: Duration = Duration::from_millis(1);

/// Descriptors beside our own that [`Link::wait`] can watch.
pub const ALSO_MAX: usize = 7;

/// One queue of an interface, opened by [`crate::lane::open`].
#[derive(Debug)]
pub struct XdpLink {
    ifname: String,
    mtu: usize,
    mac: [u8; 6],
    steering: Steering, // detached before the socket is closed
    socket: Socket,
    watchdog: Watchdog,
    flush_again: Option<Instant>,
    next_check: Instant,
    /// When to look for announcements again.
    hear_at: Instant,
    slack_set: bool,
    syscalls: u64,
}

impl XdpLink {
    pub(crate) fn new(
        ifname: String,
        mtu: usize,
        mac: [u8; 6],
        steering: Steering,
        socket: Socket,
    ) -> Self {
        Self {
            ifname,
            mtu,
            mac,
            steering,
            socket,
            watchdog: Watchdog::default(),
            flush_again: None,
            next_check: Instant::ZERO,
            hear_at: Instant::ZERO,
            slack_set: false,
            syscalls: 0,
        }
    }

    /// Where the steering program runs: [`Mode::Native`] or [`Mode::Skb`].
    pub fn mode(&self) -> Mode {
        self.steering.mode()
    }

    /// What the socket got from the kernel.
    pub fn report(&self) -> &Report {
        self.socket.report()
    }

    /// What the steering program has seen.
    ///
    /// # Errors
    /// Of the map look-ups.
    pub fn steering_counters(&self) -> Result<Counters, moorline_bpf::Error> {
        self.steering.counters()
    }

    /// Counters of the rings, the kernel's included.
    pub fn ring_stats(&self) -> RingStats {
        self.socket.stats()
    }

    /// Whether each frame is in exactly one place. Slow: for tests.
    pub fn is_whole(&self) -> bool {
        self.socket.is_whole()
    }

    fn check(&mut self, now: Instant) -> io::Result<()> {
        self.next_check = now + CHECK_INTERVAL;
        self.syscalls += 1;
        self.socket.check().map_err(|error| self.gone(&error))
    }

    fn gone(&self, error: &io::Error) -> io::Error {
        let message = format!("interface {} is down or gone: {error}", self.ifname);
        io::Error::new(error.kind(), message)
    }
}

impl LinkTx for Sender {
    fn room(&self) -> usize {
        Sender::room(self)
    }

    fn transmit<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        Sender::transmit(self, len, fill)
    }
}

impl Link for XdpLink {
    type Tx = Sender;

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn linear_frame_max(&self) -> usize {
        moorline_xsk::CHUNK_ROOM
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn receive(
        &mut self,
        now: Instant,
        budget: usize,
        each: &mut impl FnMut(&[u8], &mut Sender),
    ) -> usize {
        let received = self.socket.receive(budget, each);
        if now >= self.hear_at {
            let tx = self.socket.sender();
            let heard = self.steering.announcements().poll(&mut |frame| each(frame, tx));
            if heard == Announcements::AT_ONCE {
                self.hear_at = now + HEAR_PAUSE;
            }
        }
        received
    }

    fn tx(&mut self) -> &mut Sender {
        self.socket.sender()
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        let taken = self.socket.sender().flush().map_err(|error| self.gone(&error))?;
        self.flush_again = if taken { None } else { Some(now + FLUSH_RETRY) };
        let sender = self.socket.sender();
        if sender.in_flight() > 0 {
            self.socket.reap();
        }
        let sender = self.socket.sender();
        if let Some(stuck) = self.watchdog.observe(now, sender.in_flight(), sender.completions()) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "interface {}: no completion for {stuck:?}, {} frames in flight: the driver \
                     is stuck, reopen the lane",
                    self.ifname,
                    sender.in_flight()
                ),
            ));
        }
        if now >= self.next_check { self.check(now) } else { Ok(()) }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        earliest(self.flush_again, self.watchdog.deadline())
    }

    fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        assert!(also.len() <= ALSO_MAX, "at most {ALSO_MAX} descriptors beside the socket");
        if !self.slack_set {
            // The kernel's 50 µs would be most of a short sleep. Refused: sleeps are longer.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            self.slack_set = true;
        }
        let now = Instant::monotonic();
        let hears = now >= self.hear_at;
        let until = if hears { until } else { earliest(until, Some(self.hear_at)) };
        let timeout = until.map_or(CHECK_INTERVAL, |until| until.since(now)).min(CHECK_INTERVAL);
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let socket = self.socket.as_fd();
        let ring = if hears { self.steering.announcements().as_fd() } else { socket };
        let mut fds: [PollFd<'_>; 2 + ALSO_MAX] = std::array::from_fn(|i| {
            let fd = match i {
                0 => socket,
                1 => ring,
                _ => *also.get(i - 2).unwrap_or(&socket),
            };
            PollFd::from_borrowed_fd(fd, PollFlags::IN)
        });
        let ready = poll(&mut fds[..2 + also.len()], Some(&timeout));
        self.syscalls += 1;
        match ready {
            // Neither readiness nor an error tells that the interface is gone.
            Ok(0) if now >= self.next_check => self.check(now),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn stats(&self) -> LinkStats {
        let ring = self.socket.stats();
        LinkStats {
            rx_frames: ring.rx_frames,
            rx_bytes: ring.rx_bytes,
            rx_dropped: ring.rx_dropped + ring.rx_ring_full + ring.rx_oversize,
            rx_linearised_bytes: ring.rx_linearised_bytes,
            tx_frames: ring.tx_frames,
            tx_bytes: ring.tx_bytes,
            syscalls: ring.syscalls + self.syscalls,
        }
    }
}

/// Notices that sent frames do not come back.
#[derive(Debug, Default)]
struct Watchdog {
    completions: u64,
    /// Since when there has been no progress, while frames are in flight.
    since: Option<Instant>,
}

impl Watchdog {
    /// Called after completions have been taken in: so a stall of our own is not held against the
    /// device. Returns how long nothing has come back, once that is too long.
    fn observe(&mut self, now: Instant, in_flight: usize, completions: u64) -> Option<Duration> {
        if in_flight == 0 {
            self.since = None;
            return None;
        }
        match self.since {
            Some(since) if completions == self.completions => {
                Some(now.since(since)).filter(|&stuck| stuck >= COMPLETION_TIMEOUT)
            }
            _ => {
                self.since = Some(now);
                self.completions = completions;
                None
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + COMPLETION_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_watchdog_bites_when_nothing_comes_back() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.observe(Instant::ZERO, 3, 0), None);
        assert_eq!(dog.deadline(), Some(Instant::from_nanos(1000 * MS)));
        assert_eq!(dog.observe(Instant::from_nanos(999 * MS), 3, 0), None);
        let stuck = dog.observe(Instant::from_nanos(1000 * MS), 3, 0);
        assert_eq!(stuck, Some(Duration::from_secs(1)));
    }

    #[test]
    fn progress_keeps_the_watchdog_quiet() {
        let mut dog = Watchdog::default();
        for i in 0..10 {
            assert_eq!(dog.observe(Instant::from_nanos(i * 900 * MS), 3, i), None);
        }
        assert_eq!(dog.observe(Instant::from_nanos(60_000 * MS), 0, 9), None);
        assert_eq!(dog.deadline(), None);
    }
}
