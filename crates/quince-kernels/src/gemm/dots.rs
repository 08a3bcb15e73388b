//! The product for few rows: every output is the dot product of a row of the left and a row of the right side, which
//! are read where they lie.
//!
//! Laying out panels, as [`super`] does for many rows, takes as long as the products of some ten rows. Dot products
//! need none, but the lanes of every sum have to be added up in the end.

use std::ops::Range;

use super::super::dequantize::dequantize_generic;
use super::super::scratch::{Scratch, with_scratch};
use super::super::simd::{Simd, for_isa, prefetch};
use super::super::{Kernels, SharedMut};
use super::{Right, Sizes};

/// Most rows that are worth it.
pub(super) const MOST_ROWS: usize = 64;

/// Terms of a sum that are taken at a time.
const DEPTH: usize = 512;
/// Columns that are computed together: as many sums as are added up at once.
const COLS: usize = 4;
/// Columns whose terms stay in the first-level cache while all rows pass by.
const BLOCK_COLS: usize = 2 * COLS;
/// Most columns of a task.
const TASK_COLS: usize = 8 * BLOCK_COLS;

/// Elements that come from memory together.
const LINE: usize = 16;

thread_local! {
    static ROWS: Scratch = const { Scratch::new(Vec::new()) };
}

/// Whether rows of the right side can be had one after the other.
pub(super) fn takes(right: Right) -> bool {
    matches!(right, Right::Weight(_) | Right::Strided { col_stride: 1, .. })
}

/// [`super::gemm`] for a right side that [`takes`] says yes to; slices have the right lengths, and no size is 0.
pub(super) fn dots(kernels: &Kernels, sizes: Sizes, x: &[f32], right: Right, bias: Option<&[f32]>, y: &mut [f32]) {
    let Sizes { n, .. } = sizes;
    let cols = n.div_ceil(8 * kernels.pool.threads()).next_multiple_of(BLOCK_COLS).min(TASK_COLS);
    let y = SharedMut::new(y);
    kernels.pool.run(n.div_ceil(cols), |task| {
        let job = Job { sizes, x, right, bias, y: &y };
        with_scratch(&ROWS, BLOCK_COLS * DEPTH, |rows| {
            for first in (task * cols..n.min((task + 1) * cols)).step_by(BLOCK_COLS) {
                let count = BLOCK_COLS.min(n - first);
                for_isa!(kernels.isa, block(job: &Job = &job, first: usize = first, count: usize = count,
                    rows: &mut [f32] = rows));
            }
        });
    });
}

struct Job<'a> {
    sizes: Sizes,
    x: &'a [f32],
    right: Right<'a>,
    bias: Option<&'a [f32]>,
    y: &'a SharedMut<f32>,
}

// SAFETY of the functions below: the caller vouches for the instructions of `S`; what else they need is said where
// they access memory.

/// The columns `first..first + count` of a product, at most [`BLOCK_COLS`].
#[inline(always)]
unsafe fn block<S: Simd>(job: &Job, first: usize, count: usize, rows: &mut [f32]) {
    let Sizes { m, k, .. } = job.sizes;
    for first_k in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - first_k);
        let (data, stride) = match job.right.in_place() {
            Some((data, stride)) => (&data[first * stride + first_k..], stride),
            None => unsafe {
                terms::<S>(job.right, first..first + count, first_k..first_k + depth, rows);
                (&*rows, DEPTH)
            },
        };
        assert!(data.len() >= (count - 1) * stride + depth && job.x.len() >= (m - 1) * k + first_k + depth);
        let mut next = Ahead::new(job, first, first_k);
        // All of it while this block is computed.
        let lines = (BLOCK_COLS * depth / LINE).div_ceil(m.div_ceil(3) * count.div_ceil(COLS));
        let mut row = 0;
        while row < m {
            // Four rows are better divided evenly.
            let step = if m - row == 4 { 2 } else { (m - row).min(3) };
            for col in (0..count).step_by(COLS) {
                next.fetch(lines);
                // Columns that are missing are computed as the last one, and left out.
                let last = count - col - 1;
                // SAFETY: the assertion above.
                unsafe {
                    let right = [0, 1, 2, 3].map(|i: usize| data.as_ptr().add((col + i.min(last)) * stride));
                    let left = job.x.as_ptr().add(row * k + first_k);
                    let place = Place { row, col: first + col, count: COLS.min(last + 1), is_first: first_k == 0 };
                    match step {
                        1 => store(job, &place, &products::<S, 1>(left, k, right, depth)),
                        2 => store(job, &place, &products::<S, 2>(left, k, right, depth)),
                        _ => store(job, &place, &products::<S, 3>(left, k, right, depth)),
                    }
                }
            }
            row += step;
        }
    }
}

/// What is needed next of a right side that lies in memory, perhaps not in a cache: line after line.
struct Ahead {
    row: *const f32,
    stride: usize,
    depth: usize,
    at: usize,
}

impl Ahead {
    /// What follows the terms from `first_k` of the columns from `first`; what there is not is never read.
    fn new(job: &Job, first: usize, first_k: usize) -> Ahead {
        let Sizes { k, .. } = job.sizes;
        let (first, first_k) = if first_k + DEPTH < k { (first, first_k + DEPTH) } else { (first + BLOCK_COLS, 0) };
        let (data, stride) = job.right.in_place().unwrap_or_default();
        let row = data.as_ptr().wrapping_add(first * stride + first_k);
        Ahead { row, stride, depth: DEPTH.min(k - first_k), at: 0 }
    }

    /// Brings some lines nearer.
    #[inline(always)]
    fn fetch(&mut self, lines: usize) {
        for _ in 0..lines {
            prefetch(self.row.wrapping_add(self.at));
            self.at += LINE;
            if self.at >= self.depth {
                (self.row, self.at) = (self.row.wrapping_add(self.stride), 0);
            }
        }
    }
}

/// Writes the terms `depth` of some rows of the right side to rows of [`DEPTH`].
#[inline(always)]
unsafe fn terms<S: Simd>(right: Right, cols: Range<usize>, depth: Range<usize>, out: &mut [f32]) {
    for (col, out) in cols.zip(out.chunks_exact_mut(DEPTH)) {
        let out = &mut out[..depth.len()];
        match right {
            Right::Weight(weight) => unsafe { dequantize_generic::<S>(weight, col, depth.start, out) },
            Right::Strided { data, row_stride, col_stride } => {
                let source = data[col * row_stride + depth.start * col_stride..].iter().step_by(col_stride);
                out.iter_mut().zip(source).for_each(|(out, &x)| *out = x);
            }
        }
    }
}

/// Products of `ROWS` rows, `stride` apart, with four others, over `depth` terms.
///
/// # Safety
/// All rows have that many elements.
#[inline(always)]
unsafe fn products<S: Simd, const ROWS: usize>(
    left: *const f32,
    stride: usize,
    right: [*const f32; COLS],
    depth: usize,
) -> [[f32; COLS]; ROWS] {
    unsafe {
        let mut sums = [[S::splat(0.0); COLS]; ROWS];
        let whole = depth / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let mut x = [S::splat(0.0); ROWS];
            for (row, x) in x.iter_mut().enumerate() {
                *x = S::load(left.add(row * stride + at));
            }
            for (col, &right) in right.iter().enumerate() {
                let w = S::load(right.add(at));
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[col] = x.mul_add(w, sums[col]);
                }
            }
        }
        let mut products = [[0.0; COLS]; ROWS];
        for (row, (products, sums)) in products.iter_mut().zip(sums).enumerate() {
            *products = S::reduce_add4(sums);
            for at in whole..depth {
                let x = *left.add(row * stride + at);
                products.iter_mut().zip(right).for_each(|(product, right)| *product += x * *right.add(at));
            }
        }
        products
    }
}

/// Where products belong.
struct Place {
    row: usize,
    col: usize,
    count: usize,
    is_first: bool,
}

/// Adds products to the result, or to the bias when they are the first.
#[inline(always)]
fn store<const ROWS: usize>(job: &Job, place: &Place, products: &[[f32; COLS]; ROWS]) {
    let &Place { row, col, count, is_first } = place;
    let bias = job.bias.map(|bias| &bias[col..col + count]);
    for (i, products) in products.iter().enumerate() {
        // SAFETY: tasks write different columns.
        let y = unsafe { job.y.slice((row + i) * job.sizes.n + col, count) };
        // Whole groups are not looped over.
        if let Ok(y) = <&mut [f32; COLS]>::try_from(&mut *y) {
            let before = if is_first { bias.map_or([0.0; COLS], |bias| std::array::from_fn(|i| bias[i])) } else { *y };
            *y = std::array::from_fn(|i| before[i] + products[i]);
            continue;
        }
        for (i, (y, product)) in y.iter_mut().zip(products).enumerate() {
            let before = if is_first { bias.map_or(0.0, |bias| bias[i]) } else { *y };
            *y = before + product;
        }
    }
}
