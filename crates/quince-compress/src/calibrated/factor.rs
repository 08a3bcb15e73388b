//! The second moments of inputs in the form that rounding needs: sorted, damped and factored.

use super::Moments;
use super::matrix::{PANEL, View, cholesky, dot, multiply};
use quince_tensor::{Result, bail};

/// What is usually added to the diagonal, relative to its mean: as in GPTQ (Frantar et al. 2023, section 3.3, step 3).
pub(crate) const DAMPING: f32 = 0.01;
/// The same for a table of embeddings that is also multiplied with: its rows go into the model as they are, where all
/// channels count alike, besides.
pub(crate) const TIED_DAMPING: f32 = 1.0;

/// H = L D Lᵀ, where L has ones on its diagonal and nothing above it. Columns are sorted: the one whose input is
/// largest is the last, and the first to be rounded.
pub struct Factor {
    size: usize,
    /// Which column of the weight each column is.
    order: Vec<u32>,
    /// H, n x n.
    moments: Vec<f32>,
    /// L, n x n; what is above the diagonal is not said.
    lower: Vec<f32>,
    /// D.
    pivots: Vec<f32>,
    /// What sums over inputs were multiplied with.
    scale: f32,
}

impl Factor {
    /// The factor of the mean over all inputs. `damping` is added to the diagonal, relative to its mean, so that directions
    /// that were never seen count a little; more if rounding demands it.
    ///
    /// # Errors
    /// When there was no input.
    pub fn new(moments: &Moments, damping: f32) -> Result<Factor> {
        let size = moments.size();
        let sums = moments.sums();
        let sum = |i: usize, j: usize| sums[i.max(j) * (i.max(j) + 1) / 2 + i.min(j)];
        let trace: f64 = (0..size).map(|i| f64::from(sum(i, i))).sum();
        if moments.count() == 0 || trace <= 0.0 || trace.is_nan() {
            bail!("found inputs that are all zero, expected some that are not");
        }
        let mut order: Vec<u32> = (0..size as u32).collect();
        order.sort_by(|&a, &b| sum(a as usize, a as usize).total_cmp(&sum(b as usize, b as usize)).then(b.cmp(&a)));
        // The scale does not matter to what is chosen; with a mean of one on the diagonal nothing overflows.
        let scale = (size as f64 / trace) as f32;
        let mut damping = damping;
        loop {
            let mut matrix = vec![0.0; size * size];
            for (i, row) in matrix.chunks_exact_mut(size.max(1)).enumerate() {
                let from = order[i] as usize;
                row.iter_mut().zip(&order).for_each(|(value, &to)| *value = scale * sum(from, to as usize));
                row[i] += damping;
            }
            let mut lower = matrix.clone();
            match cholesky(&mut lower, size) {
                Ok(()) => {
                    let pivots = normalize(&mut lower, size);
                    return Ok(Factor { size, order, moments: matrix, lower, pivots, scale });
                }
                // Rounding has eaten the smallest direction.
                Err(_) if damping < 1.0 => damping *= 10.0,
                Err(error) => return Err(error),
            }
        }
    }

    /// n, the number of inputs.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Which column of the weight each column is.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    /// H, n x n.
    pub(super) fn moments(&self) -> &[f32] {
        &self.moments
    }

    /// An element of the diagonal of H.
    pub(super) fn diagonal(&self, column: usize) -> f32 {
        self.moments[column * self.size + column]
    }

    /// L, n x n.
    pub(super) fn lower(&self) -> &[f32] {
        &self.lower
    }

    /// What a sum over inputs is multiplied with to go with H.
    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// Replaces rows t, sorted as the columns are, by t H⁻¹: substitution forwards and backwards, a panel at a time.
    pub(super) fn solve(&self, rows: &mut [f32]) {
        let n = self.size;
        let count = rows.len() / n.max(1);
        let mut known = Vec::new();
        for first in (0..n).step_by(PANEL) {
            let size = PANEL.min(n - first);
            known.clear();
            rows.chunks_exact(n).for_each(|row| known.extend_from_slice(&row[..first]));
            let before = View::new(&self.lower[first * n..], size, first, n).transposed();
            multiply(-1.0, View::new(&known, count, first, first), before, 1.0, &mut rows[first..], n);
            for row in rows.chunks_exact_mut(n) {
                for i in first + 1..first + size {
                    let known = dot(&row[first..i], &self.lower[i * n + first..i * n + i]);
                    row[i] = (f64::from(row[i]) - known) as f32;
                }
            }
        }
        for row in rows.chunks_exact_mut(n) {
            row.iter_mut().zip(&self.pivots).for_each(|(value, pivot)| *value /= pivot);
        }
        for first in (0..n).step_by(PANEL).rev() {
            let (size, end) = (PANEL.min(n - first), n.min(first + PANEL));
            known.clear();
            rows.chunks_exact(n).for_each(|row| known.extend_from_slice(&row[end..]));
            if end < n {
                let after = View::new(&self.lower[end * n + first..], n - end, size, n);
                multiply(-1.0, View::new(&known, count, n - end, n - end), after, 1.0, &mut rows[first..], n);
            }
            for row in rows.chunks_exact_mut(n) {
                for i in (first..end).rev() {
                    let known: f64 = (i + 1..end).map(|k| f64::from(row[k]) * f64::from(self.lower[k * n + i])).sum();
                    row[i] = (f64::from(row[i]) - known) as f32;
                }
            }
        }
    }
}

/// Divides each column by what is on the diagonal, the squares of which it returns.
fn normalize(lower: &mut [f32], n: usize) -> Vec<f32> {
    let diagonal: Vec<f32> = (0..n).map(|i| lower[i * n + i]).collect();
    for (i, row) in lower.chunks_exact_mut(n.max(1)).enumerate() {
        row[..=i].iter_mut().zip(&diagonal).for_each(|(value, pivot)| *value /= pivot);
    }
    diagonal.into_iter().map(|pivot| pivot * pivot).collect()
}
