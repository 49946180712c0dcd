//! The end of an association, and what it leaves behind in devices.
//!
//! A host whose association the target ended may issue its writes again with the next one, at
//! once: what is over executes nothing any more. So that this holds:
//!
//! * **An association is over as a whole.** With the admin queue's connection, or with that of an
//!   I/O queue (NVMe Base 2.x, "Association termination"), all its connections go, in the same
//!   turn, before anything tells the host: what devices have not yet is dropped. An I/O queue goes
//!   alone where its host says that it can lose one (CATTR), after Disconnect, and when its host
//!   closes it by FIN with no command outstanding. That last is not the specification's: Linux
//!   nvmet and SPDK keep an association whatever happens to its I/O queues, and hosts (SPDK's)
//!   delete single queues so without saying that they can.
//! * **The next one waits for what devices have.** A write that a device has cannot be taken back,
//!   so while there is one of an ended association, no new controller of the same subsystem and
//!   HOSTID becomes live. Live associations do not count, whatever is under way there: a host may
//!   have several controllers. Reads and Flushes do not count: late, they change nothing.
//!
//! The Connect is held, and answered in the turn in which the last of these writes is done: that
//! is the soonest possible, where a refusal would cost a back-off (10 s for Linux). After
//! [`TargetConfig::drain_timeout`] it is refused with Controller Busy, and tried again.
//!
//! A write that a device never ends keeps its host away for ever, from this subsystem. That is
//! meant: devices that hang tend to go on after minutes, and then the write would destroy what the
//! host has written since and was told is safe. It is to be seen in `TargetStats::stale_writes`
//! and is logged with each Connect that is held or refused; the way out is to mend the device, or
//! to end the target. Neither is the host's loss greater than with the disk as it is, save for
//! other namespaces of the subsystem.

use std::mem;

use moorline_stack::Instant;

use super::conn::State;
use super::controller::Controller;
use super::core::Core;

#[cfg(doc)]
use super::TargetConfig;

/// Where a Connect stands with what its host has left in devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// There is nothing.
    Done,
    /// It waits.
    Waits,
    /// It has waited long enough.
    Stuck,
}

impl Core {
    /// A connection is lost, and with it its association, if it is over now. The connection
    /// itself is left to the caller.
    pub(super) fn end_with(&mut self, index: u32) {
        self.end_others(index, &mut |core, other| core.take_down(other, Some(false)));
    }

    /// The same where the host is told why on this connection: nothing more is executed on the
    /// others, but their ends are not to be noticed before that.
    pub(super) fn end_quietly(&mut self, now: Instant, index: u32) {
        self.end_others(index, &mut |core, other| {
            let conn = core.conn(other);
            conn.terminate(now, None);
            if let Some(deadline) = conn.deadline {
                core.check_at(deadline);
            }
        });
    }

    fn end_others(&mut self, index: u32, end: &mut dyn FnMut(&mut Self, u32)) {
        let Self { conns, controllers, stats, .. } = self;
        let Some(conn) = conns[index as usize].as_deref() else { return };
        let Some(at) = conn.controller else { return };
        let controller = controllers[usize::from(at)].as_mut();
        let controller = controller.expect("its connections keep it");
        let was_deleted = conn.disconnected || conn.peer_closed && conn.is_idle();
        let is_alone = conn.qid > 0 && (controller.loses_queues || was_deleted);
        let is_queue = controller.queues[usize::from(conn.qid)] == Some(index);
        if is_alone || !is_queue || mem::replace(&mut controller.ended, true) {
            return;
        }
        let Controller { cntlid, writes, .. } = *controller;
        tracing::info!(cntlid, qid = conn.qid, writes_under_way = writes, "association ended");
        stats.stale_writes += u64::from(writes);
        for qid in 0..controller.queues.len() {
            let controller = self.controllers[usize::from(at)].as_ref();
            let queue = controller.and_then(|controller| controller.queues[qid]);
            if let Some(other) = queue.filter(|&other| other != index) {
                end(self, other);
            }
        }
    }

    /// Whether a new controller of this host has to wait for writes of its ended associations.
    pub(super) fn drain(
        &mut self,
        now: Instant,
        index: u32,
        subsystem: Option<u16>,
        hostid: &[u8; 16],
    ) -> Drain {
        let is_stale = |c: &&Controller| {
            c.ended && c.writes > 0 && c.subsystem == subsystem && c.hostid == *hostid
        };
        let stale = self.controllers.iter().flatten().find(is_stale);
        let until = now + self.config.drain_timeout;
        let conn = self.conns[index as usize].as_deref_mut().expect("it has a Connect");
        let Some(&Controller { cntlid, writes, .. }) = stale else {
            conn.held = None;
            return Drain::Done;
        };
        let (peer, is_new) = (conn.peer, conn.held.is_none());
        let until = *conn.held.get_or_insert(until);
        if is_new {
            self.stats.connects_held += 1;
            tracing::info!(%peer, cntlid, writes, "Connect waits for writes of an ended association");
        }
        if now < until {
            self.check_at(until);
            return Drain::Waits;
        }
        tracing::warn!(%peer, cntlid, writes, "a device does not end writes of an ended association");
        // Its deadline may have passed meanwhile: there is to be time for the answer.
        conn.held = None;
        let deadline = now + self.config.term_timeout;
        conn.deadline = conn.deadline.max(Some(deadline));
        self.check_at(deadline);
        Drain::Stuck
    }

    /// Tries Connects again that were held, if that may have become possible.
    pub(super) fn admit_held(&mut self, now: Instant) {
        if !mem::take(&mut self.drained) {
            return;
        }
        for index in 0..self.conns.len() as u32 {
            let conn = self.conns[index as usize].as_deref();
            if conn.is_some_and(|c| c.held.is_some() && c.state == State::ConnectWait) {
                self.connect(now, index, 0);
            }
        }
    }
}
