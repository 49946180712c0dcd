//! NVM subsystems and their namespaces: what hosts connect to.
//!
//! Serial number and namespace identifiers are derived from the NQN where none are given, so that
//! a target that starts again is the same target.

use std::fmt;
use std::io;

use crate::bdev::Bdev;
use crate::limits::NQN_BYTES_MAX;

/// Largest namespace identifier; namespaces stand in a table of their NSIDs.
pub const NSID_MAX: u32 = 1024;

/// A subsystem.
#[derive(Debug)]
pub struct Subsystem {
    /// Its NQN.
    pub nqn: String,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Host NQNs that may connect; `None`: any host.
    pub hosts: Option<Vec<String>>,
    /// By NSID less one.
    pub(super) namespaces: Vec<Option<Namespace>>,
}

impl Subsystem {
    /// A subsystem without namespaces, for any host.
    pub fn new(nqn: impl Into<String>) -> Self {
        let nqn = nqn.into();
        let id = derived_id(&nqn, 0);
        let serial = id[..8].iter().map(|byte| format!("{byte:02X}")).collect();
        Self { nqn, serial, model: "moorline".into(), hosts: None, namespaces: Vec::new() }
    }

    /// Adds a namespace; its UUID is derived from the NQN and the NSID.
    ///
    /// # Errors
    /// `InvalidInput` when the NSID is 0 or above [`NSID_MAX`], or taken, or the block size is
    /// neither 512 nor 4096.
    pub fn add_namespace(&mut self, nsid: u32, bdev: Box<dyn Bdev>) -> io::Result<()> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if nsid == 0 || nsid > NSID_MAX {
            return invalid(format!("namespace id {nsid}: must be 1 to {NSID_MAX}"));
        }
        if !matches!(bdev.block_size(), 512 | 4096) {
            return invalid(format!("block size {}: must be 512 or 4096", bdev.block_size()));
        }
        let index = nsid as usize - 1;
        if self.namespaces.len() <= index {
            self.namespaces.resize_with(index + 1, || None);
        }
        if self.namespaces[index].is_some() {
            return invalid(format!("namespace id {nsid} is taken"));
        }
        let uuid = derived_id(&self.nqn, nsid);
        self.namespaces[index] = Some(Namespace { bdev, uuid, in_flight: 0 });
        Ok(())
    }

    /// The namespace of an NSID.
    pub(super) fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        self.namespaces.get((nsid as usize).wrapping_sub(1))?.as_ref()
    }

    /// See [`Subsystem::namespace`].
    pub(super) fn namespace_mut(&mut self, nsid: u32) -> Option<&mut Namespace> {
        self.namespaces.get_mut((nsid as usize).wrapping_sub(1))?.as_mut()
    }

    /// NSIDs of all namespaces, ascending.
    pub(super) fn nsids(&self) -> impl Iterator<Item = u32> {
        (1..).zip(&self.namespaces).filter_map(|(nsid, ns)| ns.as_ref().map(|_| nsid))
    }

    /// Checks what a person gave us.
    pub(super) fn check(&self) -> io::Result<()> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let printable =
            |s: &str, max| s.len() <= max && s.bytes().all(|b| (b' '..0x7F).contains(&b));
        if !self.nqn.starts_with("nqn.") || !(11..=NQN_BYTES_MAX).contains(&self.nqn.len()) {
            return invalid(format!(
                "subsystem NQN {:?}: must be nqn.yyyy-mm.… of 11 to {NQN_BYTES_MAX} bytes",
                self.nqn
            ));
        }
        if !printable(&self.serial, 20) || !printable(&self.model, 40) {
            return invalid("serial or model number: ASCII, at most 20 and 40 characters".into());
        }
        Ok(())
    }

    /// Whether a host may connect.
    pub(super) fn allows(&self, hostnqn: &[u8]) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|h| h.as_bytes() == hostnqn))
    }
}

/// A namespace.
pub(super) struct Namespace {
    /// Where its blocks are.
    pub bdev: Box<dyn Bdev>,
    /// Its UUID, and NGUID.
    pub uuid: [u8; 16],
    /// Requests under way.
    pub in_flight: u32,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// An identifier that depends on the names only: a UUID of version 8 (RFC 9562 §5.8).
fn derived_id(nqn: &str, nsid: u32) -> [u8; 16] {
    let mut id = [0; 16];
    let mut crc = crc32c::crc32c(nqn.as_bytes());
    for (round, part) in id.chunks_exact_mut(4).enumerate() {
        crc = crc32c::crc32c_append(crc, &[round as u8, 0xA5]);
        crc = crc32c::crc32c_append(crc, &nsid.to_le_bytes());
        crc = crc32c::crc32c_append(crc, nqn.as_bytes());
        part.copy_from_slice(&crc.to_be_bytes());
    }
    id[6] = 0x80 | (id[6] & 0x0F);
    id[8] = 0x80 | (id[8] & 0x3F);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Null;

    #[test]
    fn identifiers_are_stable_and_differ() {
        let id = derived_id("nqn.2026-01.io.moorline:a", 1);
        assert_eq!(id, derived_id("nqn.2026-01.io.moorline:a", 1));
        assert_ne!(id, derived_id("nqn.2026-01.io.moorline:a", 2));
        assert_ne!(id, derived_id("nqn.2026-01.io.moorline:b", 1));
        assert_eq!((id[6] >> 4, id[8] >> 6), (8, 2));
    }

    #[test]
    fn namespaces_stand_under_their_nsid() {
        let mut sub = Subsystem::new("nqn.2026-01.io.moorline:a");
        let null = || Box::new(Null::new(512, 8, true));
        sub.add_namespace(3, null()).unwrap();
        sub.add_namespace(1, null()).unwrap();
        assert!(sub.add_namespace(1, null()).unwrap_err().to_string().contains("taken"));
        assert!(sub.add_namespace(0, null()).is_err());
        assert!(sub.add_namespace(NSID_MAX + 1, null()).is_err());
        assert_eq!(sub.nsids().collect::<Vec<_>>(), [1, 3]);
        assert!(sub.namespace(3).is_some());
        assert!(sub.namespace(0).is_none() && sub.namespace(2).is_none());
        assert!(sub.namespace(u32::MAX).is_none());
    }

    #[test]
    fn names_are_checked() {
        assert!(Subsystem::new("nqn.2026-01.io.moorline:a").check().is_ok());
        assert!(Subsystem::new("moorline").check().is_err());
        assert!(Subsystem::new(format!("nqn.2026-01.{}", "x".repeat(220))).check().is_err());
    }
}
