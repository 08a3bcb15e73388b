//! `y = x · Wᵀ + bias` for packed weights: the choice between decode and prefill kernels, and the split over threads.

use super::gemm::{Right, Sizes, gemm};
use super::gemv::{Activations, multiply_rows, takes};
use super::weights::PackedWeight;
use super::{Kernels, SharedMut};

/// How exact a product has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Activations and sums are f32: for float32 programs.
    Exact,
    /// As good as float16 arithmetic or better: activations may be rounded to 14 bits of the largest in their block
    /// of 128 (13 bits of 256 for 1-bit indices), table entries to 15 bits of the largest in their table; sums are
    /// exact integers within a block and f32 across blocks.
    Default,
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

/// Packed bytes that one task reads at least: some microseconds.
const TASK_BYTES: usize = 32 * 1024;

/// `y[M, N] = x[M, K] · weightᵀ + bias`.
///
/// Few rows of `x` are multiplied with the packed bytes as they stream by, and many too where integer kernels are
/// faster than f32; otherwise blocks of the weight are dequantized to f32 once and reused by all rows.
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
    let mut packed: Vec<&mut Linear> = Vec::with_capacity(products.len());
    for product in products {
        if cols > 0 && takes(kernels.isa, accuracy, product.weight, m) {
            packed.push(product);
        } else {
            let Linear { weight, bias, y } = product;
            let sizes = Sizes { m: y.len() / weight.rows().max(1), n: weight.rows(), k: cols };
            gemm(kernels, sizes, &x[..sizes.m * cols], Right::Weight(weight), *bias, y);
        }
    }
    if m > 0 && !packed.is_empty() {
        from_packed(kernels, accuracy, x, m, &mut packed);
    }
}

/// All products in one parallel region, each task some rows of a weight.
fn from_packed(kernels: &Kernels, accuracy: Accuracy, x: &[f32], m: usize, products: &mut [&mut Linear]) {
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
    /// relative to Σ |x w|, which is what rounding of the factors is relative to.
    fn check(m: usize, rows: usize, cols: usize, seed: u64) {
        let mut random = Random::new(seed);
        for (name, weight) in weight_kinds(&mut random, rows, cols) {
            let (x, bias) = (random.normal(m * cols), random.normal(rows));
            every_isa(|kernels| {
                for (accuracy, tolerance) in [(Accuracy::Exact, 2e-6), (Accuracy::Default, 2e-4)] {
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
