//! Any bytes as the choices that make a program: the engine does with it, on one thread and on two, what the definitions
//! of its operations say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_fuzz::{agree, generate};

fuzz_target!(|data: &[u8]| {
    if let Some(case) = generate::case(data) {
        agree::check(&case);
    }
});
