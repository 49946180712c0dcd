//! A controller as a pure machine: properties, features, keep alive, and which queues it has
//! (NVMe Base 2.x, "Controller properties"; one association each, dynamic model).
//!
//! CSTS is derived, never stored: a controller leaves RDY, or completes its shutdown, only when
//! no device works for it any more, so that a host that sees it done may trust it.

use std::time::Duration;

use moorline_stack::Instant;

use crate::spec::features::async_event;
use crate::spec::{AsyncEvent, Cap, Cc, Csts, Nqn, Property, Status, Vs, property};

/// Asynchronous Event Requests kept at once (AERL is one less).
pub(super) const AERS_MAX: usize = 4;

/// KAS: granularity of KATO in 100 ms.
pub(super) const KAS: u16 = 1;

/// CAP.TO: 15 s, in 500 ms.
const CAP_TO: u8 = 30;

/// A controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub cntlid: u16,
    /// Its subsystem; `None` is discovery.
    pub subsystem: Option<u16>,
    pub hostnqn: Nqn,
    pub hostid: [u8; 16],
    /// Connection of each queue; the first is the admin queue's.
    pub queues: Box<[Option<u32>]>,
    /// I/O queues granted.
    pub granted: u16,
    /// Connections that name this controller, dead ones with requests under way included.
    pub conns: u32,
    /// Device requests under way.
    pub in_flight: u32,
    /// Those of them that change blocks.
    pub writes: u32,
    /// Its host can lose an I/O queue and go on (CATTR).
    pub loses_queues: bool,
    /// Its association is over.
    pub ended: bool,
    pub aen_config: u32,
    /// Slots of the Asynchronous Event Requests that wait.
    pub aers: [u16; AERS_MAX],
    pub aers_len: usize,
    /// The discovery log changed and no event was sent of it.
    pub discovery_changed: bool,
    /// Masked until the log is read.
    pub discovery_masked: bool,
    kato_ms: u32,
    /// Closed after this without KATO (discovery).
    lifetime: Option<Duration>,
    /// When it was connected.
    pub since: Instant,
    alive_at: Instant,
    /// Keep alive was found due once; it counts when it still is in the next turn, after what
    /// had arrived is taken in.
    overdue: bool,
    cc: Cc,
    failed: bool,
    mqes: u16,
}

/// What a Property Set asks the target to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing further.
    None,
    /// CC.EN went to 0: I/O queues go, events and features are reset.
    Reset,
}

impl Controller {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        now: Instant,
        cntlid: u16,
        subsystem: Option<u16>,
        hostnqn: Nqn,
        hostid: [u8; 16],
        io_queues_max: u16,
        mqes: u16,
        lifetime: Duration,
    ) -> Self {
        let io_queues = if subsystem.is_some() { io_queues_max } else { 0 };
        Self {
            cntlid,
            subsystem,
            hostnqn,
            hostid,
            queues: vec![None; usize::from(io_queues) + 1].into(),
            granted: io_queues,
            conns: 0,
            in_flight: 0,
            writes: 0,
            loses_queues: false,
            ended: false,
            aen_config: 0,
            aers: [0; AERS_MAX],
            aers_len: 0,
            discovery_changed: false,
            discovery_masked: false,
            kato_ms: 0,
            lifetime: subsystem.is_none().then_some(lifetime),
            since: now,
            alive_at: now,
            overdue: false,
            cc: Cc(0),
            failed: false,
            mqes,
        }
    }

    pub fn is_discovery(&self) -> bool {
        self.subsystem.is_none()
    }

    /// Ready for other commands than Fabrics ones.
    pub fn is_ready(&self) -> bool {
        self.cc.en() == 1 && !self.failed
    }

    fn csts(&self) -> Csts {
        let idle = self.in_flight == 0;
        let ready = !self.failed && (self.cc.en() == 1 || !idle);
        let shst = match (self.cc.shn(), idle) {
            (0, _) => Csts::SHST_NORMAL,
            (_, false) => Csts::SHST_OCCURRING,
            (_, true) => Csts::SHST_COMPLETE,
        };
        Csts(0).with_rdy(ready.into()).with_cfs(self.failed.into()).with_shst(shst)
    }

    fn cap(&self) -> Cap {
        Cap(0).with_mqes(self.mqes).with_cqr(1).with_to(CAP_TO).with_css(1)
    }

    /// Property Get.
    ///
    /// # Errors
    /// Invalid Field for an offset or size that does not exist.
    pub fn property(&self, get: Property) -> Result<u64, Status> {
        let value = match get.offset {
            property::CAP if get.eight_bytes => return Ok(self.cap().0),
            property::VS => VERSION.0,
            property::CC => self.cc.0,
            property::CSTS => self.csts().0,
            property::CRTO => u32::from(CAP_TO),
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        };
        if get.eight_bytes {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(u64::from(value))
    }

    /// Property Set.
    ///
    /// # Errors
    /// Invalid Field for what cannot be set, or not to that.
    pub fn set_property(&mut self, set: Property) -> Result<Change, Status> {
        if set.offset != property::CC || set.eight_bytes {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let (old, new) = (self.cc, Cc(set.value as u32));
        if old.en() == 0 && new.en() == 1 {
            let entries = self.is_discovery() || (new.iosqes(), new.iocqes()) == (6, 4);
            let supported = entries && new.mps() == 0 && new.ams() == 0 && new.css() == 0;
            if !supported {
                self.failed = true;
                return Err(Status::INVALID_FIELD.with_dnr());
            }
        }
        self.cc = new;
        if old.en() == 1 && new.en() == 0 {
            self.failed = false;
            self.aen_config = 0;
            self.cc = new.with_shn(0);
            return Ok(Change::Reset);
        }
        Ok(Change::None)
    }

    /// KATO in ms; 0 is off.
    pub fn kato_ms(&self) -> u32 {
        self.kato_ms
    }

    /// Sets KATO, rounded up to what KAS says.
    pub fn set_kato(&mut self, now: Instant, ms: u32) {
        let unit = u32::from(KAS) * 100;
        self.kato_ms = ms.checked_next_multiple_of(unit).unwrap_or(u32::MAX / unit * unit);
        self.keep_alive(now);
    }

    /// A Keep Alive command came; with TBKAS, any command.
    pub fn keep_alive(&mut self, now: Instant) {
        self.alive_at = now;
        self.overdue = false;
    }

    /// When the association ends unless a Keep Alive comes.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = match (self.kato_ms, self.lifetime) {
            (0, lifetime) => lifetime?,
            (ms, _) => Duration::from_millis(ms.into()),
        };
        (!self.ended).then_some(self.alive_at + timeout)
    }

    /// Whether keep alives stopped. A deadline that passed is only noted at first: it counts in
    /// the next turn, once what waited in this one was looked at (our own stall is not theirs).
    pub fn is_expired(&mut self, now: Instant) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        let expired = due && self.overdue;
        self.overdue = due;
        expired
    }

    /// Keeps an Asynchronous Event Request.
    ///
    /// # Errors
    /// When there are as many as AERL allows.
    pub fn hold_aer(&mut self, slot: u16) -> Result<(), Status> {
        if self.aers_len == AERS_MAX {
            return Err(Status::AER_LIMIT_EXCEEDED.with_dnr());
        }
        self.aers[self.aers_len] = slot;
        self.aers_len += 1;
        Ok(())
    }

    /// Takes the request that has waited longest.
    pub fn take_aer(&mut self) -> Option<u16> {
        let first = *self.aers[..self.aers_len].first()?;
        self.aers.copy_within(1.., 0);
        self.aers_len -= 1;
        Some(first)
    }

    /// An Asynchronous Event Request was aborted.
    pub fn forget_aer(&mut self, slot: u16) {
        if let Some(at) = self.aers[..self.aers_len].iter().position(|&held| held == slot) {
            self.aers.copy_within(at + 1.., at);
            self.aers_len -= 1;
        }
    }

    /// The slot and DW0 of an event to be sent, if there is one, and one to send it with.
    pub fn event(&mut self) -> Option<(u16, u64)> {
        let enabled = self.aen_config & async_event::DISCOVERY_LOG != 0;
        if !self.discovery_changed || self.discovery_masked || !enabled {
            return None;
        }
        let slot = self.take_aer()?;
        self.discovery_changed = false;
        self.discovery_masked = true;
        Some((slot, AsyncEvent::DISCOVERY_LOG_CHANGE.to_dw0().into()))
    }
}

/// The version we follow.
pub(super) const VERSION: Vs = Vs::V2_0;

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> Controller {
        let nqn = Nqn::new("nqn.2026-01.io.moorline:host").unwrap();
        let lifetime = Duration::from_secs(120);
        Controller::new(Instant::ZERO, 1, Some(0), nqn, [1; 16], 4, 127, lifetime)
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn set_cc(c: &mut Controller, cc: Cc) -> Result<Change, Status> {
        let set = Property { offset: property::CC, eight_bytes: false, value: cc.0.into() };
        c.set_property(set)
    }

    fn csts(c: &Controller) -> Csts {
        let get = Property { offset: property::CSTS, eight_bytes: false, value: 0 };
        Csts(c.property(get).unwrap() as u32)
    }

    #[test]
    fn enable_makes_ready_and_disable_resets() {
        let mut c = controller();
        assert_eq!(csts(&c).rdy(), 0);
        assert_eq!(set_cc(&mut c, Cc::ENABLE), Ok(Change::None));
        assert!(c.is_ready());
        assert_eq!(csts(&c).rdy(), 1);
        c.in_flight = 1;
        assert_eq!(set_cc(&mut c, Cc(0)), Ok(Change::Reset));
        assert_eq!(csts(&c).rdy(), 1, "a device still works");
        c.in_flight = 0;
        assert_eq!(csts(&c).rdy(), 0);
    }

    #[test]
    fn shutdown_is_complete_when_devices_are_idle() {
        let mut c = controller();
        set_cc(&mut c, Cc::ENABLE).unwrap();
        c.in_flight = 1;
        set_cc(&mut c, Cc::ENABLE.with_shn(Cc::SHN_NORMAL)).unwrap();
        assert_eq!(csts(&c).shst(), Csts::SHST_OCCURRING);
        c.in_flight = 0;
        assert_eq!(csts(&c).shst(), Csts::SHST_COMPLETE);
    }

    #[test]
    fn a_configuration_that_is_not_supported_is_fatal() {
        for cc in [Cc::ENABLE.with_mps(1), Cc::ENABLE.with_iosqes(5), Cc::ENABLE.with_css(7)] {
            let mut c = controller();
            assert_eq!(set_cc(&mut c, cc), Err(Status::INVALID_FIELD.with_dnr()));
            assert_eq!((csts(&c).cfs(), csts(&c).rdy()), (1, 0));
            assert!(!c.is_ready());
        }
    }

    #[test]
    fn properties_have_their_sizes() {
        let mut c = controller();
        let get = |offset, eight_bytes| Property { offset, eight_bytes, value: 0 };
        let cap = Cap(c.property(get(property::CAP, true)).unwrap());
        assert_eq!((cap.mqes(), cap.cqr(), cap.to(), cap.css()), (127, 1, 30, 1));
        assert_eq!(c.property(get(property::VS, false)), Ok(0x0002_0000));
        for wrong in [get(property::CAP, false), get(property::VS, true), get(0x30, false)] {
            assert_eq!(c.property(wrong), Err(Status::INVALID_FIELD.with_dnr()));
        }
        assert!(c.set_property(get(property::VS, false)).is_err());
    }

    #[test]
    fn kato_is_rounded_up_and_judged_fairly() {
        let mut c = controller();
        assert_eq!(c.deadline(), None);
        c.set_kato(at(0), 4950);
        assert_eq!((c.kato_ms(), c.deadline()), (5000, Some(at(5000))));
        assert!(!c.is_expired(at(4999)) && !c.is_expired(at(4999)));
        assert!(!c.is_expired(at(9000)), "noted");
        c.keep_alive(at(9000));
        assert!(!c.is_expired(at(9001)));
        assert!(!c.is_expired(at(14000)));
        assert!(c.is_expired(at(14001)));
        c.set_kato(at(0), u32::MAX);
        assert!(c.kato_ms() > u32::MAX - 100);
    }

    #[test]
    fn event_requests_are_kept_up_to_their_limit() {
        let mut c = controller();
        for slot in 0..4 {
            c.hold_aer(slot).unwrap();
        }
        assert_eq!(c.hold_aer(4), Err(Status::AER_LIMIT_EXCEEDED.with_dnr()));
        c.forget_aer(1);
        assert_eq!([c.take_aer(), c.take_aer(), c.take_aer()], [Some(0), Some(2), Some(3)]);
        assert_eq!(c.take_aer(), None);
    }

    #[test]
    fn an_event_is_masked_until_its_log_is_read() {
        let mut c = controller();
        c.hold_aer(7).unwrap();
        c.hold_aer(8).unwrap();
        c.discovery_changed = true;
        assert_eq!(c.event(), None, "not enabled");
        c.aen_config = async_event::DISCOVERY_LOG;
        assert_eq!(c.event(), Some((7, 0x0070_F002)));
        c.discovery_changed = true;
        assert_eq!(c.event(), None);
        c.discovery_masked = false;
        assert_eq!(c.event(), Some((8, 0x0070_F002)));
    }
}
