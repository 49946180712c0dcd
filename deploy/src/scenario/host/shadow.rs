//! What the blocks of a controller may hold, by the writes to them: a generation for each write,
//! and which of them a read may find. Pure.
//!
//! A write may be found until a later one, issued after its end, has ended; writes under way
//! together may land in either order, and one whose end is not known may have been carried out or
//! not. Whatever else is found is told apart: what no write left there, a write that is not there
//! though it was acknowledged, and an old one that came back.

use crate::perf::workload::Pattern;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// How far apart two writes of a block that are under way may be.
const APART: usize = 4;
/// Writes of a block that are remembered: so many that who is forgotten can no more be found.
const RECENT: usize = 2 * APART;
/// Not acknowledged.
const NEVER: u64 = u64::MAX;

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A write that may be there.
    Right,
    /// What no write left there: another block's data, half of two writes, nothing of ours.
    Wrong,
    /// An older write than one that was acknowledged: that one is lost.
    Lost,
    /// An old write, carried out again after a newer one.
    Repeated,
}

/// A read under way: the newest write that had been acknowledged when it was issued.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// The blocks of one controller.
#[derive(Debug)]
pub struct Shadow {
    first_lba: u64,
    blocks: Vec<Block>,
    expected: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Block {
    /// The newest write.
    issued: u64,
    /// The newest that was acknowledged.
    acked: u64,
    /// By generation, modulo their number: the newest write when it was acknowledged. It may be
    /// found until one issued after that is acknowledged.
    until: [u64; RECENT],
    /// The newest that a read found.
    seen: u64,
    /// The newest that was issued more than once.
    again: u64,
    reads: u32,
    /// The mark of the oldest read under way.
    oldest: u64,
}

impl Block {
    const NEW: Self =
        Self { issued: 0, acked: 0, until: [0; RECENT], seen: 0, again: 0, reads: 0, oldest: 0 };

    /// Whether a read of this mark may find a generation.
    const fn allows(&self, generation: u64, mark: u64) -> bool {
        let is_recent = generation + RECENT as u64 > self.issued;
        is_recent && self.until[generation as usize % RECENT] >= mark
    }
}

impl Shadow {
    /// Blocks from `first_lba` on, all zeroes.
    pub fn new(first_lba: u64, blocks: u32) -> Self {
        let blocks = vec![Block::NEW; blocks as usize];
        Self { first_lba, blocks, expected: vec![0; BLOCK] }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Where a block is.
    pub fn lba(&self, block: u32) -> u64 {
        self.first_lba + u64::from(block)
    }

    /// Makes a new write to a block, and fills it in. `None`: too many are under way.
    pub fn write(&mut self, block: u32, bytes: &mut [u8]) -> Option<u64> {
        let lba = self.lba(block);
        let this = &mut self.blocks[block as usize];
        let generation = this.issued + 1;
        let before = |n: usize| this.until[(generation as usize + RECENT - n) % RECENT];
        if generation > APART as u64 && before(APART) == NEVER {
            return None;
        }
        // Its place is that of one that no new read may find: all that were under way with that
        // one were acknowledged long ago. But a read may have been issued before.
        if generation >= RECENT as u64 && this.reads > 0 && before(RECENT) >= this.oldest {
            return None;
        }
        this.until[generation as usize % RECENT] = NEVER;
        this.issued = generation;
        stamp(lba, generation, bytes);
        Some(generation)
    }

    /// A write has been acknowledged.
    pub fn acknowledged(&mut self, block: u32, generation: u64) {
        let this = &mut self.blocks[block as usize];
        this.until[generation as usize % RECENT] = this.issued;
        this.acked = this.acked.max(generation);
    }

    /// A write's end is not known, and it is issued again.
    pub fn issued_again(&mut self, block: u32, generation: u64) {
        let this = &mut self.blocks[block as usize];
        this.again = this.again.max(generation);
    }

    /// A read is issued.
    pub fn read(&mut self, block: u32) -> Mark {
        let this = &mut self.blocks[block as usize];
        if this.reads == 0 {
            this.oldest = this.acked;
        }
        this.reads += 1;
        Mark(this.acked)
    }

    /// A read has ended without data.
    pub fn read_failed(&mut self, block: u32) {
        self.blocks[block as usize].reads -= 1;
    }

    /// Looks at what a read has found.
    pub fn found(&mut self, block: u32, mark: Mark, bytes: &[u8]) -> Found {
        let lba = self.lba(block);
        let this = &mut self.blocks[block as usize];
        this.reads -= 1;
        let generation = generation_of(bytes);
        stamp(lba, generation, &mut self.expected);
        if generation > this.issued || bytes != &self.expected[..] {
            return Found::Wrong;
        }
        if this.allows(generation, mark.0) {
            this.seen = this.seen.max(generation);
            return Found::Right;
        }
        if generation > 0 && (generation < this.seen || generation == this.again) {
            Found::Repeated
        } else {
            Found::Lost
        }
    }

    /// What a block should hold and what it held, in words.
    pub fn tell(&self, block: u32, bytes: &[u8]) -> String {
        let this = &self.blocks[block as usize];
        format!(
            "LBA {}: write {} acknowledged, {} the newest, {} seen; holds {}",
            self.lba(block),
            this.acked,
            this.issued,
            this.seen,
            generation_of(bytes)
        )
    }
}

fn generation_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// What a write leaves in a block: its generation, and the pattern of it and the block.
/// Generation 0 is what was there before: zeroes.
fn stamp(lba: u64, generation: u64, bytes: &mut [u8]) {
    if generation == 0 {
        return bytes.fill(0);
    }
    Pattern::new(generation, BLOCK as u32).fill(lba, bytes);
    bytes[..8].copy_from_slice(&generation.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        shadow: Shadow,
        bytes: Vec<Vec<u8>>,
    }

    impl Bench {
        fn new() -> Self {
            Self { shadow: Shadow::new(100, 2), bytes: vec![vec![0; BLOCK]] }
        }

        fn write(&mut self) -> u64 {
            let mut bytes = vec![0; BLOCK];
            let generation = self.shadow.write(0, &mut bytes).unwrap();
            self.bytes.push(bytes);
            generation
        }

        fn acked(&mut self) -> u64 {
            let generation = self.write();
            self.shadow.acknowledged(0, generation);
            generation
        }

        fn find(&mut self, generation: u64) -> Found {
            let mark = self.shadow.read(0);
            self.shadow.found(0, mark, &self.bytes[generation as usize])
        }
    }

    #[test]
    fn an_acknowledged_write_is_there_and_what_was_before_is_not() {
        let mut bench = Bench::new();
        assert_eq!(bench.find(0), Found::Right);
        bench.acked();
        assert_eq!(bench.find(1), Found::Right);
        assert_eq!(bench.find(0), Found::Lost, "no write left zeroes");
        bench.acked();
        assert_eq!(bench.find(1), Found::Lost, "2 was never seen");
        assert_eq!([bench.find(2), bench.find(1)], [Found::Right, Found::Repeated]);
    }

    #[test]
    fn a_write_under_way_may_be_there_or_not() {
        let mut bench = Bench::new();
        bench.acked();
        bench.write();
        assert_eq!([bench.find(1), bench.find(2), bench.find(1)], [Found::Right; 3]);
    }

    #[test]
    fn writes_under_way_together_may_land_in_either_order_until_a_later_one_has_ended() {
        let mut bench = Bench::new();
        let (first, second) = (bench.write(), bench.write());
        bench.shadow.acknowledged(0, second);
        bench.shadow.acknowledged(0, first);
        assert_eq!([bench.find(first), bench.find(second)], [Found::Right; 2]);
        let third = bench.acked();
        assert_eq!(bench.find(third), Found::Right);
        assert_eq!([bench.find(first), bench.find(second)], [Found::Repeated; 2]);
    }

    #[test]
    fn a_read_may_find_what_was_there_when_it_was_issued() {
        let mut bench = Bench::new();
        bench.acked();
        let mark = bench.shadow.read(0);
        bench.acked();
        let bytes = bench.bytes[1].clone();
        assert_eq!(bench.shadow.found(0, mark, &bytes), Found::Right);
        assert_eq!(bench.find(1), Found::Lost);
    }

    #[test]
    fn a_write_issued_again_that_comes_after_a_newer_one_is_repeated() {
        let mut bench = Bench::new();
        let first = bench.write();
        bench.shadow.issued_again(0, first);
        bench.shadow.acknowledged(0, first);
        bench.acked();
        assert_eq!(bench.find(first), Found::Repeated);
    }

    #[test]
    fn data_of_another_block_of_two_writes_or_of_none_is_wrong() {
        let mut bench = Bench::new();
        let mut other = vec![0; BLOCK];
        bench.shadow.write(1, &mut other).unwrap();
        bench.acked();
        bench.acked();
        let mark = bench.shadow.read(0);
        assert_eq!(bench.shadow.found(0, mark, &other), Found::Wrong);
        let mut torn = bench.bytes[2].clone();
        torn[BLOCK / 2..].copy_from_slice(&bench.bytes[1][BLOCK / 2..]);
        let mark = bench.shadow.read(0);
        assert_eq!(bench.shadow.found(0, mark, &torn), Found::Wrong);
        let mut never = vec![0; BLOCK];
        stamp(100, 9, &mut never);
        let mark = bench.shadow.read(0);
        assert_eq!(bench.shadow.found(0, mark, &never), Found::Wrong);
    }

    #[test]
    fn writes_under_way_are_close_together_so_that_none_is_forgotten_too_soon() {
        let mut bench = Bench::new();
        bench.write(); // not acknowledged
        for _ in 1..APART {
            bench.acked();
        }
        assert_eq!(bench.find(1), Found::Right);
        assert_eq!(bench.shadow.write(0, &mut vec![0; BLOCK]), None);
        bench.shadow.acknowledged(0, 1);
        assert_eq!(bench.find(1), Found::Right, "it may have been the last to land");
        let next = bench.acked();
        assert_eq!([bench.find(next), bench.find(1)], [Found::Right, Found::Repeated]);
    }

    #[test]
    fn a_write_that_a_read_under_way_may_find_is_not_forgotten() {
        let mut bench = Bench::new();
        bench.acked();
        let mark = bench.shadow.read(0);
        let mut writes = 0;
        while let Some(generation) = bench.shadow.write(0, &mut vec![0; BLOCK]) {
            bench.shadow.acknowledged(0, generation);
            writes += 1;
        }
        assert_eq!(writes, RECENT - 1);
        let bytes = bench.bytes[1].clone();
        assert_eq!(bench.shadow.found(0, mark, &bytes), Found::Right);
        assert!(bench.shadow.write(0, &mut vec![0; BLOCK]).is_some());
    }
}
