//! Attention over a key-value cache, with batches, grouped queries, masks, softcap and sinks.

use std::ops::Range;

use half::f16;

use super::scratch::{Scratch, with_scratch};
use super::simd::for_isa;
use super::{Kernels, SharedMut};

mod block;
mod ranges;

use block::{Problem, Target, attend_generic};
use ranges::Ranges;

/// How far elements lie apart along the axes before the last: row `s` of head `h` of batch `b` starts at
/// `b · batch + h · head + s · row`, its elements follow each other. An axis of size one may have any stride.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strides {
    /// From one batch to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one row (position) to the next.
    pub row: usize,
}

/// Where query heads lie.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Where each row begins.
    pub strides: Strides,
}

/// [`Heads`] that are written; no two rows overlap.
#[derive(Debug)]
pub struct HeadsMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// Where each row begins.
    pub strides: Strides,
}

/// Keys or values of all positions, which are the rows.
#[derive(Clone, Copy, Debug)]
pub enum Cache<'a> {
    /// Numbers of 16 bits.
    F16 {
        /// The elements.
        data: &'a [f16],
        /// Where each position begins.
        strides: Strides,
    },
    /// Numbers of 32 bits.
    F32 {
        /// The elements.
        data: &'a [f32],
        /// Where each position begins.
        strides: Strides,
    },
}

/// Which positions a query row sees.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Row `s` sees the positions of range `s`, or of the only range when there is one.
    Ranges(&'a [Range<usize>]),
    /// Entries that are added to the score, each mask after the other.
    ///
    /// Positions before the first and after the last whose entry is within 9,000 of the row's largest are not read:
    /// their weight underflows unless scores differ by thousands.
    Additive(&'a [Added<'a>]),
    /// A position is seen where the entry is true.
    Bool {
        /// The entries of all positions, for each row.
        data: &'a [bool],
        /// Where each row begins; 0 where rows share entries.
        strides: Strides,
    },
}

/// A mask that is added: the entries of all positions, for each query row.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    /// The entries.
    pub data: &'a [f32],
    /// Where each row begins; 0 where rows share entries.
    pub strides: Strides,
}

/// The shape and the constants of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Batches: attentions of the same shape that do not see each other.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` looks at head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Query rows.
    pub rows: usize,
    /// Positions in the cache (allocated or valid; the mask says which are seen).
    pub positions: usize,
    /// Elements of a query and of a key.
    pub dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// What q · k is multiplied by.
    pub scale: f32,
    /// With a cap c, the score s becomes c · tanh(s / c) before the mask is added.
    pub softcap: Option<f32>,
    /// For each query head, the logit of a position that takes weight and gives nothing.
    pub sinks: Option<&'a [f32]>,
    /// What the elements of a row become that sees none of the positions: 0, or NaN, which a softmax of nothing but −∞
    /// gives. They are 0 where there are no positions.
    pub unseen: f32,
}

impl Attention<'_> {
    /// Query heads that share a head of keys.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The elements of a row that sees nothing.
    fn nothing(&self) -> f32 {
        if self.positions == 0 { 0.0 } else { self.unseen }
    }
}

/// `out = softmax(scale · q kᵀ + mask) v` for each query head.
///
/// Keys and values are taken in blocks with a running maximum (Milakov and Gimelshein, 2018), in f32. Only positions
/// that a row's mask lets through are read.
///
/// # Panics
/// When heads, rows or positions are not inside their slices, rows of the result overlap, or `kv_heads` does not divide
/// `heads`.
pub fn attention(kernels: &Kernels, attention: &Attention, q: Heads, k: Cache, v: Cache, mask: Mask, out: HeadsMut) {
    let a = attention;
    if a.heads == 0 {
        return;
    }
    assert!(a.kv_heads > 0 && a.heads.is_multiple_of(a.kv_heads), "{} heads for {} of keys", a.heads, a.kv_heads);
    assert!(a.sinks.is_none_or(|sinks| sinks.len() == a.heads), "one sink for each of {} heads", a.heads);
    if a.batch == 0 || a.rows == 0 || a.value_dim == 0 {
        return;
    }
    inside(q.data.len(), q.strides, [a.batch, a.heads, a.rows], a.dim);
    inside(out.data.len(), out.strides, [a.batch, a.heads, a.rows], a.value_dim);
    assert!(out.strides.keep_apart([a.batch, a.heads, a.rows], a.value_dim), "rows overlap: {:?}", out.strides);
    let ranges = Ranges::new(kernels, a, mask);
    for (cache, dim) in [(k, a.dim), (v, a.value_dim)] {
        let (len, strides) = cache.extent();
        if ranges.last > 0 {
            inside(len, strides, [a.batch, a.kv_heads, ranges.last], dim);
        }
    }
    let (rows_per_block, split) = division(a, ranges.last);
    let blocks = a.rows.div_ceil(rows_per_block);
    let splits = ranges.last.div_ceil(split).max(1);
    let strides = out.strides;
    let out = SharedMut::new(out.data);
    let problem = Problem { attention: a, q, k, v, mask, ranges: &ranges, out: &out, strides };
    let entries = if splits > 1 { a.group() * rows_per_block * (a.value_dim + 2) } else { 0 };
    let pieces = a.batch * a.kv_heads * blocks;
    with_scratch(&STATES, pieces * splits * entries, |states| {
        let shared = SharedMut::new(states);
        let place = |piece: usize| {
            let rows = piece % blocks * rows_per_block..a.rows.min((piece % blocks + 1) * rows_per_block);
            block::Piece { batch: piece / blocks / a.kv_heads, kv_head: piece / blocks % a.kv_heads, rows }
        };
        kernels.pool.run(pieces * splits, |task| {
            let (piece, part) = (place(task / splits), task % splits);
            let keys = part * split..(part + 1) * split;
            // SAFETY: each task has a state of its own.
            let target =
                if splits > 1 { Target::Part(unsafe { shared.slice(task * entries, entries) }) } else { Target::Out };
            with_scratch(&WORK, problem.scratch_len(piece.rows.len(), keys.len()), |scratch| {
                for_isa!(kernels.isa, attend_generic(problem: &Problem = &problem, piece: &block::Piece = &piece,
                    keys: Range<usize> = keys, scratch: &mut [f32] = scratch, target: Target = target));
            });
        });
        if splits > 1 {
            let states = &*states;
            kernels.pool.run(pieces, |piece| {
                let parts = &states[piece * splits * entries..(piece + 1) * splits * entries];
                merge(&problem, &place(piece), parts.chunks_exact(entries));
            });
        }
    });
}

thread_local! {
    static STATES: Scratch = const { Scratch::new(Vec::new()) };
    static WORK: Scratch = const { Scratch::new(Vec::new()) };
}

/// Asserts that the last row ends inside its slice.
fn inside(len: usize, strides: Strides, counts: [usize; 3], dim: usize) {
    let last = strides.place(counts[0] - 1, counts[1] - 1, counts[2] - 1);
    assert!(last + dim <= len, "heads of attention: {len} elements, {counts:?} rows of {dim}, {strides:?}");
}

/// How many rows of each head a task takes, and how many positions. Shapes alone decide, so that the number of
/// threads does not change the order of sums.
fn division(a: &Attention, positions: usize) -> (usize, usize) {
    /// Query rows (of all heads that share a key head) that go over a block of keys together.
    const ROWS: usize = 96;
    /// Positions of a task when rows alone do not give enough tasks.
    const SPLIT: usize = 512;
    let most = (ROWS / a.group()).clamp(1, a.rows);
    // Blocks of like size, of whole tiles of six rows.
    let blocks = a.rows.div_ceil(most);
    let rows = a.rows.div_ceil(blocks).next_multiple_of(6).min(most);
    let enough = a.rows.div_ceil(rows) * a.kv_heads * a.batch >= 64;
    (rows, if enough { positions.max(1) } else { SPLIT.min(positions.max(1)) })
}

/// Joins the parts of some rows in the order of positions, and divides by the sum of weights.
///
/// A part has, for each row of each head: the largest score, the sum of weights, the weighted sum of values.
fn merge<'a>(problem: &Problem, piece: &block::Piece, parts: impl Iterator<Item = &'a [f32]> + Clone) {
    let a = problem.attention;
    let entry = a.value_dim + 2;
    for at in 0..a.group() * piece.rows.len() {
        let (head, row) = piece.place(a, at);
        let parts = parts.clone().map(|part| &part[at * entry..(at + 1) * entry]);
        let sink = a.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        let max = parts.clone().fold(sink, |max, part| max.max(part[0]));
        // SAFETY: the caller has asserted that rows do not overlap, and a piece's rows belong to one task.
        let out = unsafe { problem.out.slice(problem.strides.place(piece.batch, head, row), a.value_dim) };
        if max == f32::NEG_INFINITY {
            out.fill(a.nothing());
            continue;
        }
        out.fill(0.0);
        let mut total = (sink - max).exp();
        for part in parts.filter(|part| part[1] > 0.0 || part[1].is_nan()) {
            let weight = (part[0] - max).exp();
            total += weight * part[1];
            out.iter_mut().zip(&part[2..]).for_each(|(out, x)| *out += weight * x);
        }
        out.iter_mut().for_each(|out| *out /= total);
    }
}

impl Strides {
    /// Where a row begins.
    fn place(&self, batch: usize, head: usize, row: usize) -> usize {
        batch * self.batch + head * self.head + row * self.row
    }

    /// Whether no two rows of `dim` elements overlap.
    fn keep_apart(&self, counts: [usize; 3], dim: usize) -> bool {
        let mut axes = [(self.batch, counts[0]), (self.head, counts[1]), (self.row, counts[2])];
        axes.sort_unstable();
        let mut extent = dim;
        for (stride, count) in axes.into_iter().filter(|&(_, count)| count > 1) {
            if stride < extent {
                return false;
            }
            extent += (count - 1) * stride;
        }
        true
    }
}

impl Cache<'_> {
    /// The number of elements, and how they lie.
    fn extent(&self) -> (usize, Strides) {
        match *self {
            Cache::F16 { data, strides } => (data.len(), strides),
            Cache::F32 { data, strides } => (data.len(), strides),
        }
    }
}

#[cfg(test)]
mod tests;
