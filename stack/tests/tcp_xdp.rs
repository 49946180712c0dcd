//! TCP over AF_XDP on a real veth pair: against ourselves, and against Linux, both ways.
#![allow(clippy::disallowed_methods, reason = "drives real devices")]
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use moorline_rig::{End, Rig, RigSpec};
use moorline_stack::lane::{self, LaneOptions};
use moorline_stack::link::xdp::XdpLink;
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Instant, Transport};

const PORT: u16 = 4420;
const LIMIT: Duration = Duration::from_secs(30);
const BYTES: usize = 8 << 20;

/// A rig, or `None` (said loudly) where there can be none.
fn rig(mtu: u32) -> Option<Rig> {
    if let Err(why) = moorline_rig::possible() {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    Some(Rig::up(RigSpec::unique("ml-tcp").mtu(mtu)).unwrap())
}

fn tcp(end: &End) -> Tcp<XdpLink> {
    let addrs = [end.xdp_addr(false), end.xdp_addr(true)];
    let link = end.run(|| lane::open(&LaneOptions::new(end.dev(), &addrs)).unwrap()).unwrap();
    let addresses =
        addrs.iter().map(|&ip| Cidr { ip, prefix: End::prefix(ip.is_ipv6()) }).collect();
    let config = TcpConfig { addresses, ..TcpConfig::default() };
    Tcp::new(Instant::monotonic(), link, &config).unwrap()
}

fn pattern(n: usize) -> u8 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Echoes whatever comes, and closes when its peer does, until told to stop.
fn serve(tcp: &mut Tcp<XdpLink>, stop: &AtomicBool) {
    let mut conns: Vec<(ConnId, bool)> = Vec::new();
    let mut bytes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::monotonic();
        tcp.turn(now);
        while let Some(event) = tcp.poll_event() {
            match event {
                Event::Accepted { conn, .. } => conns.push((conn, false)),
                Event::PeerClosed(conn) => {
                    conns
                        .iter_mut()
                        .filter(|(id, _)| *id == conn)
                        .for_each(|(_, closed)| *closed = true);
                }
                Event::Closed(conn, _) => conns.retain(|&(id, _)| id != conn),
                Event::Connected(_)
                | Event::Readable(_)
                | Event::Writable(_)
                | Event::Reachable(_)
                | Event::LinkUp => {}
            }
        }
        for &(id, closed) in &conns {
            bytes.clear();
            let mut room = tcp.send_room(id);
            tcp.recv(id, &mut |shown| {
                let taken = shown.len().min(room);
                room -= taken;
                bytes.extend_from_slice(&shown[..taken]);
                taken
            });
            tcp.send(id, &bytes);
            if closed && room > 0 && bytes.is_empty() {
                tcp.close(now, id);
            }
        }
        tcp.flush(now);
        let soon = now + Duration::from_millis(1);
        tcp.wait(Some(tcp.poll_timeout().map_or(soon, |at| at.min(soon))), &[]).unwrap();
    }
}

/// Stops the server, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends a pattern, checks what comes back, closes, and returns why it ended.
fn call(tcp: &mut Tcp<XdpLink>, remote: SocketAddr, total: usize) -> Cause {
    let start = Instant::monotonic();
    let id = tcp.connect(start, remote, &ConnOptions::default()).unwrap();
    let (mut sent, mut received, mut connected) = (0, 0, false);
    let chunk: Vec<u8> = (0..total).map(pattern).collect();
    loop {
        let now = Instant::monotonic();
        assert!(now - start < LIMIT, "{sent} sent, {received} received of {total}");
        tcp.turn(now);
        while let Some(event) = tcp.poll_event() {
            match event {
                Event::Connected(_) => connected = true,
                Event::Closed(_, why) => {
                    assert!(received == total || !connected, "{why} after {received}");
                    return why.cause;
                }
                _ => {}
            }
        }
        if connected && received < total {
            let end = total.min(sent + 65536);
            sent += tcp.send(id, &chunk[sent..end]);
            tcp.recv(id, &mut |shown| {
                assert!(shown == &chunk[received..received + shown.len()], "at {received}");
                received += shown.len();
                shown.len()
            });
            if received == total {
                tcp.close(now, id);
            }
        }
        tcp.flush(now);
        tcp.wait(tcp.poll_timeout(), &[]).unwrap();
    }
}

fn ours_to_ours(mtu: u32) {
    let Some(rig) = rig(mtu) else { return };
    let (mut host, mut target) = (tcp(rig.host()), tcp(rig.target()));
    let stop = AtomicBool::new(false);
    for v6 in [false, true] {
        let local = SocketAddr::new(rig.target().xdp_addr(v6), PORT);
        target.listen(Instant::monotonic(), local, &ListenOptions::default()).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| serve(&mut target, &stop));
        let _stop = Stop(&stop);
        for v6 in [false, true] {
            let remote = SocketAddr::new(rig.target().xdp_addr(v6), PORT);
            assert_eq!(call(&mut host, remote, BYTES), Cause::Closed);
            let closed = SocketAddr::new(remote.ip(), PORT + 1);
            assert_eq!(call(&mut host, closed, 1), Cause::Reset);
        }
        let nobody = "10.99.0.99:4420".parse().unwrap();
        assert_eq!(call(&mut host, nobody, 1), Cause::NeighbourTimeout);
    });
    let stats = [host.stats(), target.stats()];
    assert!(stats.iter().all(|stats| stats.rx_bytes == 2 * BYTES as u64), "{stats:?}");
}

#[test]
fn ours_to_ours_mtu_1500() {
    ours_to_ours(1500);
}

#[test]
fn ours_to_ours_mtu_3506() {
    ours_to_ours(3506);
}

#[test]
fn ours_to_ours_mtu_9000() {
    ours_to_ours(9000);
}

#[test]
fn linux_connects_to_us() {
    for mtu in [1500, 9000] {
        let Some(rig) = rig(mtu) else { return };
        rig.host().offloads(false).unwrap();
        let mut target = tcp(rig.target());
        let stop = AtomicBool::new(false);
        for v6 in [false, true] {
            let local = SocketAddr::new(rig.target().xdp_addr(v6), PORT);
            target.listen(Instant::monotonic(), local, &ListenOptions::default()).unwrap();
        }
        thread::scope(|scope| {
            scope.spawn(|| serve(&mut target, &stop));
            let _stop = Stop(&stop);
            let _stop = Stop(&stop);
            for v6 in [false, true] {
                let remote = SocketAddr::new(rig.target().xdp_addr(v6), PORT);
                let stream = rig.host().run(|| TcpStream::connect(remote).unwrap()).unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut reader = stream.try_clone().unwrap();
                let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
                scope.spawn({
                    let bytes = bytes.clone();
                    move || {
                        (&stream).write_all(&bytes).unwrap();
                        stream.shutdown(std::net::Shutdown::Write).unwrap();
                    }
                });
                let mut back = Vec::new();
                reader.read_to_end(&mut back).unwrap();
                assert!(back == bytes, "{} of {} came back", back.len(), bytes.len());
            }
        });
    }
}

#[test]
fn we_connect_to_linux() {
    for mtu in [1500, 9000] {
        let Some(rig) = rig(mtu) else { return };
        rig.target().offloads(false).unwrap();
        let mut host = tcp(rig.host());
        for v6 in [false, true] {
            let local = SocketAddr::new(rig.target().kernel_addr(v6), PORT);
            let listener = rig.target().run(|| TcpListener::bind(local).unwrap()).unwrap();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    std::io::copy(&mut stream, &mut writer).unwrap();
                });
                assert_eq!(call(&mut host, local, BYTES), Cause::Closed);
            });
            let closed = SocketAddr::new(local.ip(), PORT + 1);
            assert_eq!(call(&mut host, closed, 1), Cause::Reset);
        }
    }
}

#[test]
fn a_node_that_comes_up_is_heard_of_and_answers() {
    let Some(rig) = rig(1500) else { return };
    let mut host = tcp(rig.host());
    let ips = [false, true].map(|v6| rig.target().xdp_addr(v6));
    for ip in ips {
        assert_eq!(call(&mut host, SocketAddr::new(ip, PORT), 1), Cause::NeighbourTimeout);
    }
    let mut target = tcp(rig.target());
    let local = SocketAddr::new(ips[0], PORT);
    target.listen(Instant::monotonic(), local, &ListenOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| serve(&mut target, &stop));
        let _stop = Stop(&stop);
        let mut heard = Vec::new();
        let start = Instant::monotonic();
        while heard.len() < 2 {
            let now = Instant::monotonic();
            assert!(now - start < LIMIT, "only {heard:?}");
            host.turn(now);
            heard.extend(std::iter::from_fn(|| host.poll_event()));
            host.flush(now);
            host.wait(Some(now + Duration::from_secs(1)), &[]).unwrap();
        }
        assert_eq!(heard, ips.map(Event::Reachable), "nobody was asked");
        assert_eq!(call(&mut host, local, 1000), Cause::Closed);
    });
    let counters = host.link().steering_counters().unwrap();
    assert!(counters.announcements >= 2 && counters.unheard == 0, "{counters:?}");
}
