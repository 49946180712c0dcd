//! Who the host is: `/etc/nvme` where nvme-cli has written it, else made from the machine's ID,
//! so that it is the same after every start.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use moorline_nvme::host::{CtrlConfig, HostIdentity};

use crate::cli::HostArgs;

const UUID_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:";
/// NVMe Base: an NQN is at most 223 bytes.
const NQN_MAX: usize = 223;

/// The host's name and identifier, from the command line, `/etc/nvme`, or the machine's ID.
///
/// # Errors
/// When an option is malformed, or nothing names this machine.
pub fn host_identity(args: &HostArgs) -> Result<HostIdentity> {
    let file = |path: &str| fs::read_to_string(path).ok();
    choose(
        args.hostnqn.as_deref().or(file("/etc/nvme/hostnqn").as_deref()),
        args.hostid.as_deref().or(
            // A file's host ID belongs to the file's NQN.
            if args.hostnqn.is_none() { file("/etc/nvme/hostid") } else { None }.as_deref(),
        ),
        file("/etc/machine-id").as_deref(),
    )
}

fn choose(nqn: Option<&str>, id: Option<&str>, machine: Option<&str>) -> Result<HostIdentity> {
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
        (None, Some(nqn)) => {
            nqn.strip_prefix(UUID_NQN).and_then(uuid).unwrap_or_else(|| digest(nqn))
        }
        (None, None) => machine
            .and_then(uuid)
            .context("this machine has no /etc/machine-id: name the host with --hostnqn")?,
    };
    let hostnqn = match nqn {
        Some(nqn) => nqn.to_owned(),
        None => format!("{UUID_NQN}{}", hyphenated(hostid)),
    };
    ensure!(
        hostnqn.starts_with("nqn.") && hostnqn.len() <= NQN_MAX,
        "host NQN {hostnqn:?}: it starts with \"nqn.\" and has at most {NQN_MAX} characters"
    );
    Ok(HostIdentity { hostnqn, hostid })
}

/// How a controller is to be reached, as the command line says.
///
/// # Errors
/// When the subsystem's NQN is malformed.
pub fn ctrl_config(args: &HostArgs, addr: SocketAddr, nqn: &str) -> Result<CtrlConfig> {
    ensure!(
        nqn.starts_with("nqn.") && nqn.len() <= NQN_MAX,
        "NQN {nqn:?}: it starts with \"nqn.\" and has at most {NQN_MAX} characters"
    );
    let mut config = CtrlConfig::new(addr, nqn);
    config.io_queues = args.nr_io_queues;
    config.queue_size = args.queue_size;
    config.kato = Duration::from_secs(args.keep_alive_tmo.into());
    config.hdgst = args.hdr_digest;
    config.ddgst = args.data_digest;
    config.timeouts.connect_total = args.connect_tmo;
    Ok(config)
}

/// 16 bytes from 32 hexadecimal digits, hyphens allowed.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    if digits.len() != 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// As a UUID is written.
pub fn hyphenated(id: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(id));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
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
        assert_eq!(host.hostnqn, format!("{UUID_NQN}01234567-89ab-cdef-0123-456789abcdef"));
        assert_eq!(host.hostid[..2], [0x01, 0x23]);
        assert!(choose(None, None, None).unwrap_err().to_string().contains("--hostnqn"));
    }

    #[test]
    fn an_nqn_brings_its_own_identifier() {
        let host = choose(Some(&format!("{UUID_NQN}{ID}\n")), None, None).unwrap();
        assert_eq!(host.hostid, uuid(ID).unwrap());
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
}
