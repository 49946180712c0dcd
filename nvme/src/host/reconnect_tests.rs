//! Reconnection, in virtual time.
