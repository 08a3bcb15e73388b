//! Palettization and linear quantization: passes from program to program

mod assign;
mod bits;
mod float;
pub mod kmeans;
mod linear;
mod palettize;
mod values;

pub use bits::Nbits;
pub use float::Float;
pub use linear::{LinearDType, LinearGranularity, LinearMode, LinearOptions, Quantized, quantize_linear};
pub use palettize::{PaletteGranularity, PaletteMode, PalettizeOptions, Palettized, palettize};
