//! Any bytes as an npz archive: an error, or arrays.
#![no_main]

#[path = "../../crates/quince/src/npz.rs"]
#[allow(dead_code)]
mod npz;

use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|data: &[u8]| {
    let _ = npz::read(Cursor::new(data));
});
