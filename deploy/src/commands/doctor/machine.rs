//! What doctor asks of the machine. Each check is one function from what the kernel says.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use moorline_rig::has_capabilities;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, getrlimit};

use super::Check;
use crate::perf::measure;

/// The UMEM of one lane with default rings, and room to spare.
const MEMLOCK_WANTED: u64 = 64 << 20;

pub(super) fn checks() -> Vec<Check> {
    vec![
        privileges(),
        kernel(&measure::kernel()),
        xdp_sockets(),
        commands(),
        huge_pages(&read("/proc/meminfo")),
        memlock(),
        clock(&read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        io_uring(&read("/proc/sys/kernel/io_uring_disabled")),
        cpus(measure::cpus()),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn privileges() -> Check {
    let name = "privileges";
    let all = moorline_rig::CAPABILITIES.map(|(name, _)| name);
    let Err(lacks) = has_capabilities(&all) else {
        return Check::ok(name, all.join(", "));
    };
    // CAP_SYS_ADMIN stands in for CAP_BPF.
    let bpf = has_capabilities(&["CAP_BPF"]).or(has_capabilities(&["CAP_SYS_ADMIN"]));
    let found = format!("missing {lacks}");
    match has_capabilities(&["CAP_NET_ADMIN", "CAP_NET_RAW"]).and(bpf) {
        Ok(()) => Check::warn(name, found, "run as root (sudo) for rigs and locked memory"),
        Err(_) => Check::fail(
            name,
            found,
            "run as root (sudo); kernel sockets (--transport kernel) need nothing",
        ),
    }
}

fn kernel(release: &str) -> Check {
    let name = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::warn(name, format!("release {release:?}"), "moorline is made for Linux");
    };
    match (major, minor) {
        (..5, _) | (5, ..9) => Check::fail(
            name,
            format!("{release}: no bpf_link for XDP (5.9)"),
            "use Linux 5.9 or later, best 6.6 or later",
        ),
        (5, _) | (6, ..6) => Check::warn(
            name,
            format!("{release}: bpf_link yes, multi-buffer AF_XDP (6.6) no"),
            "keep the MTU at or below 3506, or use Linux 6.6 or later",
        ),
        (6, ..17) => Check::warn(
            name,
            format!("{release}: bpf_link and multi-buffer yes, TX budget option (6.17) no"),
            "one sendto sends 32 frames at most; nothing to do but a newer kernel",
        ),
        _ => Check::ok(name, format!("{release}: bpf_link, multi-buffer, TX budget option")),
    }
}

fn xdp_sockets() -> Check {
    let name = "AF_XDP";
    match rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None) {
        Ok(_) => Check::ok(name, "a socket can be opened"),
        Err(errno) if errno == rustix::io::Errno::PERM => {
            Check::fail(name, "opening a socket is not permitted", "run as root (CAP_NET_RAW)")
        }
        Err(errno) if errno == rustix::io::Errno::AFNOSUPPORT => Check::fail(
            name,
            "this kernel has no AF_XDP",
            "use a kernel built with CONFIG_XDP_SOCKETS=y, or --transport kernel",
        ),
        Err(errno) => Check::fail(name, io::Error::from(errno).to_string(), "see the message"),
    }
}

fn commands() -> Check {
    let there = |command: &str, arg: &str| {
        let mut command = Command::new(command);
        command.arg(arg).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let missing: Vec<_> = [("ip", "-V", "iproute2"), ("ethtool", "--version", "ethtool")]
        .into_iter()
        .filter(|(command, arg, _)| !there(command, arg))
        .map(|(_, _, package)| package)
        .collect();
    match missing.as_slice() {
        [] => Check::ok("commands", "ip, ethtool"),
        _ => Check::warn(
            "commands",
            format!("missing: {}", missing.join(", ")),
            format!("apt-get install {} (rigs and this check use them)", missing.join(" ")),
        ),
    }
}

fn huge_pages(meminfo: &str) -> Check {
    let name = "huge pages";
    let value = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let Some(size_kib) = value("Hugepagesize:") else {
        return Check::warn(name, "not supported by this kernel", "plain pages are used instead");
    };
    let (free, total) = (value("HugePages_Free:"), value("HugePages_Total:"));
    let (free, total) = (free.unwrap_or(0), total.unwrap_or(0));
    let found = format!("{free} of {total} free, {size_kib} KiB each");
    if free * size_kib >= 64 << 10 {
        return Check::ok(name, found);
    }
    let wanted = (64 << 10) / size_kib.max(1) + total;
    Check::warn(
        name,
        found,
        format!(
            "plain pages are used instead; `sysctl vm.nr_hugepages={wanted}` gives 64 MiB more"
        ),
    )
}

fn memlock() -> Check {
    let name = "memlock";
    match getrlimit(Resource::Memlock).current {
        None => Check::ok(name, "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_WANTED => Check::ok(name, format!("{} MiB", bytes >> 20)),
        Some(bytes) => Check::warn(
            name,
            format!("{} KiB", bytes >> 10),
            "without CAP_IPC_LOCK frame memory counts against it: `ulimit -l unlimited`, or \
             LimitMEMLOCK=infinity in a unit",
        ),
    }
}

fn clock(source: &str) -> Check {
    match source.trim() {
        "" => Check::warn("clock", "source unknown", "nothing to do; figures may be off"),
        source @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter") => {
            Check::ok("clock", format!("{source}: read without a system call"))
        }
        source => Check::warn(
            "clock",
            format!("{source}: each reading is a system call, about 1 us"),
            "boot with clocksource=tsc if the machine's TSC is stable",
        ),
    }
}

fn io_uring(disabled: &str) -> Check {
    let name = "io_uring";
    match disabled.trim() {
        "0" => Check::ok(name, "allowed"),
        // Before Linux 6.6 there is no such switch.
        "" => Check::ok(name, "no switch to forbid it"),
        "1" => Check::warn(
            name,
            "allowed for CAP_SYS_ADMIN and one group only",
            "file back ends need root, or `sysctl kernel.io_uring_disabled=0`",
        ),
        _ => Check::warn(
            name,
            "forbidden",
            "file back ends need `sysctl kernel.io_uring_disabled=0`; memory works without",
        ),
    }
}

fn cpus(count: usize) -> Check {
    match count {
        1 => Check::warn(
            "CPUs",
            "1",
            "host and target share it: use --poll adaptive, and trust no latency",
        ),
        n => Check::ok("CPUs", n.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn old_kernels_are_told_what_they_lack() {
        assert_eq!(kernel("4.19.0").result, Level::Fail);
        assert!(kernel("6.1.0-27-amd64").found.contains("multi-buffer"));
        assert_eq!(kernel("6.12.3").result, Level::Warn);
        assert_eq!(kernel("6.18.44-x").result, Level::Ok);
        assert_eq!(kernel("7.0").result, Level::Ok);
        assert_eq!(kernel("odd").result, Level::Warn);
    }

    #[test]
    fn missing_huge_pages_name_the_command() {
        let meminfo = "HugePages_Total:       4\nHugePages_Free:        1\nHugepagesize: 2048 kB\n";
        let check = huge_pages(meminfo);
        assert_eq!(check.result, Level::Warn);
        assert!(check.mend.unwrap().contains("vm.nr_hugepages=36"));
        assert_eq!(huge_pages(&meminfo.replace("  1", "100")).result, Level::Ok);
        assert!(huge_pages("").found.contains("not supported"));
    }
}
