//! Targets that cannot be reached: the message says which stage failed, and after how long.

use std::io::{Write, copy, sink};
use std::net::{IpAddr, TcpListener};
use std::thread;

use crate::support::{Run, lane, moorline, rig};
use moorline_rig::Rig;

fn identify(rig: &Rig, to: IpAddr, args: &str) -> Run {
    moorline(&format!("identify {} -a {to} {args}", lane(rig.host())))
}

#[test]
fn an_address_that_nobody_has_fails_at_arp_and_nd() {
    let Some(rig) = rig(1500) else { return };
    for v6 in [false, true] {
        identify(&rig, rig.target().xdp_addr(v6), "").failed(2, "no answer to ARP/ND");
    }
}

#[test]
fn an_address_beyond_our_network_needs_a_gateway() {
    let Some(rig) = rig(1500) else { return };
    let beyond = "192.0.2.1".parse().unwrap();
    identify(&rig, beyond, "").failed(2, "unreachable");
    // Through a gateway that is there, but forwards nothing.
    let gateway = rig.target().kernel_addr(false);
    let run = identify(&rig, beyond, &format!("--gateway {gateway}"));
    run.failed(2, "connect timed out (while waiting for SYN-ACK, after 1.0s");
}

#[test]
fn a_closed_port_is_refused_at_once() {
    let Some(rig) = rig(1500) else { return };
    // The kernel leaves the checksum of an IPv6 RST to a device that does not compute it.
    rig.target().offloads(false).unwrap();
    for v6 in [false, true] {
        identify(&rig, rig.target().kernel_addr(v6), "").failed(2, "connection refused");
    }
    moorline("identify --transport kernel -a 127.0.0.1 -s 1").failed(2, "connection refused");
}

#[test]
fn a_target_that_says_nothing_is_left_at_its_deadline() {
    let Some(rig) = rig(1500) else { return };
    rig.target().offloads(false).unwrap();
    let addr = rig.target().kernel_addr(false);
    let _mute = rig.target().run(|| TcpListener::bind((addr, 4420)).unwrap()).unwrap();
    identify(&rig, addr, "").failed(2, "no ICResp within 1.0s");
}

#[test]
fn a_target_that_speaks_garbage_is_left_at_once() {
    let Some(rig) = rig(1500) else { return };
    rig.target().offloads(false).unwrap();
    let addr = rig.target().kernel_addr(false);
    let listener = rig.target().run(|| TcpListener::bind((addr, 4420)).unwrap()).unwrap();
    let garbage = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The host may have had enough before it is all sent.
        let _ = stream.write_all(&[0x5A; 4096]);
        let _ = copy(&mut stream, &mut sink());
    });
    identify(&rig, addr, "").failed(2, "broke the protocol");
    garbage.join().unwrap();
}
