//! The order in which a controller is brought up and shut down: one admin command at a time, each
//! answer leading to the next step (NVMe over Fabrics, "Controller initialization").
//!
//! What a controller says is checked here before it is used; what it lacks and we can do without
//! is left out, what we cannot do without fails it by name.

use std::num::NonZeroU16;
use std::time::Duration;

use moorline_stack::Instant;
use zerocopy::FromBytes;

use super::controller::{Controller, Phase};
use super::work::{Owner, Work};
use super::{AdminCommand, Cause, NamespaceInfo, Stage};
use crate::spec::features::{NumberOfQueues, async_event, fid};
use crate::spec::identify::{NsDescriptor, NsidList, cns, cntrltype, ctratt, text, vwc};
use crate::spec::{
    Cap, Cc, Cqe, Csts, GetFeatures, IdentifyController, IdentifyNamespace, Property, SetFeatures,
    Sqe, property,
};

/// CSTS is polled after 1 ms, then after twice as long, up to this.
const POLL_PAUSE_MAX: Duration = Duration::from_millis(20);
const POLL_PAUSE_MIN: Duration = Duration::from_millis(1);

/// Largest command of ours, whatever MDTS allows.
const TRANSFER_MAX: u32 = 1 << 20;

/// Events that mean something to us.
const AEN_MASK: u32 =
    async_event::NS_ATTRIBUTE | async_event::ANA_CHANGE | async_event::DISCOVERY_LOG;

/// One command of the bring-up, and what its answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Cap,
    Version,
    /// Is it enabled already?
    Status,
    Disable,
    AwaitDisabled {
        deadline: Instant,
    },
    Enable,
    AwaitReady {
        deadline: Instant,
    },
    IdentifyController,
    SetKato {
        kato_ms: u32,
    },
    ReadKato,
    ConfigureEvents,
    NumberOfQueues,
    NamespaceList,
    IdentifyNamespace {
        index: usize,
    },
    Descriptors {
        index: usize,
    },
}

impl Step {
    pub(super) fn stage(self) -> Stage {
        match self {
            Self::Cap
            | Self::Version
            | Self::Status
            | Self::Disable
            | Self::AwaitDisabled { .. }
            | Self::Enable
            | Self::AwaitReady { .. } => Stage::Enable,
            Self::IdentifyController
            | Self::SetKato { .. }
            | Self::ReadKato
            | Self::ConfigureEvents
            | Self::NumberOfQueues => Stage::Identify,
            Self::NamespaceList | Self::IdentifyNamespace { .. } | Self::Descriptors { .. } => {
                Stage::Namespaces
            }
        }
    }

    pub(super) fn awaited(self) -> &'static str {
        match self {
            Self::Cap => "Property Get CAP",
            Self::Version => "Property Get VS",
            Self::Status => "Property Get CSTS",
            Self::Disable => "Property Set CC.EN = 0",
            Self::AwaitDisabled { .. } => "CSTS.RDY = 0",
            Self::Enable => "Property Set CC.EN = 1",
            Self::AwaitReady { .. } => "CSTS.RDY = 1",
            Self::IdentifyController => "Identify Controller",
            Self::SetKato { .. } => "Set Features Keep Alive Timer",
            Self::ReadKato => "Get Features Keep Alive Timer",
            Self::ConfigureEvents => "Set Features Asynchronous Event Configuration",
            Self::NumberOfQueues => "Set Features Number of Queues",
            Self::NamespaceList => "Identify Active Namespace List",
            Self::IdentifyNamespace { .. } => "Identify Namespace",
            Self::Descriptors { .. } => "Identify Namespace Descriptors",
        }
    }

    /// Whether the bring-up goes on when the controller refuses it.
    fn is_optional(self) -> bool {
        matches!(
            self,
            Self::SetKato { .. }
                | Self::ReadKato
                | Self::ConfigureEvents
                | Self::IdentifyNamespace { .. }
                | Self::Descriptors { .. }
        )
    }
}

impl Controller {
    /// Sends a step's command.
    pub(super) fn begin(&mut self, now: Instant, step: Step) {
        self.enter(now, Phase::BringUp(step));
        let timeout = self.config.timeouts.admin;
        let plain = |sqe: Sqe| Work::step(sqe, timeout);
        let feature = |fid, value| plain(SetFeatures::new(fid, value).to_sqe());
        let identify =
            |cns, nsid| Work::admin(Owner::Step, AdminCommand::identify(cns, nsid), Some(timeout));
        let work = match step {
            Step::Cap => plain(Property::get(property::CAP)),
            Step::Version => plain(Property::get(property::VS)),
            Step::Status | Step::AwaitDisabled { .. } | Step::AwaitReady { .. } => {
                plain(Property::get(property::CSTS))
            }
            Step::Disable => plain(Property::set(property::CC, 0)),
            Step::Enable => plain(Property::set(property::CC, self.cc().0)),
            Step::IdentifyController => identify(cns::CONTROLLER, 0),
            Step::SetKato { kato_ms } => feature(fid::KEEP_ALIVE_TIMER, kato_ms),
            Step::ReadKato => plain(GetFeatures::new(fid::KEEP_ALIVE_TIMER).to_sqe()),
            Step::ConfigureEvents => feature(fid::ASYNC_EVENTS, self.events_supported),
            Step::NumberOfQueues => {
                let count = u32::from(self.config.io_queues);
                let asked = NumberOfQueues { submission: count, completion: count };
                feature(fid::NUMBER_OF_QUEUES, asked.to_value())
            }
            Step::NamespaceList => identify(cns::ACTIVE_NSIDS, 0),
            Step::IdentifyNamespace { index } => identify(cns::NAMESPACE, self.nsids[index]),
            Step::Descriptors { index } => identify(cns::NS_DESCRIPTORS, self.nsids[index]),
        };
        self.submit_step(now, work);
    }

    /// A step's answer: on to the next one.
    pub(super) fn advance(&mut self, now: Instant, step: Step, cqe: &Cqe, data: Vec<u8>) {
        let status = cqe.status();
        if !status.is_success() && !step.is_optional() {
            return self.fail(now, 0, Cause::Status(status));
        }
        let answered = status.is_success();
        match step {
            Step::Cap => {
                self.info.cap = cqe.result();
                self.begin(now, Step::Version);
            }
            Step::Version => {
                self.info.version = cqe.dw0.get();
                self.begin(now, Step::Status);
            }
            Step::Status => {
                let enabled = Csts(cqe.dw0.get()).rdy() == 1;
                self.begin(now, if enabled { Step::Disable } else { Step::Enable });
            }
            Step::Disable => {
                self.poll_from_now_on(now);
                let deadline = now + self.ready_timeout();
                self.enter(now, Phase::BringUp(Step::AwaitDisabled { deadline }));
            }
            Step::AwaitDisabled { deadline } => {
                let csts = Csts(cqe.dw0.get());
                self.await_ready(now, csts, 0, deadline, Step::Enable);
            }
            Step::Enable => {
                self.poll_from_now_on(now);
                let deadline = now + self.ready_timeout();
                self.enter(now, Phase::BringUp(Step::AwaitReady { deadline }));
            }
            Step::AwaitReady { deadline } => {
                let csts = Csts(cqe.dw0.get());
                self.await_ready(now, csts, 1, deadline, Step::IdentifyController);
            }
            Step::IdentifyController => self.identified(now, data),
            Step::SetKato { .. } => self.begin(now, Step::ReadKato),
            Step::ReadKato => {
                if answered && cqe.dw0.get() > 0 {
                    self.kato_known(now, Duration::from_millis(u64::from(cqe.dw0.get())));
                }
                self.after_kato(now);
            }
            Step::ConfigureEvents => self.after_events(now),
            Step::NumberOfQueues => {
                let granted = NumberOfQueues::from_value(cqe.dw0.get()).pairs();
                let count = u32::from(self.config.io_queues).min(granted);
                self.connect_io_queues(now, count as u16);
            }
            Step::NamespaceList => self.namespaces_listed(now, &data),
            Step::IdentifyNamespace { index } => {
                let found = answered.then(|| parse_namespace(self.nsids[index], &data)).flatten();
                match found {
                    Some(namespace) => {
                        self.info.namespaces.push(namespace);
                        self.begin(now, Step::Descriptors { index });
                    }
                    None => self.next_namespace(now, index + 1),
                }
            }
            Step::Descriptors { index } => {
                if answered && let Some(namespace) = self.info.namespaces.last_mut() {
                    take_descriptors(namespace, &data);
                }
                self.next_namespace(now, index + 1);
            }
        }
    }

    /// CC that enables the controller: command set by CAP.CSS, entry sizes 64 and 16 bytes.
    fn cc(&self) -> Cc {
        let css = Cap(self.info.cap).css();
        let selected = match css {
            css if css & 1 << 0 != 0 => 0,
            css if css & 1 << 6 != 0 => 6,
            css if css & 1 << 7 != 0 => 7,
            _ => 0,
        };
        Cc::ENABLE.with_css(selected)
    }

    /// CAP.TO, at least its unit.
    fn ready_timeout(&self) -> Duration {
        Duration::from_millis(500) * u32::from(Cap(self.info.cap).to().max(1))
    }

    // Polling CSTS.

    fn poll_from_now_on(&mut self, now: Instant) {
        self.poll_pause = POLL_PAUSE_MIN;
        self.poll_later(now);
    }

    fn poll_later(&mut self, now: Instant) {
        self.poll_due = Some(now + self.poll_pause);
        self.poll_pause = (self.poll_pause * 2).min(POLL_PAUSE_MAX);
    }

    /// It is time to ask again.
    pub(super) fn poll_csts(&mut self, now: Instant) {
        let sqe = Property::get(property::CSTS);
        self.submit_step(now, Work::step(sqe, self.config.timeouts.admin));
    }

    fn await_ready(&mut self, now: Instant, csts: Csts, rdy: u8, deadline: Instant, next: Step) {
        if csts.cfs() == 1 {
            self.fail(now, 0, Cause::ControllerFatal);
        } else if csts.rdy() == rdy {
            self.begin(now, next);
        } else if now >= deadline {
            self.fail(now, 0, Cause::Timeout);
        } else {
            self.poll_later(now);
        }
    }

    // Identify Controller, and what follows from it.

    fn identified(&mut self, now: Instant, data: Vec<u8>) {
        let identify = IdentifyController::ref_from_bytes(&data);
        let identify = identify.expect("Identify was asked for, and received, in full");
        if let Err(what) = self.take_identify(identify) {
            return self.fail(now, 0, Cause::Unsupported(what));
        }
        let kas = u32::from(identify.kas.get()) * 100;
        let asked = u32::try_from(self.config.kato.as_millis()).unwrap_or(u32::MAX);
        self.info.identify = data;
        match (asked, kas) {
            (0, _) => self.after_kato(now),
            // The controller would round up; say so ourselves, then read back what it made of it.
            (asked, 1..) if !asked.is_multiple_of(kas) => {
                let kato_ms = asked.div_ceil(kas).saturating_mul(kas);
                self.begin(now, Step::SetKato { kato_ms });
            }
            (_, _) => self.begin(now, Step::ReadKato),
        }
    }

    /// Fills in what is known now; an error says what the controller lacks.
    fn take_identify(&mut self, identify: &IdentifyController) -> Result<(), &'static str> {
        let cap = Cap(self.info.cap);
        let info = &mut self.info;
        let ascii = |field: &[u8]| text(field).trim().to_owned();
        info.serial = ascii(&identify.sn);
        info.model = ascii(&identify.mn);
        info.firmware = ascii(&identify.fr);
        info.subnqn = ascii(&identify.subnqn);
        info.tbkas = identify.ctratt.get() & ctratt::TBKAS != 0;
        info.cqt = Duration::from_millis(u64::from(identify.cqt.get()));
        info.volatile_write_cache = identify.vwc & vwc::PRESENT != 0;
        info.oncs = identify.oncs.get();
        let mdts = identify.mdts_bytes(cap.mpsmin()).unwrap_or(u64::MAX);
        info.transfer_max = mdts.min(u64::from(TRANSFER_MAX)) as u32;
        self.aborts_max = u16::from(identify.acl) + 1;
        self.aers_wanted = identify.aerl.saturating_add(1);
        self.events_supported = identify.oaes.get() & AEN_MASK;
        if self.config.discovery {
            return Ok(());
        }
        if identify.cntrltype == cntrltype::DISCOVERY {
            return Err("this is a discovery controller, it has no namespaces");
        }
        if identify.sgls.get() & 0b11 == 0 {
            return Err("the controller does not support SGLs (SGLS), which NVMe/TCP needs");
        }
        if identify.ioccsz.get() < 4 {
            return Err("IOCCSZ is below 4: its capsules do not hold a command");
        }
        let has_offset = identify.icdoff.get() != 0; // not on TCP: leave in-capsule data alone
        info.in_capsule_max = if has_offset { 0 } else { identify.in_capsule_max() };
        let by_maxcmd = NonZeroU16::new(identify.maxcmd.get()).map_or(u16::MAX, NonZeroU16::get);
        // MQES, 0's based, is entries less one: commands.
        info.commands_max = (self.config.queue_size - 1).min(cap.mqes()).min(by_maxcmd);
        if info.commands_max == 0 {
            return Err("CAP.MQES is 0: its queues hold no command");
        }
        Ok(())
    }

    fn after_kato(&mut self, now: Instant) {
        let persistent = !self.config.discovery || self.info.kato > Duration::ZERO;
        if !persistent {
            self.aers_wanted = 0;
        }
        if persistent && self.events_supported != 0 {
            self.begin(now, Step::ConfigureEvents);
        } else {
            self.after_events(now);
        }
    }

    fn after_events(&mut self, now: Instant) {
        self.post_aers(now);
        match (self.config.discovery, self.config.io_queues) {
            (true, _) => self.go_live(now),
            (false, 0) => self.begin(now, Step::NamespaceList),
            (false, 1..) => self.begin(now, Step::NumberOfQueues),
        }
    }

    // Namespaces.

    fn namespaces_listed(&mut self, now: Instant, data: &[u8]) {
        let list = NsidList::ref_from_bytes(data);
        self.nsids = list.map(|list| list.iter().collect()).unwrap_or_default();
        if !self.nsids.is_sorted_by(|a, b| a < b) {
            let what = "the active namespace list is not ascending";
            return self.fail(now, 0, Cause::Unsupported(what));
        }
        self.next_namespace(now, 0);
    }

    fn next_namespace(&mut self, now: Instant, index: usize) {
        if index < self.nsids.len() {
            self.begin(now, Step::IdentifyNamespace { index });
        } else {
            self.go_live(now);
        }
    }

    // Shutdown.

    /// Tells the controller; the answers lead to [`Self::shutdown_advance`].
    pub(super) fn begin_shutdown(&mut self, now: Instant) {
        let cc = self.cc().with_shn(Cc::SHN_NORMAL);
        let sqe = Property::set(property::CC, cc.0);
        self.poll_pause = POLL_PAUSE_MIN;
        self.submit_step(now, Work::step(sqe, self.config.timeouts.admin));
    }

    /// The answer to CC.SHN (its DW0 is 0) or to a poll of CSTS.
    pub(super) fn shutdown_advance(&mut self, now: Instant, cqe: &Cqe) {
        let complete = Csts(cqe.dw0.get()).shst() == Csts::SHST_COMPLETE;
        if complete || !cqe.status().is_success() {
            self.close(false);
        } else {
            self.poll_later(now);
        }
    }
}

/// A namespace we can use: it has blocks, of 512 bytes to 64 KiB, without metadata.
fn parse_namespace(nsid: u32, data: &[u8]) -> Option<NamespaceInfo> {
    let identify = IdentifyNamespace::ref_from_bytes(data).ok()?;
    let blocks = identify.nsze.get();
    let has_metadata = identify.format()?.ms.get() != 0;
    let block_size = identify.block_size()?;
    (blocks > 0 && !has_metadata).then_some(NamespaceInfo {
        nsid,
        blocks,
        block_size,
        nguid: identify.nguid,
        uuid: [0; 16],
        eui64: identify.eui64,
    })
}

fn take_descriptors(namespace: &mut NamespaceInfo, data: &[u8]) {
    for descriptor in NsDescriptor::iter(data) {
        match descriptor {
            NsDescriptor::Eui64(eui64) => namespace.eui64 = eui64,
            NsDescriptor::Nguid(nguid) => namespace.nguid = nguid,
            NsDescriptor::Uuid(uuid) => namespace.uuid = uuid,
            NsDescriptor::Csi(_) => {}
        }
    }
}
