//! Our ARP, ND, ICMP, RST and address probe against a Linux kernel, over a real veth pair.
#![allow(clippy::disallowed_methods, reason = "drives real devices")]
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use moorline_bpf::Mode;
use moorline_rig::{End, Rig, RigSpec};
use moorline_stack::lane::{self, LaneOptions};
use moorline_stack::link::xdp::XdpLink;
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::transport::{Cause, ConnOptions, Stage};
use moorline_stack::{Event, Instant, Transport};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt,
};

const LIMIT: Duration = Duration::from_secs(20);

/// A rig whose target's end is the kernel's alone, or `None` (said loudly).
fn rig() -> Option<Rig> {
    if let Err(why) = moorline_rig::possible() {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    let rig = Rig::up(RigSpec::unique("ml-net")).unwrap();
    rig.target().offloads(false).unwrap();
    Some(rig)
}

/// Our engine on the host's end, with these addresses, which it probes.
fn engine(end: &End, addresses: [IpAddr; 2]) -> Tcp<XdpLink> {
    let options = LaneOptions { mode: Mode::Skb, ..LaneOptions::new(end.dev(), &addresses) };
    let link = end.run(|| lane::open(&options).unwrap()).unwrap();
    let cidr = |ip: IpAddr| Cidr { ip, prefix: End::prefix(ip.is_ipv6()) };
    let addresses = addresses.map(cidr).to_vec();
    let config = TcpConfig { addresses, probe_addresses: true, ..TcpConfig::default() };
    Tcp::new(Instant::monotonic(), link, &config).unwrap()
}

fn ours(end: &End) -> [IpAddr; 2] {
    [end.xdp_addr(false), end.xdp_addr(true)]
}

/// Turns until `done` gives something.
fn turn_until<T>(
    tcp: &mut Tcp<XdpLink>,
    what: &str,
    mut done: impl FnMut(&mut Tcp<XdpLink>) -> Option<T>,
) -> T {
    let start = Instant::monotonic();
    loop {
        let now = Instant::monotonic();
        assert!(now.since(start) < LIMIT, "{what}");
        tcp.turn(now);
        if let Some(result) = done(tcp) {
            return result;
        }
        tcp.flush(now);
        tcp.wait(Some(now + Duration::from_millis(5)), &[]).unwrap();
    }
}

fn until_ready(tcp: &mut Tcp<XdpLink>, addresses: [IpAddr; 2]) {
    turn_until(tcp, "addresses are not ready", |tcp| {
        addresses.iter().all(|&ip| tcp.neighbours().is_ready(ip)).then_some(())
    });
}

/// Runs `peer` in the target's namespace while our engine turns.
fn meanwhile<R: Send>(
    tcp: &mut Tcp<XdpLink>,
    rig: &Rig,
    what: &str,
    peer: impl FnOnce() -> R + Send,
) -> R {
    thread::scope(|scope| {
        let peer = scope.spawn(|| rig.target().run(peer).unwrap());
        turn_until(tcp, what, |_| peer.is_finished().then_some(()));
        peer.join().unwrap()
    })
}

/// Sends an ICMP echo request with a kernel socket; returns the reply's message.
fn ping(to: IpAddr) -> io::Result<Vec<u8>> {
    let v4 = to.is_ipv4();
    let (family, protocol, ask) = match v4 {
        true => (AddressFamily::INET, ipproto::ICMP, 8),
        false => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let fd = socket(family, SocketType::RAW, Some(protocol))?;
    let timeout = Some(Duration::from_secs(3));
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, timeout)?;
    // The kernel fills in the checksum of ICMPv6; ours is that of this very message.
    let mut message = vec![ask, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = !(0x0800 + 0x1234 + 0x0001_u16);
    if v4 {
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    sendto(&fd, &message, SendFlags::empty(), &SocketAddr::new(to, 0))?;
    let mut reply = [0; 256];
    loop {
        let (_, len) = recv(&fd, &mut reply[..], RecvFlags::empty())?;
        // A raw IPv4 socket shows the IP header; both see other ICMP messages too.
        let message = if v4 { &reply[20..len] } else { &reply[..len] };
        if matches!(message[0], 0 | 129) {
            return Ok(message.to_vec());
        }
    }
}

#[test]
fn linux_finds_us_and_gets_its_echo() {
    let Some(rig) = rig() else { return };
    let addresses = ours(rig.host());
    let mut tcp = engine(rig.host(), addresses);
    until_ready(&mut tcp, addresses);
    for ip in addresses {
        let reply = meanwhile(&mut tcp, &rig, "no echo", || ping(ip)).unwrap();
        assert_eq!(reply[4..], [0x12, 0x34, 0, 1], "{ip}");
    }
    assert!(tcp.neighbours().stats().replies >= 2);
}

#[test]
fn linux_is_refused_at_once_where_nobody_listens() {
    let Some(rig) = rig() else { return };
    let addresses = ours(rig.host());
    let mut tcp = engine(rig.host(), addresses);
    until_ready(&mut tcp, addresses);
    for ip in addresses {
        let to = SocketAddr::new(ip, 4420);
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
        let error = meanwhile(&mut tcp, &rig, "no answer", connect).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
    }
}

#[test]
fn we_find_linux_and_miss_who_is_not_there() {
    let Some(rig) = rig() else { return };
    let addresses = ours(rig.host());
    let mut tcp = engine(rig.host(), addresses);
    for v6 in [false, true] {
        let to = SocketAddr::new(rig.target().kernel_addr(v6), 0);
        let listener = rig.target().run(|| TcpListener::bind(to).unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        let options = ConnOptions::default();
        let conn = tcp.connect(Instant::monotonic(), to, &options).unwrap();
        let event = turn_until(&mut tcp, "no event", Tcp::poll_event);
        assert_eq!(event, Event::Connected(conn), "{to}");
        tcp.abort(Instant::monotonic(), conn);
        let event = turn_until(&mut tcp, "no event", Tcp::poll_event);
        assert!(matches!(event, Event::Closed(id, _) if id == conn), "{event:?}");

        let absent = match to.ip() {
            IpAddr::V4(_) => "10.99.0.77:4420",
            IpAddr::V6(_) => "[fd99::77]:4420",
        };
        let start = Instant::monotonic();
        tcp.connect(start, absent.parse().unwrap(), &options).unwrap();
        let Event::Closed(_, why) = turn_until(&mut tcp, "no event", Tcp::poll_event) else {
            panic!("{absent} is there");
        };
        assert_eq!((why.cause, why.stage), (Cause::NeighbourTimeout, Stage::Resolving));
        assert!(why.after >= Duration::from_millis(300), "early: {:?}", why.after);
    }
}

#[test]
fn address_that_linux_has_is_not_taken() {
    let Some(rig) = rig() else { return };
    let taken = [rig.target().kernel_addr(false), rig.target().kernel_addr(true)];
    let mut tcp = engine(rig.host(), taken);
    let start = Instant::monotonic();
    turn_until(&mut tcp, "time stands still", |tcp| {
        assert!(!taken.iter().any(|&ip| tcp.neighbours().is_ready(ip)));
        (Instant::monotonic().since(start) > Duration::from_secs(1)).then_some(())
    });
}
