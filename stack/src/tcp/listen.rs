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
}

impl Listener {
    /// A connection made through it is gone.
    pub(super) fn left(&mut self, half_open: bool) {
        self.open -= 1;
        self.half_open -= usize::from(half_open);
    }

    fn takes(&self, local: SocketAddr) -> bool {
        self.local.port() == local.port()
            && self.local.is_ipv4() == local.is_ipv4()
            && (self.local.ip() == local.ip() || self.local.ip().is_unspecified())
    }
}

impl Engine {
    pub(super) fn listen(&mut self, local: SocketAddr, options: &ListenOptions) -> io::Result<()> {
        if local.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot listen on port 0"));
        }
        if self.listeners.iter().any(|listener| listener.local == local) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let options = options.clone();
        self.listeners.push(Listener { local, options, open: 0, half_open: 0 });
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
        conn.peer_scales_window = scales_window(segment, packet);
        conn.enter(now, Stage::SynReceived, Some(timeout));
        conn.egress = true;
        // The peer has begun anew; what rested there is over.
        self.resting.revive(&tuple);
        self.insert(conn);
    }
}
