//! The AF_XDP link: one queue of a real interface.
//!
//! It owns the steering program and the socket; both are gone when it is. Frames are copied by
//! nobody here but when one spans several descriptors. A turn costs one `sendto` when there is
//! something to send, and nothing otherwise. Announcements of other nodes come by way of the
//! program's ring buffer, as frames that the kernel has got too.
//!
//! The interface may go down, or away, and come back under the same name ([`XdpLink`]). Nobody
//! tells a socket so: `poll` is silent, and no ring moves. What tells is the wakeup (`sendto`):
//! `ENETDOWN` when it is down (the socket is as before when it is up again), `ENXIO` when it is
//! gone (the socket is of no more use, and the steering program is detached).
#![allow(clippy::disallowed_methods, reason = "a driver")]

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};

use moorline_bpf::{Announcements, Counters, Mode, Steering};
use moorline_xsk::{Report, RingStats, Sender, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::netns::{self, Netns};
use super::presence::{LOOK_UP, Presence, State};
use super::{Link, LinkEvent, LinkStats, LinkTx};
use crate::Instant;
use crate::lane::{self, LaneOptions, Parts};
use crate::time::{Duration, earliest};

/// How long the completion of a sent frame may take.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// When to repeat a wakeup that did not take everything.
const FLUSH_RETRY: Duration = Duration::from_micros(20);

const GONE: &str = "the interface is gone";
const DOWN: &str = "the interface is down";
const OPENING: &str = "the interface is being opened";

/// After as many announcements as are heard at once, the others wait, or are lost: a storm of them
/// costs no more than 32 looks at a table a millisecond.
const HEAR_PAUSE: Duration = Duration::from_millis(1);

/// Descriptors beside our own that [`Link::wait`] can watch.
pub const ALSO_MAX: usize = 7;

/// One queue of an interface, opened by [`lane::open`].
///
/// While the interface is down or gone, nothing is received and frames sent are dropped; so too
/// when frames sent do not come back for a second, as if it were gone. It is
/// looked for every 20 ms, by a system call or two that take no lock (1 µs). Once it is there, up,
/// and its MTU not smaller than before, the lane is made anew by a thread of its own, since the
/// kernel may take its time (15 ms, more while others change interfaces); after a failure there is
/// a pause of 100 ms to 2 s. All that in the network namespace in which the link was opened.
#[derive(Debug)]
pub struct XdpLink {
    options: LaneOptions,
    netns: Netns,
    mtu: usize,
    mac: [u8; 6],
    mode: Mode,
    steering: Option<Steering>, // detached before the socket is closed
    /// While the interface is gone: closed.
    socket: Socket,
    /// Counters of the sockets before this one.
    before: RingStats,
    presence: Presence,
    opening: Option<JoinHandle<Result<Parts, lane::Error>>>,
    /// Why there is no link.
    obstacle: String,
    watchdog: Watchdog,
    flush_again: Option<Instant>,
    /// When to look for announcements again.
    hear_at: Instant,
    slack_set: bool,
    syscalls: u64,
}

impl XdpLink {
    pub(crate) fn new(options: LaneOptions, parts: Parts) -> io::Result<Self> {
        let Parts { mtu, mac, steering, socket } = parts;
        Ok(Self {
            netns: Netns::here()?,
            presence: Presence::new(options.reopen_timeout),
            options,
            mtu,
            mac,
            mode: steering.mode(),
            steering: Some(steering),
            socket,
            before: RingStats::default(),
            opening: None,
            obstacle: String::new(),
            watchdog: Watchdog::default(),
            flush_again: None,
            hear_at: Instant::ZERO,
            slack_set: false,
            syscalls: 0,
        })
    }

    /// Where the steering program runs: [`Mode::Native`] or [`Mode::Skb`].
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the socket got from the kernel.
    pub fn report(&self) -> &Report {
        self.socket.report()
    }

    /// What the steering program has seen since it was attached last; nothing while it is not.
    ///
    /// # Errors
    /// Of the map look-ups.
    pub fn steering_counters(&self) -> Result<Counters, moorline_bpf::Error> {
        self.steering.as_ref().map_or(Ok(Counters::default()), Steering::counters)
    }

    /// Counters of the rings since the link was opened, the kernel's included.
    pub fn ring_stats(&self) -> RingStats {
        self.before.and(self.socket.stats())
    }

    /// Whether each frame is in exactly one place. Slow: for tests.
    pub fn is_whole(&self) -> bool {
        self.socket.is_whole()
    }

    fn ifname(&self) -> &str {
        &self.options.ifname
    }
}

/// Whether the interface is there.
impl XdpLink {
    /// Looks, and does what the look says.
    fn look(&mut self, now: Instant) -> io::Result<()> {
        match self.presence.state() {
            State::Up | State::Down => {
                self.syscalls += 1;
                let told = self.socket.sender().kick();
                self.heard(now, told)?;
            }
            State::Gone => self.find(now),
            State::Opening => self.opened(now),
        }
        if let Some(away) = self.presence.is_late(now) {
            let obstacle = match self.opening {
                Some(_) => OPENING,
                None => &self.obstacle,
            };
            tracing::error!(ifname = self.ifname(), ?away, %obstacle, "still no link");
        }
        Ok(())
    }

    /// What a wakeup told of the interface. Other errors than of that are given back.
    fn heard(&mut self, now: Instant, told: io::Result<()>) -> io::Result<()> {
        let Err(error) = told else {
            self.presence.looked(now);
            if self.presence.state() == State::Down {
                self.is_back(now);
            }
            return Ok(());
        };
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NXIO) if self.socket.is_unbound()? => self.away(now, true, GONE),
            Some(Errno::NXIO | Errno::NETDOWN) => self.away(now, false, DOWN),
            _ => return Err(error),
        }
        Ok(())
    }

    /// There is no link from now on; if `gone`, not with this socket.
    fn away(&mut self, now: Instant, gone: bool, why: &str) {
        self.watchdog = Watchdog::default();
        self.flush_again = None;
        if gone {
            self.socket.close();
        } else {
            self.socket.sender().discard();
        }
        if self.presence.is_up() {
            self.obstacle.clear();
        }
        if self.presence.away(now, gone) {
            self.hindered(why.to_owned());
        }
    }

    /// Gives the socket up and makes the lane anew, as after the interface was gone.
    pub fn reopen(&mut self, now: Instant, why: &str) {
        if matches!(self.presence.state(), State::Up | State::Down) {
            self.away(now, true, why);
        }
    }

    /// Whether an interface of that name is there and can be used: if so, it is opened.
    fn find(&mut self, now: Instant) {
        self.syscalls += 2;
        match self.unusable() {
            Some(obstacle) => {
                if obstacle != DOWN {
                    self.hindered(obstacle); // one that was made a moment ago is still down
                }
                self.presence.looked(now);
            }
            None => match self.open() {
                Ok(opening) => {
                    self.opening = Some(opening);
                    self.presence.opening(now);
                }
                Err(error) => self.not_opened(now, &error),
            },
        }
    }

    fn open(&mut self) -> io::Result<JoinHandle<Result<Parts, lane::Error>>> {
        let (options, old, netns) =
            (self.options.clone(), self.steering.take(), self.netns.file()?);
        thread::Builder::new().name("reopen".to_owned()).spawn(move || {
            drop(old); // the interface may have been away in another namespace only
            let ifname = options.ifname.clone();
            netns::enter(&netns).map_err(|source| lane::Error::Interface { ifname, source })?;
            lane::assemble(&options)
        })
    }

    /// Why the interface cannot be used, told by a cheap look.
    fn unusable(&self) -> Option<String> {
        let ifname = self.ifname();
        let view = &self.netns.view;
        match view.is_up(ifname).and_then(|up| Ok((up, view.mtu(ifname)?))) {
            Err(_) => Some(GONE.to_owned()),
            Ok((false, _)) => Some(DOWN.to_owned()),
            Ok((true, mtu)) if mtu < self.mtu => Some(too_small(mtu, self.mtu)),
            Ok((true, _)) => None,
        }
    }

    /// Takes over what the thread has opened, if it is done.
    fn opened(&mut self, now: Instant) {
        let done = self.opening.take_if(|opening| opening.is_finished());
        let Some(done) = done else { return self.presence.looked(now) };
        match done.join().expect("opening a lane does not panic") {
            Err(error) => self.not_opened(now, &error),
            Ok(parts) if parts.mtu < self.mtu => {
                self.not_opened(now, &too_small(parts.mtu, self.mtu));
            }
            Ok(Parts { mtu: _, mac, steering, socket }) => {
                // Larger frames may arrive now; ours stay as they were.
                self.before = self.ring_stats();
                self.mac = mac;
                self.mode = steering.mode();
                self.steering = Some(steering);
                self.socket = socket;
                self.is_back(now);
            }
        }
    }

    fn not_opened(&mut self, now: Instant, obstacle: &dyn std::fmt::Display) {
        self.presence.failed(now);
        self.hindered(obstacle.to_string());
    }

    /// There is no link, for this reason: said when it is another than before.
    fn hindered(&mut self, obstacle: String) {
        if obstacle != self.obstacle {
            let ifname = self.ifname();
            tracing::warn!(ifname, %obstacle, "no link: frames are dropped until it is back");
            self.obstacle = obstacle;
        }
    }

    fn is_back(&mut self, now: Instant) {
        let away = self.presence.up(now);
        tracing::info!(ifname = self.ifname(), ?away, "the link is back");
    }
}

fn too_small(mtu: usize, before: usize) -> String {
    format!("its MTU is {mtu}, and was {before}: `ip link set dev DEV mtu {before}`")
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
        if now >= self.hear_at
            && let Some(steering) = &self.steering
        {
            let tx = self.socket.sender();
            let heard = steering.announcements().poll(&mut |frame| each(frame, tx));
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
        if self.presence.is_up() {
            self.send(now)?;
        } else {
            self.socket.sender().discard();
        }
        if now >= self.presence.next_look() { self.look(now) } else { Ok(()) }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let away = (!self.presence.is_up()).then(|| self.presence.next_look());
        earliest(away, earliest(self.flush_again, self.watchdog.deadline()))
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
        // Neither readiness nor an error would tell that the interface is gone: it is looked at
        // by the next `flush`.
        let look = match self.presence.is_up() {
            true => LOOK_UP,
            false => self.presence.next_look().since(now),
        };
        let timeout = until.map_or(look, |until| until.since(now)).min(look);
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let nothing = self.netns.view.as_fd();
        let steering = self.steering.as_ref().filter(|_| hears);
        let ring = steering.map(|steering| steering.announcements().as_fd());
        let mut fds: [PollFd<'_>; 2 + ALSO_MAX] = std::array::from_fn(|i| {
            let fd = match i {
                0 => self.socket.fd(),
                1 => ring,
                _ => also.get(i - 2).copied(),
            };
            PollFd::from_borrowed_fd(fd.unwrap_or(nothing), PollFlags::IN)
        });
        let ready = poll(&mut fds[..2 + also.len()], Some(&timeout));
        self.syscalls += 1;
        match ready {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn poll_event(&mut self) -> Option<LinkEvent> {
        self.presence.poll_event()
    }

    fn stats(&self) -> LinkStats {
        let ring = self.ring_stats();
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

impl XdpLink {
    /// Hands queued frames to the device, which is up as far as we know.
    fn send(&mut self, now: Instant) -> io::Result<()> {
        match self.socket.sender().flush() {
            Ok(true) => self.flush_again = None,
            Ok(false) => self.flush_again = Some(now + FLUSH_RETRY),
            Err(error) => return self.heard(now, Err(error)),
        }
        if self.socket.sender().in_flight() > 0 {
            self.socket.reap();
        }
        let sender = self.socket.sender();
        let (in_flight, completions) = (sender.in_flight(), sender.completions());
        if let Some(stuck) = self.watchdog.observe(now, in_flight, completions) {
            let stuck = format!("no completion for {stuck:?}, {in_flight} frames in flight");
            self.reopen(now, &stuck);
        }
        Ok(())
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
