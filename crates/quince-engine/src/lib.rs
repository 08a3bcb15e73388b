//! Runs a program: plans it for the shapes of a call, keeps weights packed as they lie in their file, and uses the
//! fastest kernels that the machine has; what has no kernel is evaluated by its definition in quince-mil.
//!
//! Floating point is computed and kept in `f32` between the inputs and the outputs of a function, whatever the program
//! declares: results are at least as exact as the program asks for. States keep the type that they declare. What fp16
//! hardware would compute is simulated on request ([`Precision::Strict`]).
//!
//! Invariants: this crate opens no file, knows no model, and never trusts a program: sizes are checked before memory is
//! taken, and whatever is wrong is an error that names the operation.

mod batch;
mod channels;
mod engine;
mod fuse;
#[cfg(test)]
mod hostile;
mod memory;
mod observe;
mod plan_cache;
mod planner;
mod range;
mod repetition;
mod specialize;
mod steps;
mod strict;
mod strict_weights;
mod strided;
#[cfg(test)]
mod tests;
mod tokens;
#[cfg(test)]
mod watched;
mod weights;
mod work;

pub use engine::{Engine, Options, Precision, State, Tensors};
pub use memory::{StateData, StateTensor};
pub use observe::{Observed, Observer, Origin, Source};
pub use quince_kernels as kernels;
pub use quince_mil::Limits;
pub use range::{Finding, RangeReport};
pub use specialize::fixed;
pub use strict::Rounding;
pub use work::{Work, work};
