//! What ARP and ND look like on the wire (RFC 826, RFC 4861 §4.3, §4.4, §4.6.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Out, Outgoing};
use crate::eth::{self, Arp, ArpOp, Datagram, Mac, ethertype, multicast_mac, protocol};
use crate::icmp;

const IPV6_HEADER_LEN: usize = 40;
/// Type, code, checksum, flags, target.
const NDISC_LEN: usize = 24;
/// A link-layer address option.
const OPTION_LEN: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The longest packet that is ever written.
pub const PACKET_LEN_MAX: usize = IPV6_HEADER_LEN + NDISC_LEN + OPTION_LEN;

/// A received solicitation or advertisement.
pub(super) struct Message {
    pub kind: Kind,
    pub source: Ipv6Addr,
    pub target: Ipv6Addr,
    /// From its link-layer address option.
    pub mac: Option<Mac>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Solicitation,
    Advertisement {
        /// It replaces what was known.
        overrides: bool,
    },
    /// Router discovery and redirects: not for us, our routes are configured.
    Other,
}

/// Whether a message is ND: router and neighbour discovery, redirects.
pub(super) fn is_ndisc(datagram: &Datagram<'_>) -> bool {
    datagram.dst.is_ipv6() && (133..=137).contains(&datagram.message[0])
}

/// Parses a message, with the checks of RFC 4861 §7.1; `None` if it must be discarded.
pub(super) fn parse(datagram: &Datagram<'_>) -> Option<Message> {
    let (IpAddr::V6(source), IpAddr::V6(dst)) = (datagram.src, datagram.dst) else { return None };
    let message = datagram.message;
    let sound = datagram.hop_limit == 255 && message[1] == 0 && icmp::checksum_ok(datagram);
    if !sound {
        return None;
    }
    let kind = match message[0] {
        SOLICITATION => Kind::Solicitation,
        ADVERTISEMENT => Kind::Advertisement { overrides: message[4] & OVERRIDE != 0 },
        _ => Kind::Other,
    };
    if kind == Kind::Other {
        return Some(Message { kind, source, target: Ipv6Addr::UNSPECIFIED, mac: None });
    }
    let (fixed, options) = message.split_at_checked(NDISC_LEN)?;
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..]).ok()?);
    let wanted = match kind {
        Kind::Solicitation => SOURCE_LINK_LAYER,
        Kind::Advertisement { .. } | Kind::Other => TARGET_LINK_LAYER,
    };
    let mac = link_layer_address(options, wanted)?;
    let unspecified = source.is_unspecified();
    let sound = match kind {
        // From nowhere: to a group, and without a source link-layer address.
        Kind::Solicitation => !unspecified || dst.is_multicast() && mac.is_none(),
        Kind::Advertisement { .. } => {
            !(unspecified || dst.is_multicast() && message[4] & SOLICITED != 0)
        }
        Kind::Other => true,
    };
    (sound && !target.is_multicast()).then_some(Message { kind, source, target, mac })
}

/// The link-layer address of the option of that type; the outer `None` if an option is broken.
fn link_layer_address(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    let mut mac = None;
    while !options.is_empty() {
        let len = usize::from(*options.get(1)?) * 8;
        if len == 0 {
            return None;
        }
        let (option, rest) = options.split_at_checked(len)?;
        if option[0] == wanted {
            mac = Some(<Mac>::try_from(&option[2..8]).ok()?);
        }
        options = rest;
    }
    Some(mac)
}

/// Writes a packet.
pub(super) fn write(us: Mac, packet: Out, out: &mut [u8]) -> Outgoing {
    let ip = match packet {
        Out::Request { ip, .. } | Out::Probe { ip } | Out::Announce { ip } => ip,
        Out::Reply { ip, .. } => ip,
    };
    match ip {
        IpAddr::V4(ip) => write_arp(us, packet, ip, out),
        IpAddr::V6(ip) => write_ndisc(us, packet, ip, out),
    }
}

fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        IpAddr::V6(ip) => ip,
    }
}

fn write_arp(us: Mac, packet: Out, ip: Ipv4Addr, out: &mut [u8]) -> Outgoing {
    let (dst, op, sender_ip, target_mac, target_ip) = match packet {
        Out::Request { source, to, .. } => {
            (to.unwrap_or(eth::BROADCAST), ArpOp::Request, v4(source), [0; 6], ip)
        }
        Out::Probe { .. } => (eth::BROADCAST, ArpOp::Request, Ipv4Addr::UNSPECIFIED, [0; 6], ip),
        Out::Announce { .. } => (eth::BROADCAST, ArpOp::Request, ip, [0; 6], ip),
        Out::Reply { to, mac, .. } => (mac, ArpOp::Reply, ip, mac, v4(to)),
    };
    let arp = Arp { op, sender_mac: us, sender_ip, target_mac, target_ip };
    Outgoing { dst, ethertype: ethertype::ARP, len: arp.write(out) }
}

fn write_ndisc(us: Mac, packet: Out, ip: Ipv6Addr, out: &mut [u8]) -> Outgoing {
    let group = solicited_node(ip);
    let (to, src, dst, kind, flags, option) = match packet {
        Out::Request { source, to, .. } => {
            let dst = if to.is_some() { ip } else { group };
            (to, v6(source), dst, SOLICITATION, 0, Some(SOURCE_LINK_LAYER))
        }
        Out::Probe { .. } => (None, Ipv6Addr::UNSPECIFIED, group, SOLICITATION, 0, None),
        Out::Announce { .. } => {
            (None, ip, ALL_NODES, ADVERTISEMENT, OVERRIDE, Some(TARGET_LINK_LAYER))
        }
        // RFC 4861 §7.2.4: who asks from nowhere is answered by way of all nodes.
        Out::Reply { to, .. } if to.is_unspecified() => {
            (None, ip, ALL_NODES, ADVERTISEMENT, OVERRIDE, Some(TARGET_LINK_LAYER))
        }
        Out::Reply { to, mac, .. } => {
            let flags = SOLICITED | OVERRIDE;
            (Some(mac), ip, v6(to), ADVERTISEMENT, flags, Some(TARGET_LINK_LAYER))
        }
    };
    let message_len = NDISC_LEN + if option.is_some() { OPTION_LEN } else { 0 };
    let len = icmp::write_ipv6_header(src, dst, protocol::ICMPV6, 255, message_len, out);
    let message = &mut out[len..len + message_len];
    message.fill(0);
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&ip.octets());
    if let Some(option) = option {
        message[24] = option;
        message[25] = 1;
        message[26..32].copy_from_slice(&us);
    }
    icmp::fill_checksum(IpAddr::V6(src), IpAddr::V6(dst), message);
    let dst = to.or_else(|| multicast_mac(IpAddr::V6(dst))).unwrap_or(eth::BROADCAST);
    Outgoing { dst, ethertype: ethertype::IPV6, len: len + message_len }
}

/// The group in which a neighbour is looked for, RFC 4291 §2.7.1.
fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}
