//! Standby connections: ready for Connect, so that a controller that lost a queue need not wait
//! for TCP and ICReq (nor, the first time, for its back-off).
//!
//! ```text
//! refill ─► Tcp ─ connected ► IcSent ─ ICResp ► Ready ─ taken by an attempt
//!              any of them ─ anything else ► lost: another one, after a pause
//! ```
//!
//! What always holds: on one that is taken nothing was sent but ICReq, and nothing received but
//! ICResp; a path that fell silent leaves none; none is begun while others wait for their place
//! in the address's admission, nor unless the controller is live; all go with the controller.
//!
//! A target need not let a connection wait. After what time it ended one is learned, and others
//! are renewed before; where that is not worth while, pauses grow.

use std::time::Duration;

use moorline_stack::time::earliest;
use moorline_stack::{ConnId, Event, Instant, Transport};

use super::Failure;
use super::controller::Phase;
use super::driver::{At, Host};
use super::ic::{Agreed, Ask};
use super::life::LifeState;
use super::requeue::Ending;
use crate::pdu::{Decoder, Fatal, Item, Limits, Pdu, Role};

/// In the place of a qpair: the connection is a standby.
pub(super) const STANDBY: u32 = u32::MAX;

/// Pauses after one was lost.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A target that lets a connection wait for so long is worth having another renewed.
const WORTH_WHILE: Duration = Duration::from_secs(1);

/// When to ask again for a place among the host's standby connections.
const LIMIT_PAUSE: Duration = Duration::from_secs(1);

/// Where a connection stands.
#[derive(Clone, Copy, Debug)]
enum State {
    Tcp,
    IcSent { deadline: Instant },
    Ready { since: Instant, agreed: Agreed },
}

#[derive(Debug)]
struct Spare {
    conn: ConnId,
    decoder: Decoder,
    state: State,
}

/// The standby connections of one controller.
#[derive(Debug, Default)]
pub(super) struct Standby {
    spares: Vec<Spare>,
    /// When another may be begun.
    refill_at: Instant,
    /// The last pause; zero: none was needed.
    pause: Duration,
    /// The shortest time after which the target ended one that was ready, since it is live.
    patience: Option<Duration>,
    /// The attempt under way took one.
    taken: bool,
    /// When the next attempt would be due without any: it need not wait.
    instead_of: Option<Instant>,
}

impl Standby {
    /// How many can be taken.
    pub(super) fn ready(&self) -> usize {
        self.spares.iter().filter(|spare| matches!(spare.state, State::Ready { .. })).count()
    }

    /// Whether the next attempt begins at once, on what is ready.
    pub(super) fn is_next(&self) -> bool {
        self.instead_of.is_some()
    }

    /// When something is due. `wanted`: how many there are to be now.
    pub(super) fn poll_timeout(&self, wanted: usize) -> Option<Instant> {
        let refill = (self.spares.len() < wanted).then_some(self.refill_at);
        self.spares.iter().map(|spare| self.deadline(spare)).fold(refill, earliest)
    }

    fn deadline(&self, spare: &Spare) -> Option<Instant> {
        match spare.state {
            State::Tcp => None, // the transport has one
            State::IcSent { deadline } => Some(deadline),
            State::Ready { since, .. } => {
                let patience = self.patience.filter(|patience| *patience >= WORTH_WHILE)?;
                Some(since + patience * 3 / 4)
            }
        }
    }

    fn find(&mut self, conn: ConnId) -> Option<&mut Spare> {
        self.spares.iter_mut().find(|spare| spare.conn == conn)
    }

    /// Takes note of the end of one, which was none of ours.
    fn learn(&mut self, now: Instant, state: State, by_peer: bool) {
        if let (State::Ready { since, .. }, true) = (state, by_peer) {
            let waited = now - since;
            self.patience = Some(self.patience.map_or(waited, |patience| patience.min(waited)));
            if waited >= WORTH_WHILE {
                self.pause = Duration::ZERO;
                self.refill_at = now;
                return;
            }
        }
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.refill_at = now + self.pause;
    }
}

impl Spare {
    /// Takes in what was received: ICResp, once, and nothing more.
    fn recv(&mut self, now: Instant, ask: Ask, mut bytes: &[u8]) -> Result<(), Fatal> {
        while !bytes.is_empty() {
            let State::IcSent { .. } = self.state else { return Err(Fatal::PduSequence) };
            match self.decoder.next(&mut bytes)? {
                Some(Item::Pdu(Pdu::ICResp(icresp))) => {
                    let agreed = ask.agree(&mut self.decoder, icresp)?;
                    self.state = State::Ready { since: now, agreed };
                }
                Some(_) => return Err(Fatal::PduSequence),
                None => {}
            }
        }
        Ok(())
    }
}

impl<T: Transport> Host<T> {
    /// How many standby connections a controller is to have now.
    pub(super) fn standby_wanted(&self, ctrl: u32) -> usize {
        self.entries[ctrl as usize].as_ref().map_or(0, |entry| entry.standby_wanted())
    }

    /// Something happened on a standby connection.
    pub(super) fn standby_event(&mut self, now: Instant, ctrl: u32, conn: ConnId, event: &Event) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        let (ask, icresp) = (entry.ctrl.config.ask(), entry.ctrl.config.timeouts.icresp);
        let Some(spare) = entry.standby.find(conn) else { return };
        match event {
            Event::Connected(_) => {
                let icreq = ask.icreq();
                spare.state = State::IcSent { deadline: now + icresp };
                if self.transport.send(conn, icreq.bytes()) < icreq.bytes().len() {
                    self.standby_lost(now, ctrl, conn, false);
                }
            }
            Event::Readable(_) => {
                let was_ready = matches!(spare.state, State::Ready { .. });
                let mut clean = Ok(());
                self.transport.recv(conn, &mut |bytes| {
                    if clean.is_ok() {
                        clean = spare.recv(now, ask, bytes);
                    }
                    bytes.len()
                });
                if clean.is_err() {
                    self.standby_lost(now, ctrl, conn, was_ready);
                }
            }
            Event::PeerClosed(_) => self.standby_lost(now, ctrl, conn, true),
            Event::Closed(_, why) => {
                let by_peer = why.cause == moorline_stack::transport::Cause::Reset;
                self.standby_lost(now, ctrl, conn, by_peer);
            }
            _ => {}
        }
        self.note_deadline(ctrl);
    }

    /// A standby connection is of no use, or gone.
    fn standby_lost(&mut self, now: Instant, ctrl: u32, conn: ConnId, by_peer: bool) {
        let Some(state) = self.standby_end(now, ctrl, conn) else { return };
        self.figures.standby_lost += 1;
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        entry.standby.learn(now, state, by_peer);
        // With the last one the reason is gone not to wait.
        if entry.standby.ready() == 0
            && let Some(until) = entry.standby.instead_of.take()
        {
            entry.life.wait_until(Some(until.max(now)));
        }
    }

    /// Drops a standby connection; returns what it was.
    fn standby_end(&mut self, now: Instant, ctrl: u32, conn: ConnId) -> Option<State> {
        let entry = self.entries[ctrl as usize].as_mut()?;
        let at = entry.standby.spares.iter().position(|spare| spare.conn == conn)?;
        let spare = entry.standby.spares.swap_remove(at);
        self.owners[conn.index as usize] = None;
        self.figures.standby -= 1;
        self.transport.abort(now, conn); // nothing, where it is gone
        Some(spare.state)
    }

    /// Drops all standby connections of a controller.
    pub(super) fn standby_drop(&mut self, now: Instant, ctrl: u32) {
        while let Some(entry) = &self.entries[ctrl as usize]
            && let Some(spare) = entry.standby.spares.last()
        {
            self.standby_end(now, ctrl, spare.conn);
        }
        if let Some(entry) = &mut self.entries[ctrl as usize] {
            entry.standby.instead_of = None;
        }
    }

    /// Honours what is due: ICResp that did not come, renewals, new ones.
    pub(super) fn standby_due(&mut self, now: Instant, ctrl: u32) {
        for _ in 0..self.standby_wanted(ctrl) {
            let Some(entry) = &self.entries[ctrl as usize] else { return };
            let due = |spare: &&Spare| entry.standby.deadline(spare).is_some_and(|at| at <= now);
            let Some(spare) = entry.standby.spares.iter().find(due) else { break };
            let conn = spare.conn;
            match spare.state {
                State::Ready { .. } => _ = self.standby_end(now, ctrl, conn),
                State::Tcp | State::IcSent { .. } => self.standby_lost(now, ctrl, conn, false),
            }
        }
        for _ in 0..self.standby_wanted(ctrl) {
            let wanted = self.standby_wanted(ctrl);
            let Some(entry) = &mut self.entries[ctrl as usize] else { return };
            let standby = &mut entry.standby;
            if standby.spares.len() >= wanted || now < standby.refill_at {
                return;
            }
            let (per_s, burst) = (self.limits.admission_per_s, self.limits.admission_burst);
            let full = self.figures.standby >= self.limits.standby;
            let admitted = match full {
                true => Err(now + LIMIT_PAUSE),
                false => self.addresses.at(entry.address).admit_spare(now, per_s, burst),
            };
            match admitted {
                Ok(()) => self.standby_open(now, ctrl),
                Err(at) => standby.refill_at = at,
            }
        }
    }

    fn standby_open(&mut self, now: Instant, ctrl: u32) {
        let Some(options) = self.conn_options(ctrl) else { return };
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        match self.transport.connect(now, entry.ctrl.config.addr, &options) {
            Ok(conn) => {
                let decoder = Decoder::new(Role::Host, Limits::default());
                entry.standby.spares.push(Spare { conn, decoder, state: State::Tcp });
                self.own(conn, At { ctrl, qpair: STANDBY });
                self.figures.standby += 1;
                self.figures.standby_opened += 1;
            }
            Err(_) => entry.standby.learn(now, State::Tcp, false),
        }
    }

    /// Gives a qpair that is to be connected a standby connection, if there is one.
    pub(super) fn standby_take(&mut self, now: Instant, at: At) -> bool {
        let Some(options) = self.conn_options(at.ctrl) else { return false };
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return false };
        let spares = &mut entry.standby.spares;
        let ready = |spare: &Spare| matches!(spare.state, State::Ready { .. });
        let Some(place) = spares.iter().position(ready) else { return false };
        let Spare { conn, decoder, state } = spares.swap_remove(place);
        let State::Ready { agreed, .. } = state else { unreachable!("just looked at") };
        entry.standby.taken = true;
        entry.conns[at.qpair as usize] = Some(conn);
        entry.ctrl.qpairs[at.qpair as usize].adopt(now, decoder, agreed);
        self.transport.set_timeouts(conn, &options);
        self.own(conn, at);
        self.figures.standby -= 1;
        self.figures.standby_taken += 1;
        true
    }

    /// A controller is lost and will be tried again, or an attempt failed: what is ready is used
    /// at once, unless nothing proves that the target is still there.
    pub(super) fn standby_of_lost(
        &mut self,
        now: Instant,
        ctrl: u32,
        was_live: bool,
        why: &Failure,
    ) {
        let Some(entry) = &mut self.entries[ctrl as usize] else { return };
        let stale = std::mem::take(&mut entry.standby.taken);
        if stale || super::reissue::ending(why) == Ending::Silent {
            return self.standby_drop(now, ctrl);
        }
        if let LifeState::Waiting { until } = entry.life.state
            && was_live
            && entry.standby.ready() > 0
        {
            entry.standby.instead_of = until;
            entry.life.wait_until(Some(now));
        }
    }

    /// An attempt begins.
    pub(super) fn standby_attempt(&mut self, ctrl: u32) {
        if let Some(entry) = &mut self.entries[ctrl as usize] {
            entry.standby.instead_of = None;
            entry.standby.taken = false;
        }
    }

    /// A controller is live: from now on there are to be some.
    pub(super) fn standby_live(&mut self, now: Instant, ctrl: u32) {
        if let Some(entry) = &mut self.entries[ctrl as usize] {
            let standby = &mut entry.standby;
            (standby.taken, standby.patience, standby.pause) = (false, None, Duration::ZERO);
            standby.refill_at = now;
        }
    }
}

impl super::driver::Entry {
    /// How many standby connections there are to be now.
    pub(super) fn standby_wanted(&self) -> usize {
        match (self.life.state, self.ctrl.phase) {
            (LifeState::Live, Phase::Live) => self.ctrl.config.standby.into(),
            _ => 0,
        }
    }
}
