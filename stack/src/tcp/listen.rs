//! Listeners: who may connect, and how many may be half way there.
//!
//! smoltcp has no backlog. A SYN to a listening port gets a connection of its own, if the limits
//! allow, and a socket that listens for exactly that SYN.

use std::io;
use std::net::SocketAddr;

use smoltcp::socket::tcp::State;

use super::conn::Conn;
use super::engine::Engine;
use super::ingress::scales_window;
use crate::segment::Segment;
use crate::transport::{ListenOptions, Stage};
use crate::{Instant, LinkTx};

/// A listening port.
pub(super) struct Listener {
    pub local: SocketAddr,
    pub options: ListenOptions,
    /// Connections made through it, half-open ones included.
    pub open: usize,
    pub half_open: usize,
    /// Nobody listens any more; its connections still count here.
    pub is_closed: bool,
}

impl Listener {
    /// A connection made through it is gone.
    pub(super) fn left(&mut self, half_open: bool) {
        self.open -= 1;
        self.half_open -= usize::from(half_open);
    }

    fn takes(&self, local: SocketAddr) -> bool {
        !self.is_closed
            && self.local.port() == local.port()
            && self.local.is_ipv4() == local.is_ipv4()
            && (self.local.ip() == local.ip() || self.local.ip().is_unspecified())
    }
}

impl Engine {
    pub(super) fn listen(&mut self, local: SocketAddr, options: &ListenOptions) -> io::Result<()> {
        if local.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot listen on port 0"));
        }
        let options = options.clone();
        match self.listeners.iter_mut().find(|listener| listener.local == local) {
            Some(listener) if listener.is_closed => {
                (listener.options, listener.is_closed) = (options, false);
            }
            Some(_) => return Err(io::ErrorKind::AddrInUse.into()),
            None => {
                let (open, half_open, is_closed) = (0, 0, false);
                self.listeners.push(Listener { local, options, open, half_open, is_closed });
            }
        }
        Ok(())
    }

    /// Refuses from now on who asks for `local`.
    pub(super) fn unlisten(&mut self, local: SocketAddr) -> io::Result<()> {
        let mut open = self.listeners.iter_mut().filter(|listener| !listener.is_closed);
        let listener = open.find(|listener| listener.local == local);
        listener.ok_or(io::ErrorKind::NotFound)?.is_closed = true;
        Ok(())
    }

    /// A SYN that belongs to no connection.
    pub(super) fn syn<T: LinkTx>(
        &mut self,
        now: Instant,
        tx: &mut T,
        source: [u8; 6],
        segment: &Segment,
        packet: &[u8],
    ) {
        let tuple = segment.tuple;
        let Some(at) = self.listeners.iter().position(|listener| listener.takes(tuple.local))
        else {
            return self.refuse(now, tx, source, segment, packet);
        };
        let listener = &mut self.listeners[at];
        if listener.open >= listener.options.open_max {
            return self.refuse(now, tx, source, segment, packet);
        }
        if listener.half_open >= listener.options.half_open_max {
            return; // It will ask again.
        }
        let timeout = listener.options.half_open_timeout;
        let l2 = self.stack.l2(source);
        let id = self.slots.vacant();
        let mut conn = Conn::new(now, id, tuple, Stage::SynReceived, &listener.options.conn, l2);
        self.stack.listen(&mut conn);
        self.stack.ingress(now, tx, &mut conn, packet);
        if conn.socket().state() != State::SynReceived {
            return; // smoltcp did not believe it.
        }
        listener.open += 1;
        listener.half_open += 1;
        conn.listener = Some(at);
        conn.on_syn(segment, scales_window(segment, packet));
        conn.enter(now, Stage::SynReceived, Some(timeout));
        conn.egress = true;
        // The peer has begun anew; what rested there is over.
        self.resting.revive(&tuple);
        self.insert(conn);
    }
}
