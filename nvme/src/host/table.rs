//! A qpair's commands: slots (one per command on the wire) and works (one per thing asked for).
//!
//! What always holds: a work has a place until it was polled, so completions need no room of
//! their own; a slot is free or belongs to one work; a CID is its slot's index with a 4-bit
//! generation above it, so that a completion that comes twice finds nobody. At most one work
//! waits for slots (`backlog`); while it does, no other is accepted, so works stay in order.

use std::collections::VecDeque;
use std::time::Duration;

use moorline_stack::Instant;
use zerocopy::little_endian::U16;

use super::abort::Aborting;
use super::requeue::Loss;
use super::work::{Owner, Work, WorkDone};
use crate::spec::{Cqe, Direction, Sqe, Status};

/// Bits of a CID that are the slot's index.
const SLOT_BITS: u32 = 12;

/// Most slots of a queue: its size less one, and what a CID can name.
pub(super) const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;

/// Data that the controller asked for with an R2T and has not been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub ttag: u16,
    /// Next byte to send, and the end; offsets in the command's data.
    pub at: u32,
    pub end: u32,
}

/// One command.
#[derive(Debug)]
pub(super) struct Slot {
    generation: u8,
    busy: bool,
    work: u16,
    pub sqe: Sqe,
    pub direction: Direction,
    pub in_capsule: bool,
    /// Its data: where in the work's data they start, and how many bytes.
    pub at: usize,
    pub len: u32,
    /// Bytes of C2HData received, and whether a PDU said that it was the last.
    pub received: u32,
    pub last_seen: bool,
    pub digest_failed: bool,
    /// Bytes asked for by R2Ts so far, and the one that is open.
    pub requested: u32,
    pub grant: Option<Grant>,
    /// The capsule's emission has begun.
    pub begun: bool,
    /// It is in the TX queue.
    pub queued: bool,
    /// Its completion, held back while a PDU of it is half sent.
    pub held: Option<Cqe>,
    pub deadline: Option<Instant>,
    /// What follows its deadline.
    pub aborting: Aborting,
}

/// A work under way.
#[derive(Debug)]
struct Entry {
    work: Option<Work>,
    units_done: u32,
    outstanding: u16,
    cqe: Cqe,
    submitted: Instant,
    /// What it had come to when its path was lost; `lost`: then it had not ended.
    loss: Loss,
    lost: bool,
}

/// The tables of one qpair.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    free_slots: Vec<u16>,
    entries: Box<[Entry]>,
    free_entries: Vec<u16>,
    backlog: Option<u16>,
    done: VecDeque<u16>,
}

impl Table {
    /// Tables for `commands` commands at once; the only allocation.
    pub(super) fn new(commands: usize) -> Self {
        assert!((1..=SLOTS_MAX).contains(&commands), "a CID names at most {SLOTS_MAX} slots");
        let slots = (0..commands).map(|_| Slot::free()).collect();
        let entries = (0..commands).map(|_| Entry::free()).collect();
        let free = || (0..commands as u16).rev().collect();
        Self {
            slots,
            free_slots: free(),
            entries,
            free_entries: free(),
            backlog: None,
            done: VecDeque::with_capacity(commands),
        }
    }

    /// Whether a work would be accepted while leaving `reserve` slots free.
    pub(super) fn has_room(&self, reserve: usize) -> bool {
        self.free_slots.len() > reserve && !self.free_entries.is_empty() && self.backlog.is_none()
    }

    /// Takes a work for which there is room; its commands come from [`Self::next_command`].
    pub(super) fn accept(&mut self, now: Instant, work: Work) {
        let entry = self.free_entries.pop().expect("has_room was asked");
        assert!(self.backlog.is_none(), "has_room was asked");
        let place = &mut self.entries[usize::from(entry)];
        place.submitted = now;
        place.units_done = 0;
        place.outstanding = 0;
        place.cqe = Cqe::default();
        (place.loss, place.lost) = (Loss::default(), false);
        let is_empty = work.units == 0;
        place.work = Some(work);
        if is_empty { self.done.push_back(entry) } else { self.backlog = Some(entry) }
    }

    /// Takes a work for which there is room and ends it at once, without a command.
    pub(super) fn reject(&mut self, now: Instant, work: Work, status: Status) {
        let entry = self.free_entries.pop().expect("has_room was asked");
        let place = &mut self.entries[usize::from(entry)];
        place.submitted = now;
        place.cqe = Cqe::new(0, status);
        place.lost = false;
        place.work = Some(work);
        self.done.push_back(entry);
    }

    /// Cuts the next command off the work that waits for slots, if both are there.
    /// `in_capsule_max` is how much data its capsule may carry.
    pub(super) fn next_command(&mut self, now: Instant, in_capsule_max: u32) -> Option<u16> {
        let index = self.backlog?;
        let slot_index = self.free_slots.pop()?;
        let entry = &mut self.entries[usize::from(index)];
        let work = entry.work.as_ref().expect("a work in the backlog is there");
        let units = (work.units - entry.units_done).min(work.units_max);
        let slot = &mut self.slots[usize::from(slot_index)];
        let len = units * work.unit_bytes;
        let direction = if len == 0 { Direction::None } else { work.sqe.direction() };
        let in_capsule = direction == Direction::HostToController && len <= in_capsule_max;
        let generation = slot.generation.wrapping_add(1) & 0xF;
        let cid = slot_index | u16::from(generation) << SLOT_BITS;
        *slot = Slot {
            generation,
            busy: true,
            work: index,
            sqe: work.command(cid, entry.units_done, units, in_capsule),
            direction,
            in_capsule,
            at: entry.units_done as usize * work.unit_bytes as usize,
            len,
            deadline: work.timeout.map(|timeout| now + timeout),
            ..Slot::free()
        };
        entry.units_done += units;
        entry.outstanding += 1;
        if entry.units_done == work.units {
            self.backlog = None;
        }
        Some(slot_index)
    }

    /// The slot of a CID that is on the wire: its capsule begun, its completion not seen.
    pub(super) fn lookup(&self, cid: u16) -> Option<u16> {
        let index = cid & ((1 << SLOT_BITS) - 1);
        let slot = self.slots.get(usize::from(index))?;
        let known = slot.busy
            && slot.begun
            && slot.held.is_none()
            && u16::from(slot.generation) == cid >> SLOT_BITS;
        known.then_some(index)
    }

    /// The capsule of a command begins to go out.
    pub(super) fn begin(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.begun = true;
        self.entries[usize::from(slot.work)].loss.begun = true;
    }

    /// The deadline of a command has passed.
    pub(super) fn timed_out(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        self.entries[usize::from(slot.work)].loss.timed_out = true;
    }

    pub(super) fn slot(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    pub(super) fn slot_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// The work of a command.
    pub(super) fn work(&self, index: u16) -> &Work {
        let entry = &self.entries[usize::from(self.slots[usize::from(index)].work)];
        entry.work.as_ref().expect("a busy slot's work is there")
    }

    /// The bytes of a command's data, for receiving.
    pub(super) fn sink(&mut self, index: u16) -> &mut [u8] {
        let slot = &self.slots[usize::from(index)];
        let entry = &mut self.entries[usize::from(slot.work)];
        let work = entry.work.as_mut().expect("a busy slot's work is there");
        let start = work.offset + slot.at;
        &mut work.memory.bytes_mut()[start..start + slot.len as usize]
    }

    /// The bytes of a command's data, for sending.
    pub(super) fn source(&self, index: u16) -> &[u8] {
        let slot = self.slot(index);
        &self.work(index).source()[slot.at..slot.at + slot.len as usize]
    }

    /// Ends a command and, with its last one, its work. Its first failure is the work's.
    pub(super) fn finish(&mut self, index: u16, cqe: Cqe) {
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.busy, "a command ends once");
        slot.busy = false;
        self.free_slots.push(index);
        let entry_index = slot.work;
        let entry = &mut self.entries[usize::from(entry_index)];
        if entry.cqe.status().is_success() {
            entry.cqe = cqe;
        }
        entry.outstanding -= 1;
        let work = entry.work.as_ref().expect("a busy slot's work is there");
        if entry.outstanding > 0 || entry.units_done < work.units {
            return;
        }
        if work.owner == Owner::Connect {
            entry.work = None; // the qpair's own: nobody polls it
            self.free_entries.push(entry_index);
        } else {
            self.done.push_back(entry_index);
        }
    }

    /// Ends everything that has not ended, with `status`: the path is lost. What has failed in
    /// part before ends with that failure.
    pub(super) fn abandon(&mut self, status: Status) {
        if let Some(index) = self.backlog.take() {
            let entry = &mut self.entries[usize::from(index)];
            entry.lost = entry.cqe.status().is_success();
            let work = entry.work.as_mut().expect("a work in the backlog is there");
            work.units = entry.units_done;
            if entry.lost {
                entry.cqe.status = U16::new(status.to_cqe());
            }
            if entry.outstanding == 0 {
                self.done.push_back(index);
            }
        }
        for index in 0..self.slots.len() as u16 {
            if self.slot(index).busy {
                let held = self.slot_mut(index).held.take();
                let entry = &mut self.entries[usize::from(self.slots[usize::from(index)].work)];
                entry.lost |= held.is_none() && entry.cqe.status().is_success();
                self.finish(index, held.unwrap_or(Cqe::new(0, status)));
            }
        }
    }

    /// Takes out the works that were lost with the path; the others stay, in order.
    pub(super) fn take_lost(&mut self, out: &mut dyn FnMut(Work, Loss)) {
        for _ in 0..self.done.len() {
            let Some(index) = self.done.pop_front() else { return };
            let entry = &mut self.entries[usize::from(index)];
            if !entry.lost {
                self.done.push_back(index);
                continue;
            }
            let work = entry.work.take().expect("a work that ended is there until polled");
            out(work, entry.loss);
            self.free_entries.push(index);
        }
    }

    /// The next work that ended; its place is free again.
    pub(super) fn poll_done(&mut self) -> Option<WorkDone> {
        let index = self.done.pop_front()?;
        let entry = &mut self.entries[usize::from(index)];
        let work = entry.work.take().expect("a work that ended is there until polled");
        self.free_entries.push(index);
        let (submitted, home) =
            work.origin.map_or((entry.submitted, 0), |origin| (origin.submitted, origin.home));
        let (owner, memory) = (work.owner, work.memory);
        Some(WorkDone { owner, cqe: entry.cqe, memory, submitted, home })
    }

    /// Whether something ended that was not polled.
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Commands on the wire, or to be.
    pub(super) fn outstanding(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// Works accepted and not ended.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding() == 0 && self.backlog.is_none()
    }

    /// The earliest deadline among the commands.
    pub(super) fn earliest_deadline(&self) -> Option<Instant> {
        let busy = self.slots.iter().filter(|slot| slot.busy);
        busy.filter_map(|slot| slot.deadline).min()
    }

    /// Moves deadlines to other timeouts: `of` tells the old and the new one of an owner's
    /// commands, `grace` those of commands that are being aborted.
    pub(super) fn set_timeouts(
        &mut self,
        now: Instant,
        of: impl Fn(Owner) -> (Option<Duration>, Option<Duration>),
        grace: (Duration, Duration),
    ) {
        for slot in self.slots.iter_mut().filter(|slot| slot.busy) {
            let work = self.entries[usize::from(slot.work)].work.as_ref();
            let work = work.expect("a busy slot's work is there");
            let (old, new) = match slot.aborting {
                Aborting::No => of(work.owner),
                Aborting::Wanted | Aborting::Sent => (Some(grace.0), Some(grace.1)),
            };
            if let (Some(at), Some(old), Some(new)) = (&mut slot.deadline, old, new)
                && old != new
            {
                *at = at.retimed(old, new).max(now);
            }
        }
        for work in self.entries.iter_mut().filter_map(|entry| entry.work.as_mut()) {
            work.timeout = work.timeout.and(of(work.owner).1);
        }
    }

    /// When a command's work was submitted.
    pub(super) fn submitted(&self, index: u16) -> Instant {
        self.entries[usize::from(self.slots[usize::from(index)].work)].submitted
    }
}

impl Slot {
    /// Whether a command is in it.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    fn free() -> Self {
        Self {
            generation: 0,
            busy: false,
            work: 0,
            sqe: Sqe::default(),
            direction: Direction::None,
            in_capsule: false,
            at: 0,
            len: 0,
            received: 0,
            last_seen: false,
            digest_failed: false,
            requested: 0,
            grant: None,
            begun: false,
            queued: false,
            held: None,
            deadline: None,
            aborting: Aborting::No,
        }
    }
}

impl Entry {
    fn free() -> Self {
        Self {
            work: None,
            units_done: 0,
            outstanding: 0,
            cqe: Cqe::default(),
            submitted: Instant::ZERO,
            loss: Loss::default(),
            lost: false,
        }
    }
}
