//! Validation as commands do it: against a checkpoint, with progress, as table and JSON.

use crate::console::{Console, Counted, table};
use crate::failure::Result;
use crate::loading;
use quince_checkpoint::Checkpoint;
use quince_convert::{FunctionName, Options as Conversion, Pooling, convert, semantic};
use quince_engine::{Engine, Options, Precision};
use quince_runtime::{
    Bundle, Decoder, Embedder, Progress, Reference, Suite, Tokenizer, Validation, validate, validate_embeddings,
};
use std::sync::Arc;

/// What a package is held to.
pub struct Against<'a> {
    /// The checkpoint that it was made from.
    pub checkpoint: &'a Checkpoint,
    /// How its embeddings were pooled, if not as the checkpoint says.
    pub pooling: Option<Pooling>,
    /// What it is tried on.
    pub suite: &'a Suite,
}

/// Validates a package against the checkpoint that it was made from: what it says, if it continues texts, and its
/// embeddings, if it gives those.
///
/// # Errors
/// When one of them cannot be run.
pub fn against_checkpoint(bundle: &Bundle, against: &Against, console: &Console) -> Result<Validation> {
    // The package is run as it is shipped; its tokenizer is that of its bundle, or the checkpoint's.
    let tokenizer = match loading::tokenizer(bundle.directory())? {
        Some(tokenizer) => Some(tokenizer),
        None => loading::tokenizer_of(against.checkpoint)?,
    };
    let options = Options { threads: console.threads(), precision: Precision::Default, limits: console.limits() };
    let place = |e: quince_tensor::Error| e.at(bundle.package_path().display());
    let engine = Arc::new(Engine::load(bundle.read_package()?.program, options.clone()).map_err(place)?);
    let bar = console.bar("validating", 0, Counted::Things(""));
    let mut progress = |progress: Progress| {
        bar.set_prefix(progress.what);
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let mut parts = (tokenizer.as_ref(), &options, &mut progress as &mut dyn FnMut(Progress));
    let encoder = Embedder::new(engine.clone()).ok();
    let found = match (Decoder::new(engine), encoder) {
        (Err(error), None) => Err(place(error).into()),
        (Err(_), Some(encoder)) => embeddings(encoder, against, &mut parts),
        (Ok(decoder), None) => answers(decoder, against, &mut parts),
        (Ok(decoder), Some(encoder)) => answers(decoder, against, &mut parts)
            .and_then(|found| Ok(found.and(embeddings(encoder, against, &mut parts)?))),
    };
    bar.finish_and_clear();
    found
}

/// The tokenizer, how to run a model, and who hears of it.
type Parts<'a> = (Option<&'a Tokenizer>, &'a Options, &'a mut dyn FnMut(Progress));

fn answers(mut candidate: Decoder, against: &Against, parts: &mut Parts) -> Result<Validation> {
    let (tokenizer, options, progress) = parts;
    let mut reference = Reference::new(semantic(against.checkpoint)?.program, options.clone())?;
    Ok(validate(&mut candidate, &mut reference, *tokenizer, against.suite, progress)?)
}

fn embeddings(candidate: Embedder, against: &Against, parts: &mut Parts) -> Result<Validation> {
    let (tokenizer, options, progress) = parts;
    // Hidden states are compared by their mean, whatever becomes of them later.
    let pooling = if candidate.pools() { Some(Pooling::None) } else { against.pooling };
    let encode = Conversion { functions: vec![FunctionName::Encode], pooling, ..Conversion::default() };
    let reference = convert(against.checkpoint, &encode)?.semantic.program;
    let exact = Options { precision: Precision::Exact, ..options.clone() };
    let padding = tokenizer.map_or(0, Tokenizer::padding);
    let reference = Embedder::new(Arc::new(Engine::load(reference, exact)?))?.with_padding(padding);
    let candidate = candidate.with_padding(padding);
    Ok(validate_embeddings(&candidate, &reference, *tokenizer, against.suite, progress)?)
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
    if let Some(worst) = found.sentences.iter().min_by(|a, b| a.cosine.total_cmp(&b.cosine)) {
        let shown: String = worst.sentence.chars().take(60).collect();
        text += &format!("the farthest of {} sentences: {:.5}, `{shown}`\n", found.sentences.len(), worst.cosine);
    }
    text += if found.passed() { "passed\n" } else { "FAILED\n" };
    text
}
