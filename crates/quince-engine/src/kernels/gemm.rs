//! Blocked f32 matrix product: panels of the right side are packed (and dequantized) once, then reused by all rows.
//!
//! The scheme is that of Goto and van de Geijn (2008): a panel of `2 · LANES` columns and [`DEPTH`] terms stays in the
//! first-level cache while row tiles pass by. Every output adds its terms in the order of `k`, block by block, so
//! that neither the number of threads nor the number of rows changes a result.

use super::dequantize::dequantize_generic;
use super::scratch::{Scratch, with_scratch};
use super::simd::{Simd, for_isa};
use super::weights::PackedWeight;
use super::{Kernels, SharedMut};

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
    if k == 0 || n == 0 {
        let row = bias.map_or(vec![0.0; n], <[f32]>::to_vec);
        return y.chunks_exact_mut(n.max(1)).for_each(|y| y.copy_from_slice(&row));
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
    let (tile_rows, tile_cols) = for_isa!(kernels.isa, tile_shape() -> (usize, usize));
    let padded = sizes.m.next_multiple_of(tile_rows);
    with_scratch(&LEFT, padded * sizes.k, |left| {
        let shared = SharedMut::new(left);
        let blocks = sizes.k.div_ceil(DEPTH);
        kernels.pool.run(blocks, |block| {
            let depth = DEPTH.min(sizes.k - block * DEPTH);
            // SAFETY: the blocks' parts follow each other.
            let part = unsafe { shared.slice(block * DEPTH * padded, depth * padded) };
            pack_left(x, sizes, block * DEPTH, depth, tile_rows, part);
        });
        let left = &*left;
        let cols = TASK_COLS.min(sizes.n.div_ceil(4 * kernels.pool.threads()).next_multiple_of(tile_cols));
        let y = SharedMut::new(y);
        kernels.pool.run(sizes.n.div_ceil(cols), |task| {
            let job = Job { sizes, left, padded, right, bias, y: &y, first: task * cols, cols: cols.min(sizes.n - task * cols) };
            let panel = cols.next_multiple_of(tile_cols) * DEPTH;
            with_scratch(&PANELS, panel + tile_cols * DEPTH, |scratch| {
                let (panels, rows) = scratch.split_at_mut(panel);
                for_isa!(kernels.isa, job_generic(job: &Job = &job, panels: &mut [f32] = panels, rows: &mut [f32] = rows));
            });
        });
    });
}

/// Lays rows out as tiles: for each `tile_rows` rows, for each k, one element of every row; missing rows are zero.
fn pack_left(x: &[f32], sizes: Sizes, first_k: usize, depth: usize, tile_rows: usize, out: &mut [f32]) {
    for (tile, out) in out.chunks_exact_mut(tile_rows * depth).enumerate() {
        for i in 0..tile_rows {
            let row = tile * tile_rows + i;
            if row < sizes.m {
                let x = &x[row * sizes.k + first_k..][..depth];
                x.iter().zip(out[i..].iter_mut().step_by(tile_rows)).for_each(|(&x, out)| *out = x);
            } else {
                out[i..].iter_mut().step_by(tile_rows).for_each(|out| *out = 0.0);
            }
        }
    }
}

/// The columns `first..first + cols` of a product.
struct Job<'a> {
    sizes: Sizes,
    left: &'a [f32],
    padded: usize,
    right: Right<'a>,
    bias: Option<&'a [f32]>,
    y: &'a SharedMut<f32>,
    first: usize,
    cols: usize,
}

// SAFETY of the functions below: the caller vouches for the instructions of `S`; what else they need is said where
// they access memory.

/// Rows and columns that the innermost loop computes at once.
#[inline(always)]
unsafe fn tile_shape<S: Simd>() -> (usize, usize) {
    (S::TILE_ROWS, 2 * S::LANES)
}

#[inline(always)]
unsafe fn job_generic<S: Simd>(job: &Job, panels: &mut [f32], rows: &mut [f32]) {
    unsafe {
        match S::TILE_ROWS {
            12 => job_tiles::<S, 12>(job, panels, rows),
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
        for (panel, first) in panels.chunks_exact_mut(tile_cols * DEPTH).zip((0..job.cols).step_by(tile_cols)) {
            let cols = tile_cols.min(job.cols - first);
            unsafe { pack_panel::<S>(job.right, job.first + first, cols, first_k, depth, rows, panel) };
        }
        let left = &job.left[first_k * job.padded..][..depth * job.padded];
        for block in (0..m).step_by(BLOCK_ROWS) {
            for (panel, first) in panels.chunks_exact(tile_cols * DEPTH).zip((0..job.cols).step_by(tile_cols)) {
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
    let (data, row_stride) = match right {
        Right::Strided { data, row_stride: 1, col_stride } => {
            for (k, out) in panel.chunks_exact_mut(tile_cols).take(depth).enumerate() {
                out[..cols].copy_from_slice(&data[(first_k + k) * col_stride + first..][..cols]);
                out[cols..].fill(0.0);
            }
            return;
        }
        Right::Strided { data, row_stride, col_stride: 1 } => (&data[first * row_stride + first_k..], row_stride),
        Right::Strided { data, row_stride, col_stride } => {
            for (col, row) in rows.chunks_exact_mut(DEPTH).take(cols).enumerate() {
                let start = (first + col) * row_stride + first_k * col_stride;
                row.iter_mut().zip(data[start..].iter().step_by(col_stride)).take(depth).for_each(|(r, &x)| *r = x);
            }
            (&*rows, DEPTH)
        }
        Right::Weight(weight) => {
            for (col, row) in rows.chunks_exact_mut(DEPTH).take(cols).enumerate() {
                unsafe { dequantize_generic::<S>(weight, first + col, first_k, &mut row[..depth]) };
            }
            (&*rows, DEPTH)
        }
    };
    unsafe { transpose_rows::<S>(data, row_stride, cols, depth, tile_cols, panel) };
}

/// Writes `panel[k][col] = data[col][k]`, zero where `col ≥ cols`.
#[inline(always)]
unsafe fn transpose_rows<S: Simd>(
    data: &[f32],
    row_stride: usize,
    cols: usize,
    depth: usize,
    tile_cols: usize,
    panel: &mut [f32],
) {
    assert!(data.len() >= (cols - 1) * row_stride + depth && panel.len() >= depth * tile_cols);
    if cols < tile_cols {
        panel[..depth * tile_cols].fill(0.0);
    }
    let (whole_cols, whole_depth) = (cols / 8 * 8, depth / 8 * 8);
    for col in (0..whole_cols).step_by(8) {
        for k in (0..whole_depth).step_by(8) {
            // SAFETY: both blocks are inside, by the assertion above.
            unsafe {
                let (src, dst) = (data.as_ptr().add(col * row_stride + k), panel.as_mut_ptr().add(k * tile_cols + col));
                S::transpose8(src, row_stride, dst, tile_cols);
            }
        }
    }
    for col in 0..cols {
        let first = if col < whole_cols { whole_depth } else { 0 };
        for k in first..depth {
            panel[k * tile_cols + col] = data[col * row_stride + k];
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
