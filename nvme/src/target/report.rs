//! What a target has to show: its controllers, for a person who asks.

use std::net::SocketAddr;

use moorline_stack::{Instant, Transport};

use super::Target;
use crate::spec::DISCOVERY_NQN;

/// A controller of a target, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerReport {
    /// Its place in the target's table.
    pub index: u32,
    /// Its CNTLID.
    pub cntlid: u16,
    /// Whose it is.
    pub hostnqn: String,
    /// The host's end of its admin queue.
    pub peer: SocketAddr,
    /// The subsystem's NQN.
    pub subnqn: String,
    /// I/O queues that are connected.
    pub io_queues: u16,
    /// CSTS.RDY is 1, or would be read so.
    pub is_ready: bool,
    /// When its admin queue was connected.
    pub since: Instant,
    /// When the association ends unless a Keep Alive comes; `None` without KATO.
    pub keep_alive: Option<Instant>,
}

impl<T: Transport> Target<T> {
    /// The controllers in places from `from` on, in order, `max` at most.
    pub fn controllers_from(&self, from: u32, max: usize) -> Vec<ControllerReport> {
        let core = &self.core;
        let places = core.controllers.iter().enumerate().skip(from as usize);
        let report = |(index, place): (usize, &Option<super::controller::Controller>)| {
            let controller = place.as_ref().filter(|controller| !controller.ended)?;
            let admin = core.conns[controller.queues[0]? as usize].as_deref()?;
            let subsystem = controller.subsystem.map(|at| &core.subsystems[usize::from(at)]);
            Some(ControllerReport {
                index: index as u32,
                cntlid: controller.cntlid,
                hostnqn: controller.hostnqn.as_str().to_owned(),
                peer: admin.peer,
                subnqn: subsystem.map_or(DISCOVERY_NQN, |sub| sub.nqn.as_str()).to_owned(),
                io_queues: controller.queues[1..].iter().flatten().count() as u16,
                is_ready: controller.is_ready(),
                since: controller.since,
                keep_alive: controller.deadline(),
            })
        };
        places.filter_map(report).take(max).collect()
    }
}
