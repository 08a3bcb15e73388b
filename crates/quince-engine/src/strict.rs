//! What fp16 hardware makes of a program ([`Precision::Strict`](crate::Precision::Strict)): every floating-point input,
//! constant and result is rounded to fp16, to nearest even and to infinity beyond 65504, whatever type the program
//! declares.
//!
//! Inside an operation arithmetic is f32, as in the accumulators of that hardware: the sums of products, norms, means
//! and softmax, and the scores of attention. What would be beyond fp16 there, were it kept in fp16, is counted as
//! `inside` and changes nothing. Elements of weights are rounded however they are stored. Subnormal numbers are kept.

use crate::kernels::{self, Kernels, Rhs};
use crate::memory::{Memory, Operand};
use crate::planner::Planner;
use quince_mil::{DType, Operation, Result, Tensor, Value};
use quince_tensor::f16;

/// What rounding to fp16 did to the elements of a value.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Rounding {
    /// Elements that became infinite: beyond 65504 before rounding, or infinite although nothing that went in was.
    pub overflowed: usize,
    /// Elements that are not numbers.
    pub nan: usize,
    /// Whether something that went in was not a number already.
    pub carried: bool,
    /// Elements that are subnormal in fp16, below 2⁻¹⁴ in magnitude, where digits are lost; none for operations that
    /// only move elements.
    pub subnormal: usize,
    /// Elements that became zero and were not; none for operations that only move elements.
    pub underflowed: usize,
    /// Numbers inside the operation that are beyond fp16: squares, sums, scores.
    pub inside: usize,
    /// The largest magnitude before rounding that is finite.
    pub largest: f32,
    /// Infinite elements before rounding.
    pub(crate) infinite: usize,
}

/// What a value holds that is no number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Marks {
    infinite: bool,
    nan: bool,
}

impl Marks {
    pub const ALL: Marks = Marks { infinite: true, nan: true };

    pub fn or(self, other: Marks) -> Marks {
        Marks { infinite: self.infinite || other.infinite, nan: self.nan || other.nan }
    }
}

/// The smallest f32 that rounds to infinity in fp16: half a unit beyond 65504.
const LIMIT: f32 = 65520.0;

/// fp16 constants of more elements are taken for weights, which nobody makes infinite.
const MAX_EXAMINED: usize = 1 << 20;

/// Whether the results of an operation are elements of what goes in: they were looked at where they were computed.
pub(crate) fn moves(kind: &str) -> bool {
    matches!(
        kind,
        "identity"
            | "reshape"
            | "reshape_like"
            | "expand_dims"
            | "squeeze"
            | "flatten2d"
            | "transpose"
            | "slice_by_index"
            | "slice_by_size"
            | "slice_update"
            | "split"
            | "concat"
            | "stack"
            | "tile"
            | "gather"
            | "gather_along_axis"
            | "gather_nd"
            | "scatter"
            | "scatter_along_axis"
            | "scatter_nd"
            | "select"
            | "pad"
            | "reverse"
            | "sliding_windows"
            | "read_state"
            | "split_heads"
            | "embedding"
            | "band_part"
            | "pixel_shuffle"
            | "pixel_unshuffle"
            | "space_to_depth"
            | "depth_to_space"
            | "max_pool"
            | "reduce_max"
            | "reduce_min"
            | "topk"
            | "relu"
            | "maximum"
            | "minimum"
            | "clip"
            | "abs"
    )
}

impl Rounding {
    /// Whether there is anything to tell.
    pub fn is_clean(&self) -> bool {
        self.overflowed == 0 && self.nan == 0 && self.subnormal == 0 && self.underflowed == 0 && self.inside == 0
    }

    /// Adds what rounding did to another value.
    pub(crate) fn add(&mut self, other: &Rounding) {
        self.overflowed += other.overflowed;
        // Where nothing is NaN, nothing is carried; that says nothing of where it is.
        self.carried &= other.carried || other.nan == 0;
        self.nan += other.nan;
        self.subnormal += other.subnormal;
        self.underflowed += other.underflowed;
        self.inside += other.inside;
        self.infinite += other.infinite;
        self.largest = self.largest.max(other.largest);
    }

    /// What the rounded value holds.
    pub(crate) fn marks(&self) -> Marks {
        Marks { infinite: self.overflowed > 0 || self.infinite > 0, nan: self.nan > 0 }
    }

    /// Sets what only the operation tells: `before` is what its arguments hold.
    pub(crate) fn judge(&mut self, before: Marks, inside: usize, moves: bool) {
        if before == Marks::default() {
            self.overflowed += self.infinite;
        }
        (self.carried, self.inside) = (before.nan && self.nan > 0, inside);
        if moves {
            (self.subnormal, self.underflowed) = (0, 0);
        }
    }

    /// Whether a constant of `len` elements is no longer itself.
    pub(crate) fn spoils(&self, len: usize) -> bool {
        self.overflowed > 0 || (len > 0 && self.underflowed == len)
    }
}

/// Rounds values to fp16.
pub(crate) fn round(kernels: &Kernels, values: &mut [f32]) -> Rounding {
    let mut found = Rounding::default();
    let mut half = [f16::ZERO; 1024];
    for values in values.chunks_mut(half.len()) {
        let half = &mut half[..values.len()];
        kernels::f32_to_f16(kernels, values, half);
        let (mut overflowed, mut infinite, mut nan, mut subnormal, mut zero) = (0u32, 0, 0, 0, 0);
        for (value, half) in values.iter().zip(&*half) {
            let (size, bits) = (value.abs(), half.to_bits() & 0x7fff);
            overflowed += u32::from(bits == 0x7c00 && size != f32::INFINITY);
            infinite += u32::from(size == f32::INFINITY);
            nan += u32::from(bits > 0x7c00);
            subnormal += u32::from(bits != 0 && bits < 0x0400);
            zero += u32::from(bits == 0 && size != 0.0);
            // Neither infinity nor what is no number is below the largest.
            found.largest = if size <= f32::MAX { found.largest.max(size) } else { found.largest };
        }
        found.overflowed += overflowed as usize;
        found.infinite += infinite as usize;
        found.nan += nan as usize;
        found.subnormal += subnormal as usize;
        found.underflowed += zero as usize;
        kernels::f16_to_f32(kernels, half, values);
    }
    found
}

/// What rounding makes of a constant, with its elements as they are. None if it is not of floating point, or large and
/// fp16 already.
pub(crate) fn constant(value: &Value) -> Result<Option<(Rounding, Tensor)>> {
    let Some(ty) = value.tensor_type().filter(|ty| ty.dtype.is_float()) else { return Ok(None) };
    let len = ty.dims().map_or(0, |dims| dims.iter().product());
    if ty.dtype == DType::F16 && len > MAX_EXAMINED {
        return Ok(None);
    }
    let tensor = value.tensor()?;
    let mut rounding = round(&Kernels::new(1), &mut tensor.to_f32()?);
    rounding.judge(Marks::ALL, 0, false);
    Ok(Some((rounding, tensor)))
}

/// A tensor as programs in fp16 have it; integers and truth values stay.
pub(crate) fn rounded(tensor: Tensor) -> Result<Tensor> {
    if tensor.dtype().is_float() { tensor.cast(DType::F16) } else { Ok(tensor) }
}

/// Numbers inside an operation that fp16 may not hold.
pub(crate) enum Inside {
    /// The sum before it is divided: so many times the result.
    Sum { count: f32 },
    /// The square of each result, which it is the root of.
    Root,
    /// The squares of what goes in.
    Squares { x: Operand },
    /// The squares of the distances from the mean of each row.
    Centered { x: Operand, width: usize },
    /// The scores of attention: heads, rows and columns of scores, and the sizes that go with them.
    Scores { query: Operand, key: Operand, sizes: [usize; 4] },
}

impl Inside {
    /// What there is inside an operation, if anything.
    pub fn of(planner: &mut Planner, operation: &Operation) -> Result<Option<Inside>> {
        let (Some(x), [out, ..]) = (operation.var("x").or(operation.var("query")), &operation.outputs[..]) else {
            return Ok(None);
        };
        let (shape, results) = (planner.shape(x)?, planner.shape(*out)?.iter().product::<usize>());
        let len: usize = shape.iter().product();
        Ok(Some(match operation.op_name() {
            "reduce_mean" if results > 0 => Inside::Sum { count: (len / results).max(1) as f32 },
            "reduce_l2_norm" => Inside::Root,
            "reduce_sum_square" | "l2_norm" | "rms_norm" => Inside::Squares { x: planner.operand(x)? },
            "layer_norm" | "instance_norm" => {
                let rank = shape.len() as i64;
                let axes = planner.ints(operation, "axes").unwrap_or_else(|| (2..rank).collect());
                let axes: Vec<i64> = axes.into_iter().map(|axis| if axis < 0 { axis + rank } else { axis }).collect();
                let first = axes.iter().copied().min().unwrap_or(rank).clamp(0, rank);
                if rank - first != axes.len() as i64 {
                    return Ok(None);
                }
                Inside::Centered { x: planner.operand(x)?, width: shape[first as usize..].iter().product() }
            }
            "scaled_dot_product_attention" => {
                let (Some(key), [outer @ .., rows, dim]) = (operation.var("key"), &shape[..]) else { return Ok(None) };
                let key_shape = planner.shape(key)?;
                let [key_outer @ .., positions, _] = &key_shape[..] else { return Ok(None) };
                if key_outer != outer {
                    return Ok(None);
                }
                let sizes = [outer.iter().product(), *rows, *positions, *dim];
                Inside::Scores { query: planner.operand(x)?, key: planner.operand(key)?, sizes }
            }
            _ => return Ok(None),
        }))
    }

    /// How many numbers are beyond fp16; the result of the operation is the first `len` elements of a buffer.
    pub fn count(&self, memory: &Memory, id: usize, len: usize) -> Result<usize> {
        let result = &memory.buffers[id][..len];
        let beyond = |values: &[f32], f: &dyn Fn(f32) -> f32| {
            // What is infinite or no number already is told where it came from.
            values.iter().filter(|v| v.is_finite() && f(**v).abs() >= LIMIT).count()
        };
        Ok(match self {
            Inside::Sum { count } => beyond(result, &|v| v * count),
            Inside::Root => beyond(result, &|v| v * v),
            Inside::Squares { x } => beyond(memory.get(x), &|v| v * v),
            Inside::Centered { x, width } => {
                let rows = memory.get(x).chunks_exact((*width).max(1));
                rows.map(|row| {
                    let mean = (row.iter().map(|&v| f64::from(v)).sum::<f64>() / *width as f64) as f32;
                    beyond(row, &|v| (v - mean) * (v - mean))
                })
                .sum()
            }
            Inside::Scores { query, key, sizes } => scores(memory, memory.get(query), memory.get(key), *sizes),
        })
    }
}

/// How many scores `query · key / √dim` are beyond fp16.
fn scores(memory: &Memory, query: &[f32], key: &[f32], [heads, rows, positions, dim]: [usize; 4]) -> usize {
    let scale = 1.0 / (dim as f32).sqrt();
    let longest = |rows: &[f32]| {
        let squares = rows.chunks_exact(dim.max(1)).map(|row| row.iter().map(|v| v * v).sum::<f32>());
        squares.fold(0f32, f32::max).sqrt()
    };
    // No product is larger than the product of the lengths: that is nearly always enough to know.
    if dim == 0 || longest(query) * longest(key) * scale < LIMIT {
        return 0;
    }
    let mut found = 0;
    let mut scores = vec![0f32; rows * positions];
    for head in 0..heads {
        let (q, k) = (&query[head * rows * dim..][..rows * dim], &key[head * positions * dim..][..positions * dim]);
        kernels::matmul(memory.kernels, Rhs::Transposed, 1, [rows, positions, dim], q, k, &mut scores);
        found += scores.iter().filter(|score| score.is_finite() && (*score * scale).abs() >= LIMIT).count();
    }
    found
}
