//! What values an activation takes, gathered call by call, and the range that int8 should cover.

use quince_mil::{Result, bail};

/// How a range is chosen from the values that were seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// From the least to the greatest.
    MinMax,
    /// Without a share of the values at either end: `Percentile(99.99)` leaves out 0.005 % on each side.
    Percentile(f64),
    /// The range, symmetric about zero, whose 8-bit version tells least from the original by relative entropy
    /// (Migacz, "8-bit inference with TensorRT", 2017).
    Entropy,
}

/// Counts of values by magnitude and sign. In which order they come changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    low: f64,
    high: f64,
    total: u64,
    /// The width of a bin is 2^this.
    exponent: i32,
    /// Values from 0 up and from 0 down, bin by bin.
    above: Vec<u64>,
    below: Vec<u64>,
}

/// Bins on either side of zero.
const BINS: usize = 2048;
/// Steps of int8 on either side of zero.
const STEPS: usize = 128;
/// The narrowest bins, narrower than what fp16 tells apart.
const NARROWEST: i32 = -36;

impl Histogram {
    /// Counts values.
    ///
    /// # Errors
    /// When one is infinite or not a number.
    pub fn observe(&mut self, values: &[f32]) -> Result<()> {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            bail!("found the value {value}, expected finite numbers");
        }
        let greatest = values.iter().fold(0f64, |max, &v| max.max(f64::from(v).abs()));
        self.make_room(greatest);
        let scale = (-f64::from(self.exponent)).exp2();
        for value in values.iter().copied().map(f64::from) {
            if self.total == 0 {
                (self.low, self.high) = (value, value);
            }
            (self.low, self.high) = (self.low.min(value), self.high.max(value));
            self.total += 1;
            let bin = ((value.abs() * scale) as usize).min(BINS - 1);
            let side = if value < 0.0 { &mut self.below } else { &mut self.above };
            side[bin] += 1;
        }
        Ok(())
    }

    /// The range that the statistic chooses; `None` before any value was seen.
    pub fn range(&self, statistic: Statistic) -> Option<(f64, f64)> {
        if self.total == 0 {
            return None;
        }
        let most = match statistic {
            Statistic::MinMax => return Some((self.low, self.high)),
            Statistic::Percentile(percentile) => {
                let outside = (self.total as f64 * (1.0 - percentile / 100.0) / 2.0).max(0.0) as u64;
                return Some((
                    -self.reach(&self.below, outside, -self.low),
                    self.reach(&self.above, outside, self.high),
                ));
            }
            Statistic::Entropy => self.edge(self.least_entropy()),
        };
        Some((self.low.max(-most), self.high.min(most)))
    }

    /// Widens the bins until the greatest magnitude is in one.
    fn make_room(&mut self, greatest: f64) {
        if self.above.is_empty() {
            self.exponent = NARROWEST;
            (self.above, self.below) = (vec![0; BINS], vec![0; BINS]);
        }
        while greatest >= self.edge(BINS) {
            for side in [&mut self.above, &mut self.below] {
                let joined: Vec<u64> = side.chunks(2).map(|pair| pair.iter().sum()).collect();
                *side = joined;
                side.resize(BINS, 0);
            }
            self.exponent += 1;
        }
    }

    /// The lower edge of a bin.
    fn edge(&self, bin: usize) -> f64 {
        bin as f64 * f64::from(self.exponent).exp2()
    }

    /// How far a side reaches without this many of its outermost values; `end` is how far it reaches with them, negative
    /// if there are none.
    fn reach(&self, side: &[u64], outside: u64, end: f64) -> f64 {
        let mut seen = 0;
        let inside = |(_, count): &(usize, &u64)| {
            seen += **count;
            seen > outside
        };
        match side.iter().enumerate().rev().find(inside) {
            Some((bin, _)) => self.edge(bin + 1).min(end),
            None => end.min(0.0),
        }
    }

    /// The number of bins to keep so that the distribution of magnitudes loses least.
    fn least_entropy(&self) -> usize {
        let counts: Vec<f64> = self.above.iter().zip(&self.below).map(|(a, b)| (a + b) as f64).collect();
        let used = counts.iter().rposition(|&count| count > 0.0).map_or(1, |last| last + 1);
        let candidates = (STEPS.min(used)..=used).map(|kept| (kept, divergence(&counts, kept)));
        candidates.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(used, |best| best.0)
    }
}

/// The relative entropy of the first `kept` bins, the rest added to the last, and their version in [`STEPS`] levels.
fn divergence(counts: &[f64], kept: usize) -> f64 {
    let total: f64 = counts.iter().sum();
    let inside: f64 = counts[..kept].iter().sum();
    if inside == 0.0 {
        return f64::INFINITY;
    }
    let mut divergence = 0.0;
    for level in 0..STEPS {
        let (first, end) = (level * kept / STEPS, (level + 1) * kept / STEPS);
        let bins = &counts[first..end];
        let used = bins.iter().filter(|count| **count > 0.0).count().max(1) as f64;
        let quantized = bins.iter().sum::<f64>() / used / inside;
        for (bin, &count) in (first..end).zip(bins) {
            let outside = if bin + 1 == kept { total - inside } else { 0.0 };
            let p = (count + outside) / total;
            // What is clipped into a bin that was empty has no counterpart.
            let q = if count > 0.0 { quantized } else { 1e-12 };
            divergence += if p > 0.0 { p * (p / q).ln() } else { 0.0 };
        }
    }
    divergence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::{values_of, weight};
    use quince_tensor::DType;

    /// Values up to 0.25 with an outlier.
    fn values() -> Vec<f32> {
        let mut values: Vec<f32> = values_of(&weight(&[40_000], DType::F32, 3)).iter().map(|&v| v as f32).collect();
        values.push(30.0);
        values
    }

    fn histogram(values: &[f32], piece: usize) -> Histogram {
        let mut histogram = Histogram::default();
        values.chunks(piece).for_each(|piece| histogram.observe(piece).unwrap());
        histogram
    }

    #[test]
    fn outliers_count_as_the_statistic_says() {
        let values = values();
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        let histogram = histogram(&values, 1000);
        assert_eq!(histogram.range(Statistic::MinMax), Some((f64::from(sorted[0]), 30.0)));
        let (low, high) = histogram.range(Statistic::Percentile(99.0)).unwrap();
        let (exact_low, exact_high) = (f64::from(sorted[200]), f64::from(sorted[40_000 - 200]));
        // A bin is as wide as the outlier needs.
        assert!((low - exact_low).abs() < 0.02 && (high - exact_high).abs() < 0.02, "{low} {high}");
        let (low, high) = histogram.range(Statistic::Entropy).unwrap();
        assert!(low >= f64::from(sorted[0]) && high > 0.1 && high < 3.0, "{low} {high}");
        assert_eq!(Histogram::default().range(Statistic::MinMax), None);
    }

    #[test]
    fn the_order_of_values_changes_nothing() {
        let mut values = values();
        let forward = histogram(&values, 700);
        values.reverse();
        let backward = histogram(&values, 4096);
        for statistic in [Statistic::MinMax, Statistic::Percentile(99.9), Statistic::Entropy] {
            assert_eq!(forward.range(statistic), backward.range(statistic));
        }
        assert!(Histogram::default().observe(&[f32::NAN]).is_err());
    }

    #[test]
    fn values_of_one_sign_have_a_range_of_one_sign() {
        let histogram = histogram(&[1.0, 2.0, 3.0, 4.0], 2);
        assert_eq!(histogram.range(Statistic::MinMax), Some((1.0, 4.0)));
        let (low, high) = histogram.range(Statistic::Percentile(100.0)).unwrap();
        assert!((0.0..=1.0).contains(&low) && high == 4.0, "{low} {high}");
    }
}
