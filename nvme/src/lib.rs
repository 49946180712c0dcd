//! NVMe/TCP: the spec's types, PDUs, qpairs, a host, a target and block back ends.
//!
//! Protocol machines here are pure: bytes and `now` in; bytes, events and the next deadline out.
//! They sit on [`moorline_stack::Transport`] and know nothing of AF_XDP.

pub mod bdev; // its file back end is a fence
#[forbid(unsafe_code)]
pub mod host;
#[forbid(unsafe_code)]
pub mod limits;
#[forbid(unsafe_code)]
pub mod pdu;
#[forbid(unsafe_code)]
pub mod spec;
#[forbid(unsafe_code)]
pub mod target;
