//! See `moorline_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moorline_fuzz::config(data));
