//! What a host shows of its controllers and of itself.
//!
//! What always holds: nothing here changes anything.

use std::fmt;
use std::time::Duration;

use moorline_stack::buckets::Buckets;
use moorline_stack::{Instant, Transport};

use super::bringup::Step;
use super::controller::Phase;
use super::driver::{Entry, Host};
use super::keep_alive::KeepAliveFigures;
use super::life::LifeState;
use super::requeue::{Shown, Store};
use super::{CtrlId, Errors, Failure, Reach, Stage};

/// Where a controller stands, over its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtrlState {
    /// TCP, ICReq and Connect of the admin queue.
    Connecting,
    /// Properties: CAP, CC, CSTS.
    Enabling,
    /// Identify and features; namespaces.
    Identifying,
    /// TCP, ICReq and Connect of the I/O queues.
    IoQueues,
    /// It takes I/O.
    Live,
    /// Dropped as the caller asked; the next attempt is about to start.
    Resetting,
    /// It waits for its next attempt.
    WaitReconnect,
    /// Being shut down as asked.
    Closing,
    /// Failed for good.
    Lost,
    /// Shut down.
    Deleted,
}

impl fmt::Display for CtrlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connecting => "connecting",
            Self::Enabling => "enabling",
            Self::Identifying => "identifying",
            Self::IoQueues => "io-queues",
            Self::Live => "live",
            Self::Resetting => "resetting",
            Self::WaitReconnect => "wait-reconnect",
            Self::Closing => "closing",
            Self::Lost => "lost",
            Self::Deleted => "deleted",
        })
    }
}

/// All that is known of where a controller stands, for a person who asks.
#[derive(Clone, Debug, PartialEq)]
pub struct CtrlStatus {
    /// Its state.
    pub state: CtrlState,
    /// Since when it is in it.
    pub since: Instant,
    /// What it waits for.
    pub awaited: &'static str,
    /// Attempts of this outage; 0 while it is live.
    pub attempts: u32,
    /// Times that it became live again.
    pub reconnects: u64,
    /// Keep alives that had no answer when it was lost.
    pub keep_alives_lost: u64,
    /// Why it was lost, or not reached, last.
    pub failure: Option<Failure>,
    /// Armed deadlines, by name.
    pub timers: Vec<(&'static str, Instant)>,
    /// What is known of its address.
    pub reach: Reach,
    /// When it is tried again; `None` while it is not waiting, or while it waits for its address.
    pub next_attempt: Option<Instant>,
    /// I/O that stays with the host ([`super::Requeue`]): its path was lost, or is.
    pub waiting: usize,
    /// Of these, writes that the old path may still execute.
    pub quiescing: usize,
    /// Standby connections that are ready.
    pub standby: usize,
}

/// Counters of a host since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Keep alives sent.
    pub keep_alives: u64,
    /// Keep alives that had no answer when their controller was lost.
    pub keep_alives_lost: u64,
    /// How much later than due a keep alive was sent, at most.
    pub keep_alive_late_max: Duration,
    /// The same of all of them, microseconds.
    pub keep_alive_late_us: Buckets,
    /// Deadlines of controllers honoured.
    pub deadlines: u64,
    /// Of these, honoured before their time; always 0.
    pub deadlines_early: u64,
    /// How much later than due a deadline was honoured, at most.
    pub deadline_late_max: Duration,
    /// The same of all of them, microseconds.
    pub deadline_late_us: Buckets,
    /// Of these, honoured later than in the first turn that began after they were due and had
    /// taken in all that had arrived; always 0.
    pub deadlines_late: u64,
    /// Events of the transport in one turn, at most.
    pub events_per_turn_max: u32,
    /// Deadlines honoured in one turn, at most.
    pub deadlines_per_turn_max: u32,
    /// Events of the transport, of all turns.
    pub events_per_turn: Buckets,
    /// PDUs received, of all turns.
    pub pdus_per_turn: Buckets,
    /// Deadlines honoured, of turns where one was.
    pub deadlines_per_turn: Buckets,
    /// Qpairs that had something to send, of all flushes.
    pub qpairs_per_flush: Buckets,
    /// Ends of attempts and of live controllers that were not asked for.
    pub errors: Errors,
    /// Attempts to connect a controller.
    pub attempts: u64,
    /// Of these, tests of an address that is not reachable; and how many were under way at once.
    pub probes: u64,
    /// See `probes`.
    pub probes_under_way_max: u32,
    /// Tests by an echo request, which are no attempts.
    pub echoes: u64,
    /// Times that a node showed that it is there, other than by a connection.
    pub announcements: u64,
    /// Standby connections now, those being made included.
    pub standby: usize,
    /// Standby connections begun, and taken by an attempt.
    pub standby_opened: u64,
    /// See `standby_opened`.
    pub standby_taken: u64,
    /// Standby connections that were not made, or ended before they were taken or renewed.
    pub standby_lost: u64,
}

impl Figures {
    /// A deadline is honoured.
    pub(super) fn honoured(&mut self, now: Instant, deadline: Instant, is_late: bool) {
        self.deadlines += 1;
        self.deadlines_late += u64::from(is_late);
        self.deadline_late_us.record_us(now - deadline);
        self.deadlines_early += u64::from(now < deadline);
        self.deadline_late_max = self.deadline_late_max.max(now - deadline);
    }

    /// Takes over what a controller counted; how many had no answer.
    pub(super) fn take_keep_alives(&mut self, counted: &mut KeepAliveFigures) -> u64 {
        let KeepAliveFigures { sent, lost } = std::mem::take(counted);
        self.keep_alives_lost += lost;
        if let Some(late) = sent {
            self.keep_alives += 1;
            self.keep_alive_late_max = self.keep_alive_late_max.max(late);
            self.keep_alive_late_us.record_us(late);
        }
        lost
    }

    /// A turn took in so much, and honoured so many deadlines.
    pub(super) fn turn(&mut self, events: u32, pdus: u64, deadlines: u32) {
        self.events_per_turn_max = self.events_per_turn_max.max(events);
        self.deadlines_per_turn_max = self.deadlines_per_turn_max.max(deadlines);
        self.events_per_turn.record(events.into());
        self.pdus_per_turn.record(pdus);
        if deadlines > 0 {
            self.deadlines_per_turn.record(deadlines.into());
        }
    }
}

impl<T: Transport> Host<T> {
    /// The controllers that are not over.
    pub fn controllers(&self) -> impl Iterator<Item = CtrlId> {
        let entries = self.entries.iter().flatten();
        entries.filter(|entry| !entry.life.is_over()).map(|entry| entry.ctrl.id)
    }

    /// Where a controller stands; of one that is over, until its place is needed for another.
    ///
    /// # Panics
    /// For an id whose place was given to another controller since.
    pub fn status(&self, ctrl: CtrlId) -> CtrlStatus {
        let entry = self.entry(ctrl);
        let address = self.addresses.peek(entry.address).filter(|_| !entry.life.is_over());
        let reach = address.map_or(Reach::Unknown, |address| address.reach);
        let next_attempt = match entry.life.state {
            LifeState::Waiting { until } => until,
            _ => None,
        };
        let mut timers: Vec<_> = entry.ctrl.timers().collect();
        timers.extend(next_attempt.map(|at| ("reconnect", at)));
        if let LifeState::Waiting { .. } | LifeState::Attempting = entry.life.state {
            timers.extend(entry.life.loss_deadline().map(|at| ("ctrl-loss", at)));
        }
        if entry.life.is_waiting() {
            let probe = address.filter(|a| a.reach.is_tested() && a.tester.is_none());
            timers.extend(probe.map(|address| ("probe", address.next_probe)));
        }
        let shown = entry.requeue.as_ref().map_or_else(Shown::default, Store::shown);
        timers.extend(shown.quiesce.map(|at| ("quiesce", at)));
        timers.extend(shown.fast_io_fail.map(|at| ("fast-io-fail", at)));
        CtrlStatus {
            state: state(entry),
            since: if entry.life.is_waiting() { entry.life.since } else { entry.ctrl.since },
            awaited: awaited(entry),
            attempts: entry.life.attempts,
            reconnects: entry.life.reconnects,
            keep_alives_lost: entry.keep_alives_lost,
            failure: entry.failure.clone(),
            timers,
            reach,
            next_attempt,
            waiting: shown.waiting,
            quiescing: shown.quiescing,
            standby: entry.standby.ready(),
        }
    }

    /// Counters.
    pub fn figures(&self) -> Figures {
        self.figures
    }
}

impl<T: Transport> Host<T> {
    /// Keeps the state that a controller is in now, if that is new.
    pub(super) fn note_state(&mut self, now: Instant, ctrl: u32) {
        if let Some(entry) = &mut self.entries[ctrl as usize] {
            let state = state(entry);
            entry.history.note(now, state, entry.failure.as_ref());
        }
    }
}

fn state(entry: &Entry) -> CtrlState {
    match entry.life.state {
        LifeState::Waiting { .. } if entry.life.forced => CtrlState::Resetting,
        LifeState::Waiting { .. } => CtrlState::WaitReconnect,
        LifeState::Over if entry.failure.is_some() && entry.ctrl.phase == Phase::Failed => {
            CtrlState::Lost
        }
        LifeState::Over => CtrlState::Deleted,
        LifeState::Attempting | LifeState::Live => match entry.ctrl.phase {
            Phase::New | Phase::Connecting => CtrlState::Connecting,
            Phase::BringUp(step) => of_step(step),
            Phase::IoQueues => CtrlState::IoQueues,
            Phase::Live => CtrlState::Live,
            Phase::Draining { .. } | Phase::ShuttingDown { .. } | Phase::Closing => {
                CtrlState::Closing
            }
            Phase::Closed => CtrlState::Deleted,
            Phase::Failed => CtrlState::Lost,
        },
    }
}

fn of_step(step: Step) -> CtrlState {
    match step.stage() {
        Stage::Enable => CtrlState::Enabling,
        _ => CtrlState::Identifying,
    }
}

fn awaited(entry: &Entry) -> &'static str {
    match entry.life.state {
        LifeState::Waiting { until: None } => "its address to be reachable",
        LifeState::Waiting { .. } if entry.life.admitted => "its place in the address's admission",
        LifeState::Waiting { .. } => "its back-off",
        LifeState::Over => "nothing",
        LifeState::Attempting | LifeState::Live => entry.ctrl.awaited(),
    }
}
