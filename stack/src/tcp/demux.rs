//! From a segment's endpoints to its connection's slot, by a keyed hash.
//!
//! The key is from the OS, so a peer cannot choose ports that collide.

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
pub(super) struct Demux(HashMap<Tuple, u32, Keyed>);

impl Demux {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self(HashMap::with_hasher(keyed))
    }

    pub(super) fn slot(&self, tuple: &Tuple) -> Option<u32> {
        self.0.get(tuple).copied()
    }

    pub(super) fn insert(&mut self, tuple: Tuple, slot: u32) {
        let old = self.0.insert(tuple, slot);
        assert!(old.is_none(), "two connections on {tuple:?}");
    }

    pub(super) fn remove(&mut self, tuple: &Tuple) {
        self.0.remove(tuple);
    }
}
