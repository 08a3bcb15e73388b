//! Palettization, linear quantization and pruning: passes from program to program.
//!
//! [`compress`] goes through the functions of a program, finds for each weight the rule of an [`OptimizationConfig`] that
//! is about it, and puts in place of the constant the `constexpr_*` operation of the rule's [`Scheme`] over lazy weights:
//! k-means runs when they are written, one at a time. [`palettize()`] and [`quantize_linear`] do it for a single weight.
//!
//! ```
//! use quince_compress::{Nbits, OptimizationConfig, Palette};
//!
//! let scheme = Palette::kmeans(Nbits::new(4)?, Some(16)).into();
//! let mut config = OptimizationConfig::all(scheme);
//! config.add_mixed_precision("attention=6,lm_head=none", scheme)?;
//! # Ok::<(), quince_mil::Error>(())
//! ```
//!
//! This crate reads and writes no file and knows no architecture: it works on any program, also on one read from a
//! package. The number of threads never changes what comes out.

mod activations;
mod allocate;
mod assign;
mod bits;
mod calibrated;
mod component;
mod config;
mod float;
mod graft;
mod histogram;
mod inputs;
mod keep;
pub mod kmeans;
mod linear;
mod palettize;
mod palettize_vectors;
mod pass;
mod prune;
mod scheme;
#[cfg(test)]
mod test_weights;
mod values;

pub use activations::{ActivationMode, ActivationRanges, ActivationReport, activation_inputs, quantize_activations};
pub use allocate::{Choice, allocate, allocated_bytes};
pub use bits::Nbits;
pub use calibrated::{Cross, Factor, Guide, Lost, Moments, Multiplier, aimed};
pub use component::{Component, layer_of};
pub use config::{OptimizationConfig, Rule, Selector};
pub use float::Float;
pub use graft::graft;
pub use histogram::{Histogram, Statistic};
pub use inputs::{WeightInput, weight_inputs};
pub use keep::{Integers, Kept, keep};
pub use linear::{LinearDType, LinearGranularity, LinearMode, LinearOptions, Quantized, quantize_linear};
pub use palettize::{PaletteGranularity, PaletteMode, PalettizeOptions, Palettized, TableType, palettize};
pub use palettize_vectors::{ClusterDim, palettize_vectors};
pub use pass::{Report, RuleReport, Touched, compress, compress_guided};
pub use prune::{Amount, Pruning};
pub use scheme::{Axes, Granularity, Linear, Palette, Scheme, Sparse, SparseLinear, SparsePalette, VectorPalette};
