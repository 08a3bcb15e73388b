//! What a sweep found, and which of its variants nothing is better than.

use crate::Quality;
use serde::{Deserialize, Serialize};

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name, which is that of its files: `w4-g16`.
    pub name: String,
    /// How its weights are stored.
    pub scheme: String,
    /// The bits that a weight of the scheme takes, tables not counted.
    pub bits: f64,
    /// What variants of one family share, such as the group size: they are drawn alike.
    pub family: String,
    /// Bytes of all files of the package.
    pub package_bytes: u64,
    /// Bytes of the weights alone.
    pub weight_bytes: u64,
    /// Against the uncompressed variant.
    pub quality: Quality,
    /// The median time of a call that decodes a token on this machine, in milliseconds.
    pub decode_ms: Option<f64>,
    /// What it took to compress, write and judge it.
    pub seconds: f64,
}

/// What is lost when only a part of the model is compressed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartLoss {
    /// The part: `layer 3, mlp`.
    pub part: String,
    /// How it is compressed.
    pub scheme: String,
    /// Mean KL divergence in nats per token.
    pub kl: f64,
}

/// A whole sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The model.
    pub model: String,
    /// What the variants were judged on.
    pub text: String,
    /// How weights were chosen: by their values alone, or by what they are multiplied with.
    pub calibration: String,
    /// The uncompressed variant first.
    pub variants: Vec<Outcome>,
    /// Names of the variants that no other is both smaller and better than.
    pub front: Vec<String>,
    /// What parts lose.
    pub parts: Vec<PartLoss>,
}

impl SweepReport {
    /// Finds the front.
    #[must_use]
    pub fn with_front(mut self) -> SweepReport {
        let better = |a: &Outcome, b: &Outcome| {
            let no_worse = a.package_bytes <= b.package_bytes && a.quality.kl <= b.quality.kl;
            no_worse && (a.package_bytes < b.package_bytes || a.quality.kl < b.quality.kl)
        };
        let best = |found: &&Outcome| !self.variants.iter().any(|other| better(other, found));
        let mut front: Vec<&Outcome> = self.variants.iter().filter(best).collect();
        front.sort_by_key(|outcome| outcome.package_bytes);
        self.front = front.into_iter().map(|outcome| outcome.name.clone()).collect();
        self
    }

    /// By how much the perplexity of a variant is above that of the first, in percent.
    pub fn rise(&self, outcome: &Outcome) -> f64 {
        let baseline = self.variants.first().map_or(f64::NAN, |first| first.quality.perplexity);
        (outcome.quality.perplexity / baseline - 1.0) * 100.0
    }

    /// Whether nothing is both smaller and better than a variant.
    pub fn is_on_front(&self, outcome: &Outcome) -> bool {
        self.front.contains(&outcome.name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn outcome(name: &str, bits: f64, package_bytes: u64, kl: f64) -> Outcome {
        let quality = Quality { kl, top1: 1.0 - kl, perplexity: 5.0 * kl.exp(), tokens: 100 };
        let family = name.split_once('-').map_or("", |(_, family)| family).to_owned();
        Outcome {
            name: name.to_owned(),
            scheme: format!("{bits}-bit <palette>"),
            bits,
            family,
            package_bytes,
            weight_bytes: package_bytes - 100,
            quality,
            decode_ms: Some(1.5),
            seconds: 0.5,
        }
    }

    pub(crate) fn report() -> SweepReport {
        let variants = vec![
            outcome("baseline", 16.0, 4_000_000, 0.0),
            outcome("w4-g16", 4.0, 1_200_000, 0.02),
            outcome("w4-g8", 4.0, 1_300_000, 0.03),
            outcome("w2-g16", 2.0, 700_000, 0.9),
        ];
        let part = |part: &str, kl| PartLoss { part: part.into(), scheme: "2-bit palette".into(), kl };
        let parts = vec![part("embed", 0.5), part("layer 0, mlp", 0.01)];
        let (model, text) = ("a & b".to_owned(), "a page of English".to_owned());
        SweepReport { model, text, calibration: "none".into(), variants, front: Vec::new(), parts }.with_front()
    }

    #[test]
    fn on_the_front_nothing_is_smaller_and_better() {
        assert_eq!(report().front, ["w2-g16", "w4-g16", "baseline"]);
    }
}
