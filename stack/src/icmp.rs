//! Answers that a TCP engine does not give by itself: echo replies, RST for segments of no
//! connection, and what ICMP errors hint at.
//!
//! Everything here can be provoked by anyone, so callers put a [`crate::limiter::TokenBucket`]
//! before it. Hints end no established connection (RFC 5927 §4): whoever guesses the ports can
//! send them. Packets are written whole, IP header first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpProtocol, checksum};

use crate::eth::{Datagram, FlowKey, Segment, flags, protocol};
use crate::route::is_unicast;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;
/// TTL and hop limit of what we send.
const HOP_LIMIT: u8 = 64;

/// Bytes of a RST in the longer of its IP headers.
pub const RST_LEN_MAX: usize = IPV6_HEADER_LEN + TCP_HEADER_LEN;

/// What an ICMP error says about a connection of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The connection whose segment is quoted.
    pub flow: FlowKey,
    /// Sequence number of the quoted segment: to be checked against what is in flight.
    pub seq: u32,
    /// What happened to it.
    pub kind: HintKind,
}

/// What happened to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintKind {
    /// It could not be delivered.
    Unreachable {
        /// ICMP code.
        code: u8,
    },
    /// It was too big for a link with this MTU (0: not said).
    TooBig {
        /// Bytes.
        mtu: u32,
    },
}

/// Writes the reply to an echo request to the front of `out` and returns its length; `None` if the
/// message is no sound echo request to one address, or does not fit.
pub fn echo_reply(request: &Datagram<'_>, out: &mut [u8]) -> Option<usize> {
    let (echo, reply) = match request.dst {
        IpAddr::V4(_) => (8, 0),
        IpAddr::V6(_) => (128, 129),
    };
    let asked = request.message[..2] == [echo, 0];
    if !asked || !is_unicast(request.src) || !is_unicast(request.dst) || !checksum_ok(request) {
        return None;
    }
    let len = request.message.len();
    let (src, dst) = (request.dst, request.src);
    let protocol = if src.is_ipv4() { protocol::ICMPV4 } else { protocol::ICMPV6 };
    let header = write_ip_header(src, dst, protocol, len, out)?;
    let message = out.get_mut(header..header + len)?;
    message.copy_from_slice(request.message);
    message[0] = reply;
    fill_checksum(src, dst, message);
    Some(header + len)
}

/// Reads an ICMP error that quotes a TCP segment of ours; `None` for all other messages.
pub fn hint(error: &Datagram<'_>) -> Option<Hint> {
    let message = error.message;
    let (kind, code) = (message[0], message[1]);
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let kind = match (error.dst, kind, code) {
        (IpAddr::V4(_), 3, 4) => HintKind::TooBig { mtu: mtu & 0xffff },
        (IpAddr::V4(_), 3, _) => HintKind::Unreachable { code },
        (IpAddr::V6(_), 1, _) => HintKind::Unreachable { code },
        (IpAddr::V6(_), 2, _) => HintKind::TooBig { mtu },
        _ => return None,
    };
    if !checksum_ok(error) {
        return None;
    }
    let (src, dst, tcp) = quoted_tcp(&message[8..])?;
    // What is quoted was sent by the one that is told about it.
    if src != error.dst {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let flow =
        FlowKey { local: SocketAddr::new(src, port(0)), remote: SocketAddr::new(dst, port(2)) };
    Some(Hint { flow, seq, kind })
}

/// Addresses and the first 8 bytes of TCP of a quoted packet, which may be cut short behind them.
fn quoted_tcp(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let header_len = usize::from(packet[0] & 0xf) * 4;
            let header = packet.get(..header_len.max(IPV4_HEADER_LEN))?;
            let address = |at: usize| {
                Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&header[at..at + 4]).ok()?)))
            };
            let tcp = packet.get(header.len()..header.len() + 8)?;
            (header[9] == protocol::TCP).then_some((address(12)?, address(16)?, tcp))
        }
        6 => {
            let header = packet.get(..IPV6_HEADER_LEN)?;
            let address = |at: usize| {
                Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).ok()?)))
            };
            let tcp = packet.get(IPV6_HEADER_LEN..IPV6_HEADER_LEN + 8)?;
            (header[6] == protocol::TCP).then_some((address(8)?, address(24)?, tcp))
        }
        _ => None,
    }
}

/// Writes the RST that answers a segment of no connection (RFC 9293 §3.10.7.1) to the front of
/// `out` and returns its length; `None` if there must be none.
pub fn rst_for(segment: &Segment<'_>, out: &mut [u8]) -> Option<usize> {
    let (src, dst) = (segment.flow.local, segment.flow.remote);
    if segment.has(flags::RST) || !is_unicast(src.ip()) || !is_unicast(dst.ip()) {
        return None;
    }
    let (seq, ack, rst) = if segment.has(flags::ACK) {
        (segment.ack, 0, flags::RST)
    } else {
        let phantom = u32::from(segment.has(flags::SYN)) + u32::from(segment.has(flags::FIN));
        let len = segment.payload_len as u32 + phantom;
        (0, segment.seq.wrapping_add(len), flags::RST | flags::ACK)
    };
    let header = write_ip_header(src.ip(), dst.ip(), protocol::TCP, TCP_HEADER_LEN, out)?;
    let tcp = out.get_mut(header..header + TCP_HEADER_LEN)?;
    tcp.fill(0);
    tcp[0..2].copy_from_slice(&src.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&dst.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (TCP_HEADER_LEN as u8 / 4) << 4;
    tcp[13] = rst;
    let sum = !sum(src.ip(), dst.ip(), IpProtocol::Tcp, tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    Some(header + TCP_HEADER_LEN)
}

/// Whether the checksum of a message is right.
pub fn checksum_ok(datagram: &Datagram<'_>) -> bool {
    icmp_sum(datagram.src, datagram.dst, datagram.message) == 0xffff
}

/// Fills in the checksum of the ICMP message that is to go from `src` to `dst`.
pub(crate) fn fill_checksum(src: IpAddr, dst: IpAddr, message: &mut [u8]) {
    message[2..4].fill(0);
    let sum = !icmp_sum(src, dst, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

fn icmp_sum(src: IpAddr, dst: IpAddr, message: &[u8]) -> u16 {
    match src {
        // ICMPv4 has no pseudo header.
        IpAddr::V4(_) => checksum::data(message),
        IpAddr::V6(_) => sum(src, dst, IpProtocol::Icmpv6, message),
    }
}

/// The sum over a pseudo header and what follows it. The addresses are of one family.
fn sum(src: IpAddr, dst: IpAddr, protocol: IpProtocol, bytes: &[u8]) -> u16 {
    let len = bytes.len() as u32;
    let pseudo = checksum::pseudo_header(&src.into(), &dst.into(), protocol, len);
    checksum::combine(&[pseudo, checksum::data(bytes)])
}

fn write_ip_header(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    payload_len: usize,
    out: &mut [u8],
) -> Option<usize> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = out.get_mut(..IPV4_HEADER_LEN)?;
            let len = u16::try_from(IPV4_HEADER_LEN + payload_len).ok()?;
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&len.to_be_bytes());
            header[6] = 0x40; // do not fragment
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            let sum = !checksum::data(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            Some(IPV4_HEADER_LEN)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            out.get(..IPV6_HEADER_LEN)?;
            u16::try_from(payload_len).ok()?;
            Some(write_ipv6_header(src, dst, protocol, HOP_LIMIT, payload_len, out))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Writes an IPv6 header and returns its length.
///
/// # Panics
/// When `out` is shorter than that, or the payload longer than 65,535 bytes.
pub(crate) fn write_ipv6_header(
    src: Ipv6Addr,
    dst: Ipv6Addr,
    protocol: u8,
    hop_limit: u8,
    payload_len: usize,
    out: &mut [u8],
) -> usize {
    assert!(payload_len <= usize::from(u16::MAX), "IPv6 payload of {payload_len} bytes");
    let header = &mut out[..IPV6_HEADER_LEN];
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
    header[6] = protocol;
    header[7] = hop_limit;
    header[8..24].copy_from_slice(&src.octets());
    header[24..40].copy_from_slice(&dst.octets());
    IPV6_HEADER_LEN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eth::{Frame, HEADER_LEN, Header, Packet, ethertype};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// An IP packet in a frame, as it would be received.
    fn frame(packet: &[u8]) -> Vec<u8> {
        let ethertype = if packet[0] >> 4 == 4 { ethertype::IPV4 } else { ethertype::IPV6 };
        let mut frame = vec![0; HEADER_LEN];
        Header { dst: [2; 6], src: [4; 6], vlan: None, ethertype }.write(&mut frame);
        frame.extend(packet);
        frame
    }

    fn message(src: &str, dst: &str, body: &[u8]) -> Vec<u8> {
        let (src, dst) = (ip(src), ip(dst));
        let mut out = vec![0; 200];
        let protocol = if src.is_ipv4() { protocol::ICMPV4 } else { protocol::ICMPV6 };
        let header = write_ip_header(src, dst, protocol, body.len(), &mut out).unwrap();
        out.truncate(header);
        let mut body = body.to_vec();
        fill_checksum(src, dst, &mut body);
        out.extend(body);
        frame(&out)
    }

    fn datagram(frame: &[u8]) -> Datagram<'_> {
        match Frame::parse(frame).unwrap().packet {
            Packet::Icmp(datagram) => datagram,
            other => panic!("{other:?}"),
        }
    }

    fn segment(frame: &[u8]) -> Segment<'_> {
        match Frame::parse(frame).unwrap().packet {
            Packet::Tcp(segment) => segment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn echo_is_answered_with_the_same_bytes() {
        for (src, dst, ask, answer) in
            [("10.0.0.2", "10.0.0.1", 8, 0), ("fd00::2", "fd00::1", 128, 129)]
        {
            let request = message(src, dst, &[ask, 0, 0, 0, 1, 2, 3, 4, 5]);
            let mut out = [0; 100];
            let len = echo_reply(&datagram(&request), &mut out).unwrap();
            let reply = frame(&out[..len]);
            let reply = datagram(&reply);
            assert_eq!((reply.src, reply.dst), (ip(dst), ip(src)));
            assert_eq!((reply.message[0], &reply.message[4..]), (answer, &[1, 2, 3, 4, 5][..]));
            assert!(checksum_ok(&reply));
        }
    }

    #[test]
    fn echo_that_is_not_sound_is_not_answered() {
        let mut out = [0; 100];
        let mut answer = |frame: &[u8]| echo_reply(&datagram(frame), &mut out);
        assert_eq!(answer(&message("10.0.0.2", "10.0.0.1", &[0; 8])), None, "a reply");
        let ask = [8, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(answer(&message("10.0.0.2", "255.255.255.255", &ask)), None, "to all");
        assert_eq!(answer(&message("224.0.0.1", "10.0.0.1", &ask)), None, "from a group");
        let mut broken = message("10.0.0.2", "10.0.0.1", &ask);
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(answer(&broken), None, "checksum");
        assert_eq!(
            echo_reply(&datagram(&message("10.0.0.2", "10.0.0.1", &ask)), &mut [0; 27]),
            None
        );
    }

    /// A segment from `src` to `dst` with `payload` bytes.
    fn tcp(src: &str, dst: &str, bits: u8, payload: usize) -> Vec<u8> {
        let mut tcp = vec![0; 20 + payload];
        tcp[..14].copy_from_slice(&[0, 100, 0, 200, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, bits]);
        let mut out = vec![0; 40];
        let header = write_ip_header(ip(src), ip(dst), protocol::TCP, tcp.len(), &mut out).unwrap();
        out.truncate(header);
        out.extend(tcp);
        frame(&out)
    }

    #[test]
    fn rst_takes_its_numbers_from_what_it_answers() {
        for (src, dst) in [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")] {
            for (bits, payload, expected) in [
                (flags::ACK, 3, (9, 0, flags::RST)),
                (flags::SYN | flags::ACK, 0, (9, 0, flags::RST)),
                (flags::SYN, 0, (0, 8, flags::RST | flags::ACK)),
                (flags::FIN, 3, (0, 11, flags::RST | flags::ACK)),
            ] {
                let mut out = [0; RST_LEN_MAX];
                let len = rst_for(&segment(&tcp(src, dst, bits, payload)), &mut out).unwrap();
                let reply = frame(&out[..len]);
                let rst = segment(&reply);
                assert_eq!((rst.seq, rst.ack, rst.flags), expected);
                assert_eq!((rst.flow.local.port(), rst.flow.remote.port()), (100, 200));
                assert_eq!((rst.flow.local.ip(), rst.flow.remote.ip()), (ip(src), ip(dst)));
                let tcp = &out[len - 20..len];
                assert_eq!(sum(ip(dst), ip(src), IpProtocol::Tcp, tcp), 0xffff);
            }
        }
    }

    #[test]
    fn rst_is_never_answered_and_groups_get_none() {
        let mut out = [0; RST_LEN_MAX];
        let mut answer = |frame: &[u8]| rst_for(&segment(frame), &mut out);
        assert_eq!(answer(&tcp("10.0.0.2", "10.0.0.1", flags::RST, 0)), None);
        assert_eq!(answer(&tcp("10.0.0.2", "224.0.0.1", flags::SYN, 0)), None);
        assert_eq!(answer(&tcp("255.255.255.255", "10.0.0.1", flags::SYN, 0)), None);
    }

    fn error(kind: u8, code: u8, word: u32, quoted: &[u8]) -> Vec<u8> {
        let (router, us) = match quoted[0] >> 4 {
            4 => ("10.0.0.254", "10.0.0.1"),
            _ => ("fd00::fe", "fd00::1"),
        };
        let body = [&[kind, code, 0, 0], &word.to_be_bytes()[..], quoted].concat();
        message(router, us, &body)
    }

    #[test]
    fn errors_hint_at_the_connection_that_they_quote() {
        let flow = |local: &str, remote: &str| FlowKey {
            local: SocketAddr::new(ip(local), 100),
            remote: SocketAddr::new(ip(remote), 200),
        };
        let sent = tcp("10.0.0.1", "192.0.2.1", flags::SYN, 0);
        let quoted = &sent[HEADER_LEN..HEADER_LEN + 28];
        let four = flow("10.0.0.1", "192.0.2.1");
        let unreachable = HintKind::Unreachable { code: 1 };
        assert_eq!(
            hint(&datagram(&error(3, 1, 0, quoted))),
            Some(Hint { flow: four, seq: 7, kind: unreachable })
        );
        assert_eq!(
            hint(&datagram(&error(3, 4, 1400, quoted))),
            Some(Hint { flow: four, seq: 7, kind: HintKind::TooBig { mtu: 1400 } })
        );
        assert_eq!(hint(&datagram(&error(3, 1, 0, &quoted[..27]))), None, "cut short");
        assert_eq!(hint(&datagram(&error(11, 0, 0, quoted))), None, "time exceeded");

        let sent = tcp("fd00::1", "2001:db8::1", flags::SYN, 0);
        let quoted = &sent[HEADER_LEN..HEADER_LEN + 48];
        assert_eq!(
            hint(&datagram(&error(2, 0, 1280, quoted))),
            Some(Hint {
                flow: flow("fd00::1", "2001:db8::1"),
                seq: 7,
                kind: HintKind::TooBig { mtu: 1280 }
            })
        );
        let foreign = tcp("fd00::7", "2001:db8::1", flags::SYN, 0);
        assert_eq!(hint(&datagram(&error(1, 0, 0, &foreign[HEADER_LEN..]))), None, "not ours");
    }

    proptest! {
        #[test]
        fn random_messages_never_panic(
            six: bool,
            bytes in proptest::collection::vec(any::<u8>(), 8..120),
        ) {
            let (src, dst) = if six { ("fd00::2", "fd00::1") } else { ("10.0.0.2", "10.0.0.1") };
            let (src, dst) = (ip(src), ip(dst));
            let mut message = bytes;
            fill_checksum(src, dst, &mut message);
            let datagram = Datagram { src, dst, hop_limit: 64, message: &message };
            let _ = hint(&datagram);
            let _ = echo_reply(&datagram, &mut [0; 100]);
        }
    }
}
