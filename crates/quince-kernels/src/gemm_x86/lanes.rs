//! Vectors whose lanes of 32 bits hold two words or four bytes, and how numbers become those.

use std::arch::x86_64::*;

use super::super::simd::{Avx2, Avx512, Simd};
use super::super::weights::Affine;

/// The integers of a product.
pub(super) trait Integer {
    /// How many a lane of 32 bits holds.
    const TERMS: usize;
    /// Terms that share a scale, on either side: 64 or 128.
    const BLOCK: usize;
    /// Largest magnitude of an activation.
    const ACTIVATION_MAX: f32;
    /// Largest magnitude of a rounded element of a weight.
    const WEIGHT_MAX: f32;
    /// What entries of tables, which have 15 bits, are multiplied by, in parts of 2^15.
    const TABLE_PART: i16;
    /// A lane of activations.
    fn activations(terms: &[i16]) -> u32;
    /// Whether codes less their offset are such integers, of codes that do not become bytes one by one.
    fn holds(affine: &Affine) -> bool;
    /// What is added to activations, so that they have no sign.
    const SHIFT: i32 = 0;
    /// Whether codes of eight bits are halved.
    const HALVES_CODES: bool = false;
    /// Turns words into such integers, at the beginning of the same memory, and gives what the sum of each block begins
    /// with.
    ///
    /// # Safety
    /// The processor has AVX2.
    unsafe fn narrow<const N: usize>(words: &mut [i16; N], starts: &mut [i32]);
}

/// A lane of 32 bits sums the products of one block: 128 · 4095 · 4096 < 2^31.
impl Integer for i16 {
    const TERMS: usize = 2;
    const BLOCK: usize = 128;
    const ACTIVATION_MAX: f32 = 4095.0;
    const WEIGHT_MAX: f32 = 4096.0;
    const TABLE_PART: i16 = 1 << 13;

    #[inline(always)]
    fn activations(terms: &[i16]) -> u32 {
        u32::from(terms[0] as u16) | u32::from(terms[1] as u16) << 16
    }

    fn holds(_: &Affine) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn narrow<const N: usize>(_: &mut [i16; N], starts: &mut [i32]) {
        starts.fill(0);
    }
}

/// Bytes: activations are made positive, and sums of blocks begin with what that adds to them.
macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident, block $block:literal, activations $activation_max:literal + $shift:literal, weights $weight_max:literal,
        table $table_part:literal, halves codes $halves:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Integer for $name {
            const TERMS: usize = 4;
            const BLOCK: usize = $block;
            const ACTIVATION_MAX: f32 = $activation_max;
            const WEIGHT_MAX: f32 = $weight_max;
            const TABLE_PART: i16 = $table_part;
            const SHIFT: i32 = $shift;
            const HALVES_CODES: bool = $halves;

            #[inline(always)]
            fn activations(terms: &[i16]) -> u32 {
                terms.iter().rev().fold(0, |lane, &term| lane << 8 | u32::from((term + $shift) as u8))
            }

            fn holds(affine: &Affine) -> bool {
                affine.codes.nbits() == 4
            }

            #[inline(always)]
            unsafe fn narrow<const N: usize>(words: &mut [i16; N], starts: &mut [i32]) {
                // SAFETY: as the caller vouches.
                unsafe { narrow(words, $block, starts, $shift) }
            }
        }
    };
}

bytes!(
    /// Eight bits. The largest entry of a table, 16383, becomes 127.
    Bytes, block 128, activations 127.0 + 128, weights 127.0, table 254, halves codes false
);
bytes!(
    /// Seven bits: four products, each at most 127 · 64, are summed in 16 bits. The largest entry becomes 63, and codes of
    /// eight bits are halved.
    SevenBits, block 64, activations 63.0 + 64, weights 63.0, table 126, halves codes true
);

/// [`Integer::narrow`] to bytes for activations to which `shift` was added.
#[inline(always)]
unsafe fn narrow<const N: usize>(words: &mut [i16; N], block: usize, starts: &mut [i32], shift: i32) {
    for (start, block) in starts.iter_mut().zip(words.chunks_exact(block)) {
        // At most 128 words of at most 128, or what an earlier row left where this one has ended.
        *start = -shift * i32::from(block.iter().fold(0i16, |sum, &word| sum.wrapping_add(word)));
    }
    let words = words.as_mut_ptr();
    for at in (0..N).step_by(32) {
        // SAFETY: 32 words are read before their bytes are written, which lie before all words yet to be read.
        unsafe {
            let source: *const __m256i = words.add(at).cast_const().cast();
            let bytes = _mm256_packs_epi16(_mm256_loadu_si256(source), _mm256_loadu_si256(source.add(1)));
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
            _mm256_storeu_si256(words.cast::<u8>().add(at).cast(), bytes);
        }
    }
}

/// Vectors of lanes.
///
/// # Safety
/// As of [`Simd`].
pub(super) trait Lanes: Copy {
    type Floats: Simd;
    type Integer: Integer;
    unsafe fn splat(lane: i32) -> Self;
    unsafe fn load(p: *const u32) -> Self;
    /// How many lanes that follow each other are multiplied at a time: one or two.
    const STEPS: usize = 1;
    /// `self` and the sums of the products of the integers of `weights` and `activations`, in 32 bits: of the first
    /// [`Lanes::STEPS`] vectors.
    unsafe fn add_products(self, weights: [Self; 2], activations: [Self; 2]) -> Self;
    /// Lanes as numbers.
    unsafe fn to_floats(self) -> Self::Floats;
}

impl Lanes for __m256i {
    type Floats = Avx2;
    type Integer = i16;
    #[inline(always)]
    unsafe fn splat(lane: i32) -> Self {
        unsafe { _mm256_set1_epi32(lane) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: [Self; 2], activations: [Self; 2]) -> Self {
        unsafe { _mm256_add_epi32(self, _mm256_madd_epi16(weights[0], activations[0])) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Avx2 {
        unsafe { Avx2(_mm256_cvtepi32_ps(self)) }
    }
}

impl Lanes for __m512i {
    type Floats = Avx512;
    type Integer = i16;
    #[inline(always)]
    unsafe fn splat(lane: i32) -> Self {
        unsafe { _mm512_set1_epi32(lane) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: [Self; 2], activations: [Self; 2]) -> Self {
        unsafe { _mm512_add_epi32(self, _mm512_madd_epi16(weights[0], activations[0])) }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Avx512 {
        unsafe { Avx512(_mm512_cvtepi32_ps(self)) }
    }
}

/// A vector of `$name` is an `__m512i` whose integers VNNI multiplies and adds in one instruction.
macro_rules! vnni {
    ($(#[$doc:meta])* $name:ident, $integer:ty, $add:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name(__m512i);

        impl Lanes for $name {
            type Floats = Avx512;
            type Integer = $integer;
            #[inline(always)]
            unsafe fn splat(lane: i32) -> Self {
                unsafe { $name(__m512i::splat(lane)) }
            }
            #[inline(always)]
            unsafe fn load(p: *const u32) -> Self {
                unsafe { $name(__m512i::load(p)) }
            }
            #[inline(always)]
            unsafe fn add_products(self, weights: [Self; 2], activations: [Self; 2]) -> Self {
                unsafe { $name($add(self.0, weights[0].0, activations[0].0)) }
            }
            #[inline(always)]
            unsafe fn to_floats(self) -> Avx512 {
                unsafe { self.0.to_floats() }
            }
        }
    };
}

vnni!(
    /// Words.
    Vnni, i16, _mm512_dpwssd_epi32
);
vnni!(
    /// Bytes: those of activations have no sign.
    VnniBytes, Bytes, add_bytes
);

#[inline(always)]
unsafe fn add_bytes(sums: __m512i, weights: __m512i, activations: __m512i) -> __m512i {
    unsafe { _mm512_dpbusd_epi32(sums, activations, weights) }
}

/// [`__m256i`] of bytes.
#[derive(Clone, Copy)]
pub(super) struct Avx2Bytes(__m256i);

impl Lanes for Avx2Bytes {
    type Floats = Avx2;
    type Integer = SevenBits;
    const STEPS: usize = 2;
    #[inline(always)]
    unsafe fn splat(lane: i32) -> Self {
        unsafe { Avx2Bytes(__m256i::splat(lane)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        unsafe { Avx2Bytes(__m256i::load(p)) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: [Self; 2], activations: [Self; 2]) -> Self {
        unsafe {
            let first = _mm256_maddubs_epi16(activations[0].0, weights[0].0);
            let words = _mm256_add_epi16(first, _mm256_maddubs_epi16(activations[1].0, weights[1].0));
            Avx2Bytes(_mm256_add_epi32(self.0, _mm256_madd_epi16(words, _mm256_set1_epi16(1))))
        }
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Avx2 {
        unsafe { self.0.to_floats() }
    }
}
