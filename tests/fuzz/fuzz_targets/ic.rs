//! See `moorline_fuzz::ic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moorline_fuzz::ic(data));
