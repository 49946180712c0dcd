//! The load of one controller whose target comes and goes: writes and reads of a small range, so
//! that each block is written often; what is read is checked against all that was written.
//!
//! What always holds: a command has a tag of its own, and its end is counted once; a command that
//! ended with its path, whose fate is not known, is issued again as it was; a write so repeated
//! may be found or not until it is acknowledged. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result};
use moorline_nvme::spec::Status;
use moorline_nvme::spec::status::sct;
use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::rng::Rng;

use super::shadow::{BLOCK, Found, Mark, Shadow};
use super::tally::Tally;

/// Bits of a tag that name the slot; the others count commands.
const SLOT_BITS: u32 = 8;

/// How controllers whose target comes and goes are loaded.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Commands under way of each.
    pub depth: u16,
    /// Blocks of 4 KiB of each.
    pub blocks: u32,
    /// From one command of a controller to the next, at least.
    pub pace: Duration,
    /// Whether the host keeps the commands of a lost path, and issues them again.
    pub requeue: bool,
}

/// A command to submit; its buffer comes back with its end.
#[derive(Debug)]
pub struct Next {
    /// Its tag.
    pub tag: u64,
    /// Read or write.
    pub is_read: bool,
    /// Its block.
    pub lba: u64,
    /// The data, or room for it.
    pub buf: IoBuf,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Read { block: u32, mark: Mark },
    Write { block: u32, generation: u64 },
}

#[derive(Debug)]
struct Slot {
    /// Its command under way.
    tag: Option<u64>,
    what: Option<What>,
    buf: Option<IoBuf>,
}

/// The load of one controller.
#[derive(Debug)]
pub struct Verify {
    options: VerifyOptions,
    shadow: Shadow,
    slots: Vec<Slot>,
    idle: Vec<u32>,
    /// To be issued again.
    again: VecDeque<u32>,
    random: Rng,
    commands: u64,
    due: Instant,
    is_live: bool,
    /// It was never there, or for so long that what is submitted fails at once.
    is_refused: bool,
    /// Next block to be read, once nothing more is written.
    read_back: Option<u32>,
    /// Blocks that were read then.
    read: u32,
    tally: Tally,
}

impl Verify {
    /// The load of the controller that is number `index` among those that share a namespace.
    ///
    /// # Errors
    /// When the arena does not hold its buffers.
    pub fn new(options: VerifyOptions, index: u32, arena: &mut Arena) -> Result<Self> {
        let mut slots = Vec::with_capacity(options.depth.into());
        for _ in 0..options.depth {
            let buf = arena.take(BLOCK).context("I/O memory is used up")?;
            slots.push(Slot { tag: None, what: None, buf: Some(buf) });
        }
        Ok(Self {
            shadow: Shadow::new(u64::from(index) * u64::from(options.blocks), options.blocks),
            idle: (0..u32::from(options.depth)).collect(),
            again: VecDeque::with_capacity(slots.len()),
            slots,
            random: Rng::new(u64::from(index) + 1),
            commands: 0,
            due: Instant::ZERO,
            is_live: false,
            is_refused: true,
            read_back: None,
            read: 0,
            tally: Tally::default(),
            options,
        })
    }

    /// Bytes of memory that one needs.
    pub fn memory(options: &VerifyOptions) -> usize {
        usize::from(options.depth) * BLOCK
    }

    /// Its controller has become live.
    pub fn live(&mut self) {
        self.is_live = true;
        self.is_refused = false;
    }

    /// Its controller was lost.
    pub fn lost(&mut self) {
        self.is_live = false;
    }

    /// Nothing more is written: once all commands have ended, each block is read.
    pub fn finish(&mut self) {
        self.read_back = self.read_back.or(Some(0));
    }

    /// Whether every block was read in the end, and nothing is under way.
    pub fn is_done(&self) -> bool {
        self.read_back == Some(self.shadow.blocks()) && self.is_idle()
    }

    fn is_idle(&self) -> bool {
        self.idle.len() == self.slots.len()
    }

    /// When a command is due, if nothing ends before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.may_submit() && !self.idle.is_empty()).then_some(self.due)
    }

    const fn may_submit(&self) -> bool {
        self.is_live || (self.options.requeue && !self.is_refused)
    }

    /// The next command, where there is one: then either [`Verify::refused`] or, in time,
    /// [`Verify::ended`] is told of it.
    pub fn next_command(&mut self, now: Instant) -> Option<Next> {
        if !self.may_submit() {
            return None;
        }
        if let Some(slot) = self.again.pop_front() {
            return Some(self.issue(slot));
        }
        let &slot = self.idle.last()?;
        let what = match self.read_back {
            None if now < self.due => return None,
            None => {
                self.due = now + self.options.pace;
                self.any(slot)?
            }
            Some(0) if !self.is_idle() => return None,
            Some(block) if block == self.shadow.blocks() => return None,
            Some(block) => {
                self.read_back = Some(block + 1);
                What::Read { block, mark: self.shadow.read(block) }
            }
        };
        self.idle.pop();
        self.slots[slot as usize].what = Some(what);
        Some(self.issue(slot))
    }

    /// A read or a write of any block.
    fn any(&mut self, slot: u32) -> Option<What> {
        let block = self.random.below(self.shadow.blocks().into()) as u32;
        if self.random.chance(0.5) {
            return Some(What::Read { block, mark: self.shadow.read(block) });
        }
        let bytes = self.slots[slot as usize].buf.as_mut().expect("an idle slot has its buffer");
        let generation = self.shadow.write(block, bytes)?;
        Some(What::Write { block, generation })
    }

    fn issue(&mut self, slot: u32) -> Next {
        self.commands += 1;
        self.tally.submitted += 1;
        let tag = self.commands << SLOT_BITS | u64::from(slot);
        let this = &mut self.slots[slot as usize];
        this.tag = Some(tag);
        let buf = this.buf.take().expect("nothing of it is under way");
        let (is_read, block) = match this.what.expect("it was just given") {
            What::Read { block, .. } => (true, block),
            What::Write { block, .. } => (false, block),
        };
        Next { tag, is_read, lba: self.shadow.lba(block), buf }
    }

    /// The host did not take a command: it is the next again.
    pub fn refused(&mut self, tag: u64, buf: IoBuf) {
        let slot = self.slot_of(tag);
        self.tally.submitted -= 1;
        self.slots[slot as usize].tag = None;
        self.slots[slot as usize].buf = Some(buf);
        self.again.push_front(slot);
    }

    const fn slot_of(&self, tag: u64) -> u32 {
        (tag & ((1 << SLOT_BITS) - 1)) as u32
    }

    /// A command has ended.
    pub fn ended(&mut self, tag: u64, status: Status, buf: Option<IoBuf>) {
        self.tally.completed += 1;
        let slot = self.slot_of(tag);
        let this = self.slots.get_mut(slot as usize).filter(|slot| slot.tag == Some(tag));
        let Some((this, buf)) = this.zip(buf) else {
            self.tally.double += 1;
            return;
        };
        this.tag = None;
        let what = this.what.expect("what is under way is known");
        if status.is_success() {
            self.succeeded(what, &buf);
            self.idle.push(slot);
        } else if status.sct() == sct::PATH {
            self.tally.path_errors += 1;
            self.is_refused = !self.is_live;
            if let What::Write { block, generation } = what {
                self.shadow.issued_again(block, generation);
            }
            self.again.push_back(slot);
        } else {
            self.tally.errors += 1;
            self.tally.tell(format!("{what:?}: {status}"));
            if let What::Read { block, .. } = what {
                self.shadow.read_failed(block);
            }
            self.idle.push(slot);
        }
        self.slots[slot as usize].buf = Some(buf);
    }

    fn succeeded(&mut self, what: What, bytes: &[u8]) {
        match what {
            What::Write { block, generation } => {
                self.tally.writes += 1;
                self.shadow.acknowledged(block, generation);
            }
            What::Read { block, mark } => {
                self.tally.reads += 1;
                // Reads of before had ended when the first of these was issued.
                self.read += u32::from(self.read_back > Some(0));
                let count = match self.shadow.found(block, mark, &bytes[..BLOCK]) {
                    Found::Right => return,
                    Found::Wrong => &mut self.tally.wrong,
                    Found::Lost => &mut self.tally.lost,
                    Found::Repeated => &mut self.tally.repeated,
                };
                *count += 1;
                let told = self.shadow.tell(block, bytes);
                self.tally.tell(told);
            }
        }
    }

    /// What it came to.
    pub fn tally(&self) -> Tally {
        let unread = u64::from(self.shadow.blocks() - self.read);
        Tally { unread, ..self.tally.clone() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OPTIONS: VerifyOptions =
        VerifyOptions { depth: 4, blocks: 8, pace: Duration::from_millis(1), requeue: false };

    /// A disk that carries commands out when it is told to.
    struct Bench {
        verify: Verify,
        disk: Vec<u8>,
        wire: VecDeque<Next>,
        now: Instant,
    }

    impl Bench {
        fn new(requeue: bool) -> Self {
            let options = VerifyOptions { requeue, ..OPTIONS };
            let mut arena = Arena::new(Verify::memory(&options));
            let mut verify = Verify::new(options, 0, &mut arena).unwrap();
            verify.live();
            let disk = vec![0; 8 * BLOCK];
            Self { verify, disk, wire: VecDeque::new(), now: Instant::ZERO }
        }

        fn submit(&mut self) {
            self.now += OPTIONS.pace;
            while let Some(next) = self.verify.next_command(self.now) {
                self.wire.push_back(next);
            }
        }

        fn carry_out(&mut self, next: &mut Next) {
            let at = next.lba as usize * BLOCK;
            let block = &mut self.disk[at..at + BLOCK];
            if next.is_read {
                next.buf.copy_from_slice(block)
            } else {
                block.copy_from_slice(&next.buf)
            }
        }

        /// All that is under way, in order.
        fn end_all(&mut self) {
            while let Some(mut next) = self.wire.pop_front() {
                self.carry_out(&mut next);
                self.verify.ended(next.tag, Status::SUCCESS, Some(next.buf));
            }
        }

        fn play(&mut self, rounds: usize) {
            for _ in 0..rounds {
                self.submit();
                self.end_all();
            }
        }

        fn report(&self) -> Value {
            self.verify.tally().report()
        }

        fn finish(&mut self) -> Value {
            self.verify.finish();
            self.play(10);
            assert!(self.verify.is_done());
            self.report()
        }
    }

    #[test]
    fn what_is_written_is_read_and_each_block_in_the_end() {
        let mut bench = Bench::new(false);
        bench.play(1000);
        let before = bench.report();
        assert_eq!(before["unread"], 8);
        let report = bench.finish();
        let blocks = before["blocks"].as_u64().unwrap() + 8;
        assert_eq!(report["blocks"], blocks);
        for count in ["mismatches", "lost", "repeated", "unread", "double", "missing"] {
            assert_eq!(report[count], 0, "{report}");
        }
        assert!(report["writes"].as_u64() > Some(100), "{report}");
    }

    #[test]
    fn commands_go_at_their_pace_and_no_more_than_the_depth() {
        let mut bench = Bench::new(false);
        for under_way in 1..=4 {
            bench.submit();
            bench.submit_again_at_once();
            assert_eq!(bench.wire.len(), under_way);
        }
        bench.submit();
        assert_eq!(bench.wire.len(), 4);
        assert_eq!(bench.verify.poll_timeout(), None);
    }

    impl Bench {
        fn submit_again_at_once(&mut self) {
            assert!(self.verify.next_command(self.now).is_none());
        }
    }

    #[test]
    fn commands_whose_path_was_lost_wait_and_are_issued_again_whether_carried_out_or_not() {
        let mut bench = Bench::new(false);
        for round in 0..100 {
            for _ in 0..4 {
                bench.submit();
            }
            let mut wire = std::mem::take(&mut bench.wire);
            for (number, mut next) in wire.drain(..).enumerate() {
                if (number + round) % 2 == 0 {
                    bench.carry_out(&mut next);
                }
                bench.verify.ended(next.tag, Status::HOST_PATHING_ERROR, Some(next.buf));
            }
            bench.verify.lost();
            bench.submit();
            assert!(bench.wire.is_empty());
            bench.verify.live();
            bench.play(5);
        }
        let report = bench.finish();
        for count in ["mismatches", "lost", "repeated", "unread", "double", "missing"] {
            assert_eq!(report[count], 0, "{report}");
        }
        assert_eq!(report["path_errors"], 400);
    }

    #[test]
    fn a_host_that_keeps_commands_gets_them_while_it_is_away_until_it_refuses() {
        let mut bench = Bench::new(true);
        bench.verify.lost();
        bench.submit();
        let next = bench.wire.pop_front().expect("one was submitted");
        bench.verify.ended(next.tag, Status::HOST_PATHING_ERROR, Some(next.buf));
        bench.submit();
        assert!(bench.wire.is_empty(), "it fails fast now");
        bench.verify.live();
        bench.submit();
        assert!(!bench.wire.is_empty());
    }

    #[test]
    fn a_disk_that_loses_or_repeats_a_write_is_found_out() {
        let mut bench = Bench::new(false);
        bench.play(200);
        let old = bench.disk.clone();
        bench.play(200);
        bench.disk = old;
        let report = bench.finish();
        assert!(report["repeated"].as_u64() > Some(0), "{report}");
        assert!(report["told"][0].as_str().unwrap().starts_with("LBA "), "{report}");
    }

    #[test]
    fn an_end_told_twice_or_never_is_counted() {
        let mut bench = Bench::new(false);
        bench.submit();
        let next = bench.wire.pop_front().unwrap();
        bench.verify.ended(next.tag, Status::SUCCESS, None);
        let tag = next.tag + (1 << SLOT_BITS);
        bench.verify.ended(tag, Status::SUCCESS, Some(next.buf));
        let report = bench.report();
        assert_eq!((&report["double"], &report["missing"]), (&json!(2), &json!(1)));
    }

    #[test]
    fn a_command_that_was_not_taken_is_the_next_and_not_counted() {
        let mut bench = Bench::new(false);
        bench.submit();
        let next = bench.wire.pop_front().unwrap();
        bench.verify.refused(next.tag, next.buf);
        assert_eq!(bench.report()["submitted"], 0);
        assert_eq!(bench.verify.next_command(bench.now).map(|again| again.lba), Some(next.lba));
    }
}
