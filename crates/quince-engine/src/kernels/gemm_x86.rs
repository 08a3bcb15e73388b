//! Integer products of prefill for x86-64: many rows of activations with a packed weight.
//!
//! Both sides become 13-bit integers that share a scale within [`BLOCK`] terms of a row. The innermost loop multiplies
//! pairs of 16-bit integers and adds them in 32 bits, which is exact, at twice the rate of f32 (four times with VNNI's
//! neighbours in one instruction); a block's sum is scaled to f32. Activations lie across the lanes: they are laid out
//! once for a product, while rows of the weight are unpacked in their own order, a task at a time, and broadcast.

use std::arch::x86_64::*;
use std::ops::Range;

use super::dequantize::{dequantize_generic, unpack};
use super::lut_tables::Planes;
use super::quantize;
use super::scratch::{Scratch, with_scratch};
use super::simd::{Avx2, Avx512, Simd};
use super::weights::{Affine, CodeType, Encoding, GroupAxis, Lut, PackedWeight};
use super::{Isa, Pool, SharedMut};

/// Terms that share a scale, on either side.
const BLOCK: usize = 128;
/// Largest magnitude of an activation.
///
/// A lane of 32 bits sums the products of one block: 128 · 4095 · 4096 < 2^31.
const ACTIVATION_MAX: f32 = 4095.0;
/// Largest magnitude of an element of a weight.
const WEIGHT_MAX: f32 = 4096.0;
/// Terms that a task unpacks at a time: the activations of a tile stay in the first-level cache.
const DEPTH: usize = 512;
/// Rows of a weight that a task computes: unpacked, they stay in the second-level cache.
pub(crate) const TASK_ROWS: usize = 48;
/// Rows of activations that are laid out at a time, so that a task's sums stay in the second-level cache.
pub(crate) const MOST_ROWS: usize = 512;

/// Whether the instruction set has this product.
pub(crate) fn is_available(isa: Isa) -> bool {
    matches!(isa, Isa::Avx2 | Isa::Avx512)
}

/// Activations `[m, k]` as integers, laid out in panels: for each panel of rows, for each pair of terms, the pairs of
/// its rows.
pub(crate) struct Panels {
    m: usize,
    k: usize,
    /// Terms of a row, filled up with zeros to whole blocks.
    padded_k: usize,
    /// Rows, filled up with zeros to whole vectors.
    padded_m: usize,
    pairs: Vec<[i16; 2]>,
    /// Of each block, one scale for every row: NaN where the block holds an infinity or a NaN.
    scales: Vec<f32>,
}

impl Panels {
    /// Lays out at most [`MOST_ROWS`] rows of `k` numbers.
    pub(crate) fn new(isa: Isa, pool: &Pool, x: &[f32], k: usize) -> Panels {
        let (m, lanes) = (x.len() / k, if isa == Isa::Avx512 { 16 } else { 8 });
        let (padded_m, padded_k) = (m.next_multiple_of(lanes), k.next_multiple_of(BLOCK));
        let blocks = padded_k / BLOCK;
        let mut pairs = vec![[0i16; 2]; padded_m * padded_k / 2];
        let mut scales = vec![0.0f32; padded_m * blocks];
        let (all_pairs, all_scales) = (SharedMut::new(&mut pairs), SharedMut::new(&mut scales));
        pool.run(blocks, |block| {
            let columns = block * BLOCK..k.min((block + 1) * BLOCK);
            // SAFETY: each task writes the scales and the pairs of a block of its own.
            let scales = unsafe { all_scales.slice(block * padded_m, padded_m) };
            for (row, scale) in scales[..m].iter_mut().enumerate() {
                let mut rounded = [0i16; BLOCK];
                let x = &x[row * k..(row + 1) * k][columns.clone()];
                // SAFETY: both instruction sets of this module have AVX2.
                *scale = unsafe { round_block(x, ACTIVATION_MAX, &mut rounded) };
                let (first, width) = panel_of(row, padded_m, 2 * lanes);
                let start = first * padded_k / 2 + block * BLOCK / 2 * width;
                // SAFETY: as above.
                let panel = unsafe { all_pairs.slice(start, BLOCK / 2 * width) };
                let column = panel[row - first..].iter_mut().step_by(width);
                column.zip(rounded.chunks_exact(2)).for_each(|(out, pair)| *out = [pair[0], pair[1]]);
            }
        });
        Panels { m, k, padded_k, padded_m, pairs, scales }
    }
}

/// The first row of the panel of `row`, and how many rows it has: `most`, the last panel what is left.
fn panel_of(row: usize, padded_m: usize, most: usize) -> (usize, usize) {
    let first = row / most * most;
    (first, most.min(padded_m - first))
}

/// [`quantize::round`] with the instructions of this module.
#[target_feature(enable = "avx2,fma")]
fn round_block(x: &[f32], most: f32, out: &mut [i16; BLOCK]) -> f32 {
    quantize::round(x, most, out)
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
    static SUMS: Scratch = const { Scratch::new(Vec::new()) };
}

/// Computes the columns `rows`, at most [`TASK_ROWS`], of the product.
///
/// # Safety
/// [`is_available`] holds for `isa`, which the machine has; no other thread writes the same columns.
pub(crate) unsafe fn multiply_rows(isa: Isa, product: &Product, rows: Range<usize>) {
    with_scratch(&SUMS, TASK_ROWS * product.x.padded_m, |sums| {
        let mut task = Task { product, rows, sums };
        // SAFETY: as the caller vouches.
        unsafe {
            match isa {
                Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => avx512_vnni(&mut task),
                Isa::Avx512 => avx512(&mut task),
                _ => avx2(&mut task),
            }
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn avx2(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<__m256i, 6>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn avx512(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<__m512i, 12>() }
}

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn avx512_vnni(task: &mut Task) {
    // SAFETY: this function has the instructions.
    unsafe { task.run::<Vnni, 12>() }
}

/// Vectors of pairs of 16-bit integers.
///
/// # Safety
/// As of [`Simd`].
trait Pairs: Copy {
    type Floats: Simd;
    unsafe fn zero() -> Self;
    unsafe fn load(p: *const [i16; 2]) -> Self;
    /// The pair at `p` in every lane.
    unsafe fn broadcast(p: *const [i16; 2]) -> Self;
    /// `self` and the sum of the products of the pairs of `a` and `b`, in 32 bits.
    unsafe fn add_products(self, a: Self, b: Self) -> Self;
    /// 32-bit integers as numbers.
    unsafe fn to_floats(self) -> Self::Floats;
}

impl Pairs for __m256i {
    type Floats = Avx2;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load(p: *const [i16; 2]) -> Self {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const [i16; 2]) -> Self {
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn add_products(self, a: Self, b: Self) -> Self {
        unsafe { _mm256_add_epi32(self, _mm256_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Avx2 {
        unsafe { Avx2(_mm256_cvtepi32_ps(self)) }
    }
}

impl Pairs for __m512i {
    type Floats = Avx512;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load(p: *const [i16; 2]) -> Self {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const [i16; 2]) -> Self {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn add_products(self, a: Self, b: Self) -> Self {
        unsafe { _mm512_add_epi32(self, _mm512_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Avx512 {
        unsafe { Avx512(_mm512_cvtepi32_ps(self)) }
    }
}

/// [`__m512i`] where VNNI multiplies and adds in one instruction.
#[derive(Clone, Copy)]
struct Vnni(__m512i);

impl Pairs for Vnni {
    type Floats = Avx512;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Vnni(__m512i::zero()) }
    }
    #[inline(always)]
    unsafe fn load(p: *const [i16; 2]) -> Self {
        unsafe { Vnni(__m512i::load(p)) }
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const [i16; 2]) -> Self {
        unsafe { Vnni(__m512i::broadcast(p)) }
    }
    #[inline(always)]
    unsafe fn add_products(self, a: Self, b: Self) -> Self {
        unsafe { Vnni(_mm512_dpwssd_epi32(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Avx512 {
        unsafe { self.0.to_floats() }
    }
}

/// Some rows of a weight, with the sums `[rows, padded_m]` of their products.
struct Task<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    sums: &'a mut [f32],
}

/// Rows of a weight as integers.
struct Unpacked {
    /// For each tile of rows, for each pair of terms, the pairs of its rows; and room for what a tile leaves behind
    /// its end.
    pairs: [[i16; 2]; TASK_ROWS * DEPTH / 2 + 8],
    /// `[TASK_ROWS, DEPTH / BLOCK]`.
    scales: [f32; TASK_ROWS * DEPTH / BLOCK],
    /// The rows of a tile on their way to `pairs`.
    rows: [[i16; DEPTH]; 16],
}

// SAFETY of the functions below: the caller vouches for the instructions of `P`; what else they need is said where
// they access memory.

impl Task<'_> {
    #[inline(always)]
    unsafe fn run<P: Pairs, const TILE: usize>(&mut self) {
        let Product { weight, x, bias, .. } = *self.product;
        for (sums, row) in self.sums.chunks_exact_mut(x.padded_m).zip(self.rows.clone()) {
            sums.fill(bias.map_or(0.0, |bias| bias[row]));
        }
        let mut unpacked = Unpacked {
            pairs: [[0; 2]; TASK_ROWS * DEPTH / 2 + 8],
            scales: [0.0; TASK_ROWS * DEPTH / BLOCK],
            rows: [[0; DEPTH]; 16],
        };
        for first in (0..x.k).step_by(DEPTH) {
            let columns = first..x.k.min(first + DEPTH);
            for tile in (0..self.rows.len()).step_by(TILE) {
                let rows = self.rows.start + tile..self.rows.end.min(self.rows.start + tile + TILE);
                unsafe { unpacked.tile::<P::Floats, TILE>(weight, rows, columns.clone(), tile) };
            }
            let (first, depth) = (columns.start, columns.len());
            unsafe { self.multiply::<P, TILE>(&unpacked, first / BLOCK..(first + depth).div_ceil(BLOCK)) };
        }
        unsafe { self.store::<P::Floats>() };
    }

    /// Adds the products of some blocks.
    #[inline(always)]
    unsafe fn multiply<P: Pairs, const TILE: usize>(&mut self, unpacked: &Unpacked, blocks: Range<usize>) {
        let x = self.product.x;
        let mut first = 0;
        while first < x.padded_m {
            let (_, width) = panel_of(first, x.padded_m, 2 * P::Floats::LANES);
            for row in (0..self.rows.len()).step_by(TILE) {
                // A tile may go beyond the rows: what it finds and leaves there nobody reads.
                let tile = Tile { unpacked, row, x, first, width, blocks: blocks.clone() };
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

impl Unpacked {
    /// Unpacks at most `TILE` rows of a weight to the tile whose first row is `at`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const TILE: usize>(
        &mut self,
        weight: &PackedWeight,
        rows: Range<usize>,
        columns: Range<usize>,
        at: usize,
    ) {
        for (i, row) in rows.enumerate() {
            prefetch_row::<S>(weight, row + ROWS_AHEAD, &columns);
            let scales = &mut self.scales[(at + i) * DEPTH / BLOCK..][..DEPTH / BLOCK];
            unsafe { unpack_row::<S>(weight, row, columns.start, columns.len(), &mut self.rows[i], scales) };
        }
        let pairs = self.pairs[at * DEPTH / 2..][..TILE * DEPTH / 2 + 8].as_mut_ptr().cast::<f32>();
        for pair in (0..columns.len().next_multiple_of(BLOCK) / 2).step_by(8) {
            // Eight rows are written where fewer belong: what is too much is written over by what follows.
            for row in (0..TILE).step_by(8).rev() {
                // SAFETY: eight pairs of eight rows are read, and written to `TILE · 8` pairs and the room behind.
                unsafe {
                    let source = self.rows[row].as_ptr().add(2 * pair).cast::<f32>();
                    S::transpose8(source, DEPTH / 2, pairs.add(pair * TILE + row), TILE);
                }
            }
        }
    }
}

/// How many rows before its turn a row is asked for: pieces of rows follow each other at distances that the processor
/// does not foresee.
const ROWS_AHEAD: usize = 8;

/// Asks for some columns of a row, which need not exist.
#[inline(always)]
fn prefetch_row<S: Simd>(weight: &PackedWeight, row: usize, columns: &Range<usize>) {
    let (bytes, nbits) = weight.data();
    let start = (row * weight.cols() + columns.start) * nbits / 8;
    for line in (0..columns.len() * nbits / 8).step_by(64) {
        S::prefetch(bytes.as_ptr().wrapping_add(start + line));
    }
}

/// The innermost product: rows of a weight from `row`, with a panel of activations.
struct Tile<'a> {
    unpacked: &'a Unpacked,
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
    unsafe fn add<P: Pairs, const VECTORS: usize, const ROWS: usize>(&self, sums: &mut [f32]) {
        let (x, lanes) = (self.x, P::Floats::LANES);
        debug_assert_eq!(self.width, VECTORS * lanes);
        let weights = &self.unpacked.pairs[self.row * DEPTH / 2..][..ROWS * DEPTH / 2];
        let scales = &self.unpacked.scales[self.row * DEPTH / BLOCK..];
        for (at, block) in self.blocks.clone().enumerate() {
            let start = self.first * x.padded_k / 2 + block * BLOCK / 2 * self.width;
            let panel = &x.pairs[start..start + BLOCK / 2 * self.width];
            let x_scales = &x.scales[block * x.padded_m + self.first..][..self.width];
            // SAFETY: the panel has `BLOCK / 2` vectors `VECTORS` times, and the weights as many pairs of `ROWS` rows.
            unsafe {
                let mut exact = [[P::zero(); VECTORS]; ROWS];
                let (mut panel, mut weights) =
                    (panel.as_ptr(), weights[at * BLOCK / 2 * ROWS..][..BLOCK / 2 * ROWS].as_ptr());
                for _ in 0..BLOCK / 2 {
                    let b: [P; VECTORS] = load_vectors::<P, VECTORS>(panel);
                    for (row, exact) in exact.iter_mut().enumerate() {
                        let a = P::broadcast(weights.add(row));
                        for (exact, &b) in exact.iter_mut().zip(&b) {
                            *exact = exact.add_products(a, b);
                        }
                    }
                    panel = panel.add(VECTORS * lanes);
                    weights = weights.add(ROWS);
                }
                for (row, exact) in exact.iter().enumerate() {
                    let scale = P::Floats::splat(scales[row * DEPTH / BLOCK + at]);
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

#[inline(always)]
unsafe fn load_vectors<P: Pairs, const VECTORS: usize>(p: *const [i16; 2]) -> [P; VECTORS] {
    unsafe {
        let mut vectors = [P::zero(); VECTORS];
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = P::load(p.add(i * P::Floats::LANES));
        }
        vectors
    }
}

/// Writes elements `first..first + depth` of a row as integers, zeros up to the end of a block, with the scales of the
/// blocks. `first` is a multiple of [`BLOCK`].
#[inline(always)]
unsafe fn unpack_row<S: Simd>(
    weight: &PackedWeight,
    row: usize,
    first: usize,
    depth: usize,
    values: &mut [i16],
    scales: &mut [f32],
) {
    let cols = weight.cols();
    values[depth..depth.next_multiple_of(BLOCK)].fill(0);
    unsafe {
        match weight.encoding() {
            Encoding::Lut(lut)
                if lut.nbits <= 4 && (lut.axis == GroupAxis::Rows || lut.group.is_multiple_of(BLOCK)) =>
            {
                lut_row::<S>(lut, row, cols, first, &mut values[..depth], scales);
            }
            Encoding::Affine(affine) if affine.block[1] == cols || affine.block[1].is_multiple_of(BLOCK) => {
                affine_row::<S>(affine, row, cols, first, &mut values[..depth], scales);
            }
            _ => {
                let mut numbers = [0.0f32; DEPTH];
                dequantize_generic::<S>(weight, row, first, &mut numbers[..depth]);
                let parts = numbers[..depth].chunks(BLOCK).zip(values.chunks_exact_mut(BLOCK));
                for ((numbers, values), scale) in parts.zip(scales) {
                    let Ok(values) = values.try_into() else { continue };
                    *scale = round_block(numbers, WEIGHT_MAX, values);
                }
            }
        }
    }
}

/// [`unpack_row`] of indices of up to four bits into tables that hold for whole blocks.
#[inline(always)]
unsafe fn lut_row<S: Simd>(lut: &Lut, row: usize, cols: usize, first: usize, values: &mut [i16], scales: &mut [f32]) {
    let start = row * cols + first;
    let mut indices = [0u8; BLOCK];
    for ((block, values), scale) in values.chunks_mut(BLOCK).enumerate().zip(scales) {
        let (planes, table_scale) = lut.tables.integers(lut.table_of(row, first + block * BLOCK));
        // Entries have 15 bits: a quarter of them has 13.
        *scale = 4.0 * table_scale;
        let start = start + block * BLOCK;
        let packed = if lut.nbits == 4 && start.is_multiple_of(2) {
            lut.indices.get(start / 2..start / 2 + BLOCK / 2)
        } else {
            None
        };
        // SAFETY: AVX2 is there.
        unsafe {
            match (packed, <&mut [i16; BLOCK]>::try_from(&mut *values)) {
                (Some(packed), Ok(values)) => look_up(
                    &planes[0],
                    #[inline(always)]
                    |at| nibbles(packed[at / 2..][..16].as_ptr()),
                    values,
                ),
                _ => {
                    unpack::<S>(&lut.indices, start, lut.nbits, &mut indices[..values.len()]);
                    let mut looked_up = [0i16; BLOCK];
                    look_up(
                        &planes[0],
                        #[inline(always)]
                        |at| _mm256_loadu_si256(indices[at..][..32].as_ptr().cast()),
                        &mut looked_up,
                    );
                    values.copy_from_slice(&looked_up[..values.len()]);
                }
            }
        }
    }
}

/// The 32 four-bit indices at `p` as bytes.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> __m256i {
    unsafe {
        let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
        let high = _mm256_and_si256(_mm256_slli_epi16::<4>(wide), _mm256_set1_epi16(0x0f00));
        _mm256_or_si256(_mm256_and_si256(wide, _mm256_set1_epi16(0x000f)), high)
    }
}

/// A block of entries, of which `indices` gives 32 indices from a place.
#[inline(always)]
unsafe fn look_up(table: &Planes, indices: impl Fn(usize) -> __m256i, out: &mut [i16; BLOCK]) {
    unsafe {
        let (low, high) = (twice(&table.low), twice(&table.high));
        for at in (0..BLOCK).step_by(32) {
            // Interleaving works on halves of 16 bytes: the middle quarters change places before it.
            let indices = _mm256_permute4x64_epi64::<0b11_01_10_00>(indices(at));
            let (low, high) = (_mm256_shuffle_epi8(low, indices), _mm256_shuffle_epi8(high, indices));
            let out: *mut __m256i = out[at..][..32].as_mut_ptr().cast();
            _mm256_storeu_si256(out, quarter(_mm256_unpacklo_epi8(low, high)));
            _mm256_storeu_si256(out.add(1), quarter(_mm256_unpackhi_epi8(low, high)));
        }
    }
}

#[inline(always)]
unsafe fn twice(half: &[u8; 16]) -> __m256i {
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(half.as_ptr().cast())) }
}

/// A quarter of each of 16 integers, rounded.
#[inline(always)]
unsafe fn quarter(integers: __m256i) -> __m256i {
    unsafe { _mm256_mulhrs_epi16(integers, _mm256_set1_epi16(1 << 13)) }
}

/// [`unpack_row`] of linear codes whose scale holds for whole blocks: they are integers already.
#[inline(always)]
unsafe fn affine_row<S: Simd>(
    affine: &Affine,
    row: usize,
    cols: usize,
    first: usize,
    values: &mut [i16],
    scales: &mut [f32],
) {
    let mut codes = [0u8; DEPTH];
    unpack::<S>(&affine.data, row * cols + first, affine.codes.nbits(), &mut codes[..values.len()]);
    for ((block, values), scale) in values.chunks_mut(BLOCK).enumerate().zip(scales) {
        let index = affine.block_of(row, first + block * BLOCK);
        *scale = affine.scale.get(index);
        let offset = affine.offset_at(index) as i16;
        let codes = values.iter_mut().zip(&codes[block * BLOCK..]);
        match affine.codes {
            CodeType::Int8 => codes.for_each(|(value, &code)| *value = i16::from(code as i8) - offset),
            CodeType::Int4 => codes.for_each(|(value, &code)| *value = i16::from((code ^ 8) as i8) - 8 - offset),
            CodeType::Uint8 | CodeType::Uint4 => codes.for_each(|(value, &code)| *value = i16::from(code) - offset),
        }
    }
}
