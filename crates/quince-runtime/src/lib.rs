//! Text in, text out: tokenizer, chat template, sampler, generation, validation, benchmark.
//!
//! ```text
//! Bundle ─▶ Tokenizer, ChatTemplate ──▶ prompt ─▶ Session<Decoder> ─▶ logits ─▶ Sampler ─▶ tokens ─▶ TextStream ─▶ text
//!       └─▶ Package ─▶ Engine ─▶ Decoder ──────────────┘                └─▶ metrics ─▶ Validation, perplexity, Bench
//! ```
//!
//! A [`Decoder`] runs any program that takes tokens and gives logits, whatever cache it has; a [`Session`] remembers what
//! is in the cache, so that prompts that begin alike are computed from where they differ; [`validate()`] compares a
//! candidate with the reference, measure by measure, each with its [`Thresholds`].
//!
//! This crate prints nothing, knows no architecture and never looks at a checkpoint: what a model is, the program of its
//! package says. The same seed and logits choose the same tokens on every machine.

mod bench;
mod bundle;
mod chain;
mod chat_template;
mod detokenize;
mod diff;
mod embed;
mod generate;
mod jinja;
mod jinja_source;
pub mod metrics;
mod model;
mod perplexity;
mod python;
mod reference;
mod sampler;
mod stop;
#[cfg(test)]
mod testing;
mod tokenizer;
mod tokenizer_files;
mod validate;

pub use bench::{
    Bench, BenchOptions, Decode, EmbedBench, EmbedBenchOptions, EmbedRate, Machine, Named, Peak, Percentiles, Prefill,
    Share, Spread, bench, bench_embed, peak_resident_bytes,
};
pub use bundle::{
    AdapterEntry, AdapterUse, Bundle, CHAIN_KEY, COMPANIONS, CacheLayout, Chain, Feature, FileEntry, FunctionShape,
    MANIFEST, Manifest, PACKAGE, PartEntry, Source, VALIDATION, part_of,
};
pub use chain::join;
pub use chat_template::{ChatRequest, ChatTemplate, Message};
pub use detokenize::TextStream;
pub use diff::{Blame, CallDiff, Compared, Diff, Input};
pub use embed::{BatchShapes, Embedder, Embeddings, Pooling, Prompts, SentenceModules};
pub use generate::{ContextFull, Event, FinishReason, GenerateOptions, Generation, LanguageModel, Session, Timings};
pub use model::{Call, Decoder, Route, Watch, adapters};
pub use perplexity::{TextPerplexity, Windows, perplexity};
pub use python::Moment;
pub use reference::{Continuation, Propose, Reference};
pub use sampler::{Sampler, SamplerOptions};
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use validate::{
    Divergence, Progress, Prompt, Sentence, Suite, Thresholds, Transcript, Validation, validate, validate_embeddings,
};
