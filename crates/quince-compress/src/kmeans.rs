//! Exact weighted k-means in one dimension, for tables whose entries are stored in f16 or f32.
//!
//! In one dimension the clusters of an optimal solution are runs of the sorted values, so that the
//! problem is a shortest path over split points ([`partition`]). The cost of a run is taken to the
//! best centroid *that can be stored*: the result is the best of all tables of that type, not the
//! best real-valued table rounded afterwards.

mod partition;
pub(crate) mod vectors;

use crate::Float;
use crate::values::check_finite;
use quince_tensor::{Result, bail};

/// Distinct values in ascending order, each with its weight: how often it occurs, or the sum of the
/// importances of its occurrences.
#[derive(Clone, Debug, Default)]
pub struct Points {
    values: Vec<f64>,
    weights: Vec<f64>,
}

impl Points {
    /// The points of `values`, each with importance 1. Sorts and merges equal values; -0 is 0.
    ///
    /// # Errors
    /// When a value is infinite or not a number.
    pub fn new(values: &[f32]) -> Result<Self> {
        check_finite(values, 0)?;
        let mut keys: Vec<u32> = values.iter().map(|&v| sort_key(v)).collect();
        keys.sort_unstable();
        Ok(Self::from_sorted_keys(&keys))
    }

    /// The points of `values`, each counted as often as its importance says. An element of
    /// importance 0 does not move a centroid, unless all are 0, when they count alike.
    ///
    /// # Errors
    /// When a value or an importance is infinite or not a number, an importance is negative, or the
    /// slices differ in length.
    pub fn with_importance(values: &[f32], importance: &[f64]) -> Result<Self> {
        if importance.len() != values.len() {
            bail!("found {} importances, expected one for each of {} elements", importance.len(), values.len());
        }
        check_finite(values, 0)?;
        if let Some(i) = importance.iter().position(|v| !v.is_finite() || *v < 0.0) {
            bail!("the importance of element {i} is {}, expected a finite number of at least 0", importance[i]);
        }
        let pairs = values.iter().copied().zip(importance.iter().copied());
        let mut pairs: Vec<(f32, f64)> = pairs.filter(|pair| pair.1 > 0.0).collect();
        if pairs.is_empty() {
            return Self::new(values);
        }
        // The order in which equal values come must not decide how their sum rounds.
        pairs.sort_unstable_by(|a, b| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)).then(a.1.total_cmp(&b.1)));
        let mut points = Self::default();
        for (value, weight) in pairs {
            points.push(f64::from(value), weight);
        }
        Ok(points)
    }

    /// The points of values given by [`sort_key`] in ascending order.
    pub(crate) fn from_sorted_keys(keys: &[u32]) -> Self {
        let mut points = Self::default();
        for &key in keys {
            points.push(f64::from(from_sort_key(key)), 1.0);
        }
        points
    }

    /// Adds `weight` at `value`, which must not be below any earlier value.
    pub(crate) fn push(&mut self, value: f64, weight: f64) {
        match (self.values.last(), self.weights.last_mut()) {
            (Some(&last), Some(sum)) if last == value => *sum += weight,
            _ => {
                // -0 is written as 0, for the table as well.
                self.values.push(value + 0.0);
                self.weights.push(weight);
            }
        }
    }

    /// The distinct values, ascending.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The weight of each value.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The weighted sum of squared distances to the nearest of `centroids`, which ascend; infinite if there are none.
    pub fn sse(&self, centroids: &[f64]) -> f64 {
        if centroids.is_empty() {
            return f64::INFINITY;
        }
        let mut nearest = Nearest::new(centroids);
        let distance = |(&value, &weight): (&f64, &f64)| {
            let d = value - centroids[nearest.advance(value)];
            weight * d * d
        };
        self.values.iter().zip(&self.weights).map(distance).sum()
    }
}

/// The at most `k` centroids that make the weighted sum of squared distances smallest, among all
/// centroids that `table` can store; ascending. Fewer than `k` only if there are fewer values.
///
/// # Errors
/// When `k` is 0, or a centroid is beyond the range of `table`.
pub fn cluster(points: &Points, k: usize, table: Float) -> Result<Vec<f64>> {
    if k == 0 {
        bail!("found 0 clusters, expected at least 1");
    }
    let means = if points.values.len() <= k { points.values.clone() } else { partition::means(points, k, table) };
    table.store(means)
}

/// Finds the nearest of ascending centroids for ascending values; of two at the same distance the lower.
pub(crate) struct Nearest<'a> {
    centroids: &'a [f64],
    at: usize,
}

impl<'a> Nearest<'a> {
    pub(crate) fn new(centroids: &'a [f64]) -> Self {
        Self { centroids, at: 0 }
    }

    /// The position of the centroid nearest to `value`, which must not be below the one before.
    pub(crate) fn advance(&mut self, value: f64) -> usize {
        while let Some(&next) = self.centroids.get(self.at + 1) {
            // Halves, since the sum of two large f32 must not decide by its rounding.
            if value <= 0.5 * self.centroids[self.at] + 0.5 * next {
                break;
            }
            self.at += 1;
        }
        self.at
    }
}

/// A key that orders as the values do: negative numbers have all bits turned, others the sign.
pub(crate) fn sort_key(value: f32) -> u32 {
    let bits = value.to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000)
}

pub(crate) fn from_sort_key(key: u32) -> f32 {
    f32::from_bits(if key & 0x8000_0000 != 0 { key ^ 0x8000_0000 } else { !key })
}

#[cfg(test)]
mod tests;
