//! What a run does: fio's words for it, the order of its I/Os, and the pattern it writes.
//!
//! Everything follows from the seed: two runs with one seed issue the same I/Os per qpair. An I/O
//! is one aligned slot of `bs` bytes within the region; slots are named by index. What a block
//! holds depends on its LBA and the seed alone, so writes under way to one block never disagree.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use moorline_stack::rng::Rng;
use serde::Serialize;

/// fio's `--rw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential, reads and writes mixed.
    Rw,
    /// Random, reads and writes mixed.
    RandRw,
}

impl Rw {
    /// fio's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Rw => "rw",
            Self::RandRw => "randrw",
        }
    }

    /// Whether slots are drawn at random.
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Whether any I/O is a write.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::RandRead)
    }

    /// Share of reads, percent, given `--rwmixread`.
    pub const fn read_percent(self, mix: u8) -> u8 {
        match self {
            Self::Read | Self::RandRead => 100,
            Self::Write | Self::RandWrite => 0,
            Self::Rw | Self::RandRw => mix,
        }
    }
}

/// A size in bytes, written as fio does: `4096`, `4k`, `128k`, `1m`, `1g` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let unit = lower.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = &lower[..lower.len() - unit.len()];
        let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => bail!("size {text:?}: want a number with k, m, g or t, such as 4k"),
        };
        match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)) {
            Some(n) => Ok(Self(n)),
            None => bail!("size {text:?}: want a number with k, m, g or t, such as 4k"),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(s, _)| self.0 > 0 && self.0.is_multiple_of(1 << s)) {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A time, written as fio does: seconds, or with `s`, `ms`, `us`, `m`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().unwrap_or(-1.0);
    let scale = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" => 60.0,
        _ => -1.0,
    };
    ensure!(
        (0.0..=1e6).contains(&number) && scale > 0.0,
        "time {text:?}: want seconds, or a number with ms, s or m"
    );
    Ok(Duration::from_secs_f64(number * scale))
}

/// A run, in fio's terms.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What to do.
    pub rw: Rw,
    /// Bytes per I/O.
    pub bs: u32,
    /// I/Os under way per qpair.
    pub iodepth: u16,
    /// Share of reads in a mixed run, percent.
    pub rwmixread: u8,
    /// How long to measure.
    pub runtime: Duration,
    /// How long to run before measuring.
    pub ramp: Duration,
    /// Start of the region, bytes from the start of the namespace.
    pub offset: u64,
    /// Length of the region, bytes; `None`: to the end of the namespace.
    pub size: Option<u64>,
    /// End after this many measured I/Os, if before `runtime`.
    pub ios_max: Option<u64>,
    /// Write the pattern and check it.
    pub verify: bool,
    /// From which all else follows.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            rw: Rw::RandRead,
            bs: 4096,
            iodepth: 1,
            rwmixread: 50,
            runtime: Duration::from_secs(5),
            ramp: Duration::ZERO,
            offset: 0,
            size: None,
            ios_max: None,
            verify: false,
            seed: 1,
        }
    }
}

impl Workload {
    /// The region on a namespace of `blocks` blocks of `block_size` bytes.
    ///
    /// # Errors
    /// When the sizes do not fit the namespace; the message says which.
    pub fn region(&self, blocks: u64, block_size: u32) -> Result<Region> {
        let capacity = blocks * u64::from(block_size);
        ensure!(
            self.bs > 0 && self.bs.is_multiple_of(block_size),
            "--bs {} is not a multiple of the namespace's block size, {block_size}",
            self.bs
        );
        ensure!(
            self.offset.is_multiple_of(u64::from(block_size)),
            "--offset {} is not a multiple of the namespace's block size, {block_size}",
            self.offset
        );
        let rest = capacity.saturating_sub(self.offset);
        let size = self.size.unwrap_or(rest);
        ensure!(
            size <= rest,
            "--offset {} and --size {size} end beyond the namespace of {capacity} bytes",
            self.offset
        );
        let slots = size / u64::from(self.bs);
        ensure!(slots > 0, "the region of {size} bytes holds no I/O of --bs {} bytes", self.bs);
        Ok(Region {
            first_lba: self.offset / u64::from(block_size),
            slots,
            blocks_per_slot: self.bs / block_size,
        })
    }
}

/// Where a run's I/Os fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First block.
    pub first_lba: u64,
    /// I/O slots in it.
    pub slots: u64,
    /// Blocks per slot.
    pub blocks_per_slot: u32,
}

impl Region {
    /// First block of a slot.
    pub const fn lba(&self, slot: u64) -> u64 {
        self.first_lba + slot * self.blocks_per_slot as u64
    }
}

/// One I/O of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whether it is a read.
    pub read: bool,
    /// Its slot in the region.
    pub slot: u64,
}

/// One qpair's I/Os, in order.
#[derive(Clone, Debug)]
pub struct Steps {
    rng: Rng,
    random: bool,
    read_percent: u64,
    slots: u64,
    next: u64,
}

impl Steps {
    /// Those of qpair `index` of `qpairs`. Sequential ones start evenly spread over the region.
    pub fn new(workload: &Workload, region: &Region, index: u16, qpairs: u16) -> Self {
        Self {
            rng: Rng::new(mix(workload.seed) ^ u64::from(index)),
            random: workload.rw.is_random(),
            read_percent: u64::from(workload.rw.read_percent(workload.rwmixread)),
            slots: region.slots,
            next: region.slots * u64::from(index) / u64::from(qpairs.max(1)),
        }
    }

    /// The next I/O.
    pub const fn next(&mut self) -> Step {
        let read = match self.read_percent {
            0 => false,
            100 => true,
            percent => self.rng.below(100) < percent,
        };
        let slot = if self.random { self.rng.below(self.slots) } else { self.next };
        self.next = if slot + 1 == self.slots { 0 } else { slot + 1 };
        Step { read, slot }
    }
}

/// What blocks hold: word `i` of block `lba` is `mix(seed, lba) + i · STEP`.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
    block_size: usize,
}

/// A word that is not what the pattern says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The block.
    pub lba: u64,
    /// The byte in the block where the first wrong word starts.
    pub offset: usize,
    /// What should be there, as it would be read (little endian).
    pub expected: u64,
    /// What is there.
    pub got: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "LBA {} offset {}: expected {:016x}, got {:016x}",
            self.lba, self.offset, self.expected, self.got
        )
    }
}

/// Odd, so that no two words of a block are equal.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads a value over 64 bits (the finaliser of splitmix64).
const fn mix(value: u64) -> u64 {
    Rng::new(value).bits()
}

impl Pattern {
    /// That of a seed, for blocks of `block_size` bytes.
    pub const fn new(seed: u64, block_size: u32) -> Self {
        Self { seed: mix(seed), block_size: block_size as usize }
    }

    /// Fills whole blocks, from `lba` on.
    pub fn fill(&self, lba: u64, bytes: &mut [u8]) {
        for (block, lba) in bytes.chunks_exact_mut(self.block_size).zip(lba..) {
            let mut word = mix(self.seed ^ lba);
            for out in block.as_chunks_mut::<8>().0 {
                *out = word.to_le_bytes();
                word = word.wrapping_add(STEP);
            }
        }
    }

    /// Checks whole blocks, from `lba` on, and returns the number that are wrong; `report` is told
    /// the first wrong word of each.
    pub fn check(&self, lba: u64, bytes: &[u8], mut report: impl FnMut(Mismatch)) -> u64 {
        let mut wrong = 0;
        for (block, lba) in bytes.chunks_exact(self.block_size).zip(lba..) {
            if !self.holds(lba, block) {
                wrong += 1;
                if let Some(mismatch) = self.first_wrong(lba, block) {
                    report(mismatch);
                }
            }
        }
        wrong
    }

    /// Whether a block is right: one pass without a branch per word, for speed.
    fn holds(&self, lba: u64, block: &[u8]) -> bool {
        let mut word = mix(self.seed ^ lba);
        let mut difference = 0;
        for got in block.as_chunks::<8>().0 {
            difference |= u64::from_le_bytes(*got) ^ word;
            word = word.wrapping_add(STEP);
        }
        difference == 0
    }

    fn first_wrong(&self, lba: u64, block: &[u8]) -> Option<Mismatch> {
        let mut expected = mix(self.seed ^ lba);
        for (index, got) in block.as_chunks::<8>().0.iter().enumerate() {
            let got = u64::from_le_bytes(*got);
            if got != expected {
                return Some(Mismatch { lba, offset: index * 8, expected, got });
            }
            expected = expected.wrapping_add(STEP);
        }
        None
    }
}

/// Which slots were written: one bit each.
#[derive(Clone, Debug)]
pub struct Written {
    bits: Vec<u64>,
    count: u64,
}

impl Written {
    /// None of `slots` yet.
    pub fn new(slots: u64) -> Self {
        Self { bits: vec![0; slots.div_ceil(64) as usize], count: 0 }
    }

    /// Notes a slot.
    pub fn insert(&mut self, slot: u64) {
        let bit = 1 << (slot % 64);
        let word = &mut self.bits[(slot / 64) as usize];
        self.count += u64::from(*word & bit == 0);
        *word |= bit;
    }

    /// Whether a slot was noted.
    pub fn contains(&self, slot: u64) -> bool {
        self.bits[(slot / 64) as usize] & (1 << (slot % 64)) != 0
    }

    /// How many were noted.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first noted slot at or after `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = self.bits.get(index)? & (!0 << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.bits.get(index)?;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_fio_does() {
        for (text, bytes) in [("4096", 4096), ("4k", 4096), ("128K", 131_072), ("1MiB", 1 << 20)] {
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes);
        }
        for bad in ["", "k", "4x", "-1", "99999999999999t"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!(Bytes(131_072).to_string(), "128 KiB");
    }

    #[test]
    fn times_are_seconds_unless_they_say_otherwise() {
        assert_eq!(parse_duration("5").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert!(parse_duration("-1").is_err());
        assert!(parse_duration("soon").is_err());
    }

    #[test]
    fn a_flipped_bit_is_named_by_lba_and_offset() {
        let pattern = Pattern::new(7, 512);
        let mut bytes = vec![0; 4096];
        pattern.fill(100, &mut bytes);
        let mut seen = Vec::new();
        assert_eq!(pattern.check(100, &bytes, |m| seen.push(m)), 0);
        bytes[3 * 512 + 17] ^= 0x40;
        assert_eq!(pattern.check(100, &bytes, |m| seen.push(m)), 1);
        assert_eq!((seen.len(), seen[0].lba, seen[0].offset), (1, 103, 16));
        assert_eq!(seen[0].expected ^ seen[0].got, 0x40 << 8);
    }

    #[test]
    fn a_block_in_the_wrong_place_or_of_another_seed_is_wrong() {
        let mut bytes = vec![0; 512];
        Pattern::new(7, 512).fill(100, &mut bytes);
        assert_eq!(Pattern::new(7, 512).check(101, &bytes, |_| ()), 1);
        assert_eq!(Pattern::new(8, 512).check(100, &bytes, |_| ()), 1);
    }

    #[test]
    fn the_region_is_checked_against_the_namespace() {
        let workload = Workload { offset: 8192, size: Some(16384), ..Workload::default() };
        let region = workload.region(1024, 512).unwrap();
        assert_eq!(region, Region { first_lba: 16, slots: 4, blocks_per_slot: 8 });
        assert_eq!(region.lba(3), 40);
        let beyond = workload.region(40, 512).unwrap_err().to_string();
        assert!(beyond.contains("beyond the namespace"), "{beyond}");
        let uneven = Workload { bs: 512, ..Workload::default() }.region(8, 4096).unwrap_err();
        assert!(uneven.to_string().contains("block size"), "{uneven}");
    }

    #[test]
    fn random_slots_cover_the_region_evenly_and_stay_in_it() {
        let workload = Workload { size: Some(16 * 4096), ..Workload::default() };
        let region = workload.region(1024, 4096).unwrap();
        let mut steps = Steps::new(&workload, &region, 0, 1);
        let mut hits = [0u32; 16];
        for _ in 0..16_000 {
            let step = steps.next();
            assert!(step.read);
            hits[step.slot as usize] += 1;
        }
        assert!(hits.iter().all(|h| (800..1200).contains(h)), "{hits:?}");
    }

    #[test]
    fn sequential_slots_wrap_and_qpairs_start_apart() {
        let workload = Workload { rw: Rw::Write, size: Some(8 * 4096), ..Workload::default() };
        let region = workload.region(8, 4096).unwrap();
        let mut second = Steps::new(&workload, &region, 1, 2);
        let slots: Vec<_> = (0..6).map(|_| second.next().slot).collect();
        assert_eq!(slots, [4, 5, 6, 7, 0, 1]);
    }

    #[test]
    fn the_mix_is_as_asked() {
        let workload = Workload { rw: Rw::RandRw, rwmixread: 70, ..Workload::default() };
        let region = workload.region(1024, 4096).unwrap();
        let mut steps = Steps::new(&workload, &region, 0, 1);
        let reads = (0..10_000).filter(|_| steps.next().read).count();
        assert!((6_700..7_300).contains(&reads), "{reads}");
    }

    #[test]
    fn one_seed_gives_one_order_and_another_gives_another() {
        let workload = Workload::default();
        let region = workload.region(1 << 20, 4096).unwrap();
        let run = |seed, index| {
            let workload = Workload { seed, ..workload.clone() };
            let mut steps = Steps::new(&workload, &region, index, 2);
            (0..8).map(|_| steps.next().slot).collect::<Vec<_>>()
        };
        assert_eq!(run(1, 0), run(1, 0));
        assert_ne!(run(1, 0), run(2, 0));
        assert_ne!(run(1, 0), run(1, 1));
    }

    #[test]
    fn written_slots_are_found_again_once() {
        let mut written = Written::new(200);
        for slot in [0, 63, 64, 199, 63] {
            written.insert(slot);
        }
        assert_eq!(written.count(), 4);
        assert!(written.contains(64) && !written.contains(65));
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(slot) = written.next(from) {
            found.push(slot);
            from = slot + 1;
        }
        assert_eq!(found, [0, 63, 64, 199]);
    }
}
