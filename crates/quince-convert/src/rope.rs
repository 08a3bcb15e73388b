//! Rotary positions: the frequencies, from the configuration.
//!
//! Formulas and defaults are those of transformers' `modeling_rope_utils.py`, computed in float32 as there.

use quince_checkpoint::Config;
use quince_mil::{Error, Result, bail};

/// How fast each pair of elements of a head rotates.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    /// Radians per position, one for each pair; elements i and i + pairs make a pair.
    pub inverse_frequencies: Vec<f32>,
    /// What sines and cosines are multiplied by.
    pub attention_scaling: f32,
}

/// The largest number of elements that are rotated in a head, so that a wrong configuration cannot ask for memory.
const MAX_ROTARY: usize = 1 << 16;

impl Rope {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before), for heads of which the
    /// first `rotary` elements are rotated.
    ///
    /// # Errors
    /// When `rotary` is odd, zero or huge, a needed key is absent or makes no sense, or the kind of scaling is not known;
    /// the error names the key.
    pub fn from_config(config: &Config, rotary: usize) -> Result<Rope> {
        if rotary == 0 || !rotary.is_multiple_of(2) || rotary > MAX_ROTARY {
            bail!("{}: found heads of {rotary} elements, expected an even number", config.path().display());
        }
        let keys = Keys::of(config);
        let fraction = keys.number("partial_rotary_factor")?.unwrap_or(1.0);
        if fraction != 1.0 {
            return Err(keys.wrong("partial_rotary_factor", format!("{fraction}"), "1 for this architecture"));
        }
        let theta = keys.number("rope_theta")?.unwrap_or(10_000.0);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(keys.wrong("rope_theta", format!("{theta}"), "a number above zero"));
        }
        // The exponent is rounded to float32 before the power is taken, as in transformers.
        let exponent = |i: usize| f64::from((2 * i) as f32 / rotary as f32);
        let plain: Vec<f32> = (0..rotary / 2).map(|i| 1.0 / f64::from(theta as f32).powf(exponent(i)) as f32).collect();
        let inverse_frequencies = keys.scaling()?.apply(plain);
        Ok(Rope { inverse_frequencies, attention_scaling: 1.0 })
    }
}

/// How frequencies are changed so that a model reads longer texts than it was first trained on.
enum Scaling {
    Default,
    /// Positions are divided (Chen 2023, arXiv:2306.15595).
    Linear {
        factor: f32,
    },
    /// Low frequencies are divided, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: f32,
    },
}

impl Scaling {
    fn apply(&self, mut frequencies: Vec<f32>) -> Vec<f32> {
        match *self {
            Scaling::Default => {}
            Scaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let longest = original_context / low_freq_factor;
                let shortest = original_context / high_freq_factor;
                for f in &mut frequencies {
                    let wavelength = 2.0 * std::f32::consts::PI / *f;
                    if wavelength > longest {
                        *f /= factor;
                    } else if wavelength >= shortest {
                        let blend =
                            (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        *f = (1.0 - blend) * *f / factor + blend * *f;
                    }
                }
            }
        }
        frequencies
    }
}

/// The keys about rotary positions, wherever the configuration has them.
struct Keys<'a> {
    config: &'a Config,
    object: &'static str,
}

impl<'a> Keys<'a> {
    fn of(config: &'a Config) -> Keys<'a> {
        let object = if config.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        Keys { config, object }
    }

    /// A key in the object, or else beside it.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.config.optional(&format!("{}.{key}", self.object))? {
            Some(value) => Ok(Some(value)),
            None => self.config.optional(key),
        }
    }

    fn positive(&self, key: &str) -> Result<f32> {
        match self.number(key)? {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value as f32),
            Some(value) => Err(self.wrong(key, format!("{value}"), "a number above zero")),
            None => Err(self.wrong(key, "no such key".to_owned(), "a number above zero")),
        }
    }

    fn scaling(&self) -> Result<Scaling> {
        let kind = |key: &str| self.config.optional::<String>(&format!("{}.{key}", self.object));
        let kind = match kind("rope_type")? {
            Some(kind) => Some(kind),
            None => kind("type")?,
        };
        match kind.as_deref() {
            None | Some("default") => Ok(Scaling::Default),
            Some("linear") => Ok(Scaling::Linear { factor: self.positive("factor")? }),
            Some("llama3") => {
                let (low, high) = (self.positive("low_freq_factor")?, self.positive("high_freq_factor")?);
                if high <= low {
                    return Err(self.wrong("high_freq_factor", format!("{high}"), "more than low_freq_factor"));
                }
                Ok(Scaling::Llama3 {
                    factor: self.positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: self.positive("original_max_position_embeddings")?,
                })
            }
            Some(other) => Err(self.wrong("rope_type", format!("`{other}`"), "default, linear or llama3")),
        }
    }

    fn wrong(&self, key: &str, found: String, expected: &str) -> Error {
        let error = Error::new(format!("found {found}, expected {expected}"));
        error.at(format!("key `{}.{key}`", self.object)).at(self.config.path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(text: &str, rotary: usize) -> Result<Rope> {
        Rope::from_config(&Config::from_text("c", text).unwrap(), rotary)
    }

    fn near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= e.abs() * 1.2e-7, "found {f}, expected {e}");
        }
    }

    /// Llama 3.1 8B's own parameters.
    const LLAMA31: &str = r#"{"rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#;

    #[test]
    fn llama3_scaling_is_that_of_transformers() {
        // Frequencies 0, 1, 28, 30, 34, 36 and 63 of 64, by transformers' formula in numpy's float32.
        let expected = [1.0, 0.814_617_2, 3.211_446e-3, 1.371_893_7e-3, 1.785_078e-4, 7.784_655_5e-5, 3.068_926e-7];
        let found = rope(LLAMA31, 128).unwrap().inverse_frequencies;
        let picked: Vec<f32> = [0, 1, 28, 30, 34, 36, 63].iter().map(|&i| found[i]).collect();
        near(&picked, &expected);
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let new = r#"{"rope_parameters": {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#;
        assert_eq!(rope(LLAMA31, 128).unwrap(), rope(new, 128).unwrap());
        let linear = rope(r#"{"rope_scaling": {"type": "linear", "factor": 4.0}}"#, 4).unwrap();
        near(&linear.inverse_frequencies, &[0.25, 0.0025]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let error = rope(r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#, 4).unwrap_err().to_string();
        assert_eq!(error, "c: key `rope_scaling.rope_type`: found `yarn`, expected default, linear or llama3");
        let error = rope(r#"{"rope_parameters": {"rope_type": "linear"}}"#, 4).unwrap_err().to_string();
        assert_eq!(error, "c: key `rope_parameters.factor`: found no such key, expected a number above zero");
        let error = rope(r#"{"partial_rotary_factor": 0.5}"#, 4).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor`: found 0.5, expected 1"), "{error}");
        assert!(rope("{}", 3).is_err() && rope("{}", 0).is_err());
        assert!(rope(r#"{"rope_theta": 0}"#, 4).is_err());
    }
}
