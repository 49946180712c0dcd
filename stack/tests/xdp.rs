//! The AF_XDP link over a real veth pair, in namespaces of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use moorline_bpf::Mode;
use moorline_rig::{End, Rig, RigSpec};
use moorline_stack::lane::{self, LaneOptions};
use moorline_stack::link::xdp::XdpLink;
use moorline_stack::{Instant, Link};

const BUDGET: usize = 64;
const HEADERS: usize = 14 + 20; // Ethernet and IPv4
const LIMIT: Duration = Duration::from_secs(20);

/// A rig, or `None` (said loudly) where there can be none.
fn rig(spec: RigSpec) -> Option<Rig> {
    if let Err(why) = moorline_rig::possible() {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    Some(Rig::up(spec).unwrap())
}

fn options(end: &End, mode: Mode) -> LaneOptions {
    LaneOptions { mode, ..LaneOptions::new(end.dev(), &[end.xdp_addr(false), end.xdp_addr(true)]) }
}

fn open(end: &End, mode: Mode) -> XdpLink {
    end.run(|| lane::open(&options(end, mode)).unwrap()).unwrap()
}

/// An IPv4 frame of `frame.len()` bytes from one lane to another, its payload made from `seq`.
fn write_frame(frame: &mut [u8], seq: u64, dst_mac: [u8; 6], src_mac: [u8; 6], ends: [&End; 2]) {
    let octets = |end: &End| match end.xdp_addr(false) {
        std::net::IpAddr::V4(addr) => addr.octets(),
        std::net::IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let ip_len = (frame.len() - 14) as u16;
    frame[..6].copy_from_slice(&dst_mac);
    frame[6..12].copy_from_slice(&src_mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..HEADERS].copy_from_slice(&[0; 20]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&ip_len.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 253]); // TTL, a protocol for experiments (RFC 3692)
    frame[26..30].copy_from_slice(&octets(ends[0]));
    frame[30..34].copy_from_slice(&octets(ends[1]));
    fill_payload(&mut frame[HEADERS..], seq);
}

/// The sequence number, then bytes that depend on it and on their place.
fn fill_payload(payload: &mut [u8], seq: u64) {
    payload[..8].copy_from_slice(&seq.to_be_bytes());
    for (i, byte) in payload.iter_mut().enumerate().skip(8) {
        *byte = (seq as usize).wrapping_mul(31).wrapping_add(i) as u8 ^ (i >> 8) as u8;
    }
}

/// The sequence number of an intact payload.
fn check_payload(payload: &[u8]) -> u64 {
    let seq = u64::from_be_bytes(payload[..8].try_into().unwrap());
    let mut want = vec![0; payload.len()];
    fill_payload(&mut want, seq);
    assert!(payload == want, "frame {seq} of {} payload bytes is damaged", payload.len());
    seq
}

fn echo_until(mut link: XdpLink, stop: &AtomicBool) -> XdpLink {
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::monotonic();
        let n = link.receive(now, BUDGET, &mut |frame, tx| {
            if tx.room() > 0 {
                tx.transmit(frame.len(), |out| {
                    out.copy_from_slice(frame);
                    out.copy_within(6..12, 0);
                    out[6..12].copy_from_slice(&frame[..6]);
                    out[26..30].copy_from_slice(&frame[30..34]);
                    out[30..34].copy_from_slice(&frame[26..30]);
                });
            }
        });
        link.flush(now).unwrap();
        if n == 0 {
            thread::yield_now();
        }
    }
    link
}

/// Sends a frame of each length, and checks that each comes back as it was.
fn echo(mtu: u32, mode: Mode) {
    let Some(rig) = rig(RigSpec::unique("ml-xsk").mtu(mtu)) else { return };
    let (mut host, target) = (open(rig.host(), mode), open(rig.target(), mode));
    assert_eq!((host.mode(), target.mode()), (mode, mode));
    assert_eq!((host.mtu(), host.report().multi_buffer), (mtu as usize, mtu > 3506));
    let (ours, theirs) = (host.mac(), target.mac());
    let stop = AtomicBool::new(false);
    let step = if mtu > 1500 { 7 } else { 1 };
    let lens: Vec<usize> = (60..=mtu as usize + 14).rev().step_by(step).collect();
    let target = thread::scope(|scope| {
        let target = scope.spawn(|| echo_until(target, &stop));
        let (mut sent, mut received) = (0, 0);
        let start = Instant::monotonic();
        while received < lens.len() {
            let now = Instant::monotonic();
            assert!(now - start < LIMIT, "{received} of {} came back", lens.len());
            host.receive(now, BUDGET, &mut |frame, _| {
                assert_eq!(frame.len(), lens[received]);
                assert_eq!(check_payload(&frame[HEADERS..]), received as u64);
                received += 1;
            });
            while sent < lens.len() && sent - received < 32 && host.tx().room() > 0 {
                host.tx().transmit(lens[sent], |frame| {
                    write_frame(frame, sent as u64, theirs, ours, [rig.host(), rig.target()]);
                });
                sent += 1;
            }
            host.flush(now).unwrap();
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        target.join().unwrap()
    });
    for link in [&host, &target] {
        let stats = link.stats();
        assert_eq!(stats.rx_frames, lens.len() as u64);
        assert_eq!(stats.rx_dropped, 0);
        assert_eq!(stats.rx_linearised_bytes > 0, mtu > 4000);
        assert_eq!(link.ring_stats().invalid_descs, 0);
        assert_eq!(link.steering_counters().unwrap().ipv4, lens.len() as u64);
        assert!(link.is_whole());
    }
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_1500_skb() {
    echo(1500, Mode::Skb);
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_1500_native() {
    echo(1500, Mode::Native);
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_3506_skb() {
    echo(3506, Mode::Skb);
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_3506_native() {
    echo(3506, Mode::Native);
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_9000_skb() {
    echo(9000, Mode::Skb);
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_9000_native() {
    echo(9000, Mode::Native);
}
