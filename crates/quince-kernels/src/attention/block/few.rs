//! A block of positions for few query rows, as in decode: keys and values are read once, where they lie, and widened in
//! registers.

use std::ops::Range;

use half::f16;

use super::super::super::simd::Simd;
use super::{Cache, Piece, Problem, STRIDE, Strides, Work, query_stride, weigh};

/// Most query rows, of all heads together, for which reading keys as they lie is faster than transposing them.
pub(super) const MOST_ROWS: usize = 8;

// SAFETY of the functions below: the caller vouches for the instructions of `S`; slices are checked where they are cut.

/// Scores, weights and weighted values of all rows of a piece over a block of positions, none of it loaded.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(problem: &Problem, piece: &Piece, block: Range<usize>, work: &mut Work) {
    let a = problem.attention;
    let rows = a.group() * piece.rows.len();
    let cols = block.len().next_multiple_of(2 * S::LANES);
    unsafe {
        match problem.k {
            Cache::F16 { data, strides } => {
                scores::<S, _>(&Rows::new(data, &strides, piece, block.clone(), a.dim), rows, query_stride(a), work);
            }
            Cache::F32 { data, strides } => {
                scores::<S, _>(&Rows::new(data, &strides, piece, block.clone(), a.dim), rows, query_stride(a), work);
            }
        }
        for at in 0..rows {
            let (head, row) = piece.place(a, at);
            let weights = &mut work.weights[at * STRIDE..][..cols];
            let sums = &mut work.sums[at * work.width..][..work.width];
            let total = &mut work.totals[2 * at..2 * at + 2];
            weigh::<S>(problem, [piece.batch, head, row], block.clone(), weights, total, sums);
        }
        match problem.v {
            Cache::F16 { data, strides } => {
                add_values::<S, _>(&Rows::new(data, &strides, piece, block, a.value_dim), rows, work);
            }
            Cache::F32 { data, strides } => {
                add_values::<S, _>(&Rows::new(data, &strides, piece, block, a.value_dim), rows, work);
            }
        }
    }
}

/// What caches hold.
trait Element: Copy {
    /// The first `count` elements at `p` as numbers, zero beyond.
    unsafe fn load<S: Simd>(p: *const Self, count: usize) -> S;
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16, count: usize) -> S {
        unsafe { S::load_partial_or_full_f16(p, count) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32, count: usize) -> S {
        unsafe { S::load_partial_or_full(p, count) }
    }
}

/// The keys or values of a block: `count` rows of `dim` elements, `stride` apart.
struct Rows<'a, E> {
    data: &'a [E],
    stride: usize,
    count: usize,
    dim: usize,
}

impl<'a, E> Rows<'a, E> {
    fn new(data: &'a [E], strides: &Strides, piece: &Piece, block: Range<usize>, dim: usize) -> Rows<'a, E> {
        let (stride, count) = (strides.row, block.len());
        let start = strides.place(piece.batch, piece.kv_head, block.start);
        Rows { data: &data[start..start + (count - 1) * stride + dim], stride, count, dim }
    }
}

/// Writes the products of queries and keys to the weights.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element>(keys: &Rows<E>, rows: usize, stride: usize, work: &mut Work) {
    let mut first = 0;
    while first < rows {
        let queries = &work.queries[first * stride..rows * stride];
        let weights = &mut work.weights[first * STRIDE..rows * STRIDE];
        // Eight sums or more hide how long an addition takes.
        first += unsafe {
            match rows - first {
                1 => scores_of::<S, E, 1, 8>(keys, queries, stride, weights),
                2 => scores_of::<S, E, 2, 4>(keys, queries, stride, weights),
                3 => scores_of::<S, E, 3, 3>(keys, queries, stride, weights),
                _ => scores_of::<S, E, 4, 2>(keys, queries, stride, weights),
            }
        };
    }
}

/// The scores of `ROWS` rows, of `KEYS` keys at a time; returns `ROWS`.
#[inline(always)]
unsafe fn scores_of<S: Simd, E: Element, const ROWS: usize, const KEYS: usize>(
    keys: &Rows<E>,
    queries: &[f32],
    stride: usize,
    weights: &mut [f32],
) -> usize {
    let whole = keys.count - keys.count % KEYS;
    for key in (0..whole).step_by(KEYS) {
        unsafe { dots::<S, E, ROWS, KEYS>(keys, key, queries, stride, weights) };
    }
    for key in whole..keys.count {
        unsafe { dots::<S, E, ROWS, 1>(keys, key, queries, stride, weights) };
    }
    ROWS
}

/// The scores of `ROWS` rows for `KEYS` keys from `key`.
#[inline(always)]
unsafe fn dots<S: Simd, E: Element, const ROWS: usize, const KEYS: usize>(
    keys: &Rows<E>,
    key: usize,
    queries: &[f32],
    stride: usize,
    weights: &mut [f32],
) {
    debug_assert!(key + KEYS <= keys.count && (ROWS - 1) * stride + keys.dim <= queries.len());
    unsafe {
        let (first_key, queries) = (keys.data.as_ptr().add(key * keys.stride), queries.as_ptr());
        let mut sums = [[S::splat(0.0); KEYS]; ROWS];
        let whole = keys.dim - keys.dim % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            add_products(first_key.add(at), keys.stride, queries.add(at), stride, S::LANES, &mut sums);
        }
        if whole < keys.dim {
            add_products(first_key.add(whole), keys.stride, queries.add(whole), stride, keys.dim - whole, &mut sums);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                weights[row * STRIDE + key + i] = sum.reduce_add();
            }
        }
    }
}

/// Adds the products of `count` elements, a vector at most, of queries and keys.
#[inline(always)]
unsafe fn add_products<S: Simd, E: Element, const ROWS: usize, const KEYS: usize>(
    keys: *const E,
    key_stride: usize,
    queries: *const f32,
    query_stride: usize,
    count: usize,
    sums: &mut [[S; KEYS]; ROWS],
) {
    unsafe {
        let mut values = [S::splat(0.0); KEYS];
        for (i, value) in values.iter_mut().enumerate() {
            *value = E::load(keys.add(i * key_stride), count);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let query = S::load_partial_or_full(queries.add(row * query_stride), count);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = query.mul_add(value, *sum);
            }
        }
    }
}

/// Adds the weighted values to the sums.
#[inline(always)]
unsafe fn add_values<S: Simd, E: Element>(values: &Rows<E>, rows: usize, work: &mut Work) {
    let mut first = 0;
    while first < rows {
        let weights = &work.weights[first * STRIDE..rows * STRIDE];
        let sums = &mut work.sums[first * work.width..rows * work.width];
        first += unsafe {
            match rows - first {
                1 => add_values_to::<S, E, 1, 8>(values, weights, sums, work.width),
                2 => add_values_to::<S, E, 2, 4>(values, weights, sums, work.width),
                3 => add_values_to::<S, E, 3, 4>(values, weights, sums, work.width),
                _ => add_values_to::<S, E, 4, 2>(values, weights, sums, work.width),
            }
        };
    }
}

/// Adds weighted values to the sums of `ROWS` rows, `VECTORS` vectors at a time; returns `ROWS`.
#[inline(always)]
unsafe fn add_values_to<S: Simd, E: Element, const ROWS: usize, const VECTORS: usize>(
    values: &Rows<E>,
    weights: &[f32],
    sums: &mut [f32],
    width: usize,
) -> usize {
    let step = VECTORS * S::LANES;
    let whole = values.dim - values.dim % step;
    for col in (0..whole).step_by(step) {
        unsafe { add_columns::<S, E, ROWS, VECTORS>(values, weights, sums, width, col) };
    }
    for col in (whole..values.dim).step_by(S::LANES) {
        unsafe { add_columns::<S, E, ROWS, 1>(values, weights, sums, width, col) };
    }
    ROWS
}

/// Adds `VECTORS` vectors of values from column `col`; only a single one may not be whole.
#[inline(always)]
unsafe fn add_columns<S: Simd, E: Element, const ROWS: usize, const VECTORS: usize>(
    values: &Rows<E>,
    weights: &[f32],
    sums: &mut [f32],
    width: usize,
    col: usize,
) {
    debug_assert!(weights.len() >= (ROWS - 1) * STRIDE + values.count && sums.len() >= ROWS * width);
    let count = S::LANES.min(values.dim - col);
    unsafe {
        let (first, weights) = (values.data.as_ptr().add(col), weights.as_ptr());
        let mut totals = [[S::splat(0.0); VECTORS]; ROWS];
        for i in 0..values.count {
            let row = first.add(i * values.stride);
            let mut value = [S::splat(0.0); VECTORS];
            for (v, value) in value.iter_mut().enumerate() {
                *value = E::load(row.add(v * S::LANES), if VECTORS > 1 { S::LANES } else { count });
            }
            for (r, totals) in totals.iter_mut().enumerate() {
                let weight = S::splat(*weights.add(r * STRIDE + i));
                for (total, value) in totals.iter_mut().zip(value) {
                    *total = weight.mul_add(value, *total);
                }
            }
        }
        for (r, totals) in totals.into_iter().enumerate() {
            for (v, total) in totals.into_iter().enumerate() {
                let p = sums[r * width + col + v * S::LANES..][..S::LANES].as_mut_ptr();
                S::load(p).add(total).store(p);
            }
        }
    }
}
