//! The ranges of activations that are to be quantized, measured by running texts.
//!
//! All values of an activation go into a histogram that doubles its width when one is too large for it. What is then its
//! range is a matter of taste ([`RangeRule`]): the steps of int8 are as wide as the largest value demands, and a few
//! large values may not be worth what small ones lose.

use crate::Run;
use crate::collect::observe_all;
use quince_compress::{ActivationRanges, activation_inputs};
use quince_engine::{Observed, Observer};
use quince_mil::Program;
use quince_runtime::Watch;
use quince_tensor::{Result, bail};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What of the values of an activation its range covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RangeRule {
    /// All of them.
    #[default]
    MinMax,
    /// All but one of ten thousand on either side.
    Percentile,
    /// Those up to the magnitude at which 128 steps keep most of what the distribution tells: the least KL divergence
    /// from it (Migacz 2017, 8-bit Inference with TensorRT).
    Entropy,
}

/// Runs texts through a program and finds the range of each value that `linear` and `conv` take. `progress` hears how
/// many texts of how many were run.
///
/// # Errors
/// What the engine reports; values that are not finite.
pub fn activation_ranges(
    program: &Program,
    runs: &mut [Run],
    rule: RangeRule,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ActivationRanges> {
    let wanted = program.functions.iter().map(|function| {
        let names: HashSet<String> = activation_inputs(function).map(|(_, name)| name).collect();
        (function.name.clone(), names)
    });
    let mut seen = Seen { wanted: wanted.collect(), function: String::new(), histograms: BTreeMap::new() };
    observe_all(runs, &mut seen, progress)?;
    let mut ranges = ActivationRanges::default();
    for (name, histogram) in &seen.histograms {
        let (low, high) = histogram.range(rule);
        ranges.widen(name, low, high)?;
    }
    Ok(ranges)
}

/// What was seen while texts are run.
struct Seen {
    /// By function: the names of its values that are wanted.
    wanted: HashMap<String, HashSet<String>>,
    function: String,
    histograms: BTreeMap<String, Histogram>,
}

impl Watch for Seen {
    fn enter(&mut self, function: &str) {
        function.clone_into(&mut self.function);
    }
}

impl Observer for Seen {
    fn value(&mut self, value: &Observed) -> Result<()> {
        if !self.wanted.get(&self.function).is_some_and(|names| names.contains(value.name)) {
            return Ok(());
        }
        let histogram = match self.histograms.get_mut(value.name) {
            Some(known) => known,
            None => self.histograms.entry(value.name.to_owned()).or_default(),
        };
        let elements = value.tensor()?.to_f32()?;
        histogram.add(&elements).map_err(|e| e.at(format!("`{}`", value.name)))
    }
}

/// Bins for negative values, and as many for others.
const SIDE: usize = 2048;
/// The magnitudes that int8 tells apart.
const STEPS: usize = 128;
/// The share of values beyond a percentile.
const BEYOND: f64 = 1e-4;

/// How often values were where.
struct Histogram {
    /// By bin, from -`limit` to `limit`.
    counts: Vec<u64>,
    /// A power of two, or 0 before the first value that is not 0.
    limit: f64,
    low: f64,
    high: f64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; 2 * SIDE], limit: 0.0, low: f64::INFINITY, high: f64::NEG_INFINITY }
    }
}

impl Histogram {
    fn add(&mut self, values: &[f32]) -> Result<()> {
        let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        if !values.iter().all(|value| value.is_finite()) {
            bail!("found values that are not finite, expected finite ones"; hint: "`quince predict --precision fp16-strict` says where they come from");
        }
        while f64::from(largest) > self.limit {
            match self.limit > 0.0 {
                true => self.double(),
                false => self.limit = f64::from(largest).log2().ceil().exp2(),
            }
        }
        let scale = if self.limit > 0.0 { SIDE as f64 / self.limit } else { 0.0 };
        for value in values.iter().map(|&value| f64::from(value)) {
            (self.low, self.high) = (self.low.min(value), self.high.max(value));
            let bin = (value * scale).floor() + SIDE as f64;
            self.counts[(bin as usize).min(2 * SIDE - 1)] += 1;
        }
        Ok(())
    }

    /// Makes room for twice as large values: two bins become one.
    fn double(&mut self) {
        let mut wide = vec![0; 2 * SIDE];
        let half = SIDE as isize;
        for (bin, count) in self.counts.iter().enumerate() {
            wide[((bin as isize - half).div_euclid(2) + half) as usize] += count;
        }
        self.counts = wide;
        self.limit *= 2.0;
    }

    fn range(&self, rule: RangeRule) -> (f64, f64) {
        if self.low > self.high {
            return (0.0, 0.0);
        }
        let width = self.limit / SIDE as f64;
        let (low, high) = match rule {
            RangeRule::MinMax => return (self.low, self.high),
            RangeRule::Percentile => {
                let total: u64 = self.counts.iter().sum();
                let beyond = (total as f64 * BEYOND) as u64;
                let first = |counts: &mut dyn Iterator<Item = &u64>| {
                    let mut sum = 0;
                    counts
                        .take_while(|count| {
                            sum += **count;
                            sum <= beyond
                        })
                        .count() as f64
                };
                let (below, above) = (first(&mut self.counts.iter()), first(&mut self.counts.iter().rev()));
                ((below - SIDE as f64) * width, (SIDE as f64 - above) * width)
            }
            RangeRule::Entropy => {
                let magnitudes =
                    (0..SIDE).map(|i| self.counts[SIDE + i] + self.counts[SIDE - 1 - i]).collect::<Vec<_>>();
                let most = threshold(&magnitudes) as f64 * width;
                (-most, most)
            }
        };
        (low.max(self.low).min(self.high), high.min(self.high).max(self.low))
    }
}

/// How many bins of magnitudes a range has that loses least by its [`STEPS`].
fn threshold(counts: &[u64]) -> usize {
    let used = counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
    let candidates = (STEPS..=used.max(STEPS)).map(|bins| (divergence(counts, bins), bins));
    candidates.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).map_or(counts.len(), |(_, bins)| bins)
}

/// KL(P ‖ Q) in nats: P are the magnitudes, those beyond some bins in the last of them; Q is what steps leave of those
/// within, spread evenly over the bins of a step that have any.
fn divergence(counts: &[u64], bins: usize) -> f64 {
    let beyond: u64 = counts[bins..].iter().sum();
    let within: u64 = counts[..bins].iter().sum();
    let total = (within + beyond) as f64;
    if within == 0 {
        return f64::INFINITY;
    }
    let mut sum = 0.0;
    for step in 0..STEPS {
        let range = step * bins / STEPS..(step + 1) * bins / STEPS;
        let inside = &counts[range.clone()];
        let some =
            inside.iter().enumerate().filter(|(i, count)| **count > 0 || (range.start + i + 1 == bins && beyond > 0));
        let each = inside.iter().sum::<u64>() as f64 / some.clone().count().max(1) as f64 / within as f64;
        for (i, count) in some {
            let more = if range.start + i + 1 == bins { beyond } else { 0 };
            let p = (count + more) as f64 / total;
            // A value that Q does not know costs as much as one that is as rare as can be seen.
            sum += p * (p / each.max(0.5 / total)).ln();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of a normal distribution by the inverse of its (logistic) approximation, and some large ones.
    fn values(count: usize, outliers: &[f32]) -> Vec<f32> {
        let normal =
            (1..count).map(|i| (i as f64 / count as f64, i)).map(|(p, _)| ((p / (1.0 - p)).ln() / 1.702) as f32);
        normal.chain(outliers.iter().copied()).collect()
    }

    fn range(parts: &[&[f32]], rule: RangeRule) -> (f64, f64) {
        let mut histogram = Histogram::default();
        parts.iter().for_each(|part| histogram.add(part).unwrap());
        histogram.range(rule)
    }

    #[test]
    fn ranges_cover_what_their_rule_says() {
        let all = values(100_000, &[-3.0, 40.0]);
        assert_eq!(range(&[&all], RangeRule::MinMax), (f64::from(all[0].min(-3.0)), 40.0));
        // The logistic quantile of 1e-4 is ln(1e-4) / 1.702 = -5.41.
        let (low, high) = range(&[&all], RangeRule::Percentile);
        assert!((low + 5.41).abs() < 0.1 && (high - 5.41).abs() < 0.1, "{low} {high}");
        let (low, high) = range(&[&all], RangeRule::Entropy);
        assert!(low < -3.0 && high > 3.0 && high < 20.0, "{low} {high}");
        assert_eq!(range(&[&[0.0; 9]], RangeRule::Entropy), (0.0, 0.0));
        assert_eq!(range(&[&[2.0, 3.0]], RangeRule::MinMax), (2.0, 3.0));
    }

    #[test]
    fn the_order_of_values_does_not_matter() {
        let all = values(10_000, &[500.0]);
        let (small, large) = all.split_at(9_000);
        for rule in [RangeRule::MinMax, RangeRule::Percentile, RangeRule::Entropy] {
            assert_eq!(range(&[small, large], rule), range(&[large, small], rule), "{rule:?}");
        }
        assert!(Histogram::default().add(&[1.0, f32::NAN, 2.0]).is_err());
        assert!(Histogram::default().add(&[f32::INFINITY]).is_err());
    }
}
