//! What is known of the inputs of a weight: their second moments.

use super::Factor;
use super::matrix::Panels;
use quince_kernels::LANES;
use quince_tensor::{Result, Weight, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// Knows what weights are multiplied with.
pub trait Guide: Send + Sync {
    /// What is known of the inputs of the weight of this name, in which dots may have become underscores; `None` if
    /// nothing is. `damping` as in [`Factor::new`].
    ///
    /// # Errors
    /// When it cannot be read or factored.
    fn factor(&self, weight: &str, damping: f32) -> Result<Option<Arc<Factor>>>;

    /// Whether anything is known, which costs nothing to ask.
    fn knows(&self, weight: &str) -> bool;

    /// What a weight should be instead before it is compressed, where that is known to be something else: of the same name,
    /// type and shape. Nothing is computed before it is asked for. `axes` are those of its output and input channels.
    fn aim(&self, weight: &Weight, axes: [usize; 2]) -> Option<Weight> {
        let _ = (weight, axes);
        None
    }
}

/// The sum of x xᵀ over inputs x: the lower triangle, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    size: usize,
    sums: Vec<f32>,
    count: u64,
}

impl Moments {
    /// Of inputs of `size` elements, none of which was seen yet.
    pub fn new(size: usize) -> Moments {
        Moments { size, sums: vec![0.0; Moments::triangle(size)], count: 0 }
    }

    /// From the lower triangle of a sum over `count` inputs.
    ///
    /// # Errors
    /// When there are other than [`Moments::triangle`] sums, or one is not finite.
    pub fn from_sums(size: usize, sums: Vec<f32>, count: u64) -> Result<Moments> {
        if sums.len() != Moments::triangle(size) {
            bail!("found {} sums, expected {} for inputs of {size} elements", sums.len(), Moments::triangle(size));
        }
        if let Some(i) = sums.iter().position(|v| !v.is_finite()) {
            bail!("sum {i} is {}, expected a finite number", sums[i]);
        }
        Ok(Moments { size, sums, count })
    }

    /// The number of sums for inputs of `size` elements.
    pub fn triangle(size: usize) -> usize {
        size * (size + 1) / 2
    }

    /// The number of elements of an input.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many inputs were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The lower triangle, row after row.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// Adds inputs that lie one after the other.
    ///
    /// # Errors
    /// When they are no whole number of inputs, or their sums leave the range of float32.
    pub fn add(&mut self, inputs: &[f32]) -> Result<()> {
        let n = self.size;
        if n == 0 || !inputs.len().is_multiple_of(n) {
            bail!("found {} elements, expected inputs of {n}", inputs.len());
        }
        let count = inputs.len() / n;
        let inputs = Panels::new(inputs, count, n);
        // Tasks own rows of the triangle, which lie one after the other.
        let mut rest = &mut self.sums[..];
        let mut tasks = Vec::new();
        for first in (0..n).step_by(LANES) {
            let end = n.min(first + LANES);
            let (rows, others) = rest.split_at_mut(Moments::triangle(end) - Moments::triangle(first));
            tasks.push((first, end, rows));
            rest = others;
        }
        tasks.into_par_iter().rev().for_each(|(first, end, sums)| {
            let mut product = vec![0.0; (end - first) * end.next_multiple_of(LANES)];
            inputs.add_products(first / LANES, end - first, &inputs, end, &mut product, end.next_multiple_of(LANES));
            let mut at = 0;
            for (row, product) in (first..end).zip(product.chunks_exact(end.next_multiple_of(LANES))) {
                sums[at..=at + row].iter_mut().zip(product).for_each(|(sum, product)| *sum += product);
                at += row + 1;
            }
        });
        self.count += count as u64;
        if !self.sums.iter().all(|sum| sum.is_finite()) {
            bail!("the second moments of {count} inputs leave the range of float32");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::values;

    #[test]
    fn sums_are_those_of_the_definition() {
        let (n, count) = (2 * LANES + 5, 11);
        let x = values(n * count, 1);
        let mut moments = Moments::new(n);
        moments.add(&x[..4 * n]).unwrap();
        moments.add(&x[4 * n..]).unwrap();
        assert_eq!(moments.count(), count as u64);
        let mut sums = moments.sums().iter();
        for i in 0..n {
            for j in 0..=i {
                let expected: f32 = (0..count).map(|t| x[t * n + i] * x[t * n + j]).sum();
                assert!((sums.next().unwrap() - expected).abs() < 1e-3, "{i} {j}");
            }
        }
        assert!(moments.add(&x[1..]).is_err());
    }
}
