//! The floating-point types in which Core ML stores tables and scales.

use quince_tensor::{DType, Result, Tensor, bail, f16};

/// The type of a lookup table or a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Float {
    /// The type for a weight of type `dtype`: that of the weight, or f16 for bf16, which Core ML does not have.
    ///
    /// # Errors
    /// When the weight's type is none that can be compressed.
    pub fn of_weight(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F16 | DType::BF16 => Ok(Self::F16),
            DType::F32 => Ok(Self::F32),
            _ => bail!("found elements of type {dtype}, expected fp16, bf16 or fp32"),
        }
    }

    /// The stored value nearest to `value`, ties to even; infinite when out of range.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::F16 => f16::from_f64(value).to_f64(),
            Self::F32 => f64::from(value as f32),
        }
    }

    /// `values` as they are when stored.
    ///
    /// # Errors
    /// When one is beyond the range of this type.
    pub(crate) fn store(self, mut values: Vec<f64>) -> Result<Vec<f64>> {
        for value in &mut values {
            let stored = self.round(*value);
            if !stored.is_finite() {
                bail!("{value} is beyond the range of {}", self.dtype().name(); hint: "use compute precision float32");
            }
            *value = stored;
        }
        Ok(values)
    }

    /// `scale` as it is when stored, rounded up where the range of `steps` steps would otherwise lose half a step (as
    /// happens where f16 is coarse, below 2^-14). A scale of 0 becomes 1, so that one can divide by it.
    ///
    /// # Errors
    /// When the scale is beyond the range of this type.
    pub(crate) fn cover(self, scale: f64, steps: f64) -> Result<f64> {
        if scale == 0.0 {
            return Ok(1.0);
        }
        let nearest = self.round(scale);
        let stored = if (scale - nearest) * steps > 0.5 * nearest { self.next_up(nearest) } else { nearest };
        Ok(self.store(vec![stored])?[0])
    }

    fn next_up(self, value: f64) -> f64 {
        match self {
            Self::F16 => f16::from_bits(f16::from_f64(value).to_bits() + 1).to_f64(),
            Self::F32 => f64::from((value as f32).next_up()),
        }
    }

    /// A tensor of this type.
    pub(crate) fn tensor(self, shape: Vec<usize>, values: Vec<f64>) -> Result<Tensor> {
        Tensor::from_f64(self.dtype(), shape, values)
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}
