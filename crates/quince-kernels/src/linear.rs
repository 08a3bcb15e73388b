//! `y = x · Wᵀ + bias` for packed weights: the choice between decode and prefill kernels, and the split over threads.

use super::gemm::{Right, Sizes, gemm};
#[cfg(target_arch = "x86_64")]
use super::gemm_x86;
use super::gemv::{Activations, FEW_ROWS, multiply_rows};
use super::weights::{Encoding, PackedWeight};
use super::{Kernels, SharedMut};

/// How exact a product has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Activations and sums are f32: for float32 programs.
    Exact,
    /// As good as float16 arithmetic: activations and weights may be rounded to 13 bits and a sign of the largest in
    /// their block of 128 (of 256 for 1-bit indices); sums are exact integers within a block and f32 across blocks.
    Default,
    /// What is fastest: as `Default`, but products of many rows may round both sides to 7 bits and a sign.
    Fast,
}

/// One product of several with the same left side.
pub struct Linear<'a> {
    /// `[N, K]`.
    pub weight: &'a PackedWeight,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// `[M, N]`.
    pub y: &'a mut [f32],
}

/// Rows for which plain numbers are not rounded to integers: that takes longer than the product.
#[cfg(target_arch = "x86_64")]
const FEW_FOR_PLAIN: usize = 32;

/// Packed bytes that one task reads at least: some microseconds.
const TASK_BYTES: usize = 32 * 1024;

/// `y[M, N] = x[M, K] · weightᵀ + bias`.
///
/// Few rows of `x` are multiplied with the packed bytes as they stream by; for many, blocks of the weight are unpacked
/// once and reused by all rows: to integers where the accuracy allows it, else to f32.
///
/// # Panics
/// When a slice does not have the length that goes with the weight.
pub fn linear(
    kernels: &Kernels,
    accuracy: Accuracy,
    x: &[f32],
    weight: &PackedWeight,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    linear_many(kernels, accuracy, x, &mut [Linear { weight, bias, y }]);
}

/// [`linear`] for several weights with the same `x`, such as the three projections of attention: one parallel region.
///
/// # Panics
/// When a slice does not have the length that goes with its weight.
pub fn linear_many(kernels: &Kernels, accuracy: Accuracy, x: &[f32], products: &mut [Linear]) {
    let Some(cols) = products.first().map(|product| product.weight.cols()) else { return };
    let m = x.len() / cols.max(1);
    for Linear { weight, bias, y } in products.iter() {
        assert_eq!((weight.cols(), m * cols), (cols, x.len()), "columns of the weights, and elements of x");
        assert_eq!(y.len(), m * weight.rows(), "elements of the result for {m} rows");
        assert!(bias.is_none_or(|bias| bias.len() == weight.rows()), "elements of a bias");
    }
    if m == 0 || cols == 0 || m > FEW_ROWS {
        #[cfg(target_arch = "x86_64")]
        if let Some(method) = gemm_x86::Method::of(kernels.isa, accuracy)
            && m > 0
            && cols > 0
            && !(m <= FEW_FOR_PLAIN
                && products.iter().all(|product| matches!(product.weight.encoding(), Encoding::Dense(_))))
        {
            return in_integers(kernels, method, x, m, products);
        }
        for Linear { weight, bias, y } in products {
            gemm(kernels, Sizes { m, n: weight.rows(), k: cols }, x, Right::Weight(weight), *bias, y);
        }
    } else {
        from_packed(kernels, accuracy, x, m, products);
    }
}

/// All products in one parallel region for some rows of `x`, each task some rows of a weight.
#[cfg(target_arch = "x86_64")]
fn in_integers(kernels: &Kernels, method: gemm_x86::Method, x: &[f32], m: usize, products: &mut [Linear]) {
    let k = x.len() / m;
    let products: Vec<_> = products
        .iter_mut()
        .map(|Linear { weight, bias, y }| {
            (*weight, *bias, SharedMut::new(y), weight.rows().div_ceil(gemm_x86::TASK_ROWS))
        })
        .collect();
    let tasks = products.iter().map(|product| product.3).sum();
    for (part, x) in x.chunks(gemm_x86::MOST_ROWS * k).enumerate() {
        let panels = gemm_x86::Panels::new(method, &kernels.pool, x, k);
        kernels.pool.run(tasks, |mut task| {
            for &(weight, bias, ref y, count) in &products {
                if task < count {
                    let rows = task * gemm_x86::TASK_ROWS..weight.rows().min((task + 1) * gemm_x86::TASK_ROWS);
                    let product = gemm_x86::Product { weight, x: &panels, bias, y, first: part * gemm_x86::MOST_ROWS };
                    // SAFETY: the machine has the method, and a task writes the columns of its own rows of the weight.
                    return unsafe { gemm_x86::multiply_rows(&product, rows) };
                }
                task -= count;
            }
        });
    }
}

/// All products in one parallel region, each task some rows of a weight.
fn from_packed(kernels: &Kernels, accuracy: Accuracy, x: &[f32], m: usize, products: &mut [Linear]) {
    let activations = Activations::new(kernels, accuracy, x, m, products.iter().map(|product| product.weight));
    let products: Vec<_> = products
        .iter_mut()
        .map(|Linear { weight, bias, y }| {
            let row_bytes = (weight.byte_len() / weight.rows().max(1)).max(1);
            let step = TASK_BYTES.div_ceil(row_bytes).next_multiple_of(16);
            (*weight, *bias, SharedMut::new(y), step, weight.rows().div_ceil(step))
        })
        .collect();
    let tasks = products.iter().map(|product| product.4).sum();
    kernels.pool.run(tasks, |mut task| {
        for (weight, bias, y, step, count) in &products {
            if task < *count {
                let rows = task * step..weight.rows().min((task + 1) * step);
                return multiply_rows(kernels.isa, &activations, weight, rows, *bias, y);
            }
            task -= count;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, every_isa, weight_kinds};
    use super::*;

    /// Every kind of weight, accuracy and instruction set against `PackedWeight::get` in f64. The tolerance is
    /// relative to Σ |x w|, which is what rounding of the factors is relative to: that of float16 (2^−11) unless exact.
    fn check(m: usize, rows: usize, cols: usize, seed: u64) {
        let mut random = Random::new(seed);
        for (name, weight) in weight_kinds(&mut random, rows, cols) {
            let (x, bias) = (random.normal(m * cols), random.normal(rows));
            every_isa(|kernels| {
                let accuracies = [(Accuracy::Exact, 2e-6), (Accuracy::Default, 4.9e-4), (Accuracy::Fast, 0.03)];
                for (accuracy, tolerance) in accuracies {
                    let mut y = vec![f32::NAN; m * rows];
                    linear(kernels, accuracy, &x, &weight, Some(&bias), &mut y);
                    for (at, &found) in y.iter().enumerate() {
                        let (i, row) = (at / rows, at % rows);
                        let (mut expected, mut size) = (f64::from(bias[row]), f64::from(bias[row].abs()));
                        for col in 0..cols {
                            let term = f64::from(x[i * cols + col]) * f64::from(weight.get(row, col));
                            expected += term;
                            size += term.abs();
                        }
                        assert!(
                            (f64::from(found) - expected).abs() <= tolerance * size + 1e-9,
                            "{:?} {accuracy:?} {name} {m} x [{rows}, {cols}] at {i}, {row}: {found}, not {expected}",
                            kernels.isa
                        );
                    }
                }
            });
        }
    }

    #[test]
    fn one_row() {
        check(1, 32, 320, 6);
        check(1, 5, 1030, 7);
        check(1, 48, 64, 8);
    }

    #[test]
    fn few_rows() {
        for m in [2, 3, 4, 5, 8] {
            check(m, 6, 352, 9);
        }
        check(7, 3, 33, 10);
    }

    #[test]
    fn many_rows() {
        check(9, 34, 300, 11);
        check(31, 16, 64, 12);
        check(24, 70, 300, 17);
        check(33, 5, 528, 18);
        check(10, 3, 2500, 14);
        check(9, 2, 4128, 15);
    }

    #[test]
    fn several_products_and_any_number_of_threads_give_the_same() {
        let mut random = Random::new(13);
        let (cols, m) = (256, 2);
        let weights: Vec<_> = [64, 16, 320].into_iter().flat_map(|n| weight_kinds(&mut random, n, cols)).collect();
        let x = random.normal(m * cols);
        let single = Kernels::new(1);
        let many = Kernels::new(3);
        let mut results: Vec<Vec<f32>> = weights.iter().map(|(_, w)| vec![0.0; m * w.rows()]).collect();
        let mut products: Vec<Linear> =
            weights.iter().zip(&mut results).map(|((_, weight), y)| Linear { weight, bias: None, y }).collect();
        linear_many(&many, Accuracy::Default, &x, &mut products);
        for ((name, weight), result) in weights.iter().zip(&results) {
            let mut y = vec![0.0; m * weight.rows()];
            linear(&single, Accuracy::Default, &x, weight, None, &mut y);
            assert_eq!(&y, result, "{name}");
        }
    }
}
