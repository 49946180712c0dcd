//! What is bounded, and what each bound costs. Everything a peer can make us hold is a number here.

/// Largest PDU header on the wire without digest or padding: ICReq and ICResp, 128 bytes.
pub const PDU_HEADER_BYTES_MAX: usize = 128;

/// Largest TermReq: 24 bytes of header and a copy of the offending header.
pub const TERM_REQ_BYTES_MAX: usize = 24 + PDU_HEADER_BYTES_MAX;

/// Most padding accepted between a header and its data: what the largest alignment (128 bytes) can
/// ask for. It is skipped, never kept.
pub const PDU_PAD_BYTES_MAX: usize = 128;

/// In-capsule data accepted on the admin queue and with every Fabrics command. Fixed by the
/// transport (NVMe-TCP 1.x, "Capsules and data transfer"), so a command slot must hold this much.
pub const ADMIN_IN_CAPSULE_BYTES_MAX: u32 = 8192;

/// MAXH2CDATA where nothing else is configured: an R2T of this size is answered by a single PDU.
pub const H2C_DATA_BYTES_MAX: u32 = 128 * 1024;

/// Data bytes digested and handed on at once, so that a copy finds them in cache.
pub const DIGEST_BLOCK_BYTES: usize = 4096;

/// Longest NQN, bytes, without its NUL.
pub const NQN_BYTES_MAX: usize = 223;

const _: () = assert!(H2C_DATA_BYTES_MAX >= 4096 && H2C_DATA_BYTES_MAX.is_multiple_of(4));
const _: () = assert!(TERM_REQ_BYTES_MAX == 152);
