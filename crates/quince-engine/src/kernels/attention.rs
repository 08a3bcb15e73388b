//! Attention over a key-value cache, with grouped queries, masks, softcap and sinks.

use std::ops::Range;

use half::f16;

use super::scratch::{Scratch, with_scratch};
use super::simd::for_isa;
use super::{Kernels, SharedMut};

mod block;

use block::{Problem, attend_generic};

/// Where query or output heads lie: row `s` of head `h` starts at `h · head_stride + s · row_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one row (position) to the next.
    pub row_stride: usize,
}

/// [`Heads`] that are written.
#[derive(Debug)]
pub struct HeadsMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one row (position) to the next.
    pub row_stride: usize,
}

/// Keys or values of all positions: position `p` of head `h` starts at `h · head_stride + p · position_stride`.
#[derive(Clone, Copy, Debug)]
pub enum Cache<'a> {
    /// Numbers of 16 bits.
    F16 {
        /// The elements.
        data: &'a [f16],
        /// Elements from one head to the next.
        head_stride: usize,
        /// Elements from one position to the next.
        position_stride: usize,
    },
    /// Numbers of 32 bits.
    F32 {
        /// The elements.
        data: &'a [f32],
        /// Elements from one head to the next.
        head_stride: usize,
        /// Elements from one position to the next.
        position_stride: usize,
    },
}

/// Which positions a query row sees.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Row `s` sees the positions of range `s`, or of the only range when there is one.
    Ranges(&'a [Range<usize>]),
    /// `data[h · head_stride + s · row_stride + p]` is added to the score; strides may be 0 for broadcasting.
    ///
    /// Positions before the first and after the last whose entry is within 9,000 of the row's largest are not read:
    /// their weight underflows unless scores differ by thousands.
    Additive {
        /// The entries.
        data: &'a [f32],
        /// Elements from one query head to the next.
        head_stride: usize,
        /// Elements from one query row to the next.
        row_stride: usize,
    },
    /// As `Additive`, but a position is seen where the entry is true.
    Bool {
        /// The entries.
        data: &'a [bool],
        /// Elements from one query head to the next.
        head_stride: usize,
        /// Elements from one query row to the next.
        row_stride: usize,
    },
}

/// The shape and the constants of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
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
}

/// `out = softmax(scale · q kᵀ + mask) v` for each query head; a row that sees nothing becomes zero.
///
/// Keys and values are taken in blocks with a running maximum (Milakov and Gimelshein, 2018), in f32. Only positions
/// that a row's mask lets through are read.
///
/// # Panics
/// When heads, rows or positions are not inside their slices, or `kv_heads` does not divide `heads`.
pub fn attention(kernels: &Kernels, attention: &Attention, q: Heads, k: Cache, v: Cache, mask: Mask, out: HeadsMut) {
    let a = attention;
    assert!(a.kv_heads > 0 && a.heads.is_multiple_of(a.kv_heads), "{} heads for {} of keys", a.heads, a.kv_heads);
    assert!(a.sinks.is_none_or(|sinks| sinks.len() == a.heads), "one sink for each of {} heads", a.heads);
    if a.rows == 0 || a.heads == 0 || a.value_dim == 0 {
        return;
    }
    let inside = |len: usize, strides: [usize; 2], counts: [usize; 2], dim: usize| {
        assert!((counts[0] - 1) * strides[0] + (counts[1] - 1) * strides[1] + dim <= len, "heads of attention");
    };
    inside(q.data.len(), [q.head_stride, q.row_stride], [a.heads, a.rows], a.dim);
    inside(out.data.len(), [out.head_stride, out.row_stride], [a.heads, a.rows], a.value_dim);
    let ranges = Ranges::new(kernels, a, mask);
    for (cache, dim) in [(k, a.dim), (v, a.value_dim)] {
        let (len, strides) = cache.extent();
        if ranges.last > 0 {
            inside(len, strides, [a.kv_heads, ranges.last], dim);
        }
    }
    let (rows_per_block, split) = division(a, ranges.last);
    let blocks = a.rows.div_ceil(rows_per_block);
    let splits = ranges.last.div_ceil(split).max(1);
    let problem = Problem { attention: a, q, k, v, mask, ranges: &ranges };
    let state_len = a.heads / a.kv_heads * rows_per_block * (a.value_dim + 2);
    with_scratch(&STATES, a.kv_heads * blocks * splits * state_len, |states| {
        let shared = SharedMut::new(states);
        kernels.pool.run(a.kv_heads * blocks * splits, |task| {
            let (kv_head, block, part) = (task / (blocks * splits), task / splits % blocks, task % splits);
            let rows = block * rows_per_block..a.rows.min((block + 1) * rows_per_block);
            let keys = part * split..(part + 1) * split;
            // SAFETY: each task has a state of its own.
            let state = unsafe { shared.slice(task * state_len, state_len) };
            with_scratch(&WORK, problem.scratch_len(rows.len()), |scratch| {
                for_isa!(kernels.isa, attend_generic(problem: &Problem = &problem, kv_head: usize = kv_head,
                    rows: Range<usize> = rows, keys: Range<usize> = keys, scratch: &mut [f32] = scratch,
                    state: &mut [f32] = state));
            });
        });
        for (task, states) in states.chunks_exact(splits * state_len).enumerate() {
            let first_row = task % blocks * rows_per_block;
            merge(
                a,
                task / blocks,
                first_row..a.rows.min(first_row + rows_per_block),
                states,
                state_len,
                &mut *out.data,
                [out.head_stride, out.row_stride],
            );
        }
    });
}

thread_local! {
    static STATES: Scratch = const { Scratch::new(Vec::new()) };
    static WORK: Scratch = const { Scratch::new(Vec::new()) };
}

/// How many rows of each head a task takes, and how many positions. Shapes alone decide, so that the number of
/// threads does not change the order of sums.
fn division(a: &Attention, positions: usize) -> (usize, usize) {
    /// Query rows (of all heads that share a key head) that go over a block of keys together.
    const ROWS: usize = 48;
    /// Positions of a task when rows alone do not give enough tasks.
    const SPLIT: usize = 512;
    let rows = (ROWS / (a.heads / a.kv_heads)).clamp(1, a.rows);
    let enough = a.rows.div_ceil(rows) * a.kv_heads >= 64;
    (rows, if enough { positions.max(1) } else { SPLIT })
}

/// Joins the parts of some rows in the order of positions, and divides by the sum of weights.
///
/// A state has, for each row of each head: the largest score, the sum of weights, the weighted sum of values.
fn merge(
    a: &Attention,
    kv_head: usize,
    rows: Range<usize>,
    states: &[f32],
    state_len: usize,
    out: &mut [f32],
    strides: [usize; 2],
) {
    let (group, entry) = (a.heads / a.kv_heads, a.value_dim + 2);
    for (at, row) in (0..group).flat_map(|g| rows.clone().map(move |row| (g, row))).enumerate() {
        let head = kv_head * group + row.0;
        let parts = || states.chunks_exact(state_len).map(|state| &state[at * entry..(at + 1) * entry]);
        let sink = a.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        let max = parts().fold(sink, |max, part| max.max(part[0]));
        let out = &mut out[head * strides[0] + row.1 * strides[1]..][..a.value_dim];
        out.fill(0.0);
        if max == f32::NEG_INFINITY {
            continue;
        }
        let mut total = (sink - max).exp();
        for part in parts().filter(|part| part[1] > 0.0 || part[1].is_nan()) {
            let weight = (part[0] - max).exp();
            total += weight * part[1];
            out.iter_mut().zip(&part[2..]).for_each(|(out, x)| *out += weight * x);
        }
        out.iter_mut().for_each(|out| *out /= total);
    }
}

/// The positions that each row can see at all.
struct Ranges {
    ranges: Vec<Range<usize>>,
    head_stride: usize,
    row_stride: usize,
    /// The end of the last range.
    last: usize,
}

impl Ranges {
    fn new(kernels: &Kernels, a: &Attention, mask: Mask) -> Ranges {
        let (heads, rows) = match mask {
            Mask::Ranges(ranges) => {
                assert!(ranges.len() == 1 || ranges.len() == a.rows, "{} ranges for {} rows", ranges.len(), a.rows);
                (1, ranges.len())
            }
            Mask::Additive { head_stride, row_stride, .. } | Mask::Bool { head_stride, row_stride, .. } => {
                (if head_stride == 0 { 1 } else { a.heads }, if row_stride == 0 { 1 } else { a.rows })
            }
        };
        let mut ranges = vec![0..0; heads * rows];
        // A row of the mask is scanned, which is worth a thread for `positions` elements and not for one.
        let per_task = (8192 / a.positions.max(1)).max(1);
        let shared = SharedMut::new(&mut ranges);
        kernels.pool.run((heads * rows).div_ceil(per_task), |task| {
            for at in task * per_task..(heads * rows).min((task + 1) * per_task) {
                // SAFETY: every task has entries of its own.
                unsafe { shared.slice(at, 1)[0] = mask.range(at / rows, at % rows, a.positions) };
            }
        });
        let last = ranges.iter().filter(|range| !range.is_empty()).map(|range| range.end).max().unwrap_or(0);
        Ranges { ranges, head_stride: if heads == 1 { 0 } else { rows }, row_stride: usize::from(rows > 1), last }
    }

    fn of(&self, head: usize, row: usize) -> Range<usize> {
        self.ranges[head * self.head_stride + row * self.row_stride].clone()
    }
}

impl Mask<'_> {
    /// The positions from the first to the last that row `row` of head `head` sees.
    fn range(&self, head: usize, row: usize, positions: usize) -> Range<usize> {
        match *self {
            Mask::Ranges(ranges) => ranges[row].start..ranges[row].end.min(positions),
            Mask::Bool { data, head_stride, row_stride } => {
                let entries = &data[head * head_stride + row * row_stride..][..positions];
                ends(entries, |&seen| seen)
            }
            Mask::Additive { data, head_stride, row_stride } => {
                let entries = &data[head * head_stride + row * row_stride..][..positions];
                let largest =
                    entries.iter().fold(f32::NEG_INFINITY, |max, &entry| if entry > max { entry } else { max });
                // NaN counts as seen, so that it shows in the result.
                ends(entries, |&entry| !(entry == f32::NEG_INFINITY || entry < largest - 9000.0))
            }
        }
    }
}

/// From the first to the last entry that `is_seen`.
fn ends<T>(entries: &[T], is_seen: impl Fn(&T) -> bool) -> Range<usize> {
    let first = entries.iter().position(&is_seen).unwrap_or(0);
    let end = entries.iter().rposition(&is_seen).map_or(first, |last| last + 1);
    first..end
}

impl Cache<'_> {
    /// The number of elements, and the strides of heads and positions.
    fn extent(&self) -> (usize, [usize; 2]) {
        match *self {
            Cache::F16 { data, head_stride, position_stride } => (data.len(), [head_stride, position_stride]),
            Cache::F32 { data, head_stride, position_stride } => (data.len(), [head_stride, position_stride]),
        }
    }
}

#[cfg(test)]
mod tests;
