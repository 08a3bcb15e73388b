//! Operations over whole rows: RMS norm, layer norm, softmax.

use super::Kernels;
use super::simd::{Simd, for_isa};

/// `y = x / sqrt(mean(x²) + epsilon) · weight` for each row of `row_len` elements.
///
/// # Panics
/// When `x` and `y` differ in length or a weight is not one row.
pub fn rms_norm(kernels: &Kernels, x: &[f32], row_len: usize, weight: Option<&[f32]>, epsilon: f32, y: &mut [f32]) {
    check_rows(x, row_len, weight, y);
    let isa = kernels.isa;
    kernels.for_rows(y, row_len, |first, rows| {
        for (x, y) in x[first * row_len..].chunks_exact(row_len).zip(rows.chunks_exact_mut(row_len)) {
            let sum = for_isa!(isa, sum_squares(x: &[f32] = x, mean: f32 = 0.0) -> f32);
            let scale = 1.0 / (sum / row_len as f32 + epsilon).sqrt();
            for_isa!(isa, scale_row(x: &[f32] = x, scale: f32 = scale, weight: Option<&[f32]> = weight,
                y: &mut [f32] = y));
        }
    });
}

/// `y = (x − mean) / sqrt(variance + epsilon) · weight + bias` for each row of `row_len` elements, where x is the sum of
/// `terms`: each as many rows as `y`, or fewer that repeat.
///
/// # Panics
/// When the rows of `y` are no multiple of those of a term, or a weight or bias is not one row.
pub fn layer_norm(
    kernels: &Kernels,
    terms: &[&[f32]],
    row_len: usize,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    epsilon: f32,
    y: &mut [f32],
) {
    let Some((first_term, others)) = terms.split_first() else { return y.fill(0.0) };
    if y.is_empty() {
        return;
    }
    for term in terms {
        let rows = term.len().max(1);
        assert!(row_len > 0 && rows.is_multiple_of(row_len), "{} elements are not rows of {row_len}", term.len());
        assert!(y.len().is_multiple_of(rows), "{} elements do not repeat {}", y.len(), term.len());
    }
    let whole = |weight: Option<&[f32]>| weight.is_none_or(|weight| weight.len() == row_len);
    assert!(whole(weight) && whole(bias), "length of a weight or bias, expected {row_len}");
    let isa = kernels.isa;
    kernels.for_rows(y, row_len, |first, rows| {
        for (row, y) in rows.chunks_exact_mut(row_len).enumerate() {
            let of = |term: &[f32]| (first + row) * row_len % term.len();
            y.copy_from_slice(&first_term[of(first_term)..][..row_len]);
            for term in others {
                y.iter_mut().zip(&term[of(term)..]).for_each(|(y, x)| *y += x);
            }
            for_isa!(isa, layer_row(epsilon: f32 = epsilon, weight: Option<&[f32]> = weight,
                bias: Option<&[f32]> = bias, y: &mut [f32] = y));
        }
    });
}

/// `y[i, j] = Σ x[i, r, j] / divisor` over `count` rows of `inner` elements, in f64.
///
/// # Panics
/// When `x` has not `count` rows for each of `y`.
pub fn sum_rows(kernels: &Kernels, x: &[f32], count: usize, inner: usize, divisor: f64, y: &mut [f32]) {
    /// Columns that are summed at a time.
    const COLS: usize = 64;
    assert!(inner > 0 && y.len().is_multiple_of(inner), "{} sums are not rows of {inner}", y.len());
    assert_eq!(x.len(), y.len() * count, "elements of {count} rows for each of {} sums", y.len());
    kernels.for_rows(y, inner, |first, rows| {
        for (x, y) in x[first * count * inner..].chunks_exact(count * inner).zip(rows.chunks_exact_mut(inner)) {
            for (at, y) in y.chunks_mut(COLS).enumerate() {
                let mut sums = [0f64; COLS];
                for row in x.chunks_exact(inner) {
                    let row = &row[at * COLS..][..y.len()];
                    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
                }
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = (sum / divisor) as f32);
            }
        }
    });
}

/// `y = exp(x − max) / Σ exp(x − max)` for each row of `row_len` elements.
///
/// A row of −∞ alone gives NaN, as the formula does.
///
/// # Panics
/// When `x` and `y` differ in length.
pub fn softmax(kernels: &Kernels, x: &[f32], row_len: usize, y: &mut [f32]) {
    check_rows(x, row_len, None, y);
    let isa = kernels.isa;
    kernels.for_rows(y, row_len, |first, rows| {
        for (x, y) in x[first * row_len..].chunks_exact(row_len).zip(rows.chunks_exact_mut(row_len)) {
            let max = for_isa!(isa, row_max(x: &[f32] = x) -> f32);
            let total = for_isa!(isa, exp_row(x: &[f32] = x, max: f32 = max, y: &mut [f32] = y) -> f32);
            let inverse = if max == f32::NEG_INFINITY { f32::NAN } else { 1.0 / total };
            y.iter_mut().for_each(|y| *y *= inverse);
        }
    });
}

fn check_rows(x: &[f32], row_len: usize, weight: Option<&[f32]>, y: &[f32]) {
    assert_eq!(x.len(), y.len(), "elements of the input and of the result");
    assert!(row_len > 0 && x.len().is_multiple_of(row_len), "{} elements are not rows of {row_len}", x.len());
    assert!(weight.is_none_or(|weight| weight.len() == row_len), "length of a weight, expected {row_len}");
}

/// Loads vector after vector of `x`, the last one padded with `pad`, and gives each to `f` with its place and length.
#[inline(always)]
pub(crate) unsafe fn for_vectors<S: Simd>(x: &[f32], pad: f32, mut f: impl FnMut(usize, usize, S)) {
    let n = x.len();
    let mut i = 0;
    // SAFETY: every access is below `n`; the tail goes through a padded copy.
    unsafe {
        while i + S::LANES <= n {
            f(i, S::LANES, S::load(x.as_ptr().add(i)));
            i += S::LANES;
        }
        if i < n {
            let mut lanes = [pad; 16];
            lanes[..n - i].copy_from_slice(&x[i..]);
            f(i, n - i, S::load(lanes.as_ptr()));
        }
    }
}

// SAFETY of the functions below: the caller vouches for the instructions of `S`; accesses stay inside the slices.

#[inline(always)]
unsafe fn sum<S: Simd>(x: &[f32]) -> f32 {
    unsafe {
        let mut total = S::splat(0.0);
        for_vectors::<S>(
            x,
            0.0,
            #[inline(always)]
            |_, _, x| total = total.add(x),
        );
        total.reduce_add()
    }
}

#[inline(always)]
unsafe fn sum_squares<S: Simd>(x: &[f32], mean: f32) -> f32 {
    unsafe {
        let (mut total, mean_v) = (S::splat(0.0), S::splat(mean));
        for_vectors::<S>(
            x,
            mean,
            #[inline(always)]
            |_, _, x| {
                let x = x.sub(mean_v);
                total = x.mul_add(x, total);
            },
        );
        total.reduce_add()
    }
}

#[inline(always)]
unsafe fn row_max<S: Simd>(x: &[f32]) -> f32 {
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for_vectors::<S>(
            x,
            f32::NEG_INFINITY,
            #[inline(always)]
            |_, _, x| max = max.max(x),
        );
        max.reduce_max()
    }
}

/// Writes e^(x − max) and returns the sum.
#[inline(always)]
pub(crate) unsafe fn exp_row<S: Simd>(x: &[f32], max: f32, y: &mut [f32]) -> f32 {
    let out = y.as_mut_ptr();
    assert!(y.len() >= x.len());
    unsafe {
        let (mut total, max) = (S::splat(0.0), S::splat(max));
        for_vectors::<S>(
            x,
            f32::NEG_INFINITY,
            #[inline(always)]
            |i, count, x| {
                let e = x.sub(max).exp();
                total = total.add(e);
                e.store_partial_or_full(out.add(i), count);
            },
        );
        total.reduce_add()
    }
}

/// `y = x · scale · weight`.
#[inline(always)]
unsafe fn scale_row<S: Simd>(x: &[f32], scale: f32, weight: Option<&[f32]>, y: &mut [f32]) {
    let out = y.as_mut_ptr();
    assert!(y.len() >= x.len() && weight.is_none_or(|weight| weight.len() >= x.len()));
    unsafe {
        let scale = S::splat(scale);
        for_vectors::<S>(
            x,
            0.0,
            #[inline(always)]
            |i, count, x| {
                let mut value = x.mul(scale);
                if let Some(weight) = weight {
                    value = value.mul(S::load_partial_or_full(weight.as_ptr().add(i), count));
                }
                value.store_partial_or_full(out.add(i), count);
            },
        );
    }
}

/// The layer norm of a row, in place.
#[inline(always)]
unsafe fn layer_row<S: Simd>(epsilon: f32, weight: Option<&[f32]>, bias: Option<&[f32]>, y: &mut [f32]) {
    let n = y.len();
    assert!(weight.is_none_or(|weight| weight.len() >= n) && bias.is_none_or(|bias| bias.len() >= n));
    unsafe {
        let mean = sum::<S>(y) / n as f32;
        let variance = sum_squares::<S>(y, mean) / n as f32;
        let (mean, scale) = (S::splat(mean), S::splat(1.0 / (variance + epsilon).sqrt()));
        let out = y.as_mut_ptr();
        for i in (0..n).step_by(S::LANES) {
            let count = S::LANES.min(n - i);
            let mut value = S::load_partial_or_full(out.add(i), count).sub(mean).mul(scale);
            if let Some(weight) = weight {
                value = value.mul(S::load_partial_or_full(weight.as_ptr().add(i), count));
            }
            if let Some(bias) = bias {
                value = value.add(S::load_partial_or_full(bias.as_ptr().add(i), count));
            }
            value.store_partial_or_full(out.add(i), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, every_isa};
    use super::*;

    #[test]
    fn rows_of_any_length_agree_with_the_formulas() {
        every_isa(|kernels| {
            let mut random = Random::new(1);
            for (rows, n) in [(1, 1), (3, 7), (2, 64), (5, 100), (40, 2048)] {
                let x = random.normal(rows * n);
                let (weight, bias) = (random.normal(n), random.normal(n));
                let (mut rms, mut layer, mut soft) = (x.clone(), x.clone(), x.clone());
                rms_norm(kernels, &x, n, Some(&weight), 1e-5, &mut rms);
                layer_norm(kernels, &[&x], n, Some(&weight), Some(&bias), 1e-5, &mut layer);
                softmax(kernels, &x, n, &mut soft);
                for row in 0..rows {
                    let at = row * n..(row + 1) * n;
                    let x: Vec<f64> = x[at.clone()].iter().map(|&x| f64::from(x)).collect();
                    let mean = x.iter().sum::<f64>() / n as f64;
                    let square = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                    let total: f64 = x.iter().map(|x| x.exp()).sum();
                    for i in 0..n {
                        let (w, b) = (f64::from(weight[i]), f64::from(bias[i]));
                        let place = format!("{:?} row {row} of {rows}, {i} of {n}", kernels.isa);
                        assert_close(rms[at.start + i], x[i] / (square + 1e-5).sqrt() * w, 1e-5, &place);
                        assert_close(
                            layer[at.start + i],
                            (x[i] - mean) / (variance + 1e-5).sqrt() * w + b,
                            2e-5,
                            &place,
                        );
                        assert_close(soft[at.start + i], x[i].exp() / total, 1e-6, &place);
                    }
                }
            }
        });
    }

    #[test]
    fn terms_are_added_and_fewer_rows_repeat() {
        every_isa(|kernels| {
            let mut random = Random::new(3);
            for n in [1, 5, 24, 130] {
                let (a, b, c) = (random.normal(12 * n), random.normal(4 * n), random.normal(n));
                let sum: Vec<f32> = (0..12 * n).map(|i| a[i] + b[i % (4 * n)] + c[i % n]).collect();
                let (mut found, mut expected) = (vec![0.0; 12 * n], vec![0.0; 12 * n]);
                layer_norm(kernels, &[&a, &b, &c], n, None, Some(&c), 1e-3, &mut found);
                layer_norm(kernels, &[&sum], n, None, Some(&c), 1e-3, &mut expected);
                assert_eq!(found, expected, "{:?} rows of {n}", kernels.isa);
            }
        });
    }

    #[test]
    fn sums_of_rows_agree_with_f64() {
        every_isa(|kernels| {
            let mut random = Random::new(4);
            for (outer, count, inner) in [(1, 1, 1), (5, 9, 1), (3, 7, 5), (2, 100, 130), (40, 3, 64)] {
                let x = random.normal(outer * count * inner);
                let mut y = vec![f32::NAN; outer * inner];
                sum_rows(kernels, &x, count, inner, 3.0, &mut y);
                for (at, &y) in y.iter().enumerate() {
                    let (i, j) = (at / inner, at % inner);
                    let sum: f64 = (0..count).map(|r| f64::from(x[(i * count + r) * inner + j])).sum();
                    assert_close(y, sum / 3.0, 1e-6, &format!("[{outer}, {count}, {inner}] at {at}"));
                }
            }
        });
    }

    #[test]
    fn masked_entries_get_exactly_nothing() {
        every_isa(|kernels| {
            let x = [0.0, -1e4, f32::NEG_INFINITY, 0.0, -3e38];
            let mut y = [1.0; 5];
            softmax(kernels, &x, 5, &mut y);
            assert_eq!(y, [0.5, 0.0, 0.0, 0.5, 0.0], "{:?}", kernels.isa);
        });
    }

    #[test]
    fn what_is_no_number_spoils_its_row_and_no_other() {
        every_isa(|kernels| {
            for (n, at) in [(3, 1), (20, 0), (37, 36)] {
                for wrong in [f32::NAN, f32::INFINITY] {
                    let mut x = vec![0.5; 2 * n];
                    x[at] = wrong;
                    let mut y = vec![0.0; 2 * n];
                    softmax(kernels, &x, n, &mut y);
                    assert!(y[at].is_nan(), "{:?} {wrong} at {at} of {n}: {y:?}", kernels.isa);
                    assert!(wrong.is_infinite() || y[..n].iter().all(|y| y.is_nan()), "{:?}: {y:?}", kernels.isa);
                    assert!(y[n..].iter().all(|y| (y - 1.0 / n as f32).abs() < 1e-6), "{:?}: {y:?}", kernels.isa);
                }
            }
        });
    }
}
