//! Programs that no converter would write: the engine does with them what the definitions of their operations say. The
//! fuzz target `program` makes more of them, from the same files.

mod agree;
mod choices;
mod constants;
mod generate;
mod recipes;

use std::collections::BTreeSet;

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
