//! Integers with scales: `constexpr_blockwise_shift_scale`.

use super::{Lowered, Method, Scheme, Step, Target};
use crate::{Float, LinearDType, LinearGranularity, LinearMode, LinearOptions, Nbits, quantize_linear};
use quince_mil::{Opset, Result, Weight, bail};
use quince_tensor::parts;
use std::fmt;

/// Integers with scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The type of the integers.
    pub dtype: LinearDType,
    /// Where their range lies.
    pub mode: LinearMode,
    /// What shares a scale.
    pub granularity: Granularity,
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

impl Linear {
    fn options(&self, weight: &Weight, target: &Target) -> Result<LinearOptions> {
        let axes = target.axes;
        let granularity = match self.granularity {
            Granularity::PerTensor => LinearGranularity::PerTensor,
            Granularity::PerChannel => LinearGranularity::PerChannel { axis: axes.output },
            Granularity::PerBlock(block_size) => {
                LinearGranularity::PerBlock { output_axis: axes.output, input_axis: axes.input, block_size }
            }
        };
        Ok(LinearOptions { dtype: self.dtype, mode: self.mode, granularity, scale: Float::of_weight(weight.dtype())? })
    }
}

impl Method for Linear {
    fn bits(&self) -> f64 {
        self.dtype.dtype().bits() as f64
    }

    fn with_nbits(&self, _: Nbits) -> Option<Scheme> {
        None
    }

    fn check(&self, opset: Opset) -> Result<()> {
        if opset < Opset::CoreML8 {
            bail!(
                "found opset {opset}, expected CoreML8 or later";
                hint: "this form of compressed weights needs iOS 18 or macOS 15"
            );
        }
        Ok(())
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let options = self.options(weight, target)?;
        let (blocks, dtype) = (options.blocks(weight.shape())?, options.dtype.dtype());
        let mut types = vec![
            (format!("{}_data", weight.name()), dtype, weight.shape().to_vec()),
            (format!("{}_scale", weight.name()), options.scale.dtype(), blocks.clone()),
        ];
        if options.has_offset() {
            types.push((format!("{}_offset", weight.name()), dtype, blocks));
        }
        let weight = weight.clone();
        let weights = parts(types, move || {
            let quantized = quantize_linear(&weight, &options)?;
            Ok([quantized.data, quantized.scale].into_iter().chain(quantized.offset).collect())
        });
        Ok(Step::new("constexpr_blockwise_shift_scale", ["data", "scale", "offset"].into_iter().zip(weights)).into())
    }
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dtype.dtype(), self.mode)?;
        match self.granularity {
            Granularity::PerTensor => f.write_str(", per tensor"),
            Granularity::PerChannel => f.write_str(", per channel"),
            Granularity::PerBlock(size) => write!(f, ", blocks of {size}"),
        }
    }
}
