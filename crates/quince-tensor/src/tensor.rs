//! A tensor: element type, shape and bytes that agree.

use crate::{Bytes, DType, Element, Error, Result, bail, packing, zeroed};
use std::fmt;
use std::ops::Range;

/// Element type, shape and little-endian, row-major bytes; sub-byte elements are packed ([`packing`]).
///
/// The constructors check the length, so a `Tensor` that exists is consistent. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// A tensor over existing bytes; their number must be exactly what type and shape need.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>, bytes: Bytes) -> Result<Tensor> {
        let shape = shape.into();
        match count(&shape).and_then(|n| dtype.byte_len(n)) {
            Some(expected) if expected == bytes.len() => Ok(Tensor { dtype, shape, bytes }),
            Some(expected) => {
                bail!("found {} bytes, expected {expected} for {dtype} of shape {shape:?}", bytes.len())
            }
            None => bail!("the shape {shape:?} of {dtype} is larger than memory can address"),
        }
    }

    /// A tensor of typed values.
    pub fn from_vec<T: Element>(shape: impl Into<Vec<usize>>, values: Vec<T>) -> Result<Tensor> {
        Tensor::new(T::DTYPE, shape, Bytes::from_vec(values))
    }

    /// A tensor of truth values, a byte each.
    pub fn from_bools(shape: impl Into<Vec<usize>>, values: &[bool]) -> Result<Tensor> {
        Tensor::new(DType::Bool, shape, Bytes::from_vec(values.iter().map(|&b| u8::from(b)).collect::<Vec<u8>>()))
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: Vec::new(), bytes: Bytes::from_vec(vec![value]) }
    }

    /// A truth value of rank 0.
    pub fn scalar_bool(value: bool) -> Tensor {
        Tensor { dtype: DType::Bool, shape: Vec::new(), bytes: Bytes::from_vec(vec![u8::from(value)]) }
    }

    /// A tensor of rank 1.
    pub fn vector<T: Element>(values: Vec<T>) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: vec![values.len()], bytes: Bytes::from_vec(values) }
    }

    /// A tensor whose sub-byte elements are given one code to a byte.
    pub fn from_codes(dtype: DType, shape: impl Into<Vec<usize>>, codes: &[u8]) -> Result<Tensor> {
        if dtype.bits() > 8 {
            bail!("codes of a byte cannot stand for {dtype}");
        }
        let shape = shape.into();
        if count(&shape) != Some(codes.len()) {
            bail!("found {} codes, expected the number of elements of shape {shape:?}", codes.len());
        }
        Tensor::new(dtype, shape, Bytes::from_vec(packing::pack(codes, dtype.bits())))
    }

    /// All zeros; an error where memory for them is not to be had.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        let shape = shape.into();
        let Some(len) = count(&shape).and_then(|n| dtype.byte_len(n)) else {
            bail!("the shape {shape:?} of {dtype} is larger than memory can address");
        };
        // u64 gives the alignment of the widest element.
        let bytes = Bytes::from_vec(zeroed::<u64>(len.div_ceil(8))?);
        let bytes = bytes.slice(0..len).ok_or_else(|| Error::new("zeros were cut short"))?;
        Ok(Tensor { dtype, shape, bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size along each axis; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        // The constructors have made sure that it is one.
        count(&self.shape).unwrap_or(0)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, little-endian, row-major, sub-byte elements packed.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements as a slice, if the type is exactly `T` and the bytes are aligned for it.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        (self.dtype == T::DTYPE).then(|| bytemuck::try_cast_slice(&self.bytes).ok())?
    }

    /// The same bytes under another shape with as many elements.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        Tensor::new(self.dtype, shape, self.bytes.clone())
    }

    /// A range of rows along the first axis, without copying where rows begin on whole bytes.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let Some(&total) = self.shape.first() else { bail!("a scalar has no rows") };
        if rows.start > rows.end || rows.end > total {
            bail!("rows {rows:?} are not within the {total} of shape {:?}", self.shape);
        }
        // A tensor without elements may have other axes of any size.
        let per_row = count(&self.shape[1..]).unwrap_or(0);
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let (first, bits) = (rows.start * per_row, self.dtype.bits());
        if !(first * bits).is_multiple_of(8) {
            let codes = packing::unpack(&self.bytes, bits, first, rows.len() * per_row)?;
            return Tensor::from_codes(self.dtype, shape, &codes);
        }
        let start = first * bits / 8;
        let end = start + (rows.len() * per_row * bits).div_ceil(8);
        match self.bytes.slice(start..end) {
            // The last byte may hold bits of the next row, which must read as padding.
            Some(_) if self.dtype.is_sub_byte() && !(rows.len() * per_row * bits).is_multiple_of(8) => {
                let codes = packing::unpack(&self.bytes, bits, first, rows.len() * per_row)?;
                Tensor::from_codes(self.dtype, shape, &codes)
            }
            Some(bytes) => Tensor::new(self.dtype, shape, bytes),
            None => bail!("rows {rows:?} lie outside the bytes of the tensor"),
        }
    }

    /// Whether type, shape and bytes are equal.
    pub fn same(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && *self.bytes == *other.bytes
    }
}

/// The number of elements of a shape, or `None` if that overflows. Sizes beside a 0 must not overflow either: strides
/// are products of some of the sizes.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1isize, |n, &dim| n.checked_mul(isize::try_from(dim.max(1)).ok()?))?;
    Some(if shape.contains(&0) { 0 } else { product as usize })
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_does_not_fit_the_shape_is_refused() {
        let error = Tensor::new(DType::F16, [2, 3], Bytes::from_vec(vec![0u8; 11])).unwrap_err();
        assert_eq!(error.to_string(), "found 11 bytes, expected 12 for fp16 of shape [2, 3]");
        assert!(Tensor::new(DType::F32, [usize::MAX, 8], Bytes::from_vec(Vec::<u8>::new())).is_err());
    }

    #[test]
    fn sizes_that_no_memory_holds_are_refused_also_beside_a_zero() {
        let none = || Bytes::from_vec(Vec::<u8>::new());
        assert!(Tensor::new(DType::F32, [0, 7], none()).is_ok());
        assert!(Tensor::new(DType::F32, [0, usize::MAX, 2], none()).is_err());
        assert!(Tensor::new(DType::F32, [1 << 62, 2, 0], none()).is_err());
        let error = Tensor::zeros(DType::F16, [1 << 55]).unwrap_err();
        assert!(error.to_string().starts_with("there is no memory for"), "{error}");
    }

    #[test]
    fn rows_of_packed_elements_come_whole() {
        let codes: Vec<u8> = (0..15).map(|i| i % 8).collect();
        let tensor = Tensor::from_codes(DType::U3, [5, 3], &codes).unwrap();
        let rows = tensor.rows(1..3).unwrap();
        assert_eq!(rows.shape(), [2, 3]);
        assert_eq!(packing::unpack(rows.bytes(), 3, 0, 6).unwrap(), &codes[3..9]);
        assert!(tensor.rows(4..6).is_err());
    }
}
