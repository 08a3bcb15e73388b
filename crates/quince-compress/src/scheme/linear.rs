//! Integers with scales: `constexpr_blockwise_shift_scale`, or `constexpr_affine_dequantize` before iOS 18.

use super::{Input, Lowered, Method, Scheme, Step, Target, opset};
use crate::calibrated::{DAMPING, TIED_DAMPING, quantize_calibrated};
use crate::{Float, LinearDType, LinearGranularity, LinearMode, LinearOptions, Nbits, Quantized, quantize_linear};
use quince_mil::{DType, Opset, Result, Tensor, Weight};
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
    /// How a weight is quantized.
    pub(super) fn options(&self, weight: &Weight, target: &Target) -> Result<LinearOptions> {
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

    /// What quantizes a weight, by what it is multiplied with if that is known.
    fn compute(
        &self,
        weight: &Weight,
        target: &Target,
        options: LinearOptions,
    ) -> impl Fn() -> Result<Quantized> + Send + Sync + 'static {
        let (weight, axes, guide) = (weight.clone(), target.axes, target.guide.clone());
        let damping = if target.tied { TIED_DAMPING } else { DAMPING };
        move || match guide.as_ref().map(|guide| guide.factor(weight.name(), damping)).transpose()?.flatten() {
            Some(factor) => quantize_calibrated(&weight, &options, [axes.output, axes.input], &factor),
            None => quantize_linear(&weight, &options),
        }
    }

    /// The form of iOS 16: one scale, or one for each channel.
    fn affine(&self, weight: &Weight, options: LinearOptions, target: &Target) -> Result<Lowered> {
        let (dtype, output) = (self.dtype.dtype(), target.axes.output);
        let axis = if self.granularity == Granularity::PerChannel { output } else { 0 };
        let scales = match self.granularity {
            Granularity::PerChannel => vec![options.blocks(weight.shape())?[output]],
            Granularity::PerTensor | Granularity::PerBlock(_) => Vec::new(),
        };
        let types = vec![
            (format!("{}_quantized_data", weight.name()), dtype, weight.shape().to_vec()),
            (format!("{}_scale", weight.name()), options.scale.dtype(), scales.clone()),
            (format!("{}_zero_point", weight.name()), dtype, scales.clone()),
        ];
        let compute = self.compute(weight, target, options);
        let weights = parts(types, move || {
            let Quantized { data, scale, offset, .. } = compute()?;
            let zero = offset.map_or_else(|| Tensor::zeros(dtype, scale.shape()), Ok)?;
            Ok(vec![data, scale.reshape(&*scales)?, zero.reshape(&*scales)?])
        });
        let names = ["quantized_data", "scale", "zero_point"];
        let step = Step::new("constexpr_affine_dequantize", names.into_iter().zip(weights));
        Ok(step.with("axis", Input::Value((axis as i32).into())).into())
    }
}

impl Method for Linear {
    fn bits(&self) -> f64 {
        self.dtype.dtype().bits() as f64
    }

    fn with_nbits(&self, _: Nbits) -> Option<Scheme> {
        None
    }

    fn is_guided(&self) -> bool {
        true
    }

    fn check(&self, found: Opset) -> Result<()> {
        let newer = match (self.granularity, self.dtype.dtype()) {
            (Granularity::PerBlock(_), _) => Some("scales for blocks"),
            (_, DType::I4 | DType::U4) => Some("integers of 4 bits"),
            _ => None,
        };
        opset::check(found, newer)
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let options = self.options(weight, target)?;
        if target.opset < Opset::CoreML8 {
            return self.affine(weight, options, target);
        }
        let (blocks, dtype) = (options.blocks(weight.shape())?, options.dtype.dtype());
        let mut types = vec![
            (format!("{}_data", weight.name()), dtype, weight.shape().to_vec()),
            (format!("{}_scale", weight.name()), options.scale.dtype(), blocks.clone()),
        ];
        if options.has_offset() {
            types.push((format!("{}_offset", weight.name()), dtype, blocks));
        }
        let compute = self.compute(weight, target, options);
        let weights = parts(types, move || {
            let quantized = compute()?;
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
