//! Listeners: many connections, limits, floods.

use std::time::Duration;

use moorline_stack::link::LinkTx;
use moorline_stack::link::fault::Faults;
use moorline_stack::link::sim::WireOptions;
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{Event, Link, Transport};

use crate::pair::{PORT, Pair, PairOptions, address};

fn small() -> ConnOptions {
    ConnOptions { rx_buffer: 8192, tx_buffer: 8192, ..ConnOptions::default() }
}

#[test]
fn a_thousand_connections_are_accepted_and_echo() {
    let wire = WireOptions { ring_frames: 1024, ..WireOptions::default() };
    let mut pair = Pair::new(&PairOptions { wire, ..PairOptions::default() });
    pair.listen(&ListenOptions { half_open_max: 1000, conn: small(), ..ListenOptions::default() });
    let ids: Vec<_> = (0..1000).map(|_| pair.connect(&small())).collect();
    let mut act = |_, end: &mut crate::pair::End, is_a: bool| match is_a {
        true => ids.iter().for_each(|&id| {
            if end.tcp.send_room(id) == 8192 && end.has(&Event::Connected(id)) {
                end.tcp.send(id, b"hello");
            }
        }),
        false => end.echo(),
    };
    let done = |pair: &Pair| pair.a.tcp.stats().rx_bytes >= 5000;
    assert!(pair.run_with(Duration::from_secs(2), &mut act, done));
    let accepted = |(_, event): &&_| matches!(event, Event::Accepted { .. });
    assert_eq!(pair.b.events.iter().filter(accepted).count(), 1000);
}

#[test]
fn each_of_many_addresses_is_connected_to_as_itself() {
    for v6 in [false, true] {
        let mut pair =
            Pair::new(&PairOptions { v6, resolve: true, more: 40, ..Default::default() });
        let at = |n: u8| std::net::SocketAddr::new(address(v6, n).ip(), PORT);
        let ids: Vec<_> = (100..140)
            .map(|n| {
                pair.b.tcp.listen(pair.now, at(n), &ListenOptions::default()).unwrap();
                pair.a.tcp.connect(pair.now, at(n), &small()).unwrap()
            })
            .collect();
        pair.run(Duration::from_millis(10));
        assert!(ids.iter().all(|&id| pair.a.has(&Event::Connected(id))), "{:?}", pair.a.events);
        let accepted = |n| {
            let is =
                |event: &Event| matches!(event, Event::Accepted { local, .. } if *local == at(n));
            pair.b.events.iter().filter(|(_, event)| is(event)).count()
        };
        assert!((100..140).all(|n| accepted(n) == 1), "{:?}", pair.b.events);
    }
}

#[test]
fn half_open_connections_are_limited_and_end() {
    let mut pair = Pair::new(&PairOptions::default());
    pair.listen(&ListenOptions { half_open_max: 10, conn: small(), ..ListenOptions::default() });
    // No SYN-ACK arrives.
    pair.a.tcp.link_mut().faults_mut().blackhole = true;
    for _ in 0..100 {
        pair.connect(&small());
    }
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.b.tcp.connections().count(), 10);
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.b.tcp.connections().count(), 0);
    assert!(pair.b.events.is_empty(), "{:?}", pair.b.events);
    // And none of it is left behind.
    pair.a.tcp.link_mut().faults_mut().blackhole = false;
    for _ in 0..10 {
        pair.connect(&small());
    }
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.b.events.len(), 10);
}

#[test]
fn half_open_connection_given_up_by_its_peer_is_freed() {
    let mut pair = Pair::new(&PairOptions::default());
    pair.listen(&ListenOptions { conn: small(), ..ListenOptions::default() });
    let a = pair.connect(&small());
    pair.turn(&mut |_, _, _| {});
    pair.a.tcp.abort(pair.now, a);
    // The SYN-ACK meets no connection, and RST answers it.
    pair.run(Duration::from_millis(1));
    assert_eq!(pair.b.tcp.connections().count(), 0);
    assert!(pair.b.events.is_empty());
}

#[test]
fn more_than_open_max_are_refused() {
    let mut pair = Pair::new(&PairOptions::default());
    pair.listen(&ListenOptions { open_max: 3, conn: small(), ..ListenOptions::default() });
    let ids: Vec<_> = (0..5).map(|_| pair.connect(&small())).collect();
    pair.run(Duration::from_millis(10));
    let refused = ids.iter().filter(|&&id| pair.a.closed(id).is_some()).count();
    assert_eq!(refused, 2);
    // Room again when one has gone.
    let gone = pair.b.accepted().unwrap();
    pair.b.tcp.abort(pair.now, gone);
    let again = pair.connect(&small());
    pair.run(Duration::from_millis(10));
    assert!(pair.a.has(&Event::Connected(again)));
}

#[test]
fn a_port_that_is_closed_refuses_until_it_is_listened_on_again() {
    let mut pair = Pair::new(&PairOptions::default());
    let (open, _) = pair.established(&ListenOptions::default(), &small());
    let local = pair.target(PORT);
    pair.b.tcp.unlisten(local).unwrap();
    assert!(pair.b.tcp.unlisten(local).is_err());
    let refused = pair.connect(&small());
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.a.closed(refused).unwrap().1.cause, Cause::Reset);
    assert!(pair.a.closed(open).is_none(), "those that are open stay");
    pair.listen(&ListenOptions::default());
    let again = pair.connect(&small());
    pair.run(Duration::from_millis(10));
    assert!(pair.a.has(&Event::Connected(again)));
}

#[test]
fn a_neighbour_that_is_not_found_and_a_syn_that_is_swallowed_end_at_their_deadlines() {
    let neighbour = Faults { no_neighbour: true, ..Faults::default() };
    let swallow = Faults { swallow_syn: 1.0, port: Some(PORT), ..Faults::default() };
    for (faults, cause, after) in [
        (neighbour, Cause::NeighbourTimeout, Duration::from_millis(300)),
        (swallow, Cause::ConnectTimeout, Duration::from_secs(1)),
    ] {
        let mut pair = Pair::new(&PairOptions { resolve: true, ..PairOptions::default() });
        let handle = pair.b.tcp.link_mut().handle();
        handle.add(1, 1, faults);
        // Before its own address is announced.
        pair.listen(&ListenOptions::default());
        let start = pair.now;
        let lost = pair.connect(&small());
        pair.run(Duration::from_secs(2));
        let (at, why) = pair.a.closed(lost).unwrap();
        assert_eq!((why.cause, at - start >= after), (cause, true), "{why}");
        assert!(at - start < after + Duration::from_millis(1), "{:?}", at - start);
        assert!(handle.counts(1).total() > 2);
        handle.remove(1);
        let again = pair.connect(&small());
        pair.run(Duration::from_millis(400));
        assert!(pair.a.has(&Event::Connected(again)), "{:?}", pair.a.events);
    }
}

#[test]
fn listening_where_it_cannot_be_is_an_error() {
    let mut pair = Pair::new(&PairOptions::default());
    pair.listen(&ListenOptions::default());
    let mut listen = |address: &str| {
        let address = address.parse().unwrap();
        pair.b.tcp.listen(pair.now, address, &ListenOptions::default()).map_err(|e| e.kind())
    };
    assert_eq!(listen("10.0.0.2:4420"), Err(std::io::ErrorKind::AddrInUse));
    assert_eq!(listen("10.0.0.3:4420"), Err(std::io::ErrorKind::AddrNotAvailable));
    assert_eq!(listen("10.0.0.2:0"), Err(std::io::ErrorKind::InvalidInput));
    assert_eq!(listen("0.0.0.0:8009"), Ok(()));
}

#[test]
fn resets_are_rate_limited() {
    let mut pair = Pair::new(&PairOptions::default());
    let many: Vec<_> = (0..200).map(|_| pair.connect(&small())).collect();
    pair.run(Duration::from_micros(100));
    assert_eq!(pair.b.tcp.stats().tx_frames, 64);
    pair.run(Duration::from_secs(2));
    let refused = |id: &&_| pair.a.closed(**id).is_some_and(|(_, why)| why.cause == Cause::Reset);
    assert_eq!(many.iter().filter(refused).count(), 200, "SYNs come again");
}

#[test]
fn syn_on_a_live_connection_gets_one_challenge_and_harms_nothing() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.run(Duration::from_millis(10));
    let port = pair.a.tcp.connections().next().unwrap().local.port();
    let before = pair.b.tcp.stats().tx_frames;
    let syn = syn_frame(port);
    pair.a.tcp.link_mut().tx().transmit(syn.len(), |frame| frame.copy_from_slice(&syn));
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.b.tcp.stats().tx_frames, before + 1);
    pair.a.tcp.send(a, b"still");
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.b.tcp.recv(b, &mut |bytes| bytes.len()), 5);
}

#[test]
fn peer_that_forgot_its_connection_is_told_and_connects_again() {
    // As after a crash and a restart that chooses the same port.
    let mut pair = Pair::new(&PairOptions::default());
    let (_, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let mut fresh = Pair::new(&PairOptions::default());
    std::mem::swap(&mut pair.a, &mut fresh.a);
    // The same seed draws the same port. Its wire is another one: carry frames over by hand.
    fresh.now = pair.now;
    std::mem::swap(&mut pair.a, &mut fresh.a);
    let port = pair.a.tcp.connections().next().unwrap().local.port();
    let syn = syn_frame(port);
    pair.a.tcp.link_mut().tx().transmit(syn.len(), |frame| frame.copy_from_slice(&syn));
    let id = pair.a.tcp.connections().next().unwrap().id;
    // Forget it without a word.
    pair.a.tcp.abort(pair.now, id);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.b.closed(b).map(|(_, why)| why.cause), Some(Cause::Reset));
}

/// A bare SYN from 10.0.0.1:`port` to the target.
fn syn_frame(port: u16) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        IpAddress, IpProtocol, IpRepr, Ipv4Address, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    };
    let tcp = TcpRepr {
        src_port: port,
        dst_port: PORT,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(12345),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let [source, destination] = [1, 2].map(|n| IpAddress::from(Ipv4Address::new(10, 0, 0, n)));
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.resize(14 + ip.buffer_len(), 0);
    let checksum = ChecksumCapabilities::default();
    ip.emit(&mut frame[14..], &checksum);
    let mut segment = TcpPacket::new_unchecked(&mut frame[14 + ip.header_len()..]);
    tcp.emit(&mut segment, &source, &destination, &checksum);
    frame
}
