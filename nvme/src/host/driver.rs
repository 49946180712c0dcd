//! The host's driver: many controllers over one transport, one turn at a time.

use std::io;
use std::os::fd::BorrowedFd;

use moorline_stack::{Instant, Transport};

use super::{
    AdminCommand, AdminDone, CtrlConfig, CtrlId, HostEvent, HostIdentity, HostLimits, Info, Io,
    IoDone,
};

/// A host. A turn is [`Host::turn`], then the polls and submissions, then [`Host::flush`], then
/// [`Host::wait`] where there is nothing to do.
pub struct Host<T: Transport> {
    transport: T,
}

#[allow(unused_variables)]
impl<T: Transport> Host<T> {
    /// A host with its own transport.
    pub fn new(transport: T, identity: HostIdentity, limits: HostLimits) -> Self {
        Self { transport }
    }

    /// Starts to connect a controller; [`HostEvent::Live`] or [`HostEvent::Failed`] will tell.
    ///
    /// # Errors
    /// `InvalidInput` for a configuration that cannot work (says which field), `QuotaExceeded`
    /// when there are as many controllers as the limits allow.
    pub fn connect(&mut self, now: Instant, config: CtrlConfig) -> io::Result<CtrlId> {
        unimplemented!()
    }

    /// Shuts a controller down in order: its I/O ends (bounded), CC.SHN, connections closed.
    /// [`HostEvent::Closed`] or [`HostEvent::Failed`] follows, once.
    pub fn disconnect(&mut self, now: Instant, ctrl: CtrlId) {
        unimplemented!()
    }

    /// Takes in what has arrived and what is due.
    pub fn turn(&mut self, now: Instant) {
        unimplemented!()
    }

    /// Puts on the wire what was submitted, with one wakeup.
    pub fn flush(&mut self, now: Instant) {
        unimplemented!()
    }

    /// The next thing to tell of a controller.
    pub fn poll_event(&mut self) -> Option<HostEvent> {
        unimplemented!()
    }

    /// What is known of a controller: complete once it is live, kept after it ended until its
    /// place is needed for another.
    ///
    /// # Panics
    /// For an id whose place was given to another controller since.
    pub fn controller(&self, ctrl: CtrlId) -> &Info {
        unimplemented!()
    }

    /// Submits an I/O on I/O qpair `qpair` (0 to `Info::io_queues` less one).
    ///
    /// # Errors
    /// The I/O itself: the queue is full, or the controller is not live. Poll, and try again.
    ///
    /// # Panics
    /// When a read's or write's buffer is missing or too short: the caller's bug.
    pub fn submit(&mut self, now: Instant, ctrl: CtrlId, qpair: usize, io: Io) -> Result<(), Io> {
        unimplemented!()
    }

    /// The next I/O that ended.
    pub fn poll_io(&mut self) -> Option<IoDone> {
        unimplemented!()
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
        unimplemented!()
    }

    /// The next admin command that ended.
    pub fn poll_admin(&mut self) -> Option<AdminDone> {
        unimplemented!()
    }

    /// When the next turn is due if nothing arrives before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// Sleeps until something arrives, one of `also` becomes readable, `until`, or the next
    /// deadline. The only call that may block.
    ///
    /// # Errors
    /// Of the wait itself.
    pub fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        unimplemented!()
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
