//! Acknowledgements wait for company, and never make a peer wait.

use std::time::Duration;

use moorline_stack::link::fault::Faults;
use moorline_stack::link::sim::WireOptions;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Instant, Transport};

use crate::pair::{End, Pair, PairOptions};

const REQUEST: usize = 72;
const RESPONSE: usize = 24 + 4096;

/// `a` asks for 72 bytes, `b` answers with 4 KiB, one at a time. Returns the time of each.
fn requests(pair: &mut Pair, count: usize) -> Vec<Duration> {
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.run(Duration::from_millis(1));
    requests_on(pair, a, b, count)
}

fn requests_on(
    pair: &mut Pair,
    a: moorline_stack::ConnId,
    b: moorline_stack::ConnId,
    count: usize,
) -> Vec<Duration> {
    let mut times = Vec::new();
    let (mut asked_at, mut want, mut heard) = (None::<Instant>, 0, 0);
    let mut act = |now: Instant, end: &mut End, is_a: bool| {
        if !is_a {
            heard += end.tcp.recv(b, &mut |bytes| bytes.len());
            while heard >= REQUEST {
                heard -= REQUEST;
                assert_eq!(end.tcp.send(b, &[2; RESPONSE]), RESPONSE);
            }
            return;
        }
        want -= end.tcp.recv(a, &mut |bytes| bytes.len());
        if want == 0 {
            times.extend(asked_at.map(|at| now - at));
            asked_at = Some(now);
            want = RESPONSE;
            assert_eq!(end.tcp.send(a, &[1; REQUEST]), REQUEST);
        }
    };
    let responses = pair.a.tcp.stats().rx_bytes + (RESPONSE * count) as u64;
    let done = |pair: &Pair| pair.a.tcp.stats().rx_bytes >= responses;
    assert!(pair.run_with(Duration::from_secs(1000), &mut act, done));
    times
}

#[test]
fn request_and_response_carry_each_others_acknowledgements() {
    let mut pair = Pair::new(&PairOptions::default());
    requests(&mut pair, 1000);
    // Three segments a response, one a request; SYN and ACK before.
    let (a, b) = (pair.a.tcp.stats().tx_frames, pair.b.tcp.stats().tx_frames);
    assert!((1000..1100).contains(&a), "{a}");
    assert!((3000..3100).contains(&b), "{b}");
}

#[test]
fn in_order_data_is_acknowledged_within_100_us() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.run(Duration::from_millis(1));
    pair.a.tcp.send(a, &[0; 5000]);
    let start = pair.now;
    let done = |pair: &Pair| pair.a.tcp.connections().next().unwrap().send_queue == 0;
    assert!(pair.run_with(Duration::from_secs(1), &mut |_, _, _| {}, done));
    // 10 µs there, 100 µs, 10 µs back.
    assert_eq!(pair.now - start, Duration::from_micros(120));
}

#[test]
fn ack_sends_at_once() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.run(Duration::from_millis(1));
    pair.a.tcp.send(a, &[0; 5000]);
    let start = pair.now;
    let mut act = |_: Instant, end: &mut End, is_a: bool| {
        if !is_a {
            end.tcp.ack(b);
        }
    };
    let done = |pair: &Pair| pair.a.tcp.connections().next().unwrap().send_queue == 0;
    assert!(pair.run_with(Duration::from_secs(1), &mut act, done));
    assert_eq!(pair.now - start, Duration::from_micros(20));
    let frames = pair.b.tcp.stats().tx_frames;
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.b.tcp.stats().tx_frames, frames, "and only once");
}

#[test]
fn bulk_is_acknowledged_every_64_kib() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let chunk = vec![0; 64 << 10];
    let mut act = |_: Instant, end: &mut End, is_a: bool| match is_a {
        true => drop(end.tcp.send(a, &chunk)),
        false => drop(end.tcp.recv(b, &mut |bytes| bytes.len())),
    };
    let before = pair.b.tcp.stats().tx_frames;
    let bytes = 16 << 20;
    let done = |pair: &Pair| pair.b.tcp.stats().rx_bytes >= bytes;
    assert!(pair.run_with(Duration::from_secs(10), &mut act, done));
    let acks = pair.b.tcp.stats().tx_frames - before;
    assert!(acks <= bytes / (64 << 10) + 10, "{acks}");
}

#[test]
fn lost_segments_are_repeated_within_an_rto() {
    // As in the table of measured facts: RTT 100 µs, clock factor 100.
    let delay = Duration::from_micros(50);
    let wire = WireOptions { delay, ..WireOptions::default() };
    for (drop, p99, p999) in [(0.001, 200, 11_000), (0.01, 11_000, 35_000)] {
        let mut pair = Pair::new(&PairOptions { wire: wire.clone(), ..PairOptions::default() });
        let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
        pair.faults(&Faults { drop, ..Faults::default() });
        let mut times = requests_on(&mut pair, a, b, 20_000);
        times.sort();
        let at = |p: usize| times[times.len() * p / 1000].as_micros();
        assert!(at(500) <= 110, "{}", at(500));
        assert!(at(990) <= p99 && at(999) <= p999, "{drop}: {} {}", at(990), at(999));
    }
}
