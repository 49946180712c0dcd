//! Who the host is: what `/etc/nvme` says, where nvme-cli or we have written it; else what an
//! earlier run kept in `/var/lib/moorline`; else made from the machine's ID, or at random, and
//! kept. It is the same after every start, and missing rights never keep a host from starting.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use moorline_nvme::host::{CtrlConfig, HostIdentity};
use moorline_nvme::limits::NQN_BYTES_MAX;
use moorline_nvme::spec::HostId;
use moorline_nvme::spec::nqn::UUID_NQN_PREFIX;

use crate::cli::HostArgs;

/// Where nvme-cli keeps the identity; ours too where it is there. Relative to the root.
const SYSTEM: &str = "etc/nvme";
/// Where we keep it else.
const OWN: &str = "var/lib/moorline";
/// A new random UUID with every read.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

/// The host's name and identifier: from the command line, or kept on this machine.
///
/// # Errors
/// When an option or a file is malformed.
pub fn host_identity(args: &HostArgs) -> Result<HostIdentity> {
    identity_of(args.hostnqn.as_deref(), args.hostid.as_deref())
}

/// As [`host_identity`], with what is given of it.
///
/// # Errors
/// As [`host_identity`].
pub fn identity_of(nqn: Option<&str>, id: Option<&str>) -> Result<HostIdentity> {
    identity_in(Path::new("/"), nqn, id)
}

/// As [`host_identity`], with the files below `root`.
fn identity_in(root: &Path, nqn: Option<&str>, id: Option<&str>) -> Result<HostIdentity> {
    if nqn.is_some() {
        return choose(nqn, id, None);
    }
    for dir in [SYSTEM, OWN] {
        if let Some(nqn) = read(root, dir, "hostnqn") {
            // A file's host ID belongs to the file's NQN.
            let kept = read(root, dir, "hostid");
            return choose(Some(&nqn), id.or(kept.as_deref()), None)
                .with_context(|| format!("the host's identity in /{dir}"));
        }
    }
    if id.is_some() {
        return choose(None, id, None); // asked for this once
    }
    let kept = read(root, SYSTEM, "hostid");
    let machine = read(root, "etc", "machine-id").filter(|text| uuid(text).is_some());
    let machine = machine.or_else(|| fs::read_to_string(RANDOM).ok());
    let made = choose(None, kept.as_deref(), machine.as_deref())?;
    Ok(keep(root, made))
}

fn read(root: &Path, dir: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(root.join(dir).join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Writes a new identity where the next run finds it; returns the one that is there then.
fn keep(root: &Path, made: HostIdentity) -> HostIdentity {
    // `/etc/nvme` is nvme-cli's: used where it is, never created.
    let system = publish(root, SYSTEM, &made);
    let kept = system.or_else(|_| {
        fs::create_dir_all(root.join(OWN))?;
        publish(root, OWN, &made)
    });
    kept.unwrap_or_else(|error| {
        tracing::warn!(
            hostnqn = made.hostnqn, %error,
            "the host's identity cannot be kept in /{SYSTEM} or /{OWN}: it may change with the next run"
        );
        made
    })
}

/// Puts the identity into `dir`. Of several that do so at once one wins, and is everybody's.
fn publish(root: &Path, dir: &str, made: &HostIdentity) -> io::Result<HostIdentity> {
    link(root, dir, "hostnqn", &made.hostnqn)?;
    let nqn = read(root, dir, "hostnqn");
    let there = choose(nqn.as_deref(), None, None).map_err(io::Error::other)?;
    // The NQN says it already, but not to nvme-cli.
    if let Err(error) = link(root, dir, "hostid", &HostId::from_bytes(there.hostid).to_string()) {
        tracing::debug!(%error, "the host ID is not in a file of its own");
    }
    Ok(there)
}

/// A file of one line that appears whole or not at all; one that is there already stays.
fn link(root: &Path, dir: &str, name: &str, line: &str) -> io::Result<()> {
    let dir = root.join(dir);
    let whole = dir.join(format!(".{name}.{}", std::process::id()));
    fs::write(&whole, format!("{line}\n"))?;
    let linked = fs::hard_link(&whole, dir.join(name));
    fs::remove_file(&whole)?;
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn choose(nqn: Option<&str>, id: Option<&str>, made_of: Option<&str>) -> Result<HostIdentity> {
    let nqn = nqn.map(str::trim).filter(|nqn| !nqn.is_empty());
    let id = id.map(str::trim).filter(|id| !id.is_empty());
    let given = match id {
        Some(text) => Some(uuid(text).with_context(|| {
            format!("host ID {text:?}: write it as 01234567-89ab-cdef-0123-456789abcdef")
        })?),
        None => None,
    };
    let hostid = match (given, nqn) {
        (Some(id), _) => id,
        (None, Some(nqn)) => nqn
            .strip_prefix(UUID_NQN_PREFIX)
            .and_then(uuid)
            .unwrap_or_else(|| HostId::from_bytes(digest(nqn))),
        (None, None) => made_of
            .and_then(uuid)
            .context("no machine ID and no random numbers here: name the host with --hostnqn")?,
    };
    let hostnqn = match nqn {
        Some(nqn) => nqn.to_owned(),
        None => format!("{UUID_NQN_PREFIX}{hostid}"),
    };
    ensure!(
        hostnqn.starts_with("nqn.") && hostnqn.len() <= NQN_BYTES_MAX,
        "host NQN {hostnqn:?}: it starts with \"nqn.\" and has at most {NQN_BYTES_MAX} characters"
    );
    Ok(HostIdentity { hostnqn, hostid: *hostid.as_bytes() })
}

/// How a controller is to be reached, as the command line says.
///
/// # Errors
/// When the subsystem's NQN is malformed, or the timeouts cannot work together.
pub fn ctrl_config(args: &HostArgs, addr: SocketAddr, nqn: &str) -> Result<CtrlConfig> {
    ensure!(
        nqn.starts_with("nqn.") && nqn.len() <= NQN_BYTES_MAX,
        "NQN {nqn:?}: it starts with \"nqn.\" and has at most {NQN_BYTES_MAX} characters"
    );
    let mut config = CtrlConfig::new(addr, nqn);
    config.io_queues = args.nr_io_queues;
    config.queue_size = args.queue_size;
    config.kato = Duration::from_secs(args.keep_alive_tmo.into());
    config.hdgst = args.hdr_digest;
    config.ddgst = args.data_digest;
    args.timeouts.apply(&mut config)?;
    Ok(config)
}

/// Not all zeros, which no host may use.
fn uuid(text: &str) -> Option<HostId> {
    text.trim().parse().ok().filter(|id: &HostId| !id.is_nil())
}

/// A host ID for an NQN that carries none: FNV-1a, 128 bits.
fn digest(nqn: &str) -> [u8; 16] {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in nqn.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    hash.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn the_machine_names_the_host_where_nothing_else_does() {
        let host = choose(None, None, Some(&format!("{ID}\n"))).unwrap();
        assert_eq!(host.hostnqn, format!("{UUID_NQN_PREFIX}01234567-89ab-cdef-0123-456789abcdef"));
        assert_eq!(host.hostid[..2], [0x01, 0x23]);
        assert!(choose(None, None, None).unwrap_err().to_string().contains("--hostnqn"));
    }

    #[test]
    fn an_nqn_brings_its_own_identifier() {
        let host = choose(Some(&format!("{UUID_NQN_PREFIX}{ID}\n")), None, None).unwrap();
        assert_eq!(host.hostid, *uuid(ID).unwrap().as_bytes());
        let a = choose(Some("nqn.2026-11.x:a"), None, None).unwrap();
        let b = choose(Some("nqn.2026-11.x:b"), None, None).unwrap();
        assert_ne!(a.hostid, b.hostid);
    }

    #[test]
    fn malformed_names_are_refused() {
        assert!(choose(Some("me"), None, None).is_err());
        assert!(choose(None, Some("123"), Some(ID)).is_err());
        assert!(choose(Some(&format!("nqn.{}", "x".repeat(300))), None, None).is_err());
    }

    /// A root with these files, each with its one line.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, line) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{line}\n")).unwrap();
        }
        root
    }

    #[test]
    fn what_nvme_cli_wrote_is_read_and_left_alone() {
        let root = root(&[("etc/nvme/hostnqn", "nqn.2026-11.x:a"), ("etc/nvme/hostid", ID)]);
        let host = identity_in(root.path(), None, None).unwrap();
        assert_eq!((host.hostnqn.as_str(), host.hostid[1]), ("nqn.2026-11.x:a", 0x23));
        // The file's host ID is not another NQN's.
        let other = identity_in(root.path(), Some("nqn.2026-11.x:b"), None).unwrap();
        assert_ne!(other.hostid, host.hostid);
        assert_eq!(fs::read_dir(root.path().join(SYSTEM)).unwrap().count(), 2);
        assert!(!root.path().join(OWN).exists());
    }

    #[test]
    fn a_new_identity_is_kept_in_etc_where_nvme_is_there() {
        let root = root(&[("etc/machine-id", ID)]);
        fs::create_dir(root.path().join(SYSTEM)).unwrap();
        let host = identity_in(root.path(), None, None).unwrap();
        assert_eq!(read(root.path(), SYSTEM, "hostnqn"), Some(host.hostnqn.clone()));
        let id = read(root.path(), SYSTEM, "hostid").unwrap();
        assert_eq!(id, "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(fs::read_dir(root.path().join(SYSTEM)).unwrap().count(), 2, "nothing else");
        fs::remove_file(root.path().join("etc/machine-id")).unwrap();
        assert_eq!(identity_in(root.path(), None, None).unwrap(), host);
    }

    #[test]
    fn a_random_identity_is_kept_in_var_lib() {
        let root = root(&[("etc/machine-id", "uninitialized")]);
        let host = identity_in(root.path(), None, None).unwrap();
        assert!(!root.path().join(SYSTEM).exists());
        assert_eq!(read(root.path(), OWN, "hostnqn"), Some(host.hostnqn.clone()));
        assert_eq!(identity_in(root.path(), None, None).unwrap(), host);
    }

    #[test]
    fn a_host_id_without_nqn_names_the_host() {
        let root = root(&[("etc/nvme/hostid", ID)]);
        let host = identity_in(root.path(), None, None).unwrap();
        assert_eq!(host.hostid, *uuid(ID).unwrap().as_bytes());
        assert_eq!(read(root.path(), SYSTEM, "hostnqn"), Some(host.hostnqn));
    }

    #[test]
    fn where_nothing_can_be_kept_the_run_goes_on() {
        // A file stands where the directory would be; rights do not stop root.
        let root = root(&[("var/lib", ""), ("etc/machine-id", ID)]);
        assert!(identity_in(root.path(), None, None).is_ok());
    }

    #[test]
    fn of_two_that_begin_at_once_one_names_both() {
        let root = root(&[("etc/nvme/hostnqn", "nqn.2026-11.x:first")]);
        let second = choose(None, None, Some(ID)).unwrap();
        assert_eq!(keep(root.path(), second).hostnqn, "nqn.2026-11.x:first");
    }
}
