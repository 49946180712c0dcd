//! One controller, driven from beginning to end: for the commands that ask a question and go.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use moorline_nvme::host::{
    AdminCommand, AdminDone, CtrlConfig, CtrlId, Host, HostEvent, HostIdentity, HostLimits, Info,
};
use moorline_stack::{Instant, Transport};

use crate::signals::Stop;

/// More than an orderly shutdown may take: outstanding I/O, CSTS.SHST, connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

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
            ..HostLimits::default()
        };
        let mut host = Host::new(transport, identity, limits);
        let ctrl = host.connect(Instant::monotonic(), config)?;
        let mut session = Self { host, ctrl, stop };
        session.until(|host| match host.poll_event()? {
            HostEvent::Live { .. } => Some(Ok(())),
            HostEvent::Failed { failure, .. } => Some(Err(anyhow!(failure))),
            HostEvent::Closed { .. } => Some(Err(anyhow!("the controller was closed"))),
            HostEvent::Disconnected { .. } | HostEvent::Aen { .. } => None,
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

    /// Shuts the controller down in order, even if the user wants an end. Bounded: who has turned
    /// the host by [`Session::parts`] may have taken the event that this waits for.
    pub fn close(mut self) {
        let started = Instant::monotonic();
        self.stop = Stop::default();
        self.host.disconnect(started, self.ctrl);
        // On the way out, nothing that goes wrong changes what was learnt.
        let _ = self.until(|host| match host.poll_event() {
            Some(HostEvent::Closed { .. } | HostEvent::Failed { .. }) => Some(()),
            Some(_) => None,
            None => (Instant::monotonic() - started > CLOSE_TIMEOUT).then_some(()),
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
            let tick = now + Duration::from_millis(100);
            let until = self.host.poll_timeout().map_or(tick, |due| due.min(tick));
            self.host.wait(Some(until), &[])?;
        }
    }
}
