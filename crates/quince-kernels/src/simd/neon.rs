//! The vector of 64-bit Arm: four lanes of Neon, two registers at a time so that a vector has eight lanes.

use std::arch::aarch64::*;

use half::f16;

use super::Simd;

/// Eight lanes in two registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t, float32x4_t);

macro_rules! both {
    ($f:ident($a:expr, $b:expr)) => {
        Neon($f($a.0, $b.0), $f($a.1, $b.1))
    };
}

// SAFETY of everything below: every 64-bit Arm processor has Neon, and the trait's contract gives the readable or
// writable elements.
impl Simd for Neon {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Neon(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Neon(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            vst1q_f32(p, self.0);
            vst1q_f32(p.add(4), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // The f16 intrinsics are not stable; the array form becomes `fcvtl` where the crate `half` knows how.
        unsafe { Self::load(<[f32; 8]>::load_f16(p).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        unsafe {
            let mut lanes = [0.0f32; 8];
            self.store(lanes.as_mut_ptr());
            lanes.store_f16(p);
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { both!(vaddq_f32(self, o)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { both!(vsubq_f32(self, o)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { both!(vmulq_f32(self, o)) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { both!(vdivq_f32(self, o)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Neon(vfmaq_f32(b.0, self.0, a.0), vfmaq_f32(b.1, self.1, a.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { both!(vmaxq_f32(self, o)) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { both!(vminq_f32(self, o)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Neon(vrndnq_f32(self.0), vrndnq_f32(self.1)) }
    }
    #[inline(always)]
    unsafe fn scale_pow2(self, n: Self) -> Self {
        unsafe {
            let bias = vdupq_n_s32(127);
            let low = vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n.0), bias));
            let high = vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n.1), bias));
            both!(vmulq_f32(self, Neon(vreinterpretq_f32_s32(low), vreinterpretq_f32_s32(high))))
        }
    }
    #[inline(always)]
    unsafe fn unless_below(self, x: Self, limit: Self) -> Self {
        unsafe {
            let low = vbicq_u32(vreinterpretq_u32_f32(self.0), vcltq_f32(x.0, limit.0));
            let high = vbicq_u32(vreinterpretq_u32_f32(self.1), vcltq_f32(x.1, limit.1));
            Neon(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe { Self::load(<[f32; 8]>::load_i8(p).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        unsafe { Self::load(<[f32; 8]>::load_u8(p).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn lookup<const ENTRIES: usize>(table: *const f32, p: *const u8) -> Self {
        unsafe { Self::load(<[f32; 8]>::lookup::<ENTRIES>(table, p).as_ptr()) }
    }
    #[inline(always)]
    fn deposit_bits(word: u64, mask: u64) -> u64 {
        <[f32; 8]>::deposit_bits(word, mask)
    }
    #[inline(always)]
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        unsafe { <[f32; 8]>::transpose8(src, src_stride, dst, dst_stride) }
    }
}
