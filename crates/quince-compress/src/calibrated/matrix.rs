//! Products of float32 matrices, and the Cholesky factor of one.

use quince_tensor::{Result, bail};
use rayon::prelude::*;

/// A matrix that lies in a slice, its rows and columns at regular distances.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `columns` elements, each `stride` after the one before.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The same elements, rows for columns.
    pub fn transposed(self) -> Self {
        let View { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// The number of elements that must be there.
    fn reach(&self) -> usize {
        match self.rows == 0 || self.columns == 0 {
            true => 0,
            false => (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1,
        }
    }
}

/// c = c · `keep` + a · b · `scale`; rows of c are `stride` apart.
pub(super) fn multiply(scale: f32, a: View, b: View, keep: f32, c: &mut [f32], stride: usize) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if m == 0 || n == 0 {
        return;
    }
    let reach = (m - 1) * stride + n;
    assert!(b.rows == k && stride >= n && a.reach() <= a.data.len() && b.reach() <= b.data.len() && reach <= c.len());
    // SAFETY: all elements that the sizes and distances reach lie in the slices, as was just checked, and those of c are
    // borrowed mutably and apart from each other.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            scale,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.column_stride as isize,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.column_stride as isize,
            keep,
            c.as_mut_ptr(),
            stride as isize,
            1,
        );
    }
}

/// Columns that are worked on at a time.
pub(super) const PANEL: usize = 64;

/// The lower factor L of a symmetric matrix L Lᵀ of n rows in its place; what is above the diagonal is as it was.
///
/// # Errors
/// When the matrix is not positive definite.
pub(super) fn cholesky(matrix: &mut [f32], n: usize) -> Result<()> {
    for first in (0..n).step_by(PANEL) {
        let size = PANEL.min(n - first);
        let (above, below) = matrix.split_at_mut((first + size) * n);
        let diagonal = &mut above[first * n..];
        factor_diagonal(diagonal, n, first, size)?;
        below.par_chunks_exact_mut(n).for_each(|row| solve_row(row, diagonal, n, first, size));
        // The panel is read by all and lies in what is written.
        let rows = n - first - size;
        let panel: Vec<f32> = below.chunks_exact(n).flat_map(|row| &row[first..first + size]).copied().collect();
        below.par_chunks_mut(PANEL * n).enumerate().for_each(|(block, out)| {
            let (start, height) = (block * PANEL, out.len() / n);
            let left = View::new(&panel[start * size..], height, size, size);
            let right = View::new(&panel, (start + height).min(rows), size, size).transposed();
            multiply(-1.0, left, right, 1.0, &mut out[first + size..], n);
        });
    }
    Ok(())
}

/// Factors the block of `size` columns from `first` in rows that begin with the first row of the block.
fn factor_diagonal(rows: &mut [f32], n: usize, first: usize, size: usize) -> Result<()> {
    for j in 0..size {
        let row: Vec<f32> = rows[j * n + first..][..j].to_vec();
        let square = f64::from(rows[j * n + first + j]) - dot(&row, &row);
        if !(square > 0.0 && square.is_finite()) {
            bail!("found a pivot of {square:e} in column {}, expected a positive definite matrix", first + j);
        }
        let pivot = square.sqrt();
        rows[j * n + first + j] = pivot as f32;
        for i in j + 1..size {
            let at = i * n + first;
            let rest = f64::from(rows[at + j]) - dot(&rows[at..at + j], &row);
            rows[at + j] = (rest / pivot) as f32;
        }
    }
    Ok(())
}

/// Solves the part of a row below the diagonal block.
fn solve_row(row: &mut [f32], diagonal: &[f32], n: usize, first: usize, size: usize) {
    for j in 0..size {
        let known = &diagonal[j * n + first..][..j + 1];
        let rest = f64::from(row[first + j]) - dot(&row[first..first + j], &known[..j]);
        row[first + j] = (rest / f64::from(known[j])) as f32;
    }
}

/// The scalar product.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::values;

    #[test]
    fn a_factor_times_its_transpose_is_the_matrix() {
        let n = 2 * PANEL + 7;
        let x = values(n * 2 * n, 3);
        let mut matrix = vec![0.0; n * n];
        let view = View::new(&x, 2 * n, n, n);
        multiply(1.0, view.transposed(), view, 0.0, &mut matrix, n);
        let mut factor = matrix.clone();
        cholesky(&mut factor, n).unwrap();
        let largest = matrix.iter().fold(0f32, |m, v| m.max(v.abs()));
        for i in 0..n {
            for j in 0..=i {
                let product = dot(&factor[i * n..i * n + j + 1], &factor[j * n..j * n + j + 1]);
                let expected = f64::from(matrix[i * n + j]);
                assert!((product - expected).abs() < 1e-5 * f64::from(largest), "{i} {j}: {product} {expected}");
            }
        }
        matrix[0] = -1.0;
        assert!(cholesky(&mut matrix, n).is_err());
    }
}
