//! Timers changed while a controller is held: from the next moment on, without a new connection
//! where that can be.
//!
//! What always holds: a deadline that is armed is moved to where the new value would have put it,
//! counted from where the old one was (or to now, if that is past); what the linter refuses
//! changes nothing. KATO is the controller's too: it is told with Set Features, and what it made
//! of it is read back; until then the old one counts.

use std::time::Duration;

use moorline_stack::transport::ConnOptions;
use moorline_stack::{Instant, Transport};
use zerocopy::FromBytes;

use super::controller::{ADMIN_RESERVE, Controller, Phase};
use super::driver::Host;
use super::qpair::Qpair;
use super::work::{Owner, Work};
use super::{CtrlConfig, CtrlId, LintError, Timeouts};
use crate::spec::features::fid;
use crate::spec::{Cqe, GetFeatures, IdentifyController, SetFeatures};

/// From when on a timer that was changed counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Now, also for what is armed.
    Now,
    /// When the controller has answered: it was told, or will be once it is live.
    Answer,
    /// The connections to come: those that are open cannot be changed.
    NextConnection,
}

/// What was changed: the timers, as the linter names them, and from when on they count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Each timer whose value is another one.
    pub timers: Vec<(&'static str, When)>,
}

/// How far a change of KATO has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum KatoChange {
    #[default]
    None,
    /// The controller is to be told.
    Wanted,
    /// Set Features is out; and it is to be told again.
    Telling { again: bool },
    /// Get Features is out; the same.
    Reading { again: bool },
}

impl<T: Transport> Host<T> {
    /// Gives a controller the timers of `config`: KATO, [`Timeouts`], those of the connections,
    /// and, where it has them, those of [`CtrlConfig::reconnect`] and [`CtrlConfig::requeue`].
    /// Whatever else `config` says does not count.
    ///
    /// # Errors
    /// The rule that the timers would break; nothing is changed then.
    ///
    /// # Panics
    /// For an id whose place was given to another controller since.
    pub fn set(
        &mut self,
        now: Instant,
        ctrl: CtrlId,
        config: &CtrlConfig,
    ) -> Result<Applied, LintError> {
        let entry = self.entry_mut(ctrl);
        let before = entry.ctrl.config.clone();
        let conn = &before.conn;
        let after = CtrlConfig {
            kato: config.kato,
            timeouts: config.timeouts,
            conn: ConnOptions {
                rx_buffer: conn.rx_buffer,
                tx_buffer: conn.tx_buffer,
                clock_factor: conn.clock_factor,
                ..config.conn.clone()
            },
            reconnect: before.reconnect.and(config.reconnect.or(before.reconnect)),
            requeue: before.requeue.and(config.requeue.or(before.requeue)),
            ..before.clone()
        };
        after.lint()?;
        entry.life.set_reconnect(now, after.reconnect);
        if let (Some(store), Some(requeue)) = (&mut entry.requeue, after.requeue) {
            store.set_policy(now, requeue);
        }
        entry.ctrl.set_timers(now, after.clone());
        let connections = self.set_connections(ctrl.index);
        self.set_probe(now, ctrl.index, &before, &after);
        self.act(now, ctrl.index);
        self.mark(super::driver::At { ctrl: ctrl.index, qpair: 0 });
        Ok(Applied { timers: changes(&before, &after, connections) })
    }

    /// Whether all open connections took the timeouts over.
    fn set_connections(&mut self, ctrl: u32) -> When {
        let Some(options) = self.conn_options(ctrl) else { return When::Now };
        let Some(entry) = &self.entries[ctrl as usize] else { return When::Now };
        let transport = &mut self.transport;
        let mut open = entry.conns.iter().flatten();
        match open.all(|&conn| transport.set_timeouts(conn, &options)) {
            true => When::Now,
            false => When::NextConnection,
        }
    }

    /// Moves the next test of the address, which all its controllers share.
    fn set_probe(&mut self, now: Instant, ctrl: u32, before: &CtrlConfig, after: &CtrlConfig) {
        let (Some(before), Some(after)) = (before.reconnect, after.reconnect) else { return };
        let Some(entry) = &self.entries[ctrl as usize] else { return };
        let place = entry.address;
        if before.probe_interval == after.probe_interval || self.addresses.peek(place).is_none() {
            return;
        }
        let address = self.addresses.at(place);
        let at = address.next_probe.retimed(before.probe_interval, after.probe_interval);
        address.next_probe = at;
        if address.reach.is_tested() && address.tester.is_none() {
            self.probes.clear(place);
            self.probes.set(place, at.max(now));
        }
    }
}

impl Controller {
    /// Takes over timers, also for what is armed.
    fn set_timers(&mut self, now: Instant, config: CtrlConfig) {
        let before = std::mem::replace(&mut self.config, config);
        let (old, new) = (before.timeouts, self.config.timeouts);
        let moved =
            |at: Instant, old, new| if old == new { at } else { at.retimed(old, new).max(now) };
        if let Some(at) = &mut self.connect_deadline {
            *at = moved(*at, old.connect_total, new.connect_total);
        }
        if let Phase::Draining { deadline } | Phase::ShuttingDown { deadline } = &mut self.phase {
            *deadline = moved(*deadline, old.shutdown, new.shutdown);
        }
        let kato = self.info.kato;
        for qpair in &mut self.qpairs {
            qpair.set_timers(now, (&old, kato), (&new, kato));
        }
        if before.kato != self.config.kato && !self.is_over() && self.phase != Phase::New {
            self.kato_change = match self.kato_change {
                KatoChange::None | KatoChange::Wanted => KatoChange::Wanted,
                KatoChange::Telling { .. } => KatoChange::Telling { again: true },
                KatoChange::Reading { .. } => KatoChange::Reading { again: true },
            };
            self.tell_kato(now);
        }
    }

    /// Tells the controller a KATO that it does not know, once it is live and there is room.
    pub(super) fn tell_kato(&mut self, now: Instant) {
        let ready = self.phase == Phase::Live && self.qpairs[0].has_room(ADMIN_RESERVE);
        if self.kato_change == KatoChange::Wanted && ready {
            self.kato_change = KatoChange::Telling { again: false };
            let kato_ms = u32::try_from(self.config.kato.as_millis()).unwrap_or(u32::MAX);
            // The controller would round up: say so ourselves.
            let unit = self.kas_ms().max(1);
            let kato_ms = kato_ms.div_ceil(unit).saturating_mul(unit);
            self.kato_told = Some(Duration::from_millis(kato_ms.into()));
            let sqe = SetFeatures::new(fid::KEEP_ALIVE_TIMER, kato_ms).to_sqe();
            let timeout = self.config.timeouts.admin;
            self.qpairs[0].submit(now, Work::kato(sqe, timeout));
        }
    }

    /// The unit of KATO, milliseconds.
    fn kas_ms(&self) -> u32 {
        let identify = IdentifyController::ref_from_bytes(&self.info.identify);
        identify.map_or(0, |identify| u32::from(identify.kas.get()) * 100)
    }

    /// The longest KATO that the controller may use now; zero if it may use none.
    pub(super) fn kato_at_most(&self) -> Duration {
        let known = self.info.kato;
        let told = self.kato_told.unwrap_or(known);
        if known.is_zero() || told.is_zero() { Duration::ZERO } else { known.max(told) }
    }

    /// The answer to Set or Get Features. Whatever became of the first, the second tells.
    pub(super) fn kato_answered(&mut self, now: Instant, cqe: &Cqe) {
        match self.kato_change {
            KatoChange::Telling { again } => {
                self.kato_change = KatoChange::Reading { again };
                let sqe = GetFeatures::new(fid::KEEP_ALIVE_TIMER).to_sqe();
                self.qpairs[0].submit(now, Work::kato(sqe, self.config.timeouts.admin));
            }
            KatoChange::Reading { again } => {
                self.kato_change = if again { KatoChange::Wanted } else { KatoChange::None };
                let read = Duration::from_millis(cqe.dw0.get().into());
                let is_off = read.is_zero() && !self.config.kato.is_zero();
                if cqe.status().is_success() && !is_off {
                    self.kato_told = None;
                    self.kato_known(now, read);
                }
            }
            KatoChange::None | KatoChange::Wanted => {}
        }
    }

    /// Moves the deadline of a keep alive that is under way to another KATO.
    pub(super) fn set_keep_alive_timeout(&mut self, now: Instant, old: Duration, new: Duration) {
        let timeouts = &self.config.timeouts;
        self.qpairs[0].set_timers(now, (timeouts, old), (timeouts, new));
    }
}

impl Qpair {
    /// Moves the deadlines of a qpair's commands, and of those to come of works it has.
    fn set_timers(&mut self, now: Instant, old: (&Timeouts, Duration), new: (&Timeouts, Duration)) {
        self.set_icresp_timeout(now, new.0.icresp);
        let of = |owner, (timeouts, kato): (&Timeouts, Duration)| match owner {
            Owner::Connect => Some(timeouts.connect),
            Owner::Step | Owner::Abort | Owner::Admin(_) | Owner::Kato => Some(timeouts.admin),
            Owner::KeepAlive => Some(kato).filter(|kato| !kato.is_zero()),
            Owner::Io(_) => Some(timeouts.io),
            Owner::Aer => None,
        };
        let grace = |timeouts: &Timeouts| timeouts.abort.min(timeouts.admin);
        self.table.set_timeouts(
            now,
            |owner| (of(owner, old), of(owner, new)),
            (grace(old.0), grace(new.0)),
        );
        if self.armed.is_some() {
            self.armed = self.table.earliest_deadline();
        }
    }
}

/// What is another one, and from when on it counts.
fn changes(
    before: &CtrlConfig,
    after: &CtrlConfig,
    connections: When,
) -> Vec<(&'static str, When)> {
    let pairs = timers(before, connections).into_iter().zip(timers(after, connections));
    let changed = pairs.filter(|(before, after)| before.1 != after.1);
    changed.map(|(_, (name, _, from))| (name, from)).collect()
}

type Named = (&'static str, Option<Duration>, When);

fn timers(c: &CtrlConfig, connections: When) -> Vec<Named> {
    let (t, r, q) = (&c.timeouts, c.reconnect, c.requeue);
    let quiesce = q.map(|requeue| match requeue.quiesce {
        super::Quiesce::Auto => Duration::MAX,
        super::Quiesce::For(time) => time,
        super::Quiesce::Off => Duration::ZERO,
    });
    vec![
        ("keep alive timeout", Some(c.kato), When::Answer),
        ("connect timeout", Some(t.connect_total), When::Now),
        ("TCP connect timeout", Some(c.conn.connect_timeout), connections),
        ("ICResp timeout", Some(t.icresp), When::Now),
        ("Connect command timeout", Some(t.connect), When::Now),
        ("TermReq timeout", Some(t.term), connections),
        ("admin command timeout", Some(t.admin), When::Now),
        ("I/O timeout", Some(t.io), When::Now),
        ("abort timeout", Some(t.abort), When::Now),
        ("shutdown timeout", Some(t.shutdown), When::Now),
        ("ack timeout", Some(c.conn.ack_timeout), connections),
        ("reconnect delay_min", r.map(|r| r.delay_min), When::Now),
        ("reconnect delay_max", r.map(|r| r.delay_max), When::Now),
        ("reconnect probe_timeout", r.map(|r| r.probe_timeout), connections),
        ("reconnect probe_interval", r.map(|r| r.probe_interval), When::Now),
        ("reconnect ctrl_loss", r.and_then(|r| r.ctrl_loss), When::Now),
        ("requeue fast_io_fail", q.map(|q| q.fast_io_fail), When::Now),
        ("requeue quiesce", quiesce, When::Now),
    ]
}
