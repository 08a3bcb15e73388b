//! Types of elements that are stored in blocks: some codes, and what scales them. One file for each family.
//!
//! A [`BlockType`] says how many elements a block has, how many bytes it takes, and what its elements are in float32.
//! The order of the operations is that of ggml, so that the values are equal to the last bit.

mod basic;
mod codebook;
mod codebook_grids;
mod exact;
mod float4;
mod k_quants;
mod one_bit;
mod ternary;

use quince_tensor::{Bytes, DType, Result, Tensor, Weight, WeightSource, bail, f16};
use std::ops::Range;
use std::sync::Arc;

pub(crate) use basic::{Q4_0, Q8_0};
pub(crate) use exact::exact;
pub(crate) use float4::{E2M1, MXFP4, scale_of_exponent};

/// A type of elements that come in blocks.
#[derive(Debug)]
pub(crate) struct BlockType {
    /// What ggml calls it.
    pub name: &'static str,
    /// The number of elements of a block.
    pub elements: usize,
    /// The number of bytes of a block.
    pub bytes: usize,
    /// Decodes one block: exactly `bytes` bytes to `elements` elements.
    decode: fn(&[u8], &mut [f32]),
}

/// Every type of block, with the number that GGUF files have for it.
pub(crate) const BLOCK_TYPES: &[(u32, &BlockType)] = &[
    (2, &basic::Q4_0),
    (3, &basic::Q4_1),
    (6, &basic::Q5_0),
    (7, &basic::Q5_1),
    (8, &basic::Q8_0),
    (9, &basic::Q8_1),
    (10, &k_quants::Q2_K),
    (11, &k_quants::Q3_K),
    (12, &k_quants::Q4_K),
    (13, &k_quants::Q5_K),
    (14, &k_quants::Q6_K),
    (15, &k_quants::Q8_K),
    (16, &codebook::IQ2_XXS),
    (17, &codebook::IQ2_XS),
    (18, &codebook::IQ3_XXS),
    (19, &one_bit::IQ1_S),
    (20, &codebook::IQ4_NL),
    (21, &codebook::IQ3_S),
    (22, &codebook::IQ2_S),
    (23, &codebook::IQ4_XS),
    (29, &one_bit::IQ1_M),
    (34, &ternary::TQ1_0),
    (35, &ternary::TQ2_0),
    (39, &float4::MXFP4),
    (40, &float4::NVFP4),
    (41, &one_bit::Q1_0),
];

impl BlockType {
    /// The bytes of a number of elements, which must fill whole blocks; `None` if they do not, or there are too many.
    pub fn byte_len(&self, elements: usize) -> Option<usize> {
        elements.is_multiple_of(self.elements).then(|| (elements / self.elements).checked_mul(self.bytes))?
    }

    /// Decodes whole blocks; what is left over on either side is not touched.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.elements));
        blocks.for_each(|(block, out)| (self.decode)(block, out));
    }

    /// A weight that decodes rows of a mapped file when asked for.
    ///
    /// # Errors
    /// When the last axis is not made of whole blocks, or the number of bytes is not that of the shape.
    pub fn weight(&'static self, name: &str, shape: &[usize], bytes: Bytes) -> Result<Weight> {
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.elements) {
            bail!("found rows of {row} elements, expected a multiple of {}, the block of {}", self.elements, self.name);
        }
        let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        match count.and_then(|count| self.byte_len(count)) {
            Some(expected) if expected == bytes.len() => {}
            _ => bail!("found {} bytes, expected those of {} of shape {shape:?}", bytes.len(), self.name),
        }
        let source = Blocks { block: self, shape: shape.to_vec(), bytes };
        Ok(Weight::new(name, DType::F32, shape, Arc::new(source)))
    }
}

/// The source of a weight in blocks. Shape and number of bytes agree.
struct Blocks {
    block: &'static BlockType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Blocks {
    fn decoded(&self, bytes: &[u8], shape: Vec<usize>) -> Result<Tensor> {
        let mut out = quince_tensor::zeroed::<f32>(shape.iter().product())?;
        self.block.decode(bytes, &mut out);
        Tensor::from_vec(shape, out)
    }
}

impl WeightSource for Blocks {
    fn load(&self) -> Result<Tensor> {
        self.decoded(&self.bytes.lent(), self.shape.clone())
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let [_, inner @ ..] = self.shape.as_slice() else { bail!("a scalar has no rows") };
        let range = match self.block.byte_len(inner.iter().product()) {
            Some(bytes) if self.streams() => rows.start * bytes..rows.end * bytes,
            _ => return self.load()?.rows(rows),
        };
        match self.bytes.slice(range) {
            Some(bytes) => self.decoded(&bytes.lent(), [&[rows.len()], inner].concat()),
            None => bail!("rows {rows:?} lie outside the {} bytes of the tensor", self.bytes.len()),
        }
    }

    /// A vector is one row of blocks, which do not begin at every element.
    fn streams(&self) -> bool {
        self.shape.len() > 1
    }
}

/// The float16 at an offset; blocks have their scales in it.
fn half(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// The 16-bit word at an offset.
fn word(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

/// The 32-bit word at an offset.
fn word32(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SafetensorsFile;
    use std::path::Path;

    /// Witness: blocks with the values that ggml's own Python library gives them (`tests/data/README.md`).
    #[test]
    fn values_are_those_of_ggml_to_the_last_bit() {
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf_vectors.safetensors");
        let vectors = SafetensorsFile::open(&vectors).unwrap();
        let mut checked = 0;
        for (_, block) in BLOCK_TYPES {
            let Ok(raw) = vectors.tensor(&format!("{}.raw", block.name)) else { continue };
            let expected = vectors.tensor(&format!("{}.dequant", block.name)).unwrap();
            let weight = block.weight("w", expected.shape(), raw.bytes().clone()).unwrap();
            let found = weight.load().unwrap();
            let bits = |tensor: &Tensor| -> Vec<u32> { tensor.to_f32().unwrap().iter().map(|v| v.to_bits()).collect() };
            assert_eq!(bits(&found), bits(&expected), "{}", block.name);
            assert!(weight.rows(1..3).unwrap().same(&found.rows(1..3).unwrap()), "{}", block.name);
            checked += 1;
        }
        assert_eq!(checked, 23);
    }

    /// What no reference library has vectors of, from their definitions: codes times a scale.
    #[test]
    fn types_without_vectors_mean_what_ggml_says() {
        let mut q8_k = vec![0u8; 292];
        q8_k[..4].copy_from_slice(&0.5f32.to_le_bytes());
        q8_k[4] = 0xfe;
        let mut q8_1 = vec![0u8; 36];
        q8_1[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        q8_1[4] = 3;
        let mut q1_0 = vec![0u8; 18];
        q1_0[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        q1_0[2] = 1;
        for (block, bytes, first) in [
            (&k_quants::Q8_K, q8_k, [-1.0, 0.0]),
            (&basic::Q8_1, q8_1, [0.75, 0.0]),
            (&one_bit::Q1_0, q1_0, [2.0, -2.0]),
        ] {
            let mut out = vec![9f32; block.elements];
            block.decode(&bytes, &mut out);
            assert_eq!(out[..2], first, "{}", block.name);
            assert_eq!(out[block.elements - 1], first[1], "{}", block.name);
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_are_refused() {
        let error = basic::Q4_0.weight("w", &[2, 33], Bytes::from_vec(vec![0u8; 36])).unwrap_err().to_string();
        assert_eq!(error, "found rows of 33 elements, expected a multiple of 32, the block of Q4_0");
        assert!(basic::Q4_0.weight("w", &[2, 32], Bytes::from_vec(vec![0u8; 35])).is_err());
    }
}
