//! The target's driver: one transport, and the machines above it, one turn at a time.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use moorline_stack::{Instant, Transport};

use super::{Subsystem, TargetConfig, TargetStats};

/// A target. A turn is [`Target::turn`], then [`Target::flush`], then [`Target::wait`] where it
/// may sleep.
pub struct Target<T: Transport> {
    transport: T,
}

#[allow(unused_variables, clippy::unimplemented)]
impl<T: Transport> Target<T> {
    /// A target with its own transport, and no subsystem but discovery.
    ///
    /// # Panics
    /// For a configuration outside the ranges that its fields state.
    pub fn new(transport: T, config: TargetConfig) -> Self {
        Self { transport }
    }

    /// Adds a subsystem, reachable on all listeners.
    ///
    /// # Errors
    /// `InvalidInput` for names that are not valid, `AlreadyExists` for an NQN that is taken.
    pub fn add_subsystem(&mut self, subsystem: Subsystem) -> io::Result<()> {
        unimplemented!()
    }

    /// Accepts connections to `addr`; discovery answers on every listener.
    ///
    /// # Errors
    /// The transport's, with the address in the message.
    pub fn listen(&mut self, now: Instant, addr: SocketAddr) -> io::Result<()> {
        unimplemented!()
    }

    /// Takes in what has arrived, executes, answers, and does what is due.
    pub fn turn(&mut self, now: Instant) {
        unimplemented!()
    }

    /// Puts the answers on the wire, with one wakeup.
    pub fn flush(&mut self, now: Instant) {
        self.transport.flush(now);
    }

    /// When the next turn is due if nothing arrives before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// Sleeps until something arrives, a block device has finished something, one of `also`
    /// becomes readable, `until`, or the next deadline. The only call that may block.
    ///
    /// # Errors
    /// Of the wait itself.
    pub fn wait(&mut self, until: Option<Instant>, also: &[BorrowedFd<'_>]) -> io::Result<()> {
        unimplemented!()
    }

    /// Counters since the target was made.
    pub fn stats(&self) -> TargetStats {
        unimplemented!()
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport, to turn other users of it (an echo, a host) in the same thread.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }
}
