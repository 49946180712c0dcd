//! Segments without payload that we send in our own name, beside any socket: the RST of an abort,
//! the acknowledgement of a FIN that comes again, the challenge to a SYN on a live connection.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::device::L2;
use crate::LinkTx;
use crate::segment::Tuple;

/// A segment, with ACK if it has an `ack`, and RST if so `control` says.
pub(super) struct Control {
    pub tuple: Tuple,
    pub control: TcpControl,
    pub seq: u32,
    pub ack: Option<u32>,
    pub window: u16,
}

impl Control {
    /// Sends it, unless there is no room: whoever misses it will ask again.
    pub(super) fn transmit(
        &self,
        tx: &mut impl LinkTx,
        l2: &L2,
        checksum: &ChecksumCapabilities,
    ) -> bool {
        if tx.room() == 0 {
            return false;
        }
        let tcp = TcpRepr {
            src_port: self.tuple.local.port(),
            dst_port: self.tuple.remote.port(),
            control: self.control,
            seq_number: TcpSeqNumber(self.seq as i32),
            ack_number: self.ack.map(|ack| TcpSeqNumber(ack as i32)),
            window_len: self.window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let source = IpAddress::from(self.tuple.local.ip());
        let destination = IpAddress::from(self.tuple.remote.ip());
        let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
        l2.transmit(tx, ip.buffer_len(), |packet| {
            packet.fill(0);
            ip.emit(&mut *packet, checksum);
            let mut segment = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
            tcp.emit(&mut segment, &source, &destination, checksum);
        });
        true
    }
}
