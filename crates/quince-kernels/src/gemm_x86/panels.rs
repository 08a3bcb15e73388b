//! Activations as integers, laid out for the innermost product.

use super::super::simd::{Avx2, Avx512, Simd};
use super::super::{Pool, SharedMut, quantize};
use super::lanes::{Bytes, Integer, SevenBits};
use super::{Method, UNIT};

/// Activations `[m, k]` as integers, laid out in panels: for each panel of rows, for each group of terms that a lane of
/// 32 bits holds, the lanes of its rows.
pub(crate) struct Panels {
    pub(super) method: Method,
    pub(super) m: usize,
    pub(super) k: usize,
    /// Terms of a row, filled up with zeros to whole blocks.
    padded_k: usize,
    /// Rows, filled up with zeros to whole vectors.
    pub(super) padded_m: usize,
    lanes: Vec<u32>,
    /// Of each block, one scale for every row: NaN where the block holds an infinity or a NaN.
    pub(super) scales: Vec<f32>,
}

impl Panels {
    /// Lays out at most [`MOST_ROWS`](super::MOST_ROWS) rows of `k` numbers.
    pub(crate) fn new(method: Method, pool: &Pool, x: &[f32], k: usize) -> Panels {
        match method {
            Method::Avx2 => Panels::of::<i16>(method, Avx2::LANES, pool, x, k),
            Method::Avx512 | Method::Vnni => Panels::of::<i16>(method, Avx512::LANES, pool, x, k),
            Method::Avx2Bytes => Panels::of::<SevenBits>(method, Avx2::LANES, pool, x, k),
            Method::VnniBytes => Panels::of::<Bytes>(method, Avx512::LANES, pool, x, k),
        }
    }

    fn of<I: Integer>(method: Method, vector: usize, pool: &Pool, x: &[f32], k: usize) -> Panels {
        let m = x.len() / k;
        let (padded_m, padded_k) = (m.next_multiple_of(vector), k.next_multiple_of(UNIT));
        let (blocks, depth) = (padded_k / I::BLOCK, I::BLOCK / I::TERMS);
        let mut lanes = vec![0u32; padded_m * blocks * depth];
        let mut scales = vec![0.0f32; padded_m * blocks];
        let (all_lanes, all_scales) = (SharedMut::new(&mut lanes), SharedMut::new(&mut scales));
        pool.run(blocks, |block| {
            let columns = k.min(block * I::BLOCK)..k.min((block + 1) * I::BLOCK);
            // SAFETY: each task writes the scales and the lanes of a block of its own.
            let scales = unsafe { all_scales.slice(block * padded_m, padded_m) };
            for (row, scale) in scales[..m].iter_mut().enumerate() {
                let mut rounded = [0i16; UNIT];
                let rounded = &mut rounded[..I::BLOCK];
                let x = &x[row * k..(row + 1) * k][columns.clone()];
                // SAFETY: every method has AVX2.
                *scale = unsafe { round_block(x, I::ACTIVATION_MAX, rounded) };
                let (first, width) = panel_of(row, padded_m, 2 * vector);
                let start = (first * blocks + block * width) * depth;
                // SAFETY: as above.
                let panel = unsafe { all_lanes.slice(start, depth * width) };
                let column = panel[row - first..].iter_mut().step_by(width);
                column.zip(rounded.chunks_exact(I::TERMS)).for_each(|(out, terms)| *out = I::activations(terms));
            }
        });
        Panels { method, m, k, padded_k, padded_m, lanes, scales }
    }

    /// A block of the panel of `width` rows from row `first`.
    #[inline(always)]
    pub(super) fn panel<I: Integer>(&self, first: usize, width: usize, block: usize) -> &[u32] {
        let depth = I::BLOCK / I::TERMS;
        let start = (first * self.padded_k / I::BLOCK + block * width) * depth;
        &self.lanes[start..start + depth * width]
    }
}

/// The first row of the panel of `row`, and how many rows it has: `most`, the last panel what is left.
pub(super) fn panel_of(row: usize, padded_m: usize, most: usize) -> (usize, usize) {
    let first = row / most * most;
    (first, most.min(padded_m - first))
}

/// [`quantize::round`] with the instructions that every method has.
#[target_feature(enable = "avx2,fma")]
pub(super) fn round_block(x: &[f32], most: f32, out: &mut [i16]) -> f32 {
    quantize::round(x, most, out)
}
