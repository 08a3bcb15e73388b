//! Is an encoder right? Its embeddings of sentences against those of the reference, by the cosine between them.

use quince_tensor::{Result, bail};
use serde::Serialize;

use super::suite::{Suite, bytes_as_tokens};
use super::thresholds::{self, stored_bits};
use super::{Progress, Validation};
use crate::embed::{Embedder, Embeddings};
use crate::metrics::{Report, cosine};
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// Sentences that are computed in one call, so that progress shows and memory stays small.
const AT_A_TIME: usize = 16;

/// A sentence, and how near the package's embedding is to the reference's.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Sentence {
    /// The text.
    pub sentence: String,
    /// Its tokens.
    pub tokens: usize,
    /// The cosine between the two embeddings.
    pub cosine: f64,
}

/// Measures the embeddings of `candidate` against those of `reference`, on the sentences of the suite: each alone, as
/// the reference does it, and all in batches, as an app would.
///
/// Metrics: `cosine_min` and `cosine_mean` over all sentences, `batch_cosine_min` between a sentence alone and the same
/// in a batch with others.
///
/// # Errors
/// Embeddings of different lengths, a suite without sentences; what the engine reports.
pub fn validate_embeddings(
    candidate: &Embedder,
    reference: &Embedder,
    tokenizer: Option<&Tokenizer>,
    suite: &Suite,
    progress: &mut dyn FnMut(Progress),
) -> Result<Validation> {
    if suite.sentences.is_empty() {
        bail!("found no sentences, expected some to embed"; hint: "sentences = [\"...\"] in the file of prompts");
    }
    let mut limits = thresholds::defaults(stored_bits(candidate.engine().program()));
    limits.extend(&suite.thresholds);
    let texts = tokens(candidate, reference, tokenizer, suite)?;
    let total = texts.len();
    let mut embed = |what, embedder: &Embedder, size: usize| -> Result<Embeddings> {
        let mut all = Embeddings::default();
        for (done, some) in texts.chunks(size).enumerate() {
            progress(Progress { what, done: done * size, total });
            let found = embedder.embed(some, &mut |_| {})?;
            all.dimension = found.dimension;
            all.values.extend(found.values);
        }
        Ok(all)
    };
    let expected = embed("reference embeddings", reference, 1)?;
    let alone = embed("embeddings", candidate, 1)?;
    let together = embed("embeddings in batches", candidate, AT_A_TIME)?;
    if expected.dimension != alone.dimension {
        bail!(
            "found embeddings of {} numbers, expected {} as the model gives", alone.dimension, expected.dimension;
            hint: "the package was made from another model, or with another pooling"
        );
    }
    let cosines = |a: &Embeddings, b: &Embeddings| -> Result<Vec<f64>> {
        a.rows().zip(b.rows()).map(|(a, b)| cosine(a, b)).collect()
    };
    let (found, batched) = (cosines(&alone, &expected)?, cosines(&together, &alone)?);
    // What is not a number is the worst of all.
    let least = |values: &[f64]| values.iter().fold(1.0, |least, &value| if value >= least { least } else { value });
    let mut report = Report::new("package against model");
    let mut push = |name, value| report.push(thresholds::metric(name, value, &limits));
    push("cosine_min", least(&found));
    push("cosine_mean", found.iter().sum::<f64>() / found.len() as f64);
    push("batch_cosine_min", least(&batched));
    let sentences = suite.sentences.iter().zip(&texts).zip(found);
    let sentences = sentences
        .map(|((sentence, tokens), cosine)| Sentence { sentence: sentence.clone(), tokens: tokens.len(), cosine })
        .collect();
    Ok(Validation { report, transcripts: Vec::new(), sentences })
}

/// The tokens of each sentence, cut to what both take.
fn tokens(
    candidate: &Embedder,
    reference: &Embedder,
    tokenizer: Option<&Tokenizer>,
    suite: &Suite,
) -> Result<Vec<Vec<u32>>> {
    let longest = candidate.shapes().longest().min(reference.shapes().longest());
    let encode = |text: &String| {
        let mut ids = match tokenizer {
            Some(tokenizer) => tokenizer.encode(text, SpecialTokens::Include)?,
            None => bytes_as_tokens(text, candidate.vocab_size().unwrap_or(256)),
        };
        if let Some(tokenizer) = tokenizer.filter(|_| ids.len() > longest) {
            ids = tokenizer.encode_within(text, longest)?;
        }
        ids.truncate(longest);
        Ok(ids)
    };
    let place = |(i, text): (usize, &String)| {
        encode(text).map_err(|e: quince_tensor::Error| e.at(format!("sentence {}", i + 1)))
    };
    suite.sentences.iter().enumerate().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_engine::{Engine, Options};
    use quince_mil::{Builder, DType, Dim, Flexibility, Function, Opset, Program, TensorType, ValueType};
    use std::sync::Arc;

    /// An encoder of [Σ id · mask, bias]: the bias turns all vectors away from those without one.
    fn encoder(bias: f32) -> Embedder {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ty = ValueType::Tensor(TensorType { dtype: DType::I32, shape: vec![Dim::Unknown; 2] });
        let range = Flexibility::Range { bounds: vec![(1, Some(32)), (1, Some(64))], default: vec![1, 8] };
        let [ids, mask] = ["input_ids", "attention_mask"].map(|name| b.input(name, ty.clone(), range.clone()));
        let seen = b.op("mul", "seen", &[("x", ids.into()), ("y", mask.into())]).unwrap();
        let seen = b.op("cast", "float", &[("x", seen.into()), ("dtype", "fp32".into())]).unwrap();
        let inputs = [("x", seen.into()), ("axes", [1].into()), ("keep_dims", true.into())];
        let sum = b.op("reduce_sum", "sum", &inputs).unwrap();
        let bias = b.op("fill_like", "bias", &[("ref_tensor", sum.into()), ("value", bias.into())]).unwrap();
        let inputs = [("values", vec![sum, bias].into()), ("axis", 1.into()), ("interleave", false.into())];
        let embedding = b.op("concat", "embedding", &inputs).unwrap();
        let program = Program { functions: vec![b.finish(vec![embedding])], ..Program::default() };
        Embedder::new(Arc::new(Engine::load(program, Options { threads: 1, ..Options::default() }).unwrap())).unwrap()
    }

    #[test]
    fn embeddings_are_held_to_the_reference() {
        let suite = Suite::parse("sentences = ['a', 'bc']").unwrap();
        let same = validate_embeddings(&encoder(0.0), &encoder(0.0), None, &suite, &mut |_| {}).unwrap();
        assert!(same.passed());
        // The letter a is 97: against (97, 0) stands (97, 97), at 45 degrees.
        let turned = validate_embeddings(&encoder(97.0), &encoder(0.0), None, &suite, &mut |_| {}).unwrap();
        assert!(!turned.passed());
        assert!((turned.sentences[0].cosine - 0.5f64.sqrt()).abs() < 1e-6);
        assert!((turned.report.metrics[0].value - 0.5f64.sqrt()).abs() < 1e-6);
        let lenient = Suite::parse("sentences = ['a']\n[thresholds]\ncosine_min = 0.7").unwrap();
        assert!(validate_embeddings(&encoder(97.0), &encoder(0.0), None, &lenient, &mut |_| {}).unwrap().passed());
        let none = Suite::parse("text = 'a'").unwrap();
        let error = validate_embeddings(&encoder(0.0), &encoder(0.0), None, &none, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("found no sentences"));
    }
}
