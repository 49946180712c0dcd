//! What we read of a TCP segment by ourselves: on the way in to find its connection, on the way out
//! to know what smoltcp has sent.
//!
//! Nothing here verifies a checksum; smoltcp does before it believes a segment.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const TCP_HEADER_BYTES: usize = 20;

/// Local and remote endpoint of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Hash for Tuple {
    /// In few and large pieces: this runs for each segment.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ports = u32::from(self.local.port()) << 16 | u32::from(self.remote.port());
        match (self.local.ip(), self.remote.ip()) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                state.write_u64(u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()));
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                state.write_u128(local.to_bits());
                state.write_u128(remote.to_bits());
            }
            // No packet has addresses of two families.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
        }
        state.write_u32(ports);
    }
}

/// The fields of a segment that we act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub flags: Flags,
    pub payload_bytes: u32,
    /// Where the TCP header starts in the packet.
    pub tcp_offset: u8,
}

/// TCP's flags, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags(pub u8);

impl Flags {
    pub(super) fn fin(self) -> bool {
        self.0 & 0x01 != 0
    }
    pub(super) fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }
    pub(super) fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }
    pub(super) fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }
}

impl Segment {
    /// Reads an IP packet; `None` if it is not one whole, unfragmented TCP segment.
    pub(super) fn parse(ip: &[u8]) -> Option<Self> {
        match ip.first()? >> 4 {
            4 => Self::parse_v4(ip),
            6 => Self::parse_v6(ip),
            _ => None,
        }
    }

    fn parse_v4(ip: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = ip.first_chunk()?;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        if header[9] != TCP || fragment != 0 {
            return None;
        }
        let total = u16::from_be_bytes([header[2], header[3]]) as usize;
        let [_, _, _, _, _, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h] = *header;
        let addresses = (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into());
        Self::parse_tcp(ip.get(..total)?, usize::from(header[0] & 0x0f) * 4, addresses)
    }

    fn parse_v6(ip: &[u8]) -> Option<Self> {
        let header: &[u8; 40] = ip.first_chunk()?;
        if header[6] != TCP {
            return None;
        }
        let total = 40 + u16::from_be_bytes([header[4], header[5]]) as usize;
        let source: [u8; 16] = header[8..24].try_into().ok()?;
        let destination: [u8; 16] = header[24..40].try_into().ok()?;
        let addresses = (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into());
        Self::parse_tcp(ip.get(..total)?, 40, addresses)
    }

    fn parse_tcp(ip: &[u8], offset: usize, addresses: (IpAddr, IpAddr)) -> Option<Self> {
        let tcp: &[u8; TCP_HEADER_BYTES] = ip.get(offset..)?.first_chunk()?;
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let header_bytes = usize::from(tcp[12] >> 4) * 4;
        let payload_bytes = (ip.len() - offset).checked_sub(header_bytes)?;
        if header_bytes < TCP_HEADER_BYTES {
            return None;
        }
        Some(Self {
            source: SocketAddr::new(addresses.0, half(0)),
            destination: SocketAddr::new(addresses.1, half(2)),
            seq: word(4),
            ack: word(8),
            window: half(14),
            flags: Flags(tcp[13]),
            payload_bytes: payload_bytes as u32,
            tcp_offset: offset as u8,
        })
    }

    /// The connection that a received segment belongs to.
    pub(super) fn tuple(&self) -> Tuple {
        Tuple { local: self.destination, remote: self.source }
    }

    /// Sequence numbers that it takes: payload, SYN and FIN.
    pub(super) fn sequence_bytes(&self) -> u32 {
        self.payload_bytes + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }
}

/// Whether sequence number `a` comes before `b`.
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN 10.0.0.1:1024 → 10.0.0.2:4420 with an MSS option and two bytes of link padding.
    fn syn() -> Vec<u8> {
        let mut p = vec![0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        p.extend([4, 0, 0x11, 0x44, 0, 0, 0, 7, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        p.extend([2, 4, 5, 0xb4, 0, 0]);
        p
    }

    #[test]
    fn fields_of_a_syn_are_read_and_padding_is_not_payload() {
        let segment = Segment::parse(&syn()).unwrap();
        assert_eq!(segment.source, "10.0.0.1:1024".parse().unwrap());
        assert_eq!(segment.destination, "10.0.0.2:4420".parse().unwrap());
        assert_eq!((segment.seq, segment.window, segment.payload_bytes), (7, 0xffff, 0));
        assert!(segment.flags.syn() && !segment.flags.ack());
        assert_eq!(segment.sequence_bytes(), 1);
    }

    #[test]
    fn fragments_and_cut_packets_are_refused() {
        let mut fragment = syn();
        fragment[7] = 1;
        assert_eq!(Segment::parse(&fragment), None);
        (0..44).for_each(|n| assert_eq!(Segment::parse(&syn()[..n]), None, "{n}"));
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert!(before(u32::MAX, 0) && before(1, 2) && !before(2, 2) && !before(0, u32::MAX));
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Some(segment) = Segment::parse(&bytes) {
                prop_assert!((segment.payload_bytes as usize) < bytes.len());
            }
        }
    }
}
