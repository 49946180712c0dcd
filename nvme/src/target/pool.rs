//! The target's buffers: four sizes from one arena, taken when a transfer begins, returned when
//! it has ended. When a size is used up, commands wait; nothing is allocated.
//!
//! In-capsule data has a size of its own: such a buffer is held only while its data arrive and
//! the device works, so it always comes back, while the others may wait for their host.

use moorline_stack::mem::{Arena, IoBuf};

use super::TargetConfig;
use crate::limits::ADMIN_IN_CAPSULE_BYTES_MAX;

/// A size of buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// In-capsule data.
    InCapsule,
    /// 4 KiB.
    Small,
    /// 128 KiB.
    Medium,
    /// The largest transfer.
    Large,
}

const CLASSES: usize = 4;
const SMALL: usize = 4 << 10;
const MEDIUM: usize = 128 << 10;

/// The buffers that are free.
#[derive(Debug)]
pub(super) struct Pool {
    free: [Vec<IoBuf>; CLASSES],
    total: [usize; CLASSES],
    /// A buffer came back since this was cleared: those that wait may try again.
    pub returned: bool,
}

impl Pool {
    pub fn new(config: &TargetConfig) -> Self {
        let in_capsule = config.in_capsule_bytes.max(ADMIN_IN_CAPSULE_BYTES_MAX) as usize;
        let large = config.transfer_max() as usize;
        let sizes = [in_capsule, SMALL, MEDIUM, large];
        let total = [
            config.in_capsule_buffers,
            config.small_buffers,
            config.medium_buffers,
            if large > MEDIUM { config.large_buffers } else { 0 },
        ];
        let bytes = sizes.iter().zip(total).map(|(len, n)| len.next_multiple_of(4096) * n).sum();
        let mut arena = Arena::new(bytes);
        let mut class = |index: usize| -> Vec<IoBuf> {
            let buf = |_| arena.take(sizes[index]).expect("the arena is the sum of its buffers");
            (0..total[index]).map(buf).collect()
        };
        Self { free: [class(0), class(1), class(2), class(3)], total, returned: false }
    }

    /// The size for a transfer of `len` bytes.
    pub fn class_for(len: u32) -> Class {
        match len as usize {
            len if len <= SMALL => Class::Small,
            len if len <= MEDIUM => Class::Medium,
            _ => Class::Large,
        }
    }

    /// A buffer, if there is one.
    pub fn take(&mut self, class: Class) -> Option<IoBuf> {
        self.free[class as usize].pop()
    }

    /// A buffer comes back.
    pub fn put(&mut self, class: Class, buf: IoBuf) {
        let free = &mut self.free[class as usize];
        assert!(free.len() < self.total[class as usize], "a buffer came back twice");
        free.push(buf);
        self.returned = true;
    }

    /// Whether all buffers are home.
    #[cfg(test)]
    pub fn is_whole(&self) -> bool {
        self.free.iter().zip(self.total).all(|(free, total)| free.len() == total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_used_up_gives_none_until_one_comes_back() {
        let config = TargetConfig { small_buffers: 1, ..TargetConfig::default() };
        let mut pool = Pool::new(&config);
        let buf = pool.take(Class::Small).unwrap();
        assert!(buf.len() >= 4096 && pool.take(Class::Small).is_none() && !pool.is_whole());
        pool.put(Class::Small, buf);
        assert!(pool.is_whole());
        assert!(pool.take(Class::Large).unwrap().len() >= 1 << 20);
    }

    #[test]
    fn sizes_fit_their_transfers() {
        assert_eq!(Pool::class_for(512), Class::Small);
        assert_eq!(Pool::class_for(4096), Class::Small);
        assert_eq!(Pool::class_for(4097), Class::Medium);
        assert_eq!(Pool::class_for(128 << 10), Class::Medium);
        assert_eq!(Pool::class_for((128 << 10) + 512), Class::Large);
    }
}
