//! Integer products of decode with lookup tables for AVX-512, which looks 32 entries of 16 bits up at once.
//!
//! Bytes of indices are widened to 16 bits. A lookup reads the lowest five bits of a lane; a table of fewer entries
//! repeats itself, so that the upper bits, which belong to other indices, do not matter, and the index that comes next
//! is a shift away.

use std::arch::x86_64::*;
use std::ops::Range;

use super::gemv::PREFETCH;
use super::gemv_x86::Product;
use super::quantize::Order;
use super::simd::{Avx512, Simd, prefetch};
use super::weights::{Encoding, GroupAxis, Lut, PackedWeight};

/// The order of activations for this module's product with `weight`; `None` when it has none.
pub(crate) fn order(weight: &PackedWeight) -> Option<Order> {
    match weight.encoding() {
        Encoding::Lut(lut)
            if matches!(lut.nbits, 1 | 2 | 4)
                && lut.axis == GroupAxis::Rows
                && (weight.cols() * lut.nbits).is_multiple_of(8) =>
        {
            Some(Order::Words { planes: 8 / lut.nbits })
        }
        _ => None,
    }
}

/// Computes the columns `rows` of the product.
///
/// # Safety
/// The processor has AVX-512 F and BW; `product.x` has the order that [`order`] gives for its weight; no other thread
/// writes the same columns.
pub(crate) unsafe fn multiply_rows(product: &Product, rows: Range<usize>) {
    let Encoding::Lut(lut) = product.weight.encoding() else { return };
    let vnni = is_x86_feature_detected!("avx512vnni");
    let mut first = 0;
    while first < product.m {
        let part = Part { product, lut, rows: rows.clone(), first };
        // SAFETY: as the caller vouches. The packed bytes come from the cache after the first time.
        first += unsafe {
            match (product.m - first, vnni) {
                (1, true) => with_vnni::<1>(&part),
                (2 | 3, true) => with_vnni::<2>(&part),
                (_, true) => with_vnni::<4>(&part),
                (1, false) => without_vnni::<1>(&part),
                (2 | 3, false) => without_vnni::<2>(&part),
                (_, false) => without_vnni::<4>(&part),
            }
        };
    }
}

/// Some rows of a weight, with the rows of activations from `first`.
struct Part<'a> {
    product: &'a Product<'a>,
    lut: &'a Lut,
    rows: Range<usize>,
    first: usize,
}

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn with_vnni<const M: usize>(part: &Part) -> usize {
    // SAFETY: this function has the instructions.
    unsafe { part.multiply::<true, M>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn without_vnni<const M: usize>(part: &Part) -> usize {
    // SAFETY: this function has the instructions.
    unsafe { part.multiply::<false, M>() }
}

// SAFETY of the functions below: the caller vouches for AVX-512 F and BW, and for VNNI where `VNNI` says so. Blocks
// that are not whole are copied before they are read.

impl Part<'_> {
    /// Multiplies with `M` rows of activations; returns `M`.
    #[inline(always)]
    unsafe fn multiply<const VNNI: bool, const M: usize>(&self) -> usize {
        unsafe {
            match self.lut.nbits {
                1 => self.multiply_by::<VNNI, 8, M>(),
                2 => self.multiply_by::<VNNI, 4, M>(),
                _ => self.multiply_by::<VNNI, 2, M>(),
            }
        }
        M
    }

    #[inline(always)]
    unsafe fn multiply_by<const VNNI: bool, const PLANES: usize, const M: usize>(&self) {
        let Product { weight, x, bias, y, .. } = *self.product;
        let (n, row_bytes) = (weight.rows(), weight.cols() / PLANES);
        let block_bytes = x.order.block() / PLANES;
        let mut activations: [(&[i16], &[f32]); M] = [(&[], &[]); M];
        for (i, activations) in activations.iter_mut().enumerate() {
            *activations = x.row(self.first + i);
        }
        for row in self.rows.clone() {
            let bytes = &self.lut.indices[row * row_bytes..(row + 1) * row_bytes];
            let (planes, scale) = self.lut.tables.integers(self.lut.table_of(row, 0));
            // SAFETY: a block of bytes and of activations has its size; the columns are this task's.
            unsafe {
                let low = _mm_loadu_si128(planes[0].low.as_ptr().cast());
                let high = _mm_loadu_si128(planes[0].high.as_ptr().cast());
                let entries = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
                let table = _mm512_broadcast_i64x4(entries);
                let mut sums = [Avx512::splat(0.0); M];
                for (block, bytes) in bytes.chunks(block_bytes).enumerate() {
                    if bytes.len() == block_bytes {
                        prefetch(bytes.as_ptr().wrapping_add(PREFETCH));
                        add_block::<VNNI, PLANES, M>(table, bytes, block, &activations, &mut sums);
                    } else {
                        let mut padded = [0u8; 64];
                        padded[..bytes.len()].copy_from_slice(bytes);
                        add_block::<VNNI, PLANES, M>(table, &padded[..block_bytes], block, &activations, &mut sums);
                    }
                }
                for (i, sum) in sums.into_iter().enumerate() {
                    let result = sum.reduce_add() * scale + bias.map_or(0.0, |bias| bias[row]);
                    y.slice((self.first + i) * n + row, 1)[0] = result;
                }
            }
        }
    }
}

/// Adds the products of a whole block of indices.
#[inline(always)]
unsafe fn add_block<const VNNI: bool, const PLANES: usize, const M: usize>(
    table: __m512i,
    bytes: &[u8],
    block: usize,
    x: &[(&[i16], &[f32]); M],
    sums: &mut [Avx512; M],
) {
    let len = bytes.len() * PLANES;
    debug_assert!(bytes.len().is_multiple_of(32) && x.iter().all(|x| x.0.len() >= (block + 1) * len));
    unsafe {
        let mut exact = [_mm512_setzero_si512(); M];
        for (group, bytes) in bytes.chunks_exact(32).enumerate() {
            let words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()));
            for plane in 0..PLANES {
                let indices = match (PLANES, plane) {
                    (_, 0) => words,
                    (2, _) => _mm512_srli_epi16::<4>(words),
                    (4, _) => _mm512_srl_epi16(words, _mm_cvtsi32_si128(2 * plane as i32)),
                    _ => _mm512_srl_epi16(words, _mm_cvtsi32_si128(plane as i32)),
                };
                let weights = _mm512_permutexvar_epi16(indices, table);
                let at = block * len + (group * PLANES + plane) * 32;
                for (exact, (values, _)) in exact.iter_mut().zip(x) {
                    let x = _mm512_loadu_si512(values.as_ptr().add(at).cast());
                    *exact = if VNNI {
                        _mm512_dpwssd_epi32(*exact, weights, x)
                    } else {
                        _mm512_add_epi32(*exact, _mm512_madd_epi16(weights, x))
                    };
                }
            }
        }
        for ((sum, exact), (_, scales)) in sums.iter_mut().zip(exact).zip(x) {
            *sum = Avx512(_mm512_cvtepi32_ps(exact)).mul_add(Avx512::splat(scales[block]), *sum);
        }
    }
}
