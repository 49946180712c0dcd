//! A byte ring of fixed capacity: written at one end, parsed in place at the other.
//!
//! When it runs empty it starts again at its beginning, so that small exchanges stay in one piece
//! and in the same cache lines.

/// A ring of bytes.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: Box<[u8]>,
    /// Index of the oldest byte.
    head: usize,
    len: usize,
}

impl Ring {
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), head: 0, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    pub fn clear(&mut self) {
        (self.head, self.len) = (0, 0);
    }

    /// What is in the ring, oldest first; the second part is empty unless it wraps.
    pub fn filled(&self) -> (&[u8], &[u8]) {
        let end = self.head + self.len;
        match end.checked_sub(self.bytes.len()) {
            None | Some(0) => (&self.bytes[self.head..end], &[]),
            Some(wrapped) => (&self.bytes[self.head..], &self.bytes[..wrapped]),
        }
    }

    /// The next free bytes in one piece: all of them, unless they wrap.
    pub fn free(&mut self) -> &mut [u8] {
        let tail = self.head + self.len;
        match tail.checked_sub(self.bytes.len()) {
            None => &mut self.bytes[tail..],
            Some(tail) => &mut self.bytes[tail..self.head],
        }
    }

    /// Says that the first `n` bytes of [`Ring::free`] were written.
    pub fn fill(&mut self, n: usize) {
        assert!(n <= self.room(), "ring filled beyond its room");
        self.len += n;
    }

    /// Says that the oldest `n` bytes are done with.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len, "ring consumed beyond its content");
        self.len -= n;
        self.head += n;
        if self.head >= self.bytes.len() {
            self.head -= self.bytes.len();
        }
        if self.len == 0 {
            self.head = 0;
        }
    }

    /// Copies in as many of `bytes` as there is room for; returns how many.
    pub fn push(&mut self, mut bytes: &[u8]) -> usize {
        let mut pushed = 0;
        // Twice at most: up to the end, and from the beginning.
        while !bytes.is_empty() && self.room() > 0 {
            let free = self.free();
            let n = free.len().min(bytes.len());
            free[..n].copy_from_slice(&bytes[..n]);
            self.fill(n);
            bytes = &bytes[n..];
            pushed += n;
        }
        pushed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_an_oracle(
            capacity in 1usize..20,
            ops in proptest::collection::vec((any::<bool>(), 0usize..25), 0..200),
        ) {
            let mut ring = Ring::new(capacity);
            let mut oracle = VecDeque::new();
            let mut next = 0u8;
            for (push, n) in ops {
                if push {
                    let bytes: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                    let pushed = ring.push(&bytes);
                    prop_assert_eq!(pushed, n.min(capacity - oracle.len()));
                    oracle.extend(&bytes[..pushed]);
                    next = next.wrapping_add(pushed as u8);
                } else {
                    let n = n.min(ring.len());
                    ring.consume(n);
                    oracle.drain(..n);
                }
                let (first, second) = ring.filled();
                prop_assert!([first, second].concat().iter().eq(oracle.iter()));
                prop_assert_eq!(ring.room(), capacity - oracle.len());
            }
        }
    }
}
