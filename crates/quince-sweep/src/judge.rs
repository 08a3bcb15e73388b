//! How far a compressed model is from the uncompressed one, on texts.

use quince_engine::{Engine, Options};
use quince_mil::Program;
use quince_runtime::metrics::cosine;
use quince_runtime::{Decoder, Embedder, Embeddings, LanguageModel, Route};
use quince_tensor::{Result, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Rows of logits that are compared at a time: enough for all threads, and little memory.
const ROWS: usize = 64;

/// A model whose results on some texts are known, so that others can be compared with it again and again.
pub struct Judge {
    windows: Vec<Vec<u32>>,
    options: Options,
    reference: Reference,
    own: Measure,
    proofs: Vec<Vec<Vec<u32>>>,
}

/// How a model does on texts that others were not chosen by: of each kind of text, by place, the negative logarithm of
/// the probability of the token that comes next.
pub type Proof = Vec<Vec<f32>>;

/// What the uncompressed model gives.
enum Reference {
    /// By window: the logarithms of the probabilities of all tokens after each of its tokens.
    Text { vocabulary: usize, rows: Vec<Vec<f32>> },
    /// The vector of each window.
    Embeddings(Embeddings),
}

/// How a model does on the texts of a [`Judge`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Measure {
    /// One that continues texts.
    Text(Quality),
    /// One that makes vectors of them.
    Embeddings(Cosines),
}

/// How a model that continues texts does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Mean KL divergence from the uncompressed model in nats per token.
    pub kl: f64,
    /// Share of places at which the most likely token is that of the uncompressed model.
    pub top1: f64,
    /// exp of the mean negative log-likelihood of the texts.
    pub perplexity: f64,
    /// Places that were compared.
    pub tokens: usize,
}

/// Cosines between the vectors of a model and of the uncompressed one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cosines {
    /// Their mean.
    pub cosine_mean: f64,
    /// The least.
    pub cosine_min: f64,
    /// Texts that were compared.
    pub texts: usize,
}

impl Measure {
    /// What is lost: the KL divergence, or what the mean cosine lacks.
    pub fn loss(&self) -> f64 {
        match self {
            Measure::Text(quality) => quality.kl,
            Measure::Embeddings(cosines) => 1.0 - cosines.cosine_mean,
        }
    }

    /// What it is for a model that continues texts.
    ///
    /// # Errors
    /// For one that does not.
    pub fn text(&self) -> Result<Quality> {
        match self {
            Measure::Text(quality) => Ok(*quality),
            Measure::Embeddings(_) => bail!("found a model that makes embeddings, expected one that continues texts"),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::Text(quality) => {
                write!(f, "KL divergence {:.4}, the same token in {:.1} %", quality.kl, quality.top1 * 100.0)
            }
            Measure::Embeddings(c) => {
                write!(f, "cosine {:.5} in the mean, {:.5} at least", c.cosine_mean, c.cosine_min)
            }
        }
    }
}

impl Judge {
    /// Runs a model over windows of tokens. Of one that continues texts the function without a cache is used if there is
    /// one.
    ///
    /// # Errors
    /// A program that neither continues texts nor makes vectors of them, no text, and what the engine reports.
    pub fn new(program: Program, windows: Vec<Vec<u32>>, options: Options) -> Result<Judge> {
        let windows: Vec<Vec<u32>> = windows.into_iter().filter(|window| window.len() > 1).collect();
        if windows.is_empty() {
            bail!("found no text of two tokens, expected some to compare models on");
        }
        let engine = Arc::new(Engine::load(program, options.clone())?);
        let none = Measure::Embeddings(Cosines { cosine_mean: 1.0, cosine_min: 1.0, texts: 0 });
        let Ok(mut decoder) = Decoder::new(engine.clone()) else {
            let reference = Reference::Embeddings(Embedder::new(engine)?.embed(&windows, &mut |_| {})?);
            return Ok(Judge { windows, options, reference, own: none, proofs: Vec::new() });
        };
        let vocabulary = decoder.vocab_size();
        let row = |window: &Vec<u32>| {
            let mut logits = logits(&mut decoder, window)?;
            logits.par_chunks_mut(vocabulary).for_each(to_log_probabilities);
            Ok(logits)
        };
        let rows: Vec<Vec<f32>> = windows.iter().map(row).collect::<Result<_>>()?;
        let reference = Reference::Text { vocabulary, rows };
        let mut judge = Judge { windows, options, reference, own: none, proofs: Vec::new() };
        if let Reference::Text { rows, .. } = &judge.reference {
            judge.own = Measure::Text(judge.of_logits(&mut |i| Ok(rows[i].clone()), rows)?);
        }
        Ok(judge)
    }

    /// Further texts, by kind, each as windows of tokens: only [`Judge::prove`] runs them.
    #[must_use]
    pub fn with_proofs(mut self, proofs: Vec<Vec<Vec<u32>>>) -> Judge {
        self.proofs = proofs;
        self
    }

    /// How the uncompressed model itself does.
    pub fn own(&self) -> Measure {
        self.own
    }

    /// How another model does.
    ///
    /// # Errors
    /// Another vocabulary or dimension; what the engine reports.
    pub fn judge(&self, program: Program) -> Result<Measure> {
        let engine = Arc::new(Engine::load(program, self.options.clone())?);
        match &self.reference {
            Reference::Text { vocabulary, rows } => self.text(&mut decoder(engine, *vocabulary)?, rows),
            Reference::Embeddings(reference) => {
                let found = Embedder::new(engine)?.embed(&self.windows, &mut |_| {})?;
                let pairs = found.rows().zip(reference.rows());
                let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect::<Result<_>>()?;
                let cosine_mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
                let cosine_min = cosines.iter().copied().fold(1.0, f64::min);
                Ok(Measure::Embeddings(Cosines { cosine_mean, cosine_min, texts: cosines.len() }))
            }
        }
    }

    /// [`Judge::judge`], also on the further texts; of a model that makes vectors nothing is known of these.
    ///
    /// # Errors
    /// As [`Judge::judge`].
    pub fn prove(&self, program: Program) -> Result<(Measure, Proof)> {
        let Reference::Text { vocabulary, rows } = &self.reference else {
            return Ok((self.judge(program)?, Vec::new()));
        };
        let mut decoder = decoder(Arc::new(Engine::load(program, self.options.clone())?), *vocabulary)?;
        let measure = self.text(&mut decoder, rows)?;
        let mut of_kind = |windows: &Vec<Vec<u32>>| -> Result<Vec<f32>> {
            let mut all = Vec::new();
            for window in windows.iter().filter(|window| window.len() > 1) {
                let found = logits(&mut decoder, window)?;
                let places: Vec<(&[f32], &u32)> = found.chunks(*vocabulary).zip(&window[1..]).collect();
                all.par_extend(places.into_par_iter().map(|(row, next)| nll(row, log_sum_exp(row), *next) as f32));
            }
            Ok(all)
        };
        let proof = self.proofs.iter().map(&mut of_kind).collect::<Result<_>>()?;
        Ok((measure, proof))
    }

    fn text(&self, decoder: &mut Decoder, reference: &[Vec<f32>]) -> Result<Measure> {
        self.of_logits(&mut |i| logits(decoder, &self.windows[i]), reference).map(Measure::Text)
    }

    fn of_logits(&self, logits: &mut dyn FnMut(usize) -> Result<Vec<f32>>, reference: &[Vec<f32>]) -> Result<Quality> {
        let Reference::Text { vocabulary, .. } = self.reference else { bail!("found no logits to compare with") };
        let mut rows = Vec::new();
        for (i, (window, reference)) in self.windows.iter().zip(reference).enumerate() {
            let found = logits(i)?;
            if found.len() != reference.len() {
                bail!("found {} logits, expected {}", found.len(), reference.len());
            }
            let size = vocabulary * ROWS;
            let blocks = found.par_chunks(size).zip(reference.par_chunks(size)).enumerate();
            let compared: Vec<Vec<Row>> = blocks
                .map(|(block, (found, reference))| {
                    let pairs = found.chunks(vocabulary).zip(reference.chunks(vocabulary));
                    let next = &window[block * ROWS + 1..];
                    pairs.zip(next).map(|((found, reference), &next)| Row::of(found, reference, next)).collect()
                })
                .collect();
            rows.extend(compared.into_iter().flatten());
        }
        let mean = |value: fn(&Row) -> f64| rows.iter().map(value).sum::<f64>() / rows.len() as f64;
        let nll = mean(|row| row.nll);
        if !nll.is_finite() {
            bail!("found logits that are not numbers, expected numbers");
        }
        Ok(Quality { kl: mean(|row| row.kl), top1: mean(|row| row.same), perplexity: nll.exp(), tokens: rows.len() })
    }
}

fn decoder(engine: Arc<Engine>, vocabulary: usize) -> Result<Decoder> {
    let decoder = Decoder::new(engine)?;
    if decoder.vocab_size() != vocabulary {
        bail!("found {} logits, expected {vocabulary} as in the model", decoder.vocab_size());
    }
    Ok(decoder)
}

/// The logits after each token of a window but the last.
fn logits(decoder: &mut Decoder, window: &[u32]) -> Result<Vec<f32>> {
    let route = decoder.routes().first().copied().unwrap_or(Route::Full);
    let seen = &window[..window.len().saturating_sub(1)];
    let mut logits = Vec::with_capacity(seen.len() * decoder.vocab_size());
    decoder.score(route, seen, &mut |_, row| {
        logits.extend_from_slice(row);
        Ok(())
    })?;
    Ok(logits)
}

/// What one place shows.
struct Row {
    kl: f64,
    same: f64,
    nll: f64,
}

impl Row {
    /// Logits against logarithms of probabilities: KL(P ‖ Q) = Σ p (ln p - ln q), P the reference.
    fn of(logits: &[f32], reference: &[f32], next: u32) -> Row {
        let norm = log_sum_exp(logits);
        let (mut kl, mut best, mut expected) = (0.0f64, 0, 0);
        for (i, (&logit, &log_p)) in logits.iter().zip(reference).enumerate() {
            if logit > logits[best] {
                best = i;
            }
            if log_p > reference[expected] {
                expected = i;
            }
            let p = log_p.exp();
            if p > 0.0 {
                kl += f64::from(p) * (f64::from(log_p) - (f64::from(logit) - norm));
            }
        }
        Row { kl: kl.max(0.0), same: f64::from(u8::from(best == expected)), nll: nll(logits, norm, next) }
    }
}

/// What the next token costs, in nats.
fn nll(logits: &[f32], norm: f64, next: u32) -> f64 {
    logits.get(next as usize).map_or(f64::NAN, |&logit| norm - f64::from(logit))
}

fn to_log_probabilities(logits: &mut [f32]) {
    let norm = log_sum_exp(logits);
    logits.iter_mut().for_each(|logit| *logit = (f64::from(*logit) - norm) as f32);
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Each term in f32 and the sum in f64: as exact as the logits are.
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - most).exp())).sum();
    f64::from(most) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_runtime::metrics::{LogitComparison, Perplexity};

    /// The metrics of validation are another way to compute the same.
    #[test]
    fn a_row_is_what_validation_finds() {
        let wave = |i: usize, step: f32| (i as f32 * step).sin() * 4.0;
        let reference: Vec<f32> = (0..500).map(|i| wave(i, 0.7)).collect();
        let logits: Vec<f32> = (0..500).map(|i| wave(i, 0.7) + wave(i, 1.3) * 0.2).collect();
        let mut comparison = LogitComparison::default();
        comparison.add(&reference, &logits).unwrap();
        let mut perplexity = Perplexity::default();
        perplexity.add(&logits, 17).unwrap();
        let mut known = reference.clone();
        to_log_probabilities(&mut known);
        let row = Row::of(&logits, &known, 17);
        assert!((row.kl - comparison.kl_mean()).abs() < 1e-5, "{} {}", row.kl, comparison.kl_mean());
        assert!((row.nll - perplexity.mean_nll()).abs() < 1e-5);
        assert_eq!(row.same, comparison.top1_agreement());
        assert!(Row::of(&reference, &known, 3).kl < 1e-6);
        assert!(Row::of(&reference, &known, 500).nll.is_nan());
    }
}
