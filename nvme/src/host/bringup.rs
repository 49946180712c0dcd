//! The order in which a controller is brought up and shut down: one admin command at a time, each
//! answer leading to the next step (NVMe over Fabrics, "Controller initialization").
//!
//! What a controller says is checked here before it is used; what it lacks and we can do without
//! is left out, what we cannot do without fails it by name.

use std::time::Duration;

use moorline_stack::Instant;

use super::controller::{Controller, Phase};
use super::work::{Owner, Work};
use super::{AdminCommand, Cause, NamespaceInfo, Stage};
use crate::spec::{Cap, Cc, Cqe, Csts, Property, Sqe, property};

/// CSTS is polled after 1 ms, then after twice as long, up to this.
const POLL_PAUSE_MAX: Duration = Duration::from_millis(20);
const POLL_PAUSE_MIN: Duration = Duration::from_millis(1);

/// Largest command of ours, whatever MDTS allows.
const TRANSFER_MAX: u32 = 1 << 20;

/// Feature identifiers.
const FID_QUEUES: u8 = 0x07;
const FID_AEN: u8 = 0x0B;
const FID_KATO: u8 = 0x0F;

/// Events that mean something to us: namespace attribute, ANA, discovery log.
const AEN_MASK: u32 = 1 << 8 | 1 << 11 | 1 << 31;

/// Namespaces read of one controller: one page of the active list, which is what a peer can make
/// us hold.
const NAMESPACES_MAX: usize = 1024;

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
        let property = |sqe: Sqe| Work::step(sqe, timeout);
        let identify =
            |cns, nsid| Work::admin(Owner::Step, AdminCommand::identify(cns, nsid), Some(timeout));
        let work = match step {
            Step::Cap => property(Property::get(property::CAP)),
            Step::Version => property(Property::get(property::VS)),
            Step::Status | Step::AwaitDisabled { .. } | Step::AwaitReady { .. } => {
                property(Property::get(property::CSTS))
            }
            Step::Disable => property(Property::set(property::CC, 0)),
            Step::Enable => property(Property::set(property::CC, self.cc().0)),
            Step::IdentifyController => identify(0x01, 0),
            Step::SetKato { kato_ms } => Work::set_feature(FID_KATO, kato_ms, timeout),
            Step::ReadKato => {
                Work::admin(Owner::Step, AdminCommand::feature(FID_KATO), Some(timeout))
            }
            Step::ConfigureEvents => {
                Work::set_feature(FID_AEN, self.events_supported() & AEN_MASK, timeout)
            }
            Step::NumberOfQueues => {
                let count = u32::from(self.config.io_queues - 1);
                Work::set_feature(FID_QUEUES, count | count << 16, timeout)
            }
            Step::NamespaceList => identify(0x02, 0),
            Step::IdentifyNamespace { index } => identify(0x00, self.nsids[index]),
            Step::Descriptors { index } => identify(0x03, self.nsids[index]),
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
                let (sqs, cqs) = (cqe.dw0.get() & 0xFFFF, cqe.dw0.get() >> 16);
                let granted = sqs.min(cqs).saturating_add(1);
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
                    parse_descriptors(namespace, &data);
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
        if let Err(what) = self.take_identify(&data) {
            return self.fail(now, 0, Cause::Unsupported(what));
        }
        self.info.identify = data;
        let kas = u32::from(le16(&self.info.identify, 320)) * 100;
        let asked = u32::try_from(self.config.kato.as_millis()).unwrap_or(u32::MAX);
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
    fn take_identify(&mut self, data: &[u8]) -> Result<(), &'static str> {
        let cap = Cap(self.info.cap);
        let info = &mut self.info;
        info.serial = text(&data[4..24]);
        info.model = text(&data[24..64]);
        info.firmware = text(&data[64..72]);
        info.subnqn = text(&data[768..1024]);
        info.tbkas = le32(data, 96) & 1 << 6 != 0;
        info.volatile_write_cache = data[525] & 1 != 0;
        info.oncs = le16(data, 520);
        let page = 4096u64 << cap.mpsmin();
        let mdts = page.checked_shl(u32::from(data[77])).unwrap_or(u64::MAX);
        info.transfer_max = match data[77] {
            0 | 32.. => TRANSFER_MAX,
            _ => mdts.min(u64::from(TRANSFER_MAX)) as u32,
        };
        self.aers_wanted = data[259].saturating_add(1);
        if self.config.discovery {
            return Ok(());
        }
        if data[111] == 2 {
            return Err("this is a discovery controller, it has no namespaces");
        }
        if le32(data, 536) & 0b11 == 0 {
            return Err("the controller does not support SGLs (SGLS), which NVMe/TCP needs");
        }
        let ioccsz = le32(data, 1792);
        if ioccsz < 4 {
            return Err("IOCCSZ is below 4: its capsules do not hold a command");
        }
        let in_capsule = ioccsz.saturating_mul(16) - 64;
        let info = &mut self.info;
        info.in_capsule_max = if le16(data, 1800) == 0 { in_capsule } else { 0 };
        let by_cap = cap.mqes(); // entries less one, which is commands
        let by_maxcmd = if le16(data, 514) == 0 { u16::MAX } else { le16(data, 514) };
        info.commands_max = (self.config.queue_size - 1).min(by_cap).min(by_maxcmd);
        if info.commands_max == 0 {
            return Err("CAP.MQES is 0: its queues hold no command");
        }
        Ok(())
    }

    fn events_supported(&self) -> u32 {
        le32(&self.info.identify, 92)
    }

    fn after_kato(&mut self, now: Instant) {
        let persistent = !self.config.discovery || self.info.kato > Duration::ZERO;
        if !persistent {
            self.aers_wanted = 0;
        }
        if persistent && self.events_supported() & AEN_MASK != 0 {
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
        let (nsids, _) = data.as_chunks::<4>();
        let nsids = nsids.iter().map(|nsid| u32::from_le_bytes(*nsid));
        self.nsids = nsids.take_while(|nsid| *nsid != 0).take(NAMESPACES_MAX).collect();
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
    let blocks = u64::from_le_bytes(data[..8].try_into().expect("8 bytes are 8 bytes"));
    let flbas = data[26];
    let format = usize::from(flbas & 0xF | (flbas >> 5 & 0b11) << 4);
    let lbaf = le32(data, 128 + 4 * format);
    let (metadata, lbads) = (lbaf & 0xFFFF, lbaf >> 16 & 0xFF);
    if blocks == 0 || metadata != 0 || !(9..=16).contains(&lbads) {
        return None;
    }
    let mut namespace = NamespaceInfo {
        nsid,
        blocks,
        block_size: 1 << lbads,
        nguid: [0; 16],
        uuid: [0; 16],
        eui64: [0; 8],
    };
    namespace.nguid.copy_from_slice(&data[104..120]);
    namespace.eui64.copy_from_slice(&data[120..128]);
    Some(namespace)
}

/// Namespace identification descriptors: type, length, two reserved, the identifier.
fn parse_descriptors(namespace: &mut NamespaceInfo, mut data: &[u8]) {
    while let [nidt, nidl, _, _, rest @ ..] = data
        && *nidl > 0
    {
        let Some((nid, rest)) = rest.split_at_checked(usize::from(*nidl)) else { return };
        match (nidt, nid.len()) {
            (1, 8) => namespace.eui64.copy_from_slice(nid),
            (2, 16) => namespace.nguid.copy_from_slice(nid),
            (3, 16) => namespace.uuid.copy_from_slice(nid),
            _ => {}
        }
        data = rest;
    }
}

/// ASCII, padded with spaces or NULs; what is not printable is shown as `?`.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let printable = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
    bytes[..end].iter().map(printable).collect::<String>().trim().to_owned()
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
