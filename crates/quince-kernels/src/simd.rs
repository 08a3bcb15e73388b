//! Vectors of f32 that generic kernels are written in: one trait, one implementation for each instruction set.
//!
//! A kernel is an `#[inline(always)]` generic function over [`Simd`]; [`for_isa`] compiles it once for each
//! instruction set inside a `#[target_feature]` function and calls the one asked for.

use half::f16;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// A vector of `LANES` f32.
///
/// # Safety
/// All methods need the instruction set of the implementing type; pointers need room for `LANES` elements
/// (`count` for the partial forms) and no alignment.
pub(crate) trait Simd: Copy {
    /// Elements of a vector.
    const LANES: usize;
    /// Rows of a tile of a matrix product: with two vectors of sums each, they fill the registers.
    const TILE_ROWS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn load_f16(p: *const f16) -> Self;
    unsafe fn store_f16(self, p: *mut f16);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    /// `self · a + b`; fused where the processor can.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger of both; NaN at least where `o` is.
    unsafe fn max(self, o: Self) -> Self;
    /// The smaller of both; NaN at least where `o` is.
    unsafe fn min(self, o: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `self · 2^n` for integral `n` in −126..=127.
    unsafe fn scale_pow2(self, n: Self) -> Self;
    /// 0 where `x < limit`, else `self`, also where `x` is NaN.
    unsafe fn unless_below(self, x: Self, limit: Self) -> Self;
    unsafe fn reduce_add(self) -> f32;
    /// [`Simd::reduce_add`] of each, in an order of its own.
    #[inline(always)]
    unsafe fn reduce_add4(vectors: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller vouches for the instruction set.
        vectors.map(|vector| unsafe { vector.reduce_add() })
    }
    unsafe fn reduce_max(self) -> f32;
    /// The integers at `p` as numbers.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// The integers at `p` as numbers.
    unsafe fn load_u8(p: *const u8) -> Self;
    /// `table[index]` for the indices at `p`, all below `ENTRIES`, which is a power of two from 2 to 256.
    unsafe fn lookup<const ENTRIES: usize>(table: *const f32, p: *const u8) -> Self;
    /// Moves the low bits of `word` to the places of the set bits of `mask` (x86's `pdep`).
    fn deposit_bits(word: u64, mask: u64) -> u64;
    /// Transposes 8 × 8 numbers: row `i` of the source begins at `src + i · src_stride`.
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);

    /// The first `count` elements at `p`, zero beyond.
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, count: usize) -> Self {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `count` elements are readable, and a vector has at most 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), count.min(Self::LANES));
            Self::load(lanes.as_ptr())
        }
    }

    /// The first `count` elements at `p`, zero beyond.
    #[inline(always)]
    unsafe fn load_partial_f16(p: *const f16, count: usize) -> Self {
        let mut lanes = [f16::ZERO; 16];
        // SAFETY: `count` elements are readable, and a vector has at most 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p.cast::<u8>(), lanes.as_mut_ptr().cast::<u8>(), 2 * count.min(Self::LANES));
            Self::load_f16(lanes.as_ptr())
        }
    }

    /// Writes the first `count` elements to `p`.
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, count: usize) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `count` elements are writable, and a vector has at most 16.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, count.min(Self::LANES));
        }
    }

    /// [`Simd::load`] of a whole vector or [`Simd::load_partial`] of its beginning.
    #[inline(always)]
    unsafe fn load_partial_or_full(p: *const f32, count: usize) -> Self {
        // SAFETY: as the two functions ask.
        unsafe { if count == Self::LANES { Self::load(p) } else { Self::load_partial(p, count) } }
    }

    /// [`Simd::load_f16`] of a whole vector or [`Simd::load_partial_f16`] of its beginning.
    #[inline(always)]
    unsafe fn load_partial_or_full_f16(p: *const f16, count: usize) -> Self {
        // SAFETY: as the two functions ask.
        unsafe { if count == Self::LANES { Self::load_f16(p) } else { Self::load_partial_f16(p, count) } }
    }

    /// [`Simd::store`] of a whole vector or [`Simd::store_partial`] of its beginning.
    #[inline(always)]
    unsafe fn store_partial_or_full(self, p: *mut f32, count: usize) {
        // SAFETY: as the two functions ask.
        unsafe { if count == Self::LANES { self.store(p) } else { self.store_partial(p, count) } }
    }

    /// e^x, at most 2 ulp off for results that are normal numbers; 0 below −87.33, at most 2.4e38 above 88.37, NaN of NaN.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (n, m) = self.exp_parts();
            m.add(Self::splat(1.0)).scale_pow2(n).unless_below(self, Self::splat(LOWEST_EXP))
        }
    }

    /// e^x − 1, a few ulp off where x is small too; −1 below −87.33, at most 2.4e38 above 88.37, NaN of NaN.
    #[inline(always)]
    unsafe fn exp_m1(self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let ((n, m), one) = (self.exp_parts(), Self::splat(1.0));
            m.scale_pow2(n).add(one.scale_pow2(n).sub(one))
        }
    }

    /// n and m of e^x = 2^n · (1 + m), with x inside the range of [`Simd::exp`].
    ///
    /// x = n ln 2 + r; e^r by the polynomial of Cephes' `expf` (Moshier, 1992).
    #[inline(always)]
    unsafe fn exp_parts(self) -> (Self, Self) {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            // In this order NaN stays NaN.
            let x = Self::splat(LOWEST_EXP).max(Self::splat(88.376_26).min(self));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
                p = p.mul_add(r, Self::splat(coefficient));
            }
            (n, p.mul_add(r.mul(r), r))
        }
    }
}

/// What e^x is 0 below.
const LOWEST_EXP: f32 = -87.336_54;

/// Plain Rust: as many lanes as one likes; the compiler vectorises what it can.
impl<const N: usize> Simd for [f32; N] {
    const LANES: usize = N;
    const TILE_ROWS: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for N readable elements.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for N writable elements.
        unsafe { p.cast::<[f32; N]>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller vouches for N readable elements.
        let lanes = unsafe { p.cast::<[f16; N]>().read_unaligned() };
        std::array::from_fn(|i| lanes[i].to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: the caller vouches for N writable elements.
        unsafe { p.cast::<[f16; N]>().write_unaligned(self.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        std::array::from_fn(|i| self[i] + o[i])
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        std::array::from_fn(|i| self[i] - o[i])
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        std::array::from_fn(|i| self[i] * o[i])
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        std::array::from_fn(|i| self[i] / o[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // Not f32::mul_add: without an FMA instruction that is a library call.
        std::array::from_fn(|i| self[i] * a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        std::array::from_fn(|i| if self[i] > o[i] { self[i] } else { o[i] })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        std::array::from_fn(|i| if self[i] < o[i] { self[i] } else { o[i] })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn scale_pow2(self, n: Self) -> Self {
        std::array::from_fn(|i| self[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn unless_below(self, x: Self, limit: Self) -> Self {
        std::array::from_fn(|i| if x[i] < limit[i] { 0.0 } else { self[i] })
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let mut sums = self;
        let mut width = N;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                sums[i] += sums[i + width];
            }
        }
        sums[0]
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        self.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller vouches for N readable elements.
        unsafe { p.cast::<[i8; N]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        // SAFETY: the caller vouches for N readable elements.
        unsafe { p.cast::<[u8; N]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn lookup<const ENTRIES: usize>(table: *const f32, p: *const u8) -> Self {
        // SAFETY: the caller vouches for N readable indices, all inside the table.
        unsafe { p.cast::<[u8; N]>().read().map(|index| *table.add(usize::from(index))) }
    }
    #[inline(always)]
    fn deposit_bits(word: u64, mask: u64) -> u64 {
        let (mut left, mut bit, mut result) = (mask, 0, 0);
        while left != 0 {
            result |= (word >> bit & 1) << left.trailing_zeros();
            left &= left - 1;
            bit += 1;
        }
        result
    }
    #[inline(always)]
    unsafe fn transpose8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for column in 0..8 {
            for row in 0..8 {
                // SAFETY: the caller vouches for both blocks.
                unsafe { *dst.add(column * dst_stride + row) = *src.add(row * src_stride + column) };
            }
        }
    }
}

/// Asks for the line of memory at `p`, which need not exist, to be in the first-level cache soon.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has the instruction, and a prefetch of any address is harmless.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The portable vector: eight lanes are two SSE registers or one AVX register.
pub(crate) type Portable = [f32; 8];

/// Calls `generic::<V>(args)` compiled for the given [`Isa`](super::Isa).
///
/// Written `for_isa!(isa, generic(x: &[f32] = x, y: &mut [f32] = y) -> f32)`.
macro_rules! for_isa {
    ($isa:expr, $generic:ident($($arg:ident : $ty:ty = $value:expr),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c,bmi2")]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: this function is only called when the processor has these instructions.
            unsafe { $generic::<$crate::simd::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: this function is only called when the processor has these instructions.
            unsafe { $generic::<$crate::simd::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon")]
        unsafe fn neon($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: every 64-bit Arm processor has Neon.
            unsafe { $generic::<$crate::simd::Neon>($($arg),*) }
        }
        // SAFETY: an `Isa` other than the portable one is only made when the machine has it; what the generic
        // function asks for besides is vouched for where this macro is used.
        unsafe {
            match $isa {
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => avx2($($value),*),
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 => avx512($($value),*),
                #[cfg(target_arch = "aarch64")]
                $crate::Isa::Neon => neon($($value),*),
                _ => $generic::<$crate::simd::Portable>($($value),*),
            }
        }
    }};
}
pub(crate) use for_isa;
