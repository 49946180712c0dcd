//! Connections of I/O queues: each begins at its own place in the admission of its address.
//!
//! What always holds: attempts are admitted at the share of the rate that their admin connections
//! have, connections of I/O queues at the share that is left; so SYNs are bounded by the rate even
//! where a target that stood still lets many controllers go on at once.

use moorline_stack::{Instant, Transport};

use super::driver::{At, Entry, Host};
use super::reach::Reach;
use super::{Cause, HostLimits};

impl<T: Transport> Host<T> {
    /// Connects a qpair over TCP, now or at its place.
    pub(super) fn open(&mut self, now: Instant, at: At) {
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        entry.conns.push(None);
        entry.dirty.push(false);
        entry.ready.push(false);
        if self.standby_take(now, at) {
            return;
        }
        match self.place_of(now, at) {
            Some(place) if place > now => {
                let entry = self.entries[at.ctrl as usize].as_mut();
                entry.expect("it was here").opens.push_back((place, at.qpair));
            }
            _ => self.dial(now, at),
        }
    }

    /// When the connection of an I/O queue may begin. Admin connections were admitted before.
    fn place_of(&mut self, now: Instant, at: At) -> Option<Instant> {
        let config = &self.entries[at.ctrl as usize].as_ref()?.ctrl.config;
        if at.qpair == 0 || config.reconnect.is_none() {
            return None;
        }
        let io_queues = u32::from(config.io_queues);
        let address = self.entries[at.ctrl as usize].as_ref()?.address;
        let HostLimits { admission_per_s: per_s, admission_burst: burst, .. } = self.limits;
        let place = self.addresses.at(address).admit_io(now, io_queues, per_s, burst);
        let HostLimits { starts_per_s, starts_burst, .. } = self.limits;
        Some(self.addresses.start(now, place, starts_per_s, starts_burst))
    }

    /// Starts the connections whose place has come.
    pub(super) fn dial_due(&mut self, now: Instant, ctrl: u32) {
        while let Some(entry) = &mut self.entries[ctrl as usize]
            && let Some(&(place, qpair)) = entry.opens.front()
            && place <= now
        {
            entry.opens.pop_front();
            self.dial(now, At { ctrl, qpair });
        }
    }

    fn dial(&mut self, now: Instant, at: At) {
        let Some(options) = self.conn_options(at.ctrl) else { return };
        let Some(entry) = &mut self.entries[at.ctrl as usize] else { return };
        let q = at.qpair as usize;
        match self.transport.connect(now, entry.ctrl.config.addr, &options) {
            Ok(conn) => {
                entry.conns[q] = Some(conn);
                self.own(conn, at);
            }
            Err(error) => {
                if let Some(reach) = Reach::of_error(error.kind()) {
                    self.addresses.at(entry.address).failed(reach, false);
                }
                let cause = Cause::NotStarted(error.kind());
                entry.ctrl.connection_closed(now, q, cause);
            }
        }
    }
}

impl Entry {
    /// A connection that is to end and has no place yet never begins.
    pub(super) fn forget_open(&mut self, now: Instant, q: usize) {
        let before = self.opens.len();
        self.opens.retain(|&(_, qpair)| qpair as usize != q);
        if self.opens.len() < before {
            let cause = Cause::NotStarted(std::io::ErrorKind::Interrupted);
            self.ctrl.connection_closed(now, q, cause);
        }
    }
}
