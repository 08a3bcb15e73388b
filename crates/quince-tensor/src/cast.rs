//! Conversion between element types.

use crate::{Bytes, DType, Element, Result, Tensor, bail, packing};
use half::{bf16, f16};

impl Tensor {
    /// The elements as `f32`; integers above 2^24 and doubles are rounded.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype() {
            DType::F32 => Ok(self.typed::<f32>()),
            DType::F16 => Ok(self.typed::<f16>().iter().map(|v| v.to_f32()).collect()),
            DType::BF16 => Ok(self.typed::<bf16>().iter().map(|v| v.to_f32()).collect()),
            _ => Ok(self.to_f64()?.into_iter().map(|v| v as f32).collect()),
        }
    }

    /// The elements as `f64`, exactly but for 64-bit integers above 2^53.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        fn all<T: Element>(tensor: &Tensor, f: impl Fn(T) -> f64) -> Vec<f64> {
            tensor.typed::<T>().into_iter().map(f).collect()
        }
        Ok(match self.dtype() {
            DType::F64 => self.typed(),
            DType::F32 => all::<f32>(self, f64::from),
            DType::F16 => all::<f16>(self, f64::from),
            DType::BF16 => all::<bf16>(self, f64::from),
            DType::U64 => all::<u64>(self, |v| v as f64),
            DType::F8E4M3FN => self.bytes().iter().map(|&b| f8e4m3fn(b)).collect(),
            DType::F8E5M2 => self.bytes().iter().map(|&b| f64::from(f16::from_bits(u16::from(b) << 8))).collect(),
            _ => self.to_i64()?.into_iter().map(|v| v as f64).collect(),
        })
    }

    /// The elements as `i64`: truth values as 0 and 1, floating point refused.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        fn all<T: Element + Into<i64>>(tensor: &Tensor) -> Vec<i64> {
            tensor.typed::<T>().into_iter().map(Into::into).collect()
        }
        Ok(match self.dtype() {
            DType::Bool | DType::U8 => self.bytes().iter().map(|&v| i64::from(v)).collect(),
            DType::I8 => all::<i8>(self),
            DType::I16 => all::<i16>(self),
            DType::U16 => all::<u16>(self),
            DType::I32 => all::<i32>(self),
            DType::U32 => all::<u32>(self),
            DType::I64 => self.typed(),
            DType::U64 => {
                let values = self.typed::<u64>();
                match values.iter().map(|&v| i64::try_from(v)).collect() {
                    Ok(values) => values,
                    Err(_) => bail!("an element of {self:?} is larger than an int64 holds"),
                }
            }
            dtype if dtype.is_sub_byte() => packing::values(&self.codes()?, dtype).into_iter().map(i64::from).collect(),
            dtype => bail!("found elements of type {dtype}, expected integers"),
        })
    }

    /// The codes of elements of a byte or less, one to a byte, without sign extension.
    pub fn codes(&self) -> Result<Vec<u8>> {
        match self.dtype().bits() {
            8 => Ok(self.bytes().to_vec()),
            bits if bits < 8 => packing::unpack(self.bytes(), bits, 0, self.len()),
            _ => bail!("{} has no codes of a byte", self.dtype()),
        }
    }

    /// The truth values of a `bool` tensor.
    pub fn to_bools(&self) -> Result<Vec<bool>> {
        match self.dtype() {
            DType::Bool => Ok(self.bytes().iter().map(|&v| v != 0).collect()),
            dtype => bail!("found elements of type {dtype}, expected bool"),
        }
    }

    /// The tensor with another element type: floats round to nearest even, floats to integers truncate and saturate,
    /// integers to narrower integers wrap, anything to `bool` asks whether it is not zero.
    pub fn cast(&self, to: DType) -> Result<Tensor> {
        if self.dtype() == to {
            return Ok(self.clone());
        }
        let shape = self.shape();
        match to {
            DType::F32 => return Tensor::from_vec(shape, self.to_f32()?),
            DType::F64 => return Tensor::from_vec(shape, self.to_f64()?),
            DType::F16 if self.dtype() != DType::F64 => {
                return Tensor::from_vec(shape, self.to_f32()?.into_iter().map(f16::from_f32).collect());
            }
            DType::F16 => return Tensor::from_vec(shape, self.to_f64()?.into_iter().map(f16::from_f64).collect()),
            DType::BF16 => return Tensor::from_vec(shape, self.to_f32()?.into_iter().map(bf16::from_f32).collect()),
            DType::Bool => {
                let bools: Vec<bool> = self.to_f64()?.into_iter().map(|v| v != 0.0).collect();
                return Tensor::from_bools(shape, &bools);
            }
            _ => {}
        }
        let values: Vec<i64> = match self.dtype().is_float() {
            true => self.to_f64()?.into_iter().map(|v| saturate(v, to)).collect(),
            false => self.to_i64()?,
        };
        Tensor::from_i64(to, shape, &values)
    }

    /// A tensor of an integer type from `i64` values, wrapped to its width.
    pub fn from_i64(dtype: DType, shape: impl Into<Vec<usize>>, values: &[i64]) -> Result<Tensor> {
        fn all<T>(values: &[i64], f: impl Fn(i64) -> T) -> Vec<T> {
            values.iter().map(|&v| f(v)).collect()
        }
        let shape = shape.into();
        match dtype {
            DType::U8 => Tensor::from_vec(shape, all(values, |v| v as u8)),
            DType::I8 => Tensor::from_vec(shape, all(values, |v| v as i8)),
            DType::U16 => Tensor::from_vec(shape, all(values, |v| v as u16)),
            DType::I16 => Tensor::from_vec(shape, all(values, |v| v as i16)),
            DType::U32 => Tensor::from_vec(shape, all(values, |v| v as u32)),
            DType::I32 => Tensor::from_vec(shape, all(values, |v| v as i32)),
            DType::U64 => Tensor::from_vec(shape, all(values, |v| v as u64)),
            DType::I64 => Tensor::from_vec(shape, values.to_vec()),
            _ if dtype.is_sub_byte() => Tensor::from_codes(dtype, shape, &all(values, |v| v as u8)),
            _ => bail!("found the type {dtype}, expected an integer type"),
        }
    }

    /// A tensor of a floating-point type from `f64` values, rounded to nearest even.
    pub fn from_f64(dtype: DType, shape: impl Into<Vec<usize>>, values: Vec<f64>) -> Result<Tensor> {
        match dtype {
            DType::F64 => Tensor::from_vec(shape, values),
            DType::F32 => Tensor::from_vec(shape, values.into_iter().map(|v| v as f32).collect()),
            DType::F16 => Tensor::from_vec(shape, values.into_iter().map(f16::from_f64).collect()),
            DType::BF16 => Tensor::from_vec(shape, values.into_iter().map(bf16::from_f64).collect()),
            _ => bail!("found the type {dtype}, expected a floating-point type of 16 bits or more"),
        }
    }

    /// A tensor of a floating-point type from `f32` values, rounded to nearest even.
    pub fn from_f32(dtype: DType, shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<Tensor> {
        match dtype {
            DType::F32 => Tensor::from_vec(shape, values),
            DType::F16 => Tensor::from_vec(shape, values.into_iter().map(f16::from_f32).collect()),
            DType::BF16 => Tensor::from_vec(shape, values.into_iter().map(bf16::from_f32).collect()),
            _ => Tensor::from_f64(dtype, shape, values.into_iter().map(f64::from).collect()),
        }
    }

    /// The elements, copied so that alignment does not matter; the caller has checked the type.
    fn typed<T: Element>(&self) -> Vec<T> {
        match self.as_slice::<T>() {
            Some(slice) => slice.to_vec(),
            None => self.bytes().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect(),
        }
    }

    /// A copy whose bytes are aligned for their type, or the same tensor if they are already.
    pub fn aligned(&self) -> Tensor {
        let width = (self.dtype().bits() / 8).max(1);
        if self.bytes().as_ptr().align_offset(width) == 0 {
            return self.clone();
        }
        let mut words = vec![0u64; self.bytes().len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..self.bytes().len()].copy_from_slice(self.bytes());
        let bytes = Bytes::from_vec(words).slice(0..self.bytes().len());
        bytes.and_then(|bytes| Tensor::new(self.dtype(), self.shape(), bytes).ok()).unwrap_or_else(|| self.clone())
    }
}

/// A float as an integer of type `to`: truncated, and held within the type's range.
fn saturate(value: f64, to: DType) -> i64 {
    let (low, high) = to.int_range().unwrap_or((0, i64::MAX));
    (value as i64).clamp(low, high)
}

/// The value of a float of 4 exponent and 3 mantissa bits without infinities (OCP 8-bit floating point, E4M3).
fn f8e4m3fn(byte: u8) -> f64 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from((byte >> 3) & 0xf), f64::from(byte & 0x7));
    match (exponent, byte & 0x7) {
        (15, 7) => f64::NAN,
        (0, _) => sign * mantissa * 2f64.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_to_integer_truncates_and_saturates() {
        let x = Tensor::vector(vec![-1.5f32, 300.0, 2.9, f32::NAN]);
        assert_eq!(x.cast(DType::U8).unwrap().to_i64().unwrap(), [0, 255, 2, 0]);
        assert_eq!(x.cast(DType::I32).unwrap().to_i64().unwrap(), [-1, 300, 2, 0]);
    }

    #[test]
    fn f8_values_are_those_of_the_standard() {
        let x = Tensor::new(DType::F8E4M3FN, [4], Bytes::from_vec(vec![0x7eu8, 0x01, 0x38, 0xb8])).unwrap();
        assert_eq!(x.to_f64().unwrap(), [448.0, 2f64.powi(-9), 1.0, -1.0]);
        let x = Tensor::new(DType::F8E5M2, [2], Bytes::from_vec(vec![0x7bu8, 0x3c])).unwrap();
        assert_eq!(x.to_f64().unwrap(), [57344.0, 1.0]);
    }

    #[test]
    fn unaligned_bytes_are_read_and_aligned() {
        let bytes = Bytes::from_vec(vec![0u8, 0, 0, 128, 63, 0, 0, 0, 64]).slice(1..9).unwrap();
        let x = Tensor::new(DType::F32, [2], bytes).unwrap();
        assert_eq!(x.to_f32().unwrap(), [1.0, 2.0]);
        assert_eq!(x.aligned().as_slice::<f32>(), Some(&[1.0, 2.0][..]));
    }

    #[test]
    fn int4_comes_back() {
        let x = Tensor::from_i64(DType::I4, [3], &[-8, 7, -1]).unwrap();
        assert_eq!(x.bytes().len(), 2);
        assert_eq!(x.to_i64().unwrap(), [-8, 7, -1]);
    }
}
