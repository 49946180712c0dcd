//! Bytes arrive whole and in order, whatever the wire does to frames.

use std::time::Duration;

use moorline_stack::link::fault::Faults;
use moorline_stack::link::sim::WireOptions;
use moorline_stack::rng::Rng;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Event, Instant, Transport};

use crate::pair::{Pair, PairOptions};

/// Byte `n` of the stream.
fn pattern(n: u64) -> u8 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Sends `bytes` from `a` to an echo at `b` and checks what comes back; returns the pair and when
/// it was done.
fn echo(bytes: u64, options: &PairOptions, faults: &Faults) -> (Pair, Instant) {
    let mut pair = Pair::new(options);
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.faults(faults);
    let (mut sent, mut received) = (0, 0);
    let mut chunk = vec![0; 64 << 10];
    let mut act = |_: Instant, end: &mut crate::pair::End, is_a: bool| {
        if !is_a {
            return end.echo();
        }
        let want = (bytes - sent).min(chunk.len() as u64) as usize;
        chunk.iter_mut().zip(sent..).for_each(|(byte, n)| *byte = pattern(n));
        sent += end.tcp.send(a, &chunk[..want]) as u64;
        end.tcp.recv(a, &mut |shown| {
            shown.iter().zip(received..).for_each(|(&byte, n)| assert_eq!(byte, pattern(n)));
            received += shown.len() as u64;
            shown.len()
        });
    };
    let done = pair.run_with(Duration::from_secs(300), &mut act, |pair| {
        pair.a.tcp.stats().rx_bytes >= bytes || pair.a.closed(a).is_some()
    });
    assert!(done, "stuck at {received} of {bytes}: {:?}", pair.a.tcp.connections().next());
    assert_eq!(pair.a.closed(a), None);
    let at = pair.now;
    (pair, at)
}

fn mtu(mtu: usize) -> PairOptions {
    PairOptions { wire: WireOptions { mtu, ..WireOptions::default() }, ..PairOptions::default() }
}

const MIB: u64 = 1 << 20;

#[test]
fn echo_of_a_clean_wire_has_no_retransmission() {
    for size in [1500, 3506, 9000] {
        for v6 in [false, true] {
            for vlan in [None, Some(7)] {
                let options = PairOptions { v6, vlan, ..mtu(size) };
                let (pair, _) = echo(10 * MIB, &options, &Faults::default());
                let (a, b) = (pair.a.tcp.stats(), pair.b.tcp.stats());
                assert_eq!((a.retransmits, b.retransmits), (0, 0));
                assert_eq!((a.tx_bytes, b.tx_bytes), (10 * MIB, 10 * MIB));
                assert_eq!((a.copied_in_bytes, a.copied_out_bytes), (10 * MIB, 10 * MIB));
                assert_eq!(pair.a.tcp.drops().malformed + pair.b.tcp.drops().malformed, 0);
            }
        }
    }
}

#[test]
fn echo_survives_loss() {
    for drop in [0.001, 0.01, 0.05] {
        let (pair, _) = echo(10 * MIB, &mtu(1500), &Faults { drop, ..Faults::default() });
        assert!(pair.a.tcp.stats().retransmits > 0);
    }
}

#[test]
fn echo_survives_what_else_a_wire_does() {
    let by = Duration::from_micros(30);
    let faults = [
        Faults { duplicate: 0.01, ..Faults::default() },
        Faults { reorder: 0.01, reorder_by: by, ..Faults::default() },
        Faults { corrupt: 0.01, ..Faults::default() },
        Faults { delay: 0.01, delay_by: by * 10, ..Faults::default() },
        Faults {
            drop: 0.01,
            duplicate: 0.01,
            reorder: 0.01,
            reorder_by: by,
            corrupt: 0.01,
            ..Faults::default()
        },
    ];
    for faults in faults {
        for v6 in [false, true] {
            echo(4 * MIB, &PairOptions { v6, ..mtu(1500) }, &faults);
        }
        echo(4 * MIB, &PairOptions { seed: 2, ..mtu(9000) }, &faults);
    }
}

#[test]
fn same_seed_gives_the_same_run() {
    let faults = Faults { drop: 0.01, reorder: 0.01, ..Faults::default() };
    let run = |seed| {
        let (pair, at) = echo(MIB, &PairOptions { seed, ..mtu(1500) }, &faults);
        (pair.a.tcp.stats(), pair.b.tcp.stats(), at)
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn neighbours_are_found_by_asking() {
    for v6 in [false, true] {
        let options = PairOptions { resolve: true, v6, ..mtu(1500) };
        let (pair, _) = echo(MIB, &options, &Faults::default());
        assert!(pair.a.events.iter().any(|(_, event)| matches!(event, Event::Connected(_))));
    }
}

#[test]
fn no_mixture_of_faults_stops_a_stream() {
    // Found here: two ends with full windows that wait for each other, and two ends whose
    // retransmissions drop each other's acknowledgements.
    let seeds = std::env::var("MOORLINE_SEEDS").map_or(20, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let mut rate = || if rng.chance(0.5) { rng.below(60) as f64 / 1000.0 } else { 0.0 };
        let faults = Faults {
            drop: rate(),
            corrupt: rate(),
            duplicate: rate(),
            reorder: rate(),
            reorder_by: Duration::from_micros(rng.below(200)),
            ..Faults::default()
        };
        let size = [1500, 3506, 9000][rng.below(3) as usize];
        echo(MIB, &PairOptions { seed, v6: rng.chance(0.5), ..mtu(size) }, &faults);
    }
}
