//! One controller as the host sees it: its qpairs, its states, its keep alive. Pure: the driver
//! carries its actions out and feeds it what comes back.
//!
//! ```text
//! New ─ Connecting ─ Enabling ─ Identifying ─ IoQueues ─ Namespaces ─ Live ─ Closing ─ Closed
//!             any of them ─ a qpair ends, a deadline passes ─ Failed
//! ```
//!
//! A controller has one life: for another attempt the driver makes another one.
//!
//! What always holds: every state has a deadline or waits for the caller; a failure of any qpair
//! fails the controller, once; whatever was accepted has then ended.

use std::collections::VecDeque;
use std::iter;
use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::time::earliest;

use super::bringup::Step;
use super::keep_alive::{KeepAlive, KeepAliveFigures};
use super::qpair::{End, Qpair, QpairConfig};
use super::set::KatoChange;
use super::work::{Memory, Owner, Work, WorkDone};
use super::{Cause, CtrlConfig, CtrlId, Failure, HostEvent, Info, Stage};
use crate::limits::ADMIN_IN_CAPSULE_BYTES_MAX;
use crate::spec::connect::CNTLID_DYNAMIC;
use crate::spec::{Connect, ConnectData, ConnectResponse, Cqe, HostId, Nqn, Status};

/// Entries of the admin queue: the least that the spec allows.
const ADMIN_QUEUE_SIZE: u16 = 32;

/// Admin commands kept: for keep alive, and for one step of a shutdown.
pub(super) const ADMIN_RESERVE: usize = 2;

/// Who we are and whom we want, checked.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub hostnqn: Nqn,
    pub hostid: HostId,
    pub subnqn: Nqn,
}

/// Where a controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not started.
    New,
    /// TCP, ICReq and Connect of the admin queue.
    Connecting,
    /// Admin commands, one at a time.
    BringUp(Step),
    /// TCP, ICReq and Connect of the I/O queues, all at once.
    IoQueues,
    /// It takes I/O.
    Live,
    /// Shutdown: outstanding I/O ends, until the deadline.
    Draining { deadline: Instant },
    /// Shutdown: the controller was told, and is asked whether it is done, until the deadline.
    ShuttingDown { deadline: Instant },
    /// Shut down; connections are closing.
    Closing,
    /// Over, as asked.
    Closed,
    /// Over.
    Failed,
}

/// What the driver is to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Connect qpair `.0` over TCP.
    Open(usize),
    /// Close its connection after what is to be sent.
    Close(usize),
    /// Abort its connection.
    Abort(usize),
    /// Tell the caller.
    Tell(HostEvent),
    /// It is live, so long after it was started.
    Live(Duration),
    /// It failed.
    Lost(Failure),
    /// It is closed, as asked.
    Closed,
    /// Give the caller's admin command back.
    AdminDone(u64, WorkDone),
}

/// A controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub id: CtrlId,
    pub config: CtrlConfig,
    pub names: Names,
    pub info: Info,
    pub phase: Phase,
    /// Since when `phase` (or its step) is what it is.
    pub since: Instant,
    started: Instant,
    pub connect_deadline: Option<Instant>,
    /// When to poll CSTS again, and the pause after that.
    pub poll_due: Option<Instant>,
    pub poll_pause: Duration,
    /// The admin qpair, then the I/O qpairs.
    pub qpairs: Vec<Qpair>,
    /// Which of them have a connection.
    open: Vec<bool>,
    pub keep_alive: KeepAlive,
    pub keep_alive_figures: KeepAliveFigures,
    pub kato_change: KatoChange,
    /// A KATO that the controller was told, while its answer does not say which it uses.
    pub kato_told: Option<Duration>,
    pub aers_wanted: u8,
    /// Events to ask for: those that mean something to us and are supported.
    pub events_supported: u32,
    pub aers_posted: u8,
    /// Aborts sent and not answered, and most of them (ACL + 1).
    pub aborts: u16,
    pub aborts_max: u16,
    /// Namespaces found and not read yet.
    pub nsids: Vec<u32>,
    pub actions: VecDeque<Action>,
}

impl Controller {
    /// A controller, not started.
    pub(super) fn new(now: Instant, id: CtrlId, config: CtrlConfig, names: Names) -> Self {
        let kato = config.kato;
        Self {
            id,
            names,
            info: Info { kato, ..Info::default() },
            phase: Phase::New,
            since: now,
            started: now,
            connect_deadline: None,
            poll_due: None,
            poll_pause: Duration::ZERO,
            qpairs: Vec::new(),
            open: Vec::new(),
            keep_alive: KeepAlive::default(),
            keep_alive_figures: KeepAliveFigures::default(),
            kato_change: KatoChange::None,
            kato_told: None,
            aers_wanted: 0,
            events_supported: 0,
            aers_posted: 0,
            aborts: 0,
            aborts_max: 1,
            nsids: Vec::new(),
            actions: VecDeque::new(),
            config,
        }
    }

    /// Starts to connect.
    pub(super) fn start(&mut self, now: Instant) {
        assert!(self.phase == Phase::New, "a controller is started once");
        self.enter(now, Phase::Connecting);
        self.started = now;
        self.connect_deadline = Some(now + self.config.timeouts.connect_total);
        self.add_qpair(now, ADMIN_QUEUE_SIZE, ADMIN_IN_CAPSULE_BYTES_MAX);
    }

    /// Adds the next qpair and asks for its connection.
    fn add_qpair(&mut self, now: Instant, queue_size: u16, in_capsule_max: u32) {
        let config = &self.config;
        let qid = self.qpairs.len() as u16;
        let mut qpair = Qpair::new(QpairConfig {
            queue_size,
            ask: config.ask(),
            icresp_timeout: config.timeouts.icresp,
            in_capsule_max,
        });
        let admin = qid == 0;
        let kato_ms = u32::try_from(config.kato.as_millis()).unwrap_or(u32::MAX);
        let connect = Connect {
            recfmt: 0,
            qid,
            sqsize: queue_size - 1,
            cattr: if config.sq_flow_control { 0 } else { Connect::CATTR_DISSQFC },
            kato_ms: if admin { kato_ms } else { 0 },
        };
        let cntlid = if admin { CNTLID_DYNAMIC } else { self.info.cntlid };
        let Names { hostnqn, hostid, subnqn } = &self.names;
        let data = ConnectData::new(hostid, cntlid, subnqn, hostnqn);
        qpair.start(now, Work::connect(&connect, &data, config.timeouts.connect));
        self.qpairs.push(qpair);
        self.open.push(true);
        self.actions.push_back(Action::Open(usize::from(qid)));
    }

    /// Connects `count` I/O queues.
    pub(super) fn connect_io_queues(&mut self, now: Instant, count: u16) {
        self.enter(now, Phase::IoQueues);
        let queue_size = self.info.commands_max + 1;
        for _ in 0..count {
            self.add_qpair(now, queue_size, self.info.in_capsule_max);
        }
    }

    /// Enters a phase.
    pub(super) fn enter(&mut self, now: Instant, phase: Phase) {
        self.phase = phase;
        self.since = now;
    }

    /// What the driver is to do next.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Looks at what has changed in qpair `q`, and goes on from there. To be called after
    /// anything was fed to it.
    pub(super) fn settle(&mut self, now: Instant, q: usize) {
        if let Some(end) = self.qpairs[q].take_end() {
            self.qpair_ended(now, q, end);
        }
        if let Some(response) = self.qpairs[q].take_connect_response()
            && !self.is_over()
        {
            self.queue_connected(now, q, &response);
        }
        if q == 0 {
            while let Some(done) = self.qpairs[0].poll_done() {
                self.admin_done(now, done);
            }
            self.send_aborts(now);
            self.tell_kato(now);
        } else if matches!(self.phase, Phase::Draining { .. }) {
            self.drain(now);
        }
    }

    fn queue_connected(&mut self, now: Instant, q: usize, response: &Cqe) {
        let response = ConnectResponse::from_cqe(response);
        if response.auth_required || response.secure_channel_required {
            let what = "the target requires authentication, which is not supported yet";
            return self.fail(now, q, Cause::Unsupported(what));
        }
        if q == 0 {
            self.info.cntlid = response.cntlid;
            self.start_keep_alive(now);
            self.begin(now, Step::Cap);
        } else if self.qpairs[1..].iter().all(Qpair::is_live) {
            self.info.io_queues = self.qpairs.len() as u16 - 1;
            self.begin(now, Step::NamespaceList);
        }
    }

    /// The bring-up is complete.
    pub(super) fn go_live(&mut self, now: Instant) {
        self.connect_deadline = None;
        self.enter(now, Phase::Live);
        self.actions.push_back(Action::Live(now - self.started));
    }

    fn admin_done(&mut self, now: Instant, done: WorkDone) {
        match done.owner {
            Owner::Connect | Owner::Io(_) => {}
            Owner::Step => self.step_done(now, &done.cqe, done.memory),
            Owner::KeepAlive => {
                self.keep_alive.outstanding = false;
                if !done.cqe.status().is_success() && !self.is_over() {
                    self.fail(now, 0, Cause::Status(done.cqe.status()));
                }
            }
            Owner::Aer => self.aer_done(&done.cqe),
            Owner::Kato => self.kato_answered(now, &done.cqe),
            Owner::Abort => self.aborts -= 1, // the command's own completion says how it ended
            Owner::Admin(tag) => self.actions.push_back(Action::AdminDone(tag, done)),
        }
    }

    fn step_done(&mut self, now: Instant, cqe: &Cqe, memory: Memory) {
        match self.phase {
            Phase::BringUp(step) => self.advance(now, step, cqe, memory.into_vec()),
            Phase::ShuttingDown { .. } => self.shutdown_advance(now, cqe),
            Phase::New
            | Phase::Connecting
            | Phase::IoQueues
            | Phase::Live
            | Phase::Draining { .. }
            | Phase::Closing
            | Phase::Closed
            | Phase::Failed => {}
        }
    }

    /// Submits a command of our own on the admin queue, where one at a time always finds room.
    pub(super) fn submit_step(&mut self, now: Instant, work: Work) {
        self.qpairs[0].submit(now, work);
    }

    /// Whether the caller's admin command finds room.
    pub(super) fn has_admin_room(&self) -> bool {
        self.phase == Phase::Live && self.qpairs[0].has_room(ADMIN_RESERVE)
    }

    // Deadlines.

    /// The next deadline.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let of_phase = match self.phase {
            Phase::Draining { deadline } | Phase::ShuttingDown { deadline } => Some(deadline),
            _ => self.connect_deadline,
        };
        let own = earliest(earliest(of_phase, self.poll_due), self.keep_alive.due);
        self.qpairs.iter().map(Qpair::poll_timeout).fold(own, earliest)
    }

    /// Honours what is due; early or repeated calls do nothing.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if self.is_over() {
            return;
        }
        let grace = self.abort_grace(now);
        for q in 0..self.qpairs.len() {
            if due(self.qpairs[q].poll_timeout()) {
                self.qpairs[q].handle_timeout(now, grace);
                self.settle(now, q);
            }
        }
        self.send_aborts(now);
        if due(self.connect_deadline) {
            self.fail_with(self.too_long(now));
        }
        match self.phase {
            Phase::Draining { deadline } if deadline <= now => self.drain(now),
            Phase::ShuttingDown { deadline } if deadline <= now => self.close(false),
            _ => {}
        }
        if self.is_over() {
            return;
        }
        if due(self.poll_due) {
            self.poll_due = None;
            self.poll_csts(now);
        }
        if let Some(due) = self.keep_alive.due.filter(|due| *due <= now) {
            self.keep_alive_due(now, due);
        }
    }

    /// The failure of an attempt that takes too long.
    pub(super) fn too_long(&self, now: Instant) -> Failure {
        let waiting = self.qpairs.iter().position(|qpair| !qpair.is_live()).unwrap_or(0);
        let (stage, awaited) = self.awaiting(waiting);
        Failure {
            addr: self.config.addr,
            qid: waiting as u16,
            stage,
            awaited,
            after: now - self.started,
            cause: Cause::Timeout,
        }
    }

    /// The stage, and what is awaited in it, as far as qpair `q` is concerned.
    fn awaiting(&self, q: usize) -> (Stage, &'static str) {
        match self.phase {
            Phase::New => (Stage::Tcp, "TCP connection"),
            Phase::Connecting | Phase::IoQueues => {
                let qpair = &self.qpairs[q];
                let stage = qpair.stage().unwrap_or(Stage::IoQueues);
                (stage, qpair.awaited().unwrap_or("the other queues"))
            }
            Phase::BringUp(step) => (step.stage(), step.awaited()),
            Phase::Live | Phase::Closed | Phase::Failed => (Stage::Live, "commands"),
            Phase::Draining { .. } => (Stage::Shutdown, "outstanding I/O"),
            Phase::ShuttingDown { .. } => (Stage::Shutdown, "CSTS.SHST"),
            Phase::Closing => (Stage::Shutdown, "connections to close"),
        }
    }

    /// What is awaited: of the first qpair that is not live, or of the whole.
    pub(super) fn awaited(&self) -> &'static str {
        let waiting = self.qpairs.iter().position(|qpair| !qpair.is_live()).unwrap_or(0);
        self.awaiting(waiting).1
    }

    /// Its deadlines, by name.
    pub(super) fn timers(&self) -> impl Iterator<Item = (&'static str, Instant)> {
        let shutdown = match self.phase {
            Phase::Draining { deadline } | Phase::ShuttingDown { deadline } => Some(deadline),
            _ => None,
        };
        let of = |q: &[Qpair]| q.iter().map(Qpair::poll_timeout).fold(None, earliest);
        let (admin, io) = self.qpairs.split_at(self.qpairs.len().min(1));
        let all = [
            ("connect-total", self.connect_deadline),
            ("csts-poll", self.poll_due),
            ("keep-alive", self.keep_alive.due),
            ("shutdown", shutdown),
            ("admin-queue", of(admin)),
            ("io-queues", of(io)),
        ];
        all.into_iter().filter(|_| !self.is_over()).filter_map(|(name, at)| Some((name, at?)))
    }

    // Ends.

    /// Whether nothing more will happen.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed | Phase::Failed)
    }

    /// The connection of qpair `q` is gone.
    pub(super) fn connection_closed(&mut self, now: Instant, q: usize, cause: Cause) {
        self.open[q] = false;
        self.qpairs[q].lost(now, cause);
        if self.is_over() {
            self.qpairs[q].abandon(Status::ABORTED_BY_HOST);
        }
        self.settle(now, q);
        self.closed_when_gone();
    }

    fn closed_when_gone(&mut self) {
        if self.phase == Phase::Closing && !self.has_connections() {
            self.phase = Phase::Closed;
            self.actions.push_back(Action::Closed);
        }
    }

    /// The peer will send no more on qpair `q`.
    pub(super) fn peer_closed(&mut self, now: Instant, q: usize) {
        self.qpairs[q].lost(now, Cause::PeerClosed);
        self.settle(now, q);
    }

    /// Whether a connection of it is left.
    pub(super) fn has_connections(&self) -> bool {
        self.open.contains(&true)
    }

    fn qpair_ended(&mut self, now: Instant, q: usize, end: End) {
        let expected = match self.phase {
            Phase::Draining { .. } | Phase::ShuttingDown { .. } => q > 0,
            _ => self.is_over(),
        };
        if expected {
            self.qpairs[q].abandon(Status::HOST_PATHING_ERROR);
            return;
        }
        let (stage, awaited) = self.awaiting(q);
        self.fail_with(Failure {
            addr: self.config.addr,
            qid: q as u16,
            stage: end.stage.unwrap_or(stage),
            awaited: end.awaited.unwrap_or(awaited),
            after: end.after.unwrap_or(now - self.since),
            cause: end.cause,
        });
    }

    /// Fails the controller for something seen on qpair `q`.
    pub(super) fn fail(&mut self, now: Instant, q: usize, cause: Cause) {
        let (stage, awaited) = self.awaiting(q);
        let (addr, after) = (self.config.addr, now - self.since);
        self.fail_with(Failure { addr, qid: q as u16, stage, awaited, after, cause });
    }

    fn fail_with(&mut self, failure: Failure) {
        if self.is_over() {
            return;
        }
        if self.keep_alive.outstanding {
            self.keep_alive_figures.lost += 1;
        }
        self.phase = Phase::Failed;
        self.close_all(Status::HOST_PATHING_ERROR, true);
        self.actions.push_back(Action::Lost(failure));
    }

    /// Drops it, without a word.
    pub(super) fn abandon(&mut self) {
        if !self.is_over() {
            self.phase = Phase::Failed;
            self.close_all(Status::HOST_PATHING_ERROR, true);
        }
    }

    /// Ends all that was accepted and closes all connections; at once, save where a TermReq is
    /// still to be said.
    fn close_all(&mut self, status: Status, at_once: bool) {
        for q in 0..self.qpairs.len() {
            self.qpairs[q].abandon(status);
            if !self.open[q] {
                continue;
            }
            let abort = at_once && !self.qpairs[q].has_control();
            self.actions.push_back(if abort { Action::Abort(q) } else { Action::Close(q) });
        }
        self.keep_alive.due = None;
        self.poll_due = None;
        self.connect_deadline = None;
        let admin = self.qpairs.first_mut();
        for done in admin.into_iter().flat_map(|admin| iter::from_fn(|| admin.poll_done())) {
            if let Owner::Admin(tag) = done.owner {
                self.actions.push_back(Action::AdminDone(tag, done));
            }
        }
    }

    /// The caller wants it shut down.
    pub(super) fn disconnect(&mut self, now: Instant) {
        match self.phase {
            Phase::Live => {
                let deadline = now + self.config.timeouts.shutdown;
                self.enter(now, Phase::Draining { deadline });
                self.drain(now);
            }
            Phase::Connecting | Phase::BringUp(_) | Phase::IoQueues => self.close(true),
            Phase::New
            | Phase::Draining { .. }
            | Phase::ShuttingDown { .. }
            | Phase::Closing
            | Phase::Closed
            | Phase::Failed => {}
        }
    }

    /// Goes on with the shutdown once no I/O is outstanding, or when that takes too long.
    fn drain(&mut self, now: Instant) {
        let Phase::Draining { deadline } = self.phase else { return };
        if now < deadline && !self.qpairs[1..].iter().all(Qpair::is_idle) {
            return;
        }
        for q in 1..self.qpairs.len() {
            self.qpairs[q].abandon(Status::ABORTED_BY_HOST);
            self.actions.push_back(Action::Close(q));
        }
        let deadline = now + self.config.timeouts.shutdown;
        self.enter(now, Phase::ShuttingDown { deadline });
        self.begin_shutdown(now);
    }

    /// The shutdown is complete, or took too long: connections close.
    pub(super) fn close(&mut self, at_once: bool) {
        self.phase = Phase::Closing;
        self.close_all(Status::ABORTED_BY_HOST, at_once);
        self.closed_when_gone();
    }
}
