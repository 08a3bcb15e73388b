//! Attention over a key-value cache, with grouped queries, masks, softcap and sinks.

use std::ops::Range;

use half::f16;

use super::Kernels;

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
/// # Panics
/// When heads, rows or positions are not inside their slices.
pub fn attention(kernels: &Kernels, attention: &Attention, q: Heads, k: Cache, v: Cache, mask: Mask, out: HeadsMut) {
    let _ = kernels;
    reference(attention, q, k, v, mask, out);
}

/// The definition, in the order of the formula and in f64.
fn reference(a: &Attention, q: Heads, k: Cache, v: Cache, mask: Mask, out: HeadsMut) {
    for head in 0..a.heads {
        let kv_head = head / (a.heads / a.kv_heads);
        for row in 0..a.rows {
            let query = &q.data[head * q.head_stride + row * q.row_stride..][..a.dim];
            let mut weights: Vec<f64> = (0..a.positions)
                .map(|p| {
                    let dot: f64 =
                        query.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(k.get(kv_head, p, i))).sum();
                    let score = dot * f64::from(a.scale);
                    let score = a.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    score + mask.entry(head, row, p)
                })
                .collect();
            let sink = a.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
            let max = weights.iter().fold(sink, |max, &w| max.max(w));
            let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
            weights.iter_mut().for_each(|w| *w = (*w - max).exp());
            let total: f64 = weights.iter().sum::<f64>() + (sink - max).exp();
            let result = &mut out.data[head * out.head_stride + row * out.row_stride..][..a.value_dim];
            for (i, result) in result.iter_mut().enumerate() {
                let sum: f64 = weights.iter().enumerate().map(|(p, w)| w * f64::from(v.get(kv_head, p, i))).sum();
                *result = if total > 0.0 { (sum / total) as f32 } else { 0.0 };
            }
        }
    }
}

impl Cache<'_> {
    fn get(&self, head: usize, position: usize, i: usize) -> f32 {
        match *self {
            Cache::F16 { data, head_stride, position_stride } => {
                data[head * head_stride + position * position_stride + i].to_f32()
            }
            Cache::F32 { data, head_stride, position_stride } => {
                data[head * head_stride + position * position_stride + i]
            }
        }
    }
}

impl Mask<'_> {
    fn entry(&self, head: usize, row: usize, position: usize) -> f64 {
        let seen = |seen| if seen { 0.0 } else { f64::NEG_INFINITY };
        match *self {
            Mask::Ranges(ranges) => seen(ranges[row.min(ranges.len() - 1)].contains(&position)),
            Mask::Additive { data, head_stride, row_stride } => {
                f64::from(data[head * head_stride + row * row_stride + position])
            }
            Mask::Bool { data, head_stride, row_stride } => {
                seen(data[head * head_stride + row * row_stride + position])
            }
        }
    }
}
