//! What became of a controller: why its attempts and connections ended, counted by kind, and its
//! last transitions.
//!
//! What always holds: nothing grows. What repeats itself (a target that refuses every 100 ms) is
//! one entry with a count, so that what was before it is kept too.

use std::collections::VecDeque;
use std::fmt;

use moorline_stack::transport::{Cause as TcpCause, Stage as TcpStage};
use moorline_stack::{Instant, Transport};

use super::driver::Host;
use super::{Cause, CtrlId, CtrlState, Failure};

/// Transitions kept of a controller.
const KEPT: usize = 8;

/// What kind of end a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The next hop does not answer ARP or ND, or there is no route to it.
    NoNeighbour,
    /// The port is closed (RST), or an ICMP error says that it is not to be had.
    Refused,
    /// No answer to SYN.
    ConnectTimeout,
    /// Data stayed unacknowledged.
    AckTimeout,
    /// The peer reset an established connection (RST).
    Reset,
    /// The peer closed the connection (FIN).
    PeerClosed,
    /// What was awaited did not come: ICResp, an answer to Connect or to another command.
    Timeout,
    /// A keep alive was not answered.
    KeepAlive,
    /// The peer broke the protocol.
    Protocol,
    /// The peer says that we did (TermReq).
    Terminated,
    /// Connect, or a command of the bring-up, was answered with a status.
    Status,
    /// The controller is none that can be used, or says that it has failed.
    Unusable,
    /// Our end: the link, the kernel, no more connections, our address.
    Local,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NoNeighbour,
        Self::Refused,
        Self::ConnectTimeout,
        Self::AckTimeout,
        Self::Reset,
        Self::PeerClosed,
        Self::Timeout,
        Self::KeepAlive,
        Self::Protocol,
        Self::Terminated,
        Self::Status,
        Self::Unusable,
        Self::Local,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoNeighbour => "no-neighbour",
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::AckTimeout => "ack-timeout",
            Self::Reset => "reset",
            Self::PeerClosed => "peer-closed",
            Self::Timeout => "timeout",
            Self::KeepAlive => "keep-alive",
            Self::Protocol => "protocol",
            Self::Terminated => "terminated",
            Self::Status => "status",
            Self::Unusable => "unusable",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Failure {
    /// What kind of end this is.
    pub fn kind(&self) -> Kind {
        match &self.cause {
            Cause::Tcp(why) => match why.cause {
                TcpCause::NeighbourTimeout | TcpCause::Unroutable => Kind::NoNeighbour,
                TcpCause::Reset if why.stage == TcpStage::SynSent => Kind::Refused,
                TcpCause::Icmp(_) => Kind::Refused,
                TcpCause::Reset => Kind::Reset,
                TcpCause::ConnectTimeout => Kind::ConnectTimeout,
                TcpCause::AckTimeout => Kind::AckTimeout,
                TcpCause::Closed
                | TcpCause::Aborted
                | TcpCause::DrainTimeout
                | TcpCause::AddressConflict
                | TcpCause::Errno(_) => Kind::Local,
            },
            Cause::NotStarted(kind) => match kind {
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                    Kind::NoNeighbour
                }
                _ => Kind::Local,
            },
            Cause::PeerClosed => Kind::PeerClosed,
            Cause::Timeout if self.awaited == KEEP_ALIVE => Kind::KeepAlive,
            Cause::Timeout => Kind::Timeout,
            Cause::Protocol(_) => Kind::Protocol,
            Cause::Terminated(_) => Kind::Terminated,
            Cause::ConnectRefused { .. } | Cause::Status(_) => Kind::Status,
            Cause::Unsupported(_) | Cause::ControllerFatal => Kind::Unusable,
        }
    }
}

/// What is awaited of a keep alive.
pub(super) const KEEP_ALIVE: &str = "answer to Keep Alive";

/// Failures, counted by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors([u64; Kind::ALL.len()]);

impl Errors {
    /// Counts one.
    pub(super) fn count(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    /// How many there were of a kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// All kinds of which there were some.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.of(kind))).filter(|(_, count)| *count > 0)
    }
}

/// A controller came into a state.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The state.
    pub state: CtrlState,
    /// When; the last time, if it was several times.
    pub at: Instant,
    /// When it was the first time of those.
    pub first: Instant,
    /// How often, since `first`.
    pub times: u64,
    /// Why, where that was a failure; of the last time.
    pub failure: Option<Failure>,
}

impl Transition {
    fn repeats(&self, earlier: &Self) -> bool {
        let kind = |t: &Self| t.failure.as_ref().map(Failure::kind);
        self.state == earlier.state && kind(self) == kind(earlier)
    }
}

/// The last transitions of a controller, and its failures.
#[derive(Debug)]
pub(super) struct History {
    transitions: VecDeque<Transition>,
    pub errors: Errors,
}

impl History {
    /// Nothing yet; the only allocation.
    pub(super) fn new() -> Self {
        Self { transitions: VecDeque::with_capacity(KEPT), errors: Errors::default() }
    }

    /// The state that it is in now, and why if that is new.
    pub(super) fn note(&mut self, now: Instant, state: CtrlState, failure: Option<&Failure>) {
        // One that was just made is about to be tried.
        let same = self.transitions.back().map_or(CtrlState::WaitReconnect, |last| last.state);
        if same == state {
            return;
        }
        let is_failure = matches!(state, CtrlState::WaitReconnect | CtrlState::Lost);
        let failure = failure.filter(|_| is_failure).cloned();
        let mut new = Transition { state, at: now, first: now, times: 1, failure };
        // Once more what was: it moves to the end. That it was live is always told apart.
        let same = self.transitions.iter().rposition(|earlier| new.repeats(earlier));
        let same = same.filter(|_| state != CtrlState::Live);
        if let Some(earlier) = same.and_then(|at| self.transitions.remove(at)) {
            (new.first, new.times) = (earlier.first, earlier.times + 1);
        } else if self.transitions.len() == KEPT {
            self.transitions.pop_front();
        }
        self.transitions.push_back(new);
    }
}

impl<T: Transport> Host<T> {
    /// The last transitions of a controller, the oldest first; none once its place was given to
    /// another.
    pub fn history(&self, ctrl: CtrlId) -> impl Iterator<Item = &Transition> {
        self.history_of(ctrl).into_iter().flat_map(|history| &history.transitions)
    }

    /// The failures of a controller by kind: of its attempts, and of its being live. As
    /// [`Host::history`].
    pub fn errors(&self, ctrl: CtrlId) -> Errors {
        self.history_of(ctrl).map_or_else(Errors::default, |history| history.errors)
    }

    fn history_of(&self, ctrl: CtrlId) -> Option<&History> {
        let entry = self.entries.get(ctrl.index as usize)?.as_ref()?;
        (entry.ctrl.id == ctrl).then_some(&entry.history)
    }
}
