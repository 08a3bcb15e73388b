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
    /// The hyperbolic tangent, within 2e-7 absolutely.
    Tanh,
    /// x/2 · (1 + erf(x / √2)), within 5e-7 · max(1, |x|) absolutely.
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
                |x| S::splat(2.0).div(one_plus_exp_minus(x.add(x))).sub(S::splat(1.0)),
            ),
            Unary::Gelu => map::<S>(
                x,
                y,
                #[inline(always)]
                |x| {
                    let erf = erf(x.mul(S::splat(std::f32::consts::FRAC_1_SQRT_2)));
                    x.mul(S::splat(0.5)).mul(erf.add(S::splat(1.0)))
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

/// erf(x) as a ratio of polynomials in x², clamped to |x| ≤ 4 where erf is 1 in f32: the coefficients of Eigen's
/// `generic_fast_erf`.
#[inline(always)]
unsafe fn erf<S: Simd>(x: S) -> S {
    const NUMERATOR: [f32; 6] =
        [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2];
    const DENOMINATOR: [f32; 4] = [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    unsafe {
        let x = x.min(S::splat(4.0)).max(S::splat(-4.0));
        let square = x.mul(x);
        let (mut p, mut q) = (S::splat(-2.726_142_3e-10), S::splat(-1.456_607_2e-5));
        for coefficient in NUMERATOR {
            p = p.mul_add(square, S::splat(coefficient));
        }
        for coefficient in DENOMINATOR {
            q = q.mul_add(square, S::splat(coefficient));
        }
        x.mul(p).div(q)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, every_isa};
    use super::*;

    /// erf in f64: its Maclaurin series, which converges everywhere and is precise enough up to 5.
    fn erf_series(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn functions_agree_with_f64() {
        let mut x: Vec<f32> = (-1300..1300).map(|i| i as f32 / 100.0).collect();
        x.extend([-87.0, -60.0, 60.0, 88.0]);
        every_isa(|kernels| {
            for op in [Unary::Exp, Unary::Sigmoid, Unary::Silu, Unary::Tanh, Unary::Gelu, Unary::GeluTanh] {
                let mut y = vec![0.0; x.len()];
                unary(kernels, op, &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let w = f64::from(x);
                    let (expected, tolerance) = match op {
                        Unary::Exp => (w.exp(), 3e-7 * w.exp()),
                        Unary::Sigmoid => (1.0 / (1.0 + (-w).exp()), 5e-7 / (1.0 + (-w).exp())),
                        Unary::Silu => (w / (1.0 + (-w).exp()), 5e-7 * w.abs() / (1.0 + (-w).exp())),
                        Unary::Tanh => (w.tanh(), 2e-7),
                        Unary::Gelu => (w / 2.0 * (1.0 + erf_series(w / 2f64.sqrt())), 5e-7 * w.abs().max(1.0)),
                        Unary::GeluTanh => {
                            let u = (2.0 / std::f64::consts::PI).sqrt() * (w + 0.044715 * w.powi(3));
                            (w / 2.0 * (1.0 + u.tanh()), 1e-6 * w.abs().max(1.0))
                        }
                    };
                    assert!(
                        (f64::from(y) - expected).abs() <= tolerance + 1e-37,
                        "{:?} {op:?}({x}) = {y}, not {expected}",
                        kernels.isa
                    );
                }
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
