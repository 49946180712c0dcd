//! TCP against itself in virtual time: two engines, one seeded wire, one thread, no privileges.
#![allow(clippy::unwrap_used)]

mod acks;
mod announce;
mod bounds;
mod close;
mod conflict;
mod deadlines;
mod hostile;
mod listen;
mod outage;
mod pair;
mod stream;
