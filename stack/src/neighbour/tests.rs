use proptest::prelude::*;

use super::*;
use crate::eth::{self, Frame, Packet};

const US: Mac = [2, 0, 0, 0, 0, 1];
const PEER: Mac = [2, 0, 0, 0, 0, 2];
const OTHER: Mac = [2, 0, 0, 0, 0, 3];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(1) + Duration::from_millis(ms)
}

/// A machine with `10.0.0.<n>` and `fd00::<n>`, ready and announced.
fn machine(n: u8, options: NeighbourOptions) -> Neighbours {
    let mut machine = Neighbours::new([2, 0, 0, 0, 0, n], options);
    for text in [format!("10.0.0.{n}"), format!("fd00::{n}")] {
        machine.add_address(at(0), ip(&text), false);
    }
    // The announcements are not what these tests are about.
    for own in &mut machine.own {
        own.state = OwnState::Ready;
    }
    machine.rearm();
    machine.out.clear();
    machine.events.clear();
    machine
}

fn us() -> Neighbours {
    machine(1, NeighbourOptions::default())
}

/// Frames that a machine wants sent.
fn sent(machine: &mut Neighbours) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut packet = [0; PACKET_LEN_MAX];
    while let Some(Outgoing { dst, ethertype, len }) = machine.poll_transmit(&mut packet) {
        let mut frame = vec![0; eth::HEADER_LEN];
        eth::Header { dst, src: machine.mac, vlan: None, ethertype }.write(&mut frame);
        frame.extend(&packet[..len]);
        frames.push(frame);
    }
    frames
}

fn input(machine: &mut Neighbours, now: Instant, frame: &[u8]) {
    let frame = Frame::parse(frame).unwrap();
    match frame.packet {
        Packet::Arp(arp) => machine.arp_input(now, &arp),
        Packet::Icmp(datagram) => assert!(machine.ndisc_input(now, frame.src, &datagram)),
        other => panic!("{other:?}"),
    }
}

fn events(machine: &mut Neighbours) -> Vec<NeighbourEvent> {
    std::iter::from_fn(|| machine.poll_event()).collect()
}

fn arp(op: ArpOp, mac: Mac, sender: &str, target: &str) -> Arp {
    let v4 = |text: &str| text.parse().unwrap();
    Arp { op, sender_mac: mac, sender_ip: v4(sender), target_mac: [0; 6], target_ip: v4(target) }
}

/// Lets time pass until `until`, and returns when packets were wanted, with their receivers.
fn pass(machine: &mut Neighbours, until: Instant) -> Vec<(Instant, Mac)> {
    let mut seen = Vec::new();
    while let Some(next) = machine.poll_timeout().filter(|&next| next <= until) {
        machine.handle_timeout(next);
        seen.extend(sent(machine).iter().map(|frame| (next, Frame::parse(frame).unwrap().dst)));
    }
    seen
}

#[test]
fn three_tries_then_failure_at_300_ms() {
    for (text, group) in
        [("10.0.0.2", eth::BROADCAST), ("fd00::12:3456", [0x33, 0x33, 0xff, 0x12, 0x34, 0x56])]
    {
        let mut us = us();
        let peer = ip(text);
        assert_eq!(us.resolve(at(0), peer), Resolution::Pending);
        assert_eq!(us.resolve(at(0), peer), Resolution::Pending, "waiters share one resolution");
        assert_eq!(sent(&mut us).len(), 1);
        assert_eq!(pass(&mut us, at(299)), [(at(100), group), (at(200), group)]);
        assert!(events(&mut us).is_empty());
        assert_eq!(pass(&mut us, at(300)), []);
        assert_eq!(events(&mut us), [NeighbourEvent::Failed(peer)]);
        assert_eq!(us.resolve(at(300), peer), Resolution::Pending, "and again, without a gap");
        assert_eq!(us.stats().failures, 1);
    }
}

#[test]
fn two_machines_find_each_other() {
    for (ours, theirs) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let (mut us, mut peer) = (us(), machine(2, NeighbourOptions::default()));
        assert_eq!(us.resolve(at(0), ip(theirs)), Resolution::Pending);
        sent(&mut us).iter().for_each(|frame| input(&mut peer, at(0), frame));
        assert_eq!(peer.resolve(at(0), ip(ours)), Resolution::Resolved(US), "learned from asking");
        let replies = sent(&mut peer);
        assert_eq!(replies.len(), 1);
        assert_eq!(Frame::parse(&replies[0]).unwrap().dst, US);
        input(&mut us, at(1), &replies[0]);
        assert_eq!(events(&mut us), [NeighbourEvent::Resolved(ip(theirs), PEER)]);
        assert_eq!(us.resolve(at(1), ip(theirs)), Resolution::Resolved(PEER));
        assert_eq!((us.stats().requests, peer.stats().replies), (1, 1));
    }
}

fn resolved(machine: &mut Neighbours, now: Instant) {
    machine.resolve(now, ip("10.0.0.2"));
    machine.arp_input(now, &arp(ArpOp::Reply, PEER, "10.0.0.2", "10.0.0.1"));
    machine.out.clear();
    machine.events.clear();
}

#[test]
fn neighbour_in_use_is_asked_again_in_the_background() {
    let mut us = us();
    resolved(&mut us, at(0));
    assert_eq!(us.poll_timeout(), Some(at(60_000)));
    us.resolve(at(59_000), ip("10.0.0.2"));
    let asked = pass(&mut us, at(60_100));
    assert_eq!(asked, [(at(60_000), PEER), (at(60_100), eth::BROADCAST)]);
    assert_eq!(us.resolve(at(60_100), ip("10.0.0.2")), Resolution::Resolved(PEER));
    us.arp_input(at(60_150), &arp(ArpOp::Reply, OTHER, "10.0.0.2", "10.0.0.1"));
    assert_eq!(events(&mut us), [NeighbourEvent::Resolved(ip("10.0.0.2"), OTHER)], "it moved");
    assert_eq!(us.resolve(at(60_150), ip("10.0.0.2")), Resolution::Resolved(OTHER));
}

#[test]
fn neighbour_in_use_that_no_longer_answers_fails() {
    let mut us = us();
    resolved(&mut us, at(0));
    assert_eq!(pass(&mut us, at(60_300)).len(), 3);
    assert_eq!(events(&mut us), [NeighbourEvent::Failed(ip("10.0.0.2"))]);
}

#[test]
fn idle_neighbour_is_asked_before_its_next_use() {
    let mut us = us();
    us.arp_input(at(0), &arp(ArpOp::Request, PEER, "10.0.0.2", "10.0.0.1"));
    sent(&mut us);
    assert_eq!(pass(&mut us, at(100_000)), [], "nobody asks for it");
    assert_eq!(us.resolve(at(100_000), ip("10.0.0.2")), Resolution::Pending);
    let first = sent(&mut us);
    assert_eq!(Frame::parse(&first[0]).unwrap().dst, PEER, "where it was");
    assert_eq!(pass(&mut us, at(100_100)), [(at(100_100), eth::BROADCAST)]);
}

#[test]
fn static_neighbour_is_never_asked_and_never_changed() {
    let mut us = us();
    us.add_static(ip("10.0.0.2"), PEER);
    us.arp_input(at(0), &arp(ArpOp::Reply, OTHER, "10.0.0.2", "10.0.0.1"));
    assert_eq!(us.resolve(at(1_000_000), ip("10.0.0.2")), Resolution::Resolved(PEER));
    assert!(!us.wants_transmit());
}

#[test]
fn table_is_bounded_and_gives_up_the_idle_first() {
    let mut us = machine(1, NeighbourOptions { table_max: 4, ..NeighbourOptions::default() });
    for n in 10..30 {
        let sender = format!("10.0.0.{n}");
        us.arp_input(at(n), &arp(ArpOp::Request, PEER, &sender, "10.0.0.1"));
    }
    assert_eq!(us.table.len(), 4);
    for n in 50..54 {
        assert_eq!(us.resolve(at(100), ip(&format!("10.0.0.{n}"))), Resolution::Pending);
    }
    assert_eq!(us.resolve(at(100), ip("10.0.0.60")), Resolution::Failed, "all are busy");
    assert_eq!(us.stats().table_full, 1);
    pass(&mut us, at(400));
    assert_eq!(us.resolve(at(400), ip("10.0.0.60")), Resolution::Pending, "failed ones give way");
}

#[test]
fn address_is_probed_then_announced() {
    for (text, group) in [("10.0.0.9", eth::BROADCAST), ("fd00::9", [0x33, 0x33, 0xff, 0, 0, 9])] {
        let mut us = Neighbours::new(US, NeighbourOptions::default());
        us.add_address(at(0), ip(text), true);
        assert!(!us.is_ready(ip(text)));
        assert_eq!(us.resolve(at(0), ip(text.replace('9', "2").as_str())), Resolution::Pending);
        assert_eq!(sent(&mut us).len(), 1, "the probe; the resolution waits for the address");
        assert_eq!(pass(&mut us, at(149)), [(at(50), group), (at(100), group)]);
        assert_eq!(pass(&mut us, at(150)).len(), 2, "the resolution, and an announcement");
        assert_eq!(events(&mut us), [NeighbourEvent::AddressReady(ip(text))]);
        pass(&mut us, at(1000));
        let all = multicast(text);
        assert_eq!(pass(&mut us, at(100_000)), [(at(1150), all), (at(2150), all)]);
    }
}

fn multicast(text: &str) -> Mac {
    if ip(text).is_ipv4() { eth::BROADCAST } else { [0x33, 0x33, 0, 0, 0, 1] }
}

#[test]
fn address_that_is_taken_is_not_used() {
    for text in ["10.0.0.2", "fd00::2"] {
        let mut us = Neighbours::new(US, NeighbourOptions::default());
        let mut owner = machine(2, NeighbourOptions::default());
        us.add_address(at(0), ip(text), true);
        assert_eq!(
            us.resolve(at(0), ip("10.0.0.7")),
            match text {
                "10.0.0.2" => Resolution::Pending,
                _ => Resolution::Failed,
            }
        );
        sent(&mut us).iter().for_each(|frame| input(&mut owner, at(0), frame));
        sent(&mut owner).iter().for_each(|frame| input(&mut us, at(1), frame));
        let conflict = NeighbourEvent::AddressConflict(ip(text), PEER);
        assert!(events(&mut us).contains(&conflict));
        assert!(!us.is_ready(ip(text)));
        assert_eq!(us.poll_timeout(), None, "nothing is left to do");
        us.arp_input(at(2), &arp(ArpOp::Request, OTHER, "10.0.0.3", "10.0.0.2"));
        assert!(!us.wants_transmit(), "it is not ours to answer for");
    }
}

#[test]
fn two_probes_for_one_address_meet() {
    for text in ["10.0.0.9", "fd00::9"] {
        let mut a = Neighbours::new(US, NeighbourOptions::default());
        let mut b = Neighbours::new(PEER, NeighbourOptions::default());
        a.add_address(at(0), ip(text), true);
        b.add_address(at(0), ip(text), true);
        sent(&mut a).iter().for_each(|frame| input(&mut b, at(0), frame));
        assert_eq!(events(&mut b), [NeighbourEvent::AddressConflict(ip(text), US)]);
    }
}

#[test]
fn address_in_use_is_defended_every_ten_seconds() {
    let mut us = us();
    for (ms, announced) in [(0, 1), (5_000, 0), (10_000, 1)] {
        us.arp_input(at(ms), &arp(ArpOp::Reply, OTHER, "10.0.0.1", "10.0.0.2"));
        assert_eq!(sent(&mut us).len(), announced);
        assert_eq!(events(&mut us).len(), announced);
        assert!(us.is_ready(ip("10.0.0.1")));
    }
}

/// What a node says when it has just come, in each form there is.
fn announcements(mac: Mac) -> Vec<(IpAddr, Vec<u8>)> {
    let (v4, v6) = (ip("10.0.0.2"), ip("fd00::2"));
    let mut node = machine(2, NeighbourOptions::default());
    node.mac = mac;
    node.send(Out::Announce { ip: v4 });
    node.send(Out::Announce { ip: v6 });
    let [request, advertisement] = <[_; 2]>::try_from(sent(&mut node)).unwrap();
    let mut reply = request.clone();
    reply[eth::HEADER_LEN + 7] = 2;
    vec![(v4, request), (v4, reply), (v6, advertisement)]
}

#[test]
fn a_neighbour_that_failed_is_found_when_it_announces_itself() {
    for (peer, frame) in announcements(PEER) {
        let mut us = us();
        us.resolve(at(0), peer);
        pass(&mut us, at(300));
        assert_eq!(events(&mut us), [NeighbourEvent::Failed(peer)]);
        input(&mut us, at(5000), &frame);
        let told = [NeighbourEvent::Resolved(peer, PEER), NeighbourEvent::Announced(peer)];
        assert_eq!(events(&mut us), told);
        assert_eq!(us.resolve(at(5000), peer), Resolution::Resolved(PEER));
        assert_eq!(sent(&mut us).len(), 0);
    }
}

#[test]
fn a_resolution_under_way_ends_with_an_announcement() {
    for (peer, frame) in announcements(PEER) {
        let mut us = us();
        assert_eq!(us.resolve(at(0), peer), Resolution::Pending);
        input(&mut us, at(10), &frame);
        let told = [NeighbourEvent::Resolved(peer, PEER), NeighbourEvent::Announced(peer)];
        assert_eq!(events(&mut us), told);
        sent(&mut us);
        assert_eq!(pass(&mut us, at(1000)), [], "and nobody asks any more");
    }
}

#[test]
fn announcements_of_nodes_that_nobody_asked_for_add_nobody() {
    for (_, frame) in announcements(PEER) {
        let mut us = us();
        input(&mut us, at(0), &frame);
        assert_eq!((us.table.len(), events(&mut us)), (0, Vec::new()));
        assert_eq!(us.stats().announcements, 0);
    }
}

#[test]
fn a_storm_of_announcements_is_heard_ten_times_a_second() {
    let (mut us, peer) = (us(), ip("10.0.0.2"));
    us.resolve(at(0), peer);
    for ms in 0..1000 {
        // Two nodes claim the address in turn.
        let (_, frame) = &announcements(if ms % 2 == 0 { PEER } else { OTHER })[0];
        input(&mut us, at(ms), frame);
    }
    let events = events(&mut us);
    let announced = events.iter().filter(|&&e| e == NeighbourEvent::Announced(peer)).count();
    assert_eq!((announced, events.len()), (10, 11), "{events:?}");
    assert_eq!((us.stats().announcements, us.stats().repeated), (10, 990));
}

#[test]
fn a_static_neighbour_is_told_of_and_not_changed_by_an_announcement() {
    let (mut us, peer) = (us(), ip("10.0.0.2"));
    us.add_static(peer, PEER);
    input(&mut us, at(0), &announcements(OTHER)[0].1);
    assert_eq!(events(&mut us), [NeighbourEvent::Announced(peer)]);
    assert_eq!(us.resolve(at(0), peer), Resolution::Resolved(PEER));
}

#[test]
fn advertisement_without_override_changes_nothing_known() {
    let (mut us, mut peer) = (us(), machine(2, NeighbourOptions::default()));
    us.resolve(at(0), ip("fd00::2"));
    sent(&mut us).iter().for_each(|frame| input(&mut peer, at(0), frame));
    let reply = sent(&mut peer).remove(0);
    input(&mut us, at(0), &reply);
    let forged = advertisement(OTHER, 0x40);
    input(&mut us, at(1), &forged);
    assert_eq!(us.resolve(at(1), ip("fd00::2")), Resolution::Resolved(PEER));
    input(&mut us, at(1), &advertisement(OTHER, 0x60));
    assert_eq!(us.resolve(at(1), ip("fd00::2")), Resolution::Resolved(OTHER));
}

/// A solicited advertisement of `fd00::2` by `mac` to us, with those flags.
fn advertisement(mac: Mac, flags: u8) -> Vec<u8> {
    let mut peer = machine(2, NeighbourOptions::default());
    peer.mac = mac;
    peer.send(Out::Reply { ip: ip("fd00::2"), to: ip("fd00::1"), mac: US });
    let mut frame = sent(&mut peer).remove(0);
    let message = &mut frame[eth::HEADER_LEN + 40..];
    message[4] = flags;
    crate::icmp::fill_checksum(ip("fd00::2"), ip("fd00::1"), message);
    frame
}

#[test]
fn malformed_discovery_is_counted_and_ignored() {
    let sound = advertisement(PEER, 0x60);
    let ip_at = eth::HEADER_LEN;
    let spoil: [(&str, usize, u8); 4] = [
        ("hop limit", ip_at + 7, 254),
        ("checksum", ip_at + 42, 0xff),
        ("code", ip_at + 41, 1),
        ("option of no length", ip_at + 65, 0),
    ];
    for (what, offset, value) in spoil {
        let mut us = us();
        us.resolve(at(0), ip("fd00::2"));
        let mut frame = sound.clone();
        frame[offset] = value;
        if !matches!(what, "hop limit" | "checksum") {
            let message = &mut frame[ip_at + 40..];
            crate::icmp::fill_checksum(ip("fd00::2"), ip("fd00::1"), message);
        }
        input(&mut us, at(0), &frame);
        assert_eq!(us.stats().malformed, 1, "{what}");
        assert_eq!(us.resolve(at(0), ip("fd00::2")), Resolution::Pending, "{what}");
    }
}

#[test]
fn every_state_meets_every_event() {
    let peer = ip("10.0.0.2");
    let until = at(60_000);
    let states: [(&str, Option<State>); 7] = [
        ("absent", None),
        ("static", Some(State::Static(PEER))),
        ("probing", Some(State::Probing { old: None, tries: 3, next: Some(at(100)) })),
        ("reachable", Some(State::Reachable { mac: PEER, until, used: false })),
        ("refreshing", Some(State::Refreshing { mac: PEER, tries: 3, next: at(100) })),
        ("stale", Some(State::Stale { mac: PEER })),
        ("failed", Some(State::Failed { until: at(100) })),
    ];
    let name = |us: &Neighbours| match us.find(peer).map(|at| us.table[at].state) {
        Err(_) => "absent",
        Ok(State::Static(_)) => "static",
        Ok(State::Probing { .. }) => "probing",
        Ok(State::Reachable { .. }) => "reachable",
        Ok(State::Refreshing { .. }) => "refreshing",
        Ok(State::Stale { .. }) => "stale",
        Ok(State::Failed { .. }) => "failed",
    };
    let mut table = String::new();
    for (from, state) in states {
        table += &format!("{from:10}");
        let meets: [&dyn Fn(&mut Neighbours); 5] = [
            &|us| _ = us.resolve(at(50), peer),
            &|us| us.arp_input(at(50), &arp(ArpOp::Reply, PEER, "10.0.0.2", "10.0.0.1")),
            &|us| us.arp_input(at(50), &arp(ArpOp::Request, PEER, "10.0.0.2", "10.0.0.1")),
            &|us| us.arp_input(at(50), &arp(ArpOp::Request, PEER, "10.0.0.2", "10.0.0.2")),
            &|us| us.handle_timeout(at(60_000)),
        ];
        for meet in meets {
            let mut us = us();
            if let Some(state) = state {
                us.enter(at(0), peer, state);
                us.rearm();
            }
            meet(&mut us);
            let told = match events(&mut us)[..] {
                [] => "",
                [NeighbourEvent::Resolved(..)] => "!",
                [NeighbourEvent::Failed(..)] => "?",
                [NeighbourEvent::Announced(..)] => "+",
                [NeighbourEvent::Resolved(..), NeighbourEvent::Announced(..)] => "!+",
                ref told => panic!("{told:?}"),
            };
            table += &format!(" {:11}", format!("{}{told}", name(&us)));
        }
        table = format!("{}\n", table.trim_end());
    }
    // `!` resolved is told, `?` failure, `+` that it announced itself.
    let expected = "\
absent     probing     absent      reachable   absent      absent
static     static      static      static      static+     static
probing    probing     reachable!  reachable!  reachable!+ failed?
reachable  reachable   reachable   reachable   reachable+  stale
refreshing refreshing  reachable   reachable   reachable+  failed?
stale      probing     reachable   reachable   reachable+  stale
failed     failed      reachable!  reachable!  reachable!+ failed
";
    let header = "           resolve     reply       request     gratuitous  timeout\n";
    assert_eq!(format!("{header}{table}"), format!("{header}{expected}"));
}

proptest! {
    #[test]
    fn random_discovery_never_panics(
        kind in 133u8..138,
        message in proptest::collection::vec(any::<u8>(), 7..80),
        sum: bool,
    ) {
        let mut us = us();
        us.resolve(at(0), ip("fd00::2"));
        let mut message = [&[kind, 0], &message[..]].concat();
        if sum {
            crate::icmp::fill_checksum(ip("fd00::2"), ip("fd00::1"), &mut message);
        }
        let datagram =
            Datagram { src: ip("fd00::2"), dst: ip("fd00::1"), hop_limit: 255, message: &message };
        prop_assert!(us.ndisc_input(at(0), PEER, &datagram));
    }
}

#[test]
fn after_an_outage_of_the_link_we_announce_ourselves_and_ask_for_all_whom_we_know() {
    const NEW: Mac = [2, 0, 0, 0, 0, 77];
    let mut us = us();
    let peer = ip("10.0.0.2");
    us.resolve(at(0), peer);
    us.arp_input(at(1), &arp(ArpOp::Reply, PEER, "10.0.0.2", "10.0.0.1"));
    us.resolve(at(2), ip("10.0.0.9"));
    pass(&mut us, at(500));
    events(&mut us);
    us.link_up(at(1000), NEW);
    let frames = sent(&mut us);
    // Two announcements, one request to all: whoever did not answer is asked when it is wanted.
    assert_eq!(frames.len(), 3);
    assert!(frames.iter().all(|frame| frame[6..12] == NEW && frame[0] & 1 == 1));
    assert_eq!(us.resolve(at(1000), peer), Resolution::Resolved(PEER), "until we know better");
    us.arp_input(at(1001), &arp(ArpOp::Reply, OTHER, "10.0.0.2", "10.0.0.1"));
    assert_eq!(events(&mut us), [NeighbourEvent::Resolved(peer, OTHER)]);
    assert_eq!(us.resolve(at(1001), ip("10.0.0.9")), Resolution::Pending);
}
