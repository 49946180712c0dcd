//! One arena of I/O memory per reactor, on huge pages where there are any.
//!
//! It only ever hands memory out: an [`IoBuf`] owns its bytes alone, and the region is freed when
//! the arena and all its buffers are gone. Pools of buffers belong to those who use them.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;
use std::sync::Once;

use crate::huge;

/// What lengths are rounded up to, and buffers aligned to.
const PAGE: usize = 4096;

/// From now on large allocations of this process, buffers of connections among them, are mappings
/// of their own: they take memory only where they are touched, and give it back when freed. Left
/// to itself, glibc reuses what the first large one left, and clears it: with a thousand
/// controllers of 256 KiB buffers, 1 GiB after the first outage. Costs a few system calls for each
/// connection.
pub fn map_large_allocations() {
    /// glibc's own threshold, which it raises as large allocations are freed unless it is set.
    #[cfg(target_env = "gnu")]
    const LARGE: libc::c_int = 128 << 10;
    #[cfg(target_env = "gnu")]
    // SAFETY: this sets a parameter of the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// A region of zeroed memory, handed out front to back. It takes memory only where it is touched.
#[derive(Debug)]
pub struct Arena {
    region: Rc<Region>,
    used: usize,
}

/// A buffer for I/O: page aligned, owned, as long as asked for.
///
/// Invariant: `len` bytes from `start` lie in `region`, and in no other buffer.
pub struct IoBuf {
    start: NonNull<u8>,
    len: usize,
    region: Rc<Region>,
}

/// Memory of `layout` at `start`, zeroed, from `hugepage-rs` or (`!huge`) from `mmap`.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    layout: Layout,
    huge: bool,
}

impl Arena {
    /// An arena of `len` bytes (rounded up to pages).
    ///
    /// # Panics
    /// When the address space is used up.
    pub fn new(len: usize) -> Self {
        Self { region: Rc::new(Region::new(len)), used: 0 }
    }

    /// The same without the machine's reserve of huge pages, which is for I/O: for what holds data.
    pub fn unreserved(len: usize) -> Self {
        Self { region: Rc::new(Region::unreserved(len)), used: 0 }
    }

    /// The next `len` bytes (rounded up to pages), or `None` when the arena is used up.
    pub fn take(&mut self, len: usize) -> Option<IoBuf> {
        let rounded = len.checked_next_multiple_of(PAGE)?;
        if rounded > self.region.layout.size() - self.used {
            return None;
        }
        // SAFETY: within the region, as just checked.
        let start = unsafe { self.region.start.add(self.used) };
        self.used += rounded; // no other buffer will get these bytes
        Some(IoBuf { start, len, region: self.region.clone() })
    }

    /// Whether the memory is on huge pages.
    pub fn is_huge(&self) -> bool {
        self.region.huge
    }
}

impl Region {
    fn layout(len: usize) -> Layout {
        let len = len.max(1).next_multiple_of(PAGE);
        Layout::from_size_align(len, PAGE).expect("a length that memory can have")
    }

    fn unreserved(len: usize) -> Self {
        let layout = Self::layout(len);
        Self { start: map(layout.size()), layout, huge: false }
    }

    fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        let len = layout.size();
        if len < huge::WORTH_BYTES {
            return Self::unreserved(len);
        }
        // Asked only when it can be granted: the allocator panics on a kernel without huge pages.
        if huge::page_size_if_free(len).is_some() {
            // SAFETY: the layout is not of size zero.
            let start = unsafe { hugepage_rs::alloc(layout) };
            if let Some(start) = NonNull::new(start) {
                return Self { start, layout, huge: true };
            }
        }
        static SAID: Once = Once::new();
        huge::warn_missing(&SAID, "I/O memory", len);
        Self::unreserved(len)
    }
}

/// Anonymous memory, transparently huge where the kernel likes.
fn map(len: usize) -> NonNull<u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    assert!(start != libc::MAP_FAILED, "no address space for {len} bytes of I/O memory");
    // SAFETY: advice on the mapping just made; it changes no contents.
    let _ = unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
    NonNull::new(start.cast()).expect("mmap does not map at zero")
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.huge {
            // SAFETY: allocated there, with this layout; no buffer is left (each holds the `Rc`).
            unsafe { hugepage_rs::dealloc(self.start.as_ptr(), self.layout) };
        } else {
            // SAFETY: mapped by `map` with this length; no buffer is left (each holds the `Rc`).
            let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.layout.size()) };
        }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: by the invariant of `IoBuf`; the memory is initialised (zeroed by the kernel).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only way to these bytes.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf").field("len", &self.len).field("huge", &self.region.huge).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_page_aligned_and_apart() {
        let mut arena = Arena::new(3 * PAGE);
        let mut a = arena.take(PAGE + 1).unwrap();
        let b = arena.take(100).unwrap();
        assert_eq!((a.len(), b.len()), (PAGE + 1, 100));
        assert_eq!((a.as_ptr() as usize % PAGE, b.as_ptr() as usize % PAGE), (0, 0));
        a.fill(0xff);
        assert!(b.iter().all(|&byte| byte == 0));
        assert!(arena.take(1).is_none());
    }

    #[test]
    fn less_than_a_huge_page_takes_none() {
        assert!(!Arena::new(huge::WORTH_BYTES - PAGE).is_huge());
    }

    #[test]
    fn a_buffer_outlives_its_arena() {
        let mut arena = Arena::new(PAGE);
        let mut buf = arena.take(PAGE).unwrap();
        drop(arena);
        buf[PAGE - 1] = 7;
        assert_eq!(buf[PAGE - 1], 7);
    }

    #[test]
    fn lengths_near_overflow_are_refused() {
        let mut arena = Arena::new(1);
        assert!(arena.take(usize::MAX).is_none());
        assert!(arena.take(usize::MAX - PAGE).is_none());
        assert_eq!(arena.take(0).unwrap().len(), 0);
    }

    #[test]
    fn memory_is_taken_only_where_it_is_touched() {
        // More than the machine has: it would be refused, or fail, if it were populated.
        let mut arena = Arena::new(1 << 37);
        let mut buf = arena.take(1 << 36).unwrap();
        buf[(1 << 36) - 1] = 1;
    }
}
