//! Plain weights rounded to bytes, for [`Accuracy::Fast`](super::Accuracy::Fast).

use std::num::NonZero;
use std::thread;

use quince_tensor::Result;

use super::Isa;
use super::dequantize::dequantize;
use super::quantize;
use super::weights::{CodeType, Encoding, Floats, PackedWeight};

/// Elements of a row that share a scale, where they divide it.
const BLOCK: usize = 128;
/// Largest magnitude of a code.
const MOST: f32 = 127.0;

impl PackedWeight {
    /// A matrix of plain numbers as signed bytes with a scale for each 128 elements of a row, or for less where 128 does
    /// not divide it; `None` where the matrix is compressed already, or its rows have no such blocks.
    ///
    /// # Errors
    /// When there is no memory for the bytes.
    pub fn narrowed(&self) -> Result<Option<PackedWeight>> {
        let (rows, cols) = (self.rows(), self.cols());
        let block = [BLOCK, BLOCK / 2, BLOCK / 4].into_iter().find(|&block| cols > 0 && cols.is_multiple_of(block));
        let (Encoding::Dense(_), Some(block)) = (self.encoding(), block) else { return Ok(None) };
        let mut codes: Vec<u8> = quince_tensor::zeroed(rows * cols)?;
        let mut scales: Vec<f32> = quince_tensor::zeroed(rows * cols / block)?;
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let part = rows.div_ceil(threads).max(1);
        thread::scope(|scope| {
            let parts = codes.chunks_mut((part * cols).max(1)).zip(scales.chunks_mut((part * cols / block).max(1)));
            for (first, (codes, scales)) in (0..).step_by(part).zip(parts) {
                scope.spawn(move || self.narrow_rows(first, block, codes, scales));
            }
        });
        let grid = [rows.max(1), (cols / block).max(1)];
        let scales = Floats::from(scales);
        PackedWeight::affine(rows, cols, CodeType::Int8, codes.into(), scales, None, grid).map(Some)
    }

    /// Writes the codes and scales of the rows from `first`.
    fn narrow_rows(&self, first: usize, block: usize, codes: &mut [u8], scales: &mut [f32]) {
        let (isa, cols) = (Isa::detect(), self.cols());
        let (mut numbers, mut rounded) = ([0.0f32; BLOCK], [0i16; BLOCK]);
        for (at, (codes, scale)) in codes.chunks_exact_mut(block).zip(scales).enumerate() {
            let numbers = &mut numbers[..block];
            let (row, col) = (at * block / cols, at * block % cols);
            dequantize(isa, self, first + row, col, numbers);
            *scale = quantize::round_fast(numbers, MOST, &mut rounded[..block]);
            codes.iter_mut().zip(rounded).for_each(|(code, rounded)| *code = rounded as i8 as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn every_element_is_within_half_a_step_of_its_block() {
        let (rows, cols) = (5, 192);
        let values = Random::new(50).normal(rows * cols);
        let weight = PackedWeight::dense(rows, cols, values.clone().into()).unwrap();
        let narrowed = weight.narrowed().unwrap().unwrap();
        assert_eq!(narrowed.byte_len(), rows * cols + rows * cols / 64 * 4);
        for (at, block) in values.chunks_exact(64).enumerate() {
            let largest = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for (i, &value) in block.iter().enumerate() {
                let found = narrowed.get((64 * at + i) / cols, (64 * at + i) % cols);
                assert!((found - value).abs() <= largest / 127.0 * 0.501, "{at} {i}: {found}, not {value}");
            }
        }
        assert!(narrowed.narrowed().unwrap().is_none(), "bytes already");
        let odd = PackedWeight::dense(1, 33, vec![0.0; 33].into()).unwrap();
        assert!(odd.narrowed().unwrap().is_none(), "no blocks");
        let empty = PackedWeight::dense(2, 0, Vec::<f32>::new().into()).unwrap();
        assert!(empty.narrowed().unwrap().is_none(), "no columns");
    }
}
