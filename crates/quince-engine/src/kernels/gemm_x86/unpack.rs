//! Rows of a weight as integers, in the order in which a tile meets them.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::dequantize::{dequantize_generic, unpack};
use super::super::lut_tables::Planes;
use super::super::simd::{Simd, prefetch};
use super::super::weights::{Affine, CodeType, Encoding, GroupAxis, Lut, PackedWeight};
use super::lanes::{Integer, Lanes};
use super::panels::round_block;
use super::{DEPTH, SCALES, TASK_ROWS, UNIT};

/// Rows of a weight as integers.
pub(super) struct Unpacked {
    /// For each tile of rows, for each group of terms that a lane holds, the lanes of its rows; and room for what a tile
    /// leaves behind its end.
    lanes: [u32; TASK_ROWS * DEPTH / 2 + 8],
    /// `[TASK_ROWS, SCALES]`.
    pub(super) scales: [f32; TASK_ROWS * SCALES],
    /// What the sums of blocks begin with: `[TASK_ROWS, SCALES]`.
    pub(super) starts: [i32; TASK_ROWS * SCALES],
    /// The rows of a tile on their way to `lanes`.
    rows: [[u32; DEPTH / 2]; 16],
}

// SAFETY of the functions below: the caller vouches for the instructions of `L` or `S`, which include AVX2; what else
// they need is said where they access memory.

impl Unpacked {
    pub(super) fn new() -> Unpacked {
        Unpacked {
            lanes: [0; TASK_ROWS * DEPTH / 2 + 8],
            scales: [0.0; TASK_ROWS * SCALES],
            starts: [0; TASK_ROWS * SCALES],
            rows: [[0; DEPTH / 2]; 16],
        }
    }

    /// The lanes from those of the tile that begins with `row`.
    #[inline(always)]
    pub(super) fn lanes_of(&self, row: usize, terms: usize) -> &[u32] {
        &self.lanes[row * DEPTH / terms..]
    }

    /// Unpacks at most `TILE` rows of a weight to the tile whose first row is `at`.
    #[inline(always)]
    pub(super) unsafe fn tile<L: Lanes, const TILE: usize>(
        &mut self,
        weight: &PackedWeight,
        rows: Range<usize>,
        columns: Range<usize>,
        at: usize,
    ) {
        let terms = L::Integer::TERMS;
        for (i, row) in rows.enumerate() {
            prefetch_row(weight, row + ROWS_AHEAD, &columns);
            let blocks = (at + i) * SCALES..(at + i + 1) * SCALES;
            let scales = &mut self.scales[blocks.clone()];
            let words: &mut [i16; DEPTH] = bytemuck::cast_mut(&mut self.rows[i]);
            unsafe {
                unpack_row::<L::Floats, L::Integer>(weight, row, columns.start, columns.len(), words, scales);
                L::Integer::narrow(words, &mut self.starts[blocks]);
            }
        }
        let lanes = self.lanes[at * DEPTH / terms..][..TILE * DEPTH / terms + 8].as_mut_ptr().cast::<f32>();
        for lane in (0..columns.len().next_multiple_of(UNIT) / terms).step_by(8) {
            // Eight rows are written where fewer belong: what is too much is written over by what follows.
            for row in (0..TILE).step_by(8).rev() {
                // SAFETY: eight lanes of eight rows are read, and written to `TILE · 8` lanes and the room behind.
                unsafe {
                    let source = self.rows[row].as_ptr().add(lane).cast::<f32>();
                    L::Floats::transpose8(source, DEPTH / 2, lanes.add(lane * TILE + row), TILE);
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
    let start = row * cols + first;
    let mut indices = [0u8; UNIT];
    let scales = scales.chunks_mut(UNIT / I::BLOCK);
    for ((block, values), scales) in values.chunks_mut(UNIT).enumerate().zip(scales) {
        let (planes, table_scale) = lut.tables.integers(lut.table_of(row, first + block * UNIT));
        scales.fill(table_scale * ONE / f32::from(I::TABLE_PART));
        let start = start + block * UNIT;
        let packed = if lut.nbits == 4 && start.is_multiple_of(2) {
            lut.indices.get(start / 2..start / 2 + UNIT / 2)
        } else {
            None
        };
        // SAFETY: AVX2 is there.
        unsafe {
            match (packed, <&mut [i16; UNIT]>::try_from(&mut *values)) {
                (Some(packed), Ok(values)) => look_up::<I>(
                    &planes[0],
                    #[inline(always)]
                    |at| nibbles(packed[at / 2..][..16].as_ptr()),
                    values,
                ),
                _ => {
                    unpack::<S>(&lut.indices, start, lut.nbits, &mut indices[..values.len()]);
                    let mut looked_up = [0i16; UNIT];
                    look_up::<I>(
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
unsafe fn look_up<I: Integer>(table: &Planes, indices: impl Fn(usize) -> __m256i, out: &mut [i16; UNIT]) {
    unsafe {
        let (low, high) = (twice(&table.low), twice(&table.high));
        for at in (0..UNIT).step_by(32) {
            // Interleaving works on halves of 16 bytes: the middle quarters change places before it.
            let indices = _mm256_permute4x64_epi64::<0b11_01_10_00>(indices(at));
            let (low, high) = (_mm256_shuffle_epi8(low, indices), _mm256_shuffle_epi8(high, indices));
            let out: *mut __m256i = out[at..][..32].as_mut_ptr().cast();
            _mm256_storeu_si256(out, part_of::<I>(_mm256_unpacklo_epi8(low, high)));
            _mm256_storeu_si256(out.add(1), part_of::<I>(_mm256_unpackhi_epi8(low, high)));
        }
    }
}

#[inline(always)]
unsafe fn twice(half: &[u8; 16]) -> __m256i {
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(half.as_ptr().cast())) }
}

/// What [`Integer::TABLE_PART`] is a part of.
const ONE: f32 = 32768.0;

/// As many bits of 16 table entries as the integers have.
#[inline(always)]
unsafe fn part_of<I: Integer>(entries: __m256i) -> __m256i {
    unsafe { _mm256_mulhrs_epi16(entries, _mm256_set1_epi16(I::TABLE_PART)) }
}

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
    for ((block, values), scale) in values.chunks_mut(I::BLOCK).enumerate().zip(scales) {
        let index = affine.block_of(row, first + block * I::BLOCK);
        *scale = affine.scale.get(index);
        let offset = affine.offset_at(index) as i16;
        let codes = values.iter_mut().zip(&codes[block * I::BLOCK..]);
        match affine.codes {
            CodeType::Int8 => codes.for_each(|(value, &code)| *value = i16::from(code as i8) - offset),
            CodeType::Int4 => codes.for_each(|(value, &code)| *value = i16::from((code ^ 8) as i8) - 8 - offset),
            CodeType::Uint8 | CodeType::Uint4 => codes.for_each(|(value, &code)| *value = i16::from(code) - offset),
        }
        if I::HALVES_CODES && affine.codes.nbits() == 8 {
            *scale *= 2.0;
            values.iter_mut().for_each(|value| *value = (*value + 1) >> 1);
        }
    }
}
