//! Validation as commands do it: against a checkpoint, with progress, as table and JSON.

use crate::console::{Console, Counted, table};
use crate::failure::Result;
use crate::loading;
use quince_checkpoint::Checkpoint;
use quince_convert::semantic;
use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_runtime::{Bundle, Decoder, Reference, Suite, Validation, validate};
use std::sync::Arc;

/// Validates a package against the checkpoint that it was made from.
///
/// # Errors
/// When one of them cannot be run.
pub fn against_checkpoint(
    bundle: &Bundle,
    checkpoint: &Checkpoint,
    suite: &Suite,
    console: &Console,
) -> Result<Validation> {
    let reference = semantic(checkpoint)?.program;
    // The package is run as it is shipped; its tokenizer is that of its bundle, or the checkpoint's.
    let tokenizer = match loading::tokenizer(bundle.directory())? {
        Some(tokenizer) => Some(tokenizer),
        None => loading::tokenizer_of(checkpoint)?,
    };
    let options = Options { threads: console.threads(), precision: Precision::Default, limits: console.limits() };
    let mut candidate =
        decoder(bundle.read_package()?.program, options.clone()).map_err(|e| e.at(bundle.package_path().display()))?;
    let mut reference = Reference::new(reference, options)?;
    let bar = console.bar("validating", 0, Counted::Things(""));
    let found = validate(&mut candidate, &mut reference, tokenizer.as_ref(), suite, &mut |progress| {
        bar.set_prefix(progress.what);
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    });
    bar.finish_and_clear();
    Ok(found?)
}

fn decoder(program: Program, options: Options) -> quince_tensor::Result<Decoder> {
    Decoder::new(Arc::new(Engine::load(program, options)?))
}

/// The report for people: numbers with their thresholds, then where answers differ.
pub fn text(found: &Validation) -> String {
    let rows = found.rows().into_iter().map(|row| row.to_vec());
    let mut text = table(&["metric", "value", "expected", ""], &[1, 2], rows);
    for transcript in &found.transcripts {
        let Some(divergence) = transcript.divergence else { continue };
        text += &format!(
            "`{}`: token {} of the answer is another (the reference was ahead by {:.3})\n",
            transcript.prompt.escape_debug(),
            divergence.index + 1,
            divergence.margin
        );
        if let (Some(reference), Some(candidate)) = (&transcript.reference, &transcript.candidate) {
            text += &format!("  reference: {}\n", reference.escape_debug());
            text += &format!("  package:   {}\n", candidate.escape_debug());
        }
    }
    text += if found.passed() { "passed\n" } else { "FAILED\n" };
    text
}
