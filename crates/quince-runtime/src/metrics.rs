//! How near one model's outputs are to another's, and reports of named numbers with thresholds.

use std::time::Duration;

use quince_tensor::{Result, bail};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::sampler::most_likely;

/// Compares rows of logits of a candidate with those of a reference, position by position.
///
/// - Mean squared error over all logits, and PSNR = 10 log10(peak² / MSE) in dB with peak = max |reference| over all
///   rows: the definition of coremltools' `compute_snr_and_psnr` and of Apple's ml-ane-transformers, so that figures
///   can be compared with theirs. Equal logits have infinite PSNR.
/// - KL divergence of the candidate's distribution from the reference's, in nats, mean and maximum over rows.
/// - Top-1 agreement: the share of rows with the same most likely token (of equal ones, the lowest id).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitComparison {
    rows: usize,
    values: usize,
    squared_error: f64,
    peak: f64,
    kl_sum: f64,
    kl_max: f64,
    agreeing: usize,
}

impl LogitComparison {
    /// Adds the logits of one position.
    ///
    /// # Errors
    /// Rows of different or no length; logits that are not numbers.
    pub fn add(&mut self, reference: &[f32], candidate: &[f32]) -> Result<()> {
        let kl = kl_divergence(reference, candidate)?;
        self.rows += 1;
        self.values += reference.len();
        for (&r, &c) in reference.iter().zip(candidate) {
            // Two masked logits, both -inf, are equal; their difference is not a number.
            if r != c {
                self.squared_error += (f64::from(r) - f64::from(c)).powi(2);
            }
            if r.is_finite() {
                self.peak = self.peak.max(f64::from(r).abs());
            }
        }
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
        self.agreeing += usize::from(most_likely(reference)? == most_likely(candidate)?);
        Ok(())
    }

    /// Number of rows added.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Mean squared error over all logits.
    pub fn mse(&self) -> f64 {
        self.squared_error / self.values as f64
    }

    /// Peak signal-to-noise ratio in dB.
    pub fn psnr(&self) -> f64 {
        10.0 * (self.peak * self.peak / self.mse()).log10()
    }

    /// Mean KL divergence in nats.
    pub fn kl_mean(&self) -> f64 {
        self.kl_sum / self.rows as f64
    }

    /// The KL divergence of the worst row in nats.
    pub fn kl_max(&self) -> f64 {
        self.kl_max
    }

    /// Share of rows whose most likely token is the same, 0 to 1.
    pub fn top1_agreement(&self) -> f64 {
        self.agreeing as f64 / self.rows as f64
    }
}

/// KL(P ‖ Q) = Σ p (ln p − ln q) in nats, P and Q the softmax of the reference's and the candidate's logits, computed
/// in f64 from log-softmax. Infinite where the candidate forbids what the reference allows.
///
/// # Errors
/// Rows of different or no length; logits that are not numbers.
pub fn kl_divergence(reference: &[f32], candidate: &[f32]) -> Result<f64> {
    if reference.len() != candidate.len() {
        bail!("logits: found {} of the candidate, expected {} as in the reference", candidate.len(), reference.len());
    }
    let (p_norm, q_norm) = (log_sum_exp(reference)?, log_sum_exp(candidate)?);
    let mut sum = 0.0;
    for (&r, &c) in reference.iter().zip(candidate) {
        let log_p = f64::from(r) - p_norm;
        let p = log_p.exp();
        if p > 0.0 {
            sum += p * (log_p - (f64::from(c) - q_norm));
        }
    }
    // Rounding may leave a difference of equal distributions just below zero.
    Ok(sum.max(0.0))
}

/// ln Σ exp(x), without overflow.
///
/// # Errors
/// Logits that are not numbers or infinitely high, or none above negative infinity.
fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    let max = f64::from(logits[most_likely(logits)? as usize]);
    Ok(max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln())
}

/// Cosine of the angle between two vectors, in f64; 0 when one of them is zero.
///
/// # Errors
/// Vectors of different length.
pub fn cosine(a: &[f32], b: &[f32]) -> Result<f64> {
    if a.len() != b.len() {
        bail!("cosine: found vectors of {} and {} numbers, expected the same length", a.len(), b.len());
    }
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    Ok(if norms == 0.0 { 0.0 } else { (dot(a, b) / norms).clamp(-1.0, 1.0) })
}

/// Collects the negative log-likelihood of predicted tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Perplexity {
    nll: f64,
    tokens: usize,
}

impl Perplexity {
    /// Adds one prediction: the logits of a position and the token that follows it.
    ///
    /// # Errors
    /// A token beyond the logits; logits that are not numbers.
    pub fn add(&mut self, logits: &[f32], next: u32) -> Result<()> {
        let Some(&logit) = logits.get(next as usize) else {
            bail!("token {next}: found {} logits, expected one for it", logits.len());
        };
        self.nll += log_sum_exp(logits)? - f64::from(logit);
        self.tokens += 1;
        Ok(())
    }

    /// Number of predicted tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Mean negative log-likelihood in nats per token.
    pub fn mean_nll(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    /// exp of the mean negative log-likelihood.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll().exp()
    }
}

/// The distribution of measured times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Latencies {
    /// Number of measurements.
    pub count: usize,
    /// The shortest.
    pub min: Duration,
    /// Half are shorter.
    pub median: Duration,
    /// Nine of ten are shorter.
    pub p90: Duration,
    /// Ninety-nine of a hundred are shorter.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Latencies {
    /// The distribution of `times`, in any order; `None` without any. Percentiles between two measurements lie on the
    /// line between them, as numpy's do.
    pub fn of(times: &[Duration]) -> Option<Latencies> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let at = |fraction: f64| {
            let place = fraction * (sorted.len() - 1) as f64;
            let low = sorted[place as usize];
            let high = sorted[(place as usize + 1).min(sorted.len() - 1)];
            low + (high - low).mul_f64(place.fract())
        };
        Some(Latencies { count: sorted.len(), min, median: at(0.5), p90: at(0.9), p99: at(0.99), max })
    }
}

/// What a metric must not fall below or rise above.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// The value must be at least this.
    Min(f64),
    /// The value must be at most this.
    Max(f64),
}

/// A named number, with what it must reach.
///
/// In JSON: `{"name", "value", "unit", "min" or "max" if there is a threshold, "passed"}`; numbers that JSON does not
/// have are the strings `"inf"`, `"-inf"`, `"NaN"`.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// What is measured, as a machine reads it: `logits_psnr`.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Its unit, or nothing: `dB`, `nats`, `ms`.
    pub unit: &'static str,
    /// What it must reach, if it is judged.
    pub threshold: Option<Threshold>,
}

impl Metric {
    /// A number that is told but not judged.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Metric {
        Metric { name: name.into(), value, unit, threshold: None }
    }

    /// The same number, judged.
    #[must_use]
    pub fn judged(self, threshold: Threshold) -> Metric {
        Metric { threshold: Some(threshold), ..self }
    }

    /// Whether the threshold, if any, holds; NaN holds none.
    pub fn passed(&self) -> bool {
        match self.threshold {
            None => true,
            Some(Threshold::Min(min)) => self.value >= min,
            Some(Threshold::Max(max)) => self.value <= max,
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("value", &JsonNumber(self.value))?;
        map.serialize_entry("unit", self.unit)?;
        match self.threshold {
            None => {}
            Some(Threshold::Min(min)) => map.serialize_entry("min", &JsonNumber(min))?,
            Some(Threshold::Max(max)) => map.serialize_entry("max", &JsonNumber(max))?,
        }
        map.serialize_entry("passed", &self.passed())?;
        map.end()
    }
}

struct JsonNumber(f64);

impl Serialize for JsonNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.is_finite() {
            true => serializer.serialize_f64(self.0),
            false => serializer.collect_str(&self.0),
        }
    }
}

/// Metrics of one subject. It passes when all of them pass. In JSON: `{"subject", "passed", "metrics"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was measured: a package against its model.
    pub subject: String,
    /// The numbers, in the order of the table.
    pub metrics: Vec<Metric>,
}

impl Report {
    /// A report without metrics yet.
    pub fn new(subject: impl Into<String>) -> Report {
        Report { subject: subject.into(), metrics: Vec::new() }
    }

    /// Adds a metric at the end.
    pub fn push(&mut self, metric: Metric) {
        self.metrics.push(metric);
    }

    /// The metric of a name.
    pub fn get(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The metrics whose threshold does not hold.
    pub fn failures(&self) -> impl Iterator<Item = &Metric> {
        self.metrics.iter().filter(|metric| !metric.passed())
    }

    /// Whether every threshold holds.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The exit status of a program that ends with this report: 0 when it passed, else 1.
    pub fn exit_status(&self) -> u8 {
        u8::from(!self.passed())
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("subject", &self.subject)?;
        map.serialize_entry("passed", &self.passed())?;
        map.serialize_entry("metrics", &self.metrics)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "found {found}, expected {expected}");
    }

    /// Expected numbers: numpy in float64 (KL with scipy.special.log_softmax).
    #[test]
    fn comparison_is_what_numpy_computes() {
        let mut comparison = LogitComparison::default();
        comparison.add(&[1.0, 2.0, 3.0, -4.0], &[1.5, 2.0, 2.5, -4.0]).unwrap();
        comparison.add(&[0.0, 1.0, 0.5, 0.25], &[2.0, 1.0, 0.5, 0.25]).unwrap();
        near(comparison.mse(), 0.5625);
        near(comparison.psnr(), 14.539_974_558_725_246);
        near(comparison.kl_mean(), 0.216400219226773);
        near(comparison.kl_max(), 0.372551167202599);
        near(comparison.top1_agreement(), 0.5);
        near(cosine(&[1.0, 2.0, 3.0], &[3.0, -1.0, 2.0]).unwrap(), 0.5);
    }

    #[test]
    fn extreme_logits_stay_numbers() {
        near(kl_divergence(&[1e30, 0.0], &[1e30, -1e30]).unwrap(), 0.0);
        near(kl_divergence(&[1000.0, 1000.0], &[-1000.0, -1000.0]).unwrap(), 0.0);
        let masked = [0.5, f32::NEG_INFINITY];
        near(kl_divergence(&masked, &[0.5, 0.5]).unwrap(), 2f64.ln());
        assert_eq!(kl_divergence(&[0.5, 0.5], &masked).unwrap(), f64::INFINITY);
        let mut equal = LogitComparison::default();
        equal.add(&masked, &masked).unwrap();
        assert_eq!((equal.psnr(), equal.kl_max()), (f64::INFINITY, 0.0));
        assert!(kl_divergence(&[0.0], &[f32::NAN]).is_err());
        assert!(kl_divergence(&[0.0], &[0.0, 1.0]).is_err());
        assert!(kl_divergence(&[], &[]).is_err());
    }

    #[test]
    fn perplexity_of_a_uniform_guess_is_the_number_of_choices() {
        let mut perplexity = Perplexity::default();
        for next in 0..8 {
            perplexity.add(&[3.5; 8], next).unwrap();
        }
        near(perplexity.perplexity(), 8.0);
        near(perplexity.mean_nll(), 8f64.ln());
        assert!(perplexity.add(&[0.0; 8], 8).is_err());
        assert_eq!(perplexity.tokens(), 8);
    }

    /// Expected numbers: `numpy.percentile([1, 2, 3, 4, 10], [50, 90, 99])`.
    #[test]
    fn percentiles_are_numpys() {
        let times = [4, 1, 10, 2, 3].map(Duration::from_millis);
        let latencies = Latencies::of(&times).unwrap();
        assert_eq!(latencies.median, Duration::from_millis(3));
        assert_eq!(latencies.p90.as_micros(), 7600);
        assert_eq!(latencies.p99.as_micros(), 9760);
        assert_eq!(Latencies::of(&[]), None);
    }

    #[test]
    fn a_report_fails_when_one_threshold_does() {
        let mut report = Report::new("model.mlpackage");
        report.push(Metric::new("logits_psnr", f64::INFINITY, "dB").judged(Threshold::Min(40.0)));
        report.push(Metric::new("tokens", 12.0, ""));
        assert_eq!((report.passed(), report.exit_status()), (true, 0));
        report.push(Metric::new("kl_mean", f64::NAN, "nats").judged(Threshold::Max(0.1)));
        assert_eq!((report.passed(), report.exit_status()), (false, 1));
        let failed: Vec<&str> = report.failures().map(|metric| metric.name.as_str()).collect();
        assert_eq!(failed, ["kl_mean"]);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"subject":"model.mlpackage","passed":false,"metrics":[{"name":"logits_psnr","value":"inf","unit":"dB","min":40.0,"passed":true},{"name":"tokens","value":12.0,"unit":"","passed":true},{"name":"kl_mean","value":"NaN","unit":"nats","max":0.1,"passed":false}]}"#
        );
    }
}
