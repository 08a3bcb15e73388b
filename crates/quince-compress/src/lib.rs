//! Palettization and linear quantization: passes from program to program

mod assign;
mod bits;
mod component;
mod config;
mod float;
pub mod kmeans;
mod linear;
mod palettize;
mod pass;
mod scheme;
#[cfg(test)]
mod test_weights;
mod values;

pub use bits::Nbits;
pub use component::Component;
pub use config::{OptimizationConfig, Rule, Selector};
pub use float::Float;
pub use linear::{LinearDType, LinearGranularity, LinearMode, LinearOptions, Quantized, quantize_linear};
pub use palettize::{PaletteGranularity, PaletteMode, PalettizeOptions, Palettized, palettize};
pub use pass::{Report, RuleReport, compress};
pub use scheme::{Axes, Granularity, Scheme};
