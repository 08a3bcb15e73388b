//! Blocked f32 matrix product: panels of the right side are packed (and dequantized) once, then reused by all rows.
//!
//! The scheme is that of Goto and van de Geijn (2008): a panel of `2 · LANES` columns and [`DEPTH`] terms stays in the
//! first-level cache while row tiles pass by. Every output adds its terms in the order of `k`, block by block, so
//! that the number of threads does not change a result. Few rows are not worth a panel, unless it is there already: see
//! [`dots`] and [`laid`].

use std::ops::Range;

use super::dequantize::dequantize_generic;
use super::scratch::{Scratch, with_scratch};
use super::simd::{Simd, for_isa};
use super::weights::{Encoding, Floats, PackedWeight};
use super::{Isa, Kernels, SharedMut};

mod dots;
mod laid;

pub(crate) use laid::Laid;

/// Terms of a sum that are taken at a time.
const DEPTH: usize = 256;
/// Rows of the left side that are packed at a time, so that scratch memory stays bounded.
const ROWS: usize = 1020;
/// Rows that pass by one panel before the next panel: their part of the left side stays in the second-level cache.
const BLOCK_ROWS: usize = 120;
/// Most columns of a task.
const TASK_COLS: usize = 128;

/// The right side, seen as `[N, K]`: column `n` of the result is its row `n`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// A packed weight.
    Weight(&'a PackedWeight),
    /// Numbers of which element (n, k) lies at `n · row_stride + k · col_stride`.
    Strided { data: &'a [f32], row_stride: usize, col_stride: usize },
}

impl<'a> Right<'a> {
    /// Its rows and how far they lie apart, if they are f32 in memory, each in one piece.
    fn in_place(self) -> Option<(&'a [f32], usize)> {
        match self {
            Right::Strided { data, row_stride, col_stride: 1 } => Some((data, row_stride)),
            Right::Weight(weight) => match weight.encoding() {
                Encoding::Dense(Floats::F32(bytes)) if cfg!(target_endian = "little") => {
                    // SAFETY: every pattern of bits is a number.
                    let (before, numbers, after) = unsafe { bytes.align_to::<f32>() };
                    (before.is_empty() && after.is_empty()).then_some((numbers, weight.cols()))
                }
                _ => None,
            },
            Right::Strided { .. } => None,
        }
    }
}

impl<'a> Right<'a> {
    /// Its panels, if they were laid out beforehand for this instruction set.
    fn laid(self, isa: Isa) -> Option<&'a Laid> {
        match self {
            Right::Weight(weight) => weight.laid().filter(|laid| laid.width == tile_cols(isa)),
            Right::Strided { .. } => None,
        }
    }
}

/// Columns that the innermost loop computes at once.
fn tile_cols(isa: Isa) -> usize {
    for_isa!(isa, two_vectors() -> usize)
}

/// The sizes of a product: `y[M, N] = x[M, K] · right[N, K]ᵀ`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// `y = x · rightᵀ + bias`, with `y` and `x` dense and row-major.
///
/// # Panics
/// When a slice does not have the length that goes with the sizes.
pub(crate) fn gemm(kernels: &Kernels, sizes: Sizes, x: &[f32], right: Right, bias: Option<&[f32]>, y: &mut [f32]) {
    let Sizes { m, n, k } = sizes;
    assert_eq!((x.len(), y.len()), (m * k, m * n), "elements of the left side and the result of {sizes:?}");
    assert!(bias.is_none_or(|bias| bias.len() == n), "elements of a bias, expected {n}");
    if m == 0 || k == 0 || n == 0 {
        let row = bias.map_or(vec![0.0; n], <[f32]>::to_vec);
        return y.chunks_exact_mut(n.max(1)).for_each(|y| y.copy_from_slice(&row));
    }
    if m <= dots::MOST_ROWS && dots::takes(right) && right.laid(kernels.isa).is_none() {
        return dots::dots(kernels, sizes, x, right, bias, y);
    }
    for first in (0..m).step_by(ROWS) {
        let rows = ROWS.min(m - first);
        let (x, y) = (&x[first * k..(first + rows) * k], &mut y[first * n..(first + rows) * n]);
        gemm_rows(kernels, Sizes { m: rows, n, k }, x, right, bias, y);
    }
}

thread_local! {
    static LEFT: Scratch = const { Scratch::new(Vec::new()) };
    static PANELS: Scratch = const { Scratch::new(Vec::new()) };
}

fn gemm_rows(kernels: &Kernels, sizes: Sizes, x: &[f32], right: Right, bias: Option<&[f32]>, y: &mut [f32]) {
    let tile_rows = for_isa!(kernels.isa, tile_rows(m: usize = sizes.m) -> usize);
    let (tile_cols, laid) = (tile_cols(kernels.isa), right.laid(kernels.isa));
    let padded = sizes.m.next_multiple_of(tile_rows);
    with_scratch(&LEFT, padded * sizes.k, |left| {
        let shared = SharedMut::new(left);
        kernels.pool.run(padded.div_ceil(BLOCK_ROWS), |block| {
            let rows = block * BLOCK_ROWS..padded.min((block + 1) * BLOCK_ROWS);
            for_isa!(kernels.isa, pack_left(x: &[f32] = x, sizes: Sizes = sizes, padded: usize = padded,
                tile_rows: usize = tile_rows, rows: Range<usize> = rows, left: &SharedMut<f32> = &shared));
        });
        let left = &*left;
        let cols = TASK_COLS.min(sizes.n.div_ceil(4 * kernels.pool.threads()).next_multiple_of(tile_cols));
        let y = SharedMut::new(y);
        kernels.pool.run(sizes.n.div_ceil(cols), |task| {
            let (first, cols) = (task * cols, cols.min(sizes.n - task * cols));
            let job = Job { sizes, left, padded, tile_rows, right, laid, bias, y: &y, first, cols };
            let panel = cols.next_multiple_of(tile_cols) * DEPTH;
            with_scratch(&PANELS, panel + tile_cols * DEPTH, |scratch| {
                let (panels, rows) = scratch.split_at_mut(panel);
                for_isa!(kernels.isa, job_generic(job: &Job = &job, panels: &mut [f32] = panels, rows: &mut [f32] = rows));
            });
        });
    });
}

/// The columns `first..first + cols` of a product.
struct Job<'a> {
    sizes: Sizes,
    left: &'a [f32],
    padded: usize,
    tile_rows: usize,
    right: Right<'a>,
    laid: Option<&'a Laid>,
    bias: Option<&'a [f32]>,
    y: &'a SharedMut<f32>,
    first: usize,
    cols: usize,
}

// SAFETY of the functions below: the caller vouches for the instructions of `S`; what else they need is said where
// they access memory.

/// Columns that the innermost loop computes at once.
#[inline(always)]
unsafe fn two_vectors<S: Simd>() -> usize {
    2 * S::LANES
}

/// Rows that the innermost loop computes at once: of `m` rows, as few as possible should be missing in the last tile.
#[inline(always)]
unsafe fn tile_rows<S: Simd>(m: usize) -> usize {
    match S::TILE_ROWS {
        12 if m.next_multiple_of(8) < m.next_multiple_of(12) => 8,
        rows => rows,
    }
}

/// Lays whole tiles of rows out, those `rows` of `padded`: for each block of [`DEPTH`] terms, for each tile, for each
/// term, one element of every row of the tile; missing rows are zero.
#[inline(always)]
unsafe fn pack_left<S: Simd>(
    x: &[f32],
    sizes: Sizes,
    padded: usize,
    tile_rows: usize,
    rows: Range<usize>,
    left: &SharedMut<f32>,
) {
    let Sizes { m, k, .. } = sizes;
    for first_k in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - first_k);
        // SAFETY: tiles follow each other, and each is laid out by one task.
        let tiles = unsafe { left.slice(first_k * padded + rows.start * depth, rows.len() * depth) };
        for row in rows.clone().step_by(tile_rows) {
            let tile = &mut tiles[(row - rows.start) * depth..];
            let x = &x[row * k + first_k..];
            let count = tile_rows.min(m - row);
            // A tile may take rows of the next one along, which is written over what is too much.
            let along = if tile_rows < 8 && row + 8 <= m.min(rows.end) { 8 } else { count };
            unsafe { transpose_rows::<S>(x, k, along, depth, tile_rows, tile) };
        }
    }
}

#[inline(always)]
unsafe fn job_generic<S: Simd>(job: &Job, panels: &mut [f32], rows: &mut [f32]) {
    unsafe {
        match job.tile_rows {
            12 => job_tiles::<S, 12>(job, panels, rows),
            8 => job_tiles::<S, 8>(job, panels, rows),
            6 => job_tiles::<S, 6>(job, panels, rows),
            _ => job_tiles::<S, 3>(job, panels, rows),
        }
    }
}

#[inline(always)]
unsafe fn job_tiles<S: Simd, const TILE_ROWS: usize>(job: &Job, panels: &mut [f32], rows: &mut [f32]) {
    let Sizes { m, k, .. } = job.sizes;
    let tile_cols = 2 * S::LANES;
    for first_k in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - first_k);
        let unlaid = if job.laid.is_none() { job.cols } else { 0 };
        for (panel, first) in panels.chunks_exact_mut(tile_cols * DEPTH).zip((0..unlaid).step_by(tile_cols)) {
            let cols = tile_cols.min(job.cols - first);
            unsafe { pack_panel::<S>(job.right, job.first + first, cols, first_k, depth, rows, panel) };
        }
        let left = &job.left[first_k * job.padded..][..depth * job.padded];
        for block in (0..m).step_by(BLOCK_ROWS) {
            for (panel, first) in panels.chunks_exact(tile_cols * DEPTH).zip((0..job.cols).step_by(tile_cols)) {
                let panel = job.laid.map_or(panel, |laid| laid.panel(job.first + first, first_k, k));
                for row in (block..m.min(block + BLOCK_ROWS)).step_by(TILE_ROWS) {
                    let tile = &left[row * depth..][..TILE_ROWS * depth];
                    unsafe {
                        let sums = multiply_tile::<S, TILE_ROWS>(tile, &panel[..tile_cols * depth]);
                        store_tile(job, first_k == 0, row, first, &sums);
                    }
                }
            }
        }
    }
}

/// Lays `cols` rows of the right side out as a panel: for each k, one element of every row, zeros for missing ones.
#[inline(always)]
unsafe fn pack_panel<S: Simd>(
    right: Right,
    first: usize,
    cols: usize,
    first_k: usize,
    depth: usize,
    rows: &mut [f32],
    panel: &mut [f32],
) {
    let tile_cols = 2 * S::LANES;
    if let Some((data, row_stride)) = right.in_place() {
        let data = &data[first * row_stride + first_k..];
        return unsafe { transpose_rows::<S>(data, row_stride, cols, depth, tile_cols, panel) };
    }
    match right {
        Right::Strided { data, row_stride: 1, col_stride } => {
            for (k, out) in panel.chunks_exact_mut(tile_cols).take(depth).enumerate() {
                out[..cols].copy_from_slice(&data[(first_k + k) * col_stride + first..][..cols]);
                out[cols..].fill(0.0);
            }
            return;
        }
        Right::Strided { data, row_stride, col_stride } => {
            for (col, row) in rows.chunks_exact_mut(DEPTH).take(cols).enumerate() {
                let start = (first + col) * row_stride + first_k * col_stride;
                row.iter_mut().zip(data[start..].iter().step_by(col_stride)).take(depth).for_each(|(r, &x)| *r = x);
            }
        }
        Right::Weight(weight) => {
            for (col, row) in rows.chunks_exact_mut(DEPTH).take(cols).enumerate() {
                unsafe { dequantize_generic::<S>(weight, first + col, first_k, &mut row[..depth]) };
            }
        }
    }
    unsafe { transpose_rows::<S>(rows, DEPTH, cols, depth, tile_cols, panel) };
}

/// Writes `panel[k][col] = data[col][k]`, zero where `cols ≤ col < width`. Columns may be more than the width: then
/// what is behind `depth` rows of the panel is written too.
#[inline(always)]
unsafe fn transpose_rows<S: Simd>(
    data: &[f32],
    row_stride: usize,
    cols: usize,
    depth: usize,
    width: usize,
    panel: &mut [f32],
) {
    assert!(data.len() >= (cols - 1) * row_stride + depth && panel.len() >= (depth - 1) * width + cols.max(width));
    if cols < width {
        panel[..depth * width].fill(0.0);
    }
    // Blocks of eight columns, of which the last may begin inside the one before.
    let (blocks, whole_depth) = if cols < 8 { (0, 0) } else { (cols.div_ceil(8), depth / 8 * 8) };
    for k in (0..whole_depth).step_by(8) {
        for block in 0..blocks {
            let col = (8 * block).min(cols - 8);
            // SAFETY: both blocks are inside, by the assertion above.
            unsafe {
                let (src, dst) = (data.as_ptr().add(col * row_stride + k), panel.as_mut_ptr().add(k * width + col));
                S::transpose8(src, row_stride, dst, width);
            }
        }
    }
    for k in whole_depth..depth {
        for col in 0..cols {
            panel[k * width + col] = data[col * row_stride + k];
        }
    }
}

/// The products of a tile's rows with a panel's columns, summed over k.
#[inline(always)]
unsafe fn multiply_tile<S: Simd, const TILE_ROWS: usize>(tile: &[f32], panel: &[f32]) -> [[S; 2]; TILE_ROWS] {
    let depth = tile.len() / TILE_ROWS;
    assert!(panel.len() >= depth * 2 * S::LANES);
    // SAFETY: `k` stays below `depth`, and the tile and the panel have that many rows.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; TILE_ROWS];
        let (mut tile, mut panel) = (tile.as_ptr(), panel.as_ptr());
        for _ in 0..depth {
            let (b0, b1) = (S::load(panel), S::load(panel.add(S::LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*tile.add(i));
                sums[0] = a.mul_add(b0, sums[0]);
                sums[1] = a.mul_add(b1, sums[1]);
            }
            tile = tile.add(TILE_ROWS);
            panel = panel.add(2 * S::LANES);
        }
        sums
    }
}

/// Adds a tile's sums to the result, or to the bias when they are the first.
#[inline(always)]
unsafe fn store_tile<S: Simd, const TILE_ROWS: usize>(
    job: &Job,
    is_first: bool,
    row: usize,
    first: usize,
    sums: &[[S; 2]; TILE_ROWS],
) {
    let Sizes { m, n, .. } = job.sizes;
    for (i, sums) in sums.iter().enumerate().take(m - row) {
        for (half, &sum) in sums.iter().enumerate() {
            let col = first + half * S::LANES;
            if col >= job.cols {
                break;
            }
            let (col, count) = (job.first + col, S::LANES.min(job.cols - col));
            // SAFETY: tasks write different columns, and `count` columns from `col` exist.
            unsafe {
                let y = job.y.slice((row + i) * n + col, count);
                let before = match (is_first, job.bias) {
                    (false, _) => S::load_partial_or_full(y.as_ptr(), count),
                    (true, Some(bias)) => S::load_partial_or_full(bias[col..col + count].as_ptr(), count),
                    (true, None) => S::splat(0.0),
                };
                before.add(sum).store_partial_or_full(y.as_mut_ptr(), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, every_isa};
    use super::*;

    /// Few rows and many, tiles and blocks that are not whole, all ways in which the right side may lie.
    #[test]
    fn every_shape_agrees_with_the_sum() {
        let mut random = Random::new(21);
        let shapes = [(1, 1, 1), (3, 9, 17), (4, 5, 513), (16, 33, 384), (64, 12, 40), (65, 34, 300), (131, 7, 1030)];
        for (m, n, k) in shapes {
            let (x, w, bias) = (random.normal(m * k), random.normal(n * k), random.normal(n));
            let turned: Vec<f32> = (0..n * k).map(|i| w[i % n * k + i / n]).collect();
            let apart: Vec<f32> = (0..2 * n * k).map(|i| w[i / 2]).collect();
            let packed = PackedWeight::dense(n, k, Floats::from(w.clone())).unwrap();
            let rights = [
                Right::Weight(&packed),
                Right::Strided { data: &w, row_stride: k, col_stride: 1 },
                Right::Strided { data: &turned, row_stride: 1, col_stride: n },
                Right::Strided { data: &apart, row_stride: 2 * k, col_stride: 2 },
            ];
            every_isa(|kernels| {
                for (kind, right) in rights.into_iter().enumerate() {
                    for bias in [None, Some(&bias[..])] {
                        let mut y = vec![f32::NAN; m * n];
                        gemm(kernels, Sizes { m, n, k }, &x, right, bias, &mut y);
                        for (at, &y) in y.iter().enumerate() {
                            let (i, j) = (at / n, at % n);
                            let terms = (0..k).map(|t| f64::from(x[i * k + t]) * f64::from(w[j * k + t]));
                            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                            let expected = sum + bias.map_or(0.0, |bias| f64::from(bias[j]));
                            let error = (f64::from(y) - expected).abs();
                            let place = format!("{:?} {m}x{n}x{k}, right side {kind}, at {at}", kernels.isa);
                            assert!(error <= 1e-6 * (size + expected.abs()), "{place}: {y}, not {expected}");
                        }
                    }
                }
            });
        }
    }
}
