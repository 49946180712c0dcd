//! Two nodes with one address: whoever comes second does not use it, and says so.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::time::earliest;
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions, Stage, Why};
use moorline_stack::{Event, Instant, Transport};

const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.2", "10.0.0.9"], ["fd00::2", "fd00::9"]];

fn lane(link: SimLink, ip: IpAddr, peer: SocketAddr, probe_addresses: bool) -> Tcp<SimLink> {
    let mut config = TcpConfig { probe_addresses, seed: Some(1), ..TcpConfig::default() };
    config.addresses.push(Cidr { ip, prefix: if ip.is_ipv4() { 24 } else { 64 } });
    // No need to ask for it: nothing but our own address can be in the way.
    config.neighbours.push((peer.ip(), [2, 0, 0, 0, 0, 2]));
    config.neighbour_options.announcements = 0;
    Tcp::new(Instant::ZERO, link, &config).unwrap()
}

/// Turns both ends until nothing is due within two seconds; what the first one was told.
fn run(ends: &mut [Tcp<SimLink>; 2]) -> Vec<(Instant, Event)> {
    let mut now = Instant::ZERO;
    let mut told = Vec::new();
    loop {
        for end in ends.iter_mut() {
            end.turn(now);
        }
        while let Some(event) = ends[0].poll_event() {
            told.push((now, event));
        }
        for end in ends.iter_mut() {
            end.flush(now);
        }
        let next = ends.iter().map(Transport::poll_timeout).fold(None, earliest);
        match next.filter(|&next| next <= Instant::ZERO + Duration::from_secs(2)) {
            Some(next) => now = now.max(next),
            None => return told,
        }
    }
}

#[test]
fn an_address_of_another_node_makes_connects_and_listens_fail() {
    for [ours, peer] in ADDRESSES {
        let (ours, peer): (IpAddr, IpAddr) = (ours.parse().unwrap(), peer.parse().unwrap());
        let (a, b) = SimLink::pair(&WireOptions::default());
        let remote = SocketAddr::new(peer, 4420);
        let mut ends = [lane(a, ours, remote, true), lane(b, ours, remote, false)];
        // Before anybody has answered the probe; no SYN leaves meanwhile.
        let conn = ends[0].connect(Instant::ZERO, remote, &ConnOptions::default()).unwrap();
        assert!(ends[0].is_probing());
        let told = run(&mut ends);
        let round_trip = Duration::from_micros(20);
        let why = Why {
            cause: Cause::AddressConflict,
            stage: Stage::Resolving,
            after: round_trip,
            retransmits: 0,
            rto: None,
            hint: None,
        };
        assert!(why.to_string().contains("another node has our address"));
        assert_eq!(told, [(Instant::ZERO + round_trip, Event::Closed(conn, why))]);
        assert!(!ends[0].is_probing());

        // And after that.
        let now = Instant::ZERO + Duration::from_secs(3);
        let conn = ends[0].connect(now, remote, &ConnOptions::default()).unwrap();
        let Some(Event::Closed(id, why)) = ends[0].poll_event() else { panic!("no event") };
        assert_eq!((id, why.cause), (conn, Cause::AddressConflict));
        let local = SocketAddr::new(ours, 4420);
        let error = ends[0].listen(now, local, &ListenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        // Whoever had it first is not disturbed.
        ends[1].listen(now, local, &ListenOptions::default()).unwrap();
    }
}

#[test]
fn nothing_is_sent_from_an_address_before_it_is_probed() {
    for [ours, peer] in ADDRESSES {
        let (ours, peer): (IpAddr, IpAddr) = (ours.parse().unwrap(), peer.parse().unwrap());
        let (a, b) = SimLink::pair(&WireOptions::default());
        let remote = SocketAddr::new(peer, 4420);
        let us = SocketAddr::new(ours, 0);
        let mut ends = [lane(a, ours, remote, true), lane(b, peer, us, false)];
        ends[1].listen(Instant::ZERO, remote, &ListenOptions::default()).unwrap();
        let conn = ends[0].connect(Instant::ZERO, remote, &ConnOptions::default()).unwrap();
        let told = run(&mut ends);
        // Three probes, 50 ms apart, and a round trip.
        let at = Instant::ZERO + Duration::from_micros(150_020);
        assert_eq!(told.first(), Some(&(at, Event::Connected(conn))));
    }
}
