//! A controller's keep alive and its asynchronous events: the commands that it sends by itself.
//!
//! What always holds: one keep alive is under way at most, and its lateness is measured when it is
//! submitted; as many event requests are posted as are wanted.

use std::time::Duration;

use moorline_stack::Instant;

use super::HostEvent;
use super::controller::{ADMIN_RESERVE, Action, Controller};
use super::qpair::Qpair;
use super::work::Work;
use crate::spec::Cqe;
use crate::spec::aer::AsyncEvent;

/// Asynchronous event requests that we keep posted, at most.
pub(super) const AERS_MAX: u8 = 4;

/// What became of the keep alives since it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeepAliveFigures {
    /// One was, so much later than due. It is looked after each deadline.
    pub sent: Option<Duration>,
    pub lost: u64,
}

/// Keep alive (NVMe Base, "Keep Alive").
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeepAlive {
    /// When to send the next, or to look whether there was traffic; and since when that is awaited.
    pub due: Option<Instant>,
    since: Instant,
    /// One was sent and not answered.
    pub outstanding: bool,
    /// When the last one was sent.
    sent_at: Instant,
    /// When it was last looked whether there was traffic (TBKAS).
    looked_at: Instant,
}

impl Controller {
    /// Keep alive starts right after Connect: the bring-up may take longer than KATO.
    pub(super) fn start_keep_alive(&mut self, now: Instant) {
        self.keep_alive.since = now;
        self.keep_alive.due = self.keep_alive_pause().map(|pause| now + pause);
    }

    /// KATO was read back: what is armed is moved, counted from where it was.
    pub(super) fn kato_known(&mut self, now: Instant, kato: Duration) {
        let before = std::mem::replace(&mut self.info.kato, kato);
        if self.keep_alive.due.is_none() {
            return self.start_keep_alive(now); // it was off
        }
        let since = self.keep_alive.since;
        self.keep_alive.due = self.keep_alive_pause().map(|pause| (since + pause).max(now));
        if before != kato {
            self.set_keep_alive_timeout(now, before, kato);
        }
    }

    /// Sent every KATO/2; with traffic based keep alive, considered every KATO/4.
    fn keep_alive_pause(&self) -> Option<Duration> {
        let parts = if self.info.tbkas { 4 } else { 2 };
        (self.info.kato > Duration::ZERO).then(|| self.info.kato / parts)
    }

    pub(super) fn keep_alive_due(&mut self, now: Instant, due: Instant) {
        self.start_keep_alive(now);
        // A command that was submitted before is no sign that the controller has heard of us
        // since, however late it completed.
        let newest = self.qpairs.iter().map(Qpair::newest_done).max();
        let traffic = newest >= Some(self.keep_alive.looked_at);
        self.keep_alive.looked_at = now;
        if self.keep_alive.outstanding || self.info.tbkas && traffic {
            return;
        }
        if self.qpairs[0].has_room(0) {
            self.keep_alive.outstanding = true;
            self.keep_alive.sent_at = now;
            self.keep_alive_figures.sent = Some(now - due);
            self.qpairs[0].submit(now, Work::keep_alive(self.info.kato));
        }
    }

    /// Whether a keep alive has waited for its answer for half of its time.
    pub(super) fn keep_alive_is_late(&self, now: Instant) -> bool {
        self.keep_alive.outstanding && now - self.keep_alive.sent_at >= self.info.kato / 2
    }

    /// Posts event requests up to what is wanted.
    pub(super) fn post_aers(&mut self, now: Instant) {
        while self.aers_posted < self.aers_wanted.min(AERS_MAX)
            && self.qpairs[0].has_room(ADMIN_RESERVE)
        {
            self.aers_posted += 1;
            self.qpairs[0].submit(now, Work::aer());
        }
    }

    /// The next request is posted when the caller has taken the event: no event is lost, and
    /// none piles up.
    pub(super) fn aer_done(&mut self, cqe: &Cqe) {
        self.aers_posted -= 1;
        if !cqe.status().is_success() {
            self.aers_wanted = self.aers_wanted.min(self.aers_posted);
            return;
        }
        let AsyncEvent { event_type: kind, info, lid } = AsyncEvent::from_dw0(cqe.dw0.get());
        self.actions.push_back(Action::Tell(HostEvent::Aen { ctrl: self.id, kind, info, lid }));
    }
}
