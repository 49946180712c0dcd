//! How much is logged of what happens: so many lines a second, whatever happens; what is more is
//! counted, and the count told.

use std::time::Duration;

use moorline_stack::Instant;

/// Log lines in a second.
const LOGS_PER_S: u32 = 64;

/// How much was logged in this second.
#[derive(Debug, Default)]
pub struct Log {
    since: Instant,
    logged: u32,
    held_back: u64,
}

impl Log {
    /// Whether one more line may be logged now.
    pub fn allows(&mut self, now: Instant) -> bool {
        self.turn(now);
        let allowed = self.logged < LOGS_PER_S;
        self.logged += u32::from(allowed);
        self.held_back += u64::from(!allowed);
        allowed
    }

    /// Begins another second when the last is over, and tells what was held back in it.
    pub fn turn(&mut self, now: Instant) {
        if now.since(self.since) < Duration::from_secs(1) {
            return;
        }
        if self.held_back > 0 {
            tracing::warn!(events = self.held_back, "more happened than is logged");
        }
        *self = Self { since: now, logged: 0, held_back: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_log_lines() {
        let mut log = Log::default();
        let now = Instant::ZERO + Duration::from_secs(9);
        let allowed = (0..100).filter(|_| log.allows(now)).count();
        assert_eq!((allowed, log.held_back), (64, 36));
        assert!(log.allows(now + Duration::from_secs(1)));
        assert_eq!(log.held_back, 0);
    }
}
