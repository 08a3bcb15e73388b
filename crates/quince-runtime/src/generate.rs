//! The generation loop: prompt in, tokens and text out, over any model that can continue a sequence.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quince_tensor::{Error, Result, bail};

use crate::detokenize::TextStream;
use crate::sampler::{Sampler, SamplerOptions};
use crate::stop::StopStrings;
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// A model with a cache of the tokens that it has seen, which it continues.
pub trait LanguageModel {
    /// The most tokens that the cache holds.
    fn context(&self) -> usize;

    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Number of tokens in the cache.
    fn position(&self) -> usize;

    /// Forgets tokens until at most `position` are left, and returns how many are: fewer when the cache cannot go back
    /// to just there (a rotating one), 0 when it can only begin anew.
    ///
    /// # Errors
    /// What the engine reports.
    fn truncate(&mut self, position: usize) -> Result<usize>;

    /// Appends tokens, in chunks of the model's own size; the caller sees to it that there is room. After each chunk
    /// `progress` hears how many of them are in; when it breaks, so does the model, and `position` tells how far it came.
    ///
    /// # Errors
    /// What the engine reports; the content of the cache is then unknown.
    fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>>;

    /// Appends one token.
    ///
    /// # Errors
    /// As [`LanguageModel::prefill`].
    fn decode(&mut self, token: u32) -> Result<()>;

    /// `[vocab_size]`: the logits that follow the last token appended.
    fn logits(&self) -> &[f32];
}

impl<M: LanguageModel + ?Sized> LanguageModel for &mut M {
    fn context(&self) -> usize {
        (**self).context()
    }
    fn vocab_size(&self) -> usize {
        (**self).vocab_size()
    }
    fn position(&self) -> usize {
        (**self).position()
    }
    fn truncate(&mut self, position: usize) -> Result<usize> {
        (**self).truncate(position)
    }
    fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        (**self).prefill(tokens, progress)
    }
    fn decode(&mut self, token: u32) -> Result<()> {
        (**self).decode(token)
    }
    fn logits(&self) -> &[f32] {
        (**self).logits()
    }
}

/// When and how an answer is made.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplerOptions,
    /// The answer ends before the first of these; they may span tokens.
    pub stop: Vec<String>,
    /// Goes on past the model's end-of-text tokens, as benchmarks and comparisons want it.
    pub ignore_eos: bool,
    /// Whether special tokens are in the text.
    pub special_tokens: SpecialTokens,
    /// What happens when the cache is full before the answer ends.
    pub context_full: ContextFull,
    /// Set from anywhere, it ends the answer at the next chunk or token.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for GenerateOptions {
    fn default() -> GenerateOptions {
        GenerateOptions {
            max_tokens: 256,
            sampling: SamplerOptions::default(),
            stop: Vec::new(),
            ignore_eos: false,
            special_tokens: SpecialTokens::Omit,
            context_full: ContextFull::Stop,
            cancel: None,
        }
    }
}

/// What to do when the cache is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextFull {
    /// The answer so far is the answer.
    Stop,
    /// It is an error.
    Fail,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so, with this token (it is not among the answer's tokens).
    EndOfText(u32),
    /// A stop string was found; the index into `GenerateOptions::stop`.
    StopString(usize),
    /// `max_tokens` were generated.
    MaxTokens,
    /// The cache is full.
    ContextFull,
    /// Whoever asked does not want any more.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`, the words of OpenAI's interface where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::EndOfText(_) | FinishReason::StopString(_) => "stop",
            FinishReason::MaxTokens | FinishReason::ContextFull => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// What happens while an answer is made. The texts, one after another, are the text of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// `done` of `total` tokens of the prompt are in the cache.
    Prefill {
        /// Tokens in the cache, those of an earlier prompt included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// A token was chosen; `text` is what became certain with it, often nothing.
    Token {
        /// The token.
        id: u32,
        /// New text.
        text: &'a str,
    },
    /// The answer ends with text that had been held back.
    Rest {
        /// New text.
        text: &'a str,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The prompt, as given.
    pub prompt_token_ids: Vec<u32>,
    /// The tokens of the answer, without the one that ended it.
    pub token_ids: Vec<u32>,
    /// The text of the answer, without the stop string that ended it.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timings: Timings,
}

/// How long an answer took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt that were in the cache already.
    pub reused_tokens: usize,
    /// Tokens of the prompt that were not.
    pub prefill_tokens: usize,
    /// Time for those.
    pub prefill: Duration,
    /// From the call to the first token chosen; zero without one.
    pub first_token: Duration,
    /// For each further token, from the one before it: decoding, choosing, telling.
    pub decode: Vec<Duration>,
    /// From the call to the end.
    pub total: Duration,
}

impl Timings {
    /// Tokens of the prompt per second, those reused not counted.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Tokens per second after the first.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        rate(self.decode.len(), self.decode.iter().sum())
    }
}

fn rate(count: usize, time: Duration) -> Option<f64> {
    (count > 0 && !time.is_zero()).then(|| count as f64 / time.as_secs_f64())
}

/// A model and what it has in its cache: successive prompts that begin alike, as those of a conversation do, are
/// computed only from where they differ.
#[derive(Debug)]
pub struct Session<M> {
    model: M,
    cached: Vec<u32>,
}

impl<M: LanguageModel> Session<M> {
    /// Begins with what the model has: nothing is assumed of its cache.
    pub fn new(model: M) -> Session<M> {
        Session { model, cached: Vec::new() }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The tokens known to be in the cache.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// Continues `prompt`. `on_event` hears of each step, and ends the answer by breaking.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context or with ids beyond the vocabulary; options out of range; logits
    /// that cannot be sampled; a full cache under [`ContextFull::Fail`]; what the model reports.
    pub fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let start = Instant::now();
        self.check(prompt)?;
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let mut answer = Answer::new(tokenizer, options, on_event);
        let finish_reason = match self.prefill(prompt, &mut answer)? {
            ControlFlow::Break(()) => FinishReason::Cancelled,
            ControlFlow::Continue(()) => self.continue_prompt(prompt, &mut sampler, &mut answer, start)?,
        };
        let finish_reason = answer.finish(finish_reason)?;
        answer.timings.total = start.elapsed();
        Ok(Generation {
            prompt_token_ids: prompt.to_vec(),
            token_ids: answer.token_ids,
            text: answer.text,
            finish_reason,
            timings: answer.timings,
        })
    }

    fn check(&self, prompt: &[u32]) -> Result<()> {
        let (context, vocabulary) = (self.model.context(), self.model.vocab_size());
        if prompt.is_empty() {
            bail!("prompt: found no token, expected at least one"; hint: "give it some text");
        }
        if prompt.len() > context {
            bail!("prompt: found {} tokens, expected at most {context}, the model's context", prompt.len(); hint: "shorten the prompt or convert the model with a larger --context");
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocabulary) {
            bail!("prompt: found token {id}, expected ids below {vocabulary}, the model's vocabulary"; hint: "the tokenizer belongs to another model");
        }
        Ok(())
    }

    /// Brings the cache to hold the prompt; at least its last token is computed, for its logits.
    fn prefill(&mut self, prompt: &[u32], answer: &mut Answer) -> Result<ControlFlow<()>> {
        let start = Instant::now();
        // Should the model fail from here on, the next prompt must not count on anything in the cache.
        let known = std::mem::take(&mut self.cached);
        let common = known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let wanted = if known.len() == self.model.position() { common.min(prompt.len() - 1) } else { 0 };
        let kept = self.model.truncate(wanted)?;
        if kept > wanted {
            bail!("model: found {kept} tokens in the cache after truncating, expected at most {wanted}");
        }
        if answer.prefilled(kept, prompt.len()).is_break() {
            self.cached = prompt[..kept].to_vec();
            return Ok(ControlFlow::Break(()));
        }
        let flow = self.model.prefill(&prompt[kept..], &mut |done| answer.prefilled(kept + done, prompt.len()))?;
        let position = self.model.position();
        if position > prompt.len() || (flow.is_continue() && position < prompt.len()) {
            bail!("model: found {position} tokens in the cache after the prompt, expected {}", prompt.len());
        }
        self.cached = prompt[..position].to_vec();
        answer.timings.reused_tokens = kept;
        answer.timings.prefill_tokens = position.saturating_sub(kept);
        answer.timings.prefill = start.elapsed();
        Ok(flow)
    }

    fn continue_prompt(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        answer: &mut Answer,
        start: Instant,
    ) -> Result<FinishReason> {
        let mut last = start;
        while answer.token_ids.len() < answer.options.max_tokens {
            if let Some(&token) = answer.token_ids.last() {
                if self.model.position() >= self.model.context() {
                    return self.context_full(answer);
                }
                self.decode(token)?;
            }
            let token = sampler.sample(self.model.logits(), prompt, &answer.token_ids)?;
            if !answer.options.ignore_eos && answer.tokenizer.eos().contains(&token) {
                return Ok(FinishReason::EndOfText(token));
            }
            let flow = answer.push(token)?;
            let now = Instant::now();
            match answer.token_ids.len() {
                1 => answer.timings.first_token = now - start,
                _ => answer.timings.decode.push(now - last),
            }
            last = now;
            if let ControlFlow::Break(reason) = flow {
                return Ok(reason);
            }
        }
        Ok(FinishReason::MaxTokens)
    }

    fn decode(&mut self, token: u32) -> Result<()> {
        let mut known = std::mem::take(&mut self.cached);
        self.model.decode(token)?;
        known.push(token);
        self.cached = known;
        Ok(())
    }

    fn context_full(&self, answer: &Answer) -> Result<FinishReason> {
        match answer.options.context_full {
            ContextFull::Stop => Ok(FinishReason::ContextFull),
            ContextFull::Fail => {
                let (context, count) = (self.model.context(), answer.token_ids.len());
                let found = format!("context: found it full at {context} tokens after {count} of the answer");
                Err(Error::new(format!("{found}, expected room for {}", answer.options.max_tokens))
                    .hint("shorten the prompt, ask for fewer tokens, or convert the model with a larger --context"))
            }
        }
    }
}

/// An answer in the making.
struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a GenerateOptions,
    on_event: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    stream: TextStream<'a>,
    stops: StopStrings<'a>,
    token_ids: Vec<u32>,
    text: String,
    timings: Timings,
}

impl<'a> Answer<'a> {
    fn new(
        tokenizer: &'a Tokenizer,
        options: &'a GenerateOptions,
        on_event: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Answer<'a> {
        Answer {
            tokenizer,
            options,
            on_event,
            stream: tokenizer.stream(options.special_tokens),
            stops: StopStrings::new(&options.stop),
            token_ids: Vec::new(),
            text: String::new(),
            timings: Timings::default(),
        }
    }

    fn prefilled(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        (self.on_event)(Event::Prefill { done, total })?;
        self.cancelled()
    }

    fn cancelled(&self) -> ControlFlow<()> {
        match &self.options.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn push(&mut self, token: u32) -> Result<ControlFlow<FinishReason>> {
        self.token_ids.push(token);
        let piece = self.stream.push(token)?.unwrap_or_default();
        let told = self.stops.push(&piece);
        self.text.push_str(&told.text);
        let flow = (self.on_event)(Event::Token { id: token, text: &told.text });
        Ok(match told.stop {
            Some(index) => ControlFlow::Break(FinishReason::StopString(index)),
            None if flow.is_break() || self.cancelled().is_break() => ControlFlow::Break(FinishReason::Cancelled),
            None => ControlFlow::Continue(()),
        })
    }

    /// Tells what was held back, and why the answer really ended: that text may complete a stop string. What follows
    /// a stop string is not part of the answer; a cancelled answer's text is whole, though nobody listens any more.
    fn finish(&mut self, reason: FinishReason) -> Result<FinishReason> {
        if matches!(reason, FinishReason::StopString(_)) {
            return Ok(reason);
        }
        let piece = self.stream.finish()?.unwrap_or_default();
        let told = self.stops.push(&piece);
        let mut rest = told.text;
        if told.stop.is_none() {
            rest.push_str(&self.stops.finish());
        }
        if !rest.is_empty() && reason != FinishReason::Cancelled {
            // It is the last event: there is nothing left to break off.
            let _ = (self.on_event)(Event::Rest { text: &rest });
        }
        self.text.push_str(&rest);
        Ok(told.stop.map_or(reason, FinishReason::StopString))
    }
}

#[cfg(test)]
mod tests;
