//! Integer products of prefill for x86-64: many rows of activations with a packed weight.
//!
//! Both sides become integers of 13 bits, or of 8 where the accuracy allows it and the machine multiplies them faster,
//! that share a scale within a block of a row. The innermost loop multiplies the integers in the lanes of 32 bits
//! and adds them, which is exact, at twice to eight times the rate of f32; a block's sum is scaled to f32. Activations
//! lie across the lanes: they are laid out once for a product, while rows of the weight are unpacked in their own order,
//! a task at a time, and broadcast.

use std::arch::x86_64::{__m256i, __m512i};
use std::ops::Range;

use super::Isa;
use super::SharedMut;
use super::linear::Accuracy;
use super::scratch::{Scratch, with_scratch};
use super::simd::Simd;
use super::weights::PackedWeight;

mod lanes;
mod panels;
mod unpack;

use lanes::{Avx2Bytes, Integer, Lanes, Vnni, VnniBytes};
pub(crate) use panels::Panels;
use panels::panel_of;
use unpack::{STRIDE, Unpacked};

/// Terms that are unpacked together: a whole number of those that share a scale ([`Integer::BLOCK`]).
const UNIT: usize = 128;
/// Scales that a row has room for in [`DEPTH`] terms.
const SCALES: usize = DEPTH / 64;
/// Terms that a task unpacks at a time: the activations of a tile stay in the first-level cache.
const DEPTH: usize = 512;
/// Rows of a weight that a task computes: unpacked, they stay in the second-level cache.
pub(crate) const TASK_ROWS: usize = 48;
/// Rows of activations that are laid out at a time, so that a task's sums stay in the second-level cache.
pub(crate) const MOST_ROWS: usize = 512;

/// An innermost product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    /// Words of 16 bits with AVX2.
    Avx2,
    /// Seven bits with AVX2.
    Avx2Bytes,
    /// Words of 16 bits with AVX-512.
    Avx512,
    /// Words of 16 bits with AVX-512 VNNI.
    Vnni,
    /// Bytes with AVX-512 VNNI.
    VnniBytes,
}

impl Method {
    /// The fastest one that an instruction set has and an accuracy allows.
    pub(crate) fn of(isa: Isa, accuracy: Accuracy) -> Option<Method> {
        let vnni = is_x86_feature_detected!("avx512vnni");
        match (isa, accuracy) {
            (_, Accuracy::Exact) => None,
            (Isa::Avx512, Accuracy::Fast) if vnni => Some(Method::VnniBytes),
            (Isa::Avx512, _) if vnni => Some(Method::Vnni),
            (Isa::Avx512, _) => Some(Method::Avx512),
            (Isa::Avx2, Accuracy::Fast) => Some(Method::Avx2Bytes),
            (Isa::Avx2, _) => Some(Method::Avx2),
            _ => None,
        }
    }
}

/// A product `y[m, N] = x[m, K] · weightᵀ + bias` of which some columns are computed.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a PackedWeight,
    pub(crate) x: &'a Panels,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) y: &'a SharedMut<f32>,
    /// The first of the rows of `y` that belong to `x`.
    pub(crate) first: usize,
}

thread_local! {
    static TASK: Scratch = const { Scratch::new(Vec::new()) };
}

/// Computes the columns `rows`, at most [`TASK_ROWS`], of the product.
///
/// # Safety
/// The machine has what [`Method::of`] was asked for; no other thread writes the same columns.
pub(crate) unsafe fn multiply_rows(product: &Product, rows: Range<usize>) {
    with_scratch(&TASK, Unpacked::LEN + TASK_ROWS * product.x.padded_m, |memory| {
        let (unpacked, sums) = memory.split_at_mut(Unpacked::LEN);
        let mut task = Task { product, rows, unpacked: Unpacked::new(unpacked), sums };
        // SAFETY: as the caller vouches.
        unsafe {
            match product.x.method {
                Method::Avx2 => avx2(&mut task),
                Method::Avx2Bytes => avx2_bytes(&mut task),
                Method::Avx512 => avx512(&mut task),
                Method::Vnni => vnni(&mut task),
                Method::VnniBytes => vnni_bytes(&mut task),
            }
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn avx2(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<__m256i, 6>() }
}

#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn avx2_bytes(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<Avx2Bytes, 4>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn avx512(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<__m512i, 12>() }
}

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn vnni(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<Vnni, 12>() }
}

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn vnni_bytes(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<VnniBytes, 12>() }
}

/// Some rows of a weight.
struct Task<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    unpacked: Unpacked<'a>,
    /// Of their products, `[rows, padded_m]`.
    sums: &'a mut [f32],
}

// SAFETY of the functions below: the caller vouches for the instructions of `P`; what else they need is said where
// they access memory.

impl Task<'_> {
    #[inline(always)]
    unsafe fn run<P: Lanes, const TILE: usize>(&mut self) {
        let Product { weight, x, bias, .. } = *self.product;
        for (sums, row) in self.sums.chunks_exact_mut(x.padded_m).zip(self.rows.clone()) {
            sums.fill(bias.map_or(0.0, |bias| bias[row]));
        }
        for first in (0..x.k).step_by(DEPTH) {
            let columns = first..x.k.min(first + DEPTH);
            unsafe { self.unpacked.fill::<P>(weight, self.rows.clone(), columns.clone()) };
            let block = P::Integer::BLOCK;
            unsafe { self.multiply::<P, TILE>(columns.start / block..columns.end.div_ceil(block)) };
        }
        unsafe { self.store::<P::Floats>() };
    }

    /// Adds the products of some blocks.
    #[inline(always)]
    unsafe fn multiply<P: Lanes, const TILE: usize>(&mut self, blocks: Range<usize>) {
        let x = self.product.x;
        let mut first = 0;
        while first < x.padded_m {
            let (_, width) = panel_of(first, x.padded_m, 2 * P::Floats::LANES);
            for row in (0..self.rows.len()).step_by(TILE) {
                // A tile may go beyond the rows: what it finds and leaves there nobody reads.
                let tile = Tile { unpacked: &self.unpacked, row, x, first, width, blocks: blocks.clone() };
                let sums = &mut self.sums[row * x.padded_m..(row + TILE) * x.padded_m];
                unsafe {
                    match width == P::Floats::LANES {
                        true => tile.add::<P, 1, TILE>(sums),
                        false => tile.add::<P, 2, TILE>(sums),
                    }
                }
            }
            first += width;
        }
    }

    /// Writes the sums to their places, of which those of one row of activations follow each other.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self) {
        let Product { weight, x, y, first, .. } = *self.product;
        let (n, rows) = (weight.rows(), self.rows.len());
        let whole = rows / 8 * 8;
        for row in 0..x.m {
            // SAFETY: tasks write different columns.
            let y = unsafe { y.slice((first + row) * n + self.rows.start, rows) };
            if row % 8 == 0 && row + 8 <= x.m {
                for col in (0..whole).step_by(8) {
                    // SAFETY: eight rows of `y` follow at distances of `n`; all their columns are this task's.
                    unsafe {
                        S::transpose8(
                            self.sums[col * x.padded_m + row..].as_ptr(),
                            x.padded_m,
                            y[col..].as_mut_ptr(),
                            n,
                        )
                    };
                }
            }
            let done = if row / 8 * 8 + 8 <= x.m { whole } else { 0 };
            for (col, y) in y.iter_mut().enumerate().skip(done) {
                *y = self.sums[col * x.padded_m + row];
            }
        }
    }
}

/// The innermost product: rows of a weight from `row`, with a panel of activations.
struct Tile<'a> {
    unpacked: &'a Unpacked<'a>,
    row: usize,
    x: &'a Panels,
    /// The first row of the panel.
    first: usize,
    /// Rows of the panel.
    width: usize,
    blocks: Range<usize>,
}

impl Tile<'_> {
    /// Adds the products of `ROWS` rows with `VECTORS` vectors of activations to `sums`, `[ROWS, padded_m]`.
    #[inline(always)]
    unsafe fn add<P: Lanes, const VECTORS: usize, const ROWS: usize>(&self, sums: &mut [f32]) {
        let (x, lanes) = (self.x, P::Floats::LANES);
        debug_assert_eq!(self.width, VECTORS * lanes);
        // Lanes that a row has in a block.
        let depth = P::Integer::BLOCK / P::Integer::TERMS;
        let weights = self.unpacked.lanes_of(self.row);
        let blocks_of = self.row * SCALES..;
        let (scales, starts) = (&self.unpacked.scales[blocks_of.clone()], &self.unpacked.starts[blocks_of]);
        for (at, block) in self.blocks.clone().enumerate() {
            let panel = x.panel::<P::Integer>(self.first, self.width, block);
            let x_scales = &x.scales[block * x.padded_m + self.first..][..self.width];
            // SAFETY: the panel has `depth` vectors `VECTORS` times, and `ROWS` rows of weights as many lanes.
            unsafe {
                let mut begun = [[P::splat(0); VECTORS]; ROWS];
                for (row, begun) in begun.iter_mut().enumerate() {
                    *begun = [P::splat(starts[row * SCALES + at]); VECTORS];
                }
                // Copied before and after: an array that a loop goes through by number would stay in memory.
                let mut exact = begun;
                let (mut panel, mut weights) =
                    (panel.as_ptr(), weights[at * depth..][..(ROWS - 1) * STRIDE + depth].as_ptr());
                for _ in 0..depth / P::STEPS {
                    step::<P, VECTORS, ROWS>(panel, weights, &mut exact);
                    panel = panel.add(P::STEPS * VECTORS * lanes);
                    weights = weights.add(P::STEPS);
                }
                let done = exact;
                for (row, exact) in done.iter().enumerate() {
                    let scale = P::Floats::splat(scales[row * SCALES + at]);
                    for (vector, exact) in exact.iter().enumerate() {
                        let x_scale = P::Floats::load(x_scales[vector * lanes..][..lanes].as_ptr());
                        let sum = sums[row * x.padded_m + self.first + vector * lanes..][..lanes].as_mut_ptr();
                        exact.to_floats().mul_add(x_scale.mul(scale), P::Floats::load(sum)).store(sum);
                    }
                }
            }
        }
    }
}

/// Adds the products of [`Lanes::STEPS`] lanes of each of `ROWS` rows with those of `VECTORS` vectors of activations.
#[inline(always)]
unsafe fn step<P: Lanes, const VECTORS: usize, const ROWS: usize>(
    panel: *const u32,
    weights: *const u32,
    exact: &mut [[P; VECTORS]; ROWS],
) {
    let second = P::STEPS - 1;
    unsafe {
        let mut x = [[P::splat(0); 2]; VECTORS];
        for (vector, x) in x.iter_mut().enumerate() {
            x[0] = P::load(panel.add(vector * P::Floats::LANES));
            x[1] = P::load(panel.add((second * VECTORS + vector) * P::Floats::LANES));
        }
        for (row, exact) in exact.iter_mut().enumerate() {
            let weights = weights.add(row * STRIDE);
            let w = [P::splat(*weights as i32), P::splat(*weights.add(second) as i32)];
            for (exact, &x) in exact.iter_mut().zip(&x) {
                *exact = exact.add_products(w, x);
            }
        }
    }
}
