//! Nodes that show that they are there, by an announcement or by an echo reply: whoever waits for
//! one waits no longer, and a storm costs little.

use std::time::Duration;

use moorline_stack::eth::{self, Arp, ArpOp, Header, ethertype};
use moorline_stack::link::LinkTx;
use moorline_stack::transport::{Cause, ConnOptions, ListenOptions};
use moorline_stack::{Event, Instant, Link, Transport};

use crate::pair::{Pair, PairOptions};

const B: eth::Mac = [2, 0, 0, 0, 0, 2];

fn ms(n: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(n)
}

/// `b` says to all that `ip` is at `mac`.
fn announce(pair: &mut Pair, ip: [u8; 4], mac: eth::Mac) {
    let arp = Arp {
        op: ArpOp::Request,
        sender_mac: mac,
        sender_ip: ip.into(),
        target_mac: [0; 6],
        target_ip: ip.into(),
    };
    pair.b.tcp.link_mut().tx().transmit(60, |frame| {
        frame.fill(0);
        Header { dst: eth::BROADCAST, src: mac, vlan: None, ethertype: ethertype::ARP }
            .write(frame);
        arp.write(&mut frame[eth::HEADER_LEN..]);
    });
}

fn blackhole(pair: &mut Pair, blackhole: bool) {
    pair.b.tcp.link_mut().faults_mut().blackhole = blackhole;
}

#[test]
fn a_syn_goes_out_again_when_its_node_announces_itself() {
    let mut pair = Pair::new(&PairOptions::default());
    pair.listen(&ListenOptions::default());
    blackhole(&mut pair, true);
    let a = pair.connect(&ConnOptions::default());
    pair.run(Duration::from_millis(60)); // SYN at 0 and 50 ms, and at 150 ms next
    blackhole(&mut pair, false);
    announce(&mut pair, [10, 0, 0, 2], B);
    pair.run(Duration::from_millis(1));
    let at = |event: Event| pair.a.events.iter().find(|(_, told)| *told == event).unwrap().0;
    let heard = ms(60) + Duration::from_micros(10);
    assert_eq!(at(Event::Reachable([10, 0, 0, 2].into())), heard);
    assert_eq!(at(Event::Connected(a)), heard + Duration::from_micros(20));
    assert_eq!(pair.a.tcp.stats().syns, 3);
}

#[test]
fn a_resolution_ends_when_its_node_announces_itself() {
    let mut pair = Pair::new(&PairOptions { resolve: true, ..PairOptions::default() });
    pair.listen(&ListenOptions::default());
    blackhole(&mut pair, true);
    pair.run(Duration::from_secs(5)); // b's own announcements are lost
    let start = pair.now;
    let a = pair.connect(&ConnOptions::default());
    pair.run(Duration::from_millis(110)); // asked at 0 and 100 ms, and at 200 ms next
    blackhole(&mut pair, false);
    announce(&mut pair, [10, 0, 0, 2], B);
    pair.run(Duration::from_millis(1));
    let (at, _) = pair.a.events.iter().find(|(_, told)| *told == Event::Connected(a)).unwrap();
    // Heard, asked for by b, answered: all within a few travel times.
    assert!(*at - start < Duration::from_millis(111), "{:?}", *at - start);
}

#[test]
fn a_storm_of_announcements_is_told_of_ten_times_a_second() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let told = |pair: &Pair| {
        pair.a.events.iter().filter(|(_, told)| matches!(told, Event::Reachable(_))).count()
    };
    for _ in 0..1000 {
        for n in 0..200 {
            announce(&mut pair, [10, 0, 0, 2 + n], B); // of which one is known
        }
        pair.turn(&mut |_, _, _| {});
        pair.now += Duration::from_millis(1);
    }
    assert!((10..=11).contains(&told(&pair)), "{}", told(&pair));
    let stats = pair.a.tcp.neighbours().stats();
    assert!(stats.announcements <= 11 && stats.repeated >= 900, "{stats:?}");
    assert_eq!(pair.a.closed(a), None);
}

#[test]
fn a_node_that_is_asked_answers_as_soon_as_it_is_found() {
    for v6 in [false, true] {
        for resolve in [false, true] {
            let mut pair = Pair::new(&PairOptions { v6, resolve, ..PairOptions::default() });
            let peer = pair.target(1).ip();
            pair.run(Duration::from_secs(5));
            pair.a.events.clear();
            assert!(pair.a.tcp.echo(pair.now, peer, Duration::from_millis(200)));
            let start = pair.now;
            pair.run(Duration::from_secs(1));
            let travel = if resolve { 40 } else { 20 };
            let told = (start + Duration::from_micros(travel), Event::Reachable(peer));
            assert_eq!(pair.a.events, [told], "{resolve}");
            blackhole(&mut pair, true);
            pair.a.tcp.echo(pair.now, peer, Duration::from_millis(200));
            pair.run(Duration::from_secs(1));
            assert_eq!(pair.a.events.len(), 1, "nobody answers");
            let figures = pair.a.tcp.echoes();
            assert_eq!((figures.sent, figures.answered, figures.stray), (2, 1, 0));
        }
    }
    let mut pair = Pair::new(&PairOptions::default());
    assert!(!pair.a.tcp.echo(pair.now, [192, 0, 2, 1].into(), Duration::from_millis(200)));
}

#[test]
fn a_node_that_comes_back_without_its_memory_ends_its_old_connections_at_once() {
    let mut pair = Pair::new(&PairOptions::default());
    let (a, b) = pair.established(&ListenOptions::default(), &ConnOptions::default());
    let frames = pair.a.tcp.stats().tx_frames;
    announce(&mut pair, [10, 0, 0, 2], B);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.a.tcp.stats().tx_frames, frames + 1, "one that knows us says nothing");
    // Its connection is gone, and nobody heard of that.
    blackhole(&mut pair, true);
    pair.a.tcp.link_mut().faults_mut().blackhole = true;
    pair.b.tcp.abort(pair.now, b);
    pair.run(Duration::from_secs(1));
    blackhole(&mut pair, false);
    pair.a.tcp.link_mut().faults_mut().blackhole = false;
    assert_eq!(pair.a.closed(a), None);
    announce(&mut pair, [10, 0, 0, 2], B);
    let start = pair.now;
    pair.run(Duration::from_millis(1));
    let (at, why) = pair.a.closed(a).unwrap();
    // Announcement, question, RST.
    assert_eq!((at, why.cause), (start + Duration::from_micros(30), Cause::Reset));
}
