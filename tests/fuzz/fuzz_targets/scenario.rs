//! See `moorline_fuzz::scenario`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moorline_fuzz::scenario(data));
