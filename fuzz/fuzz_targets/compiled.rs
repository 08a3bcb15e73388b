//! The two texts of a compiled model, a zero byte between them: an error, or a program that prints and, if it is right,
//! runs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_mil::{text, verify};
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let (Some(program), Some(metadata)) = (parts.next(), parts.next()) else { return };
    let Ok(program) = std::str::from_utf8(program) else { return };
    let file = Path::new("/nowhere/model.mil");
    let Ok(package) = quince_mlpackage::from_compiled(program, metadata, file) else { return };
    text::print(&package.program, &text::PrintOptions::default());
    if verify::program(&package.program).is_ok() {
        quince_fuzz::run(package.program);
    }
});
