//! One task of attention: some query rows of the heads that share a key head, over some positions.

use std::ops::Range;

use super::super::simd::Simd;
use super::{Attention, Cache, Heads, Mask, Ranges};

/// Positions that are taken at a time: their keys and values, as f32, fit the first-level cache beside the queries.
const KEYS: usize = 64;

/// Everything that tasks share.
pub(super) struct Problem<'a> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) q: Heads<'a>,
    pub(super) k: Cache<'a>,
    pub(super) v: Cache<'a>,
    pub(super) mask: Mask<'a>,
    pub(super) ranges: &'a Ranges,
}

impl Problem<'_> {
    /// Scratch numbers that a task of `rows` rows of each head needs.
    pub(super) fn scratch_len(&self, rows: usize) -> usize {
        let a = self.attention;
        let (rows, dim) = (rows * a.heads / a.kv_heads, a.dim.next_multiple_of(16));
        let width = a.value_dim.next_multiple_of(32);
        KEYS * (2 * dim + width + rows) + rows * (dim + width) + 16 * 8
    }
}

/// The parts of the scratch memory.
struct Work<'a> {
    /// `[rows, dim]`: the queries, scaled.
    queries: &'a mut [f32],
    /// `[KEYS, padded dim]`: a block of keys.
    keys: &'a mut [f32],
    /// `[padded dim, KEYS]`: the same, transposed.
    panel: &'a mut [f32],
    /// `[KEYS, width]`: a block of values.
    values: &'a mut [f32],
    /// `[rows, KEYS]`: scores, then weights.
    weights: &'a mut [f32],
    /// `[rows, width]`: weighted sums of values.
    sums: &'a mut [f32],
    /// Columns of `values` and `sums`: the values' dimension, padded to whole tiles.
    width: usize,
}

impl<'a> Work<'a> {
    fn new(a: &Attention, rows: usize, scratch: &'a mut [f32]) -> Work<'a> {
        let (dim, width) = (a.dim.next_multiple_of(16), a.value_dim.next_multiple_of(32));
        let (queries, rest) = scratch.split_at_mut(rows * dim);
        let (keys, rest) = rest.split_at_mut(KEYS * dim);
        let (panel, rest) = rest.split_at_mut(KEYS * dim);
        let (values, rest) = rest.split_at_mut(KEYS * width);
        let (weights, rest) = rest.split_at_mut(rows * KEYS);
        let (sums, _) = rest.split_at_mut(rows * width);
        keys.fill(0.0);
        values.fill(0.0);
        sums.fill(0.0);
        Work { queries, keys, panel, values, weights, sums, width }
    }
}

/// Attends to the positions `keys` for `rows` of each head of `kv_head`; for each row of each head in turn, `state`
/// receives the largest score, the sum of weights relative to it, and the weighted sum of values.
///
/// # Safety
/// The processor has the instructions of `S`; every position of a range is inside the caches.
#[inline(always)]
pub(super) unsafe fn attend_generic<S: Simd>(
    problem: &Problem,
    kv_head: usize,
    rows: Range<usize>,
    keys: Range<usize>,
    scratch: &mut [f32],
    state: &mut [f32],
) {
    let a = problem.attention;
    let (group, count) = (a.heads / a.kv_heads, rows.len() * (a.heads / a.kv_heads));
    let mut work = Work::new(a, count, scratch);
    let place = |at: usize| (kv_head * group + at / rows.len(), rows.start + at % rows.len());
    let entry = a.value_dim + 2;
    let (mut first, mut end) = (usize::MAX, 0);
    for at in 0..count {
        let (head, row) = place(at);
        let seen = problem.ranges.of(head, row);
        let seen = seen.start.max(keys.start)..seen.end.min(keys.end);
        if !seen.is_empty() {
            (first, end) = (first.min(seen.start), end.max(seen.end));
        }
        let query = &problem.q.data[head * problem.q.head_stride + row * problem.q.row_stride..][..a.dim];
        work.queries[at * a.dim..][..a.dim].iter_mut().zip(query).for_each(|(out, x)| *out = x * a.scale);
        state[at * entry..][..2].copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
    }
    for start in (first.min(end)..end).step_by(KEYS) {
        let block = start..end.min(start + KEYS);
        // SAFETY: the block lies inside the ranges of the rows.
        unsafe {
            load_block::<S>(problem, kv_head, block.clone(), &mut work);
            products::<S>(work.queries, a.dim, a.dim, count, work.panel, KEYS, |at, col, sum: S| {
                sum.store(work.weights.as_mut_ptr().add(at * KEYS + col));
            });
            for at in 0..count {
                let weights = &mut work.weights[at * KEYS..(at + 1) * KEYS];
                let sums = &mut work.sums[at * work.width..(at + 1) * work.width];
                weigh::<S>(problem, place(at), block.clone(), weights, &mut state[at * entry..][..2], sums);
            }
            let (sums, width) = (work.sums.as_mut_ptr(), work.width);
            products::<S>(work.weights, KEYS, block.len(), count, work.values, width, |at, col, sum: S| {
                let p = sums.add(at * width + col);
                S::load(p).add(sum).store(p);
            });
        }
    }
    for at in 0..count {
        state[at * entry + 2..][..a.value_dim].copy_from_slice(&work.sums[at * work.width..][..a.value_dim]);
    }
}

// SAFETY of the functions below: the caller vouches for the instructions of `S` and for the positions; slices are
// checked where they are cut.

/// Widens a block of keys and values to f32 and transposes the keys; keys that are missing become zero.
#[inline(always)]
unsafe fn load_block<S: Simd>(problem: &Problem, kv_head: usize, block: Range<usize>, work: &mut Work) {
    let a = problem.attention;
    let padded = a.dim.next_multiple_of(16);
    unsafe {
        for (i, position) in block.clone().enumerate() {
            load_row::<S>(&problem.k, kv_head, position, &mut work.keys[i * padded..][..a.dim]);
            load_row::<S>(&problem.v, kv_head, position, &mut work.values[i * work.width..][..a.value_dim]);
        }
        work.keys[block.len() * padded..].fill(0.0);
        for i in (0..KEYS).step_by(8) {
            for k in (0..a.dim).step_by(8) {
                let (from, to) = (work.keys.as_ptr().add(i * padded + k), work.panel.as_mut_ptr().add(k * KEYS + i));
                S::transpose8(from, padded, to, KEYS);
            }
        }
    }
}

#[inline(always)]
unsafe fn load_row<S: Simd>(cache: &Cache, head: usize, position: usize, out: &mut [f32]) {
    let (n, mut i) = (out.len(), 0);
    let out = out.as_mut_ptr();
    match *cache {
        Cache::F32 { data, head_stride, position_stride } => {
            let row = &data[head * head_stride + position * position_stride..][..n];
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out, n) };
        }
        Cache::F16 { data, head_stride, position_stride } => {
            let row = &data[head * head_stride + position * position_stride..][..n];
            while i < n {
                let count = S::LANES.min(n - i);
                unsafe {
                    S::load_partial_or_full_f16(row.as_ptr().add(i), count).store_partial_or_full(out.add(i), count);
                }
                i += count;
            }
        }
    }
}

/// Turns a row's scores into weights relative to the running maximum, and rescales what was summed so far.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    problem: &Problem,
    (head, row): (usize, usize),
    block: Range<usize>,
    weights: &mut [f32],
    state: &mut [f32],
    sums: &mut [f32],
) {
    let seen = problem.ranges.of(head, row);
    let start = seen.start.clamp(block.start, block.end) - block.start;
    let end = (seen.end.clamp(block.start, block.end) - block.start).max(start);
    weights[..start].fill(f32::NEG_INFINITY);
    weights[end..].fill(f32::NEG_INFINITY);
    let scores = &mut weights[start..end];
    if let Some(cap) = problem.attention.softcap {
        unsafe { soft_cap::<S>(scores, cap) };
    }
    match problem.mask {
        Mask::Ranges(_) => {}
        Mask::Additive { data, head_stride, row_stride } => {
            let entries = &data[head * head_stride + row * row_stride + block.start + start..];
            scores.iter_mut().zip(entries).for_each(|(score, entry)| *score += entry);
        }
        Mask::Bool { data, head_stride, row_stride } => {
            let entries = &data[head * head_stride + row * row_stride + block.start + start..];
            let hidden = scores.iter_mut().zip(entries).filter(|(_, seen)| !**seen);
            hidden.for_each(|(score, _)| *score = f32::NEG_INFINITY);
        }
    }
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..KEYS).step_by(S::LANES) {
            max = S::load(weights.as_ptr().add(i)).max(max);
        }
        let (before, max) = (state[0], max.reduce_max().max(state[0]));
        if max == f32::NEG_INFINITY {
            return weights.fill(0.0);
        }
        let (mut total, max_v) = (S::splat(0.0), S::splat(max));
        for i in (0..KEYS).step_by(S::LANES) {
            let p = weights.as_mut_ptr().add(i);
            let weight = S::load(p).sub(max_v).exp();
            weight.store(p);
            total = total.add(weight);
        }
        let keep = if before == max { 1.0 } else { (before - max).exp() };
        state.copy_from_slice(&[max, state[1] * keep + total.reduce_add()]);
        if keep != 1.0 {
            sums.iter_mut().for_each(|sum| *sum *= keep);
        }
    }
}

/// score = cap · tanh(score / cap), with tanh u = 1 − 2 / (e^2u + 1).
#[inline(always)]
unsafe fn soft_cap<S: Simd>(scores: &mut [f32], cap: f32) {
    unsafe {
        let (one, two) = (S::splat(1.0), S::splat(2.0));
        let n = scores.len();
        for i in (0..n).step_by(S::LANES) {
            let (p, count) = (scores.as_mut_ptr().add(i), S::LANES.min(n - i));
            let u = S::load_partial_or_full(p, count).mul(S::splat(2.0 / cap));
            let tanh = one.sub(two.div(u.exp().add(one)));
            tanh.mul(S::splat(cap)).store_partial_or_full(p, count);
        }
    }
}

/// Gives `store` the products of `count` rows of `left` (`stride` apart, `depth` used) with the columns of `right`.
#[inline(always)]
unsafe fn products<S: Simd>(
    left: &[f32],
    stride: usize,
    depth: usize,
    count: usize,
    right: &[f32],
    width: usize,
    mut store: impl FnMut(usize, usize, S),
) {
    assert!(left.len() >= (count - 1) * stride + depth && right.len() >= depth * width);
    for col in (0..width).step_by(2 * S::LANES) {
        let mut at = 0;
        while at < count {
            // SAFETY: the assertion above, for the rows and columns of the tile.
            unsafe {
                let (a, b) = (left.as_ptr().add(at * stride), right.as_ptr().add(col));
                let mut put = |i, half, sum| store(at + i, col + half * S::LANES, sum);
                at += match count - at {
                    1 => tile::<S, 1>(a, stride, depth, b, width, &mut put),
                    2 => tile::<S, 2>(a, stride, depth, b, width, &mut put),
                    3 => tile::<S, 3>(a, stride, depth, b, width, &mut put),
                    4 => tile::<S, 4>(a, stride, depth, b, width, &mut put),
                    5 => tile::<S, 5>(a, stride, depth, b, width, &mut put),
                    _ => tile::<S, 6>(a, stride, depth, b, width, &mut put),
                };
            }
        }
    }
}

/// Products of `ROWS` rows with two vectors of columns; returns `ROWS`.
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize>(
    a: *const f32,
    stride: usize,
    depth: usize,
    b: *const f32,
    width: usize,
    put: &mut impl FnMut(usize, usize, S),
) -> usize {
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; ROWS];
        for k in 0..depth {
            let (b0, b1) = (S::load(b.add(k * width)), S::load(b.add(k * width + S::LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(i * stride + k));
                sums[0] = x.mul_add(b0, sums[0]);
                sums[1] = x.mul_add(b1, sums[1]);
            }
        }
        for (i, [first, second]) in sums.into_iter().enumerate() {
            put(i, 0, first);
            put(i, 1, second);
        }
    }
    ROWS
}
