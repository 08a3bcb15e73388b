//! The elements that are not zero, and a mask that says where they belong: `constexpr_sparse_to_dense`.

use super::palette::shape_value;
use super::{Input, Lowered, Method, Scheme, Step, Target, opset};
use crate::{Float, Nbits, Pruning};
use quince_mil::{DType, Opset, Result, Tensor, Weight};
use quince_tensor::parts;
use std::fmt;

/// The elements that are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Which elements become zero.
    pub pruning: Pruning,
}

impl Method for Sparse {
    /// With the bit of the mask; of a threshold, whose share of zeros is not known, as if nothing became zero.
    fn bits(&self) -> f64 {
        1.0 + 16.0 * share(self.pruning)
    }

    fn with_nbits(&self, _: Nbits) -> Option<Scheme> {
        None
    }

    fn check(&self, found: Opset) -> Result<()> {
        opset::check(found, None)
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let (pruning, axes) = (self.pruning, target.axes);
        let float = Float::of_weight(weight.dtype())?;
        let packed = target.opset < Opset::CoreML8;
        let mask = match packed {
            true => (DType::U8, vec![weight.len().div_ceil(8)]),
            false => (DType::U1, weight.shape().to_vec()),
        };
        let types = vec![
            (format!("{}_nonzero", weight.name()), float.dtype(), vec![pruning.kept_count(weight, axes)?]),
            (format!("{}_mask", weight.name()), mask.0, mask.1.clone()),
        ];
        let (source, shape) = (weight.clone(), shape_value(weight)?);
        let weights = parts(types, move || {
            let (values, kept) = pruning.kept(&source, axes)?;
            let nonzero: Vec<f32> = chosen(&values, &kept).collect();
            let bits = Tensor::from_codes(DType::U1, source.shape(), &kept)?;
            let mask = Tensor::new(mask.0, mask.1.clone(), bits.bytes().clone())?;
            Ok(vec![Tensor::from_f32(float.dtype(), [nonzero.len()], nonzero)?, mask])
        });
        let step = Step::new("constexpr_sparse_to_dense", ["nonzero_data", "mask"].into_iter().zip(weights));
        Ok(if packed { step.with("shape", Input::Value(shape)).into() } else { step.into() })
    }
}

/// The share of elements that stay, as far as it is known.
pub(super) fn share(pruning: Pruning) -> f64 {
    match pruning {
        Pruning::Magnitude(sparsity) => 1.0 - sparsity.get(),
        Pruning::Ratio { zeros, of } => 1.0 - zeros as f64 / of as f64,
        Pruning::Threshold(_) => 1.0,
    }
}

/// The values that are kept, in order.
pub(super) fn chosen<'a, T: Copy>(values: &'a [T], kept: &'a [u8]) -> impl Iterator<Item = T> + 'a {
    values.iter().zip(kept).filter(|(_, kept)| **kept != 0).map(|(value, _)| *value)
}

/// The operations that end with the dense weight, after one whose results are mask and elements.
pub(super) fn to_dense(mut steps: Vec<Step>, sparse: Step) -> Lowered {
    let number = steps.len();
    steps.push(sparse);
    let dense = Step::new("constexpr_sparse_to_dense", []);
    let dense = dense.with("nonzero_data", Input::Result(number, 1)).with("mask", Input::Result(number, 0));
    steps.push(dense);
    Lowered(steps)
}

impl fmt::Display for Sparse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sparse, {}", self.pruning)
    }
}
