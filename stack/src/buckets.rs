//! A histogram whose buckets are powers of two: cheap enough for every turn, exact enough to tell
//! microseconds from milliseconds. An array, no allocation.

use std::time::Duration;

/// Buckets: 0, 1, 2 to 3, 4 to 7, and so on; the last takes all that is larger.
const BUCKETS: usize = 32;

/// Counts of values by their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    counts: [u64; BUCKETS],
    max: u64,
}

impl Buckets {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.max = self.max.max(value);
    }

    /// Counts a time, in whole microseconds.
    pub fn record_us(&mut self, time: Duration) {
        self.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many values were counted.
    pub fn len(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The largest value.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// What the share `q` (0 to 1) of the values does not exceed: at most twice as much as is true.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = (q * self.len() as f64).ceil() as u64;
        let mut below = 0;
        for (most, count) in self.iter() {
            below += count;
            if below >= rank.max(1) {
                return most.min(self.max);
            }
        }
        0
    }

    /// The buckets up to the last that is not empty: the largest value of each, and its count.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let used = self.counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        let most = |bucket: usize| match bucket {
            0 => 0,
            bucket if bucket < BUCKETS - 1 => (1 << bucket) - 1,
            _ => u64::MAX,
        };
        self.counts[..used].iter().enumerate().map(move |(at, &count)| (most(at), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_powers_of_two() {
        let mut buckets = Buckets::default();
        assert!(buckets.is_empty() && buckets.iter().next().is_none());
        for value in [0, 1, 2, 3, 4, 7, 8, 1000] {
            buckets.record(value);
        }
        let all: Vec<_> = buckets.iter().collect();
        assert_eq!(all[..5], [(0, 1), (1, 1), (3, 2), (7, 2), (15, 1)]);
        assert_eq!((all.len(), all[10], buckets.max()), (11, (1023, 1), 1000));
        buckets.record(u64::MAX);
        assert_eq!(buckets.iter().last(), Some((u64::MAX, 1)));
        assert_eq!(buckets.len(), 9);
    }

    #[test]
    fn a_quantile_is_at_most_twice_as_much() {
        let mut buckets = Buckets::default();
        assert_eq!(buckets.quantile(0.5), 0);
        for value in 1..=1000 {
            buckets.record(value);
        }
        assert_eq!((buckets.quantile(0.5), buckets.quantile(0.99)), (511, 1000));
        assert_eq!((buckets.quantile(0.0), buckets.quantile(1.0)), (1, 1000));
    }

    #[test]
    fn a_time_is_counted_in_microseconds() {
        let mut buckets = Buckets::default();
        buckets.record_us(Duration::from_nanos(999));
        buckets.record_us(Duration::from_millis(3));
        assert_eq!((buckets.max(), buckets.quantile(0.5)), (3000, 0));
    }
}
