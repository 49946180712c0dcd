//! Frames into the stack: a node with a listener, a live connection and one that is being made,
//! to which a neighbour sends whatever the input says: any bytes, segments with right checksums
//! near the numbers in use, ARP, ICMP and ND.
//!
//! What is asserted: no more connections than the listener allows; no more frames out than frames
//! in and deadlines account for; time goes on; and a new connection can be made afterwards, or is
//! refused for a reason.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moorline_stack::link::LinkTx;
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::time::earliest;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Event, Instant, Link, Transport};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, IpAddress, IpProtocol, IpRepr, Ipv4Address, TcpPacket};

use crate::input::Input;

const PORT: u16 = 4420;
/// Connections that may be open at once, and half open.
const OPEN_MAX: usize = 4;
const HALF_OPEN_MAX: usize = 2;
/// Operations in one run.
const OPS: usize = 64;

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn options() -> ConnOptions {
    ConnOptions { rx_buffer: 8 << 10, tx_buffer: 8 << 10, ..ConnOptions::default() }
}

/// Frames of the input's choice.
pub fn frames(data: &[u8]) {
    let mut world = World::new();
    let mut input = Input(data);
    let mut ops = 0;
    while !input.is_empty() && ops < OPS {
        world.act(&mut input);
        world.turn();
        ops += 1;
    }
    world.end();
}

struct World {
    node: Tcp<SimLink>,
    /// A stack of its own on the other end, which the fuzzer's frames leave from too.
    peer: Tcp<SimLink>,
    now: Instant,
    accepted: usize,
    sent: u64,
}

impl World {
    fn new() -> Self {
        let wire = WireOptions { wire_frames: 256, ring_frames: 64, ..WireOptions::default() };
        let (a, b) = SimLink::pair(&wire);
        let now = Instant::from_nanos(1);
        let end = |link, n: u8| {
            let mut config = TcpConfig {
                addresses: vec![Cidr { ip: ip(n), prefix: 24 }],
                neighbours: vec![(ip(3 - n), [2, 0, 0, 0, 0, 3 - n])],
                seed: Some(u64::from(n)),
                ..TcpConfig::default()
            };
            config.neighbour_options.announcements = 0;
            Tcp::new(now, link, &config).expect("a configuration that holds")
        };
        let (peer, node) = (end(a, 1), end(b, 2));
        let mut this = Self { node, peer, now, accepted: 0, sent: 0 };
        let listen = ListenOptions {
            conn: options(),
            half_open_max: HALF_OPEN_MAX,
            open_max: OPEN_MAX,
            ..ListenOptions::default()
        };
        this.node.listen(now, SocketAddr::new(ip(2), PORT), &listen).expect("the port is free");
        let to = SocketAddr::new(ip(2), PORT);
        this.peer.connect(now, to, &options()).expect("there is room");
        this.run(Duration::from_millis(1));
        assert_eq!(this.accepted, 1);
        // One that nobody answers: its SYNs are what errors can be about.
        let away = SocketAddr::new(ip(9), PORT);
        this.node.connect(this.now, away, &options()).expect("there is room");
        this.run(Duration::from_millis(1));
        this
    }

    /// One turn of both ends.
    fn turn(&mut self) {
        let now = self.now;
        self.peer.turn(now);
        while self.peer.poll_event().is_some() {}
        self.peer.flush(now);
        self.node.turn(now);
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Accepted { .. } => self.accepted += 1,
                Event::Readable(id) => {
                    // Half of what came goes back, the rest waits.
                    let mut back = Vec::new();
                    self.node.recv(id, &mut |bytes| {
                        back.extend_from_slice(&bytes[..bytes.len().div_ceil(2)]);
                        back.len().min(bytes.len())
                    });
                    let room = back.len().min(self.node.send_room(id));
                    self.node.send(id, &back[..room]);
                }
                Event::PeerClosed(id) => self.node.close(now, id),
                Event::Connected(_) | Event::Writable(_) | Event::Closed(..) => {}
                Event::Reachable(_) | Event::LinkUp => {}
            }
        }
        self.node.flush(now);
        assert!(self.node.connections().count() <= OPEN_MAX + 1);
    }

    /// Turns as long as something is due within `horizon`.
    fn run(&mut self, horizon: Duration) {
        let end = self.now + horizon;
        for _ in 0..20_000 {
            self.turn();
            match earliest(self.node.poll_timeout(), self.peer.poll_timeout()) {
                Some(next) if next <= end => self.now = next.max(self.now),
                Some(_) | None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("time stands still");
    }

    fn transmit(&mut self, frame: &[u8]) {
        let tx = self.peer.link_mut().tx();
        if tx.room() > 0 && frame.len() >= 14 {
            tx.transmit(frame.len(), |out| out.copy_from_slice(frame));
            self.sent += 1;
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            // A frame for us with any content.
            0 => {
                let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
                let len = 2 + usize::from(input.word() % 1500);
                frame.extend_from_slice(input.take(len));
                self.transmit(&frame);
            }
            // Any frame.
            1 => {
                let len = usize::from(input.word() % 1515);
                self.transmit(input.take(len));
            }
            2 | 3 => self.segment(input),
            4 => self.arp(input),
            5 => self.icmp(input),
            6 => self.run(Duration::from_micros(u64::from(input.word()))),
            _ => self.run(Duration::from_millis(u64::from(input.word() % 4096))),
        }
    }

    /// A segment with right checksums, for the live connection or for another.
    fn segment(&mut self, input: &mut Input<'_>) {
        let live = self.node.connections().nth(usize::from(input.byte() % 2));
        let (port, (ours, theirs)) = match live {
            Some(conn) => (conn.remote.port(), conn.sequence),
            None => (u16::from(input.byte()) + 1024, (0, 0)),
        };
        let flags = input.byte();
        let near = |input: &mut Input<'_>, n: u32| match input.byte() % 4 {
            0 => n,
            1 => n.wrapping_add_signed(i32::from(input.word() as i16)),
            2 => n.wrapping_add(u32::from(input.byte())),
            _ => input.dword(),
        };
        let (seq, ack) = (near(input, theirs), near(input, ours));
        let port = if input.byte().is_multiple_of(4) { input.word() } else { port };
        let (window, options) = (input.word(), usize::from(input.byte() % 11) * 4);
        let options = input.take(options);
        let options_len = options.len().next_multiple_of(4);
        let len = usize::from(input.word() % 1400);
        let payload = input.take(len);
        let mut tcp = vec![0; 20 + options_len];
        tcp[..2].copy_from_slice(&port.to_be_bytes());
        tcp[2..4].copy_from_slice(&PORT.to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&ack.to_be_bytes());
        tcp[12] = (5 + options_len as u8 / 4) << 4;
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&window.to_be_bytes());
        tcp[20..20 + options.len()].copy_from_slice(options);
        tcp.extend_from_slice(payload);
        let [from, to] = addresses();
        TcpPacket::new_unchecked(&mut tcp[..]).fill_checksum(&from, &to);
        self.ip(IpProtocol::Tcp, &tcp);
    }

    /// An IPv4 packet in a frame for the node.
    fn ip(&mut self, protocol: IpProtocol, payload: &[u8]) {
        let [from, to] = addresses();
        let ip = IpRepr::new(from, to, protocol, payload.len(), 64);
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.resize(14 + ip.header_len(), 0);
        ip.emit(&mut frame[14..], &ChecksumCapabilities::default());
        frame.extend_from_slice(payload);
        self.transmit(&frame);
    }

    fn arp(&mut self, input: &mut Input<'_>) {
        let mut frame = vec![0xFF; 6];
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0]);
        frame.push(input.byte() % 3);
        frame.extend_from_slice(&[2, 0, 0, 0, 0, input.byte() % 4]);
        frame.extend_from_slice(&[10, 0, 0, input.byte() % 12]);
        frame.extend_from_slice(&[2, 0, 0, 0, 0, input.byte() % 4]);
        frame.extend_from_slice(&[10, 0, 0, input.byte() % 12]);
        self.transmit(&frame);
    }

    /// An ICMP message, an error about one of the node's connections among them.
    fn icmp(&mut self, input: &mut Input<'_>) {
        let (kind, code, rest) = (input.byte(), input.byte(), input.dword());
        let mut icmp = vec![kind % 16, code % 16, 0, 0];
        icmp.extend_from_slice(&rest.to_be_bytes());
        let conn = self.node.connections().nth(usize::from(input.byte() % 3));
        if let (Some(conn), IpAddr::V4(to)) = (conn, ip(9)) {
            let to = match conn.remote.ip() {
                IpAddr::V4(remote) => remote,
                IpAddr::V6(_) => to,
            };
            let [_, node] = addresses();
            let about = IpRepr::new(node, to.into(), IpProtocol::Tcp, 8, 64);
            let at = icmp.len();
            icmp.resize(at + about.header_len(), 0);
            about.emit(&mut icmp[at..], &ChecksumCapabilities::default());
            icmp.extend_from_slice(&conn.local.port().to_be_bytes());
            icmp.extend_from_slice(&conn.remote.port().to_be_bytes());
            let sequence = conn.sequence.0;
            icmp.extend_from_slice(&sequence.wrapping_add(input.dword()).to_be_bytes());
        }
        let len = usize::from(input.byte());
        icmp.extend_from_slice(input.take(len));
        Icmpv4Packet::new_unchecked(&mut icmp[..]).fill_checksum();
        self.ip(IpProtocol::Icmp, &icmp);
    }

    /// Everything quietens down, and the node listens still.
    fn end(&mut self) {
        self.run(Duration::from_secs(20));
        let out = self.node.link().stats().tx_frames;
        // Answers, and what deadlines send of themselves: SYNs, retransmissions, probes.
        assert!(out <= 2 * self.sent + 2000, "{out} frames out for {} in", self.sent);
        let before = self.accepted;
        let open = self.node.connections().count();
        let to = SocketAddr::new(ip(2), PORT);
        let _ = self.peer.connect(self.now, to, &options()).expect("there is room");
        self.run(Duration::from_secs(2));
        assert!(self.accepted > before || open >= OPEN_MAX, "nobody listens any more");
    }
}

/// The peer's address, and the node's.
fn addresses() -> [IpAddress; 2] {
    [1, 2].map(|n| IpAddress::from(Ipv4Address::new(10, 0, 0, n)))
}
