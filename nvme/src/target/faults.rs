//! Faults on demand: a target that answers late, wrongly or not at all.
//!
//! What always holds: a target without faults spends one branch on them per command, and none of
//! their memory; a command meets one fault at most, the first that concerns it, decided when it
//! comes; what is drawn follows from a seed and the order of commands. A command that is held is
//! never answered, not even when its fault is gone: who waits for it has a deadline of its own.

use std::io;
use std::mem;
use std::net::SocketAddr;

use moorline_stack::rng::Rng;
use moorline_stack::time::{Duration, earliest};
use moorline_stack::{ConnId, Instant, Transport};

use super::Target;
use super::conn::{Conn, Phase, State};
use super::core::Core;
use crate::spec::Sqe;
use crate::spec::opcode::{admin, fctype};

/// What is accepted, and never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// ICReq.
    IcReq,
    /// Connect.
    Connect,
    /// Property Get and Set.
    Property,
    /// Keep Alive; it counts as a sign of life.
    KeepAlive,
    /// I/O commands: nothing of them is executed.
    Io,
    /// Completions of I/O commands: their data move.
    Completions,
}

/// What a target does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Listeners are closed: who connects is refused.
    PortClosed,
    /// Connections are reset, once.
    Reset,
    /// Connections are accepted, and nothing is read: the window closes.
    WithholdWindow,
    /// Something is never answered.
    Hold(Hold),
    /// Commands are completed so much later.
    Late(Duration),
    /// The connection is closed in the middle of a C2HData or a response of an I/O command.
    CloseMidPdu,
    /// The target does not turn for so long, its transport included: a process that is stopped.
    Freeze(Duration),
    /// A digest is wrong: the data digest of a C2HData, else a header digest of an I/O command.
    FlipDigest,
    /// DATAO of a C2HData, or R2TO, is not where the transfer stands.
    WrongDatao,
    /// The next command is answered by a C2HTermReq with this FES.
    TermReq(u16),
    /// Connect is refused: Controller Busy.
    Busy,
}

/// Whom a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultScope {
    /// Only this listener's connections.
    pub port: Option<u16>,
    /// Which share of the commands (or connections, where a fault is a connection's), 0 to 1.
    pub share: f64,
    /// Where that is drawn from.
    pub seed: u64,
}

impl Default for FaultScope {
    fn default() -> Self {
        Self { port: None, share: 1.0, seed: 1 }
    }
}

/// What a command's fault does to the PDUs that answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    None,
    /// Its completion is not sent.
    NoCompletion,
    /// Its data, if it has any, and its completion come so much later.
    Late(Duration),
    /// The connection ends within the next PDU.
    Cut,
    /// See [`Fault`].
    FlipDigest,
    WrongDatao,
    /// Refused, if it is a Connect.
    Busy,
}

/// An answer that is held back for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub slot: u16,
    pub by: Duration,
    /// When it may go; known from the end of the turn on.
    pub at: Option<Instant>,
}

#[derive(Debug)]
struct One {
    name: u64,
    fault: Fault,
    scope: FaultScope,
    rng: Rng,
    hits: u64,
}

/// The faults of a target that has some.
#[derive(Debug, Default)]
pub(super) struct Faults {
    all: Vec<One>,
    frozen_until: Option<Instant>,
    /// The earliest answer that is held back.
    late_at: Option<Instant>,
    /// Listeners that are closed.
    closed: Vec<SocketAddr>,
}

impl One {
    fn concerns(&self, port: u16) -> bool {
        self.scope.port.is_none_or(|only| only == port)
    }

    /// Whether it meets this one: one draw of the share.
    fn draws(&mut self) -> bool {
        let met = self.rng.chance(self.scope.share);
        self.hits += u64::from(met);
        met
    }

    /// Whether it meets this connection, now and whenever it is asked.
    fn has(&self, id: ConnId) -> bool {
        let name = u64::from(id.generation) << 32 | u64::from(id.index);
        Rng::new(self.scope.seed ^ name).chance(self.scope.share)
    }
}

impl Hold {
    /// Whether this is what is held.
    fn is(self, sqe: &Sqe, qid: u16, live: bool) -> bool {
        let fabrics = sqe.is_fabrics();
        match self {
            Self::IcReq => false,
            Self::Connect => fabrics && sqe.fctype() == fctype::CONNECT,
            Self::Property => {
                let property = matches!(sqe.fctype(), fctype::PROPERTY_GET | fctype::PROPERTY_SET);
                fabrics && property
            }
            Self::KeepAlive => live && qid == 0 && sqe.opcode == admin::KEEP_ALIVE,
            Self::Io | Self::Completions => live && qid > 0 && !fabrics,
        }
    }
}

impl Fault {
    /// Whether it is a fault of such commands.
    fn is_of(self, sqe: &Sqe, qid: u16, live: bool) -> bool {
        let io = live && qid > 0 && !sqe.is_fabrics();
        match self {
            Self::PortClosed | Self::Reset | Self::WithholdWindow | Self::Freeze(_) => false,
            Self::Hold(hold) => hold.is(sqe, qid, live),
            // An event is no answer.
            Self::Late(_) => !(qid == 0 && live && sqe.opcode == admin::ASYNC_EVENT_REQUEST),
            Self::CloseMidPdu | Self::FlipDigest | Self::WrongDatao => io,
            Self::TermReq(_) => true,
            Self::Busy => Hold::Connect.is(sqe, qid, live),
        }
    }
}

impl Faults {
    /// The fault that a command meets.
    fn meet(&mut self, conn: &Conn, sqe: &Sqe) -> Option<Fault> {
        let (port, live) = (conn.local.port(), conn.state == State::Live);
        let concerns = |one: &&mut One| one.concerns(port) && one.fault.is_of(sqe, conn.qid, live);
        self.all.iter_mut().filter(concerns).find_map(|one| one.draws().then_some(one.fault))
    }
}

/// What the machines ask.
impl Core {
    /// A command came, and there are faults. Returns whether that was all of it.
    pub(super) fn meet_fault(&mut self, now: Instant, index: u32, slot: u16) -> bool {
        let Self { conns, faults: Some(faults), .. } = self else { return false };
        let conn = conns[index as usize].as_deref_mut().expect("it has just brought a command");
        let sqe = conn.slots[usize::from(slot)].sqe;
        let Some(fault) = faults.meet(conn, &sqe) else { return false };
        let fate = match fault {
            Fault::PortClosed | Fault::Reset | Fault::WithholdWindow | Fault::Freeze(_) => {
                unreachable!("no fault of a command")
            }
            Fault::Hold(Hold::Completions) => Fate::NoCompletion,
            Fault::Hold(hold) => {
                // Data in its capsule go nowhere.
                conn.slots[usize::from(slot)].phase = Phase::Withheld;
                if hold == Hold::KeepAlive {
                    self.controller_of(index).keep_alive(now);
                }
                return true;
            }
            Fault::TermReq(fes) => {
                conn.end_by(now, fes);
                return true;
            }
            Fault::Late(by) => Fate::Late(by),
            Fault::CloseMidPdu => Fate::Cut,
            Fault::FlipDigest => Fate::FlipDigest,
            Fault::WrongDatao => Fate::WrongDatao,
            Fault::Busy => Fate::Busy,
        };
        conn.slots[usize::from(slot)].fate = fate;
        false
    }

    /// Whether a connection is not read from. Its deadlines wait with what it has sent.
    pub(super) fn withholds(&mut self, index: u32) -> bool {
        let Self { conns, faults: Some(faults), .. } = self else { return false };
        let Some(conn) = conns[index as usize].as_deref_mut() else { return false };
        let port = conn.local.port();
        let met = faults.all.iter_mut().find(|one| {
            one.fault == Fault::WithholdWindow && one.concerns(port) && one.has(conn.id)
        });
        if let Some(one) = met
            && !mem::replace(&mut conn.is_withheld, true)
        {
            one.hits += 1;
        }
        conn.is_withheld
    }

    /// An ICReq came, and there are faults: its answer may be taken back.
    pub(super) fn hold_ic(&mut self, index: u32) {
        let Self { conns, faults: Some(faults), .. } = self else { return };
        let Some(conn) = conns[index as usize].as_deref_mut() else { return };
        let port = conn.local.port();
        let holds = |one: &mut One| {
            one.fault == Fault::Hold(Hold::IcReq) && one.concerns(port) && one.draws()
        };
        if conn.state == State::ConnectWait && faults.all.iter_mut().any(holds) {
            conn.special = None;
        }
    }

    /// Lets go the answers whose time has come.
    pub(super) fn let_go(&mut self, now: Instant) {
        if self.faults.is_none() {
            return;
        }
        let mut next = None;
        for index in 0..self.conns.len() as u32 {
            let Some(conn) = self.conns[index as usize].as_deref_mut() else { continue };
            if conn.late.is_empty() {
                continue;
            }
            let Conn { late, tx, .. } = conn;
            let before = tx.len();
            late.retain_mut(|late| {
                let at = *late.at.get_or_insert(now + late.by);
                if at <= now {
                    tx.push_back(late.slot);
                } else {
                    next = earliest(next, Some(at));
                }
                at > now
            });
            if tx.len() > before {
                self.dirty(index);
            }
        }
        if let Some(faults) = &mut self.faults {
            faults.late_at = next;
        }
    }

    /// When an answer that is held back is to be let go.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.faults.as_deref()?.late_at
    }

    /// Whether this turn is to be left out.
    pub(super) fn freezes(&mut self, now: Instant) -> bool {
        let Some(faults) = self.faults.as_deref_mut() else { return false };
        faults.frozen_until = faults.frozen_until.filter(|&until| now < until);
        faults.frozen_until.is_some()
    }

    /// When a frozen target turns again.
    pub(super) fn frozen_until(&self) -> Option<Instant> {
        self.faults.as_deref()?.frozen_until
    }

    /// What a fault that is gone has kept back goes on.
    fn resume_all(&mut self, fault: Fault) {
        for index in 0..self.conns.len() as u32 {
            let Some(conn) = self.conns[index as usize].as_deref_mut() else { continue };
            if fault == Fault::WithholdWindow && mem::take(&mut conn.is_withheld) {
                self.readable(index);
            } else if matches!(fault, Fault::Late(_)) && !conn.late.is_empty() {
                let Conn { late, tx, .. } = conn;
                tx.extend(late.drain(..).map(|late| late.slot));
                self.dirty(index);
            }
        }
    }
}

/// Faults come and go.
impl<T: Transport> Target<T> {
    /// Does something wrong from now on, by a name of the caller's. Returns how many connections
    /// it has met at once.
    ///
    /// # Errors
    /// [`Fault::PortClosed`]: the transport's.
    pub fn add_fault(
        &mut self,
        now: Instant,
        name: u64,
        fault: Fault,
        scope: FaultScope,
    ) -> io::Result<u64> {
        let mut one = One { name, fault, scope, rng: Rng::new(scope.seed), hits: 0 };
        if fault == Fault::Reset {
            return Ok(self.reset_all(now, &mut one));
        }
        let faults = self.core.faults.get_or_insert_default();
        if let Fault::Freeze(time) = fault {
            faults.frozen_until = Some(now + time);
            one.hits = 1;
        }
        faults.all.push(one);
        self.follow_ports(now)?;
        Ok(0)
    }

    /// Does it no more. What was held back for a while goes on at once.
    ///
    /// # Errors
    /// [`Fault::PortClosed`]: the transport's, of listening again.
    pub fn remove_fault(&mut self, now: Instant, name: u64) -> io::Result<()> {
        let Some(faults) = self.core.faults.as_deref_mut() else { return Ok(()) };
        let mut gone = Vec::new();
        faults.all.retain(|one| {
            if one.name == name {
                gone.push(one.fault);
            }
            one.name != name
        });
        if gone.iter().any(|fault| matches!(fault, Fault::Freeze(_))) {
            faults.frozen_until = None;
        }
        for fault in gone {
            self.core.resume_all(fault);
        }
        self.follow_ports(now)?;
        if self.core.faults.as_ref().is_some_and(|faults| faults.all.is_empty()) {
            self.core.faults = None;
        }
        Ok(())
    }

    /// How many commands or connections have met the fault of that name.
    pub fn fault_hits(&self, name: u64) -> u64 {
        let all = self.core.faults.iter().flat_map(|faults| &faults.all);
        all.filter(|one| one.name == name).map(|one| one.hits).sum()
    }

    /// Until when it does not turn ([`Fault::Freeze`]). Its transport goes on telling
    /// [`Target::wait`] of what arrives: who waits meanwhile does so by other means.
    pub fn frozen_until(&self) -> Option<Instant> {
        self.core.frozen_until()
    }

    /// Resets the connections of a listener.
    fn reset_all(&mut self, now: Instant, one: &mut One) -> u64 {
        for index in 0..self.core.conns.len() as u32 {
            let Some(conn) = self.core.conns[index as usize].as_deref() else { continue };
            let met = conn.state != State::Dead && one.concerns(conn.local.port()) && one.draws();
            if met {
                self.core.remove(index, Some(false));
            }
        }
        // With the admin queue's, its controller's other connections went as well.
        let reset = self.core.closing.len() as u64;
        for (id, _) in self.core.closing.drain(..) {
            self.transport.abort(now, id);
        }
        reset
    }

    /// Closes the listeners that are to be closed, and opens the others.
    fn follow_ports(&mut self, now: Instant) -> io::Result<()> {
        let Self { transport, core, .. } = self;
        let Core { listeners, faults: Some(faults), config, .. } = core else { return Ok(()) };
        let Faults { all, closed, .. } = &mut **faults;
        for &addr in listeners.iter() {
            let shut = |one: &mut One| one.fault == Fault::PortClosed && one.concerns(addr.port());
            let met = all.iter_mut().filter_map(|one| shut(one).then_some(one)).next();
            match (closed.iter().position(|&other| other == addr), met) {
                (None, Some(one)) => {
                    transport.unlisten(addr)?;
                    one.hits += 1;
                    closed.push(addr);
                }
                (Some(at), None) => {
                    transport.listen(now, addr, &config.listen)?;
                    closed.swap_remove(at);
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        Ok(())
    }
}
