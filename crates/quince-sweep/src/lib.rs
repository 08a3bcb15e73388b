//! Which compression is best.
//!
//! ```text
//! Judge: a program against the uncompressed one, on texts ──▶ Measure (KL, top-1, perplexity; cosines of an encoder)
//!   │
//! Sensitivities: what is lost when one weight alone is compressed, for each way to do it
//!   │
//! search: the way for each weight that loses least within a budget, proven on other texts ──▶ an OptimizationConfig
//! ```
//!
//! A sweep compresses a model in many ways and judges each; its report is a [`SweepReport`], also as a page ([`html()`]).
//!
//! Sensitivities are measured by running the compressed model: no gradients, nothing but texts, which the model may have
//! written itself. They are measured once; any budget can be met with them.

mod finals;
mod html;
mod judge;
mod outcome;
mod plot;
mod search;
mod sensitivity;

pub use html::html;
pub use judge::{Cosines, Judge, Measure, Proof, Quality};
pub use outcome::{Outcome, PartLoss, SweepReport};
pub use search::{Budget, Found, Pick, Search, Subject, search};
pub use sensitivity::{Candidate, Effort, Measured, Sensitivities, candidates};
