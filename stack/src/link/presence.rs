//! Whether the device under a link is there, and when to look for it. Pure.
//!
//! ```text
//!  Up ── down ──► Down ── up ──► Up        the socket survives
//!   └─── gone ──────┴──► Gone ── found ──► Opening ── opened ──► Up
//!                         ▲────── failed ─────┘
//! ```
//!
//! What always holds: looks are paced, whatever is asked of the link; the beginning and the end of
//! an outage are told once each, and so is one that lasts too long.

use super::LinkEvent;
use crate::Instant;
use crate::time::Duration;

/// How often a device that seems to be there is looked at where nothing is sent, which tells too.
pub(super) const LOOK_UP: Duration = Duration::from_millis(100);

/// How often one that is not there is looked for.
const LOOK_AWAY: Duration = Duration::from_millis(20);

/// How often to ask whether it has been opened.
const LOOK_OPENING: Duration = Duration::from_millis(2);

/// Pause after it could not be opened: twice as long each time.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There and up, as far as we know.
    Up,
    /// Down, or its driver is busy with itself: the socket is still bound.
    Down,
    /// Gone, and the socket with it.
    Gone,
    /// There again: being opened.
    Opening,
}

/// The device of one link.
#[derive(Debug)]
pub(super) struct Presence {
    state: State,
    /// Since when it is not `Up`.
    since: Instant,
    next_look: Instant,
    pause: Duration,
    late_after: Duration,
    late_told: bool,
    event: Option<LinkEvent>,
}

impl Presence {
    /// A device that was just opened; an outage longer than `late_after` is told.
    pub(super) fn new(late_after: Duration) -> Self {
        Self {
            state: State::Up,
            since: Instant::ZERO,
            next_look: Instant::ZERO,
            pause: PAUSE,
            late_after,
            late_told: false,
            event: None,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// When to look.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// A look found it as it was, or is under way.
    pub(super) fn looked(&mut self, now: Instant) {
        self.next_look = now
            + match self.state {
                State::Up => LOOK_UP,
                State::Down | State::Gone => LOOK_AWAY,
                State::Opening => LOOK_OPENING,
            };
    }

    /// It is down, or (`gone`) gone. Returns whether that is news.
    pub(super) fn away(&mut self, now: Instant, gone: bool) -> bool {
        let before = self.state;
        if before == State::Up {
            self.since = now;
            self.pause = PAUSE;
            self.late_told = false;
            self.event = Some(LinkEvent::Down);
        }
        self.state = if gone { State::Gone } else { State::Down };
        self.looked(now);
        before != self.state
    }

    /// It is being opened.
    pub(super) fn opening(&mut self, now: Instant) {
        self.state = State::Opening;
        self.looked(now);
    }

    /// It could not be opened.
    pub(super) fn failed(&mut self, now: Instant) {
        self.state = State::Gone;
        self.next_look = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// It is up. Returns for how long it was not.
    pub(super) fn up(&mut self, now: Instant) -> Duration {
        self.state = State::Up;
        self.event = Some(LinkEvent::Up);
        self.looked(now);
        now.since(self.since)
    }

    /// Whether it has been away for too long; said once an outage.
    pub(super) fn is_late(&mut self, now: Instant) -> Option<Duration> {
        let away = now.since(self.since);
        let late = !self.is_up() && !self.late_told && away >= self.late_after;
        self.late_told |= late;
        late.then_some(away)
    }

    /// The last change, if nobody has asked since.
    pub(super) fn poll_event(&mut self) -> Option<LinkEvent> {
        self.event.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(30);

    fn ms(n: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(n)
    }

    #[test]
    fn an_outage_is_told_at_its_beginning_its_end_and_when_it_is_long() {
        let mut device = Presence::new(LATE);
        assert!(device.away(ms(1000), false));
        assert!(!device.away(ms(1020), false), "no news");
        assert_eq!((device.poll_event(), device.poll_event()), (Some(LinkEvent::Down), None));
        assert!(device.away(ms(1040), true), "down is one thing, gone another");
        assert_eq!(device.poll_event(), None);
        assert_eq!(device.is_late(ms(30_999)), None);
        assert_eq!(device.is_late(ms(31_000)), Some(LATE));
        assert_eq!(device.is_late(ms(40_000)), None, "once");
        device.opening(ms(50_000));
        assert_eq!(device.up(ms(50_010)), Duration::from_millis(49_010));
        assert_eq!(device.poll_event(), Some(LinkEvent::Up));
        assert!(device.away(ms(60_000), true));
        assert_eq!(device.is_late(ms(90_000)), Some(LATE), "of this outage");
    }

    #[test]
    fn looks_are_paced_and_pauses_grow_to_their_bound() {
        let mut device = Presence::new(LATE);
        device.away(ms(0), true);
        assert_eq!(device.next_look(), ms(20));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            device.opening(ms(0));
            assert_eq!(device.next_look(), ms(2));
            device.failed(ms(0));
            pauses.push(device.next_look().since(ms(0)).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        device.up(ms(0));
        assert_eq!(device.next_look(), ms(100));
        device.away(ms(0), true);
        device.failed(ms(0));
        assert_eq!(device.next_look(), ms(100), "a new outage begins with short pauses");
    }
}
