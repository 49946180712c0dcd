//! What is known of a neighbour, and of an address of ours.
//!
//! ```text
//!            resolve            answer              60 s, used
//!   absent ─────────► Probing ─────────► Reachable ◄──────────► Refreshing
//!                      ▲   │                 │ 60 s, not used        │
//!              resolve │   │ 3 tries         ▼                       │ 3 tries
//!                      │   └──► Failed     Stale ── resolve ► Probing│
//!                      └───────── ▲ ─────────────────────────────────┘
//! ```

use std::net::IpAddr;

use crate::Instant;
use crate::eth::Mac;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Configured: never asked, never changed.
    Static(Mac),
    /// Asked `tries` times; `next` is the next try or failure, `None` while no address of ours is
    /// ready to ask from. `old` is where the first try goes.
    Probing { old: Option<Mac>, tries: u8, next: Option<Instant> },
    /// Answered, and trusted until then. `used`: somebody resolved it since.
    Reachable { mac: Mac, until: Instant, used: bool },
    /// Used, and asked again meanwhile.
    Refreshing { mac: Mac, tries: u8, next: Instant },
    /// Not used since it answered; to be asked before use.
    Stale { mac: Mac },
    /// Did not answer; not tried again until then.
    Failed { until: Instant },
}

impl State {
    pub fn deadline(&self) -> Option<Instant> {
        match *self {
            Self::Static(_) | Self::Stale { .. } | Self::Failed { .. } => None,
            Self::Probing { next, .. } => next,
            Self::Reachable { until, .. } => Some(until),
            Self::Refreshing { next, .. } => Some(next),
        }
    }

    pub fn mac(&self) -> Option<Mac> {
        match *self {
            Self::Static(mac)
            | Self::Reachable { mac, .. }
            | Self::Refreshing { mac, .. }
            | Self::Stale { mac } => Some(mac),
            Self::Probing { .. } | Self::Failed { .. } => None,
        }
    }

    /// What becomes of it when the link was away: asked anew, all of them.
    pub fn after_link_up(self, now: Instant) -> Self {
        match self {
            Self::Probing { next: Some(_), .. } => {
                Self::Probing { old: None, tries: 0, next: Some(now) }
            }
            Self::Reachable { mac, .. } | Self::Refreshing { mac, .. } | Self::Stale { mac } => {
                Self::Refreshing { mac, tries: 0, next: now }
            }
            other => other,
        }
    }

    pub fn evictable(&self) -> bool {
        match self {
            Self::Reachable { used, .. } => !used,
            Self::Stale { .. } | Self::Failed { .. } => true,
            Self::Static(_) | Self::Probing { .. } | Self::Refreshing { .. } => false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub ip: IpAddr,
    pub state: State,
    /// When the state was entered: the oldest is evicted first.
    pub since: Instant,
    /// When it last announced itself.
    pub heard: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnState {
    Probing { sent: u8, next: Instant },
    Announcing { left: u8, next: Instant },
    Ready,
    Conflict,
}

#[derive(Clone, Debug)]
pub(super) struct Own {
    pub ip: IpAddr,
    pub state: OwnState,
    pub defended: Option<Instant>,
}

impl Own {
    pub fn ready(&self) -> bool {
        matches!(self.state, OwnState::Announcing { .. } | OwnState::Ready)
    }

    /// It is announced again, or probed from the beginning.
    pub fn link_up(&mut self, now: Instant, announcements: u8) {
        self.state = match self.state {
            OwnState::Probing { .. } => OwnState::Probing { sent: 0, next: now },
            OwnState::Announcing { .. } | OwnState::Ready => {
                OwnState::Announcing { left: announcements, next: now }
            }
            OwnState::Conflict => OwnState::Conflict,
        };
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            OwnState::Probing { next, .. } | OwnState::Announcing { next, .. } => Some(next),
            OwnState::Ready | OwnState::Conflict => None,
        }
    }
}
