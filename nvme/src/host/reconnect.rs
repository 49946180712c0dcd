//! The host's driver, over a controller's attempts: who may try when, and what a loss leads to.
//!
//! What always holds: an attempt starts with fresh connections, qpairs and tables, and nothing
//! that belongs to the one before reaches it; completions of the one before are kept. An address
//! that is not reachable is tested by one controller, and an address that becomes reachable ends
//! every back-off on it, in the order and at the rate of its admission.

use std::time::Duration;

use moorline_stack::{Instant, Transport};

use super::caller::io_done;
use super::controller::{Controller, Phase};
use super::driver::Host;
use super::life::{LifeState, Verdict};
use super::reissue::ending;
use super::requeue::Ending;
use super::{Cause, CtrlId, Failure, HostEvent, HostLimits, Reach, Stage};

impl<T: Transport> Host<T> {
    /// Drops a controller's connections and connects it again at once (as far as the admission of
    /// its address allows). I/O in flight ends with Host Pathing Error. Nothing happens to a
    /// controller that is over or being shut down.
    pub fn reset(&mut self, now: Instant, ctrl: CtrlId) {
        let entry = self.entry_mut(ctrl);
        let closing =
            matches!(entry.ctrl.phase, Phase::Draining { .. } | Phase::ShuttingDown { .. })
                || matches!(entry.ctrl.phase, Phase::Closing | Phase::Closed);
        if closing || entry.life.is_over() {
            return;
        }
        let was_live = entry.life.state == LifeState::Live;
        entry.ctrl.abandon();
        entry.life.reset(now);
        if was_live {
            self.take_back(now, ctrl.index, Ending::Silent);
        }
        self.act(now, ctrl.index);
        self.attempt_ended(now, ctrl.index, was_live);
        self.go_on(now, ctrl.index);
    }

    /// Carries out a controller's actions, and what its life has due.
    pub(super) fn go_on(&mut self, now: Instant, ctrl: u32) {
        self.act(now, ctrl);
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        let until = match entry.life.state {
            LifeState::Waiting { until } => until,
            LifeState::Attempting => None,
            LifeState::Live | LifeState::Over => return,
        };
        if entry.life.is_too_long(now) {
            return self.give_up(now, ctrl);
        }
        if until.is_some_and(|until| until <= now) && self.may_attempt(now, ctrl) {
            self.attempt(now, ctrl);
        }
        self.note_deadline(ctrl);
    }

    /// Whether the address lets a controller that is due try now; if not, it waits for the
    /// address to be reachable, or for its place in the admission.
    fn may_attempt(&mut self, now: Instant, ctrl: u32) -> bool {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return false };
        if entry.ctrl.config.reconnect.is_none() {
            return true;
        }
        let address = self.addresses.at(entry.address);
        if address.reach.is_tested() && !entry.life.forced && !entry.standby.is_next() {
            entry.life.wait_until(None);
            entry.life.admitted = false;
            if address.tester.is_none() {
                self.probes.set(entry.address, address.next_probe.max(now));
            }
            return false;
        }
        if !entry.life.admitted {
            let connections = 1 + u32::from(entry.ctrl.config.io_queues);
            let connections = connections.saturating_sub(entry.standby.ready() as u32);
            if connections == 0 {
                return true;
            }
            let HostLimits { admission_per_s, admission_burst, .. } = self.limits;
            let at = address.admit(now, connections, admission_per_s, admission_burst);
            let HostLimits { starts_per_s, starts_burst, .. } = self.limits;
            let at = self.addresses.start(now, at, starts_per_s, starts_burst);
            entry.life.admitted = true;
            entry.life.wait_until(Some(at));
            return at <= now;
        }
        true
    }

    /// Starts an attempt from scratch.
    pub(super) fn attempt(&mut self, now: Instant, ctrl: u32) {
        self.clear(ctrl);
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        if entry.ctrl.phase != Phase::New {
            let old = &entry.ctrl;
            entry.ctrl = Controller::new(now, old.id, old.config.clone(), old.names.clone());
        }
        entry.life.attempt(now);
        self.standby_attempt(ctrl);
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        entry.ctrl.start(now);
        self.figures.attempts += 1;
        self.act(now, ctrl);
    }

    /// Forgets what is left of the attempt before, save completions that were not polled.
    fn clear(&mut self, ctrl: u32) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        for qpair in entry.ctrl.qpairs.iter_mut().skip(1) {
            while let Some(done) = qpair.poll_done() {
                self.left.push_back(io_done(entry.ctrl.id, done));
            }
        }
        for conn in entry.conns.drain(..).flatten() {
            let owner = &mut self.owners[conn.index as usize];
            *owner = owner.filter(|(owner, _)| *owner != conn);
        }
        entry.opens.clear();
        entry.dirty.clear();
        entry.ready.clear();
    }

    /// A controller is live.
    pub(super) fn live(&mut self, now: Instant, ctrl: u32, after: Duration) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        entry.life.live(now);
        self.standby_live(now, ctrl);
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        let (id, address) = (entry.ctrl.id, entry.address);
        let place = self.addresses.at(address);
        place.live += 1;
        if place.tester == Some(ctrl) {
            place.tester = None;
        }
        self.events.push(HostEvent::Live { ctrl: id, after });
        if let Some(store) = &mut entry.requeue {
            store.live(&entry.ctrl.info);
            self.advance(now, ctrl);
        }
        self.reached(now, address);
    }

    /// A controller is lost, or could not be made live.
    pub(super) fn lost(&mut self, now: Instant, ctrl: u32, failure: Failure) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        let counted = &mut entry.ctrl.keep_alive_figures;
        entry.keep_alives_lost += self.figures.take_keep_alives(counted);
        let was_live = entry.life.state == LifeState::Live;
        // No answer within a command's deadline: its target may be gone, one of us looks.
        if failure.cause == Cause::Timeout {
            let address = self.addresses.at(entry.address);
            match failure.stage {
                Stage::Live => address.failed(Reach::Silent, true),
                Stage::InitializeConnection => address.failed(Reach::Silent, false),
                _ => {}
            }
        }
        let left = was_live && failure.is_by_peer();
        entry.history.errors.count(failure.kind());
        self.figures.errors.count(failure.kind());
        entry.failure = Some(failure.clone());
        let id = entry.ctrl.id;
        let verdict = entry.life.lost(now, failure.is_retryable());
        if was_live && verdict != Verdict::Final {
            self.take_back(now, ctrl, ending(&failure));
        }
        self.attempt_ended(now, ctrl, was_live);
        self.standby_of_lost(now, ctrl, was_live, &failure);
        if left {
            self.left(now, ctrl);
        }
        match verdict {
            Verdict::Retry { tell: true } => {
                self.events.push(HostEvent::Disconnected { ctrl: id, failure });
            }
            Verdict::Retry { tell: false } => {}
            Verdict::Final => {
                self.events.push(HostEvent::Failed { ctrl: id, failure });
                self.leave(now, ctrl);
            }
        }
    }

    /// A target ended a connection of a live controller. With the last of its address it may be
    /// going away: one looks, after the shortest pause, before all come back.
    fn left(&mut self, now: Instant, ctrl: u32) {
        let Some(entry) = &self.entries[ctrl as usize] else { return };
        let Some(reconnect) = entry.ctrl.config.reconnect else { return };
        let address = self.addresses.at(entry.address);
        if address.live == 0 && address.reach == Reach::Reachable {
            address.reach = Reach::Left;
            address.next_probe = now + reconnect.delay_min;
        }
    }

    /// An outage has lasted for too long: the controller fails, and an attempt under way with it,
    /// for what it was lost for last, or else for what it waits for.
    fn give_up(&mut self, now: Instant, ctrl: u32) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        let failure = entry.failure.get_or_insert_with(|| entry.ctrl.too_long(now)).clone();
        entry.life.closed(now);
        entry.ctrl.abandon();
        entry.ctrl.phase = Phase::Failed; // also where no attempt was ever made
        let id = entry.ctrl.id;
        self.act(now, ctrl);
        self.attempt_ended(now, ctrl, false);
        self.events.push(HostEvent::Failed { ctrl: id, failure });
        self.note_state(now, ctrl);
        self.leave(now, ctrl);
    }

    /// A controller is closed, as asked.
    pub(super) fn closed(&mut self, now: Instant, ctrl: u32) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        if entry.life.is_over() {
            return;
        }
        let was_live = entry.life.state == LifeState::Live;
        entry.life.closed(now);
        entry.ctrl.phase = Phase::Closed; // also where it was between attempts
        let id = entry.ctrl.id;
        self.attempt_ended(now, ctrl, was_live);
        self.events.push(HostEvent::Closed { ctrl: id });
        self.note_state(now, ctrl);
        self.leave(now, ctrl);
    }

    /// Its attempt, or its being live, is over: its address may need another tester.
    fn attempt_ended(&mut self, now: Instant, ctrl: u32, was_live: bool) {
        let Some(entry) = &self.entries[ctrl as usize] else { return };
        let address = self.addresses.at(entry.address);
        if was_live {
            address.live -= 1;
        }
        if address.tester == Some(ctrl) {
            address.tester = None;
            let place = entry.address;
            if address.reach.is_tested() {
                self.probes.set(place, address.next_probe.max(now));
            }
            self.probe_ended(place);
        }
    }

    /// A controller is over: it has no part in its address any more, and nothing waits for it.
    fn leave(&mut self, now: Instant, ctrl: u32) {
        self.close_store(now, ctrl);
        self.standby_drop(now, ctrl);
        let Some(entry) = &self.entries[ctrl as usize] else { return };
        if self.addresses.leave(entry.address, ctrl) {
            self.probes.clear(entry.address);
        }
    }

    /// An address takes connections: every back-off on it ends, unless it did so before.
    pub(super) fn reached(&mut self, now: Instant, place: u32) {
        self.probe_ended(place);
        let address = self.addresses.at(place);
        let before = std::mem::replace(&mut address.reach, Reach::Reachable);
        if !before.is_tested() {
            return;
        }
        self.probes.clear(place);
        self.end_back_offs(now, place);
    }

    /// Nobody waits for an address any longer, but for a place in its admission.
    pub(super) fn end_back_offs(&mut self, now: Instant, place: u32) {
        let members = std::mem::take(&mut self.addresses.at(place).members);
        for &ctrl in &members {
            let Some(entry) = &mut self.entries[ctrl as usize] else { continue };
            if entry.life.is_waiting() && !entry.life.admitted {
                entry.life.wait_until(Some(now));
                self.arm(ctrl, Some(now));
            }
        }
        self.addresses.at(place).members = members;
    }
}
