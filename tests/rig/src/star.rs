//! A host and several targets on one Ethernet: a bridge in a namespace of its own.
//!
//! What always holds: a star has a record as a [`crate::Rig`] has, so it is gone when it is
//! dropped, and removed by the next start where its process was killed.
//!
//! ```text
//!   NAME-host h0 ── swh ┐             ┌ sw0 ── t0 NAME-target0 (10.99.0.2, AF_XDP 10.99.0.12)
//!                       NAME-switch br0
//!                                     └ sw1 ── t0 NAME-target1 (10.99.0.3, AF_XDP 10.99.0.13)
//! ```

use std::fs::File;

use anyhow::{Context, Result, ensure};

use crate::{End, check, possible, record, remove, run, sweep_locked};

/// The most targets of a star; above it the kernel's and our stack's addresses would meet.
pub const STAR_TARGETS_MAX: u8 = 8;

/// A host, targets, and the bridge between them; removed when dropped.
#[derive(Debug)]
pub struct Star {
    name: String,
    host: End,
    targets: Vec<End>,
    switch: End,
    _record: File,
}

impl Star {
    /// Makes a star, after removing the rigs of killed processes. Leaves nothing when it fails.
    ///
    /// # Errors
    /// As [`crate::Rig::up`].
    pub fn up(spec: &crate::RigSpec, targets: u8) -> Result<Self> {
        possible().map_err(anyhow::Error::msg)?;
        check(spec)?;
        ensure!((1..=STAR_TARGETS_MAX).contains(&targets), "1 to {STAR_TARGETS_MAX} targets");
        let all = record::lock_all()?;
        sweep_locked()?;
        let star = Self {
            host: End::host(&spec.name),
            targets: (0..targets).map(|k| End::star_target(&spec.name, k)).collect(),
            switch: End::switch(&spec.name),
            _record: record::claim(&spec.name)?,
            name: spec.name.clone(),
        };
        let built = star.build(spec.mtu);
        drop(all); // dropping a star takes it
        built.map(|()| star)
    }

    /// The host's end.
    pub fn host(&self) -> &End {
        &self.host
    }

    /// The targets' ends.
    pub fn targets(&self) -> &[End] {
        &self.targets
    }

    /// Whether the bridge forwards to and from target `k`, whose device keeps its carrier.
    ///
    /// # Errors
    /// Without iproute2's `bridge`.
    pub fn forward(&self, k: usize, on: bool) -> Result<()> {
        let mut bridge = self.switch.command("bridge");
        let state = if on { "3" } else { "0" };
        bridge.args(["link", "set", "dev", &format!("sw{k}"), "state", state]);
        run::run(&mut bridge).map(drop)
    }

    /// Whether the link of target `k` has carrier.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link(&self, k: usize, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run::ip(&["-n", self.switch.netns(), "link", "set", &format!("sw{k}"), state]).map(drop)
    }

    fn build(&self, mtu: u32) -> Result<()> {
        let switch = self.switch.netns();
        let ip = |args: &[&str]| run::ip(&[&["-n", switch], args].concat());
        run::ip(&["netns", "add", switch])?;
        // The bridge shall carry frames and send none of its own.
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            self.switch.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
            self.switch.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        let bridge = ["stp_state", "0", "mcast_snooping", "0", "forward_delay", "0"];
        ip(&[&["link", "add", "name", "br0", "type", "bridge"][..], &bridge].concat())?;
        ip(&["link", "set", "br0", "mtu", &mtu.to_string(), "up"])?;
        let names = (0..self.targets.len()).map(|k| format!("sw{k}"));
        let ports = std::iter::once("swh".to_owned()).chain(names);
        for (end, port) in std::iter::once(&self.host).chain(&self.targets).zip(ports) {
            run::ip(&["netns", "add", end.netns()])?;
            let veth = ["link", "add", "name", &port, "type", "veth", "peer", "name"];
            ip(&[&veth[..], &[end.dev(), "netns", end.netns()]].concat())?;
            ip(&["link", "set", &port, "mtu", &mtu.to_string(), "master", "br0", "up"])?;
            end.configure(mtu).with_context(|| format!("setting up {}", end.netns()))?;
        }
        Ok(())
    }
}

impl Drop for Star {
    fn drop(&mut self) {
        // Without the common lock we would still remove only what is ours.
        let _all = record::lock_all();
        remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RigSpec;

    #[test]
    fn a_star_carries_packets_except_to_a_target_cut_off_and_leaves_nothing() {
        if let Err(why) = possible() {
            assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
            eprintln!("SKIPPED: {why}");
            return;
        }
        let spec = RigSpec::unique("ml-star");
        let star = Star::up(&spec, 2).unwrap();
        let pings = |k: usize| {
            let to = std::net::SocketAddr::new(star.targets()[k].kernel_addr(false), 9);
            let answers = move || {
                let stream =
                    std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(1));
                // A closed port is an answer too.
                stream.is_ok()
                    || stream
                        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            };
            star.host().run(answers).unwrap()
        };
        assert!(pings(0) && pings(1));
        star.forward(1, false).unwrap();
        assert!(pings(0) && !pings(1));
        star.forward(1, true).unwrap();
        assert!(pings(1));
        let name = format!("/run/netns/{}-switch", spec.name);
        assert!(std::path::Path::new(&name).exists());
        drop(star);
        assert!(!std::path::Path::new(&name).exists());
    }
}
