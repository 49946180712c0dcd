//! An interface that goes down, or away, and comes back under a link that is open.
#![allow(clippy::disallowed_methods, reason = "drives real devices")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use moorline_rig::{End, Rig, RigSpec};
use moorline_stack::lane::{self, LaneOptions};
use moorline_stack::link::LinkEvent;
use moorline_stack::link::xdp::XdpLink;
use moorline_stack::{Instant, Link};

const LIMIT: Duration = Duration::from_secs(20);
const ROOM: usize = 512;

/// Runs `test` in the host's namespace of a rig; said loudly where there can be none.
fn in_rig(mtu: u32, test: impl FnOnce(&Rig) + Send) {
    if let Err(why) = moorline_rig::possible() {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return;
    }
    let rig = Rig::up(RigSpec::unique("ml-reopen").mtu(mtu)).unwrap();
    rig.host().run(|| test(&rig)).unwrap();
}

fn open(end: &End) -> XdpLink {
    end.run(|| lane::open(&LaneOptions::new(end.dev(), &[end.xdp_addr(false)])).unwrap()).unwrap()
}

#[track_caller]
fn set(end: &End, args: &str) {
    let mut command = end.command("ip");
    command.args(["link", "set", "dev", end.dev()]).args(args.split(' '));
    assert!(command.status().unwrap().success(), "{args}");
}

/// An ARP request of 10.99.0.99 for `to`'s address: the steering program takes it for ours.
fn ask(link: &mut XdpLink, to: &End) {
    let std::net::IpAddr::V4(addr) = to.xdp_addr(false) else { unreachable!("asked for IPv4") };
    let mac = link.mac();
    link.tx().transmit(60, |frame| {
        frame.fill(0);
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&mac);
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&[10, 99, 0, 99]);
        frame[38..42].copy_from_slice(&addr.octets());
    });
}

fn turn(link: &mut XdpLink) -> usize {
    let now = Instant::monotonic();
    let received = link.receive(now, 64, &mut |_, _| {});
    link.flush(now).unwrap();
    received
}

/// Turns until the link tells of a change.
#[track_caller]
fn until_told(link: &mut XdpLink) -> LinkEvent {
    let end = Instant::monotonic() + LIMIT;
    loop {
        turn(link);
        if let Some(event) = link.poll_event() {
            return event;
        }
        assert!(Instant::monotonic() < end, "nothing was told");
        link.wait(None, &[]).unwrap();
    }
}

/// Turns both until the second has received a frame of the first.
#[track_caller]
fn passes(from: &mut XdpLink, to: &mut XdpLink, end: &End) {
    while turn(to) > 0 {}
    ask(from, end);
    let limit = Instant::monotonic() + LIMIT;
    loop {
        turn(from);
        if turn(to) > 0 {
            return;
        }
        assert!(Instant::monotonic() < limit, "nothing arrived");
    }
}

fn assert_at_rest(link: &mut XdpLink) {
    let limit = Instant::monotonic() + LIMIT;
    while link.tx().room() < ROOM {
        turn(link);
        assert!(Instant::monotonic() < limit, "{} frames came back", link.tx().room());
    }
    assert!(link.is_whole());
}

#[test]
fn a_device_that_goes_and_comes_back_under_its_name_is_opened_again() {
    in_rig(9000, |rig| {
        let (mut host, mut target) = (open(rig.host()), open(rig.target()));
        passes(&mut host, &mut target, rig.target());
        for round in 1..=3 {
            let before = (host.mac(), host.stats());
            rig.unplug().unwrap();
            // Idle: noticed all the same.
            assert_eq!(until_told(&mut host), LinkEvent::Down);
            for _ in 0..2 * ROOM {
                assert!(host.tx().room() > 0);
                ask(&mut host, rig.target());
                turn(&mut host);
            }
            assert_eq!((host.tx().room(), host.is_whole()), (ROOM, true));
            assert!(host.ring_stats().tx_discarded >= 2 * round * ROOM as u64);
            rig.plug().unwrap();
            assert_eq!(until_told(&mut host), LinkEvent::Up);
            assert_eq!(target.poll_event(), None, "nobody has turned it");
            while until_told(&mut target) != LinkEvent::Up {}
            assert_ne!(host.mac(), before.0);
            assert_at_rest(&mut host);
            passes(&mut host, &mut target, rig.target());
            passes(&mut target, &mut host, rig.host());
            assert!(host.stats().tx_frames > before.1.tx_frames, "counters go on");
            assert_at_rest(&mut host);
        }
    });
}

#[test]
fn a_device_that_goes_down_and_up_keeps_its_socket_and_its_frames() {
    in_rig(1500, |rig| {
        let (mut host, mut target) = (open(rig.host()), open(rig.target()));
        let counted = |link: &XdpLink| link.steering_counters().unwrap().arp;
        passes(&mut target, &mut host, rig.host());
        for round in 1..=5 {
            set(rig.host(), "down");
            for _ in 0..2 * ROOM {
                ask(&mut host, rig.target());
                turn(&mut host);
            }
            assert_eq!(host.poll_event(), Some(LinkEvent::Down));
            // The first is in the ring, and leaves when it can.
            assert_eq!((host.tx().room(), host.is_whole()), (ROOM - 1, true));
            set(rig.host(), "up");
            assert_eq!(until_told(&mut host), LinkEvent::Up);
            assert_at_rest(&mut host);
            assert_eq!(host.ring_stats().tx_discarded, round * (2 * ROOM as u64 - 1));
            passes(&mut host, &mut target, rig.target());
            passes(&mut target, &mut host, rig.host());
            assert_eq!(counted(&host), 1 + round, "it is the same program");
        }
    });
}

#[test]
fn a_peer_that_goes_down_and_up_is_no_change_of_ours() {
    in_rig(1500, |rig| {
        let (mut host, mut target) = (open(rig.host()), open(rig.target()));
        set(rig.target(), "down");
        ask(&mut host, rig.target());
        turn(&mut host);
        assert_at_rest(&mut host);
        set(rig.target(), "up");
        passes(&mut host, &mut target, rig.target());
        assert_eq!(host.poll_event(), None);
    });
}

#[test]
fn a_device_that_comes_back_with_a_smaller_mtu_is_waited_for() {
    in_rig(9000, |rig| {
        let mut host = open(rig.host());
        rig.unplug().unwrap();
        assert_eq!(until_told(&mut host), LinkEvent::Down);
        rig.plug().unwrap();
        set(rig.host(), "mtu 1500");
        for _ in 0..10 {
            turn(&mut host);
            host.wait(None, &[]).unwrap();
        }
        // It may have been found just before the MTU became smaller.
        if host.poll_event().is_none() {
            set(rig.host(), "mtu 9000");
            assert_eq!(until_told(&mut host), LinkEvent::Up);
        }
        assert_eq!(host.mtu(), 9000);
        assert_at_rest(&mut host);
    });
}

#[test]
fn a_device_that_was_in_another_namespace_is_freed_of_our_program_and_opened_again() {
    in_rig(1500, |rig| {
        let (mut host, mut target) = (open(rig.host()), open(rig.target()));
        let dev = rig.host().dev();
        let there = rig.target().netns();
        set(rig.host(), &format!("netns {there}"));
        assert_eq!(until_told(&mut host), LinkEvent::Down);
        let mut back = rig.target().command("ip");
        back.args(["link", "set", "dev", dev, "netns", rig.host().netns()]);
        assert!(back.status().unwrap().success());
        set(rig.host(), "up");
        assert_eq!(until_told(&mut host), LinkEvent::Up);
        passes(&mut host, &mut target, rig.target());
        passes(&mut target, &mut host, rig.host());
        assert_at_rest(&mut host);
    });
}

#[test]
fn a_link_whose_driver_is_stuck_is_made_anew_on_the_same_device() {
    in_rig(9000, |rig| {
        let (mut host, mut target) = (open(rig.host()), open(rig.target()));
        for _ in 0..3 {
            passes(&mut host, &mut target, rig.target());
            let mac = host.mac();
            host.reopen(Instant::monotonic(), "a test wants it");
            assert_eq!(host.poll_event(), Some(LinkEvent::Down));
            for _ in 0..2 * ROOM {
                ask(&mut host, rig.target());
            }
            assert_eq!((host.tx().room(), host.is_whole()), (ROOM, true));
            assert_eq!(until_told(&mut host), LinkEvent::Up);
            assert_eq!(host.mac(), mac);
            passes(&mut target, &mut host, rig.host());
            assert_at_rest(&mut host);
        }
        assert!(host.ring_stats().tx_discarded >= 6 * ROOM as u64);
    });
}
