//! The program on crafted frames (`BPF_PROG_TEST_RUN`). A redirect needs a bound socket, so what is
//! ours shows as counted, and dropped for want of one.

use std::net::{Ipv4Addr, Ipv6Addr};

use libbpf_rs::ProgramInput;

use super::*;

const OURS4: [u8; 4] = [10, 0, 0, 1];
const OURS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);
const OTHER4: [u8; 4] = [10, 0, 0, 9];
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn rights() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "must be root");
        eprintln!("SKIPPED: loading a BPF program needs root");
    }
    root
}

fn config(vlan: Option<u16>) -> SteeringConfig {
    let addrs =
        vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), IpAddr::V4(OURS4.into()), IpAddr::V6(OURS6)];
    SteeringConfig { ifindex: 0, mode: Mode::Auto, addrs, vlan }
}

/// Runs `frames` through a freshly loaded program; returns each action, and what was counted.
fn run(vlan: Option<u16>, frames: &[Vec<u8>]) -> (Vec<u32>, Counters) {
    let mut object = MaybeUninit::uninit();
    let skel = load(&config(vlan), &mut object).unwrap();
    let actions = frames
        .iter()
        .map(|frame| {
            let input = ProgramInput { data_in: Some(frame), ..Default::default() };
            skel.progs.steer.test_run(input).unwrap().return_value
        })
        .collect();
    (actions, read_counters(&skel.maps.counters).unwrap())
}

fn ethernet(proto: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(proto.to_be_bytes());
    frame.extend(payload);
    frame
}

fn tagged(tpid: u16, vid: u16, frame: &[u8]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    out.extend(tpid.to_be_bytes());
    out.extend((0xe000 | vid).to_be_bytes()); // priority 7: not part of the VLAN id
    out.extend(&frame[12..]);
    out
}

fn ip4(dst: [u8; 4], protocol: u8, fragment: u16) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 1];
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, protocol, 0, 0]);
    ip.extend([10, 0, 0, 2]);
    ip.extend(dst);
    ip.extend([0; 8]);
    ethernet(0x0800, &ip)
}

fn ip6(dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 255]);
    ip.extend(OTHER6.octets());
    ip.extend(dst.octets());
    ip.extend(payload);
    ethernet(0x86dd, &ip)
}

fn nd(dst: Ipv6Addr, kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut icmp = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.octets());
    ip6(dst, 58, &icmp)
}

fn arp(operation: u16, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4];
    arp.extend(operation.to_be_bytes());
    arp.extend([2, 0, 0, 0, 0, 2]);
    arp.extend(sender);
    arp.extend([0; 6]);
    arp.extend(target);
    ethernet(0x0806, &arp)
}

/// All of `frames` are ours, and counted as `expected`.
fn ours(vlan: Option<u16>, frames: &[Vec<u8>], expected: Counters) {
    if !rights() {
        return;
    }
    let (actions, counters) = run(vlan, frames);
    assert!(actions.iter().all(|&action| action == XDP_DROP), "{actions:?}");
    assert_eq!(counters, Counters { no_socket: frames.len() as u64, ..expected });
}

/// All of `frames` go to the kernel.
fn passed(vlan: Option<u16>, frames: &[Vec<u8>], expected: Counters) {
    if !rights() {
        return;
    }
    let (actions, counters) = run(vlan, frames);
    assert!(actions.iter().all(|&action| action == XDP_PASS), "{actions:?}");
    assert_eq!(counters, expected);
}

#[test]
fn ipv4_to_our_address_is_ours_whatever_it_carries() {
    let mut with_options = ip4(OURS4, 6, 0);
    with_options[14] = 0x46;
    let frames = [
        ip4(OURS4, 6, 0),
        ip4(OURS4, 1, 0),
        ip4(OURS4, 253, 0),
        ip4(OURS4, 17, 0x2000), // the first fragment
        ip4(OURS4, 17, 0x00b9), // the last: no transport header
        ip4([192, 0, 2, 7], 6, 0),
        with_options,
    ];
    ours(None, &frames, Counters { ipv4: 7, ..Counters::default() });
}

#[test]
fn ipv6_to_our_address_is_ours_whatever_it_carries() {
    let frames = [ip6(OURS6, 6, &[0; 20]), ip6(OURS6, 44, &[0; 8]), ip6(OURS6, 58, &[128; 8])];
    ours(None, &frames, Counters { ipv6: 3, ..Counters::default() });
}

#[test]
fn arp_that_concerns_our_address_is_ours() {
    let frames = [
        arp(1, OTHER4, OURS4),       // a question to us
        arp(2, OTHER4, OURS4),       // the answer to ours
        arp(2, OURS4, [0, 0, 0, 0]), // the answer to our probe: taken
        arp(1, OURS4, OURS4),        // somebody announces our address
    ];
    ours(None, &frames, Counters { arp: 4, ..Counters::default() });
}

#[test]
fn neighbour_discovery_for_our_address_is_ours() {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let frames = [
        nd(group, 135, OURS6),
        nd(OURS6, 135, OURS6),
        nd(OURS6, 136, OTHER6),    // the answer to ours
        nd(all_nodes, 136, OURS6), // somebody has our address
    ];
    ours(None, &frames, Counters { nd: 4, ..Counters::default() });
}

#[test]
fn what_is_not_for_us_is_the_kernels() {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456);
    let colleague = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 1, 0x12, 0x3456); // in the same group
    let frames = [
        ip4(OTHER4, 6, 0),
        ip4([255; 4], 17, 0),
        ip6(OTHER6, 6, &[0; 20]),
        ip6(group, 58, &[130, 0, 0, 0, 0, 0, 0, 0]), // MLD
        nd(group, 135, colleague),
        arp(1, OTHER4, [10, 0, 0, 2]),
        arp(1, OTHER4, OTHER4), // gratuitous
        ethernet(0x88cc, &[0; 50]),
        ethernet(0x8847, &[0; 50]),
        tagged(0x8100, 5, &ip4(OURS4, 6, 0)),
        tagged(0x88a8, 5, &ip4(OURS4, 6, 0)),
    ];
    passed(None, &frames, Counters { pass_other: 11, ..Counters::default() });
}

#[test]
fn with_a_vlan_only_its_frames_are_ours() {
    let frames = [
        tagged(0x8100, 5, &ip4(OURS4, 6, 0)),
        tagged(0x8100, 5, &nd(OURS6, 135, OURS6)),
        tagged(0x8100, 5, &arp(1, OTHER4, OURS4)),
    ];
    ours(Some(5), &frames, Counters { ipv4: 1, nd: 1, arp: 1, ..Counters::default() });
    let frames = [
        ip4(OURS4, 6, 0),
        tagged(0x8100, 6, &ip4(OURS4, 6, 0)),
        tagged(0x8100, 5, &ip4(OTHER4, 6, 0)),
        tagged(0x88a8, 5, &ip4(OURS4, 6, 0)),
        tagged(0x8100, 5, &tagged(0x8100, 5, &ip4(OURS4, 6, 0))),
    ];
    passed(Some(5), &frames, Counters { pass_other: 5, ..Counters::default() });
}

#[test]
fn what_is_not_what_its_type_says_is_malformed() {
    let with = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let frames = [
        with(ip4(OURS4, 6, 0), 14, 0x44), // header length below 5 words
        with(ip4(OURS4, 6, 0), 14, 0x65), // version 6
        with(ip6(OURS6, 6, &[0; 20]), 14, 0x45), // version 4
        with(arp(1, OTHER4, OURS4), 15, 6), // not Ethernet
        with(arp(1, OTHER4, OURS4), 16, 0x86), // not IPv4
        with(arp(1, OTHER4, OURS4), 18, 8), // address lengths
        with(arp(1, OTHER4, OURS4), 19, 16),
    ];
    passed(None, &frames, Counters { malformed: 7, ..Counters::default() });
}

#[test]
fn a_frame_cut_anywhere_is_malformed_until_its_headers_are_whole() {
    // (frame, bytes needed to see that it is ours)
    let cases = [
        (None, ip4(OURS4, 6, 0), 14 + 20),
        (None, ip6(OURS6, 6, &[0; 20]), 14 + 40),
        (None, arp(1, OTHER4, OURS4), 14 + 28),
        (None, nd(OURS6, 135, OURS6), 14 + 40 + 24),
        (Some(5), tagged(0x8100, 5, &ip4(OURS4, 6, 0)), 18 + 20),
    ];
    for (vlan, frame, whole) in cases {
        // The kernel runs nothing on less than an Ethernet header.
        let cut: Vec<_> = (14..whole).map(|len| frame[..len].to_vec()).collect();
        let malformed = cut.len() as u64;
        passed(vlan, &cut, Counters { malformed, ..Counters::default() });
        let uncut: Vec<_> = (whole..=frame.len()).map(|len| frame[..len].to_vec()).collect();
        if rights() {
            let (actions, counters) = run(vlan, &uncut);
            assert!(actions.iter().all(|&action| action == XDP_DROP), "{actions:?}");
            assert_eq!((counters.malformed, counters.no_socket), (0, uncut.len() as u64));
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_is_refused_in_words() {
    for vlan in [0, 4095, 0xffff] {
        let mut object = MaybeUninit::uninit();
        let error = load(&config(Some(vlan)), &mut object).err().unwrap();
        assert!(error.to_string().contains("VLAN"), "{error}");
    }
    let mut many = config(None);
    many.addrs = vec![IpAddr::V4(OURS4.into()); ADDRS_MAX + 1];
    let mut object = MaybeUninit::uninit();
    let error = load(&many, &mut object).err().unwrap();
    assert!(error.to_string().contains("more than 32"), "{error}");
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn to_all(mut frame: Vec<u8>) -> Vec<u8> {
    let group = if frame[12] == 0x86 { [0x33, 0x33, 0, 0, 0, 1] } else { [0xff; 6] };
    frame[..6].copy_from_slice(&group);
    frame
}

/// An unsolicited advertisement with its option.
fn unsolicited(target: Ipv6Addr) -> Vec<u8> {
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(target.octets());
    icmp.extend([2, 1, 2, 0, 0, 0, 0, 2]);
    to_all(ip6(ALL_NODES, 58, &icmp))
}

/// Runs `frames` through a freshly loaded program; returns what was heard, and what was counted.
fn heard(vlan: Option<u16>, frames: &[Vec<u8>]) -> (Vec<Vec<u8>>, Counters) {
    let mut object = MaybeUninit::uninit();
    let skel = load(&config(vlan), &mut object).unwrap();
    let map = MapHandle::try_from(&skel.maps.announcements).unwrap();
    let announcements = Announcements::of(map).unwrap();
    for frame in frames {
        let input = ProgramInput { data_in: Some(frame), ..Default::default() };
        assert_eq!(skel.progs.steer.test_run(input).unwrap().return_value, XDP_PASS);
    }
    let mut copies = Vec::new();
    while announcements.poll(&mut |frame| copies.push(frame.to_vec())) > 0 {}
    (copies, read_counters(&skel.maps.counters).unwrap())
}

#[test]
fn announcements_of_others_go_to_the_kernel_and_are_heard_whole() {
    if !rights() {
        return;
    }
    let plain =
        vec![to_all(arp(1, OTHER4, OTHER4)), to_all(arp(2, OTHER4, OTHER4)), unsolicited(OTHER6)];
    let in_vlan: Vec<_> = plain.iter().map(|frame| tagged(0x8100, 5, frame)).collect();
    for (vlan, frames) in [(None, plain), (Some(5), in_vlan)] {
        let (copies, counters) = heard(vlan, &frames);
        assert_eq!(copies, frames);
        assert_eq!(counters, Counters { announcements: 3, ..Counters::default() });
    }
}

#[test]
fn what_announces_nobody_is_not_heard() {
    if !rights() {
        return;
    }
    let mut solicited = unsolicited(OTHER6);
    solicited[14 + 24..14 + 40].copy_from_slice(&OTHER6.octets()); // to one node
    let mut solicitation = unsolicited(OTHER6);
    solicitation[14 + 40] = 135;
    let frames = [
        arp(1, OTHER4, OTHER4),         // to one station
        to_all(arp(1, [0; 4], OTHER4)), // a probe
        to_all(arp(1, [0; 4], [0; 4])),
        to_all(arp(1, [10, 0, 0, 8], OTHER4)), // a question
        solicited,
        solicitation,
        tagged(0x8100, 6, &to_all(arp(1, OTHER4, OTHER4))), // in another VLAN
    ];
    let (copies, counters) = heard(None, &frames);
    assert_eq!(copies, Vec::<Vec<u8>>::new());
    assert_eq!(counters, Counters { pass_other: 7, ..Counters::default() });
}

#[test]
fn a_claim_to_our_address_is_ours_even_if_it_is_an_announcement() {
    let frames = [to_all(arp(1, OURS4, OURS4)), to_all(arp(2, OURS4, OURS4))];
    ours(None, &frames, Counters { arp: 2, ..Counters::default() });
    ours(None, &[unsolicited(OURS6)], Counters { nd: 1, ..Counters::default() });
}

#[test]
fn a_storm_of_announcements_fills_the_ring_and_no_more() {
    if !rights() {
        return;
    }
    let frames = vec![to_all(arp(1, OTHER4, OTHER4)); 1000];
    let (copies, counters) = heard(None, &frames);
    assert_eq!(counters.announcements, 1000);
    assert_eq!(copies.len() as u64 + counters.unheard, 1000);
    // 16 KiB in records of 96 bytes and their headers.
    assert!((150..=160).contains(&copies.len()), "{}", copies.len());
}

#[test]
fn a_long_announcement_is_heard_in_part() {
    if !rights() {
        return;
    }
    let mut long = unsolicited(OTHER6);
    long.extend([0; 200]);
    let (copies, _) = heard(None, &[long.clone()]);
    assert_eq!(copies, [&long[..94]]);
}
