//! From checkpoint to program: shared blocks, one file for each architecture, one lowering for each target.
//!
//! ```text
//! config.json ── models/<model_type>.rs ──▶ semantic program ── lower/<target>.rs ──▶ MIL program
//!                written in Graph, blocks    linear, rms_norm,    init, decode, full:
//!                                            rope, attention...   layout, cache, precision
//! ```
//!
//! A model file says what the model computes and nothing else. The *semantic program* that it writes ([`semantic()`])
//! has one function, float32 weights and semantic operations; quince_mil::eval and the engine run it, and it is the
//! reference that everything after it is compared with.
//!
//! # Adding a target
//!
//! A lowering reads the semantic program operation by operation and writes, for each function that is asked for, what
//! its target runs well. [`lower`](mod@lower) has the table of targets, `lower/gpu.rs` the first of them: a table from
//! semantic operation to rule; operations that MIL has already are copied. `lower/neural_engine.rs` is another, with its own
//! rules (`linear` becomes a 1×1 `conv` over (B, C, 1, S), `attention` a product, a mask and a softmax, `rms_norm` a form that
//! cannot overflow float16, `logits` several products) and its line in the table; what functions, caches, positions and
//! masks are, they share. A Core AI emitter starts from the same semantic program: its rules give that system's operations
//! instead of MIL's. Neither touches a model file, and all are held to the same laws: lowered = semantic, cached = full.

pub mod blocks;
mod convert;
pub mod graph;
pub mod lower;
pub mod models;
pub mod parts;
mod pooling;
pub mod rescale;
mod rope;
mod semantic;
mod weights;

pub use convert::{
    Adapters, Converted, DEFAULT_CONTEXT, DEFAULT_PREFILL_LENGTH, FunctionName, Options, ShapesKind, convert,
    convert_with,
};
pub use graph::Graph;
pub use models::{Architecture, MODELS, Model};
pub use pooling::{Dense, DenseActivation, Embedding, Instruction, MOST_DENSE, Pooling, VectorLength};
pub use rope::{Rope, RopeKeys};
pub use semantic::{Reading, Semantic, Voice, semantic, semantic_of, semantic_with};
