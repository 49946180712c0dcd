//! One PDU on its way out: header, data from where they lie, digest. It stops wherever the
//! transport's room ends and goes on from that byte.

use crate::limits::DIGEST_BLOCK_BYTES;
use crate::pdu::digest::DIGEST_BYTES;
use crate::pdu::{DataDigest, HeaderBuf};

/// A PDU being sent.
#[derive(Debug)]
pub(super) struct Emission {
    header: HeaderBuf,
    header_sent: usize,
    /// The command whose data these are.
    pub slot: Option<u16>,
    /// The data: next byte and end, offsets in the command's data.
    pub data_at: usize,
    pub data_end: usize,
    digest: Option<DataDigest>,
    digest_sent: usize,
}

impl Emission {
    /// A PDU without data.
    pub(super) fn header_only(header: HeaderBuf, slot: Option<u16>) -> Self {
        Self { header, header_sent: 0, slot, data_at: 0, data_end: 0, digest: None, digest_sent: 0 }
    }

    /// A PDU with bytes `at..end` of a command's data.
    pub(super) fn with_data(
        header: HeaderBuf,
        slot: u16,
        at: usize,
        end: usize,
        ddgst: bool,
    ) -> Self {
        let digest = ddgst.then(DataDigest::new);
        Self { data_at: at, data_end: end, digest, ..Self::header_only(header, Some(slot)) }
    }

    /// Sends as much as there is room for; `source` is the command's data. True: all is sent.
    pub(super) fn push(&mut self, source: &[u8], send: &mut dyn FnMut(&[u8]) -> usize) -> bool {
        let header = &self.header.bytes()[self.header_sent..];
        if !header.is_empty() {
            let sent = send(header);
            self.header_sent += sent;
            if sent < header.len() {
                return false;
            }
        }
        while self.data_at < self.data_end {
            let block = self.block(source);
            let sent = send(block);
            if let Some(digest) = &mut self.digest {
                digest.update(&block[..sent]);
            }
            self.data_at += sent;
            if sent < block.len() {
                return false;
            }
        }
        let Some(digest) = &self.digest else { return true };
        let tail = digest.finish().to_le_bytes();
        self.digest_sent += send(&tail[self.digest_sent..]);
        self.digest_sent == DIGEST_BYTES
    }

    /// What to send next: with a digest, no more than what stays in cache until it is summed.
    fn block<'a>(&self, source: &'a [u8]) -> &'a [u8] {
        let left = self.data_end - self.data_at;
        let len = if self.digest.is_some() { left.min(DIGEST_BLOCK_BYTES) } else { left };
        &source[self.data_at..self.data_at + len]
    }
}
