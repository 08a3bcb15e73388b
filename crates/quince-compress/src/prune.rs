//! Pruning: which elements of a weight stay, the others becoming zero.

use crate::scheme::Axes;
use crate::values::{check_finite, check_shape, divisors};
use quince_tensor::{Result, Weight, bail};
use std::fmt;

/// Which elements become zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pruning {
    /// This share of the elements, the least magnitudes.
    Magnitude(Amount),
    /// Of each `of` neighbouring input channels the `zeros` of least magnitude.
    Ratio {
        /// How many become zero.
        zeros: usize,
        /// Of how many.
        of: usize,
    },
    /// The elements whose magnitude is below a number, and zeros.
    Threshold(Amount),
}

/// A finite number of at least 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount(f64);

// What is not a number is refused.
impl Eq for Amount {}

impl Amount {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Pruning {
    /// Zeros for this share of the elements, between 0 and 1.
    ///
    /// # Errors
    /// When nothing or everything would be zero.
    pub fn magnitude(sparsity: f64) -> Result<Pruning> {
        if !(sparsity > 0.0 && sparsity < 1.0) {
            bail!("found a sparsity of {sparsity}, expected a number between 0 and 1"; hint: "0.5 makes half of a weight zero");
        }
        Ok(Pruning::Magnitude(Amount(sparsity)))
    }

    /// `zeros` of each `of` neighbours.
    ///
    /// # Errors
    /// When nothing or everything would be zero.
    pub fn ratio(zeros: usize, of: usize) -> Result<Pruning> {
        if zeros == 0 || zeros >= of {
            bail!("found a ratio of {zeros}:{of}, expected N:M with 0 < N < M"; hint: "2:4 makes 2 of 4 neighbours zero");
        }
        Ok(Pruning::Ratio { zeros, of })
    }

    /// Zeros for magnitudes below a number.
    ///
    /// # Errors
    /// When it is negative or not finite.
    pub fn threshold(threshold: f64) -> Result<Pruning> {
        if !threshold.is_finite() || threshold < 0.0 {
            bail!("found a threshold of {threshold}, expected a finite number of at least 0");
        }
        Ok(Pruning::Threshold(Amount(threshold)))
    }

    /// How many elements stay: known from the shape, except for a threshold, for which the weight is read.
    ///
    /// # Errors
    /// When the ratio does not divide the input channels, the weight cannot be read, or nothing would stay.
    pub(crate) fn kept_count(self, weight: &Weight, axes: Axes) -> Result<usize> {
        check_shape(weight.shape())?;
        let len = weight.len();
        let kept = match self {
            Pruning::Magnitude(sparsity) => len - (len as f64 * sparsity.get()) as usize,
            Pruning::Ratio { zeros, of } => len / dividing(weight, axes, of)? * (of - zeros),
            Pruning::Threshold(_) => self.kept(weight, axes)?.1.iter().filter(|kept| **kept != 0).count(),
        };
        if kept == 0 {
            bail!("no element would stay");
        }
        Ok(kept)
    }

    /// The elements, and 1 for each that stays, 0 for the others.
    ///
    /// # Errors
    /// As [`Pruning::kept_count`], or when an element is not finite.
    pub(crate) fn kept(self, weight: &Weight, axes: Axes) -> Result<(Vec<f32>, Vec<u8>)> {
        let values = weight.load()?.to_f32()?;
        check_finite(&values, 0)?;
        let mut kept = vec![1u8; values.len()];
        match self {
            Pruning::Magnitude(sparsity) => {
                prune(&values, 0..values.len(), (values.len() as f64 * sparsity.get()) as usize, &mut kept);
            }
            Pruning::Ratio { zeros, of } => {
                let of = dividing(weight, axes, of)?;
                let dim = weight.shape().get(axes.input).copied().unwrap_or(1);
                let step: usize = weight.shape()[axes.input + 1..].iter().product();
                for first in (0..values.len()).filter(|i| (i / step % dim).is_multiple_of(of)) {
                    prune(&values, (0..of).map(|i| first + i * step), zeros, &mut kept);
                }
            }
            Pruning::Threshold(threshold) => {
                let stays = |value: &f32| *value != 0.0 && f64::from(value.abs()) >= threshold.get();
                kept.iter_mut().zip(&values).for_each(|(kept, value)| *kept = u8::from(stays(value)));
            }
        }
        Ok((values, kept))
    }
}

/// Takes out the `zeros` of least magnitude of some elements; of equal ones the first.
fn prune(values: &[f32], elements: impl Iterator<Item = usize> + Clone, zeros: usize, kept: &mut [u8]) {
    // Magnitudes of finite numbers are ordered as their bits are.
    let magnitude = |i: usize| values[i].abs().to_bits();
    let mut magnitudes: Vec<u32> = elements.clone().map(magnitude).collect();
    if zeros == 0 || zeros > magnitudes.len() {
        return;
    }
    let greatest = *magnitudes.select_nth_unstable(zeros - 1).1;
    let mut equal = zeros - magnitudes.iter().filter(|m| **m < greatest).count();
    for i in elements {
        let goes = magnitude(i) < greatest || (magnitude(i) == greatest && equal > 0);
        if goes {
            equal -= usize::from(magnitude(i) == greatest);
            kept[i] = 0;
        }
    }
}

/// `of`, if it divides the input channels.
fn dividing(weight: &Weight, axes: Axes, of: usize) -> Result<usize> {
    match weight.shape().get(axes.input) {
        Some(&dim) if dim.is_multiple_of(of) => Ok(of),
        Some(&dim) => {
            bail!("{of} neighbours do not divide {dim} input channels"; hint: "numbers that do: {}", divisors(dim))
        }
        None => bail!("axis {} is not an axis of a weight of shape {:?}", axes.input, weight.shape()),
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pruning::Magnitude(sparsity) => write!(f, "{} % zeros", sparsity.get() * 100.0),
            Pruning::Ratio { zeros, of } => write!(f, "{zeros} of {of} zeros"),
            Pruning::Threshold(threshold) => write!(f, "zeros below {}", threshold.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_tensor::{DType, Tensor};

    const AXES: Axes = Axes { output: 0, input: 1 };

    fn kept(pruning: Pruning, shape: [usize; 2], values: &[f64]) -> Vec<u8> {
        let weight = Weight::from_tensor("w", Tensor::from_f64(DType::F16, shape, values.to_vec()).unwrap());
        let (_, kept) = pruning.kept(&weight, AXES).unwrap();
        let count = kept.iter().filter(|kept| **kept != 0).count();
        assert_eq!(pruning.kept_count(&weight, AXES).unwrap(), count);
        kept
    }

    #[test]
    fn the_least_magnitudes_go() {
        let values = [3.0, -1.0, 0.5, -4.0, 0.0, 1.0, 2.0, -0.25];
        assert_eq!(kept(Pruning::magnitude(0.5).unwrap(), [2, 4], &values), [1, 0, 0, 1, 0, 1, 1, 0]);
        assert_eq!(kept(Pruning::ratio(2, 4).unwrap(), [2, 4], &values), [1, 0, 0, 1, 0, 1, 1, 0]);
        assert_eq!(kept(Pruning::ratio(1, 2).unwrap(), [2, 4], &values), [1, 0, 0, 1, 0, 1, 1, 0]);
        assert_eq!(kept(Pruning::ratio(1, 4).unwrap(), [2, 4], &values), [1, 1, 0, 1, 0, 1, 1, 1]);
        assert_eq!(kept(Pruning::threshold(1.0).unwrap(), [2, 4], &values), [1, 1, 0, 1, 0, 1, 1, 0]);
        assert_eq!(kept(Pruning::threshold(0.0).unwrap(), [2, 4], &values), [1, 1, 1, 1, 0, 1, 1, 1]);
    }

    #[test]
    fn what_leaves_nothing_is_refused() {
        for wrong in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(Pruning::magnitude(wrong).is_err(), "{wrong}");
        }
        assert!(
            Pruning::ratio(4, 4).is_err() && Pruning::ratio(0, 4).is_err() && Pruning::threshold(f64::NAN).is_err()
        );
        let weight = Weight::from_tensor("w", Tensor::from_f64(DType::F32, [2, 6], vec![1.0; 12]).unwrap());
        let error = Pruning::ratio(2, 4).unwrap().kept_count(&weight, AXES).unwrap_err().to_string();
        assert_eq!(error, "4 neighbours do not divide 6 input channels; hint: numbers that do: 1, 2, 3, 6");
        assert!(Pruning::threshold(2.0).unwrap().kept_count(&weight, AXES).is_err());
    }
}
