//! The host's driver, the caller's side: events, I/O and admin commands, and the wait.
//!
//! What always holds: what was accepted is given back exactly once, over reconnections too.

use std::io;
use std::os::fd::BorrowedFd;

use moorline_stack::time::earliest;
use moorline_stack::{Instant, Transport};

use super::controller::Phase;
use super::driver::{At, Entry, Host};
use super::work::{Accepted, Owner, Work, WorkDone};
use super::{AdminCommand, AdminDone, CtrlId, HostEvent, Info, Io, IoDone, IoOp, NamespaceInfo};
use crate::spec::Status;

/// Admin commands that ended and that the caller has not polled; above it no more are taken.
const ADMIN_DONE_MAX: usize = 256;

impl<T: Transport> Host<T> {
    /// The next thing to tell of a controller.
    ///
    /// Poll in every turn. Of what is not polled the newest is kept: of each controller one
    /// `Live`, one `Disconnected`, one `Failed`, one `Closed`, and four `Aen`.
    pub fn poll_event(&mut self) -> Option<HostEvent> {
        let event = self.events.pop()?;
        if let HostEvent::Aen { ctrl, .. } = event {
            self.repost_aer(ctrl);
        }
        Some(event)
    }

    fn repost_aer(&mut self, ctrl: CtrlId) {
        let Some(entry) = &mut self.entries[ctrl.index as usize] else { return };
        if entry.ctrl.id == ctrl {
            entry.ctrl.post_aers(Instant::ZERO);
            self.mark(At { ctrl: ctrl.index, qpair: 0 });
        }
    }

    /// What is known of a controller: complete while it is live, kept while it waits to be tried
    /// again, and after it ended until its place is needed for another.
    ///
    /// # Panics
    /// For an id whose place was given to another controller since.
    pub fn controller(&self, ctrl: CtrlId) -> &Info {
        &self.entry(ctrl).ctrl.info
    }

    pub(super) fn entry(&self, ctrl: CtrlId) -> &Entry {
        let entry = self.entries[ctrl.index as usize].as_ref();
        let entry = entry.filter(|entry| entry.ctrl.id == ctrl);
        entry.expect("a controller's id is used while its place is its own")
    }

    pub(super) fn entry_mut(&mut self, ctrl: CtrlId) -> &mut Entry {
        let entry = self.entries[ctrl.index as usize].as_mut();
        let entry = entry.filter(|entry| entry.ctrl.id == ctrl);
        entry.expect("a controller's id is used while its place is its own")
    }

    /// Submits an I/O on I/O qpair `qpair` (0 to `Info::io_queues` less one).
    ///
    /// An unknown namespace, or blocks beyond its end, complete with the status that the
    /// controller would give.
    ///
    /// # Errors
    /// The I/O itself: the queue is full, or the controller is not live. Poll, and try again.
    /// With [`super::Requeue`] a controller that was live takes I/O while it is tried again, as
    /// much as its queue holds, the I/O that was not polled included.
    ///
    /// # Panics
    /// When a read's or write's buffer is missing or too short: the caller's bug.
    pub fn submit(&mut self, now: Instant, ctrl: CtrlId, qpair: usize, io: Io) -> Result<(), Io> {
        let entry = self.entry_mut(ctrl);
        if entry.requeue.is_some() {
            return self.submit_kept(now, ctrl, qpair, io);
        }
        let q = qpair + 1;
        let controller = &mut entry.ctrl;
        if controller.phase != Phase::Live
            || !controller.qpairs.get(q).is_some_and(|qpair| qpair.has_room(0))
        {
            return Err(io);
        }
        let transfer_max = controller.info.transfer_max;
        let timeout = controller.config.timeouts.io;
        let at = At { ctrl: ctrl.index, qpair: q as u32 };
        let checked = check_io(&controller.info.namespaces, &io);
        let accepted = Accepted { io, home: qpair as u16, seq: 0, submitted: now, timeouts: 0 };
        match checked {
            Ok(block_size) => {
                let work = Work::io(accepted, block_size, transfer_max, timeout);
                controller.qpairs[q].submit(now, work);
            }
            Err(status) => {
                let work = Work::io(accepted, 1, transfer_max, timeout);
                controller.qpairs[q].reject(now, work, status);
            }
        }
        let deadline = controller.qpairs[q].poll_timeout();
        self.arm(ctrl.index, deadline);
        self.mark(at);
        Ok(())
    }

    /// The next I/O that ended.
    pub fn poll_io(&mut self) -> Option<IoDone> {
        if let Some(done) = self.left.pop_front() {
            return Some(self.given_back(done));
        }
        while let Some(&at) = self.ready.front() {
            let q = at.qpair as usize;
            if let Some(entry) = &mut self.entries[at.ctrl as usize]
                && let Some(ready) = entry.ready.get_mut(q)
            {
                if let Some(done) = entry.ctrl.qpairs[q].poll_done() {
                    let done = io_done(entry.ctrl.id, done);
                    return Some(self.given_back(done));
                }
                *ready = false;
            }
            self.ready.pop_front();
        }
        None
    }

    /// Submits an admin command of the caller's own, on a controller that is live.
    ///
    /// # Errors
    /// The command itself: the admin queue is full, or the controller is not live.
    pub fn admin(
        &mut self,
        now: Instant,
        ctrl: CtrlId,
        tag: u64,
        command: AdminCommand,
    ) -> Result<(), AdminCommand> {
        let is_full = self.admin_done.len() >= ADMIN_DONE_MAX;
        let entry = self.entry_mut(ctrl);
        if is_full || !entry.ctrl.has_admin_room() {
            return Err(command);
        }
        let timeout = entry.ctrl.config.timeouts.admin;
        let work = Work::admin(Owner::Admin(tag), command, Some(timeout));
        entry.ctrl.qpairs[0].submit(now, work);
        self.mark(At { ctrl: ctrl.index, qpair: 0 });
        self.note_deadline(ctrl.index);
        Ok(())
    }

    /// The next admin command that ended.
    pub fn poll_admin(&mut self) -> Option<AdminDone> {
        self.admin_done.pop_front()
    }

    /// When the next turn is due if nothing arrives before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = earliest(self.deadlines.next(), self.probes.next());
        earliest(own, self.transport.poll_timeout())
    }

    /// Sleeps until something arrives, one of `also` becomes readable, `until`, or the next
    /// deadline. The only call that may block.
    ///
    /// # Errors
    /// Of the wait itself.
    pub fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.transport.wait(earliest(until, self.poll_timeout()), also)
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport, to turn other users of it (an echo, a target) in the same thread.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }
}

/// An I/O's end, as the caller is told.
pub(super) fn io_done(ctrl: CtrlId, done: WorkDone) -> IoDone {
    let Owner::Io(tag) = done.owner else { unreachable!("an I/O queue's work") };
    IoDone {
        ctrl,
        qpair: done.home.into(),
        tag,
        status: done.cqe.status(),
        buf: done.memory.into_io_buf(),
        submitted: done.submitted,
    }
}

/// The block size of an I/O's namespace, or the status that it ends with at once.
pub(super) fn check_io(namespaces: &[NamespaceInfo], io: &Io) -> Result<u32, Status> {
    if io.op == IoOp::Flush {
        return Ok(1);
    }
    let at = namespaces.binary_search_by_key(&io.nsid, |namespace| namespace.nsid);
    let namespace = &namespaces[at.map_err(|_| Status::INVALID_NAMESPACE.with_dnr())?];
    let end = io.lba.checked_add(u64::from(io.blocks));
    if end.is_none_or(|end| end > namespace.blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    if let IoOp::Read | IoOp::Write { .. } = io.op {
        let bytes = io.blocks as usize * namespace.block_size as usize;
        let room = io.buf.as_ref().map_or(0, |buf| buf.len().saturating_sub(io.buf_offset));
        assert!(room >= bytes, "an I/O of {bytes} bytes has a buffer of {room}");
    }
    Ok(namespace.block_size)
}
