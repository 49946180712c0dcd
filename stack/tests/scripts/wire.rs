//! Frames of the peer, made by hand so that each part of them can be wrong, and what is read of ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpPacket, checksum};

use super::text::{Tcp, number};

/// The lane under test is node 1, the peer node 2.
pub fn ip(v6: bool, node: u8) -> IpAddr {
    match v6 {
        true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, node.into()).into(),
        false => Ipv4Addr::new(10, 0, 0, node).into(),
    }
}

/// Byte of a stream at an offset; both directions carry the same.
pub fn pattern(offset: u32) -> u8 {
    (offset ^ (offset >> 8)) as u8
}

/// What all frames have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire {
    pub v6: bool,
    pub vlan: Option<u16>,
    /// Whether our checksums are looked at.
    pub sums: bool,
}

/// Where a segment belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub ours: u16,
    pub theirs: u16,
    /// The initial sequence numbers.
    pub our_isn: u32,
    pub their_isn: u32,
}

impl Wire {
    /// An Ethernet frame around an IP packet.
    fn frame(self, to: [u8; 6], vlan: Option<u16>, packet: &[u8]) -> Vec<u8> {
        let mut frame = [to, [2, 0, 0, 0, 0, 2]].concat();
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(match packet[0] >> 4 {
            6 => [0x86, 0xdd],
            4 => [8, 0],
            _ => [8, 6],
        });
        frame.extend(packet);
        frame
    }

    fn packet(self, from: IpAddr, to: IpAddr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let ip = IpRepr::new(from.into(), to.into(), protocol, payload.len(), 64);
        let mut packet = vec![0; ip.header_len()];
        ip.emit(&mut packet[..], &ChecksumCapabilities::default());
        packet.extend(payload);
        packet
    }

    /// The peer's segment.
    pub fn segment(self, tcp: &Tcp, place: Place) -> Result<Vec<u8>, String> {
        let change = |key| tcp.changes.iter().find(|(name, _)| name == key).map(|(_, v)| &v[..]);
        let value = |key| change(key).map(number).transpose();
        let known = [
            "bad-sum",
            "bad-ip-sum",
            "cut",
            "ip-len",
            "offset",
            "pad",
            "mac",
            "vlan",
            "from",
            "to",
            "port",
            "fragment",
            "junk",
        ];
        if let Some((key, _)) = tcp.changes.iter().find(|(key, _)| !known.contains(&&key[..])) {
            return Err(format!("a segment cannot be changed by {key:?}"));
        }
        let address = |key, node| match change(key) {
            Some(text) => text.parse().map_err(|_| format!("{text:?} is no address")),
            None => Ok(ip(self.v6, node)),
        };
        let (from, to): (IpAddr, IpAddr) = (address("from", 2)?, address("to", 1)?);
        let options = options(tcp.options.as_deref().unwrap_or_default(), place)?;
        let port = value("port")?.map_or(place.ours, |port| port as u16);
        let seq = place.their_isn.wrapping_add(tcp.seq);
        let ack = tcp.ack.map_or(0, |ack| place.our_isn.wrapping_add(ack));
        let offset = value("offset")?.map_or(5 + options.len() / 4, |words| words as usize);
        let mut bytes = [place.theirs.to_be_bytes(), port.to_be_bytes()].concat();
        bytes.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
        bytes.extend([(offset << 4) as u8, tcp.flags]);
        bytes.extend(tcp.win.unwrap_or(64_000).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(options);
        let first = tcp.seq.wrapping_sub(u32::from(tcp.flags & 2 == 0));
        bytes.extend((0..tcp.len).map(|at| match change("junk") {
            Some(_) => 0xee,
            None => pattern(first.wrapping_add(at)),
        }));
        let (source, destination) = (IpAddress::from(from), IpAddress::from(to));
        let pseudo =
            checksum::pseudo_header(&source, &destination, IpProtocol::Tcp, bytes.len() as u32);
        let sum = !checksum::combine(&[pseudo, checksum::data(&bytes)]);
        let wrong = u16::from(change("bad-sum").is_some());
        bytes[16..18].copy_from_slice(&(sum ^ wrong).to_be_bytes());

        let mut packet = self.packet(from, to, IpProtocol::Tcp, &bytes);
        if change("bad-ip-sum").is_some() {
            packet[10] ^= 1;
        }
        if let Some(len) = value("ip-len")? {
            let at = if self.v6 { 4 } else { 2 };
            packet[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
            self.sum(&mut packet);
        }
        if change("fragment").is_some() {
            packet[6] |= 0x20;
            self.sum(&mut packet);
        }
        let keep = packet.len() - value("cut")?.unwrap_or(0) as usize;
        packet.resize(keep + value("pad")?.unwrap_or(0) as usize, 0xaa);
        let mac = [2, 0, 0, 0, 0, value("mac")?.unwrap_or(1) as u8];
        let vlan = value("vlan")?.map_or(self.vlan, |vlan| Some(vlan as u16));
        Ok(self.frame(mac, vlan, &packet))
    }

    /// The IPv4 header's checksum, anew.
    fn sum(self, packet: &mut [u8]) {
        if !self.v6 {
            packet[10..12].fill(0);
            let sum = !checksum::data(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// `icmp KIND about SEQ`, an error; `arp reply`, `arp announce`; `nd reply`; `echo request`.
    pub fn other(self, words: &[String], place: Place) -> Result<Vec<u8>, String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let us = [2, 0, 0, 0, 0, 1];
        let (ours, theirs) = (ip(self.v6, 1), ip(self.v6, 2));
        Ok(match words[..] {
            ["arp", what @ ("reply" | "announce")] => {
                let peer = [2, 0, 0, 0, 0, 2];
                let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1 + u8::from(what == "reply")];
                packet.extend(peer);
                packet.extend([10, 0, 0, 2]);
                let reply = what == "reply";
                packet.extend(if reply { us } else { [0; 6] });
                packet.extend([10, 0, 0, if reply { 1 } else { 2 }]);
                self.frame(if reply { us } else { [0xff; 6] }, self.vlan, &packet)
            }
            ["nd", "reply"] => {
                // A solicited neighbour advertisement with its target's hardware address.
                let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
                message.extend(ip_bytes(theirs));
                message.extend([2, 1, 2, 0, 0, 0, 0, 2]);
                let mut packet = self.icmp(theirs, ours, message);
                packet[7] = 255;
                self.frame(us, self.vlan, &packet)
            }
            ["echo", "request"] => {
                let kind = if self.v6 { 128 } else { 8 };
                let packet = self.icmp(theirs, ours, vec![kind, 0, 0, 0, 0, 1, 0, 1, 7, 7]);
                self.frame(us, self.vlan, &packet)
            }
            ["icmp", kind, "about", seq] => {
                let (kind, mtu) = kind.split_once('=').unwrap_or((kind, "0"));
                let (four, six) = match kind {
                    "net" => ((3, 0), (1, 0)),
                    "host" => ((3, 1), (1, 3)),
                    "protocol" => ((3, 2), (4, 1)),
                    "port" => ((3, 3), (1, 4)),
                    "too-big" => ((3, 4), (2, 0)),
                    "prohibited" => ((3, 13), (1, 1)),
                    "hop-limit" => ((11, 0), (3, 0)),
                    "quench" => ((4, 0), (200, 0)),
                    kind => return Err(format!("no ICMP error {kind:?}")),
                };
                let (kind, code) = if self.v6 { six } else { four };
                let mut message = vec![kind, code, 0, 0];
                message.extend((number(mtu)? as u32).to_be_bytes());
                let seq = place.our_isn.wrapping_add(number(seq)? as u32);
                let mut tcp = [place.ours.to_be_bytes(), place.theirs.to_be_bytes()].concat();
                tcp.extend(seq.to_be_bytes());
                message.extend(self.packet(ours, theirs, IpProtocol::Tcp, &tcp));
                self.frame(us, self.vlan, &self.icmp(theirs, ours, message))
            }
            _ => return Err(format!("no frame {words:?}")),
        })
    }

    fn icmp(self, from: IpAddr, to: IpAddr, mut message: Vec<u8>) -> Vec<u8> {
        let protocol = if self.v6 { IpProtocol::Icmpv6 } else { IpProtocol::Icmp };
        let len = message.len() as u32;
        let pseudo = match self.v6 {
            true => checksum::pseudo_header(&from.into(), &to.into(), protocol, len),
            false => 0,
        };
        let sum = !checksum::combine(&[pseudo, checksum::data(&message)]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(from, to, protocol, &message)
    }
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// TCP options as bytes, filled up with EOL.
fn options(texts: &[String], place: Place) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["mss", n] => {
                bytes.extend([2, 4]);
                bytes.extend((number(n)? as u16).to_be_bytes());
            }
            ["ws", n] => bytes.extend([3, 3, number(n)? as u8]),
            ["sackOK"] => bytes.extend([4, 2]),
            ["nop"] => bytes.push(1),
            ["eol"] => bytes.push(0),
            ["sack", range] => {
                let (from, to) = range.split_once(':').ok_or("sack FROM:TO")?;
                bytes.extend([5, 10]);
                for edge in [from, to] {
                    let edge = place.our_isn.wrapping_add(number(edge)? as u32);
                    bytes.extend(edge.to_be_bytes());
                }
            }
            ["hex", ref rest @ ..] => {
                for byte in rest {
                    bytes.push(number(&format!("0x{byte}"))? as u8);
                }
            }
            _ => return Err(format!("no option {text:?}")),
        }
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

/// The options of a segment of ours, as they would be written, but for padding.
pub fn options_of(segment: &[u8], their_isn: u32) -> Vec<String> {
    let mut texts = Vec::new();
    let mut rest = TcpPacket::new_unchecked(segment).options().to_vec();
    while let Some(&kind) = rest.first() {
        if kind <= 1 {
            rest.remove(0);
            continue;
        }
        let len = rest.get(1).map_or(0, |&len| usize::from(len)).clamp(2, rest.len());
        let option: Vec<u8> = rest.drain(..len).collect();
        let word = |at: usize| u32::from_be_bytes(option[at..at + 4].try_into().unwrap());
        texts.push(match kind {
            2 => format!("mss {}", u16::from_be_bytes([option[2], option[3]])),
            3 => format!("ws {}", option[2]),
            4 => "sackOK".to_owned(),
            5 => {
                let relative = |at| word(at).wrapping_sub(their_isn) as i32;
                let blocks = (2..len).step_by(8);
                let blocks = blocks.map(|at| format!("{}:{}", relative(at), relative(at + 4)));
                format!("sack {}", blocks.collect::<Vec<_>>().join(" "))
            }
            _ => format!("hex {option:02x?}"),
        });
    }
    texts
}
