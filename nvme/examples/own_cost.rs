//! What our own code costs per 4 KiB read: host and target in one thread over a simulated wire, so
//! no kernel, no rings, no other core. `cargo run --release --example own_cost [MTU] [QD] [off]`;
//! `off` leaves out TCP checksums.
//!
//! The figure is the sum of both ends, TCP and checksums and copies included. The simulated wire's
//! share is in it too.
#![allow(clippy::disallowed_methods, reason = "measures in real time")]

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use moorline_nvme::bdev::Ram;
use moorline_nvme::host::{CtrlConfig, Host, HostEvent, HostIdentity, HostLimits, Io, IoOp};
use moorline_nvme::target::{Subsystem, Target, TargetConfig};
use moorline_stack::Instant;
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::mem::Arena;
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};

const NQN: &str = "nqn.2026-11.io.moorline:cost";
const IOS: u64 = 300_000;
const BLOCK: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mtu: usize = args.next().map_or(Ok(1500), |arg| arg.parse())?;
    let depth: u64 = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let no_tcp_checksums = args.next().is_some_and(|arg| arg == "off");
    let ip = |n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
    let (here, there) = SimLink::pair(&WireOptions {
        mtu,
        delay: std::time::Duration::ZERO,
        ..WireOptions::default()
    });
    let tcp = |link, n| {
        let addresses = vec![Cidr { ip: ip(n), prefix: 24 }];
        let seed = Some(n.into());
        let config = TcpConfig { addresses, seed, no_tcp_checksums, ..TcpConfig::default() };
        Tcp::new(Instant::ZERO, link, &config)
    };
    let addr = SocketAddr::new(ip(2), 4420);
    let mut target = Target::new(tcp(there, 2)?, TargetConfig::default());
    let mut subsystem = Subsystem::new(NQN);
    subsystem.add_namespace(1, Box::new(Ram::new(BLOCK as u32, 4096)))?;
    target.add_subsystem(subsystem)?;
    target.listen(Instant::ZERO, addr)?;
    let identity = HostIdentity { hostnqn: format!("{NQN}-host"), hostid: [1; 16] };
    let mut host = Host::new(tcp(here, 1)?, identity, HostLimits::default());
    let ctrl = host.connect(Instant::ZERO, CtrlConfig::new(addr, NQN))?;

    let mut arena = Arena::new(BLOCK * depth as usize);
    let read = |tag, buf| {
        let (op, lba) = (IoOp::Read, tag * 7919 % 4096);
        Io { tag, op, nsid: 1, lba, blocks: 1, buf: Some(buf), buf_offset: 0 }
    };
    let (mut now, mut ended, mut started) = (Instant::ZERO, 0, None);
    while ended < IOS {
        now += std::time::Duration::from_micros(1);
        host.turn(now);
        while let Some(event) = host.poll_event() {
            match event {
                HostEvent::Live { .. } => {
                    started = Some(std::time::Instant::now());
                    for tag in 0..depth {
                        let buf = arena.take(BLOCK).ok_or("the arena is too small")?;
                        host.submit(now, ctrl, 0, read(tag, buf)).map_err(|_| "queue full")?;
                    }
                }
                HostEvent::Failed { failure, .. } => return Err(failure.to_string().into()),
                _ => {}
            }
        }
        while let Some(done) = host.poll_io() {
            assert!(done.status.is_success(), "{}", done.status);
            ended += 1;
            let buf = done.buf.ok_or("a read comes back with its buffer")?;
            host.submit(now, ctrl, 0, read(ended + depth, buf)).map_err(|_| "queue full")?;
        }
        host.flush(now);
        target.turn(now);
        target.flush(now);
    }
    let elapsed = started.ok_or("never live")?.elapsed();
    println!(
        "MTU {mtu}, depth {depth}: {} ns per 4 KiB read, both ends and the simulated wire",
        elapsed.as_nanos() / u128::from(IOS)
    );
    Ok(())
}
