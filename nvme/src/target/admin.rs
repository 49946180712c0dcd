//! Admin commands: Identify, Get Log Page, features, Keep Alive, events, Abort.

use moorline_stack::Instant;

use super::conn::Phase;
use super::core::Core;
use super::discovery;
use super::exec::Plan;
use super::identify::identify;
use super::log::{self, Window};
use crate::spec::features::{async_event, fid};
use crate::spec::identify::IDENTIFY_BYTES;
use crate::spec::log::lid;
use crate::spec::{
    Abort, GetFeatures, GetLogPage, NumberOfQueues, SetFeatures, Sgl, Sqe, Status, opcode,
};

/// SEL of Get Features: what can be done with the feature.
const SEL_CAPABILITIES: u8 = 3;
/// Capabilities of a feature: it can be changed.
const CHANGEABLE: u64 = 1 << 2;
/// DW0 of an Abort that did not abort.
const NOT_ABORTED: u64 = 1;

impl Core {
    /// An admin command that is not a Fabrics one.
    pub(super) fn admin_command(
        &mut self,
        now: Instant,
        index: u32,
        slot: u16,
        sqe: &Sqe,
        sgl: Sgl,
    ) -> Plan {
        let controller = self.controller_of(index);
        if sqe.opcode == opcode::admin::KEEP_ALIVE {
            controller.keep_alive(now);
            return Plan::Complete(Status::SUCCESS, 0);
        }
        if !controller.is_ready() {
            return Plan::fail(Status::COMMAND_SEQUENCE_ERROR);
        }
        match sqe.opcode {
            opcode::admin::IDENTIFY => match sgl {
                Sgl::Transport(len) if len as usize >= IDENTIFY_BYTES => {
                    Plan::Buffer(IDENTIFY_BYTES as u32)
                }
                Sgl::Transport(_) | Sgl::InCapsule(_) => Plan::fail(Status::SGL_LENGTH_INVALID),
            },
            opcode::admin::GET_LOG_PAGE => {
                let len = GetLogPage::from_sqe(sqe).len;
                match sgl {
                    _ if len > u64::from(self.config.transfer_max()) => {
                        Plan::fail(Status::INVALID_FIELD)
                    }
                    Sgl::Transport(room) if len <= u64::from(room) => Plan::Buffer(len as u32),
                    Sgl::Transport(_) | Sgl::InCapsule(_) => Plan::fail(Status::SGL_LENGTH_INVALID),
                }
            }
            opcode::admin::SET_FEATURES => self.set_features(now, index, sqe),
            opcode::admin::GET_FEATURES => self.features(index, sqe),
            opcode::admin::ASYNC_EVENT_REQUEST => match controller.hold_aer(slot) {
                Ok(()) => Plan::Hold,
                Err(status) => Plan::fail(status),
            },
            opcode::admin::ABORT => self.abort_command(index, sqe),
            _ => Plan::fail(Status::INVALID_OPCODE),
        }
    }

    /// An admin command has its buffer: fills it, and answers.
    pub(super) fn admin_reply(&mut self, index: u32, slot: u16) {
        let Self { conns, controllers, subsystems, listeners, pool, config, .. } = self;
        let conn = conns[index as usize].as_deref_mut().expect("it has a command");
        let at = conn.controller.expect("only live queues execute");
        let controller = controllers[usize::from(at)].as_mut().expect("its queues keep it");
        let subsystem = controller.subsystem.map(|at| &subsystems[usize::from(at)]);
        let s = &mut conn.slots[usize::from(slot)];
        let (sqe, len) = (s.sqe, s.len);
        let out = &mut s.buf.as_mut().expect("it waited for a buffer")[..len as usize];
        let result = if sqe.opcode == opcode::admin::IDENTIFY {
            out.fill(0);
            let out = out.try_into().expect("it asked for just this size");
            identify(&sqe, controller, subsystem, config, out)
        } else {
            let log = GetLogPage::from_sqe(&sqe);
            let size = match (log.lid, subsystem) {
                (_, Some(_)) => log::io_log(&log, out),
                (lid::DISCOVERY, None) => {
                    controller.discovery_masked &= log.rae;
                    let page = discovery::Log {
                        genctr: self.genctr,
                        subsystems,
                        listeners,
                        local: conn.local,
                        hostnqn: controller.hostnqn.as_str(),
                        admin_queue_size: config.mqes + 1,
                    };
                    Some(page.write(&mut Window::new(log.offset, out)))
                }
                (lid::SUPPORTED_PAGES, None) => {
                    let pages = [lid::SUPPORTED_PAGES, lid::ERROR, lid::DISCOVERY];
                    Some(log::supported(&pages, &mut Window::new(log.offset, out)))
                }
                (lid::ERROR, None) => log::io_log(&log, out),
                _ => None,
            };
            match size {
                None => Err(Status::INVALID_LOG_PAGE.with_dnr()),
                Some(size) if log.offset > size => Err(Status::INVALID_FIELD.with_dnr()),
                Some(_) => Ok(()),
            }
        };
        match result {
            Ok(()) => conn.reply(slot, len),
            Err(status) => conn.complete(pool, slot, status, 0),
        }
    }

    fn set_features(&mut self, now: Instant, index: u32, sqe: &Sqe) -> Plan {
        let SetFeatures { fid, save, value, .. } = SetFeatures::from_sqe(sqe);
        if save {
            return Plan::fail(Status::FEATURE_NOT_SAVEABLE);
        }
        let io_queues_max = self.config.io_queues_max;
        let controller = self.controller_of(index);
        match fid {
            fid::NUMBER_OF_QUEUES if !controller.is_discovery() => {
                let asked = NumberOfQueues::from_value(value);
                if value & 0xFFFF == 0xFFFF || value >> 16 == 0xFFFF {
                    return Plan::fail(Status::INVALID_FIELD);
                }
                if controller.queues[1..].iter().any(Option::is_some) {
                    return Plan::fail(Status::COMMAND_SEQUENCE_ERROR);
                }
                controller.granted = asked.pairs().min(io_queues_max.into()) as u16;
                Plan::Complete(Status::SUCCESS, queues_dw0(controller.granted))
            }
            fid::ASYNC_EVENTS => {
                controller.aen_config = value;
                self.send_events(index);
                Plan::Complete(Status::SUCCESS, 0)
            }
            fid::KEEP_ALIVE_TIMER => {
                controller.set_kato(now, value);
                if let Some(deadline) = controller.deadline() {
                    self.check_at(deadline);
                }
                Plan::Complete(Status::SUCCESS, 0)
            }
            fid::WRITE_CACHE if value & 1 == 1 => Plan::Complete(Status::SUCCESS, 0),
            fid::WRITE_CACHE => Plan::fail(Status::FEATURE_NOT_CHANGEABLE),
            _ => Plan::fail(Status::INVALID_FIELD),
        }
    }

    fn features(&mut self, index: u32, sqe: &Sqe) -> Plan {
        let GetFeatures { fid, sel, .. } = GetFeatures::from_sqe(sqe);
        let controller = self.controller_of(index);
        let (value, capabilities) = match fid {
            fid::NUMBER_OF_QUEUES if !controller.is_discovery() => {
                (queues_dw0(controller.granted), CHANGEABLE)
            }
            fid::ASYNC_EVENTS => (u64::from(controller.aen_config), CHANGEABLE),
            fid::KEEP_ALIVE_TIMER => (u64::from(controller.kato_ms()), CHANGEABLE),
            fid::WRITE_CACHE if !controller.is_discovery() => (1, 0),
            _ => return Plan::fail(Status::INVALID_FIELD),
        };
        let result = if sel == SEL_CAPABILITIES { capabilities } else { value };
        Plan::Complete(Status::SUCCESS, result)
    }

    /// Abort: what only waits here is aborted; what a device works on, or whose data are under
    /// way, is not (best effort, as the spec has it).
    fn abort_command(&mut self, index: u32, sqe: &Sqe) -> Plan {
        let Abort { sqid, cid } = Abort::from_sqe(sqe);
        let controller = self.controller_of(index);
        let Some(&Some(victim)) = controller.queues.get(usize::from(sqid)) else {
            return Plan::Complete(Status::SUCCESS, NOT_ABORTED);
        };
        let Self { conns, controllers, pool, .. } = self;
        let conn = conns[victim as usize].as_deref_mut().expect("queues name open connections");
        let Some(slot) = conn.slot_of(cid) else {
            return Plan::Complete(Status::SUCCESS, NOT_ABORTED);
        };
        match conn.slots[usize::from(slot)].phase {
            Phase::Held => {
                let at = conn.controller.expect("only live queues hold");
                let controller = controllers[usize::from(at)].as_mut();
                controller.expect("its queues keep it").forget_aer(slot);
            }
            Phase::Waiting => conn.waiting.retain(|&waits| waits != slot),
            _ => return Plan::Complete(Status::SUCCESS, NOT_ABORTED),
        }
        conn.complete(pool, slot, Status::ABORT_REQUESTED, 0);
        self.dirty(victim);
        Plan::Complete(Status::SUCCESS, 0)
    }

    /// Sends the events of a controller that there are, to the requests that wait.
    pub(super) fn send_events(&mut self, admin: u32) {
        let Self { conns, controllers, pool, .. } = self;
        let Some(conn) = conns[admin as usize].as_deref_mut() else { return };
        let Some(at) = conn.controller else { return };
        let controller = controllers[usize::from(at)].as_mut().expect("its queues keep it");
        if let Some((slot, dw0)) = controller.event() {
            conn.complete(pool, slot, Status::SUCCESS, dw0);
            self.dirty(admin);
        }
    }

    /// The discovery log changed: its readers are told.
    pub(super) fn discovery_changed(&mut self) {
        self.genctr += 1;
        for at in 0..self.controllers.len() {
            let Some(controller) = &mut self.controllers[at] else { continue };
            if !controller.is_discovery() || controller.ended {
                continue;
            }
            controller.discovery_changed = controller.aen_config & async_event::DISCOVERY_LOG != 0;
            if let Some(admin) = controller.queues[0] {
                self.send_events(admin);
            }
        }
    }
}

/// DW0 of Number of Queues: as many completion queues as submission queues.
fn queues_dw0(granted: u16) -> u64 {
    let granted = u32::from(granted);
    NumberOfQueues { submission: granted, completion: granted }.to_value().into()
}
