//! See `moorline_fuzz::host`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moorline_fuzz::host(data));
