//! From a segment's endpoints to its connection's slot, by a keyed hash.
//!
//! The key is from the OS, so a peer cannot choose ports that collide.
#![allow(clippy::disallowed_types, reason = "keyed, and nothing iterates")]

use std::collections::HashMap;
use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

use crate::segment::Tuple;

/// A key for hashing what peers choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed(pub [u64; 2]);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// Live connections by tuple.
pub(super) struct Demux {
    slots: HashMap<Tuple, u32, Keyed>,
    /// The one asked for last: segments come in bursts of one connection.
    last: Option<(Tuple, u32)>,
}

impl Demux {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self { slots: HashMap::with_hasher(keyed), last: None }
    }

    pub(super) fn slot(&mut self, tuple: &Tuple) -> Option<u32> {
        if self.last.is_none_or(|(last, _)| last != *tuple) {
            self.last = self.slots.get(tuple).map(|&slot| (*tuple, slot));
        }
        self.last.map(|(_, slot)| slot)
    }

    pub(super) fn insert(&mut self, tuple: Tuple, slot: u32) {
        let old = self.slots.insert(tuple, slot);
        assert!(old.is_none(), "two connections on {tuple:?}");
    }

    pub(super) fn remove(&mut self, tuple: &Tuple) {
        self.slots.remove(tuple);
        self.last = None;
    }
}
