//! Echo requests and replies, errors about TCP segments, and what ND shares with them: checksums, IPv6 headers.
//!
//! Anyone can provoke an answer, so callers put a [`crate::limiter::TokenBucket`] before it; and
//! anyone can send an error, so callers believe only what quotes a segment on its way (RFC 5927
//! §4). Packets are written whole, IP header first.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpProtocol, checksum};

use crate::eth::{Datagram, protocol};
use crate::route::is_unicast;
use crate::segment::Tuple;
use crate::transport::IcmpError;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
/// TTL and hop limit of what we send.
const HOP_LIMIT: u8 = 64;

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

/// What tells echo requests and their replies apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Identifier.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
    /// The data: what nobody can know who has not seen the request.
    pub token: u64,
}

/// Bytes of an echo request of ours, at most.
pub const ECHO_LEN_MAX: usize = IPV6_HEADER_LEN + 16;

/// Writes an echo request to the front of `out` and returns its length.
///
/// # Panics
/// When `out` is shorter than [`ECHO_LEN_MAX`], or the addresses are of two families.
pub fn echo_request(src: IpAddr, dst: IpAddr, echo: Echo, out: &mut [u8]) -> usize {
    let (kind, protocol) = match src {
        IpAddr::V4(_) => (8, protocol::ICMPV4),
        IpAddr::V6(_) => (128, protocol::ICMPV6),
    };
    let header = write_ip_header(src, dst, protocol, 16, out).expect("as documented");
    let message = &mut out[header..header + 16];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message[4..6].copy_from_slice(&echo.id.to_be_bytes());
    message[6..8].copy_from_slice(&echo.seq.to_be_bytes());
    message[8..].copy_from_slice(&echo.token.to_be_bytes());
    fill_checksum(src, dst, message);
    header + 16
}

/// Reads a reply to an echo request like ours.
pub fn echoed(datagram: &Datagram<'_>) -> Option<Echo> {
    let reply = if datagram.dst.is_ipv4() { 0 } else { 129 };
    let message: &[u8; 16] = datagram.message.try_into().ok()?;
    if message[..2] != [reply, 0] || !checksum_ok(datagram) {
        return None;
    }
    let (head, token) = message.split_at(8);
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let token = u64::from_be_bytes(token.try_into().expect("16 is twice 8"));
    Some(Echo { id: word(4), seq: word(6), token })
}

/// An ICMP error about a TCP segment that we sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// What it says.
    pub error: IcmpError,
    /// The connection whose segment it was.
    pub tuple: Tuple,
    /// The segment's sequence number.
    pub seq: u32,
}

/// Whether a message is an error that may be about a segment of ours.
pub fn is_error(datagram: &Datagram<'_>) -> bool {
    error(datagram).is_some()
}

/// What an error says, by its type and code (RFC 792, 1122 §3.2.2.1, 1812 §5.2.7.1; RFC 4443 §3).
fn error(datagram: &Datagram<'_>) -> Option<IcmpError> {
    let message = datagram.message;
    let word = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    Some(match (datagram.dst.is_ipv4(), message[0], message[1]) {
        (true, 3, 2 | 3) | (false, 1, 4) | (false, 4, 1) => IcmpError::Port,
        (true, 3, 4) => IcmpError::TooBig { mtu: word & 0xffff },
        (false, 2, _) => IcmpError::TooBig { mtu: word },
        (true, 3, 9 | 10 | 13) | (false, 1, 1 | 5 | 6) => IcmpError::Prohibited,
        (true, 3, _) | (false, 1, _) => IcmpError::NoRoute,
        (true, 11, _) | (false, 3, _) => IcmpError::HopLimit,
        (true, 12, _) | (false, 4, _) => IcmpError::Parameter,
        _ => return None,
    })
}

/// Reads an error about a TCP segment that went out from the address that it came to; `None` if it
/// is something else, or unsound. Of the segment, its first eight bytes are needed.
pub fn quoted(datagram: &Datagram<'_>) -> Option<Quoted> {
    let error = error(datagram).filter(|_| checksum_ok(datagram))?;
    let packet = &datagram.message[8..];
    let array4 = |at: usize| packet.get(at..)?.first_chunk::<4>().copied();
    let array16 = |at: usize| packet.get(at..)?.first_chunk::<16>().copied();
    let (header_len, next, src, dst) = match packet.first()? >> 4 {
        4 => {
            let later_fragment = packet.get(6)? & 0x1f != 0 || *packet.get(7)? != 0;
            if later_fragment {
                return None;
            }
            let len = usize::from(packet[0] & 0xf) * 4;
            (len, *packet.get(9)?, IpAddr::from(array4(12)?), IpAddr::from(array4(16)?))
        }
        6 => (
            IPV6_HEADER_LEN,
            *packet.get(6)?,
            IpAddr::from(array16(8)?),
            IpAddr::from(array16(24)?),
        ),
        _ => return None,
    };
    let tcp: &[u8; 8] = packet.get(header_len..)?.first_chunk()?;
    let local = SocketAddr::new(src, u16::from_be_bytes([tcp[0], tcp[1]]));
    let remote = SocketAddr::new(dst, u16::from_be_bytes([tcp[2], tcp[3]]));
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let sound = next == protocol::TCP && header_len >= IPV4_HEADER_LEN && src == datagram.dst;
    sound.then_some(Quoted { error, tuple: Tuple { local, remote }, seq })
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
        IpAddr::V6(_) => {
            let len = message.len() as u32;
            let pseudo = checksum::pseudo_header(&src.into(), &dst.into(), IpProtocol::Icmpv6, len);
            checksum::combine(&[pseudo, checksum::data(message)])
        }
    }
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

    #[test]
    fn an_error_is_read_from_the_segment_that_it_quotes() {
        let cases = [
            (true, 3, 1, 0, IcmpError::NoRoute),
            (true, 3, 0, 0, IcmpError::NoRoute),
            (true, 3, 3, 0, IcmpError::Port),
            (true, 3, 13, 0, IcmpError::Prohibited),
            (true, 3, 4, 1400, IcmpError::TooBig { mtu: 1400 }),
            (true, 11, 0, 0, IcmpError::HopLimit),
            (true, 12, 0, 0, IcmpError::Parameter),
            (false, 1, 0, 0, IcmpError::NoRoute),
            (false, 1, 3, 0, IcmpError::NoRoute),
            (false, 1, 4, 0, IcmpError::Port),
            (false, 1, 1, 0, IcmpError::Prohibited),
            (false, 2, 0, 1280, IcmpError::TooBig { mtu: 1280 }),
            (false, 3, 0, 0, IcmpError::HopLimit),
            (false, 4, 0, 0, IcmpError::Parameter),
        ];
        for (v4, kind, code, word, error) in cases {
            let [us, peer, router] = match v4 {
                true => ["10.0.0.1", "10.0.9.2", "10.0.0.254"],
                false => ["fd00::1", "fd99::2", "fd00::fe"],
            };
            let mut body = vec![kind, code, 0, 0];
            body.extend(u32::to_be_bytes(word));
            let start = body.len();
            body.resize(start + 60, 0);
            let header =
                write_ip_header(ip(us), ip(peer), protocol::TCP, 20, &mut body[start..]).unwrap();
            body.truncate(start + header);
            body.extend([0xc0, 1, 0x11, 0x44, 1, 2, 3, 4]);
            let frame = message(router, us, &body);
            assert!(is_error(&datagram(&frame)));
            let quoted = quoted(&datagram(&frame)).unwrap();
            let [local, remote] = [(us, 0xc001), (peer, 4420)].map(|(a, p)| (ip(a), p).into());
            assert_eq!(quoted, Quoted { error, tuple: Tuple { local, remote }, seq: 0x0102_0304 });
            // About another's packet, cut short, or damaged.
            let elsewhere = message(router, if v4 { "10.0.0.7" } else { "fd00::7" }, &body);
            let cut = message(router, us, &body[..body.len() - 1]);
            let mut damaged = frame.clone();
            *damaged.last_mut().unwrap() ^= 1;
            for frame in [elsewhere, cut, damaged] {
                assert_eq!(super::quoted(&datagram(&frame)), None);
            }
        }
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
            let _ = echo_reply(&datagram, &mut [0; 100]);
            let _ = (is_error(&datagram), quoted(&datagram));
        }
    }
}
