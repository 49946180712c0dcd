//! See `moorline_fuzz::target`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moorline_fuzz::target(data));
