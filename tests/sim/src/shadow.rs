//! What each block of a disk may hold, by the writes to it, whoever made them. Pure, and outside
//! of what is tested.
//!
//! A read may find a write that began before the read ended, unless another write came wholly
//! after that one and was acknowledged wholly before the read began. A write whose end is not known
//! may be found as long as somebody may still execute it, and supersedes nothing. A crash may take
//! back what was not durable: then all is open again between the last durable write and those
//! after it.
//!
//! The rig's shadow (`deploy`) is another: there blocks belong to one controller each, sizes are
//! fixed, memory is bounded, and nothing crashes with its disk.

use crate::BLOCK;

/// Not ended.
const OPEN: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    start: u64,
    end: u64,
    /// It was acknowledged, so it was executed.
    sure: bool,
    durable: bool,
}

impl Write {
    /// Whether a read that began at `read` cannot find `other` because of this write.
    fn hides(&self, other: &Self, read: u64) -> bool {
        self.sure && other.end < self.start && self.end < read
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was acknowledged, and is durable or not.
    Acknowledged {
        /// No crash takes it back.
        durable: bool,
    },
    /// It failed, and nobody will execute it any more.
    Over,
}

/// A range of blocks that an operation concerns, and when that began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// First block.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
    /// When it began, by the shadow's count.
    pub start: u64,
}

/// The blocks of a disk.
#[derive(Debug)]
pub struct Shadow {
    blocks: Vec<Vec<Write>>,
    /// Counts beginnings and ends.
    clock: u64,
    /// Beginnings of the reads under way.
    reads: Vec<u64>,
    /// Writes survive crashes once acknowledged.
    is_durable: bool,
}

impl Shadow {
    /// Of a disk of zeroes; `is_durable`: one without a cache.
    pub fn new(blocks: u64, is_durable: bool) -> Self {
        let zero = Write { value: 0, start: 0, end: 0, sure: true, durable: true };
        let blocks = (0..blocks).map(|_| vec![zero]).collect();
        Self { blocks, clock: 0, reads: Vec::new(), is_durable }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of `value` begins (0: zeroes; any other value is written once only).
    pub fn write(&mut self, lba: u64, blocks: u32, value: u64) -> Span {
        let start = self.tick();
        let span = Span { lba, blocks, start };
        for block in &mut self.blocks[range(span)] {
            block.push(Write { value, start, end: OPEN, sure: false, durable: false });
        }
        span
    }

    /// A write ended.
    pub fn written(&mut self, span: Span, end: End) {
        let at = self.tick();
        let oldest = self.reads.iter().copied().min().unwrap_or(OPEN);
        let is_durable = self.is_durable;
        for block in &mut self.blocks[range(span)] {
            let own = block.iter_mut().find(|write| write.start == span.start);
            // A crash with the disk may have taken it out.
            let Some(own) = own else { continue };
            own.end = at;
            if let End::Acknowledged { durable } = end {
                own.sure = true;
                own.durable = durable || is_durable;
            }
            prune(block, oldest);
        }
    }

    /// A read, or a flush, begins.
    pub fn read(&mut self, lba: u64, blocks: u32) -> Span {
        let start = self.tick();
        self.reads.push(start);
        Span { lba, blocks, start }
    }

    /// It ended without data.
    pub fn gave_up(&mut self, span: Span) {
        self.reads.retain(|&start| start != span.start);
    }

    /// A read ended with these bytes.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn found(&mut self, span: Span, bytes: &[u8]) -> Result<(), String> {
        self.gave_up(span);
        for (lba, bytes) in (span.lba..).zip(bytes.chunks(BLOCK)) {
            let block = &self.blocks[lba as usize];
            let value = value_of(bytes);
            if !is_whole(lba, value, bytes) {
                return Err(format!("LBA {lba}: torn, or of another block; begins {value:#x}"));
            }
            let mut writes = block.iter().filter(|write| write.value == value).peekable();
            if writes.peek().is_none() {
                let newest = block.last().map(|write| write.value);
                return Err(format!(
                    "LBA {lba}: {value:#x} is nothing or long gone, not {newest:x?}"
                ));
            }
            let hidden = |write: &Write| block.iter().find(|other| other.hides(write, span.start));
            if let Some(Some(by)) = writes.map(hidden).min_by_key(|hidden| hidden.is_some()) {
                let by = by.value;
                return Err(format!(
                    "LBA {lba}: {value:#x}, though {by:#x} was acknowledged later"
                ));
            }
        }
        Ok(())
    }

    /// A flush that began with [`Self::read`] ended well: what had ended before is durable.
    pub fn flushed(&mut self, span: Span) {
        self.gave_up(span);
        for write in self.blocks.iter_mut().flatten() {
            write.durable |= write.sure && write.end < span.start;
        }
    }

    /// The disk lost its power: what is not durable may be gone.
    pub fn crashed(&mut self) {
        let at = self.tick();
        if self.is_durable {
            return;
        }
        for block in &mut self.blocks {
            prune(block, OPEN);
            for write in block.iter_mut().filter(|write| write.end != OPEN) {
                write.end = at;
            }
        }
    }

    /// The disk was replaced by one of zeroes.
    pub fn replaced(&mut self) {
        let end = self.tick();
        for block in &mut self.blocks {
            block.retain(|write| write.end == OPEN);
            block.push(Write { value: 0, start: 0, end, sure: true, durable: true });
        }
    }
}

fn range(span: Span) -> std::ops::Range<usize> {
    span.lba as usize..span.lba as usize + span.blocks as usize
}

/// Forgets what neither a read nor a crash can bring back.
fn prune(block: &mut Vec<Write>, oldest: u64) {
    for at in (0..block.len()).rev() {
        let write = block[at];
        if block.iter().any(|other| other.durable && other.hides(&write, oldest)) {
            block.remove(at);
        }
    }
}

/// Fills in what a write of `value` puts into blocks from `lba` on.
pub fn fill(lba: u64, value: u64, bytes: &mut [u8]) {
    for (lba, block) in (lba..).zip(bytes.chunks_mut(BLOCK)) {
        let mut word = value;
        for chunk in block.chunks_mut(8) {
            chunk.copy_from_slice(&word.to_le_bytes());
            word = next_word(lba, value, word);
        }
    }
}

fn value_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

fn is_whole(lba: u64, value: u64, bytes: &[u8]) -> bool {
    let mut word = value;
    bytes.chunks(8).all(|chunk| {
        let same = *chunk == word.to_le_bytes();
        word = next_word(lba, value, word);
        same
    })
}

fn next_word(lba: u64, value: u64, word: u64) -> u64 {
    if value == 0 { 0 } else { (word ^ lba << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(shadow: &mut Shadow, read: Span, value: u64) -> bool {
        let mut bytes = vec![0; BLOCK];
        fill(read.lba, value, &mut bytes);
        shadow.found(read, &bytes).is_ok()
    }

    fn finds(shadow: &mut Shadow, value: u64) -> bool {
        let read = shadow.read(0, 1);
        find(shadow, read, value)
    }

    const ACKED: End = End::Acknowledged { durable: false };

    #[test]
    fn an_acknowledged_write_hides_what_was_before() {
        let mut shadow = Shadow::new(2, true);
        assert!(finds(&mut shadow, 0) && !finds(&mut shadow, 1));
        let write = shadow.write(0, 1, 1);
        assert!(finds(&mut shadow, 0) && finds(&mut shadow, 1));
        shadow.written(write, ACKED);
        assert!(!finds(&mut shadow, 0) && finds(&mut shadow, 1));
    }

    #[test]
    fn writes_and_reads_under_way_together_may_come_in_any_order() {
        let mut shadow = Shadow::new(2, true);
        let (one, two) = (shadow.write(0, 1, 1), shadow.write(0, 1, 2));
        let early = shadow.read(0, 1);
        shadow.written(two, ACKED);
        shadow.written(one, ACKED);
        assert!(finds(&mut shadow, 1) && finds(&mut shadow, 2) && !finds(&mut shadow, 0));
        let three = shadow.write(0, 1, 3);
        shadow.written(three, ACKED);
        assert!(!finds(&mut shadow, 1) && !finds(&mut shadow, 2) && finds(&mut shadow, 3));
        assert!(find(&mut shadow, early, 0), "nothing had ended when it began");
    }

    #[test]
    fn a_write_of_unknown_end_hides_nothing_and_is_hidden_once_it_is_over() {
        let mut shadow = Shadow::new(2, true);
        let lost = shadow.write(0, 1, 1);
        let two = shadow.write(0, 1, 2);
        shadow.written(two, ACKED);
        assert!(finds(&mut shadow, 1) && finds(&mut shadow, 2));
        shadow.written(lost, End::Over);
        assert!(finds(&mut shadow, 1) && finds(&mut shadow, 2));
        let three = shadow.write(0, 1, 3);
        shadow.written(three, ACKED);
        assert!(!finds(&mut shadow, 1) && !finds(&mut shadow, 2));
    }

    #[test]
    fn a_crash_takes_back_what_was_not_flushed_and_nothing_else() {
        let mut shadow = Shadow::new(2, false);
        for value in 1..=3 {
            let write = shadow.write(0, 1, value);
            shadow.written(write, ACKED);
            if value == 1 {
                let flush = shadow.read(0, 0);
                shadow.flushed(flush);
            }
        }
        assert!(!finds(&mut shadow, 1) && !finds(&mut shadow, 2) && finds(&mut shadow, 3));
        shadow.crashed();
        assert!(finds(&mut shadow, 1) && finds(&mut shadow, 2) && finds(&mut shadow, 3));
        assert!(!finds(&mut shadow, 0));
        let write = shadow.write(0, 1, 4);
        shadow.written(write, End::Acknowledged { durable: true });
        shadow.crashed();
        assert!(!finds(&mut shadow, 3) && finds(&mut shadow, 4));
    }

    #[test]
    fn torn_and_misplaced_blocks_are_told() {
        let mut shadow = Shadow::new(2, true);
        shadow.write(0, 2, 1);
        let mut bytes = vec![0; 2 * BLOCK];
        fill(0, 1, &mut bytes);
        let read = shadow.read(0, 2);
        assert!(shadow.found(read, &bytes).is_ok());
        let read = shadow.read(0, 1);
        assert!(shadow.found(read, &bytes[BLOCK..]).is_err());
        bytes[BLOCK - 1] ^= 1;
        let read = shadow.read(0, 2);
        assert!(shadow.found(read, &bytes).is_err());
    }
}
