//! Products of few rows of activations with packed weights, straight from the packed bytes.
//!
//! A thread reads one stream of rows. Plain numbers are multiplied as they are; other encodings go through an integer
//! kernel where the instruction set has one and the program's accuracy allows it, else through a short f32 buffer.

use std::ops::Range;

use half::f16;

use super::dequantize::dequantize_generic;
use super::linear::Accuracy;
use super::quantize::{Order, Quantized};
use super::simd::{Simd, for_isa, prefetch};
use super::weights::{Encoding, Floats, PackedWeight};
use super::{Isa, Kernels, SharedMut};

/// The left side of decode products: `[m, k]`, and what integer kernels need of it.
pub(crate) struct Activations<'a> {
    x: &'a [f32],
    m: usize,
    k: usize,
    /// One for each order that a weight asks for.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has integer kernels"))]
    quantized: Vec<Quantized>,
}

impl<'a> Activations<'a> {
    /// Prepares `x` for products with `weights`, which all have its number of columns.
    pub(crate) fn new<'w>(
        kernels: &Kernels,
        accuracy: Accuracy,
        x: &'a [f32],
        m: usize,
        weights: impl Iterator<Item = &'w PackedWeight>,
    ) -> Activations<'a> {
        let k = x.len() / m;
        let mut quantized: Vec<Quantized> = Vec::new();
        if accuracy != Accuracy::Exact {
            for order in weights.filter_map(|weight| integer_order(kernels.isa, weight)) {
                if quantized.iter().all(|quantized| quantized.order != order) {
                    quantized.push(Quantized::new(&kernels.pool, order, x, k));
                }
            }
        }
        Activations { x, m, k, quantized }
    }
}

/// Most rows of activations that are multiplied with packed bytes as they stream by.
pub const FEW_ROWS: usize = 12;

/// The order of activations for the integer kernel of `weight`, if there is one.
fn integer_order(isa: Isa, weight: &PackedWeight) -> Option<Order> {
    #[cfg(target_arch = "x86_64")]
    return super::gemv_x86::order(isa, weight);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (isa, weight);
        None
    }
}

/// Computes the columns `rows` of `y[m, N] = x · weightᵀ + bias`.
pub(crate) fn multiply_rows(
    isa: Isa,
    activations: &Activations,
    weight: &PackedWeight,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    y: &SharedMut<f32>,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(order) = integer_order(isa, weight)
        && let Some(x) = activations.quantized.iter().find(|quantized| quantized.order == order)
    {
        let product = super::gemv_x86::Product { weight, x, m: activations.m, bias, y };
        // SAFETY: an order is given only for instruction sets that have what the kernel needs, it is the order of
        // this weight, and a task writes the columns of its own rows of the weight.
        return unsafe { super::gemv_x86::multiply_rows(&product, rows) };
    }
    for_isa!(isa, rows_generic(activations: &Activations = activations, weight: &PackedWeight = weight,
        rows: Range<usize> = rows, bias: Option<&[f32]> = bias, y: &SharedMut<f32> = y));
}

// SAFETY of the functions below: the caller vouches for the instructions of `S`; accesses stay inside the slices.

/// [`multiply_rows`] for encodings without an integer kernel; no other thread writes the same columns.
#[inline(always)]
unsafe fn rows_generic<S: Simd>(
    activations: &Activations,
    weight: &PackedWeight,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    y: &SharedMut<f32>,
) {
    let (n, m) = (weight.rows(), activations.m);
    let mut results = [0.0f32; FEW_ROWS];
    for row in rows {
        unsafe {
            row_generic::<S>(weight, row, activations.x, activations.k, &mut results[..m]);
            for (i, &result) in results[..m].iter().enumerate() {
                y.slice(i * n + row, 1)[0] = result + bias.map_or(0.0, |bias| bias[row]);
            }
        }
    }
}

/// How many bytes ahead of its use a row is asked for: the row that follows goes on where this one ends.
pub(crate) const PREFETCH: usize = 4096;

/// The products of all rows of `x` with one row of the weight.
#[inline(always)]
unsafe fn row_generic<S: Simd>(weight: &PackedWeight, row: usize, x: &[f32], k: usize, results: &mut [f32]) {
    let at = row * k..(row + 1) * k;
    unsafe {
        match weight.encoding() {
            Encoding::Dense(Floats::F16(bytes)) => {
                let p = bytes[2 * at.start..2 * at.end].as_ptr().cast::<f16>();
                dot_rows::<S>(
                    k,
                    #[inline(always)]
                    |i, count| S::load_partial_or_full_f16(p.add(i), count),
                    ahead(p),
                    x,
                    k,
                    results,
                );
            }
            Encoding::Dense(Floats::F32(bytes)) => {
                let p = bytes[4 * at.start..4 * at.end].as_ptr().cast::<f32>();
                dot_rows::<S>(
                    k,
                    #[inline(always)]
                    |i, count| S::load_partial_or_full(p.add(i), count),
                    ahead(p),
                    x,
                    k,
                    results,
                );
            }
            Encoding::Lut(_) | Encoding::Affine(_) => {
                const CHUNK: usize = 1024;
                let mut values = [0.0f32; CHUNK];
                let mut sums = [0.0f32; FEW_ROWS];
                results.fill(0.0);
                for first in (0..k).step_by(CHUNK) {
                    let values = &mut values[..CHUNK.min(k - first)];
                    dequantize_generic::<S>(weight, row, first, values);
                    let p = values.as_ptr();
                    dot_rows::<S>(
                        values.len(),
                        #[inline(always)]
                        |i, count| S::load_partial_or_full(p.add(i), count),
                        |_| (),
                        &x[first..],
                        k,
                        &mut sums[..results.len()],
                    );
                    results.iter_mut().zip(&sums).for_each(|(result, sum)| *result += sum);
                }
            }
        }
    }
}

/// How many bytes ahead of their use plain numbers are asked for. They arrive as fast as they are used, so that more would
/// only push each other out.
const PREFETCH_PLAIN: usize = 1024;

/// Asks for what lies [`PREFETCH_PLAIN`] after some elements at `p`, each cache line once.
#[inline(always)]
fn ahead<T>(p: *const T) -> impl Fn(Range<usize>) {
    #[inline(always)]
    move |at: Range<usize>| {
        for line in (0..size_of::<T>() * at.len()).step_by(64) {
            prefetch(p.wrapping_add(at.start).wrapping_byte_add(PREFETCH_PLAIN + line));
        }
    }
}

/// Sums of `n` products of the loaded vectors with each row of `x`, of which row `i` starts at `i · stride`. What is about
/// to be loaded is asked for.
#[inline(always)]
unsafe fn dot_rows<S: Simd>(
    n: usize,
    load: impl Fn(usize, usize) -> S,
    ask: impl Fn(Range<usize>),
    x: &[f32],
    stride: usize,
    results: &mut [f32],
) {
    assert!(x.len() >= (results.len() - 1) * stride + n);
    let mut done = 0;
    unsafe {
        while done < results.len() {
            let p = x.as_ptr().add(done * stride);
            let left = results.len() - done;
            let results = &mut results[done..];
            done += match left {
                1 => dot::<S, 1, 4>(n, &load, &ask, p, stride, results),
                2 => dot::<S, 2, 2>(n, &load, &ask, p, stride, results),
                3 => dot::<S, 3, 1>(n, &load, &ask, p, stride, results),
                _ => dot::<S, 4, 1>(n, &load, &ask, p, stride, results),
            };
        }
    }
}

/// [`dot_rows`] of `M` rows with `SUMS` running sums each; returns `M`.
#[inline(always)]
unsafe fn dot<S: Simd, const M: usize, const SUMS: usize>(
    n: usize,
    load: &impl Fn(usize, usize) -> S,
    ask: &impl Fn(Range<usize>),
    x: *const f32,
    stride: usize,
    results: &mut [f32],
) -> usize {
    unsafe {
        let mut sums = [[S::splat(0.0); SUMS]; M];
        let mut i = 0;
        while i + SUMS * S::LANES <= n {
            ask(i..i + SUMS * S::LANES);
            for s in 0..SUMS {
                let w = load(i + s * S::LANES, S::LANES);
                for (r, sums) in sums.iter_mut().enumerate() {
                    sums[s] = w.mul_add(S::load(x.add(r * stride + i + s * S::LANES)), sums[s]);
                }
            }
            i += SUMS * S::LANES;
        }
        while i < n {
            let count = S::LANES.min(n - i);
            let w = load(i, count);
            for (r, sums) in sums.iter_mut().enumerate() {
                sums[0] = w.mul_add(S::load_partial_or_full(x.add(r * stride + i), count), sums[0]);
            }
            i += count;
        }
        for (result, sums) in results.iter_mut().zip(sums) {
            let mut sum = sums[0];
            sums[1..].iter().for_each(|&other| sum = sum.add(other));
            *result = sum.reduce_add();
        }
    }
    M
}
