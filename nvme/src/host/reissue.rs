//! The host's driver, I/O that outlives its path: what a caller submits while the controller is
//! away, what is taken back from a lost path, and what is issued again.
//!
//! What always holds: an I/O is in the store, in a qpair, or given back; a turn looks at the store
//! of a controller when something of it is due, and while something in it waits for room.

use std::collections::VecDeque;

use moorline_stack::{Instant, Transport};

use super::caller::check_io;
use super::controller::{Controller, Phase};
use super::driver::{At, Entry, Host};
use super::requeue::{Due, Ending, Store};
use super::work::{Accepted, Work};
use super::{Cause, CtrlId, Failure, Io, IoDone};
use crate::spec::Status;

impl<T: Transport> Host<T> {
    /// Submits an I/O on a controller whose I/O outlives its path.
    pub(super) fn submit_kept(
        &mut self,
        now: Instant,
        ctrl: CtrlId,
        home: usize,
        io: Io,
    ) -> Result<(), Io> {
        let entry = self.entry_mut(ctrl);
        let Some(store) = entry.requeue.as_mut().filter(|store| store.has_room(home)) else {
            return Err(io);
        };
        let block_size = match check_io(store.namespaces(), &io) {
            Ok(block_size) if !store.is_failing() => block_size,
            wrong => {
                let status = wrong.err().unwrap_or(Status::HOST_PATHING_ERROR);
                let accepted = store.accept(now, home, io);
                self.left.push_back(ended(ctrl, accepted, status));
                return Ok(());
            }
        };
        if store.must_wait(home, &io) {
            let accepted = store.accept(now, home, io);
            store.push(accepted);
            self.note_refill(ctrl.index);
            self.note_deadline(ctrl.index);
            return Ok(());
        }
        let q = home + 1;
        if !entry.ctrl.qpairs[q].has_room(0) {
            return Err(io);
        }
        let accepted = store.accept(now, home, io);
        submit(now, &mut entry.ctrl, q, accepted, block_size);
        let deadline = entry.ctrl.qpairs[q].poll_timeout();
        self.arm(ctrl.index, deadline);
        self.mark(At { ctrl: ctrl.index, qpair: q as u32 });
        Ok(())
    }

    /// Takes back the I/O of a live controller whose path was lost, to be issued again.
    pub(super) fn take_back(&mut self, now: Instant, ctrl: u32, ending: Ending) {
        let Some(Entry { ctrl: controller, requeue: Some(store), .. }) =
            &mut self.entries[ctrl as usize]
        else {
            return;
        };
        store.lost(now, ending, controller.kato_at_most(), &controller.info);
        let (id, left) = (controller.id, &mut self.left);
        for qpair in controller.qpairs.iter_mut().skip(1) {
            qpair.table.take_lost(&mut |work, loss| {
                let Some(accepted) = work.into_accepted() else { return };
                if let Err(accepted) = store.put_back(accepted, loss) {
                    left.push_back(ended(id, accepted, Status::HOST_PATHING_ERROR));
                }
            });
        }
        self.advance(now, ctrl);
    }

    /// Issues, or fails, what is due of what waits.
    pub(super) fn advance(&mut self, now: Instant, ctrl: u32) {
        let Some(Entry { ctrl: controller, requeue: Some(store), .. }) =
            &mut self.entries[ctrl as usize]
        else {
            return;
        };
        let (id, left) = (controller.id, &mut self.left);
        store.advance(now, &mut |accepted, due| match due {
            Due::Fail(status) => {
                left.push_back(ended(id, accepted, status));
                Ok(())
            }
            Due::Issue(queue) => issue(now, controller, 1 + usize::from(queue), accepted, left),
        });
        for qpair in 1..controller.qpairs.len() as u32 {
            self.mark(At { ctrl, qpair });
        }
        self.note_refill(ctrl);
        self.note_deadline(ctrl);
    }

    /// Honours what is due of what waits.
    pub(super) fn requeue_due(&mut self, now: Instant, ctrl: u32) {
        let Some(entry) = &self.entries[ctrl as usize] else { return };
        let next = entry.requeue.as_ref().and_then(Store::poll_timeout);
        if next.is_some_and(|next| next <= now) {
            self.advance(now, ctrl);
        }
    }

    /// Fails all that waits; nothing will be live again.
    pub(super) fn close_store(&mut self, now: Instant, ctrl: u32) {
        if let Some(Entry { requeue: Some(store), .. }) = &mut self.entries[ctrl as usize] {
            store.close();
            self.advance(now, ctrl);
        }
    }

    /// Remembers that something waits for room.
    fn note_refill(&mut self, ctrl: u32) {
        if let Some(entry) = &mut self.entries[ctrl as usize]
            && !entry.refill
            && entry.requeue.as_ref().is_some_and(Store::wants_room)
        {
            entry.refill = true;
            self.refill.push_back(ctrl);
        }
    }

    /// Issues what waits for room, where there is some.
    pub(super) fn refill(&mut self, now: Instant) {
        for _ in 0..self.refill.len() {
            let Some(ctrl) = self.refill.pop_front() else { return };
            let Some(entry) = &mut self.entries[ctrl as usize] else { continue };
            entry.refill = false;
            let mut io = entry.ctrl.qpairs.iter().skip(1);
            if io.any(|qpair| qpair.has_room(0)) {
                self.advance(now, ctrl);
            } else {
                self.note_refill(ctrl);
            }
        }
    }

    /// An I/O goes back to the caller.
    pub(super) fn given_back(&mut self, done: IoDone) -> IoDone {
        if let Some(entry) = &mut self.entries[done.ctrl.index as usize]
            && entry.ctrl.id == done.ctrl
            && let Some(store) = &mut entry.requeue
        {
            store.given_back(done.qpair);
        }
        done
    }
}

/// Issues an I/O on qpair `q` of a live controller, or ends it with what is wrong with it; gives
/// it back where there is no room.
fn issue(
    now: Instant,
    controller: &mut Controller,
    q: usize,
    accepted: Accepted,
    left: &mut VecDeque<IoDone>,
) -> Result<(), Accepted> {
    let has_room = controller.qpairs.get(q).is_some_and(|qpair| qpair.has_room(0));
    if controller.phase != Phase::Live || !has_room {
        return Err(accepted);
    }
    match check_io(&controller.info.namespaces, &accepted.io) {
        Ok(block_size) => submit(now, controller, q, accepted, block_size),
        Err(status) => left.push_back(ended(controller.id, accepted, status)),
    }
    Ok(())
}

/// Submits an I/O that was checked, and for which there is room, on qpair `q`.
fn submit(
    now: Instant,
    controller: &mut Controller,
    q: usize,
    accepted: Accepted,
    block_size: u32,
) {
    let (transfer_max, timeout) = (controller.info.transfer_max, controller.config.timeouts.io);
    controller.qpairs[q].submit(now, Work::io(accepted, block_size, transfer_max, timeout));
}

/// The end of an I/O that is in no qpair.
fn ended(ctrl: CtrlId, accepted: Accepted, status: Status) -> IoDone {
    let Accepted { io, home, submitted, .. } = accepted;
    IoDone { ctrl, qpair: home.into(), tag: io.tag, status, buf: io.buf, submitted }
}

/// How a path ended, as far as its failure tells. The loss of any connection ends the association
/// (NVMe over Fabrics), so a connection that the controller ended speaks for the others.
pub(super) fn ending(failure: &Failure) -> Ending {
    let terminated = matches!(failure.cause, Cause::Terminated(_));
    if terminated || failure.is_by_peer() { Ending::ByPeer } else { Ending::Silent }
}
