//! Conversion between f16 and f32 slices.

use half::f16;

use super::simd::{Simd, for_isa};
use super::{Isa, Kernels};

/// Widens `x` into `y`; exact.
///
/// # Panics
/// When the lengths differ.
pub fn f16_to_f32(kernels: &Kernels, x: &[f16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of a conversion");
    let isa = kernels.isa;
    kernels.for_rows(y, 1, |first, part| widen(isa, &x[first..first + part.len()], part));
}

/// Rounds `x` into `y`, to nearest with ties to even.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_f16(kernels: &Kernels, x: &[f32], y: &mut [f16]) {
    assert_eq!(x.len(), y.len(), "lengths of a conversion");
    let isa = kernels.isa;
    kernels.for_rows(y, 1, |first, part| {
        for_isa!(isa, narrow_generic(x: &[f32] = &x[first..first + part.len()], y: &mut [f16] = part));
    });
}

/// [`f16_to_f32`] on the calling thread.
pub(crate) fn widen(isa: Isa, x: &[f16], y: &mut [f32]) {
    for_isa!(isa, widen_generic(x: &[f16] = x, y: &mut [f32] = y));
}

/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn widen_generic<S: Simd>(x: &[f16], y: &mut [f32]) {
    let n = x.len().min(y.len());
    // SAFETY: every access is below `n`.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            S::load_f16(x.as_ptr().add(i)).store(y.as_mut_ptr().add(i));
            i += S::LANES;
        }
        S::load_partial_f16(x.as_ptr().add(i), n - i).store_partial(y.as_mut_ptr().add(i), n - i);
    }
}

/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn narrow_generic<S: Simd>(x: &[f32], y: &mut [f16]) {
    let n = x.len().min(y.len());
    // SAFETY: every access is below `n`.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            S::load(x.as_ptr().add(i)).store_f16(y.as_mut_ptr().add(i));
            i += S::LANES;
        }
        let mut rest = [f16::ZERO; 16];
        S::load_partial(x.as_ptr().add(i), n - i).store_f16(rest.as_mut_ptr());
        y[i..n].copy_from_slice(&rest[..n - i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_goes_there_and_back_on_every_isa() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| !x.is_nan()).collect();
        for isa in Isa::available() {
            let kernels = Kernels::with_isa(isa, 2);
            for n in [all.len(), 13, 1, 0] {
                let (mut wide, mut back) = (vec![0.0; n], vec![f16::ZERO; n]);
                f16_to_f32(&kernels, &all[..n], &mut wide);
                f32_to_f16(&kernels, &wide, &mut back);
                assert!(wide.iter().zip(&all).all(|(w, h)| *w == h.to_f32()), "{isa:?}");
                assert!(back == all[..n], "{isa:?}");
            }
        }
    }
}
