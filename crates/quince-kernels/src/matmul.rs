//! Batched matrix product of f32 arrays, for products in which no side is a weight.

use super::gemm::{Right, Sizes, gemm};
use super::{Kernels, SharedMut};

/// How the right side of a product lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rhs {
    /// `[K, N]`: `y = a · b`.
    Plain,
    /// `[N, K]`: `y = a · bᵀ`.
    Transposed,
}

/// For each of `batch` dense matrices: `y[m, n] = a[m, k] · b`, where `sizes` is `[m, n, k]`.
///
/// # Panics
/// When a slice does not have `batch` matrices of its shape.
pub fn matmul(kernels: &Kernels, rhs: Rhs, batch: usize, sizes: [usize; 3], a: &[f32], b: &[f32], y: &mut [f32]) {
    let [m, n, k] = sizes;
    let lengths = (batch * m * k, batch * n * k, batch * m * n);
    assert_eq!((a.len(), b.len(), y.len()), lengths, "elements of {batch} products {sizes:?}");
    let result = SharedMut::new(y);
    let one = |i: usize| {
        let data = &b[i * n * k..(i + 1) * n * k];
        let right = match rhs {
            Rhs::Plain => Right::Strided { data, row_stride: 1, col_stride: n },
            Rhs::Transposed => Right::Strided { data, row_stride: k, col_stride: 1 },
        };
        // SAFETY: each product writes a matrix of its own.
        let y = unsafe { result.slice(i * m * n, m * n) };
        gemm(kernels, Sizes { m, n, k }, &a[i * m * k..(i + 1) * m * k], right, None, y);
    };
    if batch >= kernels.pool.threads() {
        // A product inside a task runs on that task's thread alone.
        kernels.pool.run(batch, one);
    } else {
        (0..batch).for_each(one);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, every_isa};
    use super::*;

    #[test]
    fn both_layouts_agree_with_the_sum() {
        every_isa(|kernels| {
            let mut random = Random::new(5);
            for (batch, m, n, k) in [(1, 1, 1, 1), (3, 7, 5, 9), (2, 13, 40, 300), (1, 3, 17, 0), (1, 130, 33, 64)] {
                let (a, b) = (random.normal(batch * m * k), random.normal(batch * n * k));
                for rhs in [Rhs::Plain, Rhs::Transposed] {
                    let mut y = vec![f32::NAN; batch * m * n];
                    matmul(kernels, rhs, batch, [m, n, k], &a, &b, &mut y);
                    for (at, &y) in y.iter().enumerate() {
                        let (i, row, col) = (at / (m * n), at / n % m, at % n);
                        let term = |t: usize| {
                            let b_at = if rhs == Rhs::Plain { t * n + col } else { col * k + t };
                            f64::from(a[(i * m + row) * k + t]) * f64::from(b[i * n * k + b_at])
                        };
                        let expected: f64 = (0..k).map(term).sum();
                        assert_close(y, expected, 2e-5, &format!("{:?} {rhs:?} {m}x{n}x{k} at {at}", kernels.isa));
                    }
                }
            }
        });
    }
}
