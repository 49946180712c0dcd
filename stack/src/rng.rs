//! A small seeded generator for simulated links and faults: the same seed gives the same run.
//!
//! SplitMix64 (Steele, Lea, Flood 2014). Not for anything that a peer must not guess.

use std::time::Duration;

/// A seeded stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that depends on nothing but `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub const fn below(&mut self, n: u64) -> u64 {
        ((self.bits() as u128 * n as u128) >> 64) as u64
    }

    /// True with probability `p`. Draws one number whatever `p` is, so that changing one
    /// probability does not move the draws behind it.
    pub fn chance(&mut self, p: f64) -> bool {
        // 53 bits: what an f64 holds exactly.
        ((self.bits() >> 11) as f64) < p * (1u64 << 53) as f64
    }

    /// A duration up to and including `max`.
    pub fn duration(&mut self, max: Duration) -> Duration {
        let max = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.below(max.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_are_those_of_the_reference_implementation() {
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.bits(), 6_457_827_717_110_365_317);
        assert_eq!(rng.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn chances_hold_at_their_ends() {
        let mut rng = Rng::new(1);
        assert!((0..1000).all(|_| rng.chance(1.0)));
        assert!((0..1000).all(|_| !rng.chance(0.0)));
        let hits = (0..100_000).filter(|_| rng.chance(0.01)).count();
        assert!((900..1100).contains(&hits), "{hits}");
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Rng::new(2);
        assert!((0..1000).all(|_| rng.below(3) < 3));
        assert_eq!(rng.below(0), 0);
        assert!(rng.duration(Duration::MAX) <= Duration::MAX);
    }
}
