//! Echo replies, and what ND shares with them: checksums and IPv6 headers.
//!
//! Anyone can provoke an answer, so callers put a [`crate::limiter::TokenBucket`] before it.
//! ICMP errors are not read at all: whoever guesses the ports can send them (RFC 5927 §4), and
//! our own deadlines are shorter than any router's patience. Packets are written whole, IP header
//! first.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, checksum};

use crate::eth::{Datagram, protocol};
use crate::route::is_unicast;

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
        }
    }
}
