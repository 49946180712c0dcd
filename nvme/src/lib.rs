//! NVMe/TCP: the spec's types, PDUs, qpairs, a host, a target and block back ends.
//!
//! Protocol machines here are pure: bytes and `now` in; bytes, events and the next deadline out.
//! They sit on [`moorline_stack::Transport`] and know nothing of AF_XDP.

pub mod bdev;
pub mod host;
pub mod limits;
pub mod pdu;
pub mod spec;
pub mod target;
