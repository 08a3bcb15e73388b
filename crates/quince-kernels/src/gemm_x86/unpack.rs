//! Rows of a weight as integers, row after row.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::super::dequantize::{dequantize_generic, unpack};
use super::super::lut_tables::Planes;
use super::super::simd::{Simd, prefetch};
use super::super::weights::{Affine, CodeType, Encoding, GroupAxis, Lut, PackedWeight};
use super::lanes::{Integer, Lanes};
use super::panels::round_block;
use super::{DEPTH, SCALES, TASK_ROWS, UNIT};

/// 32-bit lanes from one row to the next: the rows of a tile do not meet in the same sets of the cache.
pub(super) const STRIDE: usize = DEPTH / 2 + 16;

/// Rows of a weight as integers.
pub(super) struct Unpacked<'a> {
    /// `[TASK_ROWS, STRIDE]`, lanes with groups of terms.
    lanes: &'a mut [u32],
    /// `[TASK_ROWS, SCALES]`.
    pub(super) scales: &'a mut [f32],
    /// What the sums of blocks begin with: `[TASK_ROWS, SCALES]`.
    pub(super) starts: &'a mut [i32],
}

// SAFETY of the functions below: the caller vouches for the instructions of `L` or `S`, which include AVX2; what else
// they need is said where they access memory.

impl<'a> Unpacked<'a> {
    /// Numbers of 32 bits that it takes.
    pub(super) const LEN: usize = TASK_ROWS * (STRIDE + 2 * SCALES);

    /// In memory of [`Unpacked::LEN`] numbers, with what an earlier one left there.
    #[inline(always)]
    pub(super) fn new(memory: &'a mut [f32]) -> Unpacked<'a> {
        let (scales, rest) = memory.split_at_mut(TASK_ROWS * SCALES);
        let (starts, lanes) = rest.split_at_mut(TASK_ROWS * SCALES);
        Unpacked { lanes: bytemuck::cast_slice_mut(lanes), scales, starts: bytemuck::cast_slice_mut(starts) }
    }

    /// The lanes from those of a row, each row [`STRIDE`] behind the one before.
    #[inline(always)]
    pub(super) fn lanes_of(&self, row: usize) -> &[u32] {
        &self.lanes[row * STRIDE..]
    }

    /// Unpacks some columns of some rows of a weight.
    #[inline(always)]
    pub(super) unsafe fn fill<L: Lanes>(&mut self, weight: &PackedWeight, rows: Range<usize>, columns: Range<usize>) {
        for (i, row) in rows.enumerate() {
            prefetch_row(weight, row + ROWS_AHEAD, &columns);
            let blocks = i * SCALES..(i + 1) * SCALES;
            let scales = &mut self.scales[blocks.clone()];
            let Some(lanes) = self.lanes[i * STRIDE..].first_chunk_mut::<{ DEPTH / 2 }>() else { return };
            if let Some(affine) = bytes_of::<L::Integer>(weight) {
                let (place, out) = ((row, weight.cols()), bytemuck::cast_mut(lanes));
                unsafe { bytes_row::<L::Integer>(affine, place, &columns, out, scales, &mut self.starts[blocks]) };
                continue;
            }
            let words: &mut [i16; DEPTH] = bytemuck::cast_mut(lanes);
            unsafe {
                unpack_row::<L::Floats, L::Integer>(weight, row, columns.start, columns.len(), words, scales);
                L::Integer::narrow(words, &mut self.starts[blocks]);
            }
        }
    }
}

/// How many rows before its turn a row is asked for: pieces of rows follow each other at distances that the processor
/// does not foresee.
const ROWS_AHEAD: usize = 8;

/// Asks for some columns of a row, which need not exist.
#[inline(always)]
fn prefetch_row(weight: &PackedWeight, row: usize, columns: &Range<usize>) {
    let (bytes, nbits) = weight.data();
    let start = (row * weight.cols() + columns.start) * nbits / 8;
    for line in (0..columns.len() * nbits / 8).step_by(64) {
        prefetch(bytes.as_ptr().wrapping_add(start + line));
    }
}

/// Writes elements `first..first + depth` of a row as integers, zeros up to the end of a block, with the scales of the
/// blocks. `first` is a multiple of [`UNIT`].
#[inline(always)]
unsafe fn unpack_row<S: Simd, I: Integer>(
    weight: &PackedWeight,
    row: usize,
    first: usize,
    depth: usize,
    values: &mut [i16],
    scales: &mut [f32],
) {
    let cols = weight.cols();
    values[depth..depth.next_multiple_of(UNIT)].fill(0);
    unsafe {
        match weight.encoding() {
            Encoding::Lut(lut) if lut.nbits <= 4 && (lut.axis == GroupAxis::Rows || lut.group.is_multiple_of(UNIT)) => {
                lut_row::<S, I>(lut, row, cols, first, &mut values[..depth], scales);
            }
            Encoding::Affine(affine)
                if I::holds(affine) && (affine.block[1] == cols || affine.block[1].is_multiple_of(UNIT)) =>
            {
                affine_row::<S, I>(affine, row, cols, first, &mut values[..depth], scales);
            }
            _ => {
                let mut numbers = [0.0f32; DEPTH];
                dequantize_generic::<S>(weight, row, first, &mut numbers[..depth]);
                let parts = numbers[..depth].chunks(I::BLOCK).zip(values.chunks_exact_mut(I::BLOCK));
                for ((numbers, values), scale) in parts.zip(scales) {
                    *scale = round_block(numbers, I::WEIGHT_MAX, values);
                }
            }
        }
    }
}

/// [`unpack_row`] of indices of up to four bits into tables that hold for whole blocks.
#[inline(always)]
unsafe fn lut_row<S: Simd, I: Integer>(
    lut: &Lut,
    row: usize,
    cols: usize,
    first: usize,
    values: &mut [i16],
    scales: &mut [f32],
) {
    let (start, data) = (row * cols + first, &lut.indices[..]);
    let mut indices = [0u8; UNIT];
    let scales = scales.chunks_mut(UNIT / I::BLOCK);
    for ((block, values), scales) in values.chunks_mut(UNIT).enumerate().zip(scales) {
        let (planes, table_scale) = lut.tables.integers(lut.table_of(row, first + block * UNIT));
        scales.fill(table_scale * ONE / f32::from(I::TABLE_PART));
        let start = start + block * UNIT;
        let packed =
            if lut.nbits == 4 && start.is_multiple_of(2) { data.get(start / 2..start / 2 + UNIT / 2) } else { None };
        // SAFETY: AVX2 is there.
        unsafe {
            let table = Table::<I>::of(&planes[0]);
            match (packed, <&mut [i16; UNIT]>::try_from(&mut *values)) {
                (Some(packed), Ok(values)) => {
                    for (packed, values) in packed.chunks_exact(32).zip(values.chunks_exact_mut(64)) {
                        table.look_up(nibbles(packed), values);
                    }
                }
                _ => {
                    unpack::<S>(data, start, lut.nbits, &mut indices[..values.len()]);
                    let mut looked_up = [0i16; UNIT];
                    for (indices, values) in indices.chunks_exact(64).zip(looked_up.chunks_exact_mut(64)) {
                        table.look_up(every_other(indices), values);
                    }
                    values.copy_from_slice(&looked_up[..values.len()]);
                }
            }
        }
    }
}

/// Of 64 four-bit indices those at even places, and those at odd ones.
#[inline(always)]
unsafe fn nibbles(packed: &[u8]) -> [__m256i; 2] {
    debug_assert_eq!(packed.len(), 32);
    unsafe {
        let (packed, mask) = (_mm256_loadu_si256(packed.as_ptr().cast()), _mm256_set1_epi8(15));
        [_mm256_and_si256(packed, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask)]
    }
}

/// The same of 64 indices in a byte each.
#[inline(always)]
unsafe fn every_other(indices: &[u8]) -> [__m256i; 2] {
    debug_assert_eq!(indices.len(), 64);
    unsafe {
        let p: *const __m256i = indices.as_ptr().cast();
        let halves = [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))];
        let mask = _mm256_set1_epi16(0xff);
        let even = halves.map(|half| _mm256_and_si256(half, mask));
        let odd = halves.map(|half| _mm256_srli_epi16::<8>(half));
        [even, odd].map(|[a, b]| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(a, b)))
    }
}

/// Sixteen entries with as many bits as the integers have, their low bytes and their high ones.
struct Table<I> {
    low: __m256i,
    high: __m256i,
    integer: PhantomData<I>,
}

impl<I: Integer> Table<I> {
    #[inline(always)]
    unsafe fn of(planes: &Planes) -> Table<I> {
        unsafe {
            let (low, high) = (twice(&planes.low), twice(&planes.high));
            let part = _mm256_set1_epi16(I::TABLE_PART);
            let first = _mm256_mulhrs_epi16(_mm256_unpacklo_epi8(low, high), part);
            let second = _mm256_mulhrs_epi16(_mm256_unpackhi_epi8(low, high), part);
            let mask = _mm256_set1_epi16(0xff);
            Table {
                low: _mm256_packus_epi16(_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)),
                high: _mm256_packus_epi16(_mm256_srli_epi16::<8>(first), _mm256_srli_epi16::<8>(second)),
                integer: PhantomData,
            }
        }
    }

    /// The entries of 64 indices, of which `[even, odd]` holds every other one.
    #[inline(always)]
    unsafe fn look_up(&self, [even, odd]: [__m256i; 2], out: &mut [i16]) {
        debug_assert_eq!(out.len(), 64);
        unsafe {
            let entries = |indices| (_mm256_shuffle_epi8(self.low, indices), _mm256_shuffle_epi8(self.high, indices));
            let (even, odd) = (entries(even), entries(odd));
            // Interleaving works on halves of 16 bytes, so that what follows is one half of each of two registers.
            let even = [_mm256_unpacklo_epi8(even.0, even.1), _mm256_unpackhi_epi8(even.0, even.1)];
            let odd = [_mm256_unpacklo_epi8(odd.0, odd.1), _mm256_unpackhi_epi8(odd.0, odd.1)];
            let out: *mut __m256i = out.as_mut_ptr().cast();
            for half in 0..2 {
                let first = _mm256_unpacklo_epi16(even[half], odd[half]);
                let second = _mm256_unpackhi_epi16(even[half], odd[half]);
                _mm256_storeu_si256(out.add(half), _mm256_permute2x128_si256::<0x20>(first, second));
                _mm256_storeu_si256(out.add(2 + half), _mm256_permute2x128_si256::<0x31>(first, second));
            }
        }
    }
}

#[inline(always)]
unsafe fn twice(half: &[u8; 16]) -> __m256i {
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(half.as_ptr().cast())) }
}

/// What [`Integer::TABLE_PART`] is a part of.
const ONE: f32 = 32768.0;

/// [`unpack_row`] of linear codes whose scale holds for whole blocks: they are integers already.
#[inline(always)]
unsafe fn affine_row<S: Simd, I: Integer>(
    affine: &Affine,
    row: usize,
    cols: usize,
    first: usize,
    values: &mut [i16],
    scales: &mut [f32],
) {
    let mut codes = [0u8; DEPTH];
    unpack::<S>(&affine.data, row * cols + first, affine.codes.nbits(), &mut codes[..values.len()]);
    let numbers = scale_numbers(affine, row, first, I::BLOCK);
    for (((block, values), scale), index) in values.chunks_mut(I::BLOCK).enumerate().zip(scales).zip(numbers) {
        *scale = affine.scale.get(index);
        let offset = affine.offset_at(index) as i16;
        let codes = values.iter_mut().zip(&codes[block * I::BLOCK..]);
        match affine.codes {
            CodeType::Int8 => codes.for_each(|(value, &code)| *value = i16::from(code as i8) - offset),
            CodeType::Int4 => codes.for_each(|(value, &code)| *value = i16::from((code ^ 8) as i8) - 8 - offset),
            CodeType::Uint8 | CodeType::Uint4 => codes.for_each(|(value, &code)| *value = i16::from(code) - offset),
        }
    }
}

/// The numbers of the scales that hold for a row's blocks of `step` columns, from column `first` on.
#[inline(always)]
fn scale_numbers(affine: &Affine, row: usize, first: usize, step: usize) -> impl Iterator<Item = usize> {
    let columns = affine.block[1];
    let (mut index, mut left) = (affine.block_of(row, first), columns - first % columns);
    std::iter::from_fn(move || {
        let found = index;
        left = left.saturating_sub(step);
        if left == 0 {
            (index, left) = (index + 1, columns);
        }
        Some(found)
    })
}

/// The weight, if its codes become bytes one by one.
#[inline(always)]
fn bytes_of<I: Integer>(weight: &PackedWeight) -> Option<&Affine> {
    match weight.encoding() {
        Encoding::Affine(affine) if I::TERMS == 4 && affine.codes == CodeType::Int8 && affine.offset.is_none() => {
            (affine.block[1] == weight.cols() || affine.block[1].is_multiple_of(UNIT)).then_some(affine)
        }
        _ => None,
    }
}

/// [`unpack_row`] and [`Integer::narrow`] of the codes of [`bytes_of`].
#[inline(always)]
unsafe fn bytes_row<I: Integer>(
    affine: &Affine,
    (row, cols): (usize, usize),
    columns: &Range<usize>,
    out: &mut [u8; DEPTH * 2],
    scales: &mut [f32],
    starts: &mut [i32],
) {
    let codes = &affine.data[row * cols..][columns.clone()];
    let blocks = codes.chunks(I::BLOCK).zip(out.chunks_exact_mut(I::BLOCK)).zip(scales.iter_mut().zip(starts));
    let numbers = scale_numbers(affine, row, columns.start, I::BLOCK);
    for (((codes, out), (scale, start)), number) in blocks.zip(numbers) {
        *scale = affine.scale.get(number) * if I::HALVES_CODES { 2.0 } else { 1.0 };
        let mut padded = [0u8; UNIT];
        let codes = match codes.len() == I::BLOCK {
            true => codes,
            false => {
                padded[..codes.len()].copy_from_slice(codes);
                &padded[..I::BLOCK]
            }
        };
        // SAFETY: AVX2 is there, and both sides have whole blocks, of a multiple of 32 bytes.
        unsafe {
            let flip = _mm256_set1_epi8(i8::MIN);
            let mut sums = _mm256_setzero_si256();
            for at in (0..I::BLOCK).step_by(32) {
                // Without a sign, 128 more; the mean with 128 is half of it, rounded up.
                let plain = _mm256_xor_si256(_mm256_loadu_si256(codes[at..].as_ptr().cast()), flip);
                let plain = if I::HALVES_CODES { _mm256_avg_epu8(plain, flip) } else { plain };
                sums = _mm256_add_epi64(sums, _mm256_sad_epu8(plain, _mm256_setzero_si256()));
                _mm256_storeu_si256(out[at..].as_mut_ptr().cast(), _mm256_xor_si256(plain, flip));
            }
            let mut parts = [0i64; 4];
            _mm256_storeu_si256(parts.as_mut_ptr().cast(), sums);
            *start = -I::SHIFT * (parts.iter().sum::<i64>() as i32 - 128 * I::BLOCK as i32);
        }
    }
}
