//! A device that goes away and comes back, seen from the connections on it.

use std::cell::Cell;
use std::io::ErrorKind;
use std::time::Duration;

use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Transport};

use crate::pair::{End, Pair, PairOptions};

const MS: Duration = Duration::from_millis(1);

/// Two ends that find each other by ARP.
fn pair() -> Pair {
    Pair::new(&PairOptions { resolve: true, ..PairOptions::default() })
}

fn away(pair: &mut Pair) {
    for end in [&mut pair.a, &mut pair.b] {
        end.tcp.link_mut().inner_mut().goes_away();
    }
    pair.run(MS);
}

/// The device comes back with another hardware address, its last byte being `mac`.
fn back(end: &mut End, mac: u8) {
    end.tcp.link_mut().inner_mut().comes_back([2, 0, 0, 0, 0, mac]);
}

/// Turns until `bytes` have arrived at `b`; returns after how long.
fn arrives(pair: &mut Pair, conn: ConnId, bytes: &[u8]) -> Duration {
    let (mut got, start) = (Vec::new(), pair.now);
    let done = Cell::new(false);
    let read = &mut |_, end: &mut End, is_a: bool| {
        if !is_a {
            end.tcp.recv(conn, &mut |shown| {
                got.extend_from_slice(shown);
                shown.len()
            });
            done.set(got.len() >= bytes.len());
        }
    };
    assert!(pair.run_with(Duration::from_secs(5), read, |_| done.get()), "nothing arrives");
    assert_eq!(got, bytes);
    pair.now - start
}

#[test]
fn connections_outlive_an_outage_and_go_on_at_once_with_new_hardware_addresses() {
    for first in [true, false] {
        let mut pair = pair();
        let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
        pair.run(Duration::from_secs(90)); // the neighbours are all but forgotten
        away(&mut pair);
        assert_eq!(pair.a.tcp.send(a, &[7; 5000]), 5000);
        pair.run(2500 * MS); // the next retransmission is hundreds of milliseconds away
        back(if first { &mut pair.a } else { &mut pair.b }, 11);
        pair.run(50 * MS);
        back(if first { &mut pair.b } else { &mut pair.a }, 12);
        let after = arrives(&mut pair, b, &[7; 5000]);
        assert!(after < 2 * MS, "{after:?} after the second came back");
        assert!(pair.a.closed(a).is_none() && pair.b.closed(b).is_none());
        back(&mut pair.a, 13); // a short outage, with nothing under way
        pair.run(MS);
        assert_eq!(pair.b.tcp.send(b, b"hello"), 5);
        pair.run(MS);
        assert_eq!(pair.a.tcp.recv(a, &mut |shown| shown.len()), 5);
    }
}

#[test]
fn an_outage_longer_than_the_ack_timeout_ends_what_waits_and_nothing_else() {
    let mut pair = pair();
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let idle = pair.connect(&ConnOptions::default());
    pair.run(MS);
    away(&mut pair);
    let start = pair.now;
    pair.a.tcp.send(a, b"lost");
    pair.run(Duration::from_secs(10));
    let (at, why) = pair.a.closed(a).unwrap();
    assert_eq!((at - start, why.cause), (Duration::from_secs(3), Cause::AckTimeout));
    assert!(pair.a.closed(idle).is_none() && pair.b.closed(b).is_none());
}

#[test]
fn connecting_is_refused_while_the_link_is_away_and_its_return_is_told_once() {
    let mut pair = pair();
    pair.listen(&ListenOptions::default());
    away(&mut pair);
    let (now, to) = (pair.now, pair.target(crate::pair::PORT));
    let error = pair.a.tcp.connect(now, to, &ConnOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkDown);
    assert!(!pair.a.has(&Event::LinkUp));
    back(&mut pair.a, 11);
    back(&mut pair.b, 12);
    pair.run(MS);
    let told = pair.a.events.iter().filter(|(_, event)| *event == Event::LinkUp).count();
    assert_eq!(told, 1);
    let conn = pair.connect(&ConnOptions::default());
    pair.run(MS);
    assert!(pair.a.has(&Event::Connected(conn)));
}

#[test]
fn a_connect_under_way_goes_on_when_the_link_is_back() {
    for resolving in [true, false] {
        let mut pair = pair();
        pair.listen(&ListenOptions::default());
        if !resolving {
            pair.connect(&ConnOptions::default());
            pair.run(MS); // b is known from now on
        }
        for end in [&mut pair.a, &mut pair.b] {
            end.tcp.link_mut().inner_mut().goes_away();
        }
        let conn = pair.connect(&ConnOptions::default());
        pair.run(251 * MS); // the next SYN would follow at 350 ms
        back(&mut pair.b, 12);
        back(&mut pair.a, 11);
        pair.run(2 * MS);
        assert!(pair.a.has(&Event::Connected(conn)), "resolving: {resolving}");
    }
}
