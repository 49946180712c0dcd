//! The discovery service: which subsystems are reachable where (NVMe Base 2.x, "Discovery log
//! page"). It answers on every listener under the well-known NQN.

use std::net::SocketAddr;

use zerocopy::IntoBytes;

use super::Subsystem;
use super::log::Window;
use crate::spec::connect::CNTLID_DYNAMIC;
use crate::spec::log::{DiscoveryLogEntry, DiscoveryLogHeader, adrfam, subtype, trtype};

/// Bytes of the log's header, and of an entry.
const RECORD_BYTES: u64 = 1024;

/// TREQ: no secure channel, and SQ flow control may be off.
const TREQ: u8 = 0b110;

/// What the log is made of.
pub(super) struct Log<'a> {
    /// Counts changes of what follows.
    pub genctr: u64,
    pub subsystems: &'a [Subsystem],
    pub listeners: &'a [SocketAddr],
    /// The address that the asking host used, for listeners on all addresses.
    pub local: SocketAddr,
    pub hostnqn: &'a str,
    /// Largest admin queue, entries.
    pub admin_queue_size: u16,
}

impl Log<'_> {
    /// Writes the log; returns its size.
    pub fn write(&self, window: &mut Window<'_>) -> u64 {
        let mut entries = 0;
        for (portid, listener) in (1u16..).zip(self.listeners) {
            let Some(addr) = self.reachable(*listener) else { continue };
            let allowed = self.subsystems.iter().filter(|sub| sub.allows(self.hostnqn.as_bytes()));
            for subsystem in allowed {
                entries += 1;
                self.entry(window, entries * RECORD_BYTES, portid, addr, subsystem);
            }
        }
        let mut header = DiscoveryLogHeader::zeroed();
        header.genctr.set(self.genctr);
        header.numrec.set(entries);
        window.put(0, header.as_bytes());
        (entries + 1) * RECORD_BYTES
    }

    /// A listener's address as the host can use it.
    fn reachable(&self, listener: SocketAddr) -> Option<SocketAddr> {
        if !listener.ip().is_unspecified() {
            return Some(listener);
        }
        let same_family = listener.is_ipv4() == self.local.is_ipv4();
        same_family.then(|| SocketAddr::new(self.local.ip(), listener.port()))
    }

    fn entry(
        &self,
        window: &mut Window<'_>,
        at: u64,
        portid: u16,
        addr: SocketAddr,
        subsystem: &Subsystem,
    ) {
        if !window.shows(at, RECORD_BYTES as usize) {
            return;
        }
        let mut entry = DiscoveryLogEntry::zeroed();
        entry.trtype = trtype::TCP;
        entry.adrfam = if addr.is_ipv4() { adrfam::IPV4 } else { adrfam::IPV6 };
        entry.subtype = subtype::NVM;
        entry.treq = TREQ;
        entry.portid.set(portid);
        entry.cntlid.set(CNTLID_DYNAMIC);
        entry.asqsz.set(self.admin_queue_size);
        entry.trsvcid = padded(format_args!("{}", addr.port()));
        entry.subnqn[..subsystem.nqn.len()].copy_from_slice(subsystem.nqn.as_bytes());
        entry.traddr = padded(format_args!("{}", addr.ip()));
        window.put(at, entry.as_bytes());
    }
}

/// ASCII, padded with spaces; nothing is allocated.
fn padded<const N: usize>(text: std::fmt::Arguments<'_>) -> [u8; N] {
    use std::io::Write;
    let mut field = [b' '; N];
    // A port or an address is shorter than its field.
    let _ = (&mut field[..]).write_fmt(text);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listener_offers_each_subsystem_that_allows_the_host() {
        let mut hidden = Subsystem::new("nqn.2026-01.io.moorline:hidden");
        hidden.hosts = Some(vec!["nqn.2026-01.io.moorline:other".into()]);
        let log = Log {
            genctr: 7,
            subsystems: &[Subsystem::new("nqn.2026-01.io.moorline:a"), hidden],
            listeners: &["0.0.0.0:4420".parse().unwrap(), "[fd00::1]:8009".parse().unwrap()],
            local: "10.0.0.2:4420".parse().unwrap(),
            hostnqn: "nqn.2026-01.io.moorline:host",
            admin_queue_size: 128,
        };
        let mut out = vec![0; 3072];
        assert_eq!(log.write(&mut Window::new(0, &mut out)), 3072);
        assert_eq!((out[0], out[8]), (7, 2));
        assert_eq!(out[1024..1028], [3, 1, 2, 6]);
        assert_eq!(&out[1024 + 32..1024 + 37], b"4420 ");
        assert_eq!(&out[1024 + 512..1024 + 521], b"10.0.0.2 ");
        assert_eq!(&out[1024 + 256..1024 + 282], b"nqn.2026-01.io.moorline:a\0");
        assert_eq!(out[2048..2052], [3, 2, 2, 6]);
        assert_eq!(&out[2048 + 512..2048 + 521], b"fd00::1  ");
        // Read in two parts, it is the same.
        let (mut first, mut second) = (vec![0; 1500], vec![0; 1572]);
        log.write(&mut Window::new(0, &mut first));
        log.write(&mut Window::new(1500, &mut second));
        assert_eq!([first, second].concat(), out);
    }
}
