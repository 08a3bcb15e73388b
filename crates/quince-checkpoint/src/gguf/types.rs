//! Element types of GGUF: plain ones, which stay as they are in the mapped file, and blocks.

use crate::blocks::{BLOCK_TYPES, BlockType};
use quince_tensor::{Bytes, DType, Result, Tensor, Weight, bail};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum ElementType {
    /// One after the other.
    Plain(&'static str, DType),
    /// In blocks.
    Blocks(&'static BlockType),
}

/// Plain types with their numbers and names.
const PLAIN: &[(u32, &str, DType)] = &[
    (0, "F32", DType::F32),
    (1, "F16", DType::F16),
    (24, "I8", DType::I8),
    (25, "I16", DType::I16),
    (26, "I32", DType::I32),
    (27, "I64", DType::I64),
    (28, "F64", DType::F64),
    (30, "BF16", DType::BF16),
];

/// Types that ggml had once. Their files cannot be read by anything of today.
const WITHDRAWN: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

impl ElementType {
    /// The type with this number.
    pub fn of_code(code: u32) -> Result<ElementType> {
        if let Some(&(_, name, dtype)) = PLAIN.iter().find(|row| row.0 == code) {
            return Ok(ElementType::Plain(name, dtype));
        }
        if let Some((_, block)) = BLOCK_TYPES.iter().find(|row| row.0 == code) {
            return Ok(ElementType::Blocks(block));
        }
        match WITHDRAWN.iter().find(|row| row.0 == code) {
            Some((_, name)) => bail!(
                "found the type {name}, which ggml has withdrawn";
                hint: "quantize the original model again with llama.cpp"
            ),
            None => bail!(
                "found the type {code}, expected one of ggml's up to {}", BLOCK_TYPES.last().map_or(0, |row| row.0);
                hint: "the file is damaged or too new"
            ),
        }
    }

    /// What ggml calls it.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::Plain(name, _) => name,
            ElementType::Blocks(block) => block.name,
        }
    }

    /// The bytes that a tensor takes.
    pub fn byte_len(self, shape: &[usize]) -> Result<usize> {
        let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let bytes = match (self, count) {
            (_, None) => None,
            (ElementType::Plain(_, dtype), Some(count)) => dtype.byte_len(count),
            (ElementType::Blocks(block), Some(count)) => {
                let row = shape.last().copied().unwrap_or(1);
                if !row.is_multiple_of(block.elements) {
                    bail!("found rows of {row} elements, expected a multiple of {} for {}", block.elements, block.name);
                }
                block.byte_len(count)
            }
        };
        match bytes {
            Some(bytes) => Ok(bytes),
            None => bail!("the shape {shape:?} of {} is larger than memory can address", self.name()),
        }
    }

    /// A weight over mapped bytes.
    pub fn weight(self, name: &str, shape: &[usize], bytes: Bytes) -> Result<Weight> {
        match self {
            ElementType::Plain(_, dtype) => Ok(Weight::from_tensor(name, Tensor::new(dtype, shape, bytes)?)),
            ElementType::Blocks(block) => block.weight(name, shape, bytes),
        }
    }
}
