//! One task of attention: some query rows of the heads that share a key head, over some positions.

use std::ops::Range;

use super::super::SharedMut;
use super::super::simd::Simd;
use super::{Attention, Cache, Heads, Mask, Ranges, Strides};

mod few;

/// Positions that are taken at a time: their keys and values, as f32, fit the first-level cache beside the queries.
const KEYS: usize = 64;
/// What positions and values are padded to: whole tiles of every instruction set.
const TILE: usize = 32;
/// From one row of queries to the next where they are not longer, and from one row of weights to the next: products
/// find rows at known distances.
const STRIDE: usize = KEYS;

/// Everything that tasks share.
pub(super) struct Problem<'a> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) q: Heads<'a>,
    pub(super) k: Cache<'a>,
    pub(super) v: Cache<'a>,
    pub(super) mask: Mask<'a>,
    pub(super) ranges: &'a Ranges,
    pub(super) out: &'a SharedMut<f32>,
    /// Where the rows of `out` begin.
    pub(super) strides: Strides,
}

/// Some rows of the heads that share a key head of a batch.
pub(super) struct Piece {
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    pub(super) rows: Range<usize>,
}

/// Where the result goes.
pub(super) enum Target<'a> {
    /// To the rows of the output: the task sees all positions.
    Out,
    /// For each row of each head in turn: the largest score, the sum of weights relative to it, and the weighted sum of
    /// values.
    Part(&'a mut [f32]),
}

impl Piece {
    /// The head and the row of a number below heads · rows: the rows of a head follow each other.
    pub(super) fn place(&self, a: &Attention, at: usize) -> (usize, usize) {
        (self.kv_head * a.group() + at / self.rows.len(), self.rows.start + at % self.rows.len())
    }
}

impl Problem<'_> {
    /// Scratch numbers that a task of `rows` rows of each head and at most `keys` positions needs.
    pub(super) fn scratch_len(&self, rows: usize, keys: usize) -> usize {
        let a = self.attention;
        let (rows, dim, keys) = (rows * a.group(), a.dim.next_multiple_of(16), block_keys(keys));
        let width = a.value_dim.next_multiple_of(TILE);
        keys * (2 * dim + width) + rows * (query_stride(a) + STRIDE + width + 2)
    }
}

/// From one row of queries to the next.
fn query_stride(a: &Attention) -> usize {
    a.dim.max(STRIDE)
}

/// Positions of a block when there are `keys`.
fn block_keys(keys: usize) -> usize {
    KEYS.min(keys.next_multiple_of(TILE))
}

/// The parts of the scratch memory.
struct Work<'a> {
    /// Rows of [`query_stride`]: the queries, scaled.
    queries: &'a mut [f32],
    /// `[block, padded dim]`: a block of keys.
    keys: &'a mut [f32],
    /// `[padded dim, block]`: the same, transposed.
    panel: &'a mut [f32],
    /// `[block, width]`: a block of values.
    values: &'a mut [f32],
    /// `[rows, STRIDE]`: scores, then weights.
    weights: &'a mut [f32],
    /// `[rows, width]`: weighted sums of values.
    sums: &'a mut [f32],
    /// `[rows, 2]`: the largest score so far, and the sum of weights relative to it.
    totals: &'a mut [f32],
    /// Positions of a block.
    block: usize,
    /// Columns of `values` and `sums`: the values' dimension, padded to whole tiles.
    width: usize,
}

impl<'a> Work<'a> {
    fn new(a: &Attention, rows: usize, keys: usize, scratch: &'a mut [f32]) -> Work<'a> {
        let (dim, width, block) = (a.dim.next_multiple_of(16), a.value_dim.next_multiple_of(TILE), block_keys(keys));
        let (queries, rest) = scratch.split_at_mut(rows * query_stride(a));
        let (keys, rest) = rest.split_at_mut(block * dim);
        let (panel, rest) = rest.split_at_mut(block * dim);
        let (values, rest) = rest.split_at_mut(block * width);
        let (weights, rest) = rest.split_at_mut(rows * STRIDE);
        let (sums, rest) = rest.split_at_mut(rows * width);
        let (totals, _) = rest.split_at_mut(rows * 2);
        if dim > a.dim {
            keys.fill(0.0);
        }
        if width > a.value_dim {
            values.fill(0.0);
        }
        sums.fill(0.0);
        totals.chunks_exact_mut(2).for_each(|total| total.copy_from_slice(&[f32::NEG_INFINITY, 0.0]));
        Work { queries, keys, panel, values, weights, sums, totals, block, width }
    }
}

// SAFETY of the functions below: the caller vouches for the instructions of `S` and for the positions; slices are
// checked where they are cut.

/// Attends to the positions `keys` for the rows of a piece.
///
/// # Safety
/// The processor has the instructions of `S`; every position of a range is inside the caches; rows of the output do not
/// overlap, and those of the piece belong to this task.
#[inline(always)]
pub(super) unsafe fn attend_generic<S: Simd>(
    problem: &Problem,
    piece: &Piece,
    keys: Range<usize>,
    scratch: &mut [f32],
    target: Target,
) {
    let a = problem.attention;
    let (group, rows) = (a.group(), piece.rows.len());
    let mut work = Work::new(a, group * rows, keys.len(), scratch);
    let stride = query_stride(a);
    let heads = piece.kv_head * group..(piece.kv_head + 1) * group;
    let seen = |head: usize, row: usize| {
        let seen = problem.ranges.of(piece.batch, head, row);
        seen.start.max(keys.start)..seen.end.min(keys.end)
    };
    let (mut first, mut end) = (usize::MAX, 0);
    let mut queries = work.queries.chunks_exact_mut(stride);
    for head in heads.clone() {
        for (row, out) in piece.rows.clone().zip(&mut queries) {
            let seen = seen(head, row);
            if !seen.is_empty() {
                (first, end) = (first.min(seen.start), end.max(seen.end));
            }
            let query = &problem.q.data[problem.q.strides.place(piece.batch, head, row)..][..a.dim];
            out.iter_mut().zip(query).for_each(|(out, x)| *out = x * a.scale);
        }
    }
    for start in (first.min(end)..end).step_by(KEYS) {
        let block = start..end.min(start + KEYS);
        if group * rows <= few::MOST_ROWS {
            // SAFETY: the block lies inside the ranges of the rows.
            unsafe { few::attend::<S>(problem, piece, block, &mut work) };
            continue;
        }
        // SAFETY: as above.
        unsafe { load_block::<S>(problem, piece, block.clone(), &mut work) };
        for (head, first_number) in heads.clone().zip((0..).step_by(rows)) {
            // Rows that see nothing of the block, as the first ones of a causal mask, are left out.
            let sees = |row: &usize| {
                let seen = seen(head, *row);
                seen.start < block.end && seen.end > block.start && !seen.is_empty()
            };
            let (some, last) = (piece.rows.clone().find(sees), piece.rows.clone().rfind(sees));
            if let (Some(some), Some(last)) = (some, last) {
                let part = Part { head, rows: some..last + 1, number: first_number + some - piece.rows.start };
                // SAFETY: as above.
                unsafe { attend_block::<S>(problem, piece.batch, &part, block.clone(), &mut work) };
            }
        }
    }
    match target {
        Target::Part(state) => {
            for (at, state) in state.chunks_exact_mut(a.value_dim + 2).enumerate().take(group * rows) {
                state[..2].copy_from_slice(&work.totals[2 * at..2 * at + 2]);
                state[2..].copy_from_slice(&work.sums[at * work.width..][..a.value_dim]);
            }
        }
        // SAFETY: the rows belong to this task.
        Target::Out => unsafe { finish(problem, piece, &work) },
    }
}

/// Rows of one head.
struct Part {
    head: usize,
    rows: Range<usize>,
    /// The number of the first one in the scratch memory.
    number: usize,
}

/// Scores, weights and weighted values of some rows over a block that is loaded.
#[inline(always)]
unsafe fn attend_block<S: Simd>(problem: &Problem, batch: usize, part: &Part, block: Range<usize>, work: &mut Work) {
    let a = problem.attention;
    let (stride, width) = (query_stride(a), work.width);
    let cols = block.len().next_multiple_of(2 * S::LANES);
    let numbers = part.number..part.number + part.rows.len();
    unsafe {
        let weights = work.weights[numbers.start * STRIDE..numbers.end * STRIDE].as_mut_ptr();
        let queries = &work.queries[numbers.start * stride..numbers.end * stride];
        products::<S>(
            Left { data: queries, stride, depth: a.dim, rows: numbers.len() },
            Right { data: work.panel, stride: work.block, cols },
            #[inline(always)]
            |at, col, sum: S| sum.store(weights.add(at * STRIDE + col)),
        );
        for (row, number) in part.rows.clone().zip(numbers.clone()) {
            let weights = &mut work.weights[number * STRIDE..][..cols];
            let sums = &mut work.sums[number * width..(number + 1) * width];
            let total = &mut work.totals[2 * number..2 * number + 2];
            weigh::<S>(problem, [batch, part.head, row], block.clone(), weights, total, sums);
        }
        let sums = work.sums[numbers.start * width..numbers.end * width].as_mut_ptr();
        let weights = &work.weights[numbers.start * STRIDE..numbers.end * STRIDE];
        products::<S>(
            Left { data: weights, stride: STRIDE, depth: block.len(), rows: numbers.len() },
            Right { data: work.values, stride: width, cols: width },
            #[inline(always)]
            |at, col, sum: S| {
                let p = sums.add(at * width + col);
                S::load(p).add(sum).store(p);
            },
        );
    }
}

/// Divides the weighted sums by the sums of weights.
#[inline(always)]
unsafe fn finish(problem: &Problem, piece: &Piece, work: &Work) {
    let a = problem.attention;
    for (at, total) in work.totals.chunks_exact(2).enumerate() {
        let (head, row) = piece.place(a, at);
        let sink = a.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        let max = total[0].max(sink);
        // SAFETY: the rows belong to this task.
        let out = unsafe { problem.out.slice(problem.strides.place(piece.batch, head, row), a.value_dim) };
        if max == f32::NEG_INFINITY {
            out.fill(a.nothing());
            continue;
        }
        let keep = if total[0] == max { 1.0 } else { (total[0] - max).exp() };
        let scale = keep / (total[1] * keep + (sink - max).exp());
        let sums = &work.sums[at * work.width..][..a.value_dim];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * scale);
    }
}

/// Widens a block of keys and values to f32 and transposes the keys; keys that are missing become zero.
#[inline(always)]
unsafe fn load_block<S: Simd>(problem: &Problem, piece: &Piece, block: Range<usize>, work: &mut Work) {
    let a = problem.attention;
    let padded = a.dim.next_multiple_of(16);
    unsafe {
        for (i, position) in block.clone().enumerate() {
            load_row::<S>(&problem.k, piece, position, &mut work.keys[i * padded..][..a.dim]);
            load_row::<S>(&problem.v, piece, position, &mut work.values[i * work.width..][..a.value_dim]);
        }
        let cols = block.len().next_multiple_of(2 * S::LANES);
        work.keys[block.len() * padded..cols * padded].fill(0.0);
        assert!(cols <= work.block && cols * padded <= work.keys.len());
        for i in (0..cols).step_by(8) {
            for k in (0..a.dim).step_by(8) {
                let to = work.panel.as_mut_ptr().add(k * work.block + i);
                S::transpose8(work.keys.as_ptr().add(i * padded + k), padded, to, work.block);
            }
        }
    }
}

#[inline(always)]
unsafe fn load_row<S: Simd>(cache: &Cache, piece: &Piece, position: usize, out: &mut [f32]) {
    let (n, mut i) = (out.len(), 0);
    let out = out.as_mut_ptr();
    match *cache {
        Cache::F32 { data, strides } => {
            let row = &data[strides.place(piece.batch, piece.kv_head, position)..][..n];
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out, n) };
        }
        Cache::F16 { data, strides } => {
            let row = &data[strides.place(piece.batch, piece.kv_head, position)..][..n];
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

/// Turns a row's scores, padded to whole vectors, into weights relative to the running maximum, and rescales what was
/// summed so far.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    problem: &Problem,
    place @ [batch, head, row]: [usize; 3],
    block: Range<usize>,
    weights: &mut [f32],
    total: &mut [f32],
    sums: &mut [f32],
) {
    let seen = problem.ranges.of(batch, head, row);
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
        Mask::Additive(masks) => {
            for mask in masks {
                let entries = &mask.entries(place)[block.start + start..];
                scores.iter_mut().zip(entries).for_each(|(score, entry)| *score += entry);
            }
        }
        Mask::Bool { data, strides } => {
            let entries = &data[strides.place(batch, head, row) + block.start + start..];
            let hidden = scores.iter_mut().zip(entries).filter(|(_, seen)| !**seen);
            hidden.for_each(|(score, _)| *score = f32::NEG_INFINITY);
        }
    }
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..weights.len()).step_by(S::LANES) {
            max = S::load(weights.as_ptr().add(i)).max(max);
        }
        let (before, max) = (total[0], max.reduce_max().max(total[0]));
        if max == f32::NEG_INFINITY {
            return weights.fill(0.0);
        }
        let (mut sum, max_v) = (S::splat(0.0), S::splat(max));
        for i in (0..weights.len()).step_by(S::LANES) {
            let p = weights.as_mut_ptr().add(i);
            let weight = S::load(p).sub(max_v).exp();
            weight.store(p);
            sum = sum.add(weight);
        }
        let keep = if before == max { 1.0 } else { (before - max).exp() };
        total.copy_from_slice(&[max, total[1] * keep + sum.reduce_add()]);
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

/// Rows that are multiplied: `depth` elements each, `stride` apart, which is [`STRIDE`] or more.
struct Left<'a> {
    data: &'a [f32],
    stride: usize,
    depth: usize,
    rows: usize,
}

/// `[depth, cols]`, rows `stride` apart; `cols` are whole tiles.
struct Right<'a> {
    data: &'a [f32],
    stride: usize,
    cols: usize,
}

/// Gives `store` the products of the rows of `left` with the columns of `right`: a row, a column, and a vector of
/// products from there.
#[inline(always)]
unsafe fn products<S: Simd>(left: Left, right: Right, mut store: impl FnMut(usize, usize, S)) {
    assert!(left.data.len() >= (left.rows - 1) * left.stride + left.depth);
    assert!(left.depth == 0 || right.data.len() >= (left.depth - 1) * right.stride + right.cols);
    assert!(right.cols.is_multiple_of(2 * S::LANES));
    unsafe {
        // The loop is compiled twice, because known distances between rows cost no arithmetic.
        match left.stride {
            STRIDE => tiles::<S, STRIDE>(&left, &right, &mut store),
            _ => tiles::<S, 0>(&left, &right, &mut store),
        }
    }
}

/// All products; rows of `left` are `DISTANCE` apart if that is not 0.
#[inline(always)]
unsafe fn tiles<S: Simd, const DISTANCE: usize>(left: &Left, right: &Right, store: &mut impl FnMut(usize, usize, S)) {
    for col in (0..right.cols).step_by(2 * S::LANES) {
        let mut at = 0;
        while at < left.rows {
            // SAFETY: the caller has asserted the sizes, for the rows and columns of the tile.
            unsafe {
                at += match left.rows - at {
                    1 => tile::<S, 1, DISTANCE>(left, right, at, col, store),
                    2 => tile::<S, 2, DISTANCE>(left, right, at, col, store),
                    3 => tile::<S, 3, DISTANCE>(left, right, at, col, store),
                    4 => tile::<S, 4, DISTANCE>(left, right, at, col, store),
                    5 => tile::<S, 5, DISTANCE>(left, right, at, col, store),
                    _ => tile::<S, 6, DISTANCE>(left, right, at, col, store),
                };
            }
        }
    }
}

/// Products of `ROWS` rows with two vectors of columns; returns `ROWS`.
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const DISTANCE: usize>(
    left: &Left,
    right: &Right,
    row: usize,
    col: usize,
    store: &mut impl FnMut(usize, usize, S),
) -> usize {
    unsafe {
        let distance = if DISTANCE > 0 { DISTANCE } else { left.stride };
        let (a, b) = (left.data.as_ptr().add(row * distance), right.data.as_ptr().add(col));
        let mut sums = [[S::splat(0.0); 2]; ROWS];
        for k in 0..left.depth {
            let (b0, b1) = (S::load(b.add(k * right.stride)), S::load(b.add(k * right.stride + S::LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(i * distance + k));
                sums[0] = x.mul_add(b0, sums[0]);
                sums[1] = x.mul_add(b1, sums[1]);
            }
        }
        for (i, [first, second]) in sums.into_iter().enumerate() {
            store(row + i, col, first);
            store(row + i, col + S::LANES, second);
        }
    }
    ROWS
}
