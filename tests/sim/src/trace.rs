//! What happened, in order: folded into a hash that two runs of a seed must share, and written to
//! standard error where that is asked for.

use std::fmt;

use moorline_stack::Instant;

/// FNV-1a, 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The record of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    print: bool,
}

impl Trace {
    /// An empty one; `print`: each event becomes a line.
    pub fn new(print: bool) -> Self {
        Self { hash: OFFSET, events: 0, print }
    }

    /// Of all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// An event that is rare enough to be told in words.
    pub fn tell(&mut self, now: Instant, who: impl fmt::Display, what: fmt::Arguments<'_>) {
        self.fold(&now.as_nanos().to_le_bytes());
        // Words go through the hash as they are formatted: nothing is allocated.
        let _ = fmt::Write::write_fmt(self, format_args!("{who} {what}"));
        self.events += 1;
        if self.print {
            eprintln!("{now:?} {who}: {what}");
        }
    }

    /// An event of the I/O path: numbers, and words for who reads them.
    pub fn io(&mut self, now: Instant, numbers: [u64; 3], words: impl Fn() -> String) {
        for number in [now.as_nanos(), numbers[0], numbers[1], numbers[2]] {
            self.fold(&number.to_le_bytes());
        }
        self.events += 1;
        if self.print {
            eprintln!("{now:?} {}", words());
        }
    }

    fn fold(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
}

impl fmt::Write for Trace {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.fold(s.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_time_words_and_order() {
        let hash = |times: [u64; 2], words: [&str; 2]| {
            let mut trace = Trace::new(false);
            for (at, words) in times.into_iter().zip(words) {
                trace.tell(Instant::from_nanos(at), "host", format_args!("{words}"));
            }
            trace.hash()
        };
        let one = hash([1, 2], ["a", "b"]);
        assert_eq!(one, hash([1, 2], ["a", "b"]));
        assert_ne!(one, hash([1, 3], ["a", "b"]));
        assert_ne!(one, hash([1, 2], ["b", "a"]));
    }
}
