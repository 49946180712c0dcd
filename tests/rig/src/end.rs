//! One end of a rig: a namespace, its device, and the addresses on it.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::run;

/// How long processes in a namespace get to end by themselves when a rig is removed.
const GRACE: Duration = Duration::from_secs(2);

/// The most addresses of one kind that an end has.
pub const ADDRS_MAX: u8 = 64;

/// Moves the calling thread, and whatever it starts from now on, into a network namespace as
/// `ip netns` knows it. Other threads stay where they are.
///
/// # Errors
/// When there is no such namespace, or without CAP_SYS_ADMIN.
pub fn enter(netns: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(netns);
    let file = File::open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "no network namespace {netns:?}: `ip netns` lists them, `moorline rig up` makes two"
        ),
        _ => anyhow!("opening {}: {error}", path.display()),
    })?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering network namespace {netns} (run as root)"))
}

/// One end of a rig.
#[derive(Clone, Debug)]
pub struct End {
    netns: String,
    dev: &'static str,
    /// Last byte of the kernel's addresses; ours has 10 (IPv4) or 0x10 (IPv6) added.
    number: u8,
}

impl End {
    pub(crate) fn host(rig: &str) -> Self {
        Self { netns: format!("{rig}-host"), dev: "h0", number: 1 }
    }

    pub(crate) fn target(rig: &str) -> Self {
        Self { netns: format!("{rig}-target"), dev: "t0", number: 2 }
    }

    pub(crate) fn star_target(rig: &str, k: u8) -> Self {
        Self { netns: format!("{rig}-target{k}"), dev: "t0", number: 2 + k }
    }

    /// The bridge of a star; it has no addresses.
    pub(crate) fn switch(rig: &str) -> Self {
        Self { netns: format!("{rig}-switch"), dev: "br0", number: 0 }
    }

    pub(crate) fn exists(&self) -> bool {
        Path::new("/run/netns").join(&self.netns).exists()
    }

    /// Name of its namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Name of its device, inside the namespace.
    pub fn dev(&self) -> &str {
        self.dev
    }

    /// The address that the kernel has, for kernel sockets.
    pub fn kernel_addr(&self, v6: bool) -> IpAddr {
        if v6 { self.v6(0).into() } else { Ipv4Addr::new(10, 99, 0, self.number).into() }
    }

    /// The address set apart for our own stack; the kernel does not know it.
    pub fn xdp_addr(&self, v6: bool) -> IpAddr {
        if v6 { self.v6(0x10).into() } else { Ipv4Addr::new(10, 99, 0, self.number + 10).into() }
    }

    /// `n` addresses for our own stack, 64 at most, the first as [`End::xdp_addr`]; IPv4. For one
    /// end of a rig: another's would be the same.
    pub fn xdp_addrs(&self, n: u8) -> Vec<IpAddr> {
        let more = (1..n.min(ADDRS_MAX)).map(|k| Ipv4Addr::new(10, 99, 0, 100 + k).into());
        std::iter::once(self.xdp_addr(false)).chain(more).collect()
    }

    /// As [`End::xdp_addrs`], for kernel sockets; [`End::add_kernel_addrs`] gives them to the
    /// kernel.
    pub fn kernel_addrs(&self, n: u8) -> Vec<IpAddr> {
        let more = (1..n.min(ADDRS_MAX)).map(|k| Ipv4Addr::new(10, 99, 0, 180 + k).into());
        std::iter::once(self.kernel_addr(false)).chain(more).collect()
    }

    /// Gives the kernel all of [`End::kernel_addrs`].
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_kernel_addrs(&self, n: u8) -> Result<()> {
        for addr in self.kernel_addrs(n).iter().skip(1) {
            let cidr = format!("{addr}/{}", Self::prefix(false));
            run::ip(&["-n", &self.netns, "addr", "add", &cidr, "dev", self.dev])?;
        }
        Ok(())
    }

    /// Bits of the network part of the addresses.
    pub fn prefix(v6: bool) -> u8 {
        if v6 { 64 } else { 24 }
    }

    fn v6(&self, offset: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::from(self.number) + offset)
    }

    /// Moves the calling thread into this namespace; see [`enter`].
    ///
    /// # Errors
    /// As [`enter`].
    pub fn enter(&self) -> Result<()> {
        enter(&self.netns)
    }

    /// Runs `f` inside this namespace, on a thread of its own. What `f` opens stays in the
    /// namespace wherever it is used later.
    ///
    /// # Errors
    /// As [`enter`].
    ///
    /// # Panics
    /// When `f` panics.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| f()));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside this namespace, with a `/sys` that shows its devices. The
    /// child is the program itself, so it can be waited for and signalled as usual.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).arg(program);
        command
    }

    /// Turns the offloads on that kernel TCP wants, or off as an AF_XDP peer of kernel sockets
    /// needs it: with TX checksum offload, veth hands over checksums that were never computed.
    ///
    /// # Errors
    /// Without `ethtool`, or when the device refuses.
    pub fn offloads(&self, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let mut command = self.command("ethtool");
        command.args(["-K", self.dev]);
        for feature in ["tx", "tso", "gso", "gro"] {
            command.args([feature, state]);
        }
        run::run(&mut command).map(drop)
    }

    /// Writes a sysctl of this namespace, named with slashes (`net/ipv4/tcp_timestamps`).
    ///
    /// # Errors
    /// When there is no such setting, or it refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run(|| std::fs::write(Path::new("/proc/sys").join(key), value))?
            .with_context(|| format!("setting {key} to {value} in {}", self.netns))
    }

    pub(crate) fn configure(&self, mtu: u32) -> Result<()> {
        let ip = |args: &[&str]| {
            let mut all = vec!["-n", &self.netns];
            all.extend(args);
            run::ip(&all)
        };
        let v6 = Path::new("/proc/net/if_inet6").exists();
        if v6 {
            // Nobody but us shall speak on this wire: no router solicitations, no DAD probes.
            for key in ["accept_ra", "router_solicitations", "accept_dad"] {
                self.sysctl(&format!("net/ipv6/conf/{}/{key}", self.dev), "0")?;
            }
            ip(&["link", "set", self.dev, "addrgenmode", "none"])?;
        }
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "set", self.dev, "mtu", &mtu.to_string(), "up"])?;
        let v4 = format!("{}/{}", self.kernel_addr(false), Self::prefix(false));
        ip(&["addr", "add", &v4, "dev", self.dev])?;
        if v6 {
            let v6 = format!("{}/{}", self.kernel_addr(true), Self::prefix(true));
            ip(&["addr", "add", &v6, "dev", self.dev, "nodad"])?;
        }
        Ok(())
    }

    /// Ends the processes in this namespace, ourselves excepted: asks first, then insists.
    pub(crate) fn end_processes(&self) {
        let started = Instant::now();
        let mut signal = Signal::TERM;
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                // It may have ended by now.
                let _ = kill_process(pid, signal);
            }
            if started.elapsed() > 2 * GRACE {
                return; // unkillable: removing the namespace's name is all that is left
            }
            if started.elapsed() > GRACE {
                signal = Signal::KILL;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn processes(&self) -> Vec<Pid> {
        if !Path::new("/run/netns").join(&self.netns).exists() {
            return Vec::new();
        }
        let own = std::process::id() as i32;
        run::ip(&["netns", "pids", &self.netns])
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .filter(|&pid| pid != own)
            .filter_map(Pid::from_raw)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_addresses_are_as_documented() {
        let (host, target) = (End::host("x"), End::target("x"));
        let text = |ip: IpAddr| ip.to_string();
        assert_eq!(text(host.kernel_addr(false)), "10.99.0.1");
        assert_eq!(text(target.kernel_addr(true)), "fd99::2");
        assert_eq!(text(host.xdp_addr(false)), "10.99.0.11");
        assert_eq!(text(host.xdp_addr(true)), "fd99::11");
        assert_eq!(text(target.xdp_addr(false)), "10.99.0.12");
        assert_eq!(text(target.xdp_addr(true)), "fd99::12");
    }

    #[test]
    fn many_addresses_are_all_different() {
        let end = End::star_target("x", 1);
        let all = [end.xdp_addrs(ADDRS_MAX), end.kernel_addrs(ADDRS_MAX)].concat();
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 128);
        assert_eq!(end.xdp_addrs(1), [end.xdp_addr(false)]);
    }

    #[test]
    fn entering_a_namespace_that_is_not_there_says_so() {
        let error = enter("ml-no-such-namespace").unwrap_err().to_string();
        assert!(error.contains("ip netns"), "{error}");
    }
}
