//! Integer products of decode for x86-64: weights become 16-bit integers in registers and never touch memory.
//!
//! Table entries are looked up as two bytes with byte shuffles; linear codes are widened. Either is multiplied with
//! 14-bit activations, summed exactly within a block, and scaled to f32 from block to block.

use std::arch::x86_64::*;
use std::ops::Range;

use super::dequantize::{load_floats, unpack};
use super::gemv::PREFETCH;
use super::gemv_avx512;
use super::lut_tables::Planes;
use super::quantize::{Order, Quantized};
use super::simd::{Avx2, Simd, prefetch};
use super::weights::{Affine, CodeType, Encoding, GroupAxis, Lut, PackedWeight};
use super::{Isa, SharedMut};

/// The order of activations that the integer kernel for `weight` wants; `None` when there is no such kernel.
pub(crate) fn order(isa: Isa, weight: &PackedWeight) -> Option<Order> {
    if !matches!(isa, Isa::Avx2 | Isa::Avx512) {
        return None;
    }
    if isa == Isa::Avx512
        && let Some(order) = gemv_avx512::order(weight)
    {
        return Some(order);
    }
    let cols = weight.cols();
    match weight.encoding() {
        Encoding::Dense(_) => None,
        Encoding::Lut(lut) => {
            let planes = if 8 % lut.nbits == 0 { 8 / lut.nbits } else { 1 };
            let order = Order::Bytes { planes };
            let whole_tables = lut.axis == GroupAxis::Rows || lut.group.is_multiple_of(order.block());
            (whole_tables && (cols * lut.nbits).is_multiple_of(8)).then_some(order)
        }
        Encoding::Affine(affine) => {
            let whole_blocks = affine.block[1] == cols || affine.block[1].is_multiple_of(32);
            let order = if affine.codes.nbits() == 4 { Order::Nibbles } else { Order::Natural };
            (whole_blocks && (cols * affine.codes.nbits()).is_multiple_of(8)).then_some(order)
        }
    }
}

/// A product `y[m, N] = x[m, K] · weightᵀ + bias` of which some columns are computed.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a PackedWeight,
    pub(crate) x: &'a Quantized,
    pub(crate) m: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) y: &'a SharedMut<f32>,
}

/// Computes the columns `rows` of the product.
///
/// # Safety
/// The processor has AVX2, FMA, F16C and BMI2, and AVX-512 if [`order`] was asked for it; `product.x` has the order that [`order`] gives for its weight; no
/// other thread writes the same columns.
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
pub(crate) unsafe fn multiply_rows(product: &Product, rows: Range<usize>) {
    if let Order::Words { .. } = product.x.order {
        // SAFETY: as the caller vouches: only AVX-512 has this order.
        return unsafe { gemv_avx512::multiply_rows(product, rows) };
    }
    let mut first = 0;
    while first < product.m {
        // SAFETY: as the caller vouches. The packed bytes come from the cache after the first time.
        first += unsafe {
            match product.m - first {
                1 => rows_of::<1>(product, rows.clone(), first),
                2 => rows_of::<2>(product, rows.clone(), first),
                3 | 6 => rows_of::<3>(product, rows.clone(), first),
                _ => rows_of::<4>(product, rows.clone(), first),
            }
        };
    }
}

// SAFETY of the functions below: as `multiply_rows` says. Blocks that are not whole are copied before they are read.

/// Multiplies rows of the weight with `M` rows of activations; returns `M`.
#[inline(always)]
unsafe fn rows_of<const M: usize>(product: &Product, rows: Range<usize>, first: usize) -> usize {
    let n = product.weight.rows();
    let x: [(&[i16], &[f32]); M] = std::array::from_fn(|i| product.x.row(first + i));
    let store = |row: usize, results: [f32; M]| {
        let bias = product.bias.map_or(0.0, |bias| bias[row]);
        for (i, result) in results.into_iter().enumerate() {
            // SAFETY: the columns are this task's.
            let y = unsafe { &mut product.y.slice((first + i) * n + row, 1)[0] };
            *y = result + bias;
        }
    };
    unsafe {
        match product.weight.encoding() {
            Encoding::Lut(lut) => match lut.nbits {
                1 => lut_rows::<1, 1, 8, M>(product, lut, rows, &x, store),
                2 => lut_rows::<2, 1, 4, M>(product, lut, rows, &x, store),
                3 => lut_rows::<3, 1, 1, M>(product, lut, rows, &x, store),
                4 => lut_rows::<4, 1, 2, M>(product, lut, rows, &x, store),
                6 => lut_rows::<6, 4, 1, M>(product, lut, rows, &x, store),
                _ => lut_rows::<8, 16, 1, M>(product, lut, rows, &x, store),
            },
            Encoding::Affine(affine) => match affine.codes {
                CodeType::Int4 | CodeType::Uint4 => affine_rows::<4, M>(product, affine, rows, &x, store),
                CodeType::Int8 | CodeType::Uint8 => affine_rows::<8, M>(product, affine, rows, &x, store),
            },
            Encoding::Dense(_) => unreachable!("plain numbers have no order"),
        }
    }
    M
}

/// Indices that are unpacked to bytes at a time when they do not divide a byte.
const CHUNK: usize = 1024;

#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn lut_rows<const NBITS: usize, const PIECES: usize, const PLANES: usize, const M: usize>(
    product: &Product,
    lut: &Lut,
    rows: Range<usize>,
    x: &[(&[i16], &[f32]); M],
    store: impl Fn(usize, [f32; M]),
) {
    let (data, width) = (&lut.indices[..], product.weight.cols());
    let mut indices = [0u8; CHUNK];
    let by_row = lut.axis == GroupAxis::Rows;
    // Rows that share a table follow each other: it is found once for all of them.
    let mut row = rows.start;
    while row < rows.end {
        let (end, table) = if by_row { (row - row % lut.group + lut.group, row / lut.group) } else { (rows.end, 0) };
        let (planes, scale) = lut.tables.integers(table);
        // SAFETY: AVX2 is there.
        let pieces = unsafe { Pieces::<PIECES>::load(planes) };
        for row in row..end.min(rows.end) {
            let (start, end) = (row * width, (row + 1) * width);
            let mut walk = LutWalk::<PIECES, PLANES, M> { lut, pieces: &pieces, sums: [_mm256_setzero_ps(); M], x };
            // SAFETY: the activations have as many blocks as the row.
            unsafe {
                if 8 % NBITS == 0 {
                    walk.blocks(&data[start * NBITS / 8..end * NBITS / 8], 0);
                } else {
                    for first in (start..end).step_by(CHUNK) {
                        let indices = &mut indices[..CHUNK.min(end - first)];
                        unpack::<Avx2>(data, first, NBITS, indices);
                        walk.blocks(indices, first - row * width);
                    }
                }
                let scale = if by_row { scale } else { 1.0 };
                store(row, walk.sums.map(|sum| Avx2(sum).reduce_add() * scale));
            }
        }
        row = end;
    }
}

/// A walk along a row of indices.
struct LutWalk<'a, const PIECES: usize, const PLANES: usize, const M: usize> {
    lut: &'a Lut,
    /// The table of the row, when it has only one.
    pieces: &'a Pieces<PIECES>,
    sums: [__m256; M],
    x: &'a [(&'a [i16], &'a [f32]); M],
}

impl<const PIECES: usize, const PLANES: usize, const M: usize> LutWalk<'_, PIECES, PLANES, M> {
    const BLOCK: usize = if PLANES == 8 { 256 } else { 128 };
    const BLOCK_BYTES: usize = Self::BLOCK / PLANES;

    /// Takes the elements from `first_col` that `bytes` hold.
    #[inline(always)]
    unsafe fn blocks(&mut self, bytes: &[u8], first_col: usize) {
        unsafe {
            let whole = bytes.len() / Self::BLOCK_BYTES;
            if self.lut.axis == GroupAxis::Rows {
                // The scale of the only table is applied at the end.
                let pieces = self.pieces;
                for block in 0..whole {
                    let p = bytes.as_ptr().add(block * Self::BLOCK_BYTES);
                    self.block(pieces, None, p, first_col / Self::BLOCK + block);
                }
                self.rest(pieces, None, &bytes[whole * Self::BLOCK_BYTES..], first_col / Self::BLOCK + whole);
            } else {
                for (block, bytes) in bytes.chunks(Self::BLOCK_BYTES).enumerate() {
                    let block = first_col / Self::BLOCK + block;
                    let (planes, scale) = self.lut.tables.integers(self.lut.table_of(0, block * Self::BLOCK));
                    self.rest(&Pieces::<PIECES>::load(planes), Some(scale), bytes, block);
                }
            }
        }
    }

    /// A block that may not be whole.
    #[inline(always)]
    unsafe fn rest(&mut self, pieces: &Pieces<PIECES>, scale: Option<f32>, bytes: &[u8], block: usize) {
        if !bytes.is_empty() {
            let mut padded = [0u8; 128];
            padded[..bytes.len()].copy_from_slice(bytes);
            unsafe { self.block(pieces, scale, padded.as_ptr(), block) };
        }
    }

    /// Adds a whole block at `bytes`.
    #[inline(always)]
    unsafe fn block(&mut self, pieces: &Pieces<PIECES>, scale: Option<f32>, bytes: *const u8, block: usize) {
        unsafe {
            let mut sums = [_mm256_setzero_si256(); M];
            prefetch(bytes.wrapping_add(PREFETCH));
            for group in 0..Self::BLOCK_BYTES / 32 {
                let packed = _mm256_loadu_si256(bytes.add(32 * group).cast());
                for plane in 0..PLANES {
                    let (w0, w1) = pieces.look_up(indices::<PLANES>(packed, plane));
                    let at = block * Self::BLOCK + (group * PLANES + plane) * 32;
                    for (sum, (values, _)) in sums.iter_mut().zip(self.x) {
                        debug_assert!(at + 32 <= values.len());
                        let x: *const __m256i = values.as_ptr().add(at).cast();
                        *sum = _mm256_add_epi32(*sum, multiply([w0, w1], x));
                    }
                }
            }
            for ((total, sum), (_, scales)) in self.sums.iter_mut().zip(sums).zip(self.x) {
                debug_assert!(block < scales.len());
                let x_scale = *scales.get_unchecked(block);
                let scale = _mm256_set1_ps(scale.map_or(x_scale, |scale| scale * x_scale));
                *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, *total);
            }
        }
    }
}

/// Index number `plane` of each of 32 bytes.
#[inline(always)]
unsafe fn indices<const PLANES: usize>(packed: __m256i, plane: usize) -> __m256i {
    unsafe {
        let mask = |mask| _mm256_set1_epi8(mask);
        match (PLANES, plane) {
            (1, _) => packed,
            (2, 0) => _mm256_and_si256(packed, mask(15)),
            (2, _) => _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask(15)),
            (4, _) => {
                let shifted = _mm256_srl_epi16(packed, _mm_cvtsi32_si128(2 * plane as i32));
                _mm256_and_si256(shifted, mask(3))
            }
            _ => _mm256_and_si256(_mm256_srl_epi16(packed, _mm_cvtsi32_si128(plane as i32)), mask(1)),
        }
    }
}

/// A table in registers (or in memory, when it has more than four pieces).
struct Pieces<const PIECES: usize>([(__m256i, __m256i); PIECES]);

impl<const PIECES: usize> Pieces<PIECES> {
    #[inline(always)]
    unsafe fn load(planes: &[Planes]) -> Self {
        unsafe {
            let twice = |half: &[u8; 16]| _mm256_broadcastsi128_si256(_mm_loadu_si128(half.as_ptr().cast()));
            Pieces(std::array::from_fn(|i| (twice(&planes[i].low), twice(&planes[i].high))))
        }
    }

    /// The entries of 32 indices as 16-bit integers: those of bytes 0..8 and 16..24, and those of the others.
    #[inline(always)]
    unsafe fn look_up(&self, indices: __m256i) -> (__m256i, __m256i) {
        unsafe {
            let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for (i, piece) in self.0.iter().enumerate() {
                let inside = if PIECES == 1 {
                    indices
                } else {
                    // Indices of this piece become 0x70..0x80; others get their sign set, for which a shuffle gives 0.
                    let relative = _mm256_xor_si256(indices, _mm256_set1_epi8((16 * i) as i8));
                    _mm256_adds_epu8(relative, _mm256_set1_epi8(0x70))
                };
                low = _mm256_or_si256(low, _mm256_shuffle_epi8(piece.0, inside));
                high = _mm256_or_si256(high, _mm256_shuffle_epi8(piece.1, inside));
            }
            (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high))
        }
    }
}

/// Pair sums of 32 products.
#[inline(always)]
unsafe fn multiply(w: [__m256i; 2], x: *const __m256i) -> __m256i {
    unsafe {
        let first = _mm256_madd_epi16(w[0], _mm256_loadu_si256(x));
        _mm256_add_epi32(first, _mm256_madd_epi16(w[1], _mm256_loadu_si256(x.add(1))))
    }
}

/// Scales of a row that are widened at a time.
const SCALES: usize = 64;

/// Multiplies rows of linear codes, in steps that share a scale: a block of scales, or a block of activations when
/// that is shorter.
#[inline(always)]
unsafe fn affine_rows<const NBITS: usize, const M: usize>(
    product: &Product,
    affine: &Affine,
    rows: Range<usize>,
    x: &[(&[i16], &[f32]); M],
    store: impl Fn(usize, [f32; M]),
) {
    let wide = affine.block[1] == product.weight.cols() || affine.block[1].is_multiple_of(128);
    unsafe {
        match (wide, affine.offset.is_some()) {
            (true, false) => affine_rows_by::<NBITS, 128, false, M>(product, affine, rows, x, store),
            (true, true) => affine_rows_by::<NBITS, 128, true, M>(product, affine, rows, x, store),
            (false, false) => affine_rows_by::<NBITS, 32, false, M>(product, affine, rows, x, store),
            (false, true) => affine_rows_by::<NBITS, 32, true, M>(product, affine, rows, x, store),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn affine_rows_by<const NBITS: usize, const STEP: usize, const OFFSETS: bool, const M: usize>(
    product: &Product,
    affine: &Affine,
    rows: Range<usize>,
    x: &[(&[i16], &[f32]); M],
    store: impl Fn(usize, [f32; M]),
) {
    let (data, width) = (&affine.data[..], product.weight.cols());
    let (block, signed) = (affine.block[1], matches!(affine.codes, CodeType::Int4 | CodeType::Int8));
    let blocks = 0..width.div_ceil(block);
    let mut scales = [0.0f32; SCALES];
    for row in rows {
        let data = &data[row * width * NBITS / 8..(row + 1) * width * NBITS / 8];
        let first_block = affine.block_of(row, 0);
        let mut sums = [_mm256_setzero_ps(); M];
        for first in blocks.clone().step_by(SCALES) {
            let count = SCALES.min(blocks.end - first);
            // SAFETY: AVX2 is there, and the row has these blocks.
            unsafe { load_floats::<Avx2>(&affine.scale, first_block + first, &mut scales[..count]) };
            let codes = |i: usize| Codes {
                signed,
                offset: if OFFSETS { affine.offset_at(first_block + first + i) } else { 0 },
            };
            let mut i = 0;
            while STEP == 32 && block == 32 && i + 4 <= count {
                let col = (first + i) * 32;
                // SAFETY: 128 columns from `col`, a multiple of 128, belong to these four blocks.
                unsafe {
                    let p = data.as_ptr().add(col * NBITS / 8);
                    affine_quad::<NBITS, M>(|b| codes(i + b), p, col, &scales[i..i + 4], x, &mut sums);
                }
                i += 4;
            }
            while i < count {
                let mut col = (first + i) * block;
                let end = ((first + i + 1) * block).min(width);
                while col + STEP <= end {
                    // SAFETY: these columns belong to the row.
                    unsafe {
                        let p = data.as_ptr().add(col * NBITS / 8);
                        affine_step::<NBITS, STEP, M>(codes(i), p, col, scales[i], x, &mut sums);
                    }
                    col += STEP;
                }
                if col < end {
                    // Only the end of a row with one scale; what is beyond it meets activations of zero.
                    let (mut padded, rest) = ([0u8; 128], &data[col * NBITS / 8..]);
                    padded[..rest.len()].copy_from_slice(rest);
                    // SAFETY: `padded` holds a whole step.
                    unsafe { affine_step::<NBITS, STEP, M>(codes(i), padded.as_ptr(), col, scales[i], x, &mut sums) };
                }
                i += 1;
            }
        }
        // SAFETY: AVX2 is there.
        store(row, sums.map(|sum| unsafe { Avx2(sum).reduce_add() }));
    }
}

/// Adds the `STEP` elements at `p`, which are those from column `col`.
#[inline(always)]
unsafe fn affine_step<const NBITS: usize, const STEP: usize, const M: usize>(
    codes: Codes,
    p: *const u8,
    col: usize,
    scale: f32,
    x: &[(&[i16], &[f32]); M],
    sums: &mut [__m256; M],
) {
    unsafe {
        let mut exact = [_mm256_setzero_si256(); M];
        for at in (0..STEP).step_by(32) {
            let weights = codes.load::<NBITS>(p.add(at * NBITS / 8));
            for (exact, (values, _)) in exact.iter_mut().zip(x) {
                debug_assert!(col + at + 32 <= values.len());
                *exact = _mm256_add_epi32(*exact, multiply(weights, values.as_ptr().add(col + at).cast()));
            }
        }
        for ((sum, exact), (_, scales)) in sums.iter_mut().zip(exact).zip(x) {
            debug_assert!(col / 128 < scales.len());
            let scale = _mm256_set1_ps(scale * scales.get_unchecked(col / 128));
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, *sum);
        }
    }
}

/// Adds four blocks of 32 elements, which share the scale of their activations: one step of the running sums.
#[inline(always)]
unsafe fn affine_quad<const NBITS: usize, const M: usize>(
    codes: impl Fn(usize) -> Codes,
    p: *const u8,
    col: usize,
    weight_scales: &[f32],
    x: &[(&[i16], &[f32]); M],
    sums: &mut [__m256; M],
) {
    unsafe {
        let mut totals = [_mm256_setzero_ps(); M];
        prefetch(p.wrapping_add(PREFETCH));
        for (b, &scale) in weight_scales.iter().enumerate().take(4) {
            let weights = codes(b).load::<NBITS>(p.add(b * 4 * NBITS));
            for (total, (values, _)) in totals.iter_mut().zip(x) {
                debug_assert!(col + 128 <= values.len());
                let exact = multiply(weights, values.as_ptr().add(col + 32 * b).cast());
                *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(scale), *total);
            }
        }
        for ((sum, total), (_, scales)) in sums.iter_mut().zip(totals).zip(x) {
            debug_assert!(col / 128 < scales.len());
            *sum = _mm256_fmadd_ps(total, _mm256_set1_ps(*scales.get_unchecked(col / 128)), *sum);
        }
    }
}

/// How linear codes become integers.
#[derive(Clone, Copy)]
struct Codes {
    signed: bool,
    offset: i32,
}

impl Codes {
    /// The 32 codes at `p`, less the offset, as 16-bit integers.
    #[inline(always)]
    unsafe fn load<const NBITS: usize>(self, p: *const u8) -> [__m256i; 2] {
        unsafe {
            let first = _mm_loadu_si128(p.cast());
            if NBITS == 4 {
                // A signed code is (c ^ 8) − 8 for the unsigned c.
                let (flip, offset) = if self.signed { (0x88u8, self.offset + 8) } else { (0, self.offset) };
                let packed = _mm_xor_si128(first, _mm_set1_epi8(flip as i8));
                let (mask, offset) = (_mm_set1_epi8(15), _mm_set1_epi8(offset as i8));
                let low = _mm_sub_epi8(_mm_and_si128(packed, mask), offset);
                let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(packed), mask), offset);
                return [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)];
            }
            let (second, offset) = (_mm_loadu_si128(p.add(16).cast()), _mm256_set1_epi16(self.offset as i16));
            let wide = if self.signed {
                [_mm256_cvtepi8_epi16(first), _mm256_cvtepi8_epi16(second)]
            } else {
                [_mm256_cvtepu8_epi16(first), _mm256_cvtepu8_epi16(second)]
            };
            wide.map(|codes| _mm256_sub_epi16(codes, offset))
        }
    }
}
