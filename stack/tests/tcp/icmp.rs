//! ICMP errors: they end an attempt that they are about, nothing else, and blind ones do nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use moorline_stack::link::LinkTx;
use moorline_stack::tcp::IcmpErrors;
use moorline_stack::transport::{Cause, ConnOptions, IcmpError, ListenOptions, Stage};
use moorline_stack::{Link, Transport};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, checksum};

use crate::pair::{PORT, Pair, PairOptions};

/// The type, code and second word of an ICMP message.
type Kind = (u8, u8, u32);

const NO_ROUTE: [Kind; 2] = [(3, 1, 0), (1, 0, 0)];
const PORT_CLOSED: [Kind; 2] = [(3, 3, 0), (1, 4, 0)];
const PROHIBITED: [Kind; 2] = [(3, 13, 0), (1, 1, 0)];
const HOP_LIMIT: [Kind; 2] = [(11, 0, 0), (3, 0, 0)];
const TOO_BIG: [Kind; 2] = [(3, 4, 1400), (2, 0, 1400)];

fn ip(v6: bool, n: u8) -> IpAddr {
    match v6 {
        true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
        false => Ipv4Addr::new(10, 0, 0, n).into(),
    }
}

/// `b` sends `a` an error about the segment of port `port` that starts at `seq`.
fn send(pair: &mut Pair, v6: bool, (kind, code, word): Kind, port: u16, seq: u32) {
    let [a, b] = [1, 2].map(|n| IpAddress::from(ip(v6, n)));
    let icmp = if v6 { IpProtocol::Icmpv6 } else { IpProtocol::Icmp };
    let sums = ChecksumCapabilities::default();
    let quote = IpRepr::new(a, b, IpProtocol::Tcp, 20, 64);
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.resize(8 + quote.header_len(), 0);
    quote.emit(&mut message[8..], &sums);
    message.extend([port.to_be_bytes(), PORT.to_be_bytes()].concat());
    message.extend(seq.to_be_bytes());
    let ip = IpRepr::new(b, a, icmp, message.len(), 64);
    let pseudo = match v6 {
        true => checksum::pseudo_header(&b, &a, icmp, message.len() as u32),
        false => 0,
    };
    let sum = !checksum::combine(&[pseudo, checksum::data(&message)]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    frame.resize(14 + ip.header_len(), 0);
    ip.emit(&mut frame[14..], &sums);
    frame.extend(message);
    pair.b.tcp.link_mut().tx().transmit(frame.len(), |out| out.copy_from_slice(&frame));
}

/// The port of `a`'s only connection, and its next sequence number.
fn place(pair: &Pair) -> (u16, u32) {
    let conn = pair.a.tcp.connections().next().unwrap();
    (conn.local.port(), conn.sequence.0)
}

/// A pair whose `a` has sent a SYN that `b` swallows.
fn syn_sent(v6: bool) -> Pair {
    let mut pair = Pair::new(&PairOptions { v6, ..PairOptions::default() });
    pair.b.tcp.link_mut().faults_mut().blackhole = true;
    pair.connect(&ConnOptions::default());
    pair.run(Duration::from_millis(10));
    pair.b.tcp.link_mut().faults_mut().blackhole = false;
    pair
}

#[test]
fn an_error_about_our_syn_ends_the_attempt_with_its_cause() {
    let cases = [
        (NO_ROUTE, IcmpError::NoRoute),
        (PORT_CLOSED, IcmpError::Port),
        (PROHIBITED, IcmpError::Prohibited),
        (HOP_LIMIT, IcmpError::HopLimit),
    ];
    for (kinds, error) in cases {
        for v6 in [false, true] {
            let mut pair = syn_sent(v6);
            let a = pair.a.tcp.connections().next().unwrap().id;
            let (port, next) = place(&pair);
            send(&mut pair, v6, kinds[usize::from(v6)], port, next.wrapping_sub(1));
            pair.run(Duration::from_millis(1));
            let (at, why) = pair.a.closed(a).unwrap();
            assert_eq!(at.as_nanos(), 10_010_000);
            assert_eq!((why.cause, why.stage), (Cause::Icmp(error), Stage::SynSent));
            assert_eq!(pair.a.tcp.icmp_errors(), IcmpErrors { ended: 1, ..Default::default() });
        }
    }
}

#[test]
fn a_blind_error_about_a_syn_is_ignored() {
    for v6 in [false, true] {
        let mut pair = syn_sent(v6);
        let (port, next) = place(&pair);
        let kind = NO_ROUTE[usize::from(v6)];
        for off in [0, 2, 3, 1000, 1 << 31, u32::MAX] {
            send(&mut pair, v6, kind, port, next.wrapping_sub(off));
        }
        send(&mut pair, v6, kind, port ^ 1, next.wrapping_sub(1));
        pair.run(Duration::from_millis(1));
        assert_eq!(pair.a.tcp.connections().count(), 1);
        assert_eq!(pair.a.tcp.icmp_errors(), IcmpErrors { ignored: 7, ..Default::default() });
    }
}

#[test]
fn a_smaller_path_is_told_of_and_ends_no_attempt() {
    let mut pair = syn_sent(false);
    let a = pair.a.tcp.connections().next().unwrap().id;
    let (port, next) = place(&pair);
    send(&mut pair, false, TOO_BIG[0], port, next.wrapping_sub(1));
    pair.run(Duration::from_secs(2)); // nobody listens
    let (_, why) = pair.a.closed(a).unwrap();
    assert_eq!(why.cause, Cause::Reset);
    assert_eq!(why.hint, Some(IcmpError::TooBig { mtu: 1400 }));
}

#[test]
fn errors_about_an_established_connection_are_hints_and_end_nothing() {
    for v6 in [false, true] {
        let mut pair = Pair::new(&PairOptions { v6, ..PairOptions::default() });
        let (a, _) = pair.established(&ListenOptions::default(), &ConnOptions::default());
        let kind = PORT_CLOSED[usize::from(v6)];
        let (port, next) = place(&pair);
        send(&mut pair, v6, kind, port, next.wrapping_sub(1)); // nothing is on its way
        pair.run(Duration::from_millis(1));
        assert_eq!(pair.a.tcp.icmp_errors().ignored, 1);
        // 100 bytes that b does not hear of.
        pair.b.tcp.link_mut().faults_mut().blackhole = true;
        pair.a.tcp.send(a, &[1; 100]);
        pair.run(Duration::from_millis(1));
        pair.b.tcp.link_mut().faults_mut().blackhole = false;
        let (_, next) = place(&pair);
        for off in [100, 1] {
            send(&mut pair, v6, kind, port, next.wrapping_sub(off));
        }
        for off in [101, 0] {
            send(&mut pair, v6, kind, port, next.wrapping_sub(off));
        }
        pair.run(Duration::from_millis(1));
        assert_eq!(pair.a.tcp.icmp_errors(), IcmpErrors { hints: 2, ignored: 3, ended: 0 });
        let reports = pair.a.tcp.connections_from(0, 9);
        assert_eq!(reports[0].hint, Some(IcmpError::Port));
        assert_eq!(pair.a.closed(a), None);
        pair.b.tcp.link_mut().faults_mut().blackhole = true;
        pair.run(Duration::from_secs(4));
        let (_, why) = pair.a.closed(a).unwrap();
        assert_eq!((why.cause, why.hint), (Cause::AckTimeout, Some(IcmpError::Port)));
    }
}

#[test]
fn only_so_many_errors_are_looked_at_in_a_second() {
    let mut pair = syn_sent(false);
    let (port, next) = place(&pair);
    for _ in 0..10 {
        for _ in 0..200 {
            send(&mut pair, false, TOO_BIG[0], port, next.wrapping_sub(1));
        }
        pair.run(Duration::from_millis(1));
    }
    let errors = pair.a.tcp.icmp_errors();
    assert_eq!(errors.hints + errors.ignored, 2000);
    assert!((64..=64 + 10).contains(&errors.hints), "{errors:?}");
}
