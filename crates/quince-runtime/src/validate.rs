//! Is a package right? Its shipped functions, run by the engine, against the reference on the same prompts and text.
//!
//! For each prompt the reference writes a greedy continuation. The candidate writes its own (the transcripts), and is
//! then led along the reference's, token by token through its cache, as an app would run it: its logits at each place
//! are compared with those that the reference chose from. The perplexity of both on a text tells what is lost overall.

mod sentences;
mod suite;
mod thresholds;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use quince_tensor::{Result, bail};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::generate::LanguageModel;
use crate::metrics::{Latencies, LogitComparison, Metric, Report, Threshold};
use crate::model::{Decoder, Route};
use crate::perplexity::{Windows, perplexity};
use crate::reference::{Continuation, Reference};
use crate::sampler::most_likely;
use crate::tokenizer::{SpecialTokens, Tokenizer};

pub use sentences::{Sentence, validate_embeddings};
pub use suite::{Prompt, Suite};
pub use thresholds::Thresholds;

/// What [`validate`] found. In JSON: the report's `{"subject", "passed", "metrics"}`, and `"transcripts"`.
///
/// | metric | |
/// |---|---|
/// | `logits_psnr`, `kl_mean`, `kl_max`, `top1_agreement` | [`LogitComparison`] along the reference's continuations |
/// | `same_transcripts` | share of prompts whose whole transcript is the reference's |
/// | `lost_margin` | the largest [`Divergence::margin`]; 0 without one |
/// | `cached_full_psnr` | the functions with a cache against the one without, if the package has both |
/// | `perplexity`, `perplexity_reference`, `perplexity_change` | on the text, and the rise in percent |
/// | `cosine_min`, `cosine_mean`, `batch_cosine_min` | of an encoder: [`validate_embeddings`] |
/// | `decode_median`, `decode_p90`, `decode_p99` | time of a call that decodes one token |
#[derive(Clone, PartialEq, Debug)]
pub struct Validation {
    /// The numbers with their thresholds.
    pub report: Report,
    /// What both said, prompt by prompt.
    pub transcripts: Vec<Transcript>,
    /// How near the embeddings of an encoder are, sentence by sentence.
    pub sentences: Vec<Sentence>,
}

/// A prompt and what both models say after it, greedily and past the end of the answer.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Transcript {
    /// The prompt, without the chat template.
    pub prompt: String,
    /// The reference's tokens.
    pub reference_token_ids: Vec<u32>,
    /// The candidate's tokens.
    pub candidate_token_ids: Vec<u32>,
    /// The reference's text, if there is a tokenizer.
    pub reference: Option<String>,
    /// The candidate's text.
    pub candidate: Option<String>,
    /// Where they part, if they do.
    pub divergence: Option<Divergence>,
}

/// The first token that differs.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Divergence {
    /// Its index in the answer.
    pub index: usize,
    /// What the reference says.
    pub reference: u32,
    /// What the candidate says.
    pub candidate: u32,
    /// By how much the reference's logit of its own token is above that of the candidate's: near zero, either is right.
    pub margin: f64,
}

/// What a validation is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// `prompts`, `perplexity`, `reference perplexity`, or which embeddings.
    pub what: &'static str,
    /// How many are done.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// Measures `candidate` against `reference`. The thresholds are the suite's, and for what it does not say, defaults for
/// the number of bits in which a tenth or more of the candidate's weights are stored. The caches are empty afterwards.
///
/// Costs: for each prompt two to four texts of the reference when the candidate is good, one for each token when it is
/// not; the continuation twice and the prompt twice by the candidate; the text of the perplexity once by both.
///
/// # Errors
/// Models of different vocabularies; prompts that leave no room in the context; what the engine reports, logits that
/// are not numbers among it.
pub fn validate(
    candidate: &mut Decoder,
    reference: &mut Reference,
    tokenizer: Option<&Tokenizer>,
    suite: &Suite,
    progress: &mut dyn FnMut(Progress),
) -> Result<Validation> {
    let sizes = (candidate.vocab_size(), reference.decoder().vocab_size());
    if sizes.0 != sizes.1 {
        bail!("found {} logits of the package, expected {} as the model has", sizes.0, sizes.1; hint: "the package was made from another model");
    }
    let mut limits = thresholds::defaults(thresholds::stored_bits(candidate.engine().program()));
    limits.extend(&suite.thresholds);
    let mut findings = Findings::default();
    let total = suite.prompts.len();
    for (done, prompt) in suite.prompts.iter().enumerate() {
        progress(Progress { what: "prompts", done, total });
        let place = |error: quince_tensor::Error| error.at(format!("prompt {}", done + 1));
        let ids = prompt.tokens(tokenizer, sizes.0).map_err(place)?;
        let transcript = findings.prompt(candidate, reference, &ids, suite.max_tokens).map_err(place)?;
        findings.transcripts.push(transcript.told(prompt.shown(), tokenizer)?);
    }
    progress(Progress { what: "prompts", done: total, total });
    let mut report = Report::new("package against model");
    findings.report(&limits, &mut report);
    if let Some(text) = &suite.text {
        let text = match tokenizer {
            Some(tokenizer) => tokenizer.encode(text, SpecialTokens::Omit)?,
            None => suite::bytes_as_tokens(text, sizes.0),
        };
        perplexities(candidate, reference, (&text, tokenizer, suite.length), &limits, &mut report, progress)?;
    }
    findings.latencies(&limits, &mut report);
    Ok(Validation { report, transcripts: findings.transcripts, sentences: Vec::new() })
}

/// What the prompts showed.
#[derive(Default)]
struct Findings {
    logits: LogitComparison,
    cached_full: LogitComparison,
    decode: Vec<Duration>,
    transcripts: Vec<Transcript>,
}

impl Findings {
    fn prompt(
        &mut self,
        candidate: &mut Decoder,
        reference: &mut Reference,
        prompt: &[u32],
        max_tokens: usize,
    ) -> Result<Transcript> {
        let context = candidate.context().min(reference.context());
        // The last token of a continuation needs no room.
        let count = max_tokens.min((context + 1).saturating_sub(prompt.len()));
        if count == 0 {
            bail!("found {} tokens, expected fewer than the context of {context}", prompt.len(); hint: "shorten the prompt");
        }
        candidate.truncate(0)?;
        let own = continue_greedily(candidate, prompt, count)?;
        let continuation = reference.continuation(prompt, count, &mut |text, guesses| match text == prompt {
            true => Ok(own[..guesses.min(own.len())].to_vec()),
            false => continue_greedily(candidate, text, guesses),
        })?;
        let rows = self.follow(candidate, prompt, &continuation)?;
        if candidate.routes().len() > 1 {
            self.compare_routes(candidate, prompt, &continuation, &rows)?;
        }
        Ok(Transcript {
            prompt: String::new(),
            divergence: Divergence::find(&continuation, &own),
            reference_token_ids: continuation.tokens,
            candidate_token_ids: own,
            reference: None,
            candidate: None,
        })
    }

    /// Leads the candidate along the reference's continuation; gives its logits.
    fn follow(
        &mut self,
        candidate: &mut Decoder,
        prompt: &[u32],
        continuation: &Continuation,
    ) -> Result<Vec<Vec<f32>>> {
        candidate.truncate(0)?;
        let mut rows = Vec::with_capacity(continuation.logits.len());
        for (i, expected) in continuation.logits.iter().enumerate() {
            match i.checked_sub(1).and_then(|last| continuation.tokens.get(last)) {
                None => append(candidate, prompt)?,
                Some(&token) => {
                    let start = Instant::now();
                    candidate.decode(token)?;
                    self.decode.push(start.elapsed());
                }
            }
            self.logits.add(expected, candidate.logits())?;
            rows.push(candidate.logits().to_vec());
        }
        candidate.truncate(0)?;
        Ok(rows)
    }

    /// The function without a cache must give what those with one gave.
    fn compare_routes(
        &mut self,
        candidate: &mut Decoder,
        prompt: &[u32],
        continuation: &Continuation,
        cached: &[Vec<f32>],
    ) -> Result<()> {
        let mut text = prompt.to_vec();
        text.extend(continuation.tokens.iter().take(cached.len() - 1));
        text.truncate(candidate.longest(Route::Full));
        candidate.score(Route::Full, &text, &mut |i, full| match (i + 1)
            .checked_sub(prompt.len())
            .and_then(|row| cached.get(row))
        {
            Some(cached) => self.cached_full.add(full, cached),
            None => Ok(()),
        })
    }

    fn report(&self, limits: &Thresholds, report: &mut Report) {
        let mut push = |name, value| report.push(thresholds::metric(name, value, limits));
        if self.logits.rows() > 0 {
            push("logits_psnr", self.logits.psnr());
            push("kl_mean", self.logits.kl_mean());
            push("kl_max", self.logits.kl_max());
            push("top1_agreement", self.logits.top1_agreement());
            let margins = self.transcripts.iter().filter_map(|t| t.divergence).map(|divergence| divergence.margin);
            let same = self.transcripts.iter().filter(|t| t.divergence.is_none()).count();
            push("same_transcripts", same as f64 / self.transcripts.len() as f64);
            push("lost_margin", margins.fold(0.0, f64::max));
        }
        if self.cached_full.rows() > 0 {
            push("cached_full_psnr", self.cached_full.psnr());
        }
    }

    fn latencies(&self, limits: &Thresholds, report: &mut Report) {
        if let Some(times) = Latencies::of(&self.decode) {
            for (name, time) in [("decode_median", times.median), ("decode_p90", times.p90), ("decode_p99", times.p99)]
            {
                report.push(thresholds::metric(name, time.as_secs_f64() * 1e3, limits));
            }
        }
    }
}

fn perplexities(
    candidate: &mut Decoder,
    reference: &mut Reference,
    (text, tokenizer, length): (&[u32], Option<&Tokenizer>, usize),
    limits: &Thresholds,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let longest = candidate.routes().first().map_or(0, |&route| candidate.longest(route));
    let length = length.min(longest).min(reference.context());
    let windows = Windows::new(candidate, tokenizer, Some(length))?;
    let mut tell = |what, done, total| progress(Progress { what, done, total });
    let found = perplexity(candidate, text, windows, &mut |done, total| tell("perplexity", done, total))?;
    let expected =
        perplexity(reference.decoder(), text, windows, &mut |done, total| tell("reference perplexity", done, total))?;
    report.push(Metric::new("perplexity", found.perplexity, ""));
    report.push(Metric::new("perplexity_reference", expected.perplexity, ""));
    let change = (found.nll - expected.nll).exp_m1() * 100.0;
    report.push(thresholds::metric("perplexity_change", change, limits));
    Ok(())
}

/// The candidate's greedy continuation of a text by `count` tokens. What the cache has of the text is used.
fn continue_greedily(candidate: &mut Decoder, text: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut tokens = Vec::with_capacity(count);
    if count == 0 {
        return Ok(tokens);
    }
    let common = candidate.tokens().iter().zip(text).take_while(|(a, b)| a == b).count();
    let kept = candidate.truncate(common.min(text.len().saturating_sub(1)))?;
    append(candidate, &text[kept..])?;
    loop {
        let token = most_likely(candidate.logits())?;
        tokens.push(token);
        if tokens.len() == count {
            return Ok(tokens);
        }
        candidate.decode(token)?;
    }
}

fn append(candidate: &mut Decoder, tokens: &[u32]) -> Result<()> {
    candidate.prefill(tokens, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

impl Divergence {
    fn find(continuation: &Continuation, candidate: &[u32]) -> Option<Divergence> {
        let pairs = continuation.tokens.iter().zip(candidate);
        let (index, (&reference, &candidate)) = pairs.enumerate().find(|(_, (a, b))| a != b)?;
        let logits = continuation.logits.get(index)?;
        let logit = |token: u32| logits.get(token as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit));
        Some(Divergence { index, reference, candidate, margin: logit(reference) - logit(candidate) })
    }
}

impl Transcript {
    /// With texts for people.
    fn told(mut self, prompt: String, tokenizer: Option<&Tokenizer>) -> Result<Transcript> {
        let text = |ids: &[u32]| tokenizer.map(|t| t.decode(ids, SpecialTokens::Include)).transpose();
        self.reference = text(&self.reference_token_ids)?;
        self.candidate = text(&self.candidate_token_ids)?;
        self.prompt = prompt;
        Ok(self)
    }
}

impl Validation {
    /// Whether every threshold holds.
    pub fn passed(&self) -> bool {
        self.report.passed()
    }

    /// Both in one: what a package with a decoder and an encoder is held to.
    #[must_use]
    pub fn and(mut self, other: Validation) -> Validation {
        self.report.metrics.extend(other.report.metrics);
        self.transcripts.extend(other.transcripts);
        self.sentences.extend(other.sentences);
        self
    }

    /// The metrics as a table: name, value with unit, what it must reach, whether it does.
    pub fn rows(&self) -> Vec<[String; 4]> {
        let row = |metric: &Metric| {
            let number = |value: f64| format!("{value:.4} {}", metric.unit).trim_end().to_owned();
            let (limit, verdict) = match metric.threshold {
                None => (String::new(), ""),
                Some(limit) => {
                    let text = match limit {
                        Threshold::Min(min) => format!("≥ {min}"),
                        Threshold::Max(max) => format!("≤ {max}"),
                    };
                    (text, if metric.passed() { "ok" } else { "FAILED" })
                }
            };
            [metric.name.clone(), number(metric.value), limit, verdict.to_owned()]
        };
        self.report.metrics.iter().map(row).collect()
    }
}

impl Serialize for Validation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("subject", &self.report.subject)?;
        map.serialize_entry("passed", &self.passed())?;
        map.serialize_entry("metrics", &self.report.metrics)?;
        map.serialize_entry("transcripts", &self.transcripts)?;
        if !self.sentences.is_empty() {
            map.serialize_entry("sentences", &self.sentences)?;
        }
        map.end()
    }
}
