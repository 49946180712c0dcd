//! A token bucket: how often something may be done, with a burst.
//!
//! Time is counted in nanoseconds that have been earned and not yet spent, so that no rate is
//! rounded away.

use crate::Instant;

/// A rate limit.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Nanoseconds that one token costs.
    cost: u64,
    /// Nanoseconds that can be saved up.
    capacity: u64,
    saved: u64,
    last: Instant,
}

impl TokenBucket {
    /// `per_second` tokens a second, at most `burst` at once; starts full.
    ///
    /// # Panics
    /// When either is 0.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        assert!(per_second > 0 && burst > 0, "a bucket that gives nothing");
        let cost = 1_000_000_000 / per_second as u64;
        let capacity = cost * burst as u64;
        Self { cost, capacity, saved: capacity, last: Instant::ZERO }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let earned = u64::try_from(now.since(self.last).as_nanos()).unwrap_or(u64::MAX);
        self.last = self.last.max(now);
        self.saved = self.saved.saturating_add(earned).min(self.capacity);
        if self.saved < self.cost {
            return false;
        }
        self.saved -= self.cost;
        true
    }
}

impl Default for TokenBucket {
    /// For answers that anyone can provoke (RST, ICMP): 1,000 a second, 64 at once.
    fn default() -> Self {
        Self::new(1000, 64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate() {
        let mut bucket = TokenBucket::default();
        let start = Instant::from_nanos(5);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 64);
        assert!(!bucket.take(start + Duration::from_nanos(999_999)));
        assert!(bucket.take(start + Duration::from_millis(1)));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 64);
    }

    #[test]
    fn over_a_second_the_rate_holds() {
        let mut bucket = TokenBucket::default();
        let granted =
            (0..1_000_000u64).filter(|&us| bucket.take(Instant::from_nanos(us * 1000))).count();
        assert!((1060..=1064).contains(&granted), "{granted}");
    }
}
