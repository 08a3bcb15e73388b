//! The table of compression schemes: what a weight becomes, and the operation that makes it a weight again. A new scheme
//! is one file like [`crate::palettize`] and one arm here.

use crate::{
    Float, LinearDType, LinearGranularity, LinearMode, LinearOptions, Nbits, PaletteGranularity, PaletteMode,
    PalettizeOptions, palettize, quantize_linear,
};
use quince_mil::{Arg, DType, OpKind, Result, Tensor, Value, Weight};
use quince_tensor::parts;
use std::fmt;

/// What a weight becomes. Axes are those of the operation that uses it, so they are not said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Indices into lookup tables.
    Palettize {
        /// Bits of an index.
        nbits: Nbits,
        /// How the table is chosen.
        mode: PaletteMode,
        /// Output channels that share a table; `None` for one table.
        group_size: Option<usize>,
    },
    /// Integers with scales.
    Linear {
        /// The type of the integers.
        dtype: LinearDType,
        /// Whether the range is symmetric about zero.
        mode: LinearMode,
        /// What shares a scale.
        granularity: Granularity,
    },
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// The whole weight.
    PerTensor,
    /// An output channel.
    PerChannel,
    /// This many neighbouring input channels of an output channel.
    PerBlock(usize),
}

/// Along which axes of a weight its channels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// The axis of output channels.
    pub output: usize,
    /// The axis of input channels.
    pub input: usize,
}

/// The operation that a compressed weight is, and its parameters.
pub(crate) type Compressed = (OpKind, Vec<(String, Vec<Arg>)>);

impl Scheme {
    /// The operation that gives the weight back, and its arguments: computed when they are written, together.
    pub(crate) fn apply(self, weight: &Weight, axes: Axes) -> Result<Compressed> {
        let (op, names, weights) = match self {
            Scheme::Palettize { nbits, mode, group_size } => {
                let granularity = group_size.map_or(PaletteGranularity::PerTensor, |group_size| {
                    PaletteGranularity::PerGroupedChannel { axis: axes.output, group_size }
                });
                let lut = Float::of_weight(weight.dtype())?;
                let options = PalettizeOptions { nbits, mode, granularity, lut };
                ("constexpr_lut_to_dense", &["indices", "lut"][..], palettized(weight, options)?)
            }
            Scheme::Linear { dtype, mode, granularity } => {
                let granularity = match granularity {
                    Granularity::PerTensor => LinearGranularity::PerTensor,
                    Granularity::PerChannel => LinearGranularity::PerChannel { axis: axes.output },
                    Granularity::PerBlock(block_size) => {
                        LinearGranularity::PerBlock { output_axis: axes.output, input_axis: axes.input, block_size }
                    }
                };
                let options = LinearOptions { dtype, mode, granularity, scale: Float::of_weight(weight.dtype())? };
                let names = &["data", "scale", "offset"][..];
                ("constexpr_blockwise_shift_scale", names, quantized(weight, options)?)
            }
        };
        let arg = |(name, weight): (&&str, Weight)| ((*name).to_owned(), vec![Arg::Value(Value::Weight(weight))]);
        Ok((OpKind::from_name(op), names.iter().zip(weights).map(arg).collect()))
    }

    /// Bits that an element takes, tables and scales not counted.
    pub fn bits(self) -> usize {
        match self {
            Scheme::Palettize { nbits, .. } => nbits.get(),
            Scheme::Linear { dtype, .. } => dtype.dtype().bits(),
        }
    }
}

/// Indices and lookup tables of `weight`.
fn palettized(weight: &Weight, options: PalettizeOptions) -> Result<Vec<Weight>> {
    let (groups, nbits) = (options.groups(weight.shape())?, options.nbits);
    let lut_shape: Vec<usize> = groups.into_iter().chain([nbits.entries(), 1]).collect();
    let indices = DType::unsigned(nbits.get()).unwrap_or(DType::U8);
    let types = vec![
        (format!("{}_indices", weight.name()), indices, weight.shape().to_vec()),
        (format!("{}_lut", weight.name()), options.lut.dtype(), lut_shape),
    ];
    let weight = weight.clone();
    Ok(parts(types, move || palettize(&weight, &options).map(|p| vec![p.indices, p.lut])))
}

/// Data, scales and, where the mode has them, offsets of `weight`.
fn quantized(weight: &Weight, options: LinearOptions) -> Result<Vec<Weight>> {
    let (blocks, dtype) = (options.blocks(weight.shape())?, options.dtype.dtype());
    let mut types = vec![
        (format!("{}_data", weight.name()), dtype, weight.shape().to_vec()),
        (format!("{}_scale", weight.name()), options.scale.dtype(), blocks.clone()),
    ];
    if options.has_offset() {
        types.push((format!("{}_offset", weight.name()), dtype, blocks));
    }
    let weight = weight.clone();
    Ok(parts(types, move || {
        let quantized = quantize_linear(&weight, &options)?;
        let tensors: Vec<Tensor> = [quantized.data, quantized.scale].into_iter().chain(quantized.offset).collect();
        Ok(tensors)
    }))
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::Palettize { nbits, mode, group_size } => {
                let mode = match mode {
                    PaletteMode::KMeans => "k-means",
                    PaletteMode::Uniform => "uniform",
                    PaletteMode::Unique => "unique",
                };
                write!(f, "{}-bit palette, {mode}", nbits.get())?;
                match group_size {
                    Some(size) => write!(f, ", groups of {size}"),
                    None => f.write_str(", per tensor"),
                }
            }
            Scheme::Linear { dtype, mode, granularity } => {
                let mode = if *mode == LinearMode::Symmetric { "symmetric" } else { "asymmetric" };
                write!(f, "{} {mode}", dtype.dtype())?;
                match granularity {
                    Granularity::PerTensor => f.write_str(", per tensor"),
                    Granularity::PerChannel => f.write_str(", per channel"),
                    Granularity::PerBlock(size) => write!(f, ", blocks of {size}"),
                }
            }
        }
    }
}
