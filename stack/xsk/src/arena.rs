//! One arena of I/O memory per reactor, on huge pages where there are any.
//!
//! It only ever hands memory out: an [`IoBuf`] owns its bytes alone, and the region is freed when
//! the arena and all its buffers are gone. Pools of buffers belong to those who use them.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// A region of zeroed memory, handed out front to back.
#[derive(Debug)]
pub struct Arena {
    region: Rc<Region>,
    used: usize,
}

#[derive(Debug)]
struct Region {
    len: usize,
}

/// A buffer for I/O: page aligned, owned, as long as asked for.
#[derive(Debug)]
pub struct IoBuf {
    bytes: Box<[u8]>, // placeholder until the huge-page region is in
    _region: Rc<Region>,
}

impl Arena {
    /// An arena of `len` bytes (rounded up to pages).
    pub fn new(len: usize) -> Self {
        Self { region: Rc::new(Region { len }), used: 0 }
    }

    /// The next `len` bytes (rounded up to pages), or `None` when the arena is used up.
    pub fn take(&mut self, len: usize) -> Option<IoBuf> {
        let rounded = len.next_multiple_of(4096);
        if self.used + rounded > self.region.len {
            return None;
        }
        self.used += rounded;
        Some(IoBuf { bytes: vec![0; len].into(), _region: self.region.clone() })
    }

    /// Whether the memory is on huge pages.
    pub fn is_huge(&self) -> bool {
        false
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
