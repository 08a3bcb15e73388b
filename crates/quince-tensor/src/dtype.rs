//! Element types, named as MIL names them.

use half::{bf16, f16};
use std::fmt;

/// The type of one element. The order is that of promotion within a family and otherwise without meaning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)] // The names say it all.
pub enum DType {
    Bool,
    U1,
    U2,
    U3,
    U4,
    U6,
    U8,
    U16,
    U32,
    U64,
    I4,
    I8,
    I16,
    I32,
    I64,
    F8E4M3FN,
    F8E5M2,
    BF16,
    F16,
    F32,
    F64,
}

/// Every element type with its name in MIL text and its width in bits: the one table.
const TABLE: &[(DType, &str, usize)] = &[
    (DType::Bool, "bool", 8),
    (DType::U1, "uint1", 1),
    (DType::U2, "uint2", 2),
    (DType::U3, "uint3", 3),
    (DType::U4, "uint4", 4),
    (DType::U6, "uint6", 6),
    (DType::U8, "uint8", 8),
    (DType::U16, "uint16", 16),
    (DType::U32, "uint32", 32),
    (DType::U64, "uint64", 64),
    (DType::I4, "int4", 4),
    (DType::I8, "int8", 8),
    (DType::I16, "int16", 16),
    (DType::I32, "int32", 32),
    (DType::I64, "int64", 64),
    (DType::F8E4M3FN, "fp8e4m3fn", 8),
    (DType::F8E5M2, "fp8e5m2", 8),
    (DType::BF16, "bf16", 16),
    (DType::F16, "fp16", 16),
    (DType::F32, "fp32", 32),
    (DType::F64, "fp64", 64),
];

impl DType {
    /// Every element type.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, usize) {
        &TABLE[self as usize]
    }

    /// The name in MIL text: `fp16`, `int32`, `uint4`, ...
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type with this MIL name.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Bits per element; a `bool` takes a byte.
    pub fn bits(self) -> usize {
        self.row().2
    }

    /// Bytes that `count` packed elements take, or `None` if that overflows.
    pub fn byte_len(self, count: usize) -> Option<usize> {
        Some(count.checked_mul(self.bits())?.div_ceil(8))
    }

    /// Whether an element takes less than a byte.
    pub fn is_sub_byte(self) -> bool {
        self.bits() < 8
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        self >= DType::F8E4M3FN
    }

    /// Whether it is an integer type (`bool` is not).
    pub fn is_int(self) -> bool {
        self > DType::Bool && self < DType::F8E4M3FN
    }

    /// Whether it is an unsigned integer type.
    pub fn is_unsigned(self) -> bool {
        self > DType::Bool && self < DType::I4
    }

    /// The unsigned type with this many bits, for palette indices.
    pub fn unsigned(bits: usize) -> Option<DType> {
        DType::all().find(|dtype| dtype.is_unsigned() && dtype.bits() == bits)
    }

    /// The smallest and largest value of an integer type, `None` for the others and for 64 bits unsigned.
    pub fn int_range(self) -> Option<(i64, i64)> {
        let bits = self.bits() as u32;
        match self {
            DType::U64 => None,
            _ if self.is_unsigned() => Some((0, (1i64 << bits) - 1)),
            DType::I64 => Some((i64::MIN, i64::MAX)),
            _ if self.is_int() => Some((-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1)),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that stands for an element type of whole bytes.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The element type that this Rust type stands for.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(u8 => U8, u16 => U16, u32 => U32, u64 => U64, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
          bf16 => BF16, f16 => F16, f32 => F32, f64 => F64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, dtype) in DType::all().enumerate() {
            assert_eq!(dtype as usize, i);
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
    }

    #[test]
    fn packed_lengths_round_up_and_do_not_overflow() {
        assert_eq!(DType::U3.byte_len(3), Some(2));
        assert_eq!(DType::U1.byte_len(8), Some(1));
        assert_eq!(DType::F32.byte_len(usize::MAX / 2), None);
        assert_eq!(DType::I4.int_range(), Some((-8, 7)));
        assert_eq!(DType::U6.int_range(), Some((0, 63)));
    }
}
