//! What weights are multiplied with and how much each matters, measured by running the model.
//!
//! ```text
//! Texts ─▶ collect(program) ─▶ file of second moments ─▶ Statistics: the Guide of quince_compress::compress_guided
//! ```
//!
//! [`compress_sequentially`] measures and compresses in one, each weight for the inputs that those before it have left.
//!
//! [`activation_ranges`] finds how large the values are that weights are multiplied with, for int8 activations.
//!
//! The texts may be given, come with quince ([`Texts::prose`]), or be written by the model itself
//! ([`Texts::written_by`]), which shows it what it is used to (Liu et al. 2023, LLM-QAT, section 3.1). Encoders, which write
//! nothing, read sentences that were written for this ([`Texts::BUILT_IN`]).

mod collect;
mod extremes;
mod ranges;
mod sequential;
mod statistics;
mod texts;

pub use collect::{CollectOptions, Run, Runner, collect};
pub use extremes::{Extreme, extremes};
pub use ranges::{RangeRule, activation_ranges};
pub use sequential::{SequentialOptions, compress_sequentially};
pub use statistics::Statistics;
pub use texts::Texts;
