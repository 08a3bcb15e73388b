//! Integers of the elements that are not zero: `constexpr_sparse_blockwise_shift_scale`, `constexpr_sparse_to_dense`.

use super::sparse::{chosen, share, to_dense};
use super::{Linear, Lowered, Method, Scheme, Step, Target, opset};
use crate::{Nbits, Pruning, quantize_linear};
use quince_mil::{DType, Opset, Result, Tensor, Weight};
use quince_tensor::parts;
use std::fmt;

/// Integers with scales, of the elements that are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseLinear {
    /// The integers.
    pub linear: Linear,
    /// Which elements become zero.
    pub pruning: Pruning,
}

impl Method for SparseLinear {
    /// With the bit of the mask.
    fn bits(&self) -> f64 {
        1.0 + self.linear.bits() * share(self.pruning)
    }

    fn with_nbits(&self, _: Nbits) -> Option<Scheme> {
        None
    }

    fn check(&self, found: Opset) -> Result<()> {
        opset::check(found, Some("integers of sparse weights"))
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let (pruning, axes) = (self.pruning, target.axes);
        let options = self.linear.options(weight, target)?;
        let (blocks, dtype) = (options.blocks(weight.shape())?, options.dtype.dtype());
        let name = |part: &str| format!("{}_{part}", weight.name());
        let mut types = vec![
            (name("mask"), DType::U1, weight.shape().to_vec()),
            (name("nonzero"), dtype, vec![pruning.kept_count(weight, axes)?]),
            (name("scale"), options.scale.dtype(), blocks.clone()),
        ];
        if options.has_offset() {
            types.push((name("offset"), dtype, blocks));
        }
        let source = weight.clone();
        let weights = parts(types, move || {
            let (mut values, kept) = pruning.kept(&source, axes)?;
            values.iter_mut().zip(&kept).filter(|(_, kept)| **kept == 0).for_each(|(value, _)| *value = 0.0);
            // Zeros are in every range, so that they widen none.
            let pruned = Tensor::from_f32(DType::F32, source.shape(), values)?;
            let quantized = quantize_linear(&Weight::from_tensor(source.name(), pruned), &options)?;
            let codes: Vec<u8> = chosen(&quantized.data.codes()?, &kept).collect();
            let mask = Tensor::from_codes(DType::U1, source.shape(), &kept)?;
            let nonzero = Tensor::from_codes(dtype, [codes.len()], &codes)?;
            Ok([mask, nonzero, quantized.scale].into_iter().chain(quantized.offset).collect())
        });
        let names = ["data_mask", "nonzero_data", "scale", "offset"];
        let step = Step::new("constexpr_sparse_blockwise_shift_scale", names.into_iter().zip(weights));
        Ok(to_dense(Vec::new(), step))
    }
}

impl fmt::Display for SparseLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.linear, self.pruning)
    }
}
