//! Listeners: many connections, limits, floods.

use std::time::Duration;

use moorline_stack::link::fault::Faults;
use moorline_stack::link::sim::WireOptions;
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{Event, Transport};

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
