//! Any text as MIL: an error, or a program that prints to a text which reads to the same print and, if it is right,
//! runs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_mil::{bail, text, verify};

fuzz_target!(|source: &str| {
    let none = |_: &text::BlobRef| -> quince_mil::Result<quince_mil::Weight> { bail!("there is no weight file") };
    let Ok(program) = text::parse(source, &none) else { return };
    let printed = text::print(&program, &text::PrintOptions::default());
    let again = text::parse(&printed, &none).expect("what is printed can be read");
    assert_eq!(text::print(&again, &text::PrintOptions::default()), printed);
    if verify::program(&program).is_ok() {
        quince_fuzz::run(program);
    }
});
