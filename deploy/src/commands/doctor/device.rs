//! What doctor asks of a network interface, and of its other end when it is a veth.
//!
//! Asked through `ip` and `ethtool`, which look at the namespace of the thread that starts them;
//! `/sys` would not.

use std::net::IpAddr;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::Check;
use crate::stackup::kernel_has;

/// Largest MTU whose frames fit one buffer everywhere: a page of 4096 less 256 of headroom, 320
/// that native XDP keeps at its end (`skb_shared_info`), and 14 of Ethernet header.
const MTU_ONE_BUFFER: u64 = 3506;
/// Drivers with zero-copy AF_XDP in Linux 6.18.
const ZERO_COPY: [&str; 13] = [
    "dpaa2",
    "gve",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "idpf",
    "mlx5_core",
    "nfp",
    "stmmac",
    "tsnep",
    "virtio_net",
];
/// Drivers with native XDP that copy.
const NATIVE_COPY: [&str; 9] =
    ["veth", "tun", "ena", "bnxt_en", "mlx4_en", "ixgbevf", "hv_netvsc", "mvneta", "mana"];

/// An interface as `ip -details` and `ethtool` describe it.
struct Device {
    name: String,
    link: Value,
    driver: String,
    features: String,
}

pub(super) fn checks(
    netns: Option<&str>,
    dev: &str,
    peer: Option<(&str, &str)>,
) -> Result<Vec<Check>> {
    let device = inside(netns, || Device::look(dev))??;
    let mut checks = vec![
        device.state(),
        device.driver(),
        device.queues(),
        device.mtu(),
        device.xdp_program(),
        device.addresses_hint(),
    ];
    if device.kind() == "veth" {
        checks.extend(veth_peer(netns, &device, peer));
    }
    Ok(checks)
}

/// Whether an address is free for our stack.
pub(super) fn address(netns: Option<&str>, addr: IpAddr) -> Result<Check> {
    Ok(match inside(netns, || kernel_has(addr))? {
        false => Check::ok("--addr", format!("{addr} is not the kernel's")),
        true => Check::fail(
            "--addr",
            format!("{addr} is the kernel's"),
            "choose one that is free, or use --transport kernel",
        ),
    })
}

/// Runs `f` on a thread inside the namespace.
fn inside<R: Send>(netns: Option<&str>, f: impl FnOnce() -> R + Send) -> Result<R> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            netns.map_or(Ok(()), moorline_rig::enter)?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn output(command: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(command)
        .args(args)
        .output()
        .with_context(|| format!("running {command} (apt-get install iproute2 ethtool)"))?;
    if !out.status.success() {
        bail!("{command}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn links(args: &[&str]) -> Result<Vec<Value>> {
    let mut all = vec!["-json", "-details", "link", "show"];
    all.extend(args);
    serde_json::from_str(&output("ip", &all)?).context("reading what ip printed")
}

impl Device {
    fn look(name: &str) -> Result<Self> {
        let link = links(&["dev", name])
            .ok()
            .and_then(|mut links| links.pop())
            .ok_or_else(|| anyhow!("no network interface {name:?}: `ip link` lists them"))?;
        // Without ethtool these stay empty, and say "unknown".
        let info = output("ethtool", &["-i", name]).unwrap_or_default();
        let driver = info.lines().find_map(|l| l.strip_prefix("driver: ")).unwrap_or("unknown");
        Ok(Self {
            name: name.to_owned(),
            link,
            driver: driver.to_owned(),
            features: output("ethtool", &["-k", name]).unwrap_or_default(),
        })
    }

    fn kind(&self) -> &str {
        self.link["linkinfo"]["info_kind"].as_str().unwrap_or("")
    }

    fn number(&self, key: &str) -> u64 {
        self.link[key].as_u64().unwrap_or(0)
    }

    fn state(&self) -> Check {
        match self.link["operstate"].as_str().unwrap_or("UNKNOWN") {
            state @ ("UP" | "UNKNOWN") => Check::ok("link", format!("{} is {state}", self.name)),
            state => Check::warn(
                "link",
                format!("{} is {state}", self.name),
                format!("`ip link set {} up`, on a veth pair on both ends", self.name),
            ),
        }
    }

    fn driver(&self) -> Check {
        let (name, driver) = ("driver", self.driver.as_str());
        match driver {
            "veth" => Check::ok(name, "veth: SKB mode (faster here) and native, both copy"),
            _ if ZERO_COPY.contains(&driver) => {
                Check::ok(name, format!("{driver}: native XDP, zero-copy where its queues allow"))
            }
            _ if NATIVE_COPY.contains(&driver) => {
                Check::ok(name, format!("{driver}: native XDP, copies"))
            }
            _ => Check::warn(
                name,
                format!("{driver}: not known to have native XDP"),
                "SKB mode (--xdp-mode skb) works on every driver",
            ),
        }
    }

    fn queues(&self) -> Check {
        let (rx, tx) = (self.number("num_rx_queues"), self.number("num_tx_queues"));
        let found = format!("{rx} RX, {tx} TX");
        if rx <= 1 {
            return Check::ok("queues", found);
        }
        // A frame for us on a queue without a socket is lost, and counted as such.
        Check::warn(
            "queues",
            found,
            format!(
                "frames arrive on the queue that RSS picks: `ethtool -L {} combined 1`, or steer \
                 them with ntuple rules to --queue N",
                self.name
            ),
        )
    }

    fn mtu(&self) -> Check {
        match self.number("mtu") {
            mtu @ ..=MTU_ONE_BUFFER => {
                Check::ok("MTU", format!("{mtu}: a frame fits one buffer (up to 3506)"))
            }
            mtu => Check::ok("MTU", format!("{mtu}: frames span several buffers (multi-buffer)")),
        }
    }

    fn xdp_program(&self) -> Check {
        let name = "XDP program";
        let program = &self.link["xdp"]["prog"];
        if program.is_null() {
            return Check::ok(name, "none attached");
        }
        let id = program["id"].as_u64().unwrap_or(0);
        let called = program["name"].as_str().unwrap_or("?");
        Check::fail(
            name,
            format!("program {id} ({called}) is attached to {}", self.name),
            format!(
                "end its owner (`bpftool link`, `bpftool net`), or detach it: \
                 `ip link set dev {} xdp off`",
                self.name
            ),
        )
    }

    fn addresses_hint(&self) -> Check {
        let mac = self.link["address"].as_str().unwrap_or("?");
        Check::ok("address", format!("MAC {mac}; --addr takes an IP that the kernel has not"))
    }

    fn feature_on(&self, feature: &str) -> bool {
        self.features
            .lines()
            .find_map(|line| line.strip_prefix(feature)?.strip_prefix(": "))
            .is_some_and(|state| state.starts_with("on"))
    }
}

/// The other end of a veth pair: its offloads decide what its kernel's TCP puts on the wire.
fn veth_peer(netns: Option<&str>, device: &Device, named: Option<(&str, &str)>) -> Vec<Check> {
    let found = match named {
        Some((name, in_netns)) => inside(Some(in_netns), || Device::look(name))
            .and_then(|d| Ok((d?, Some(in_netns.into())))),
        None => find_peer(netns, device),
    };
    let (peer, peer_netns): (Device, Option<String>) = match found {
        Ok(found) => found,
        Err(error) => {
            return vec![Check::warn(
                "veth peer",
                format!("not found: {error:#}"),
                "name it with --peer and --peer-netns; then its offloads are checked",
            )];
        }
    };
    let place = peer_netns.as_deref().map_or(String::new(), |n| format!(" in {n}"));
    let mut checks = vec![peer_checksums(&peer, peer_netns.as_deref(), &place)];
    let (ours, theirs) = (device.number("num_rx_queues"), peer.number("num_tx_queues"));
    if ours < theirs {
        checks.push(Check::fail(
            "veth queues",
            format!("{} has {ours} RX queues, its peer {theirs} TX queues", device.name),
            "XDP attaches only with at least as many: make the pair with numrxqueues N \
             numtxqueues N",
        ));
    }
    checks
}

fn peer_checksums(peer: &Device, netns: Option<&str>, place: &str) -> Check {
    let on: Vec<_> = [
        ("tx-checksumming", "tx"),
        ("tcp-segmentation-offload", "tso"),
        ("generic-segmentation-offload", "gso"),
        ("generic-receive-offload", "gro"),
    ]
    .into_iter()
    .filter(|(feature, _)| peer.feature_on(feature))
    .map(|(_, short)| short)
    .collect();
    let name = "veth peer";
    if on.is_empty() {
        return Check::ok(name, format!("{}{place}: offloads off", peer.name));
    }
    let exec = netns.map_or(String::new(), |n| format!("ip netns exec {n} "));
    let off: Vec<_> = on.iter().map(|short| format!("{short} off")).collect();
    Check::warn(
        name,
        format!("{}{place}: {} on", peer.name, on.join(", ")),
        format!(
            "only if kernel sockets there talk to an AF_XDP address here (they leave checksums \
             to hardware that is not there): `{exec}ethtool -K {} {}`",
            peer.name,
            off.join(" ")
        ),
    )
}

/// `ip` names a veth's peer by its index, and the peer's namespace by the number that our
/// namespace has for it.
fn find_peer(netns: Option<&str>, device: &Device) -> Result<(Device, Option<String>)> {
    let index = device.number("link_index");
    if let Some(name) = device.link["link"].as_str() {
        return Ok((inside(netns, || Device::look(name))??, netns.map(str::to_owned)));
    }
    let nsid =
        device.link["link_netnsid"].as_u64().context("it has no number for the namespace")?;
    let list = inside(netns, || output("ip", &["-json", "netns", "list-id"]))??;
    let list: Vec<Value> = serde_json::from_str(&list).context("reading what ip printed")?;
    let place = list
        .iter()
        .find(|entry| entry["nsid"].as_u64() == Some(nsid))
        .and_then(|entry| entry["name"].as_str())
        .context("its namespace has no name in `ip netns`")?;
    let links = inside(Some(place), || links(&[]))??;
    let name = links
        .iter()
        .find(|link| link["ifindex"].as_u64() == Some(index))
        .and_then(|link| link["ifname"].as_str())
        .context("its namespace does not list it")?;
    Ok((inside(Some(place), || Device::look(name))??, Some(place.to_owned())))
}
