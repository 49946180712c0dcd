//! ICMP errors about connections of ours, and how far they are believed (RFC 5927).
//!
//! Anyone can send one. So it must quote a segment that may be on its way; it ends no connection,
//! but an attempt to make one, which another will follow; and only so many are looked at. Our
//! segments are never longer than our own link takes, so a smaller path is only told of, in `Why`.

use super::engine::Engine;
use crate::Instant;
use crate::eth::Datagram;
use crate::icmp;
use crate::transport::{Cause, IcmpError, Stage};

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
