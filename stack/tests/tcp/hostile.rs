//! Whatever a peer sends on a live connection, nothing panics and others do not notice.

use std::time::Duration;

use moorline_stack::Transport;
use moorline_stack::link::LinkTx;
use moorline_stack::rng::Rng;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Event, Link};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, Ipv4Address, TcpPacket};

use crate::pair::{End, PORT, Pair, PairOptions};

/// A frame to the target with random flags, window, options and payload, numbers near those in
/// use, and right checksums.
fn frame(rng: &mut Rng, port: u16, seq: u32, ack: u32) -> Vec<u8> {
    let near = |rng: &mut Rng, n: u32| match rng.below(4) {
        0 => n,
        1 => n.wrapping_add(rng.below(5000) as u32).wrapping_sub(2500),
        2 => n.wrapping_add(rng.below(600_000) as u32).wrapping_sub(300_000),
        _ => rng.bits() as u32,
    };
    let options = rng.below(11) as usize * 4;
    let payload = if rng.chance(0.5) { rng.below(1400) as usize } else { 0 };
    let [source, destination] = [1, 2].map(|n| IpAddress::from(Ipv4Address::new(10, 0, 0, n)));
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, 20 + options + payload, 64);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.resize(14 + ip.buffer_len(), 0);
    ip.emit(&mut frame[14..], &ChecksumCapabilities::default());
    let tcp = &mut frame[34..];
    tcp[20..].fill_with(|| rng.below(12) as u8);
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&PORT.to_be_bytes());
    tcp[4..8].copy_from_slice(&near(rng, seq).to_be_bytes());
    tcp[8..12].copy_from_slice(&near(rng, ack).to_be_bytes());
    tcp[12] = (5 + options as u8 / 4) << 4;
    // RST and SYN seldom, so that connections live long enough to be bothered.
    let rare = if rng.chance(0.02) { 0xff } else { !0x06 };
    tcp[13] = (rng.bits() as u8 & rare) | (0x10 * u8::from(rng.chance(0.9)));
    tcp[14..16].copy_from_slice(&(rng.bits() as u16).to_be_bytes());
    TcpPacket::new_unchecked(tcp).fill_checksum(&source, &destination);
    frame
}

#[test]
fn random_segments_on_live_connections_do_no_harm() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut pair = Pair::new(&PairOptions { seed, ..PairOptions::default() });
        pair.established(&ListenOptions::default(), &ConnOptions::default());
        let bystander = pair.connect(&ConnOptions::default());
        pair.run(Duration::from_millis(1));
        let port = |pair: &Pair, at: usize| pair.a.tcp.connections().nth(at).unwrap().local.port();
        let victim = port(&pair, 0);
        let (seq, ack) = pair.a.tcp.connections().next().map(|conn| conn.sequence).unwrap();
        for _ in 0..2000 {
            let frame = frame(&mut rng, victim, seq, ack);
            let tx = pair.a.tcp.link_mut().tx();
            tx.transmit(frame.len(), |out| out.copy_from_slice(&frame));
            let mut act = |_, end: &mut End, is_a: bool| match is_a {
                true => drop(end.tcp.send(bystander, b"x")),
                false => end.echo(),
            };
            pair.turn(&mut act);
            pair.now += Duration::from_micros(rng.below(20));
        }
        pair.run_with(
            Duration::from_secs(20),
            &mut |_, end, a| {
                if !a {
                    end.echo()
                }
            },
            |_| false,
        );
        assert!(pair.a.has(&Event::Connected(bystander)));
        assert_eq!(pair.a.closed(bystander), None, "seed {seed}");
        let read = pair.a.tcp.recv(bystander, &mut |bytes| bytes.len());
        assert_eq!(read, 2000, "seed {seed}");
    }
}
