//! A controller's life over its connections: when it is tried again, and when no more. Pure.
//!
//! ```text
//! Waiting ─ attempt → Attempting ─ live → Live
//!    ↑ retry ─────────────┴───────────────┘      any ─ final, closed → Over
//! ```
//!
//! What always holds: the pause before an attempt is between `delay_min` and `delay_max`; the end
//! is told once, and so is the beginning of an outage.

use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::rng::Rng;
use moorline_stack::time::earliest;

use super::Reconnect;

/// Where a life stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LifeState {
    /// For its back-off (`until`), or for its address to be reachable (`None`).
    Waiting { until: Option<Instant> },
    /// The controller is being brought up.
    Attempting,
    /// The controller takes I/O, or is being shut down.
    Live,
    /// Failed for good, or closed.
    Over,
}

/// What the loss of a controller means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again; `tell`: the caller does not know yet.
    Retry { tell: bool },
    /// It is not.
    Final,
}

/// A controller's life.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub state: LifeState,
    /// Since when `state` is what it is.
    pub since: Instant,
    /// Attempts of this outage.
    pub attempts: u32,
    /// Times that it became live again.
    pub reconnects: u64,
    /// The caller wants the next attempt, whatever is known of the address.
    pub forced: bool,
    /// The next attempt has its place in the address's admission.
    pub admitted: bool,
    reconnect: Option<Reconnect>,
    was_live: bool,
    outage_since: Instant,
    told: bool,
    delay: Duration,
    rng: Rng,
}

impl Life {
    /// A life whose first attempt is due now.
    pub(super) fn new(now: Instant, reconnect: Option<Reconnect>, seed: u64) -> Self {
        Self {
            state: LifeState::Waiting { until: Some(now) },
            since: now,
            attempts: 0,
            reconnects: 0,
            forced: reconnect.is_none(),
            admitted: false,
            reconnect,
            was_live: false,
            outage_since: now,
            told: false,
            delay: Duration::ZERO,
            rng: Rng::new(seed),
        }
    }

    fn enter(&mut self, now: Instant, state: LifeState) {
        self.state = state;
        self.since = now;
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self, now: Instant) {
        assert!(self.is_waiting(), "an attempt begins when none is under way");
        self.attempts = self.attempts.saturating_add(1);
        self.forced = false;
        self.admitted = false;
        self.enter(now, LifeState::Attempting);
    }

    /// The attempt made it live.
    pub(super) fn live(&mut self, now: Instant) {
        self.reconnects += u64::from(self.was_live);
        self.was_live = true;
        self.attempts = 0;
        self.delay = Duration::ZERO;
        self.enter(now, LifeState::Live);
    }

    /// The attempt failed, or the live controller was lost.
    pub(super) fn lost(&mut self, now: Instant, retryable: bool) -> Verdict {
        self.outage(now);
        let Some(reconnect) = self.reconnect.filter(|_| retryable && !self.is_too_long(now)) else {
            self.enter(now, LifeState::Over);
            return Verdict::Final;
        };
        let tell = !std::mem::replace(&mut self.told, true);
        let until = now + self.next_delay(&reconnect);
        self.enter(now, LifeState::Waiting { until: Some(until) });
        Verdict::Retry { tell }
    }

    /// Begins an outage, if it was live.
    fn outage(&mut self, now: Instant) {
        if self.state == LifeState::Live {
            self.outage_since = now;
            self.told = false;
        }
    }

    /// Decorrelated jitter: between the least pause and three times the last one.
    fn next_delay(&mut self, reconnect: &Reconnect) -> Duration {
        let Reconnect { delay_min, delay_max, .. } = *reconnect;
        let last = self.delay.max(delay_min);
        let spread = (last * 3).saturating_sub(delay_min);
        self.delay = (delay_min + self.rng.duration(spread)).min(delay_max);
        self.delay
    }

    /// The caller wants it dropped and tried again at once.
    pub(super) fn reset(&mut self, now: Instant) {
        self.outage(now);
        self.forced = true;
        self.admitted = false;
        self.delay = Duration::ZERO;
        self.enter(now, LifeState::Waiting { until: Some(now) });
    }

    /// Moves a waiting life's next attempt.
    pub(super) fn wait_until(&mut self, until: Option<Instant>) {
        if self.is_waiting() {
            self.state = LifeState::Waiting { until };
        }
    }

    /// Other times to try again, also for the back-off that runs. Who is not tried again stays so.
    pub(super) fn set_reconnect(&mut self, now: Instant, reconnect: Option<Reconnect>) {
        let Some(new) = reconnect.filter(|_| self.reconnect.is_some()) else { return };
        self.reconnect = Some(new);
        let back_off = LifeState::Waiting { until: Some(self.since + self.delay) };
        if self.state == back_off && !self.forced && !self.admitted {
            self.delay = self.delay.clamp(new.delay_min, new.delay_max);
            let until = (self.since + self.delay).max(now);
            self.state = LifeState::Waiting { until: Some(until) };
        }
    }

    /// It is being shut down: whatever ends it now is final.
    pub(super) fn last(&mut self) {
        self.reconnect = None;
    }

    /// It ends as the caller asked.
    pub(super) fn closed(&mut self, now: Instant) {
        self.enter(now, LifeState::Over);
    }

    /// When to do something: try again, or give up.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            LifeState::Waiting { until } => earliest(until, self.loss_deadline()),
            LifeState::Attempting => self.loss_deadline(),
            LifeState::Live | LifeState::Over => None,
        }
    }

    /// When the outage has lasted too long.
    pub(super) fn loss_deadline(&self) -> Option<Instant> {
        let after = self.reconnect?.ctrl_loss?;
        Some(self.outage_since + after)
    }

    /// Whether the outage has lasted too long.
    pub(super) fn is_too_long(&self, now: Instant) -> bool {
        self.loss_deadline().is_some_and(|deadline| deadline <= now)
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, LifeState::Waiting { .. })
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == LifeState::Over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(1_000_000_000);

    fn life() -> Life {
        Life::new(START, Some(Reconnect::default()), 1)
    }

    /// A life in the state of that name.
    fn in_state(name: &str) -> Life {
        let mut life = life();
        if name != "waiting" {
            life.attempt(START);
        }
        match name {
            "live" => life.live(START),
            "over" => life.closed(START),
            _ => {}
        }
        life
    }

    #[test]
    fn every_state_takes_every_event_that_can_happen_in_it() {
        type Event = fn(&mut Life);
        let events: [(&str, Event); 7] = [
            ("attempt", |life| life.attempt(START)),
            ("live", |life| life.live(START)),
            ("lost", |life| _ = life.lost(START, true)),
            ("refused", |life| _ = life.lost(START, false)),
            ("reset", |life| life.reset(START)),
            ("park", |life| life.wait_until(None)),
            ("closed", |life| life.closed(START)),
        ];
        let possible = |state: &str, event: &str| match state {
            "waiting" => !matches!(event, "live"),
            "attempting" => event != "attempt",
            "live" => !matches!(event, "attempt" | "live"),
            _ => matches!(event, "park" | "closed"),
        };
        let mut table = String::new();
        for state in ["waiting", "attempting", "live", "over"] {
            for (name, event) in events {
                if possible(state, name) {
                    let mut life = in_state(state);
                    event(&mut life);
                    let after = match life.state {
                        LifeState::Waiting { until: None } => "parked".to_owned(),
                        LifeState::Waiting { until: Some(at) } if at == START => "due".to_owned(),
                        LifeState::Waiting { .. } => "backing off".to_owned(),
                        state => format!("{state:?}").to_lowercase(),
                    };
                    table += &format!("{state} + {name} = {after}\n");
                }
            }
        }
        let expected = "\
waiting + attempt = attempting
waiting + lost = backing off
waiting + refused = over
waiting + reset = due
waiting + park = parked
waiting + closed = over
attempting + live = live
attempting + lost = backing off
attempting + refused = over
attempting + reset = due
attempting + park = attempting
attempting + closed = over
live + lost = backing off
live + refused = over
live + reset = due
live + park = live
live + closed = over
over + park = over
over + closed = over
";
        assert_eq!(table, expected);
    }

    #[test]
    fn pauses_grow_and_stay_within_their_bounds() {
        let mut sums = [Duration::ZERO; 20];
        for seed in 0..100 {
            let mut life = Life::new(START, Some(Reconnect::default()), seed);
            for sum in &mut sums {
                life.attempt(START);
                life.lost(START, true);
                let LifeState::Waiting { until: Some(at) } = life.state else { panic!() };
                let pause = at - START;
                assert!(pause >= Duration::from_millis(20) && pause <= Duration::from_secs(2));
                *sum += pause;
            }
        }
        assert!(sums[0] < sums[2] && sums[2] < sums[5] && sums[5] < sums[15], "{sums:?}");
    }

    #[test]
    fn an_outage_is_told_once_and_ends_for_good_when_too_long() {
        let mut life = life();
        life.attempt(START);
        life.live(START);
        let lost_at = START + Duration::from_secs(1000);
        assert_eq!(life.lost(lost_at, true), Verdict::Retry { tell: true });
        life.attempt(lost_at);
        let late = lost_at + Duration::from_secs(599);
        assert_eq!(life.lost(late, true), Verdict::Retry { tell: false });
        life.wait_until(None);
        assert_eq!(life.poll_timeout(), Some(lost_at + Duration::from_secs(600)));
        life.attempt(late);
        assert_eq!(life.poll_timeout(), Some(lost_at + Duration::from_secs(600)));
        assert_eq!(life.lost(late + Duration::from_secs(1), true), Verdict::Final);
    }

    #[test]
    fn without_reconnect_the_first_failure_is_final() {
        let mut life = Life::new(START, None, 1);
        assert_eq!(life.poll_timeout(), Some(START));
        life.attempt(START);
        assert_eq!(life.lost(START, true), Verdict::Final);
    }
}
