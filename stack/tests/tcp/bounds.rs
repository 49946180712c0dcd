//! Each step is bounded, whatever waits: frames taken in, frames sent, deadlines honoured.

use std::time::Duration;

use moorline_stack::link::LinkTx;
use moorline_stack::link::sim::WireOptions;
use moorline_stack::tcp::RX_FRAMES_PER_TURN;
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Instant, Link, Transport};

use crate::pair::{End, Pair, PairOptions};

/// Frames that one connection may send in one flush, and deadlines that one turn may honour.
const FRAMES_PER_FLUSH: u32 = 64;
const DEADLINES_PER_TURN: usize = 1024;

/// A segment's payload: the MTU less the IPv4 and TCP headers.
const MSS: u32 = 1500 - 40;

/// `count` connections whose windows are open, as `a` knows them.
fn warm(count: usize, ring_frames: usize) -> (Pair, Vec<ConnId>) {
    let wire = WireOptions { ring_frames, ..WireOptions::default() };
    let mut pair = Pair::new(&PairOptions { wire, ..PairOptions::default() });
    pair.listen(&ListenOptions::default());
    let ids: Vec<_> = (0..count).map(|_| pair.connect(&ConnOptions::default())).collect();
    pair.run(Duration::from_millis(1));
    // A SYN-ACK's window is 64 KiB at most; the next acknowledgement tells of the rest.
    for &id in &ids {
        assert_eq!(pair.a.tcp.send(id, b"x"), 1);
    }
    pair.run_with(Duration::from_millis(1), &mut read_all, |_| false);
    assert!(pair.a.tcp.connections().all(|conn| conn.send_queue == 0));
    (pair, ids)
}

fn read_all(_: Instant, end: &mut End, _: bool) {
    let ids: Vec<_> = end.tcp.connections().map(|conn| conn.id).collect();
    for id in ids {
        end.tcp.recv(id, &mut |bytes| bytes.len());
    }
}

/// Full segments that each of `a`'s connections sends in one flush.
fn shares_of_a_flush(pair: &mut Pair) -> Vec<u32> {
    let seqs = |pair: &Pair| pair.a.tcp.connections().map(|conn| conn.sequence.0).collect();
    let (before, frames): (Vec<u32>, _) = (seqs(pair), pair.a.tcp.stats().tx_frames);
    pair.a.tcp.flush(pair.now);
    let after: Vec<u32> = seqs(pair);
    let bytes = before.iter().zip(after).map(|(&before, after)| after.wrapping_sub(before));
    let shares: Vec<_> = bytes.map(|bytes| bytes / MSS).collect();
    let sent = pair.a.tcp.stats().tx_frames - frames;
    assert_eq!(sent, u64::from(shares.iter().sum::<u32>()), "full segments and nothing else");
    shares
}

fn fill(pair: &mut Pair, ids: &[ConnId]) {
    let bytes = vec![7; 256 << 10];
    for &id in ids {
        assert_eq!(pair.a.tcp.send(id, &bytes), bytes.len());
    }
}

#[test]
fn a_flood_is_taken_in_by_256_frames_a_turn() {
    let (mut pair, ids) = warm(1, 256);
    let mut junk = [0; 64];
    junk[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    junk[12..14].copy_from_slice(&[0x88, 0xb5]);
    for _ in 0..6 {
        let link = pair.a.tcp.link_mut();
        for _ in 0..200 {
            link.tx().transmit(junk.len(), |frame| frame.copy_from_slice(&junk));
        }
        link.flush(pair.now).unwrap();
    }
    // Behind the flood comes somebody's data.
    pair.a.tcp.send(ids[0], b"hello");
    pair.a.tcp.flush(pair.now);
    pair.now += Duration::from_micros(10);
    let mut turns = Vec::new();
    while turns.iter().sum::<u64>() < 1201 {
        assert!(pair.b.tcp.poll_timeout().is_some_and(|at| at <= pair.now), "at once: more waits");
        let before = pair.b.tcp.stats().rx_frames;
        pair.b.tcp.turn(pair.now);
        pair.b.tcp.flush(pair.now);
        turns.push(pair.b.tcp.stats().rx_frames - before);
    }
    assert_eq!(RX_FRAMES_PER_TURN, 256);
    assert_eq!(turns, [256, 256, 256, 256, 177]);
    let b = pair.b.accepted().unwrap();
    assert_eq!(pair.b.tcp.recv(b, &mut |bytes| bytes.len()), 5);
}

#[test]
fn each_connection_sends_64_frames_a_flush_at_most() {
    let (mut pair, ids) = warm(3, 1024);
    fill(&mut pair, &ids);
    assert_eq!(shares_of_a_flush(&mut pair), [FRAMES_PER_FLUSH; 3]);
    assert!(pair.a.tcp.poll_timeout().is_some_and(|at| at <= pair.now), "at once: more to send");
    assert_eq!(shares_of_a_flush(&mut pair), [FRAMES_PER_FLUSH; 3]);
}

#[test]
fn a_full_link_goes_round_and_nobody_is_left_out_twice() {
    // Room for 224 frames a flush: 256 less the 32 kept for answers.
    let (mut pair, ids) = warm(5, 256);
    fill(&mut pair, &ids);
    assert_eq!(shares_of_a_flush(&mut pair), [64, 64, 64, 32, 0]);
    // It goes on with the one that the full link cut short.
    assert_eq!(shares_of_a_flush(&mut pair), [64, 32, 0, 64, 64]);
}

#[test]
fn deadlines_due_at_once_are_honoured_by_1024_a_turn() {
    let mut pair = Pair::new(&PairOptions::default());
    pair.b.tcp.link_mut().faults_mut().blackhole = true;
    let connect_timeout = Duration::from_millis(10);
    let small =
        ConnOptions { connect_timeout, rx_buffer: 4096, tx_buffer: 4096, ..ConnOptions::default() };
    for _ in 0..3000 {
        pair.connect(&small);
    }
    pair.run(connect_timeout - Duration::from_nanos(1));
    assert!(pair.a.events.is_empty());
    pair.now += Duration::from_nanos(1);
    let mut turns = Vec::new();
    while turns.iter().sum::<usize>() < 3000 {
        assert!(pair.a.tcp.poll_timeout().is_some_and(|at| at <= pair.now), "at once: more is due");
        pair.a.tcp.turn(pair.now);
        let ended = std::iter::from_fn(|| pair.a.tcp.poll_event()).map(|event| match event {
            Event::Closed(_, why) => assert_eq!(why.cause, Cause::ConnectTimeout),
            other => panic!("{other:?}"),
        });
        turns.push(ended.count());
    }
    assert_eq!(turns, [DEADLINES_PER_TURN, DEADLINES_PER_TURN, 3000 - 2 * DEADLINES_PER_TURN]);
}
