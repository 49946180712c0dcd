//! Received frames, parsed without copying, and Ethernet headers to send.
//!
//! [`Frame::parse`] looks only at what demultiplexing needs, and checks each length before use.
//! It verifies no checksum: TCP's are smoltcp's business, the others' belong to who uses them.
//! An IP packet is cut to its own length, so padding of short frames never reaches TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::segment::Segment;

/// A hardware address.
pub type Mac = [u8; 6];

/// All stations.
pub const BROADCAST: Mac = [0xff; 6];

/// EtherType values.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// An 802.1Q tag follows.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMPv4.
    pub const ICMPV4: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// A received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Sender.
    pub src: Mac,
    /// Receiver: we, or a group.
    pub dst: Mac,
    /// VLAN identifier, if the frame is tagged with one (VID 0 is a priority tag, no VLAN).
    pub vlan: Option<u16>,
    /// What it carries.
    pub packet: Packet<'a>,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// TCP over either IP, with the whole IP packet and nothing behind it.
    Tcp(Segment, &'a [u8]),
    /// ICMPv4 or ICMPv6.
    Icmp(Datagram<'a>),
    /// Anything else: not ours to answer.
    Other,
}

/// An ICMP message in its IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Sender.
    pub src: IpAddr,
    /// Receiver: we, or a group.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The message, ICMP header first, at least 8 bytes.
    pub message: &'a [u8],
}

/// An ARP packet for IPv4 over Ethernet, RFC 826.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Whether it asks or answers.
    pub op: ArpOp,
    /// `ar$sha`.
    pub sender_mac: Mac,
    /// `ar$spa`.
    pub sender_ip: Ipv4Addr,
    /// `ar$tha`.
    pub target_mac: Mac,
    /// `ar$tpa`.
    pub target_ip: Ipv4Addr,
}

/// ARP operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOp {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// Why a frame could not be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the headers it announces.
    #[error("frame ends within a header")]
    Truncated,
    /// ARP that is not IPv4 over Ethernet, or neither request nor reply.
    #[error("ARP of a kind that does not exist here")]
    Arp,
    /// The version field does not match the EtherType.
    #[error("IP version does not match the EtherType")]
    IpVersion,
    /// An IP header or total length that cannot be.
    #[error("impossible IP length")]
    IpLength,
    /// A fragment: nothing of ours is sent fragmented, and nothing is reassembled.
    #[error("IP fragment")]
    Fragment,
    /// A TCP data offset that cannot be.
    #[error("impossible TCP data offset")]
    TcpOffset,
}

/// Bytes of an Ethernet header without a tag.
pub const HEADER_LEN: usize = 14;
/// Bytes of an 802.1Q tag.
pub const TAG_LEN: usize = 4;
const ARP_LEN: usize = 28;
const IPV6_HEADER_LEN: usize = 40;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// `N` bytes from `at` on; the caller has checked that they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

impl<'a> Frame<'a> {
    /// Parses a received frame.
    ///
    /// # Errors
    /// [`Malformed`], for the counter of that name; the frame is dropped.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, mut rest) = bytes.split_at_checked(HEADER_LEN).ok_or(Malformed::Truncated)?;
        let mut kind = be16(header, 12);
        let mut vlan = None;
        if kind == ethertype::VLAN {
            let (tag, behind) = rest.split_at_checked(TAG_LEN).ok_or(Malformed::Truncated)?;
            vlan = Some(be16(tag, 0) & 0xfff).filter(|&vid| vid != 0);
            kind = be16(tag, 2);
            rest = behind;
        }
        let packet = match kind {
            ethertype::IPV4 => parse_ipv4(rest)?,
            ethertype::IPV6 => parse_ipv6(rest)?,
            ethertype::ARP => Packet::Arp(Arp::parse(rest)?),
            _ => Packet::Other,
        };
        Ok(Self { src: array(header, 6), dst: array(header, 0), vlan, packet })
    }
}

fn parse_ipv4(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    if bytes.len() < 20 {
        return Err(Malformed::Truncated);
    }
    if bytes[0] >> 4 != 4 {
        return Err(Malformed::IpVersion);
    }
    let header_len = usize::from(bytes[0] & 0xf) * 4;
    let packet = bytes.get(..usize::from(be16(bytes, 2))).ok_or(Malformed::IpLength)?;
    if header_len < 20 || packet.len() < header_len {
        return Err(Malformed::IpLength);
    }
    // More fragments, or an offset.
    if be16(packet, 6) & 0x3fff != 0 {
        return Err(Malformed::Fragment);
    }
    let src = IpAddr::V4(Ipv4Addr::from(array::<4>(packet, 12)));
    let dst = IpAddr::V4(Ipv4Addr::from(array::<4>(packet, 16)));
    match packet[9] {
        protocol::TCP => parse_tcp(packet, header_len, src, dst),
        protocol::ICMPV4 => parse_icmp(packet, header_len, packet[8], src, dst),
        _ => Ok(Packet::Other),
    }
}

fn parse_ipv6(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    if bytes.len() < IPV6_HEADER_LEN {
        return Err(Malformed::Truncated);
    }
    if bytes[0] >> 4 != 6 {
        return Err(Malformed::IpVersion);
    }
    let len = IPV6_HEADER_LEN + usize::from(be16(bytes, 4));
    let packet = bytes.get(..len).ok_or(Malformed::IpLength)?;
    let src = IpAddr::V6(Ipv6Addr::from(array::<16>(packet, 8)));
    let dst = IpAddr::V6(Ipv6Addr::from(array::<16>(packet, 24)));
    match packet[6] {
        protocol::TCP => parse_tcp(packet, IPV6_HEADER_LEN, src, dst),
        protocol::ICMPV6 => parse_icmp(packet, IPV6_HEADER_LEN, packet[7], src, dst),
        44 => Err(Malformed::Fragment),
        // Other extension headers: no peer of ours has a reason to send them.
        _ => Ok(Packet::Other),
    }
}

fn parse_tcp(
    packet: &[u8],
    ip_header_len: usize,
    src: IpAddr,
    dst: IpAddr,
) -> Result<Packet<'_>, Malformed> {
    Ok(Packet::Tcp(Segment::parse(packet, ip_header_len, src, dst)?, packet))
}

/// The TCP segment in an IP packet that is to be sent.
pub(crate) fn sent_segment(packet: &[u8]) -> Option<Segment> {
    let parsed = match packet.first()? >> 4 {
        4 => parse_ipv4(packet),
        _ => parse_ipv6(packet),
    };
    match parsed {
        Ok(Packet::Tcp(segment, _)) => Some(segment),
        _ => None,
    }
}

fn parse_icmp(
    packet: &[u8],
    ip_header_len: usize,
    hop_limit: u8,
    src: IpAddr,
    dst: IpAddr,
) -> Result<Packet<'_>, Malformed> {
    let message = &packet[ip_header_len..];
    if message.len() < 8 {
        return Err(Malformed::Truncated);
    }
    Ok(Packet::Icmp(Datagram { src, dst, hop_limit, message }))
}

impl Arp {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < ARP_LEN {
            return Err(Malformed::Truncated);
        }
        // Hardware Ethernet, protocol IPv4, their address lengths.
        if bytes[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(Malformed::Arp);
        }
        let op = match be16(bytes, 6) {
            1 => ArpOp::Request,
            2 => ArpOp::Reply,
            _ => return Err(Malformed::Arp),
        };
        Ok(Self {
            op,
            sender_mac: array(bytes, 8),
            sender_ip: Ipv4Addr::from(array::<4>(bytes, 14)),
            target_mac: array(bytes, 18),
            target_ip: Ipv4Addr::from(array::<4>(bytes, 24)),
        })
    }

    /// Writes the packet and returns its length.
    ///
    /// # Panics
    /// When `out` is shorter than 28 bytes.
    pub fn write(&self, out: &mut [u8]) -> usize {
        out[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        let op: u16 = match self.op {
            ArpOp::Request => 1,
            ArpOp::Reply => 2,
        };
        out[6..8].copy_from_slice(&op.to_be_bytes());
        out[8..14].copy_from_slice(&self.sender_mac);
        out[14..18].copy_from_slice(&self.sender_ip.octets());
        out[18..24].copy_from_slice(&self.target_mac);
        out[24..28].copy_from_slice(&self.target_ip.octets());
        ARP_LEN
    }
}

/// An Ethernet header to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Receiver.
    pub dst: Mac,
    /// Sender: we.
    pub src: Mac,
    /// VLAN identifier, if the lane has a VLAN.
    pub vlan: Option<u16>,
    /// See [`ethertype`].
    pub ethertype: u16,
}

impl Header {
    /// Bytes of a header, with its tag if `vlan` is one.
    pub const fn len_of(vlan: Option<u16>) -> usize {
        HEADER_LEN + if vlan.is_some() { TAG_LEN } else { 0 }
    }

    /// Writes the header and returns its length.
    ///
    /// # Panics
    /// When `out` is shorter than [`Header::len_of`].
    pub fn write(&self, out: &mut [u8]) -> usize {
        let len = Self::len_of(self.vlan);
        out[..6].copy_from_slice(&self.dst);
        out[6..12].copy_from_slice(&self.src);
        if let Some(vid) = self.vlan {
            out[12..14].copy_from_slice(&ethertype::VLAN.to_be_bytes());
            out[14..16].copy_from_slice(&(vid & 0xfff).to_be_bytes());
        }
        out[len - 2..len].copy_from_slice(&self.ethertype.to_be_bytes());
        len
    }
}

/// Where an IP packet must be sent at L2, if its destination is a group.
pub fn multicast_mac(ip: IpAddr) -> Option<Mac> {
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => Some(BROADCAST),
        IpAddr::V4(ip) if ip.is_multicast() => {
            let [_, b, c, d] = ip.octets();
            Some([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(ip) if ip.is_multicast() => {
            let [.., a, b, c, d] = ip.octets();
            Some([0x33, 0x33, a, b, c, d])
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Mac = [2, 0, 0, 0, 0, 1];
    const PEER: Mac = [2, 0, 0, 0, 0, 2];

    fn header(vlan: Option<u16>, ethertype: u16) -> Vec<u8> {
        let mut out = vec![0; Header::len_of(vlan)];
        Header { dst: US, src: PEER, vlan, ethertype }.write(&mut out);
        out
    }

    /// A SYN with two bytes of data from 10.0.0.2:1000 to 10.0.0.1:4420.
    fn ipv4_syn() -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 42, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        ip.extend([3, 232, 17, 68, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 2, 1, 0, 0, 0, 0, 0]);
        ip.extend([0xaa, 0xbb]);
        ip
    }

    fn ipv6_syn() -> Vec<u8> {
        let mut ip = vec![0x60, 0, 0, 0, 0, 22, 6, 64];
        ip.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        ip.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        ip.extend(&ipv4_syn()[20..]);
        ip
    }

    fn segment(frame: &[u8]) -> (Option<u16>, Segment, &[u8]) {
        let frame = Frame::parse(frame).unwrap();
        assert_eq!((frame.src, frame.dst), (PEER, US));
        match frame.packet {
            Packet::Tcp(segment, packet) => (frame.vlan, segment, packet),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tcp_over_ipv4_is_cut_to_its_length() {
        let mut frame = header(None, ethertype::IPV4);
        frame.extend(ipv4_syn());
        frame.resize(60, 0);
        let (vlan, segment, packet) = segment(&frame);
        assert_eq!(vlan, None);
        assert_eq!(packet, ipv4_syn());
        assert_eq!(segment.tuple.local, "10.0.0.1:4420".parse().unwrap());
        assert_eq!(segment.tuple.remote, "10.0.0.2:1000".parse().unwrap());
        assert_eq!((segment.seq, segment.ack, segment.window), (7, 9, 256));
        assert_eq!((segment.payload_bytes, segment.sequence_bytes()), (2, 3));
        assert!(segment.flags.syn() && !segment.flags.ack());
        assert_eq!(segment.tcp_offset, 20);
        assert_eq!(sent_segment(packet), Some(segment));
    }

    #[test]
    fn tcp_over_ipv6_with_a_tag() {
        let mut frame = header(Some(100), ethertype::IPV6);
        frame.extend(ipv6_syn());
        frame.extend([0; 9]);
        let (vlan, segment, packet) = segment(&frame);
        assert_eq!(vlan, Some(100));
        assert_eq!(packet, ipv6_syn());
        assert_eq!(segment.tuple.local, "[fd00::1]:4420".parse().unwrap());
        assert_eq!(segment.tuple.remote, "[fd00::2]:1000".parse().unwrap());
        assert_eq!((segment.payload_bytes, segment.tcp_offset), (2, 40));
        assert_eq!(sent_segment(packet), Some(segment));
    }

    #[test]
    fn priority_tag_is_no_vlan() {
        let mut frame = header(Some(0), ethertype::IPV4);
        frame.extend(ipv4_syn());
        assert_eq!(segment(&frame).0, None);
    }

    #[test]
    fn arp_round_trips() {
        let arp = Arp {
            op: ArpOp::Reply,
            sender_mac: PEER,
            sender_ip: Ipv4Addr::new(10, 0, 0, 2),
            target_mac: US,
            target_ip: Ipv4Addr::new(10, 0, 0, 1),
        };
        let mut frame = header(None, ethertype::ARP);
        frame.resize(60, 0);
        assert_eq!(arp.write(&mut frame[HEADER_LEN..]), ARP_LEN);
        assert_eq!(Frame::parse(&frame).unwrap().packet, Packet::Arp(arp));
    }

    #[test]
    fn each_malformation_has_its_name() {
        let broken = |at: usize, value: u8| {
            let mut frame = header(None, ethertype::IPV4);
            frame.extend(ipv4_syn());
            frame[HEADER_LEN + at] = value;
            Frame::parse(&frame).map(|_| ()).unwrap_err()
        };
        assert_eq!(broken(0, 0x65), Malformed::IpVersion);
        assert_eq!(broken(0, 0x44), Malformed::IpLength);
        assert_eq!(broken(3, 43), Malformed::IpLength);
        assert_eq!(broken(3, 19), Malformed::IpLength);
        assert_eq!(broken(3, 39), Malformed::Truncated);
        assert_eq!(broken(6, 0x20), Malformed::Fragment);
        assert_eq!(broken(7, 1), Malformed::Fragment);
        assert_eq!(broken(32, 0x40), Malformed::TcpOffset);
        assert_eq!(broken(32, 0x60), Malformed::TcpOffset);
        assert_eq!(Frame::parse(&[0; 13]), Err(Malformed::Truncated));
    }

    #[test]
    fn groups_have_hardware_addresses_of_their_own() {
        let mac = |ip: &str| multicast_mac(ip.parse().unwrap());
        assert_eq!(mac("224.0.0.251"), Some([1, 0, 0x5e, 0, 0, 0xfb]));
        assert_eq!(mac("ff02::1:ff00:1"), Some([0x33, 0x33, 0xff, 0, 0, 1]));
        assert_eq!(mac("255.255.255.255"), Some(BROADCAST));
        assert_eq!(mac("10.0.0.1"), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::parse(&bytes);
        }

        #[test]
        fn damaged_segments_never_panic(
            six: bool,
            cut in 0usize..80,
            damage in proptest::collection::vec((0usize..80, any::<u8>()), 0..6),
        ) {
            let mut frame = header(None, if six { ethertype::IPV6 } else { ethertype::IPV4 });
            frame.extend(if six { ipv6_syn() } else { ipv4_syn() });
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(cut);
            if let Ok(Frame { packet: Packet::Tcp(segment, packet), .. }) = Frame::parse(&frame) {
                prop_assert!(segment.payload_bytes as usize + 40 <= packet.len());
            }
        }
    }
}
