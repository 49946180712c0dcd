//! Deadlines of commands, and what follows when one passes: an I/O command is aborted (NVMe Base,
//! "Abort command"); any other, and one whose Abort did not help in time, ends its connection, and
//! that resets the controller.
//!
//! What always holds: a command gets one Abort at most, and at most ACL + 1 of them are out. It
//! ends, or its connection does, within its timeout and [`super::Timeouts::abort`], also where
//! its Abort never had its turn. Its slot and CID stay its own until then, so what arrives late
//! finds the command that it belongs to. What the Abort itself is answered does not matter: only
//! the command's completion says how the command ended.

use std::time::Duration;

use moorline_stack::Instant;

use super::controller::{ADMIN_RESERVE, Controller, Phase};
use super::failure::Cause;
use super::history::KEEP_ALIVE;
use super::qpair::{End, Qpair};
use super::work::{Owner, Work};

/// How far a command is on its way to be aborted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Aborting {
    /// It is in time, or has completed.
    #[default]
    No,
    /// Its deadline has passed; its Abort waits for its turn.
    Wanted,
    /// Its Abort was sent.
    Sent,
}

impl Qpair {
    /// Honours the deadlines of commands. One that can be aborted gets `grace` more, once; without
    /// a grace, or for another, the qpair ends.
    pub(super) fn commands_due(&mut self, now: Instant, grace: Option<Duration>) {
        let mut over = None;
        for index in 0..self.config.queue_size - 1 {
            let slot = self.table.slot(index);
            let Some(deadline) = slot.deadline.filter(|at| slot.is_busy() && *at <= now) else {
                continue;
            };
            self.table.timed_out(index);
            match grace.filter(|_| self.can_abort(index)) {
                Some(grace) => {
                    let slot = self.table.slot_mut(index);
                    slot.deadline = Some(now + grace);
                    slot.aborting = Aborting::Wanted;
                    self.aborts_wanted += 1;
                }
                None => over = Some(over.unwrap_or((deadline, index)).min((deadline, index))),
            }
        }
        self.armed = self.table.earliest_deadline();
        let Some((_, index)) = over else { return };
        let awaited = match self.table.work(index).owner {
            Owner::Connect => Some("Connect response"),
            Owner::KeepAlive => Some(KEEP_ALIVE),
            Owner::Io(_) => Some("completion of an I/O command"),
            Owner::Abort => Some("completion of an Abort"),
            Owner::Kato => Some("Features Keep Alive Timer"),
            Owner::Admin(_) | Owner::Aer => Some("completion of an admin command"),
            Owner::Step => None,
        };
        let after = Some(now - self.table.submitted(index));
        self.end_with(End { stage: self.stage(), awaited, after, cause: Cause::Timeout });
    }

    /// An I/O command whose capsule has begun to go out, not aborted before. The controller does
    /// not know of one that never went out, and one that is held has completed: with those, it is
    /// the connection that does not move.
    fn can_abort(&self, index: u16) -> bool {
        let slot = self.table.slot(index);
        let fresh = slot.begun && slot.held.is_none() && slot.aborting == Aborting::No;
        fresh && matches!(self.table.work(index).owner, Owner::Io(_))
    }

    /// The CID of the next command to abort: of those that wait, the one that ends first.
    fn next_abort(&mut self) -> Option<u16> {
        if self.aborts_wanted == 0 || !self.is_live() {
            return None;
        }
        let waits = |index: &u16| self.table.slot(*index).aborting == Aborting::Wanted;
        let indices = (0..self.config.queue_size - 1).filter(waits);
        let index = indices.min_by_key(|index| self.table.slot(*index).deadline)?;
        self.aborts_wanted -= 1;
        let slot = self.table.slot_mut(index);
        slot.aborting = Aborting::Sent;
        Some(slot.sqe.cid.get())
    }

    /// A command has completed: there is nothing to abort any more.
    pub(super) fn settle_abort(&mut self, index: u16) {
        let aborting = std::mem::take(&mut self.table.slot_mut(index).aborting);
        self.aborts_wanted -= u16::from(aborting == Aborting::Wanted);
    }
}

impl Controller {
    /// How long a command whose deadline has passed may take to be aborted: `Timeouts::abort`, or
    /// the admin timeout where that is shorter. `None` where nothing is to be hoped for: a keep
    /// alive waits for its answer since KATO/2 already, or the controller is not live.
    pub(super) fn abort_grace(&self, now: Instant) -> Option<Duration> {
        let hopeless = self.phase != Phase::Live || self.keep_alive_is_late(now);
        let timeouts = &self.config.timeouts;
        (!hopeless).then(|| timeouts.abort.min(timeouts.admin))
    }

    /// Sends the Aborts that wait, as far as ACL and the admin queue allow; the answer to any
    /// admin command makes room for more.
    pub(super) fn send_aborts(&mut self, now: Instant) {
        if self.phase != Phase::Live {
            return;
        }
        for q in 1..self.qpairs.len() {
            while self.aborts < self.aborts_max
                && self.qpairs[0].has_room(ADMIN_RESERVE)
                && let Some(cid) = self.qpairs[q].next_abort()
            {
                self.aborts += 1;
                let work = Work::abort(q as u16, cid, self.config.timeouts.admin);
                self.qpairs[0].submit(now, work);
            }
        }
    }
}
