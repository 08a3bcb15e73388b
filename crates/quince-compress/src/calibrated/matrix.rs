//! Matrices, their products with columns in panels, and the Cholesky factor of one.

use quince_kernels::{Isa, LANES, PanelSizes, Strided, multiply_panels};
use quince_tensor::{Result, bail};
use rayon::prelude::*;
use std::ops::Range;

/// A matrix. Its rows lie a little apart, so that those of a tile do not all fall into the same place of a cache.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    stride: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Matrix {
        let stride = columns.next_multiple_of(16) + 16;
        Matrix { rows, columns, stride, data: vec![0.0; rows * stride] }
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.stride..][..self.columns]
    }

    /// All rows.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let columns = self.columns;
        self.data.chunks_exact_mut(self.stride).map(move |row| &mut row[..columns])
    }

    /// Whether all elements are finite.
    pub fn is_finite(&self) -> bool {
        self.data.iter().all(|value| value.is_finite())
    }

    /// Adds `scale` times some terms of some rows times columns to the same rows of `y`. Panels of `x` have a row for each
    /// column of the matrix, those of `y` for each row.
    pub fn multiply(&self, scale: f32, rows: &Range<usize>, terms: &Range<usize>, x: &[f32], y: &mut [f32]) {
        let (right, panel) = (self.columns * LANES, self.rows * LANES);
        let columns = x.len() / right.max(1) * LANES;
        let sizes = PanelSizes { rows: rows.len(), terms: terms.len(), columns, right, row: LANES, panel };
        let data = self.data.get(rows.start * self.stride + terms.start..).unwrap_or_default();
        let a = Strided { data, row: self.stride, term: 1 };
        multiply_panels(Isa::detect(), sizes, scale, a, &x[terms.start * LANES..], &mut y[rows.start * LANES..]);
    }

    /// Adds x dᵀ of each input x and the vector d that belongs to it; as many elements of x and d as there are rows and columns.
    pub fn add_products(&mut self, inputs: &Panels, vectors: &Panels) {
        let (stride, columns) = (self.stride, self.columns);
        self.data.par_chunks_mut(LANES * stride).enumerate().for_each(|(panel, rows)| {
            inputs.add_products(panel, rows.len() / stride, vectors, columns, rows, stride);
        });
    }
}

/// Columns of `n` elements in panels of n rows.
pub(super) fn turned<I: IntoIterator<Item = f32>>(columns: impl ExactSizeIterator<Item = I>, n: usize) -> Vec<f32> {
    let mut panels = vec![0.0; columns.len().div_ceil(LANES) * n * LANES];
    for (number, column) in columns.enumerate() {
        let out = panels[start_of(number, n)..].iter_mut().step_by(LANES);
        out.zip(column).for_each(|(out, value)| *out = value);
    }
    panels
}

/// A column of those in panels of n rows.
pub(super) fn column<T: Copy>(panels: &[T], number: usize, n: usize) -> impl Iterator<Item = T> {
    panels[start_of(number, n)..].iter().step_by(LANES).take(n).copied()
}

fn start_of(column: usize, n: usize) -> usize {
    column / LANES * n * LANES + column % LANES
}

/// A step of what goes through the rows of a triangle one by one.
pub(super) enum Step {
    /// To some rows is added what some terms, which are done, contribute.
    Add { rows: Range<usize>, terms: Range<usize> },
    /// All was added to a row.
    Row(usize),
}

impl Step {
    /// From the last row to the first: terms come after rows. Most is added to whole blocks of rows.
    pub fn backwards(n: usize) -> impl Iterator<Item = Step> {
        (0..n).step_by(BLOCK).rev().flat_map(move |block| {
            let block = block..n.min(block + BLOCK);
            let tiles = block.clone().step_by(TILE).rev().flat_map({
                let end = block.end;
                move |tile| {
                    let tile = tile..end.min(tile + TILE);
                    let rows = tile.clone().rev().flat_map({
                        let end = tile.end;
                        move |row| [Step::Add { rows: row..row + 1, terms: row + 1..end }, Step::Row(row)]
                    });
                    std::iter::once(Step::Add { terms: tile.end..end, rows: tile }).chain(rows)
                }
            });
            std::iter::once(Step::Add { terms: block.end..n, rows: block }).chain(tiles)
        })
    }

    /// From the first row to the last: terms come before rows.
    pub fn forwards(n: usize) -> impl Iterator<Item = Step> {
        let turned = move |range: Range<usize>| n - range.end..n - range.start;
        Step::backwards(n).map(move |step| match step {
            Step::Add { rows, terms } => Step::Add { rows: turned(rows), terms: turned(terms) },
            Step::Row(row) => Step::Row(n - 1 - row),
        })
    }
}

/// Inputs, one after the other, in panels of their elements: those of a panel lie side by side for each input.
pub(super) struct Panels {
    count: usize,
    data: Vec<f32>,
}

impl Panels {
    /// Of `count` inputs of `size` elements.
    pub fn new(inputs: &[f32], count: usize, size: usize) -> Panels {
        let mut data = vec![0.0; size.div_ceil(LANES) * count * LANES];
        data.par_chunks_mut((count * LANES).max(1)).enumerate().for_each(|(panel, out)| {
            let first = panel * LANES;
            let lanes = LANES.min(size - first);
            for (input, out) in inputs.chunks_exact(size).zip(out.chunks_exact_mut(LANES)) {
                out[..lanes].copy_from_slice(&input[first..first + lanes]);
            }
        });
        Panels { count, data }
    }

    /// Adds the sum over inputs of their elements in a panel times those in `columns` from the beginning of `other` to a
    /// matrix, of which rows are `row` apart.
    pub fn add_products(&self, panel: usize, rows: usize, other: &Panels, columns: usize, y: &mut [f32], row: usize) {
        let (terms, right) = (self.count, self.count * LANES);
        let sizes = PanelSizes { rows, terms, columns, right, row, panel: LANES };
        let left = Strided { data: &self.data[panel * right..(panel + 1) * right], row: 1, term: LANES };
        multiply_panels(Isa::detect(), sizes, 1.0, left, &other.data, y);
    }
}

/// Rows that are worked on at a time: whole tiles of all kernels.
const BLOCK: usize = 48;
const TILE: usize = 12;

/// The factor L of a symmetric matrix L Lᵀ: L on the diagonal and below, Lᵀ above.
///
/// # Errors
/// When the matrix is not positive definite.
pub(super) fn cholesky(mut matrix: Matrix) -> Result<Matrix> {
    let (n, stride) = (matrix.rows, matrix.stride);
    for first in (0..n).step_by(BLOCK) {
        let size = BLOCK.min(n - first);
        let (above, below) = matrix.data.split_at_mut((first + size) * stride);
        let diagonal = &mut above[first * stride..];
        factor_diagonal(diagonal, stride, first, size)?;
        below.par_chunks_exact_mut(stride).for_each(|row| solve_row(row, diagonal, stride, first, size));
        // What all rows are multiplied with lies in what is written.
        let rows = n - first - size;
        let panel: Vec<f32> = below.chunks_exact(stride).flat_map(|row| &row[first..first + size]).copied().collect();
        let turned = turned(panel.chunks_exact(size).map(|row| row.iter().copied()), size);
        below.par_chunks_mut(BLOCK * stride).enumerate().for_each(|(block, out)| {
            let (start, height) = (block * BLOCK, out.len() / stride);
            let left = Strided { data: &panel[start * size..], row: size, term: 1 };
            let columns = (start + height).min(rows);
            let (right, row, panel) = (size * LANES, stride, LANES);
            let sizes = PanelSizes { rows: height, terms: size, columns, right, row, panel };
            multiply_panels(Isa::detect(), sizes, -1.0, left, &turned, &mut out[first + size..]);
        });
    }
    for i in 0..n {
        let (above, row) = matrix.data.split_at_mut(i * stride);
        above.chunks_exact_mut(stride).zip(&row[..i]).for_each(|(above, value)| above[i] = *value);
    }
    Ok(matrix)
}

/// Factors the block of `size` columns from `first` in rows that begin with the first row of the block.
fn factor_diagonal(rows: &mut [f32], stride: usize, first: usize, size: usize) -> Result<()> {
    for j in 0..size {
        let row: Vec<f32> = rows[j * stride + first..][..j].to_vec();
        let square = f64::from(rows[j * stride + first + j]) - dot(&row, &row);
        if !(square > 0.0 && square.is_finite()) {
            bail!("found a pivot of {square:e} in column {}, expected a positive definite matrix", first + j);
        }
        let pivot = square.sqrt();
        rows[j * stride + first + j] = pivot as f32;
        for i in j + 1..size {
            let at = i * stride + first;
            let rest = f64::from(rows[at + j]) - dot(&rows[at..at + j], &row);
            rows[at + j] = (rest / pivot) as f32;
        }
    }
    Ok(())
}

/// Solves the part of a row below the diagonal block.
fn solve_row(row: &mut [f32], diagonal: &[f32], stride: usize, first: usize, size: usize) {
    for j in 0..size {
        let known = &diagonal[j * stride + first..][..j + 1];
        let rest = f64::from(row[first + j]) - dot(&row[first..first + j], &known[..j]);
        row[first + j] = (rest / f64::from(known[j])) as f32;
    }
}

/// The scalar product.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::values;

    #[test]
    fn every_term_is_added_once_and_after_its_row() {
        for n in [1, TILE, BLOCK + 1, 2 * BLOCK + 29] {
            let steps: [Vec<Step>; 2] = [Step::backwards(n).collect(), Step::forwards(n).collect()];
            for (is_forwards, steps) in [false, true].into_iter().zip(steps) {
                let (mut done, mut added) = (vec![false; n], vec![0; n * n]);
                for step in steps {
                    match step {
                        Step::Add { rows, terms } => {
                            for (row, term) in rows.flat_map(|row| terms.clone().map(move |term| (row, term))) {
                                assert!(done[term] && !done[row], "{row}, {term} of {n}");
                                added[row * n + term] += 1;
                            }
                        }
                        Step::Row(row) => {
                            let expected = |term: usize| usize::from(if is_forwards { term < row } else { term > row });
                            assert!((0..n).all(|term| added[row * n + term] == expected(term)), "{row} of {n}");
                            done[row] = true;
                        }
                    }
                }
                assert!(done.into_iter().all(|done| done));
            }
        }
    }

    #[test]
    fn a_factor_times_its_transpose_is_the_matrix() {
        let n = 3 * BLOCK + 7;
        let x = Panels::new(&values(n * 2 * n, 3), 2 * n, n);
        let mut matrix = Matrix::zeros(n, n);
        matrix.add_products(&x, &x);
        let factor = cholesky(matrix.clone()).unwrap();
        let largest = matrix.data.iter().fold(0f32, |m, v| m.max(v.abs()));
        for i in 0..n {
            for j in 0..=i {
                let product = dot(&factor.row(i)[..=j], &factor.row(j)[..=j]);
                let expected = f64::from(matrix.row(i)[j]);
                assert!((product - expected).abs() < 1e-5 * f64::from(largest), "{i} {j}: {product} {expected}");
                assert_eq!(factor.row(i)[j], factor.row(j)[i]);
            }
        }
        matrix.data[0] = -1.0;
        assert!(cholesky(matrix).is_err());
    }
}
