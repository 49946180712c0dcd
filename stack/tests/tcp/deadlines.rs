//! Each wait ends when it should, to the nanosecond of the virtual clock.

use std::time::Duration;

use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{Event, Instant, Link, LinkTx, Transport};

use crate::pair::{End, Pair, PairOptions};

/// Runs for `limit` with nothing to do, and tells when `a` sent frames, once for each.
fn sent_by_a(pair: &mut Pair, limit: Duration) -> Vec<Instant> {
    let mut frames = pair.a.tcp.stats().tx_frames;
    let mut times = Vec::new();
    pair.run_with(limit, &mut |_, _, _| {}, |pair| {
        let now = pair.a.tcp.stats().tx_frames;
        times.extend((frames..now).map(|_| pair.now));
        frames = now;
        false
    });
    times
}

fn blackhole_b(pair: &mut Pair) {
    pair.b.tcp.link_mut().faults_mut().blackhole = true;
}

#[test]
fn a_dead_peer_gets_one_segment_per_timeout() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    // The window in a SYN is not scaled: the next segment shows all of it.
    pair.a.tcp.send(a, b"x");
    pair.run(Duration::from_millis(10));
    blackhole_b(&mut pair);
    let start = pair.now;
    let window = vec![0; 256 << 10];
    assert_eq!(pair.a.tcp.send(a, &window), window.len());
    let times = sent_by_a(&mut pair, Duration::from_millis(2900));
    // All of the window once, then by RTO: 10 ms doubled, 600 ms at most.
    let burst = times.iter().filter(|&&at| at == start).count();
    let late: Vec<_> = times[burst..].iter().map(|&at| (at - start).as_millis()).collect();
    assert_eq!(burst, window.len().div_ceil(1460));
    assert_eq!(late, [10, 30, 70, 150, 310, 630, 1230, 1830, 2430]);
}

#[test]
fn recovery_goes_on_at_once_when_the_peer_is_back() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    blackhole_b(&mut pair);
    let bytes = 200 << 10;
    assert_eq!(pair.a.tcp.send(a, &vec![0; bytes]), bytes);
    pair.run(Duration::from_millis(100));
    pair.b.tcp.link_mut().faults_mut().blackhole = false;
    let back = pair.now;
    let mut read = |_: Instant, end: &mut End, is_a: bool| {
        if !is_a {
            let id = end.accepted().unwrap();
            end.tcp.recv(id, &mut |bytes| bytes.len());
        }
    };
    let done = |pair: &Pair| pair.b.tcp.stats().rx_bytes == bytes as u64;
    assert!(pair.run_with(Duration::from_secs(1), &mut read, done));
    assert!(pair.now - back < Duration::from_millis(60), "{:?}", pair.now - back);
}

#[test]
fn idle_connection_lives_without_a_frame() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.run(Duration::from_millis(10));
    let frames = (pair.a.tcp.stats().tx_frames, pair.b.tcp.stats().tx_frames);
    pair.run(Duration::from_secs(30 * 86_400));
    assert_eq!((pair.a.tcp.stats().tx_frames, pair.b.tcp.stats().tx_frames), frames);
    assert_eq!((pair.a.closed(a), pair.b.closed(b)), (None, None));
    assert_eq!(pair.next(), None);
    pair.a.tcp.send(a, b"still there?");
    pair.run(Duration::from_millis(1));
    assert!(pair.b.has(&Event::Readable(b)));
}

#[test]
fn closed_window_is_probed_and_opens_again() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let total = 600 << 10;
    let (mut sent, mut received) = (0, 0);
    let chunk = vec![7; 64 << 10];
    let open = pair.now + Duration::from_secs(60);
    let mut act = |now: Instant, end: &mut End, is_a: bool| {
        if is_a {
            sent += end.tcp.send(a, &chunk[..chunk.len().min(total - sent)]);
        } else if now >= open {
            received += end.tcp.recv(b, &mut |bytes| bytes.len());
        }
    };
    pair.run_with(Duration::from_secs(60), &mut act, |_| false);
    assert_eq!(pair.a.closed(a), None, "a peer that answers probes is alive");
    pair.run_with(Duration::from_secs(5), &mut act, |_| false);
    assert_eq!((sent, received), (total, total));
}

#[test]
fn peer_that_dies_with_its_window_closed_is_noticed() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let chunk = vec![7; 64 << 10];
    let mut act = |_: Instant, end: &mut End, is_a: bool| {
        if is_a {
            end.tcp.send(a, &chunk);
        }
    };
    pair.run_with(Duration::from_secs(20), &mut act, |_| false);
    blackhole_b(&mut pair);
    let silent = pair.now;
    pair.run_with(Duration::from_secs(20), &mut act, |_| false);
    let (at, why) = pair.a.closed(a).unwrap();
    assert_eq!(why.cause, Cause::AckTimeout);
    assert!(at - silent <= Duration::from_millis(3_600), "{:?}", at - silent);
}

#[test]
fn ten_thousand_connections_time_out_each_at_its_instant() {
    let mut pair = Pair::new(&PairOptions::default());
    blackhole_b(&mut pair);
    let mut wanted = Vec::new();
    for n in 0..10_000u64 {
        let connect_timeout = Duration::from_nanos(1_000_003 + n * 7_919 % 400_000_000);
        let small = ConnOptions {
            connect_timeout,
            rx_buffer: 4096,
            tx_buffer: 4096,
            ..ConnOptions::default()
        };
        wanted.push((pair.connect(&small), Instant::ZERO + connect_timeout));
    }
    pair.run(Duration::from_secs(2));
    let mut seen: Vec<_> = pair
        .a
        .events
        .iter()
        .map(|(at, event)| match event {
            Event::Closed(id, why) if why.cause == Cause::ConnectTimeout => (*id, *at),
            other => panic!("{other:?}"),
        })
        .collect();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
}

#[test]
fn deadline_waits_for_more_frames_than_a_turn_takes() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    pair.a.tcp.send(a, &[1; 100]);
    let mut none = |_: Instant, _: &mut End, _: bool| {};
    pair.turn(&mut none);
    pair.now += Duration::from_micros(20);
    pair.b.tcp.turn(pair.now);
    let b = pair.b.accepted().unwrap();
    for _ in 0..4 {
        let link = pair.b.tcp.link_mut();
        for _ in 0..200 {
            link.tx().transmit(60, |frame| frame.fill(0));
        }
        link.flush(pair.now).unwrap();
    }
    pair.b.tcp.ack(b);
    pair.b.tcp.flush(pair.now);
    pair.now += Duration::from_secs(100);
    for caught_up in [false, false, false, true] {
        pair.turn(&mut none);
        assert_eq!(pair.a.tcp.is_caught_up(), caught_up);
    }
    assert_eq!(pair.a.closed(a), None);
}
