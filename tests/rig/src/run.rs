//! The commands that build a rig (`ip`, `ethtool`), and whether they may be used here.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Capabilities that moorline asks for, and their bits (`linux/capability.h`).
pub const CAPABILITIES: [(&str, u32); 5] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_IPC_LOCK", 14),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_BPF", 39),
];

/// Whether this process has all of `names`, from [`CAPABILITIES`].
///
/// # Errors
/// Those that it lacks, as text.
pub fn has_capabilities(names: &[&str]) -> Result<(), String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let lacks: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(name, bit)| names.contains(name) && effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    if lacks.is_empty() { Ok(()) } else { Err(lacks.join(", ")) }
}

/// Whether rigs can be made here.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn possible() -> Result<(), String> {
    has_capabilities(&["CAP_NET_ADMIN", "CAP_SYS_ADMIN"])
        .map_err(|lacks| format!("network namespaces need {lacks}: run as root (sudo)"))?;
    let found = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(()),
        _ => Err("the `ip` command is missing: apt-get install iproute2".to_owned()),
    }
}

/// Runs `ip` with `args`; an error carries what it said.
pub(crate) fn ip(args: &[&str]) -> Result<String> {
    run(Command::new("ip").args(args)).map_err(|error| {
        let said = format!("{error:#}");
        if said.contains("File exists") && args.starts_with(&["netns", "add"]) {
            let name = args[2];
            return error.context(format!(
                "namespace {name} exists and has no record: if nothing uses it, \
                 `ip netns del {name}`"
            ));
        }
        error
    })
}

/// Runs `ip` where failure means that there was nothing to do.
pub(crate) fn quiet_ip(args: &[&str]) {
    let _ = Command::new("ip").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Runs a command to its end; returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        let package = if shown.contains("ethtool") { "ethtool" } else { "iproute2" };
        format!("running `{shown}` (is it installed? apt-get install {package})")
    })?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
