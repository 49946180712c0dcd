//! Accepting: who waits at a listener becomes a connection, or is refused.
//!
//! Listeners are watched level-triggered. Out of descriptors, none is watched for a while: a
//! listener that stays readable would end each wait at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Once;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, getsockname};

use super::conn::{self, Conn};
use super::{KernelSockets, LISTENER};
use crate::Instant;
use crate::transport::{Event, Stage};

/// Connections accepted from one listener in a turn.
const ACCEPTS_MAX: usize = 64;
/// How long no listener is watched when the process or the machine is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// That it is, was said.
static SAID: Once = Once::new();

impl KernelSockets {
    /// Takes in who waits at a listener, within a budget.
    pub(super) fn accept(&mut self, now: Instant, at: usize) {
        for _ in 0..ACCEPTS_MAX {
            self.stats.syscalls += 1;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (fd, peer) = match acceptfrom_with(&self.listeners[at].fd, flags) {
                Ok(accepted) => accepted,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    return self.pause_accepting(now, errno);
                }
                // `AGAIN`, or a peer that left: the listener stays readable if there are more.
                Err(_) => return,
            };
            let listener = &self.listeners[at];
            let full = listener.open >= listener.options.open_max || self.conns() >= self.conns_max;
            let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
            let local = getsockname(&fd).ok().and_then(|local| SocketAddr::try_from(local).ok());
            self.stats.syscalls += 1;
            let (Some(peer), Some(local), false) = (peer, local, full) else {
                conn::reset_on_close(&fd);
                continue;
            };
            let options = &listener.options.conn;
            let conn = Conn::new(now, fd, Stage::Established, Some(at), options);
            // A peer may be gone before it was accepted: then there is nothing to tell.
            let Ok(id) = conn.map_err(io::Error::from).and_then(|conn| self.insert(conn)) else {
                continue;
            };
            self.listeners[at].open += 1;
            self.events.push_back(Event::Accepted { conn: id, local, peer });
            self.want_read(id.index);
        }
    }

    /// Looks at no listener for a while: they stay readable, and waiting would not wait.
    fn pause_accepting(&mut self, now: Instant, errno: Errno) {
        SAID.call_once(|| {
            let pause = ACCEPT_PAUSE;
            tracing::warn!(
                "cannot accept, trying every {pause:?} (said once): {errno}; `ulimit -n` sets how \
                 many descriptors there can be"
            );
        });
        self.accept_again = Some(now + ACCEPT_PAUSE);
        self.watch_listeners(epoll::EventFlags::empty());
    }

    /// Looks at the listeners again when it is time.
    pub(super) fn resume_accepting(&mut self, now: Instant) {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.watch_listeners(epoll::EventFlags::IN);
        }
    }

    fn watch_listeners(&mut self, flags: epoll::EventFlags) {
        let open = self.listeners.iter().enumerate().filter(|(_, listener)| !listener.is_closed);
        for (at, listener) in open {
            let data = epoll::EventData::new_u64(LISTENER | at as u64);
            epoll::modify(&self.epoll, &listener.fd, data, flags)
                .expect("it was added, and stays so until the engine goes");
        }
        self.stats.syscalls += self.listeners.len() as u64;
    }
}
