//! What ICMP says of nodes and connections: errors, and how far they are believed (RFC 5927); echo
//! requests of ours, and the nodes that answer.
//!
//! Anyone can send an error. So it must quote a segment that may be on its way; it ends no connection,
//! but an attempt to make one, which another will follow; and only so many are looked at. Our
//! segments are never longer than our own link takes, so a smaller path is only told of, in `Why`.

use std::net::IpAddr;

use super::engine::{Engine, NODES_MAX};
use super::lane::Lane;
use crate::eth::Datagram;
use crate::icmp::{self, Echo};
use crate::neighbour::Resolution;
use crate::time::Duration;
use crate::transport::{Cause, IcmpError, Stage};
use crate::{Instant, LinkTx};

/// ICMP errors by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IcmpErrors {
    /// Ended an attempt to connect.
    pub ended: u64,
    /// Noted with their connection.
    pub hints: u64,
    /// Unsound, about nothing of ours that is on its way, or too many.
    pub ignored: u64,
}

impl Engine {
    /// Takes in an ICMP error.
    pub(super) fn icmp_error(&mut self, now: Instant, datagram: &Datagram<'_>) {
        let quoted = self.hints.take(now).then(|| icmp::quoted(datagram)).flatten();
        let known = quoted.and_then(|quoted| Some((quoted, self.demux.slot(&quoted.tuple)?)));
        let Some((quoted, index)) = known else {
            self.icmp_errors.ignored += 1;
            return;
        };
        let conn = self.slots.at_mut(index).expect("the demux table names live connections");
        if !conn.is_in_flight(quoted.seq) {
            self.icmp_errors.ignored += 1;
            return;
        }
        conn.hint = Some(quoted.error);
        let ends = !matches!(quoted.error, IcmpError::TooBig { .. });
        if conn.stage == Stage::SynSent && ends {
            self.icmp_errors.ended += 1;
            self.finish(now, index, Some(Cause::Icmp(quoted.error)));
        } else {
            self.icmp_errors.hints += 1;
        }
    }
}

impl Engine {
    /// Asks a node whether it is there. False: it cannot be asked.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        lane: &mut Lane,
        ip: IpAddr,
        timeout: Duration,
    ) -> bool {
        let Some(route) = lane.routes.to(ip) else { return false };
        let token = self.stack.draw();
        let way = [route.source, ip, route.next_hop];
        if !lane.neighbours.is_ready(route.source) || !self.echoes.ask(now, way, token, timeout) {
            return false;
        }
        match lane.neighbours.resolve(now, route.next_hop) {
            Resolution::Resolved(mac) => self.echoes.next_hop(route.next_hop, Some(mac)),
            Resolution::Pending => {} // an event will tell
            Resolution::Failed => self.echoes.next_hop(route.next_hop, None),
        }
        true
    }

    /// Sends the echo requests that can be sent.
    pub(super) fn send_echoes<T: LinkTx>(&mut self, tx: &mut T) {
        let mut packet = [0; icmp::ECHO_LEN_MAX];
        while self.echoes.wants_transmit() && tx.room() > self.reserve {
            let Some((mac, len)) = self.echoes.poll_transmit(&mut packet) else { return };
            let l2 = self.stack.l2(mac);
            l2.transmit(tx, len, |out| out.copy_from_slice(&packet[..len]));
        }
    }

    /// Takes in a reply.
    pub(super) fn echoed(&mut self, now: Instant, datagram: &Datagram<'_>, echo: Echo) {
        if let Some(ip) = self.echoes.reply(now, datagram, echo)
            && self.nodes.len() < NODES_MAX
        {
            self.nodes.push_back(ip);
        }
    }
}
