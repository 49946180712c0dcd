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
