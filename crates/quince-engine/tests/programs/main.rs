//! Programs that no converter would write: the engine does with them what the definitions of their operations say, on
//! every instruction set that the machine has. The fuzz target `program` makes more of them, from the same files.

mod agree;
mod choices;
mod constants;
mod generate;
mod recipes;

use quince_engine::kernels::Isa;
use std::collections::BTreeSet;
use std::process::Command;

/// Bytes that follow from a seed.
fn bytes(seed: u64) -> Vec<u8> {
    let mut noise = choices::Noise::new(seed);
    (0..400).map(|_| (noise.bits() >> 56) as u8).collect()
}

#[test]
fn generated_programs_mean_what_their_definitions_say() {
    let (mut made, mut names) = (0, BTreeSet::new());
    for seed in 0..300 {
        let Some(case) = generate::case(&bytes(seed)) else { continue };
        let mut blocks = vec![&case.program.functions[0].block];
        while let Some(block) = blocks.pop() {
            names.extend(block.operations.iter().map(|operation| operation.op_name().to_owned()));
            blocks.extend(block.operations.iter().flat_map(|operation| &operation.blocks));
        }
        agree::check(&case);
        made += 1;
    }
    // Nearly all that is made verifies, and most of what an engine has to know is in it.
    assert!(made > 270, "{made} programs");
    assert!(names.len() > 90, "{} operations: {names:?}", names.len());
}

/// The instruction set is chosen once for a process: each has one of its own, which runs this test again.
#[test]
fn every_instruction_set_gives_what_definitions_say() {
    const INSIDE: &str = "QUINCE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return (300..400).filter_map(|seed| generate::case(&bytes(seed))).for_each(|case| agree::check(&case));
    }
    let best = Isa::detect();
    for isa in Isa::available().into_iter().filter(|isa| *isa != best) {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "every_instruction_set_gives_what_definitions_say", "--nocapture"]);
        let output = process.env("QUINCE_ISA", isa.name()).env(INSIDE, "1").output().unwrap();
        assert!(output.status.success(), "{}: {}", isa.name(), String::from_utf8_lossy(&output.stderr));
    }
}
