//! The clock of one connection's TCP: affine in real time, `base + (now - since) * factor`.
//!
//! smoltcp's timers are constants (RTO at least 1 s, SYN again after 1, 3, 7 s), but each socket
//! lives in the time it is handed. A clock that runs `factor` times faster divides them all. Its
//! readings never go back, also over a change of the factor.

use std::time::Duration;

use smoltcp::time::Instant as TcpInstant;

use crate::Instant;

/// The factor until a connection is established: SYN at 0, 50, 150, 350, 750 ms.
pub(super) const HANDSHAKE_FACTOR: u32 = 20;

/// smoltcp's `RTTE_MAX_RTO`, in TCP time.
pub(super) const RTO_MAX_US: i64 = 60_000_000;

/// An affine clock with microseconds as its unit, as smoltcp has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base_us: i64,
    since: Instant,
    factor: u64,
}

impl Clock {
    /// A clock that starts at `now`. Its reading starts at 1 s, as smoltcp takes 0 for "at once".
    pub(super) fn new(now: Instant, factor: u32) -> Self {
        assert!(factor > 0);
        Self { base_us: 1_000_000, since: now, factor: factor.into() }
    }

    /// Goes on with another factor, without a jump.
    pub(super) fn set_factor(&mut self, now: Instant, factor: u32) {
        assert!(factor > 0);
        *self = Self { base_us: self.at(now).total_micros(), since: now, factor: factor.into() };
    }

    /// Jumps forward to the reading `at_us`, if it has not passed.
    pub(super) fn advance(&mut self, now: Instant, at_us: i64) {
        let base_us = self.at(now).total_micros().max(at_us);
        *self = Self { base_us, since: now, ..*self };
    }

    /// The reading at `now`.
    pub(super) fn at(&self, now: Instant) -> TcpInstant {
        let nanos = now.as_nanos().saturating_sub(self.since.as_nanos());
        let us = match nanos.checked_mul(self.factor) {
            Some(scaled) => scaled / 1000,
            None => (u128::from(nanos) * u128::from(self.factor) / 1000) as u64,
        };
        TcpInstant::from_micros(self.base_us + us as i64)
    }

    /// How long it takes to advance by `us`, to the microsecond.
    pub(super) fn length(&self, us: i64) -> Duration {
        Duration::from_micros(us.max(0) as u64 / self.factor)
    }

    /// The first real instant at which the clock reads `at` or more.
    pub(super) fn real(&self, at: TcpInstant) -> Instant {
        let us = u128::from(at.total_micros().saturating_sub(self.base_us).max(0) as u64);
        let nanos = (us * 1000).div_ceil(u128::from(self.factor));
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        Instant::from_nanos(self.since.as_nanos().saturating_add(nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn deadline_is_the_first_instant_that_reads_it(
            since in 0..1u64 << 50, factor in 1..2000u32, us in 0..1i64 << 40
        ) {
            let clock = Clock::new(Instant::from_nanos(since), factor);
            let at = TcpInstant::from_micros(1_000_000 + us);
            let real = clock.real(at);
            prop_assert!(clock.at(real) >= at);
            if real.as_nanos() > since {
                prop_assert!(clock.at(Instant::from_nanos(real.as_nanos() - 1)) < at);
            }
        }

        #[test]
        fn never_goes_back_when_the_factor_changes(
            first in 0..1u64 << 50, later in 0..1u64 << 50, factor in 1..2000u32
        ) {
            let mut clock = Clock::new(Instant::ZERO, HANDSHAKE_FACTOR);
            let now = Instant::from_nanos(first);
            let before = clock.at(now);
            clock.set_factor(now, factor);
            prop_assert_eq!(clock.at(now), before);
            prop_assert!(clock.at(now + Duration::from_nanos(later)) >= before);
        }
    }

    #[test]
    fn a_skip_goes_forward_only_and_changes_no_rate() {
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut clock = Clock::new(at(0), 20);
        let reading = TcpInstant::from_micros;
        clock.advance(at(10), 5);
        assert_eq!(clock.at(at(10)), reading(1_200_000));
        clock.advance(at(10), 9_000_000);
        assert_eq!(clock.at(at(10)), reading(9_000_000));
        assert_eq!(clock.at(at(20)), reading(9_200_000));
    }

    #[test]
    fn years_do_not_overflow() {
        let clock = Clock::new(Instant::ZERO, 1000);
        let year = Duration::from_secs(365 * 86_400);
        assert_eq!(
            clock.at(Instant::ZERO + year * 10).total_micros(),
            1_000_000 + 10 * 365 * 86_400 * 1_000_000_000
        );
    }
}
