//! The second moments of inputs in the form that rounding needs: sorted, damped and factored.

use super::Moments;
use super::matrix::{Matrix, Step, cholesky};
use quince_kernels::LANES;
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
    /// H.
    moments: Matrix,
    /// L, and Lᵀ above the diagonal.
    triangles: Matrix,
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
            let mut matrix = Matrix::zeros(size, size);
            for (i, row) in matrix.rows_mut().enumerate() {
                let from = order[i] as usize;
                row.iter_mut().zip(&order).for_each(|(value, &to)| *value = scale * sum(from, to as usize));
                row[i] += damping;
            }
            match cholesky(matrix.clone()) {
                Ok(mut triangles) => {
                    let pivots = normalize(&mut triangles);
                    return Ok(Factor { size, order, moments: matrix, triangles, pivots, scale });
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

    /// H.
    pub(super) fn moments(&self) -> &Matrix {
        &self.moments
    }

    /// An element of the diagonal of H.
    pub(super) fn diagonal(&self, column: usize) -> f32 {
        self.moments.row(column)[column]
    }

    /// L, and Lᵀ above the diagonal.
    pub(super) fn triangles(&self) -> &Matrix {
        &self.triangles
    }

    /// What a sum over inputs is multiplied with to go with H.
    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// Replaces columns t in panels, their rows sorted as the columns are, by H⁻¹ t: substitution forwards and backwards.
    pub(super) fn solve(&self, columns: &mut [f32]) {
        let mut known = vec![0.0; columns.len()];
        Step::forwards(self.size).for_each(|step| self.substitute(step, columns, &mut known));
        for panel in columns.chunks_exact_mut(self.size * LANES) {
            for (row, pivot) in panel.chunks_exact_mut(LANES).zip(&self.pivots) {
                row.iter_mut().for_each(|value| *value /= pivot);
            }
        }
        Step::backwards(self.size).for_each(|step| self.substitute(step, columns, &mut known));
    }

    /// Takes from rows what those of terms contribute. `known` has zeros, before and after.
    fn substitute(&self, step: Step, columns: &mut [f32], known: &mut [f32]) {
        let Step::Add { rows, terms } = step else { return };
        self.triangles.multiply(1.0, &rows, &terms, columns, known);
        let at = rows.start * LANES..rows.end * LANES;
        let panels = columns.chunks_exact_mut(self.size * LANES).zip(known.chunks_exact_mut(self.size * LANES));
        for (values, known) in panels {
            values[at.clone()].iter_mut().zip(&known[at.clone()]).for_each(|(value, known)| *value -= known);
            known[at.clone()].fill(0.0);
        }
    }
}

/// Divides both triangles by what is on the diagonal, the squares of which are returned.
fn normalize(triangles: &mut Matrix) -> Vec<f32> {
    let diagonal: Vec<f32> = triangles.rows_mut().enumerate().map(|(i, row)| row[i]).collect();
    for (i, row) in triangles.rows_mut().enumerate() {
        let (below, above) = row.split_at_mut(i);
        below.iter_mut().zip(&diagonal).for_each(|(value, pivot)| *value /= pivot);
        above.iter_mut().for_each(|value| *value /= diagonal[i]);
    }
    diagonal.into_iter().map(|pivot| pivot * pivot).collect()
}
