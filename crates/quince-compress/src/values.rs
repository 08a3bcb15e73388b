//! The elements of some rows of a weight, and the rows in which a weight is read.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use quince_tensor::{DType, Error, Result, Tensor, bail, bf16, f16};
use std::ops::Range;

/// Elements as they lie in memory.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    /// Bit patterns of 16-bit floats: so few that they can be counted.
    Half(&'a [u16], Half),
    Single(&'a [f32]),
}

/// A 16-bit floating-point type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

impl Half {
    pub(crate) fn value(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    /// The bit pattern of infinity; those above it, but for the sign, are not numbers.
    pub(crate) fn infinity(self) -> u16 {
        match self {
            Self::F16 => f16::INFINITY.to_bits(),
            Self::Bf16 => bf16::INFINITY.to_bits(),
        }
    }
}

impl<'a> Values<'a> {
    /// The elements of `tensor`, which must be aligned.
    pub(crate) fn new(tensor: &'a Tensor) -> Result<Self> {
        let values = match tensor.dtype() {
            DType::F16 => tensor.as_slice::<f16>().map(|v| Self::Half(v.reinterpret_cast(), Half::F16)),
            DType::BF16 => tensor.as_slice::<bf16>().map(|v| Self::Half(v.reinterpret_cast(), Half::Bf16)),
            DType::F32 => tensor.as_slice::<f32>().map(Self::Single),
            dtype => bail!("found elements of type {dtype}, expected fp16, bf16 or fp32"),
        };
        values.ok_or_else(|| Error::new(format!("the elements of {tensor:?} are not aligned")))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Half(bits, _) => bits.len(),
            Self::Single(values) => values.len(),
        }
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Half(bits, half) => Self::Half(&bits[range], *half),
            Self::Single(values) => Self::Single(&values[range]),
        }
    }

    /// The values as f32, in `buffer` if they are not f32 already.
    pub(crate) fn to_f32<'b>(self, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::Single(values) => return values,
            Self::Half(bits, half) => {
                buffer.resize(bits.len(), 0.0);
                match half {
                    Half::F16 => bits.reinterpret_cast::<f16>().convert_to_f32_slice(buffer),
                    Half::Bf16 => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(buffer),
                }
            }
        }
        buffer
    }
}

/// The fewest rows, as a multiple of `multiple`, whose `bits`-bit codes fill whole bytes, so that tasks write apart from
/// each other.
pub(crate) fn whole_rows(row_len: usize, multiple: usize, bits: usize) -> usize {
    (1..8).find(|n| (n * multiple * row_len * bits).is_multiple_of(8)).unwrap_or(8) * multiple
}

/// Rows for one task that may have any number of them: [`whole_rows`] as often as makes about 2^18 elements.
pub(crate) fn task_rows(row_len: usize, multiple: usize, bits: usize) -> usize {
    let whole = whole_rows(row_len, multiple, bits);
    ((1 << 18) / (whole * row_len)).max(1) * whole
}

/// The sizes that divide `dim`, for the hint of an error.
pub(crate) fn divisors(dim: usize) -> String {
    let sizes: Vec<String> = (1..=dim).filter(|d| dim.is_multiple_of(*d)).map(|d| d.to_string()).collect();
    sizes.join(", ")
}

/// Refuses weights without elements.
pub(crate) fn check_shape(shape: &[usize]) -> Result<()> {
    if shape.is_empty() || shape.contains(&0) {
        bail!("found a weight of shape {shape:?}, expected at least one axis and one element");
    }
    Ok(())
}

/// Refuses values that are infinite or not numbers; the first of `values` is element `first` of the weight.
pub(crate) fn check_finite(values: &[f32], first: usize) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => bail!("element {} is {}, expected a finite number", first + i, values[i]),
        None => Ok(()),
    }
}
