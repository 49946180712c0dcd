//! One controller, driven from beginning to end: for the commands that ask a question and go.

use anyhow::{Result, anyhow, bail};
use moorline_nvme::host::{
    AdminCommand, AdminDone, CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Info,
};
use moorline_stack::{Instant, Transport};

use crate::signals::Stop;

/// A live controller.
pub struct Session<T: Transport> {
    host: Host<T>,
    ctrl: CtrlId,
    stop: Stop,
}

impl<T: Transport> Session<T> {
    /// Connects, and returns when the controller is live.
    ///
    /// # Errors
    /// Why it cannot be reached, or that the user ended it.
    pub fn open(
        transport: T,
        identity: HostIdentity,
        config: CtrlConfig,
        stop: Stop,
    ) -> Result<Self> {
        let limits = HostLimits {
            controllers: 1,
            io_queues: config.io_queues.max(1),
            queue_size: config.queue_size,
        };
        let mut host = Host::new(transport, identity, limits);
        let ctrl = host.connect(Instant::monotonic(), config)?;
        let mut session = Self { host, ctrl, stop };
        session.until(|host| match host.poll_event()? {
            HostEvent::Live { .. } => Some(Ok(())),
            HostEvent::Failed { failure, .. } => Some(Err(anyhow!(failure))),
            HostEvent::Closed { .. } => Some(Err(anyhow!("the controller was closed"))),
            HostEvent::Aen { .. } => None,
        })??;
        Ok(session)
    }

    /// What is known of the controller.
    pub fn info(&self) -> &Info {
        self.host.controller(self.ctrl)
    }

    /// The host and its controller, for those who turn it themselves.
    pub fn parts(&mut self) -> (&mut Host<T>, CtrlId) {
        (&mut self.host, self.ctrl)
    }

    /// Runs an admin command to its end; its status is the caller's to look at.
    ///
    /// # Errors
    /// When the controller is lost, or the user ended it.
    pub fn admin(&mut self, command: AdminCommand) -> Result<AdminDone> {
        if self.host.admin(Instant::monotonic(), self.ctrl, 0, command).is_err() {
            bail!("the controller takes no admin command now");
        }
        // A lost controller completes it too, with a status that says so.
        self.until(Host::poll_admin)
    }

    /// Shuts the controller down in order; its own deadline bounds it.
    pub fn close(mut self) {
        self.stop = Stop::default();
        self.host.disconnect(Instant::monotonic(), self.ctrl);
        // On the way out, nothing that goes wrong changes what was learnt.
        let _ = self.until(|host| match host.poll_event()? {
            HostEvent::Closed { .. } | HostEvent::Failed { .. } => Some(()),
            HostEvent::Live { .. } | HostEvent::Aen { .. } => None,
        });
    }

    /// Turns until `done` has an answer.
    fn until<R>(&mut self, mut done: impl FnMut(&mut Host<T>) -> Option<R>) -> Result<R> {
        loop {
            let now = Instant::monotonic();
            self.host.turn(now);
            let answer = done(&mut self.host);
            self.host.flush(now);
            if let Some(answer) = answer {
                return Ok(answer);
            }
            if self.stop.requested() {
                bail!("ended by the user");
            }
            // Not for ever: a signal between the check and the sleep must not be missed.
            let tick = now + std::time::Duration::from_millis(100);
            let until = self.host.poll_timeout().map_or(tick, |due| due.min(tick));
            self.host.wait(Some(until), &[])?;
        }
    }
}
