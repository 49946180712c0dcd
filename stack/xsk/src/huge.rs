//! Which huge pages the machine has free, so that nobody asks in vain.

use std::fs;
use std::sync::Once;

/// The smallest memory that huge pages are worth it for: one of the usual size.
pub(crate) const WORTH_BYTES: usize = 2 << 20;

/// Whether `bytes` fit the free huge pages of the default size; their size if so.
pub(crate) fn page_size_if_free(bytes: usize) -> Option<usize> {
    fits(&fs::read_to_string("/proc/meminfo").ok()?, bytes)
}

/// Says that plain pages do for `bytes` of `what`: once for each `said`, as one process can have
/// hundreds.
pub(crate) fn warn_missing(said: &Once, what: &str, bytes: usize) {
    said.call_once(|| {
        tracing::warn!(
            "not enough free huge pages for {} KiB of {what}, using plain pages (said once): \
             `sysctl vm.nr_hugepages` sets how many there are",
            bytes >> 10
        );
    });
}

fn fits(meminfo: &str, bytes: usize) -> Option<usize> {
    let number = |key: &str| -> Option<usize> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let size = number("Hugepagesize:")?.checked_mul(1024).filter(|&size| size > 0)?;
    // Reserved pages are free, but promised to others.
    let free = number("HugePages_Free:")?.saturating_sub(number("HugePages_Rsvd:").unwrap_or(0));
    (bytes.div_ceil(size) <= free).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 8 kB\nHugePages_Total:       5\nHugePages_Free:        4\n\
                           HugePages_Rsvd:        1\nHugepagesize:       2048 kB\n";

    #[test]
    fn reserved_pages_are_not_free() {
        assert_eq!(fits(MEMINFO, 3 * (2 << 20)), Some(2 << 20));
        assert_eq!(fits(MEMINFO, 3 * (2 << 20) + 1), None);
    }

    #[test]
    fn a_kernel_without_huge_pages_has_none() {
        assert_eq!(fits("MemTotal: 8 kB\n", 1), None);
        assert_eq!(fits("", 1), None);
    }
}
