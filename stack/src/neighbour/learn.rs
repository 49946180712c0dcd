//! What is learned of neighbours, from their answers and from what they say of their own accord.
//!
//! What always holds: only who is asked for, or talks to us, gets a place in the table; what is
//! configured is never changed; a node that repeats itself is heard ten times a second.

use std::net::IpAddr;
use std::time::Duration;

use super::state::{Entry, OwnState, State};
use super::{NeighbourEvent, Neighbours, Out};
use crate::Instant;
use crate::eth::Mac;
use crate::route::is_unicast;

const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// How often one neighbour's announcements are looked at.
const HEARD_INTERVAL: Duration = Duration::from_millis(100);

impl Neighbours {
    /// `ip` is at `mac`. Unknown neighbours are added only if `create`: they talk to us.
    pub(super) fn learn(&mut self, now: Instant, ip: IpAddr, mac: Mac, create: bool) {
        if !is_unicast(ip) {
            return;
        }
        let until = now + self.options.reachable;
        let Ok(at) = self.find(ip) else {
            if create {
                self.enter(now, ip, State::Reachable { mac, until, used: false });
            }
            return;
        };
        let entry = &mut self.table[at];
        let used = match entry.state {
            State::Static(_) => return,
            State::Probing { .. } | State::Failed { .. } => {
                self.tell(NeighbourEvent::Resolved(ip, mac));
                true
            }
            State::Reachable { mac: old, used, .. } => {
                if old != mac {
                    self.tell(NeighbourEvent::Resolved(ip, mac));
                }
                used
            }
            State::Refreshing { mac: old, .. } | State::Stale { mac: old } => {
                if old != mac {
                    self.tell(NeighbourEvent::Resolved(ip, mac));
                }
                false
            }
        };
        self.table[at].state = State::Reachable { mac, until, used };
        self.table[at].since = now;
    }

    /// `ip` says of its own accord that it is at `mac`: gratuitous ARP, unsolicited NA. What we know
    /// of it is updated; nobody is added to what we know (RFC 5227 §3, RFC 4861 §7.2.5). Returns
    /// whether anything was.
    pub(super) fn announced(&mut self, now: Instant, ip: IpAddr, mac: Mac) -> bool {
        let Ok(at) = self.find(ip) else { return false };
        let entry = &mut self.table[at];
        if entry.heard.is_some_and(|heard| now.since(heard) < HEARD_INTERVAL) {
            self.stats.repeated += 1;
            return false;
        }
        entry.heard = Some(now);
        self.stats.announcements += 1;
        self.learn(now, ip, mac, false);
        self.tell(NeighbourEvent::Announced(ip));
        true
    }

    /// Puts a neighbour into `state`, in place of an idle one if the table is full.
    pub(super) fn enter(&mut self, now: Instant, ip: IpAddr, state: State) -> bool {
        if let Ok(at) = self.find(ip) {
            self.table[at].state = state;
            self.table[at].since = now;
            return true;
        }
        if self.table.len() >= self.options.table_max {
            let idle = self.table.iter().enumerate().filter(|(_, entry)| entry.state.evictable());
            let Some((oldest, _)) = idle.min_by_key(|(_, entry)| entry.since) else {
                self.stats.table_full += 1;
                return false;
            };
            self.table.remove(oldest);
        }
        let at = self.find(ip).unwrap_or_else(|at| at);
        self.table.insert(at, Entry { ip, state, since: now, heard: None });
        true
    }

    pub(super) fn conflict(&mut self, now: Instant, ip: IpAddr, mac: Mac) {
        let Some(at) = self.own.iter().position(|own| own.ip == ip) else { return };
        let own = &mut self.own[at];
        if !own.ready() {
            own.state = OwnState::Conflict;
            self.tell(NeighbourEvent::AddressConflict(ip, mac));
            self.wake_waiting(now);
            self.handle_timeout_forced(now);
            return;
        }
        if own.defended.is_none_or(|at| now.since(at) >= DEFEND_INTERVAL) {
            own.defended = Some(now);
            self.send(Out::Announce { ip });
            self.tell(NeighbourEvent::AddressConflict(ip, mac));
        }
    }
}
