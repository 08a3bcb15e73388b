//! Linear quantization: each element becomes an integer, `scale · (data - offset)` near it.
//!
//! The ranges are those of coremltools' `linear_quantize_weights`: symmetric modes use as many steps
//! below as above zero (int8: -127..127, uint8: 0..254 about 127), the asymmetric mode all steps of
//! the type and a range that contains zero. Unlike there, elements are quantized with the scale *as
//! stored*, so that rounding the scale costs no accuracy, and a block of zeros is zero again.

use crate::Float;
use crate::bits::BitWriter;
use crate::values::{Values, check_finite, check_shape, divisors, task_rows};
use quince_tensor::{Bytes, DType, Result, Tensor, Weight, bail};
use rayon::prelude::*;
use std::fmt;

/// How a weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearOptions {
    /// The type of the quantized elements.
    pub dtype: LinearDType,
    /// Whether the range is symmetric about zero.
    pub mode: LinearMode,
    /// What shares a scale.
    pub granularity: LinearGranularity,
    /// The type of the scales.
    pub scale: Float,
}

impl LinearOptions {
    /// The number of blocks along each axis of a weight of this shape.
    ///
    /// # Errors
    /// When the block size does not divide the axis.
    pub fn blocks(&self, shape: &[usize]) -> Result<Vec<usize>> {
        Ok(Blocks::new(shape, self.granularity)?.count)
    }

    /// The least and the greatest integer.
    pub(crate) fn limits(&self) -> [f64; 2] {
        let range = Range::new(self);
        [range.low, range.high]
    }

    /// Whether there are offsets.
    pub fn has_offset(&self) -> bool {
        Range::new(self).has_offset
    }
}

/// The type of quantized elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it all.
pub enum LinearDType {
    Int4,
    UInt4,
    Int8,
    UInt8,
}

/// Where the range of quantized elements lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearMode {
    /// `linear_symmetric`: symmetric about zero; no offset for signed types.
    Symmetric,
    /// The same with the range whose squared error is least, which need not reach the greatest element.
    SymmetricClipped,
    /// `linear`: from the least to the greatest element or zero, with an offset.
    Asymmetric,
}

impl fmt::Display for LinearMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinearMode::Symmetric => "symmetric",
            LinearMode::SymmetricClipped => "symmetric with clipping",
            LinearMode::Asymmetric => "asymmetric",
        })
    }
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearGranularity {
    /// The whole weight.
    PerTensor,
    /// Each index along `axis`; 0 for the output channels of `linear` and `conv`.
    PerChannel {
        /// The axis of output channels.
        axis: usize,
    },
    /// Each output channel and, within it, each `block_size` neighbours along the input channels.
    PerBlock {
        /// The axis of output channels; 0 for `linear` and `conv`.
        output_axis: usize,
        /// The axis of input channels, which is divided; 1 for `linear` and `conv`.
        input_axis: usize,
        /// Must divide the dimension of the input axis.
        block_size: usize,
    },
}

/// The arguments of `constexpr_blockwise_shift_scale` (iOS 18).
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The quantized elements in the shape of the weight.
    pub data: Tensor,
    /// Same rank as the weight: the number of blocks along each axis.
    pub scale: Tensor,
    /// In the shape of `scale` and of the type of `data`; none for signed symmetric types.
    pub offset: Option<Tensor>,
    /// The sum of squared differences between the weight and `scale · (data - offset)`, before that is rounded to the
    /// type of the scale.
    pub sse: f64,
}

/// Quantizes `weight`, the same for any number of threads.
///
/// # Errors
/// When an element is not finite, the block size does not divide the axis, a scale is beyond the range of its type, or
/// the weight cannot be read.
pub fn quantize_linear(weight: &Weight, options: &LinearOptions) -> Result<Quantized> {
    check_shape(weight.shape())?;
    let blocks = Blocks::new(weight.shape(), options.granularity)?;
    let range = Range::new(options);
    let (bits, dtype) = (options.dtype.dtype().bits(), options.dtype.dtype());
    // Where a block spans all rows, the rows are read for the scales first, then for the elements.
    let shared = match blocks.count[0] {
        1 => Some(all_scales(weight, &blocks, &range, options.scale)?),
        _ => None,
    };
    let rows = task_rows(blocks.row_len(), if shared.is_some() { 1 } else { blocks.size[0] }, bits);
    let mut data = vec![0u8; (weight.len() * bits).div_ceil(8)];
    let tasks = data.par_chunks_mut(rows * blocks.row_len() * bits / 8).enumerate().map(|(task, out)| {
        let first = task * rows;
        let tensor = weight.rows(first..(first + rows).min(weight.shape()[0]))?.aligned();
        let values = Values::new(&tensor)?;
        let mut out = BitWriter::new(out, bits);
        if let Some(scales) = &shared {
            return Ok((Vec::new(), blocks.quantize(values, scales, &range, &mut out)));
        }
        let extremes = blocks.extremes(values, first * blocks.row_len())?;
        let mut scales = range.scales(&extremes, options.scale)?;
        if range.mode == LinearMode::SymmetricClipped {
            let costs = blocks.clipping_costs(values, &range.clipped(&extremes, options.scale)?, &range);
            scales = range.cheapest(&extremes, &costs, options.scale)?;
        }
        let sse = blocks.quantize(values, &scales, &range, &mut out);
        Ok((scales, sse))
    });
    let tasks = tasks.collect::<Result<Vec<_>>>()?;
    let sse = tasks.iter().map(|task| task.1).sum();
    let scales = shared.unwrap_or_else(|| tasks.into_iter().flat_map(|task| task.0).collect());
    let offsets: Vec<i64> = scales.iter().map(|s| s.offset as i64).collect();
    Ok(Quantized {
        data: Tensor::new(dtype, weight.shape(), Bytes::from_vec(data))?,
        offset: range.has_offset.then(|| Tensor::from_i64(dtype, blocks.count.clone(), &offsets)).transpose()?,
        scale: options.scale.tensor(blocks.count, scales.iter().map(|s| s.scale).collect())?,
        sse,
    })
}

impl LinearDType {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Self::Int4 => DType::I4,
            Self::UInt4 => DType::U4,
            Self::Int8 => DType::I8,
            Self::UInt8 => DType::U8,
        }
    }
}

/// The integers that elements may become.
struct Range {
    low: f64,
    high: f64,
    mode: LinearMode,
    has_offset: bool,
    /// The bits of a stored integer.
    mask: u8,
}

/// Ranges that are tried when clipping: the whole, and ever smaller shares of it.
const CLIPS: usize = 26;

/// The share of the whole range: 1, 0.97, ... 0.25.
fn share(clip: usize) -> f64 {
    1.0 - 0.03 * clip as f64
}

/// What one block shares.
#[derive(Clone, Copy)]
struct Scale {
    scale: f64,
    offset: f64,
}

/// The least and the greatest element of a block.
#[derive(Clone, Copy)]
struct Extremes {
    low: f32,
    high: f32,
}

impl Extremes {
    const NONE: Self = Self { low: f32::INFINITY, high: f32::NEG_INFINITY };

    fn join(&mut self, other: Self) {
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }
}

impl Range {
    fn new(options: &LinearOptions) -> Self {
        let steps = (1u32 << options.dtype.dtype().bits()) - 1;
        let signed = !options.dtype.dtype().is_unsigned();
        let symmetric = options.mode != LinearMode::Asymmetric;
        let low = if signed { -f64::from(steps / 2) } else { 0.0 };
        let (low, high) = match (symmetric, signed) {
            (true, true) => (low, -low),
            (true, false) => (low, f64::from(steps - 1)),
            (false, true) => (low - 1.0, -low),
            (false, false) => (low, f64::from(steps)),
        };
        Self { low, high, mode: options.mode, has_offset: !(symmetric && signed), mask: steps as u8 }
    }

    fn scales(&self, extremes: &[Extremes], float: Float) -> Result<Vec<Scale>> {
        extremes.iter().map(|e| self.scale(f64::from(e.low), f64::from(e.high), float)).collect()
    }

    /// The scales that are tried for each block.
    fn clipped(&self, extremes: &[Extremes], float: Float) -> Result<Vec<[Scale; CLIPS]>> {
        let block = |e: &Extremes| {
            let mut scales = [Scale { scale: 1.0, offset: 0.0 }; CLIPS];
            for (clip, scale) in scales.iter_mut().enumerate() {
                *scale = self.scale(f64::from(e.low) * share(clip), f64::from(e.high) * share(clip), float)?;
            }
            Ok(scales)
        };
        extremes.iter().map(block).collect()
    }

    /// Of the scales that were tried for each block the one of least cost; of equal ones the widest.
    fn cheapest(&self, extremes: &[Extremes], costs: &[[f64; CLIPS]], float: Float) -> Result<Vec<Scale>> {
        let candidates = self.clipped(extremes, float)?;
        let best = candidates.into_iter().zip(costs).map(|(scales, costs)| {
            let best = (1..CLIPS).fold(0, |best, clip| if costs[clip] < costs[best] { clip } else { best });
            scales[best]
        });
        Ok(best.collect())
    }

    /// The integer for a value.
    #[inline(always)]
    fn code(&self, value: f64, Scale { scale, offset }: Scale) -> f64 {
        (round(value / scale) + offset).clamp(self.low, self.high)
    }

    /// The scale and offset of a block whose elements lie between `low` and `high`.
    fn scale(&self, low: f64, high: f64, float: Float) -> Result<Scale> {
        let (low, high) = match self.mode {
            LinearMode::Asymmetric => (low.min(0.0), high.max(0.0)),
            LinearMode::Symmetric | LinearMode::SymmetricClipped => (low.min(-high), high.max(-low)),
        };
        let scale = float.cover((high - low) / (self.high - self.low), self.high - self.low)?;
        let offset = match self.mode {
            LinearMode::Asymmetric => round(self.low - low / scale).clamp(self.low, self.high),
            LinearMode::Symmetric | LinearMode::SymmetricClipped => (self.low + self.high) / 2.0,
        };
        Ok(Scale { scale, offset })
    }
}

/// A weight divided into blocks of one size along each axis.
struct Blocks {
    shape: Vec<usize>,
    size: Vec<usize>,
    count: Vec<usize>,
    /// Elements of a block that lie one after the other.
    run: usize,
}

impl Blocks {
    fn new(shape: &[usize], granularity: LinearGranularity) -> Result<Self> {
        let mut size = shape.to_vec();
        let mut divide = |axis: usize, block: usize| match shape.get(axis) {
            None => bail!("axis {axis} is not an axis of a weight of shape {shape:?}"),
            Some(&dim) if block == 0 || !dim.is_multiple_of(block) => bail!(
                "block size {block} does not divide dimension {dim} of axis {axis}";
                hint: "sizes that do: {}", divisors(dim)
            ),
            Some(_) => {
                size[axis] = block;
                Ok(())
            }
        };
        match granularity {
            LinearGranularity::PerTensor => {}
            LinearGranularity::PerChannel { axis } => divide(axis, 1)?,
            LinearGranularity::PerBlock { output_axis, input_axis, block_size } => {
                divide(output_axis, 1)?;
                divide(input_axis, block_size)?;
            }
        }
        let count = shape.iter().zip(&size).map(|(dim, size)| dim / size).collect::<Vec<_>>();
        let divided = count.iter().rposition(|&count| count > 1).unwrap_or(0);
        let run = size[divided..].iter().product();
        Ok(Self { shape: shape.to_vec(), size, count, run })
    }

    fn row_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// The block of each run of whole rows of blocks, the first of which is block 0.
    fn block_of_run(&self, run: usize) -> usize {
        let (mut rest, mut block, mut stride) = (run * self.run, 0, 1);
        for axis in (0..self.shape.len()).rev() {
            let dim = if axis == 0 { usize::MAX } else { self.shape[axis] };
            block += rest % dim / self.size[axis] * stride;
            rest /= dim;
            stride *= self.count[axis];
        }
        block
    }

    /// Blocks that begin in `len` elements of whole rows of blocks.
    fn blocks_in(&self, len: usize) -> usize {
        let rows = len / self.row_len();
        rows.div_ceil(self.size[0]) * self.count[1..].iter().product::<usize>()
    }

    /// The extremes of each block of some rows, of which the first element is `first` of the weight.
    fn extremes(&self, values: Values<'_>, first: usize) -> Result<Vec<Extremes>> {
        let mut extremes = vec![Extremes::NONE; self.blocks_in(values.len())];
        let mut buffer = Vec::new();
        for (run, start) in (0..values.len()).step_by(self.run).enumerate() {
            let values = values.slice(start..(start + self.run).min(values.len())).to_f32(&mut buffer);
            let low = values.iter().fold(f32::INFINITY, |low, &v| low.min(v));
            let high = values.iter().fold(f32::NEG_INFINITY, |high, &v| high.max(v));
            check_finite(values, first + start)?;
            extremes[self.block_of_run(run)].join(Extremes { low, high });
        }
        Ok(extremes)
    }

    /// The sum of squared errors in each block of some rows, for each of its scales.
    fn clipping_costs(&self, values: Values<'_>, scales: &[[Scale; CLIPS]], range: &Range) -> Vec<[f64; CLIPS]> {
        let mut costs = vec![[0.0; CLIPS]; scales.len()];
        let mut buffer = Vec::new();
        for (run, start) in (0..values.len()).step_by(self.run).enumerate() {
            let values = values.slice(start..(start + self.run).min(values.len())).to_f32(&mut buffer);
            let block = self.block_of_run(run);
            for (cost, &scale) in costs[block].iter_mut().zip(&scales[block]) {
                let error = |&value: &f32| {
                    let value = f64::from(value);
                    let error = value - scale.scale * (range.code(value, scale) - scale.offset);
                    error * error
                };
                *cost += values.iter().map(error).sum::<f64>();
            }
        }
        costs
    }

    /// Writes the integers of some rows; returns the sum of squared errors.
    fn quantize(&self, values: Values<'_>, scales: &[Scale], range: &Range, out: &mut BitWriter<'_>) -> f64 {
        let mut buffer = Vec::new();
        let mut sse = 0.0;
        for (run, start) in (0..values.len()).step_by(self.run).enumerate() {
            let values = values.slice(start..(start + self.run).min(values.len())).to_f32(&mut buffer);
            let scale = scales[self.block_of_run(run)];
            out.extend(values, |value| {
                let value = f64::from(value);
                let code = range.code(value, scale);
                let error = value - scale.scale * (code - scale.offset);
                sse += error * error;
                code as i32 as u8 & range.mask
            });
        }
        sse
    }
}

/// The scale of each block, where a block spans all rows.
fn all_scales(weight: &Weight, blocks: &Blocks, range: &Range, float: Float) -> Result<Vec<Scale>> {
    let mut extremes = vec![Extremes::NONE; blocks.blocks_in(weight.len())];
    for task in by_tasks(weight, blocks, |values, first| blocks.extremes(values, first))? {
        extremes.iter_mut().zip(task).for_each(|(a, b)| a.join(b));
    }
    if range.mode != LinearMode::SymmetricClipped {
        return range.scales(&extremes, float);
    }
    let candidates = range.clipped(&extremes, float)?;
    let mut costs = vec![[0.0; CLIPS]; extremes.len()];
    // Sums are taken in the order of the rows, whichever thread is done first.
    for task in by_tasks(weight, blocks, |values, _| Ok(blocks.clipping_costs(values, &candidates, range)))? {
        for (sum, cost) in costs.iter_mut().zip(task) {
            sum.iter_mut().zip(cost).for_each(|(sum, cost)| *sum += cost);
        }
    }
    range.cheapest(&extremes, &costs, float)
}

/// What `run` makes of some rows at a time, of which it is told the first element, in their order.
fn by_tasks<T: Send>(
    weight: &Weight,
    blocks: &Blocks,
    run: impl Fn(Values<'_>, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let rows = task_rows(blocks.row_len(), 1, 8);
    let total = weight.shape()[0];
    let tasks = (0..total.div_ceil(rows)).into_par_iter().map(|task| {
        let tensor = weight.rows(task * rows..((task + 1) * rows).min(total))?.aligned();
        run(Values::new(&tensor)?, task * rows * blocks.row_len())
    });
    tasks.collect()
}

/// Rounds to the nearest integer, ties to even, for magnitudes below 2^51; `round_ties_even` is a call of a library
/// function on processors of 2003, for which release builds are made.
fn round(value: f64) -> f64 {
    const INTEGERS: f64 = 1.5 * (1u64 << 52) as f64;
    (value + INTEGERS) - INTEGERS
}

#[cfg(test)]
mod tests;
