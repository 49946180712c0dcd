//! The RST that answers a segment of no connection, frame by frame.

use std::net::IpAddr;

use moorline_stack::eth::{Frame, Packet};
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::route::Cidr;
use moorline_stack::segment::{Flags, Segment};
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::{Instant, Link, LinkTx, Transport};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpPacket};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A segment from port 100 to port 200 with sequence numbers 7 and 9 and `payload` bytes.
fn frame(source: IpAddr, destination: IpAddr, flags: u8, payload: usize) -> Vec<u8> {
    let (source, destination) = (IpAddress::from(source), IpAddress::from(destination));
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, 20 + payload, 64);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(if ip.header_len() == 20 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.resize(14 + ip.buffer_len(), 0);
    ip.emit(&mut frame[14..], &ChecksumCapabilities::default());
    let tcp = &mut frame[14 + ip.header_len()..];
    tcp[..14].copy_from_slice(&[0, 100, 0, 200, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags]);
    TcpPacket::new_unchecked(tcp).fill_checksum(&source, &destination);
    frame
}

/// What a lane at `us` that knows no connection answers to one frame.
fn answer(us: IpAddr, frame: &[u8]) -> Option<(Segment, bool)> {
    let (mut wire, link) = SimLink::pair(&WireOptions::default());
    let mut config = TcpConfig { seed: Some(1), ..TcpConfig::default() };
    config.addresses.push(Cidr { ip: us, prefix: if us.is_ipv4() { 24 } else { 64 } });
    config.neighbour_options.announcements = 0;
    let mut tcp = Tcp::new(Instant::ZERO, link, &config).unwrap();
    wire.tx().transmit(frame.len(), |out| out.copy_from_slice(frame));
    wire.flush(Instant::ZERO).unwrap();
    let at = |us: u64| Instant::from_nanos(us * 1000);
    tcp.turn(at(10));
    tcp.flush(at(10));
    let mut answer = None;
    wire.receive(at(20), 8, &mut |bytes, _| {
        let Packet::Tcp(segment, packet) = Frame::parse(bytes).unwrap().packet else {
            panic!("no TCP: {bytes:?}");
        };
        let Segment { tuple, tcp_offset, .. } = segment;
        let (source, destination) = (tuple.remote.ip().into(), tuple.local.ip().into());
        let sound = TcpPacket::new_checked(&packet[usize::from(tcp_offset)..])
            .is_ok_and(|tcp| tcp.verify_checksum(&source, &destination));
        assert!(answer.replace((segment, sound)).is_none(), "two answers");
    });
    answer
}

#[test]
fn rst_takes_its_numbers_from_what_it_answers() {
    for (peer, us) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let (peer, us): (IpAddr, IpAddr) = (peer.parse().unwrap(), us.parse().unwrap());
        for (flags, payload, expected) in [
            (ACK, 3, (9, 0, Flags(RST))),
            (SYN | ACK, 0, (9, 0, Flags(RST))),
            (SYN, 0, (0, 8, Flags(RST | ACK))),
            (FIN, 3, (0, 11, Flags(RST | ACK))),
        ] {
            let (rst, sound) = answer(us, &frame(peer, us, flags, payload)).unwrap();
            assert_eq!((rst.seq, rst.ack, rst.flags), expected);
            assert_eq!((rst.tuple.local, rst.tuple.remote), ((peer, 100).into(), (us, 200).into()));
            assert!(sound, "checksum");
        }
    }
}

#[test]
fn rst_is_never_answered_and_groups_get_none() {
    let us: IpAddr = "10.0.0.2".parse().unwrap();
    let none = |source: &str, destination: &str, flags| {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        assert_eq!(answer(us, &frame(source, destination, flags, 0)), None);
    };
    none("10.0.0.1", "10.0.0.2", RST);
    none("10.0.0.1", "224.0.0.1", SYN);
    none("255.255.255.255", "10.0.0.2", SYN);
    none("10.0.0.255", "10.0.0.2", SYN);
    none("224.0.0.1", "10.0.0.2", ACK);
}
