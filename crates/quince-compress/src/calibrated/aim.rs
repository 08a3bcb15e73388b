//! The weight that compression aims for where what was compressed before it has changed its inputs.

use super::Factor;
use super::matrix::{Matrix, Panels, column, turned};
use super::rows::Rows;
use quince_kernels::LANES;
use quince_tensor::{Result, Tensor, Weight, bail};
use rayon::prelude::*;

/// Rows, or inputs, that one task works on: enough that reading the other matrix costs little beside the product with it.
const COLUMNS: usize = 4 * LANES;

/// The sum of x dᵀ over inputs x, each with a vector d that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cross(Matrix);

impl Cross {
    /// Of vectors of `rows` elements and inputs of `size`, none of which was seen yet.
    pub fn new(rows: usize, size: usize) -> Cross {
        Cross(Matrix::zeros(size, rows))
    }

    /// Adds vectors and inputs that lie one after the other.
    ///
    /// # Errors
    /// When they are not equally many, or their sums leave the range of float32.
    pub fn add(&mut self, vectors: &[f32], inputs: &[f32]) -> Result<()> {
        let (rows, size) = (self.0.columns.max(1), self.0.rows.max(1));
        let count = pairs(vectors, rows, inputs, size)?;
        self.0.add_products(&Panels::new(inputs, count, size), &Panels::new(vectors, count, rows));
        match self.0.is_finite() {
            true => Ok(()),
            false => bail!("the moments of {count} inputs leave the range of float32"),
        }
    }
}

/// How many vectors of `rows` elements there are, and as many inputs of `size`.
fn pairs(vectors: &[f32], rows: usize, inputs: &[f32], size: usize) -> Result<usize> {
    let count = inputs.len() / size;
    match count * size == inputs.len() && count * rows == vectors.len() {
        true => Ok(count),
        false => bail!(
            "found {} and {} elements, expected vectors of {rows} and as many of {size}",
            vectors.len(),
            inputs.len()
        ),
    }
}

/// A weight that inputs are multiplied with.
pub struct Multiplier(Matrix);

impl Multiplier {
    /// Of a weight with axes of output and input channels.
    ///
    /// # Errors
    /// When it cannot be read, or has other axes that are longer than 1.
    pub fn new(weight: &Weight, axes: [usize; 2]) -> Result<Multiplier> {
        let matrix = Rows::of(weight, axes)?;
        let mut weight = Matrix::zeros(matrix.rows, matrix.columns);
        let mut out = weight.rows_mut();
        for first in (0..matrix.rows).step_by(COLUMNS) {
            let values = matrix.read(first..matrix.rows.min(first + COLUMNS))?;
            values.iter().zip(&mut out).for_each(|(row, out)| out.copy_from_slice(row));
        }
        drop(out);
        Ok(Multiplier(weight))
    }

    /// Adds W x to the results, for each of the inputs x that lie one after the other.
    ///
    /// # Errors
    /// When there are not as many results as inputs.
    pub fn add(&self, inputs: &[f32], results: &mut [f32]) -> Result<()> {
        let (rows, size) = (self.0.rows.max(1), self.0.columns.max(1));
        pairs(results, rows, inputs, size)?;
        results.par_chunks_mut(COLUMNS * rows).zip(inputs.par_chunks(COLUMNS * size)).for_each(|(results, inputs)| {
            let panels = turned(inputs.chunks_exact(size).map(|input| input.iter().copied()), size);
            let mut products = vec![0.0; panels.len() / size * rows];
            self.0.multiply(1.0, &(0..rows), &(0..size), &panels, &mut products);
            for (number, result) in results.chunks_exact_mut(rows).enumerate() {
                let product = column(&products, number, rows);
                result.iter_mut().zip(product).for_each(|(result, product)| *result += product);
            }
        });
        Ok(())
    }
}

/// What compression before a weight W has changed.
#[derive(Clone, Copy)]
pub enum Lost<'a> {
    /// d of each input x.
    Inputs(&'a Cross),
    /// W d of each input x, and what was lost of what is added to W x: sums of as many rows as W has.
    Results(&'a Cross),
}

/// The weight W* for which W* x is nearest to W (x + d), or to what else its results should be, in the sum of squares over
/// all inputs x: W + W Σ d xᵀ H⁻¹, where H is damped as its factor is (Li et al. 2025, GPTAQ, section 4, without its
/// approximations).
///
/// # Errors
/// When sizes do not go together, or the weight cannot be read.
pub fn aimed(weight: &Weight, axes: [usize; 2], factor: &Factor, lost: Lost) -> Result<Tensor> {
    let matrix = Rows::new(weight, axes, factor)?;
    let (rows, n) = (matrix.rows, matrix.columns);
    let (found, expected) = match lost {
        Lost::Inputs(Cross(sums)) => ([sums.columns, sums.rows], [n, n]),
        Lost::Results(Cross(sums)) => ([sums.columns, sums.rows], [rows, n]),
    };
    if found != expected {
        bail!("found sums of {} x {}, expected {} x {}", found[0], found[1], expected[0], expected[1]);
    }
    let solved = (0..rows.div_ceil(COLUMNS)).into_par_iter().map(|block| {
        let range = block * COLUMNS..rows.min((block + 1) * COLUMNS);
        let mut values = matrix.read(range.clone())?;
        let wanted = match lost {
            Lost::Inputs(Cross(sums)) => {
                let weight = turned(values.iter().map(|row| row.iter().copied()), n);
                let mut wanted = vec![0.0; weight.len()];
                sums.multiply(1.0, &(0..n), &(0..n), &weight, &mut wanted);
                wanted
            }
            Lost::Results(Cross(sums)) => turned(range.map(|row| (0..n).map(move |input| sums.row(input)[row])), n),
        };
        let (order, scale) = (factor.order(), factor.scale());
        let mut sorted = vec![0.0; wanted.len()];
        for (sorted, wanted) in sorted.chunks_exact_mut(n * LANES).zip(wanted.chunks_exact(n * LANES)) {
            for (sorted, &column) in sorted.chunks_exact_mut(LANES).zip(order) {
                let wanted = &wanted[column as usize * LANES..][..LANES];
                sorted.iter_mut().zip(wanted).for_each(|(sorted, wanted)| *sorted = scale * wanted);
            }
        }
        factor.solve(&mut sorted);
        for (row, values) in values.iter_mut().enumerate() {
            let change = column(&sorted, row, n);
            order.iter().zip(change).for_each(|(&column, change)| values[column as usize] += change);
        }
        Ok(values.concat())
    });
    let values = solved.collect::<Result<Vec<Vec<f32>>>>()?.concat();
    Tensor::from_vec(weight.shape(), matrix.lie(values))?.cast(weight.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrated::Moments;
    use crate::test_weights::values;

    /// W x for each x.
    fn products(weight: &[f32], inputs: &[f32], n: usize) -> Vec<f64> {
        let product = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        inputs.chunks_exact(n).flat_map(|x| weight.chunks_exact(n).map(move |w| product(x, w))).collect()
    }

    #[test]
    fn results_are_nearest_to_what_they_were() {
        // More rows than a task has, and more columns than a panel.
        let (rows, n, count) = (COLUMNS + 3, 150, 400);
        let (w, original) = (values(rows * n, 1), values(count * n, 2));
        let inputs: Vec<f32> = original.iter().zip(values(count * n, 3)).map(|(x, noise)| x + 0.3 * noise).collect();
        let lost_inputs: Vec<f32> = original.iter().zip(&inputs).map(|(x, y)| x - y).collect();
        let lost: Vec<f32> = values(count * rows, 4).iter().map(|v| 0.2 * v).collect();
        let weight = Weight::from_tensor("w", Tensor::from_vec([rows, n], w.clone()).unwrap());
        let (mut moments, mut of_inputs, mut of_results) = (Moments::new(n), Cross::new(n, n), Cross::new(rows, n));
        moments.add(&inputs).unwrap();
        of_inputs.add(&lost_inputs, &inputs).unwrap();
        let (mut results, residual) = (lost.clone(), &lost);
        Multiplier::new(&weight, [0, 1]).unwrap().add(&lost_inputs, &mut results).unwrap();
        of_results.add(&results, &inputs).unwrap();
        let factor = Factor::new(&moments, 1e-6).unwrap();
        let aim = aimed(&weight, [0, 1], &factor, Lost::Results(&of_results)).unwrap().to_f32().unwrap();
        // The errors that are left do not depend on the inputs: no other weight is nearer.
        let wanted = products(&w, &original, n).into_iter().zip(residual).map(|(y, r)| y + f64::from(*r));
        let errors: Vec<f64> = wanted.zip(products(&aim, &inputs, n)).map(|(wanted, found)| wanted - found).collect();
        let slope = |row: usize, column: usize| -> f64 {
            (0..count).map(|t| errors[t * rows + row] * f64::from(inputs[t * n + column])).sum()
        };
        let before: Vec<f64> = products(&w, &original, n)
            .into_iter()
            .zip(products(&w, &inputs, n))
            .zip(residual)
            .map(|((wanted, found), r)| wanted + f64::from(*r) - found)
            .collect();
        let largest = |row: usize| -> f64 {
            let slope = |column: usize| -> f64 {
                (0..count).map(|t| before[t * rows + row] * f64::from(inputs[t * n + column])).sum()
            };
            (0..n).map(|column| slope(column).abs()).fold(0.0, f64::max)
        };
        for row in [0, 1, COLUMNS - 1, COLUMNS, rows - 1] {
            let all = largest(row);
            let left = (0..n).map(|column| slope(row, column).abs()).fold(0.0, f64::max);
            assert!(left < 1e-3 * all, "row {row}: {left} of {all}");
        }
        // A weight that lies the other way has the same aim.
        let transposed: Vec<f32> = (0..rows * n).map(|i| w[i % rows * n + i / rows]).collect();
        let lying = Weight::from_tensor("w", Tensor::from_vec([n, rows], transposed).unwrap());
        let other = aimed(&lying, [1, 0], &factor, Lost::Results(&of_results)).unwrap().to_f32().unwrap();
        assert!((0..rows * n).all(|i| other[i] == aim[i % rows * n + i / rows]));
        // Without a residual both sums tell the same.
        let mut results = vec![0.0; count * rows];
        Multiplier::new(&lying, [1, 0]).unwrap().add(&lost_inputs, &mut results).unwrap();
        let mut of_results = Cross::new(rows, n);
        of_results.add(&results, &inputs).unwrap();
        let [one, other] = [Lost::Inputs(&of_inputs), Lost::Results(&of_results)]
            .map(|lost| aimed(&weight, [0, 1], &factor, lost).unwrap().to_f32().unwrap());
        assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-3), "{one:?} {other:?}");
        assert!(one.iter().zip(&w).any(|(a, w)| (a - w).abs() > 1e-2));
        let error = aimed(&weight, [0, 1], &factor, Lost::Inputs(&of_results)).unwrap_err().to_string();
        assert!(error.contains("found sums of 131 x 150, expected 150 x 150"), "{error}");
    }
}
