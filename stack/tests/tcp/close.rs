//! Connections end in every order, each end is told once, and why.

use std::time::Duration;

use moorline_stack::link::fault::Faults;
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{Event, Transport};

use crate::pair::{Pair, PairOptions};

fn established() -> (Pair, moorline_stack::ConnId, moorline_stack::ConnId) {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    (pair, a, b)
}

fn cause(why: Option<(moorline_stack::Instant, moorline_stack::transport::Why)>) -> Option<Cause> {
    why.map(|(_, why)| why.cause)
}

#[test]
fn close_of_one_side_then_the_other() {
    let (mut pair, a, b) = established();
    pair.a.tcp.send(a, b"last words");
    pair.a.tcp.close(pair.now, a);
    pair.run(Duration::from_millis(100));
    let order: Vec<_> = pair.b.events.iter().map(|(_, event)| event.clone()).collect();
    assert_eq!(order[1..], [Event::Readable(b), Event::PeerClosed(b)]);
    // What came before the FIN can be read after it, and the other direction still works.
    let mut seen = Vec::new();
    pair.b.tcp.recv(b, &mut |bytes| {
        seen.extend_from_slice(bytes);
        bytes.len()
    });
    assert_eq!(seen, b"last words");
    assert_eq!(pair.b.tcp.send(b, b"bye"), 3);
    pair.b.tcp.close(pair.now, b);
    pair.run(Duration::from_secs(5));
    assert_eq!(cause(pair.a.closed(a)), Some(Cause::Closed));
    assert_eq!(cause(pair.b.closed(b)), Some(Cause::Closed));
    assert_eq!(pair.a.tcp.connections().count() + pair.b.tcp.connections().count(), 0);
}

#[test]
fn abort_resets_the_peer() {
    for full in [false, true] {
        let (mut pair, a, b) = established();
        if full {
            // With data in flight that b has not seen yet.
            pair.a.tcp.send(a, &[0; 100_000]);
            pair.turn(&mut |_, _, _| {});
        }
        pair.a.tcp.abort(pair.now, a);
        pair.run(Duration::from_millis(10));
        assert_eq!(cause(pair.a.closed(a)), Some(Cause::Aborted));
        assert_eq!(cause(pair.b.closed(b)), Some(Cause::Reset));
    }
}

#[test]
fn closing_survives_loss() {
    for seed in 0..50 {
        let mut pair = Pair::new(&PairOptions { seed, ..PairOptions::default() });
        let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
        pair.faults(&Faults { drop: 0.2, ..Faults::default() });
        pair.a.tcp.send(a, &[0; 5000]);
        pair.a.tcp.close(pair.now, a);
        let mut act = |now, end: &mut crate::pair::End, is_a: bool| {
            if !is_a && end.has(&Event::PeerClosed(b)) {
                end.tcp.close(now, b);
            }
        };
        pair.run_with(Duration::from_secs(10), &mut act, |_| false);
        assert_eq!(cause(pair.a.closed(a)), Some(Cause::Closed), "seed {seed}");
        // The last acknowledgement may be lost: TIME-WAIT gives it again.
        assert_eq!(cause(pair.b.closed(b)), Some(Cause::Closed), "seed {seed}");
        assert_eq!(pair.b.tcp.stats().rx_bytes, 5000);
    }
}

#[test]
fn name_of_a_closed_connection_is_good_for_nothing() {
    let (mut pair, a, _) = established();
    pair.a.tcp.abort(pair.now, a);
    pair.run(Duration::from_millis(1));
    let again = pair.connect(&ConnOptions::default());
    assert_eq!((again.index, again.generation), (a.index, a.generation + 1));
    pair.run(Duration::from_millis(1));
    assert!(pair.a.has(&Event::Connected(again)));
    assert_eq!((pair.a.tcp.send(a, b"x"), pair.a.tcp.send_room(a)), (0, 0));
    assert_eq!(pair.a.tcp.recv(a, &mut |bytes| bytes.len()), 0);
    pair.a.tcp.abort(pair.now, a);
    pair.run(Duration::from_millis(1));
    assert_eq!(pair.a.closed(again), None);
}

#[test]
fn unroutable_is_said_at_once() {
    let mut pair = Pair::new(&PairOptions::default());
    let remote = "192.0.2.1:4420".parse().unwrap();
    let error = pair.a.tcp.connect(pair.now, remote, &ConnOptions::default()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
}
