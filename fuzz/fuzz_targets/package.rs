//! Any bytes as `model.mlmodel`: an error, or a package that can be checked, printed and, if it is right, run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_mil::{text, verify};
use quince_mlpackage::Package;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(package) = Package::from_bytes(data, Path::new("/nonexistent/model.mlmodel")) else { return };
    let _ = text::print(&package.program, &text::PrintOptions::default());
    if verify::program(&package.program).is_ok() {
        quince_fuzz::run(package.program);
    }
});
