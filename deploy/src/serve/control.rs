//! The control socket of a reactor that has a host of its own: `serve` and `rig-host`.
//!
//! ```text
//! host.turn(now)
//! while let Some(event) = host.poll_event() { control.event(now, &event); … }
//! control.turn(now, &mut host);
//! host.flush(now);
//! control.took(Instant::monotonic() - now);
//! host.wait(earliest(…, control.poll_timeout()), &[control.fd()])   // where it sleeps
//! ```
//!
//! What always holds: while nobody asks, a turn costs a comparison, and a system call every
//! [`EVERY`]; who asks several things one after another is answered as fast as turns go.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use moorline_nvme::host::{CtrlConfig, CtrlId, Host, HostEvent};
use moorline_stack::{Instant, Transport};

use super::config::Settings;
use super::held::Held;
use super::server::Server;

/// The socket is looked at no more often, so that a busy loop is not full of system calls.
const EVERY: Duration = Duration::from_micros(200);
/// Who was answered may ask again: for so long every turn looks.
const ATTENTIVE: Duration = Duration::from_millis(1);

/// The names of a host's controllers, and the socket that answers for them.
pub struct Control {
    held: Held,
    server: Server,
    /// When the socket is looked at next, and until when each turn does.
    due: Instant,
    attentive_until: Instant,
}

impl Control {
    /// Listens at `path`; controllers made through it start from `defaults`.
    ///
    /// # Errors
    /// When another server listens there, or it cannot be made.
    pub fn open(path: &Path, defaults: Settings) -> Result<Self> {
        let (held, server) = (Held::new(defaults), Server::open(path)?);
        Ok(Self { held, server, due: Instant::ZERO, attentive_until: Instant::ZERO })
    }

    /// Holds one more controller, and starts to connect it.
    ///
    /// # Errors
    /// When the name is taken, or the host cannot hold it.
    pub fn connect<T: Transport>(
        &mut self,
        now: Instant,
        host: &mut Host<T>,
        name: String,
        config: CtrlConfig,
    ) -> Result<CtrlId> {
        self.held.connect(now, host, name, config)
    }

    /// Something that the host told: it is logged, and followers hear of it.
    pub fn event(&mut self, now: Instant, event: &HostEvent) {
        if let Some(told) = self.held.event(now, event) {
            self.server.publish(&told);
        }
    }

    /// Answers one request at most, if it is time to look.
    pub fn turn<T: Transport>(&mut self, now: Instant, host: &mut Host<T>) {
        if now < self.due {
            return;
        }
        if self.server.turn(now, &mut self.held.over(host)) {
            self.attentive_until = now + ATTENTIVE;
        }
        self.due = if now < self.attentive_until { now } else { now + EVERY };
        self.held.tick(now);
    }

    /// A turn took this long.
    pub fn took(&mut self, time: Duration) {
        self.held.took(time);
    }

    /// When a turn is due even if nobody writes to us.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.server.poll_timeout()
    }

    /// Readable whenever a turn has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.server.fd()
    }

    /// Shuts all controllers down.
    pub fn leave<T: Transport>(&mut self, now: Instant, host: &mut Host<T>) {
        self.held.leave(now, host);
    }

    /// Whether it holds no controller.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Writes what followers are still to be told.
    pub fn say_last<T: Transport>(&mut self, now: Instant, host: &mut Host<T>) {
        self.server.turn(now, &mut self.held.over(host));
    }
}
