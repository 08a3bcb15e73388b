//! Elementwise operations, with exponentials by polynomial.

use super::Kernels;
use super::simd::{Simd, for_isa};

/// A function of one number. `e^x` is within 2 ulp (see [`Unary::Exp`]); what is made of it within a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// e^x; 0 below −87.33 and at most 2.4e38 above 88.37.
    Exp,
    /// 1 / (1 + e^−x).
    Sigmoid,
    /// x / (1 + e^−x).
    Silu,
    /// The hyperbolic tangent.
    Tanh,
    /// x/2 · (1 + erf(x / √2)); no digits are lost where it is near 0.
    Gelu,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
}

/// `y[i] = op(x[i])`.
///
/// # Panics
/// When the lengths differ.
pub fn unary(kernels: &Kernels, op: Unary, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of an elementwise operation");
    let isa = kernels.isa;
    kernels.for_rows(y, 1, |first, y| {
        let x = &x[first..first + y.len()];
        for_isa!(isa, unary_generic(op: Unary = op, x: &[f32] = x, y: &mut [f32] = y));
    });
}

/// `y[i] = op(a[i], b[i])`.
///
/// # Panics
/// When the lengths differ.
pub fn binary(kernels: &Kernels, op: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len(), "lengths of an elementwise operation");
    // Plain loops: the compiler vectorises them, and memory is the limit.
    kernels.for_rows(y, 1, |first, y| {
        let pairs = a[first..].iter().zip(&b[first..]).zip(y);
        match op {
            Binary::Add => pairs.for_each(|((a, b), y)| *y = a + b),
            Binary::Sub => pairs.for_each(|((a, b), y)| *y = a - b),
            Binary::Mul => pairs.for_each(|((a, b), y)| *y = a * b),
            Binary::Div => pairs.for_each(|((a, b), y)| *y = a / b),
        }
    });
}

/// The gate of a gated MLP: `y[i] = silu(gate[i]) · up[i]`.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(kernels: &Kernels, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len(), "lengths of an elementwise operation");
    let isa = kernels.isa;
    kernels.for_rows(y, 1, |first, y| {
        let at = first..first + y.len();
        for_isa!(isa, silu_mul_generic(gate: &[f32] = &gate[at.clone()], up: &[f32] = &up[at], y: &mut [f32] = y));
    });
}

// SAFETY of the functions below: the caller vouches for the instructions of `S`; accesses stay inside the slices,
// whose lengths are equal.

#[inline(always)]
unsafe fn silu_mul_generic<S: Simd>(gate: &[f32], up: &[f32], y: &mut [f32]) {
    let (up, out) = (up.as_ptr(), y.as_mut_ptr());
    unsafe {
        super::norm::for_vectors::<S>(
            gate,
            0.0,
            #[inline(always)]
            |i, count, gate| {
                let up = S::load_partial_or_full(up.add(i), count);
                silu(gate).mul(up).store_partial_or_full(out.add(i), count);
            },
        );
    }
}

#[inline(always)]
unsafe fn unary_generic<S: Simd>(op: Unary, x: &[f32], y: &mut [f32]) {
    unsafe {
        match op {
            Unary::Exp => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| x.exp(),
            ),
            Unary::Sigmoid => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| S::splat(1.0).div(one_plus_exp_minus(x)),
            ),
            Unary::Silu => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| silu(x),
            ),
            Unary::Tanh => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| {
                    // With e = e^2x − 1, it is e / (e + 2), which keeps its digits where x is small.
                    let e = x.add(x).exp_m1();
                    e.div(e.add(S::splat(2.0)))
                },
            ),
            Unary::Gelu => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| {
                    // Of −|x| it is −|x| Φ(−|x|), and of the two x they differ by x.
                    let zero = S::splat(0.0);
                    let size = S::splat(f32::MAX).min(x.max(zero.sub(x)));
                    zero.max(x).sub(size.mul(normal_tail(size)))
                },
            ),
            Unary::GeluTanh => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| {
                    // 1/2 (1 + tanh u) = 1 / (1 + e^−2u), with 2u = 2 √(2/π) (x + 0.044715 x³).
                    let u = x.mul(x).mul_add(S::splat(1.595_769 * 0.044_715), S::splat(1.595_769)).mul(x);
                    x.div(one_plus_exp_minus(u))
                },
            ),
        }
    }
}

#[inline(always)]
unsafe fn map<S: Simd>(x: &[f32], y: &mut [f32], f: impl Fn(S) -> S) {
    let out = y.as_mut_ptr();
    unsafe {
        super::norm::for_vectors::<S>(
            x,
            0.0,
            #[inline(always)]
            |i, count, x| f(x).store_partial_or_full(out.add(i), count),
        )
    }
}

#[inline(always)]
unsafe fn one_plus_exp_minus<S: Simd>(x: S) -> S {
    unsafe { S::splat(0.0).sub(x).exp().add(S::splat(1.0)) }
}

#[inline(always)]
unsafe fn silu<S: Simd>(x: S) -> S {
    unsafe { x.div(one_plus_exp_minus(x)) }
}

/// Φ(−x) = erfc(x / √2) / 2 for x ≥ 0, within 1e-6 of itself as long as x²/2 is not rounded by more.
///
/// e^(−x²/2) t P(t) with t = 1 / (1 + 0.4 x / √2), after Abramowitz and Stegun 7.1.26. P is fitted to
/// erfc(z) e^(z²) / 2t for 0 ≤ z ≤ 9.6 such that its largest relative error, 6e-8, is least.
#[inline(always)]
unsafe fn normal_tail<S: Simd>(x: S) -> S {
    const P: [f32; 8] = [
        -0.068_247_44,
        0.037_995_34,
        0.048_614_84,
        0.036_633_797,
        0.098_099_12,
        0.100_579_314,
        0.113_273_494,
        0.112_814_02,
    ];
    unsafe {
        let t = S::splat(1.0).div(x.mul_add(S::splat(0.4 * std::f32::consts::FRAC_1_SQRT_2), S::splat(1.0)));
        let mut p = S::splat(0.020_237_545);
        for coefficient in P {
            p = p.mul_add(t, S::splat(coefficient));
        }
        x.mul(x).mul(S::splat(-0.5)).exp().mul(t).mul(p)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, every_isa};
    use super::*;

    /// erfc in f64: near 0 by the Maclaurin series of erf, farther off by a continued fraction (Abramowitz and Stegun
    /// 7.1.14).
    fn erfc(x: f64) -> f64 {
        if x < 0.0 {
            return 2.0 - erfc(-x);
        }
        if x > 2.5 {
            let fraction = (1..=40).rev().fold(x, |fraction, n| x + f64::from(n) / 2.0 / fraction);
            return (-x * x).exp() / (std::f64::consts::PI.sqrt() * fraction);
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    /// All functions are right to some digits of the result, however small it is.
    #[test]
    fn functions_agree_with_f64() {
        let mut x: Vec<f32> = (-1300..1300).map(|i| i as f32 / 100.0).collect();
        x.extend([-87.0, -60.0, 60.0, 88.0, 1e-3, -1e-3, 1e-6, -1e-6, 1e-20, -1e-20]);
        every_isa(|kernels| {
            for op in [Unary::Exp, Unary::Sigmoid, Unary::Silu, Unary::Tanh, Unary::Gelu, Unary::GeluTanh] {
                let mut y = vec![0.0; x.len()];
                unary(kernels, op, &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let w = f64::from(x);
                    let (expected, tolerance) = match op {
                        Unary::Exp => (w.exp(), 3e-7),
                        Unary::Sigmoid => (1.0 / (1.0 + (-w).exp()), 5e-7),
                        Unary::Silu => (w / (1.0 + (-w).exp()), 5e-7),
                        Unary::Tanh => (w.tanh(), 5e-7),
                        // The exponent is rounded to 24 bits.
                        Unary::Gelu => (w / 2.0 * erfc(-w / 2f64.sqrt()), 1e-6 + 6e-8 * w * w),
                        Unary::GeluTanh => {
                            let u = (2.0 / std::f64::consts::PI).sqrt() * (w + 0.044715 * w.powi(3));
                            (w / (1.0 + (-2.0 * u).exp()), 1e-6 + 3e-7 * u.abs())
                        }
                    };
                    assert!(
                        (f64::from(y) - expected).abs() <= tolerance * expected.abs() + 1e-36,
                        "{:?} {op:?}({x}) = {y}, not {expected}",
                        kernels.isa
                    );
                }
            }
        });
    }

    #[test]
    fn what_is_no_number_stays_none_and_infinity_has_its_limit() {
        let none = f32::NAN;
        let x = [none, f32::NEG_INFINITY, f32::INFINITY];
        every_isa(|kernels| {
            for (op, limits) in [
                (Unary::Exp, [0.0, 2.4e38]),
                (Unary::Sigmoid, [0.0, 1.0]),
                (Unary::Tanh, [-1.0, 1.0]),
                (Unary::Gelu, [0.0, f32::INFINITY]),
            ] {
                let mut y = [0.0; 3];
                unary(kernels, op, &x, &mut y);
                assert!(y[0].is_nan(), "{:?} {op:?}(NaN) = {}", kernels.isa, y[0]);
                assert!((y[1] - limits[0]).abs() < 1e-30 && y[2] >= limits[1], "{:?} {op:?}: {y:?}", kernels.isa);
            }
        });
    }

    #[test]
    fn two_operands_meet_element_by_element() {
        every_isa(|kernels| {
            let mut random = Random::new(3);
            for n in [0, 1, 9, 40_000] {
                let (a, b) = (random.normal(n), random.normal(n));
                let mut y = vec![0.0; n];
                for (op, f) in [
                    (Binary::Add, (|a, b| a + b) as fn(f64, f64) -> f64),
                    (Binary::Sub, |a, b| a - b),
                    (Binary::Mul, |a, b| a * b),
                    (Binary::Div, |a, b| a / b),
                ] {
                    binary(kernels, op, &a, &b, &mut y);
                    for i in 0..n {
                        let expected = f(f64::from(a[i]), f64::from(b[i]));
                        assert_close(y[i], expected, 1e-6, &format!("{op:?} {i} of {n}"));
                    }
                }
                silu_mul(kernels, &a, &b, &mut y);
                for i in 0..n {
                    let (a, b) = (f64::from(a[i]), f64::from(b[i]));
                    assert_close(y[i], a / (1.0 + (-a).exp()) * b, 1e-6, &format!("silu_mul {i} of {n}"));
                }
            }
        });
    }
}
