//! The AF_XDP link over a real veth pair, in namespaces of its own.
#![allow(clippy::disallowed_methods, reason = "drives real devices")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use moorline_bpf::Mode;
use moorline_rig::{End, Rig, RigSpec};
use moorline_stack::lane::{self, LaneOptions};
use moorline_stack::link::xdp::XdpLink;
use moorline_stack::{Instant, Link};
use moorline_xsk::{Copying, Options, Socket};

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
    let step = match mtu {
        0..=1500 => 1,
        1501..=9000 => 7,
        _ => 501,
    };
    let lens: Vec<usize> = (60..=mtu as usize + 14).rev().step_by(step).collect();
    let target = thread::scope(|scope| {
        let target = scope.spawn(|| echo_until(target, &stop));
        let (mut sent, mut received) = (0, 0);
        let start = Instant::monotonic();
        while received < lens.len() {
            let now = Instant::monotonic();
            let stats = || (host.ring_stats(), host.steering_counters());
            assert!(now - start < LIMIT, "{received} of {} came back: {:?}", lens.len(), stats());
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

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_65000_skb() {
    echo(65_000, Mode::Skb);
}

#[test]
fn frames_of_all_sizes_come_back_intact_mtu_65000_native() {
    echo(65_000, Mode::Native);
}

#[test]
fn tagged_frames_arrive_with_their_tag_and_untagged_ones_do_not() {
    for mode in [Mode::Skb, Mode::Native] {
        let Some(rig) = rig(RigSpec::unique("ml-xsk").mtu(9000)) else { return };
        let open = |end: &End| {
            let options = LaneOptions { vlan: Some(5), ..options(end, mode) };
            end.run(|| lane::open(&options).unwrap()).unwrap()
        };
        let (mut host, mut target) = (open(rig.host()), open(rig.target()));
        let (ours, theirs) = (host.mac(), target.mac());
        let mut sent = Vec::new();
        for len in [100, 1514, 9014] {
            let mut frame = vec![0; len];
            write_frame(&mut frame, 1, theirs, ours, [rig.host(), rig.target()]);
            host.tx().transmit(len, |out| out.copy_from_slice(&frame));
            let mut tagged = frame[..12].to_vec();
            tagged.extend([0x81, 0, 0, 5]);
            tagged.extend(&frame[12..]);
            host.tx().transmit(len + 4, |out| out.copy_from_slice(&tagged));
            sent.push(tagged);
        }
        host.flush(Instant::monotonic()).unwrap();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            target.wait(None, &[]).unwrap();
            let each = &mut |frame: &[u8], _: &mut _| received.push(frame.to_vec());
            target.receive(Instant::monotonic(), BUDGET, each);
        }
        assert!(received == sent);
        assert!(target.steering_counters().unwrap().pass_other >= 3);
    }
}

#[test]
fn a_flood_within_the_rings_loses_nothing() {
    const FRAMES: u64 = 100_000;
    const WINDOW: u64 = 200; // veth's own ring has 256 entries
    for mode in [Mode::Skb, Mode::Native] {
        let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
        let (mut host, mut target) = (open(rig.host(), mode), open(rig.target(), mode));
        let (ours, theirs) = (host.mac(), target.mac());
        let received = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut next, start) = (0, Instant::monotonic());
                while next < FRAMES {
                    let now = Instant::monotonic();
                    assert!(now - start < LIMIT, "{next} of {FRAMES}: {:?}", target.ring_stats());
                    let n = target.receive(now, BUDGET, &mut |frame, _| {
                        assert_eq!(check_payload(&frame[HEADERS..]), next);
                        next += 1;
                    });
                    target.flush(now).unwrap();
                    received.store(next, Ordering::Release);
                    if n == 0 {
                        thread::yield_now();
                    }
                }
            });
            let (mut sent, start) = (0, Instant::monotonic());
            while sent < FRAMES {
                let now = Instant::monotonic();
                assert!(now - start < LIMIT, "{sent} of {FRAMES}: {:?}", host.ring_stats());
                host.receive(now, BUDGET, &mut |_, _| {});
                let until = FRAMES.min(received.load(Ordering::Acquire) + WINDOW);
                while sent < until && host.tx().room() > 0 {
                    host.tx().transmit(100, |frame| {
                        write_frame(frame, sent, theirs, ours, [rig.host(), rig.target()]);
                    });
                    sent += 1;
                }
                host.flush(now).unwrap();
                thread::yield_now();
            }
        });
        assert_eq!(target.stats().rx_frames, FRAMES);
        assert_eq!(target.stats().rx_dropped, 0);
        // Fewer wakeups than frames: bursts go together.
        assert!(host.stats().syscalls < FRAMES, "{:?}", host.stats());
        assert!(host.is_whole() && target.is_whole());
    }
}

#[test]
fn more_frames_than_slots_are_refused_by_room_and_all_come_back() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk").mtu(9000)) else { return };
    let mut host = open(rig.host(), Mode::Skb); // nobody listens on the other side
    let slots = host.tx().room();
    let (mac, peer) = (host.mac(), [2; 6]);
    for _ in 0..slots {
        host.tx().transmit(9014, |frame| {
            write_frame(frame, 1, peer, mac, [rig.host(), rig.target()]);
        });
    }
    assert_eq!((host.tx().room(), host.tx().in_flight()), (0, slots));
    assert!(host.is_whole());
    let start = Instant::monotonic();
    while host.tx().room() < slots {
        let now = Instant::monotonic();
        assert!(now - start < LIMIT);
        host.receive(now, BUDGET, &mut |_, _| {});
        host.flush(now).unwrap();
    }
    assert_eq!((host.tx().in_flight(), host.ring_stats().invalid_descs), (0, 0));
    assert!(host.is_whole());
}

#[test]
fn a_busy_queue_is_retried_until_the_deadline() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    let end = rig.host();
    let deadline = |ms| Options { bind_deadline: Duration::from_millis(ms), ..Options::default() };
    let try_open = |ms| end.run(|| Socket::open(end.dev(), &deadline(ms))).unwrap();
    let first = try_open(1000).unwrap();
    let error = try_open(30).unwrap_err();
    assert!(matches!(error, moorline_xsk::Error::Busy { queue: 0, .. }), "{error}");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        let second = try_open(10_000).unwrap();
        assert!(second.report().bind_retries > 0);
    });
}

#[test]
fn a_lane_can_be_opened_again_at_once_and_leaves_no_program() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    for i in 0..10 {
        let mode = if i % 2 == 0 { Mode::Skb } else { Mode::Native };
        let link = open(rig.host(), mode);
        assert!(has_xdp(rig.host()));
        drop(link);
        assert!(!has_xdp(rig.host()));
    }
}

#[test]
fn a_lane_killed_leaves_nothing_behind() {
    const CHILD: &str = "MOORLINE_TEST_LANE_IN";
    if let Ok(netns) = std::env::var(CHILD) {
        moorline_rig::enter(&netns).unwrap();
        let _link = lane::open(&LaneOptions::new("h0", &[])).unwrap();
        println!("\nopen");
        thread::sleep(Duration::from_secs(60)); // killed long before
        return;
    }
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_lane_killed_leaves_nothing_behind", "--nocapture"])
            .env(CHILD, rig.host().netns())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "open"), "the child failed");
        assert!(has_xdp(rig.host()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!has_xdp(rig.host()));
        drop(open(rig.host(), Mode::Auto)); // the queue may be busy for a while: it is retried
    }
}

#[test]
fn an_interface_that_is_down_is_named() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    let end = rig.host();
    let mut down = end.command("ip");
    assert!(down.args(["link", "set", "dev", end.dev(), "down"]).status().unwrap().success());
    let error = end.run(|| lane::open(&options(end, Mode::Auto)).unwrap_err()).unwrap();
    assert!(error.to_string().contains("ip link set dev h0 up"), "{error}");
}

#[test]
fn a_queue_that_does_not_exist_is_an_error_that_says_so() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    let mut options = options(rig.host(), Mode::Auto);
    options.socket.queue = 7;
    let error = rig.host().run(|| lane::open(&options).unwrap_err()).unwrap();
    assert!(error.to_string().contains("queue 7"), "{error}");
    assert!(!has_xdp(rig.host()));
}

#[test]
fn zero_copy_on_veth_is_refused_and_copy_mode_is_reported() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    let mut options = options(rig.host(), Mode::Native);
    options.socket.copy = Copying::ZeroCopy;
    let error = rig.host().run(|| lane::open(&options).unwrap_err()).unwrap();
    assert!(error.to_string().contains("zero copy"), "{error}");
    let link = open(rig.host(), Mode::Native);
    assert!(!link.report().zero_copy);
    assert_eq!(link.report().tx_budget, 1024);
    assert!(link.report().send_buffer >= 4 << 20);
}

#[test]
fn a_wait_ends_with_a_frame_another_descriptor_or_its_deadline() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    let (mut host, mut target) = (open(rig.host(), Mode::Skb), open(rig.target(), Mode::Skb));
    let soon = Instant::monotonic() + Duration::from_millis(5);
    host.wait(Some(soon), &[]).unwrap();
    assert!(Instant::monotonic() >= soon);
    let (mac, peer, ends) = (target.mac(), host.mac(), [rig.target(), rig.host()]);
    target.tx().transmit(100, |frame| write_frame(frame, 1, peer, mac, ends));
    target.flush(Instant::monotonic()).unwrap();
    let mut received = 0;
    while received == 0 {
        host.wait(None, &[]).unwrap();
        received += host.receive(Instant::monotonic(), BUDGET, &mut |_, _| {});
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"x").unwrap();
    host.wait(None, &[reader.as_fd()]).unwrap();
}

#[test]
fn the_kernel_keeps_what_is_not_ours() {
    let Some(rig) = rig(RigSpec::unique("ml-xsk")) else { return };
    let (mut host, _target) = (open(rig.host(), Mode::Auto), open(rig.target(), Mode::Auto));
    let to = rig.target().kernel_addr(false);
    let listener = rig.target().run(|| std::net::TcpListener::bind((to, 0)).unwrap()).unwrap();
    rig.host().offloads(false).unwrap();
    rig.target().offloads(false).unwrap();
    let addr = listener.local_addr().unwrap();
    rig.host().run(|| std::net::TcpStream::connect_timeout(&addr, LIMIT).unwrap()).unwrap();
    assert_eq!(host.receive(Instant::monotonic(), BUDGET, &mut |_, _| {}), 0);
    assert!(host.steering_counters().unwrap().pass_other > 0);
}

fn has_xdp(end: &End) -> bool {
    let show = end.command("ip").args(["-d", "link", "show", "dev", end.dev()]).output().unwrap();
    assert!(show.status.success());
    String::from_utf8_lossy(&show.stdout).contains("prog/xdp")
}
