//! smoltcp's device: at most one received packet in, at most one packet out, over a [`LinkTx`].
//!
//! A packet leaves in place: the Ethernet header of the connection's next hop and then smoltcp's
//! packet are written into the link's frame. What has left is remembered in [`Port::sent`], since
//! smoltcp tells nobody.

use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant as TcpInstant;

use crate::LinkTx;
use crate::eth::sent_segment;
use crate::segment::{Segment, before};

/// The shortest Ethernet frame, without its checksum; shorter packets are padded.
const FRAME_BYTES_MIN: usize = 60;

/// What goes before each packet to one next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct L2 {
    /// Destination, source, tag if any; the ethertype depends on the packet.
    bytes: [u8; 16],
    len: u8,
}

impl L2 {
    pub(super) fn new(source: [u8; 6], destination: [u8; 6], vlan: Option<u16>) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&destination);
        bytes[6..12].copy_from_slice(&source);
        let Some(vlan) = vlan else { return Self { bytes, len: 12 } };
        bytes[12..14].copy_from_slice(&[0x81, 0x00]);
        bytes[14..].copy_from_slice(&(vlan & 0x0fff).to_be_bytes());
        Self { bytes, len: 16 }
    }

    /// Our own hardware address is another.
    pub(super) fn set_source(&mut self, source: [u8; 6]) {
        self.bytes[6..12].copy_from_slice(&source);
    }

    /// Sends one IP packet of `len` bytes, written by `fill`, which may leave nothing out.
    pub(super) fn transmit<R>(
        &self,
        tx: &mut impl LinkTx,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let header = usize::from(self.len) + 2;
        tx.transmit((header + len).max(FRAME_BYTES_MIN), |frame| {
            let (l2, rest) = frame.split_at_mut(header);
            let (packet, padding) = rest.split_at_mut(len);
            padding.fill(0);
            let result = fill(packet);
            l2[..header - 2].copy_from_slice(&self.bytes[..header - 2]);
            let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
            l2[header - 2..].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
            result
        })
    }
}

/// One call's view of the link.
pub(super) struct Port<'a, T> {
    pub tx: &'a mut T,
    pub l2: &'a L2,
    pub mtu: usize,
    pub checksum: &'a ChecksumCapabilities,
    /// The packet to process, if any.
    pub received: Option<&'a [u8]>,
    /// Where a packet goes that nobody has room for; as long as the MTU.
    pub scratch: &'a mut [u8],
    /// Link frames that must stay free.
    pub reserve: usize,
    pub amend: Amend,
    /// The segment that smoltcp sent, if it did.
    pub sent: Option<Segment>,
}

impl<T: LinkTx> phy::Device for Port<'_, T> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b, T>
    where
        Self: 'b;

    fn receive(&mut self, _: TcpInstant) -> Option<(Received<'_>, Outgoing<'_, T>)> {
        let packet = self.received.take()?;
        let outgoing = Outgoing {
            tx: self.tx,
            l2: self.l2,
            scratch: self.scratch,
            amend: self.amend,
            checksum: self.checksum.tcp.tx(),
            sent: &mut self.sent,
        };
        Some((Received(packet), outgoing))
    }

    fn transmit(&mut self, _: TcpInstant) -> Option<Outgoing<'_, T>> {
        if self.tx.room() <= self.reserve || self.sent.is_some() {
            return None;
        }
        let checksum = self.checksum.tcp.tx();
        let Self { tx, l2, scratch, amend, sent, .. } = self;
        Some(Outgoing { tx, l2, scratch, amend: *amend, checksum, sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu, self.checksum)
    }
}

/// What an interface is told of a link.
fn capabilities(mtu: usize, checksum: &ChecksumCapabilities) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = checksum.clone();
    capabilities
}

/// A received packet.
pub(super) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Leave to send one packet.
pub(super) struct Outgoing<'a, T> {
    tx: &'a mut T,
    l2: &'a L2,
    scratch: &'a mut [u8],
    amend: Amend,
    checksum: bool,
    sent: &'a mut Option<Segment>,
}

impl<T: LinkTx> phy::TxToken for Outgoing<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let sent = self.sent;
        let fill = |packet: &mut [u8]| {
            let result = f(packet);
            *sent = sent_segment(packet);
            if let Some(segment) = sent {
                self.amend.amend(segment, packet, self.checksum);
            }
            result
        };
        if self.tx.room() > 0 {
            self.l2.transmit(self.tx, len, fill)
        } else {
            // An answer to a received segment, and even the reserve is gone: as good as lost on
            // the wire.
            fill(&mut self.scratch[..len])
        }
    }
}

/// What we know better than smoltcp about a segment that it sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amend {
    /// The connection's highest sequence number, once it has sent one.
    pub seq_max: Option<u32>,
    /// Both ends scale windows.
    pub scaled: bool,
}

impl Amend {
    /// Corrects a segment before it leaves.
    ///
    /// After a retransmission timeout smoltcp's acknowledgements carry the sequence number that it
    /// has gone back to. The peer drops such a segment whole, the acknowledgement with it, and two
    /// ends that both time out then repeat themselves until they give up. RFC 9293 §3.10.7.4 wants
    /// SND.NXT, and that does not go back.
    ///
    /// smoltcp rounds its window down to the unit of its scale each time, so the end of the window
    /// can go back by a part of it. It then drops what the peer had sent up to the former end,
    /// and, while its window is closed, each acknowledgement that stands behind such bytes: two
    /// ends that are both full wait for each other forever. So we advertise one unit less, and the
    /// peer never sends what smoltcp's own end of the window does not cover.
    fn amend(self, segment: &mut Segment, packet: &mut [u8], checksum: bool) {
        let tcp = &mut packet[usize::from(segment.tcp_offset)..];
        if segment.flags.rst() || segment.flags.syn() {
            return;
        }
        if let Some(seq_max) = self.seq_max
            && segment.sequence_bytes() == 0
            && before(segment.seq, seq_max)
        {
            segment.seq = seq_max;
            replace(tcp, 4, (seq_max >> 16) as u16, checksum);
            replace(tcp, 6, seq_max as u16, checksum);
        }
        if self.scaled && segment.window > 0 {
            segment.window -= 1;
            replace(tcp, 14, segment.window, checksum);
        }
    }
}

/// Puts `new` at `at` into a TCP header, and the difference into its checksum (RFC 1624 §3).
fn replace(tcp: &mut [u8], at: usize, new: u16, checksum: bool) {
    let word = |at: usize| u32::from(u16::from_be_bytes([tcp[at], tcp[at + 1]]));
    let sum = (!word(16) & 0xffff) + (!word(at) & 0xffff) + u32::from(new);
    tcp[at..at + 2].copy_from_slice(&new.to_be_bytes());
    if checksum {
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        tcp[16..18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
}

/// A device that only says what it is like, to build an interface with.
pub(super) struct Shape<'a> {
    pub mtu: usize,
    pub checksum: &'a ChecksumCapabilities,
}

impl phy::Device for Shape<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Nothing
    where
        Self: 'b;

    fn receive(&mut self, _: TcpInstant) -> Option<(Received<'_>, Nothing)> {
        None
    }

    fn transmit(&mut self, _: TcpInstant) -> Option<Nothing> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu, self.checksum)
    }
}

/// No packet at all.
pub(super) enum Nothing {}

impl phy::TxToken for Nothing {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}
