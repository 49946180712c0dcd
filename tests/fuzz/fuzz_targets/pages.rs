//! See `moorline_fuzz::pages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moorline_fuzz::pages(data));
