//! Square matrices, their products with columns in panels, and the Cholesky factor of one.

use quince_kernels::{Isa, LANES, PanelSizes, Strided, multiply_panels};
use quince_tensor::{Result, bail};
use rayon::prelude::*;
use std::ops::Range;

/// A square matrix. Its rows lie a little apart, so that those of a tile do not all fall into the same place of a cache.
#[derive(Clone)]
pub(super) struct Square {
    n: usize,
    stride: usize,
    data: Vec<f32>,
}

impl Square {
    /// Of n rows of zeros.
    pub fn zeros(n: usize) -> Square {
        let stride = n.next_multiple_of(16) + 16;
        Square { n, stride, data: vec![0.0; n * stride] }
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.stride..][..self.n]
    }

    /// All rows.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let n = self.n;
        self.data.chunks_exact_mut(self.stride).map(move |row| &mut row[..n])
    }

    /// What begins with an element.
    fn from(&self, row: usize, column: usize) -> Strided<'_> {
        Strided { data: self.data.get(row * self.stride + column..).unwrap_or_default(), row: self.stride, term: 1 }
    }

    /// Adds `scale` times some terms of some rows times columns to the same rows of `y`. Columns lie in panels of n rows.
    pub fn multiply(&self, scale: f32, rows: &Range<usize>, terms: &Range<usize>, x: &[f32], y: &mut [f32]) {
        let (right, row, panel) = (self.n * LANES, LANES, self.n * LANES);
        let (columns, a) = (x.len() / right.max(1) * LANES, self.from(rows.start, terms.start));
        let sizes = PanelSizes { rows: rows.len(), terms: terms.len(), columns, right, row, panel };
        multiply_panels(Isa::detect(), sizes, scale, a, &x[terms.start * LANES..], &mut y[rows.start * LANES..]);
    }
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
pub(super) fn cholesky(mut matrix: Square) -> Result<Square> {
    let Square { n, stride, .. } = matrix;
    for first in (0..n).step_by(BLOCK) {
        let size = BLOCK.min(n - first);
        let (above, below) = matrix.data.split_at_mut((first + size) * stride);
        let diagonal = &mut above[first * stride..];
        factor_diagonal(diagonal, stride, first, size)?;
        below.par_chunks_exact_mut(stride).for_each(|row| solve_row(row, diagonal, stride, first, size));
        // What all rows are multiplied with lies in what is written.
        let rows = n - first - size;
        let panel: Vec<f32> = below.chunks_exact(stride).flat_map(|row| &row[first..first + size]).copied().collect();
        let mut turned = vec![0.0; rows.div_ceil(LANES) * size * LANES];
        for (i, row) in panel.chunks_exact(size).enumerate() {
            let out = &mut turned[i / LANES * size * LANES + i % LANES..];
            row.iter().zip(out.iter_mut().step_by(LANES)).for_each(|(value, out)| *out = *value);
        }
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
        let mut matrix = Square::zeros(n);
        let stride = matrix.stride;
        for (panel, rows) in matrix.data.chunks_mut(LANES * stride).enumerate() {
            x.add_products(panel, rows.len() / stride, &x, n, rows, stride);
        }
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
