//! The vectors of x86-64: 8 lanes with AVX2, FMA and F16C; 16 lanes with AVX-512.

use std::arch::x86_64::*;

use half::f16;

use super::Simd;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256);

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// SAFETY of everything below: the trait's contract gives the instruction set and the readable or writable elements.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Avx2(_mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        unsafe { Avx2(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_sub_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_mul_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_div_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Avx2(_mm256_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_max_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_min_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn scale_pow2(self, n: Self) -> Self {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127));
            Avx2(_mm256_mul_ps(self.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))))
        }
    }
    #[inline(always)]
    unsafe fn unless_below(self, x: Self, limit: Self) -> Self {
        unsafe { Avx2(_mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, limit.0))) }
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_add4(vectors: [Self; 4]) -> [f32; 4] {
        unsafe { reduce_add4(vectors.map(|vector| vector.0)) }
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe { Avx2(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        unsafe { Avx2(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn lookup<const ENTRIES: usize>(table: *const f32, p: *const u8) -> Self {
        unsafe {
            let index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            Avx2(match ENTRIES {
                2 => _mm256_permutevar8x32_ps(_mm256_castpd_ps(_mm256_broadcast_sd(&*table.cast::<f64>())), index),
                4 => _mm256_permutevar8x32_ps(_mm256_broadcast_ps(&*table.cast::<__m128>()), index),
                8 => _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index),
                16 => {
                    let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
                    let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(8)), index);
                    // Bit 3 of the index, moved to the sign, chooses the half.
                    _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
                }
                _ => _mm256_i32gather_ps::<4>(table, index),
            })
        }
    }
    #[inline(always)]
    fn deposit_bits(word: u64, mask: u64) -> u64 {
        unsafe { _pdep_u64(word, mask) }
    }
    #[inline(always)]
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        unsafe { transpose8(src, src_stride, dst, dst_stride) }
    }
}

// SAFETY of everything below: as above.
impl Simd for Avx512 {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx512(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_add_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_sub_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_mul_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_div_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Avx512(_mm512_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_max_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_min_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Avx512(_mm512_roundscale_ps::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn scale_pow2(self, n: Self) -> Self {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.0), _mm512_set1_epi32(127));
            Avx512(_mm512_mul_ps(self.0, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))))
        }
    }
    #[inline(always)]
    unsafe fn unless_below(self, x: Self, limit: Self) -> Self {
        unsafe { Avx512(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, limit.0), self.0)) }
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn reduce_add4(vectors: [Self; 4]) -> [f32; 4] {
        unsafe {
            reduce_add4(vectors.map(|v| _mm256_add_ps(_mm512_castps512_ps256(v.0), _mm512_extractf32x8_ps::<1>(v.0))))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe { Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        unsafe { Avx512(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn lookup<const ENTRIES: usize>(table: *const f32, p: *const u8) -> Self {
        unsafe {
            let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            Avx512(match ENTRIES {
                // The permutation looks at the low four bits of an index, and indices are below `ENTRIES`.
                ..=16 => _mm512_permutexvar_ps(index, _mm512_maskz_loadu_ps(low_bits(ENTRIES), table)),
                _ => _mm512_i32gather_ps::<4>(index, table),
            })
        }
    }
    #[inline(always)]
    fn deposit_bits(word: u64, mask: u64) -> u64 {
        unsafe { _pdep_u64(word, mask) }
    }
    #[inline(always)]
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        unsafe { transpose8(src, src_stride, dst, dst_stride) }
    }
}

/// A mask of the lowest `count` ≤ 16 lanes.
#[inline(always)]
fn low_bits(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// The sum of the lanes of each.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn reduce_add4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    unsafe {
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
        std::mem::transmute::<__m128, [f32; 4]>(sums)
    }
}

/// # Safety
/// The processor has AVX2, and both 8 × 8 blocks can be accessed.
#[inline(always)]
unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
    unsafe {
        let row = |i: usize| _mm256_loadu_ps(src.add(i * src_stride));
        let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let ((a0, a1), (a2, a3)) = (pair(row(0), row(1)), pair(row(2), row(3)));
        let ((a4, a5), (a6, a7)) = (pair(row(4), row(5)), pair(row(6), row(7)));
        let quad = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
        let ((b0, b1), (b2, b3)) = (quad(a0, a2), quad(a1, a3));
        let ((b4, b5), (b6, b7)) = (quad(a4, a6), quad(a5, a7));
        // In the order of `dst`: callers may let rows that are wider than their place run into the next.
        for (half, pairs) in [[(b0, b4), (b1, b5), (b2, b6), (b3, b7)]; 2].into_iter().enumerate() {
            for (i, (low, high)) in pairs.into_iter().enumerate() {
                let row = match half {
                    0 => _mm256_permute2f128_ps::<0x20>(low, high),
                    _ => _mm256_permute2f128_ps::<0x31>(low, high),
                };
                _mm256_storeu_ps(dst.add((4 * half + i) * dst_stride), row);
            }
        }
    }
}
