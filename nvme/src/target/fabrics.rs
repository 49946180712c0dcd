//! Fabrics commands: Connect, properties, Disconnect (NVMe Base 2.x, "Fabrics command set").

use moorline_stack::Instant;
use zerocopy::FromBytes;

use super::conn::{Conn, Phase, Rx, State};
use super::controller::{Change, Controller};
use super::core::Core;
use super::drain::Drain;
use super::exec::Plan;
use super::faults::Fate;
use crate::pdu::Limits;
use crate::spec::connect::{CNTLID_DYNAMIC, CNTLID_MAX};
use crate::spec::opcode::fctype;
use crate::spec::{
    Connect, ConnectData, ConnectResponse, InvalidParameter, Nqn, Property, Sgl, Sqe, Status,
};

/// How a Connect fails: a status, and DW0.
type Refused = (Status, u64);

fn invalid(parameter: InvalidParameter) -> Refused {
    let dw0 = u64::from(parameter.ipo) | u64::from(parameter.in_data) << 16;
    (Status::CONNECT_INVALID_PARAMETERS.with_dnr(), dw0)
}

impl Core {
    /// The only command before the queue is live: Connect, its data in the capsule.
    pub(super) fn first_command(conn: &mut Conn, slot: u16, sqe: &Sqe, sgl: Sgl) -> Plan {
        if !(sqe.is_fabrics() && sqe.fctype() == fctype::CONNECT) {
            return Plan::fail(Status::COMMAND_SEQUENCE_ERROR);
        }
        match sgl {
            Sgl::InCapsule(ConnectData::BYTES) => {
                conn.rx = Rx::Connect { slot, filled: 0 };
                conn.slots[usize::from(slot)].phase = Phase::InCapsule;
                Plan::UnderWay
            }
            Sgl::InCapsule(_) | Sgl::Transport(_) => Plan::fail(Status::SGL_LENGTH_INVALID),
        }
    }

    /// A Fabrics command on a live queue.
    pub(super) fn fabrics_command(&mut self, now: Instant, index: u32, sqe: &Sqe) -> Plan {
        let conn = self.conn(index);
        let qid = conn.qid;
        match (sqe.fctype(), qid) {
            (fctype::CONNECT, _) => Plan::fail(Status::COMMAND_SEQUENCE_ERROR),
            (fctype::PROPERTY_GET, 0) => {
                let Some(get) = Property::from_sqe(sqe) else {
                    return Plan::fail(Status::INVALID_FIELD);
                };
                match self.controller_of(index).property(get) {
                    Ok(value) => Plan::Complete(Status::SUCCESS, value),
                    Err(status) => Plan::fail(status),
                }
            }
            (fctype::PROPERTY_SET, 0) => {
                let Some(set) = Property::from_sqe(sqe) else {
                    return Plan::fail(Status::INVALID_FIELD);
                };
                match self.controller_of(index).set_property(set) {
                    Ok(Change::None) => Plan::Complete(Status::SUCCESS, 0),
                    Ok(Change::Reset) => {
                        self.reset(index);
                        Plan::Complete(Status::SUCCESS, 0)
                    }
                    Err(status) => Plan::fail(status),
                }
            }
            (fctype::DISCONNECT, 1..) => {
                // The host closes; if it does not, we do.
                let deadline = now + self.config.term_timeout;
                let conn = self.conn(index);
                (conn.deadline, conn.disconnected) = (Some(deadline), true);
                self.check_at(deadline);
                Plan::Complete(Status::SUCCESS, 0)
            }
            (fctype::DISCONNECT, 0) => Plan::fail(Status::INVALID_QUEUE_TYPE),
            _ => Plan::fail(Status::INVALID_OPCODE),
        }
    }

    /// Connect's data are here: the connection becomes a queue of a controller, or the command
    /// fails and the connection waits for another Connect, or it waits for devices.
    pub(super) fn connect(&mut self, now: Instant, index: u32, slot: u16) {
        let conn = self.conn(index);
        let connect = Connect::from_sqe(&conn.slots[usize::from(slot)].sqe);
        let bytes = conn.connect_data.as_deref().expect("kept until Connect succeeded");
        let data = ConnectData::read_from_bytes(bytes).expect("it has just this size");
        let result = if conn.slots[usize::from(slot)].fate == Fate::Busy {
            Err((Status::CONNECT_CONTROLLER_BUSY, 0))
        } else if connect.qid == 0 {
            self.connect_admin(now, index, &connect, &data)
        } else {
            self.connect_io(index, &connect, &data).map(Some)
        };
        match result {
            Ok(Some(controller)) => self.go_live(index, slot, controller, &connect),
            Ok(None) => return,
            Err((status, result)) => {
                let Self { conns, pool, .. } = self;
                let conn = conns[index as usize].as_deref_mut().expect("it has just told us");
                let (peer, qid) = (conn.peer, connect.qid);
                tracing::warn!(%peer, qid, %status, result, "Connect refused");
                conn.complete(pool, slot, status, result);
            }
        }
        self.stats.admin += 1;
        self.dirty(index);
    }

    /// What is the same for all queues: format, size, subsystem, host.
    fn check_connect(
        &self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<(Option<u16>, Nqn), Refused> {
        if connect.recfmt != 0 {
            return Err((Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(), 0));
        }
        if connect.sqsize == 0 || connect.sqsize > self.config.mqes {
            return Err(invalid(InvalidParameter::SQSIZE));
        }
        let subnqn =
            Nqn::from_field(&data.subnqn).map_err(|_| invalid(InvalidParameter::SUBNQN))?;
        let hostnqn =
            Nqn::from_field(&data.hostnqn).map_err(|_| invalid(InvalidParameter::HOSTNQN))?;
        if subnqn.is_discovery() {
            return Ok((None, hostnqn));
        }
        let is = |sub: &super::Subsystem| sub.nqn == subnqn.as_str();
        let Some(at) = self.subsystems.iter().position(is) else {
            return Err(invalid(InvalidParameter::SUBNQN));
        };
        if !self.subsystems[at].allows(hostnqn.as_str().as_bytes()) {
            return Err((Status::CONNECT_INVALID_HOST.with_dnr(), 0));
        }
        Ok((Some(at as u16), hostnqn))
    }

    /// A new controller; none if it is to wait.
    fn connect_admin(
        &mut self,
        now: Instant,
        index: u32,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Option<u16>, Refused> {
        let (subsystem, hostnqn) = self.check_connect(connect, data)?;
        if data.cntlid.get() != CNTLID_DYNAMIC {
            return Err(invalid(InvalidParameter::CNTLID));
        }
        let busy = (Status::CONNECT_CONTROLLER_BUSY, 0);
        match self.drain(now, index, subsystem, &data.hostid) {
            Drain::Done => {}
            Drain::Waits => return Ok(None),
            Drain::Stuck => return Err(busy),
        }
        let at = self.controllers.iter().position(Option::is_none).ok_or(busy)?;
        let cntlid = self.new_cntlid();
        let mut controller = Controller::new(
            now,
            cntlid,
            subsystem,
            hostnqn,
            data.hostid,
            self.config.io_queues_max,
            self.config.mqes,
            self.config.discovery_timeout,
        );
        controller.set_kato(now, connect.kato_ms);
        controller.loses_queues = connect.cattr & Connect::CATTR_IOQ_DELETION != 0;
        controller.queues[0] = Some(index);
        if let Some(deadline) = controller.deadline() {
            self.check_at(deadline);
        }
        let hostnqn = controller.hostnqn.as_str();
        tracing::info!(cntlid, hostnqn, kato_ms = controller.kato_ms(), "controller");
        self.controllers[at] = Some(controller);
        self.stats.controllers += 1;
        Ok(Some(at as u16))
    }

    /// A queue of a controller that there is.
    fn connect_io(
        &mut self,
        index: u32,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<u16, Refused> {
        let (subsystem, hostnqn) = self.check_connect(connect, data)?;
        let is = |c: &Option<Controller>| {
            c.as_ref().is_some_and(|c| {
                c.cntlid == data.cntlid.get() && c.subsystem == subsystem && !c.ended
            })
        };
        let Some(at) = self.controllers.iter().position(is) else {
            return Err(invalid(InvalidParameter::CNTLID));
        };
        let controller = self.controllers[at].as_mut().expect("just found");
        if controller.hostnqn != hostnqn {
            return Err(invalid(InvalidParameter::HOSTNQN));
        }
        if controller.hostid != data.hostid {
            return Err(invalid(InvalidParameter::HOSTID));
        }
        if !controller.is_ready() {
            return Err((Status::COMMAND_SEQUENCE_ERROR.with_dnr(), 0));
        }
        if connect.qid > controller.granted {
            return Err(invalid(InvalidParameter::QID));
        }
        let queue = &mut controller.queues[usize::from(connect.qid)];
        if queue.is_some() {
            // The old queue may still be going: worth another try.
            return Err((Status::CONNECT_CONTROLLER_BUSY, 0));
        }
        *queue = Some(index);
        Ok(at as u16)
    }

    fn go_live(&mut self, index: u32, slot: u16, at: u16, connect: &Connect) {
        let limits = Limits {
            in_capsule_max: if connect.qid == 0 {
                Limits::default().in_capsule_max
            } else {
                self.config.in_capsule_bytes
            },
            h2c_data_max: self.config.h2c_data_bytes_max,
        };
        let controller = self.controllers[usize::from(at)].as_mut().expect("just connected");
        controller.conns += 1;
        let cntlid = controller.cntlid;
        let Self { conns, pool, .. } = self;
        let conn = conns[index as usize].as_deref_mut().expect("it has just told us");
        debug_assert!(conn.state == State::ConnectWait);
        conn.go_live(slot, at, connect.qid, connect.sqsize + 1, limits);
        conn.flow_control = !connect.dissqfc();
        let response = ConnectResponse { cntlid, ..ConnectResponse::default() };
        conn.complete(pool, slot, Status::SUCCESS, u64::from(response.to_dw0()));
    }

    /// The next CNTLID that is not in use (dynamic model), so that a late host finds nobody.
    fn new_cntlid(&mut self) -> u16 {
        loop {
            // Ends: there are more identifiers than controllers.
            self.cntlid = if self.cntlid >= CNTLID_MAX { 1 } else { self.cntlid + 1 };
            let cntlid = self.cntlid;
            if !self.controllers.iter().flatten().any(|c| c.cntlid == cntlid) {
                return cntlid;
            }
        }
    }
}
