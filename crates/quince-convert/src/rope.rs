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
    /// Other frequencies for long texts.
    pub long: Option<Long>,
}

/// The frequencies of texts that are longer than those a model was first trained on.
#[derive(Clone, PartialEq, Debug)]
pub struct Long {
    /// As [`Rope::inverse_frequencies`].
    pub inverse_frequencies: Vec<f32>,
    /// Texts of more tokens are long.
    pub from: usize,
}

/// Where the configuration says how layers rotate, and what they do where it is silent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RopeKeys<'a> {
    /// The key of `rope_parameters` with the parameters of one type of layer, where types differ: `sliding_attention`.
    pub layer_type: Option<&'a str>,
    /// The key with the base of the frequencies, for configurations before transformers 5.
    pub theta: &'a str,
    /// The base of the frequencies.
    pub usual_theta: f64,
    /// The part of a head that is rotated.
    pub usual_fraction: f64,
}

impl Default for RopeKeys<'_> {
    fn default() -> Self {
        RopeKeys { layer_type: None, theta: "rope_theta", usual_theta: 10_000.0, usual_fraction: 1.0 }
    }
}

/// The largest number of elements that are rotated in a head, so that a wrong configuration cannot ask for memory.
const MAX_ROTARY: usize = 1 << 16;

impl Rope {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before), for heads of `dim` elements,
    /// of which `partial_rotary_factor` are rotated.
    ///
    /// # Errors
    /// When an odd or huge number of elements, or none, is to be rotated, a needed key is absent or makes no sense, or
    /// the kind of scaling is not known; the error names the key.
    pub fn from_config(config: &Config, dim: usize) -> Result<Rope> {
        Rope::with_keys(config, dim, &RopeKeys::default())
    }

    /// The same by other keys.
    ///
    /// # Errors
    /// As [`Rope::from_config`].
    pub fn with_keys(config: &Config, dim: usize, names: &RopeKeys) -> Result<Rope> {
        let keys = Keys::of(config, names);
        let fraction = match keys.number("partial_rotary_factor")? {
            Some(fraction) => fraction,
            None => config.optional("rotary_pct")?.unwrap_or(names.usual_fraction),
        };
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(keys.wrong("partial_rotary_factor", format!("{fraction}"), "a number above 0 and at most 1"));
        }
        let rotary = (dim as f64 * fraction) as usize;
        if rotary == 0 || !rotary.is_multiple_of(2) || rotary > MAX_ROTARY {
            let of = if rotary == dim { String::new() } else { format!(" of which {rotary} are rotated") };
            bail!("{}: found heads of {dim} elements{of}, expected an even number", config.path().display());
        }
        let theta = match keys.own_number("rope_theta")? {
            Some(theta) => theta,
            None => match config.optional(names.theta)? {
                Some(theta) => theta,
                None => config.optional("rotary_emb_base")?.unwrap_or(names.usual_theta),
            },
        };
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(keys.wrong("rope_theta", format!("{theta}"), "a number above zero"));
        }
        keys.scaling(theta, rotary)
    }
}

/// 1 / theta^(2i / rotary) for each pair i. The exponent is rounded to float32 before the power is taken, as in
/// transformers.
fn plain(theta: f64, rotary: usize) -> Vec<f32> {
    let exponent = |i: usize| f64::from((2 * i) as f32 / rotary as f32);
    (0..rotary / 2).map(|i| 1.0 / f64::from(theta as f32).powf(exponent(i)) as f32).collect()
}

/// Low frequencies are divided, high ones kept, those between blended (Llama 3.1).
fn blended(frequencies: &mut [f32], factor: f32, [low, high]: [f32; 2], original_context: f32) {
    let (longest, shortest) = (original_context / low, original_context / high);
    for f in frequencies {
        let wavelength = 2.0 * std::f32::consts::PI / *f;
        if wavelength > longest {
            *f /= factor;
        } else if wavelength >= shortest {
            let blend = (original_context / wavelength - low) / (high - low);
            *f = (1.0 - blend) * *f / factor + blend * *f;
        }
    }
}

/// The keys about rotary positions, wherever the configuration has them.
struct Keys<'a> {
    config: &'a Config,
    object: String,
}

impl<'a> Keys<'a> {
    fn of(config: &'a Config, names: &RopeKeys) -> Keys<'a> {
        let nested = names.layer_type.map(|kind| format!("rope_parameters.{kind}"));
        let object = match nested.filter(|key| config.get(key).is_some()) {
            Some(key) => key,
            None if config.get("rope_parameters").is_some() => "rope_parameters".to_owned(),
            // What is said beside it is of layers that see all tokens.
            None if names.layer_type == Some("sliding_attention") => "sliding".to_owned(),
            None => "rope_scaling".to_owned(),
        };
        Keys { config, object }
    }

    /// A key in the object.
    fn own_number(&self, key: &str) -> Result<Option<f64>> {
        self.config.optional(&format!("{}.{key}", self.object))
    }

    /// A key in the object, or else beside it.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.own_number(key)? {
            Some(value) => Ok(Some(value)),
            None => self.config.optional(key),
        }
    }

    fn positive(&self, key: &str) -> Result<f32> {
        match self.positive_or_absent(key)? {
            Some(value) => Ok(value as f32),
            None => Err(self.wrong(key, "no such key".to_owned(), "a number above zero")),
        }
    }

    fn positive_or_absent(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(value) if value > 0.0 && value.is_finite() => Ok(Some(value)),
            Some(value) => Err(self.wrong(key, format!("{value}"), "a number above zero")),
            None => Ok(None),
        }
    }

    /// Frequencies changed so that a model reads longer texts than it was first trained on.
    fn scaling(&self, theta: f64, rotary: usize) -> Result<Rope> {
        let kind = |key: &str| self.config.optional::<String>(&format!("{}.{key}", self.object));
        let kind = match kind("rope_type")? {
            Some(kind) => Some(kind),
            None => kind("type")?,
        };
        let mut inverse_frequencies = plain(theta, rotary);
        match kind.as_deref() {
            // Dynamic scaling starts beyond the context that the model says it has, and no program goes beyond it
            // unless it is asked to, which is warned of.
            None | Some("default" | "dynamic") => {}
            // Positions are divided (Chen 2023, arXiv:2306.15595).
            Some("linear") => {
                let factor = self.positive("factor")?;
                inverse_frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            Some("llama3") => {
                let (low, high) = (self.positive("low_freq_factor")?, self.positive("high_freq_factor")?);
                if high <= low {
                    return Err(self.wrong("high_freq_factor", format!("{high}"), "more than low_freq_factor"));
                }
                let original_context = self.positive("original_max_position_embeddings")?;
                blended(&mut inverse_frequencies, self.positive("factor")?, [low, high], original_context);
            }
            Some("yarn") => return self.yarn(theta, inverse_frequencies),
            Some("longrope" | "su") => return self.longrope(inverse_frequencies),
            Some(other) => {
                let expected = "default, linear, dynamic, llama3, yarn or longrope";
                return Err(self.wrong("rope_type", format!("`{other}`"), expected));
            }
        }
        Ok(Rope { inverse_frequencies, attention_scaling: 1.0, long: None })
    }

    /// Fast frequencies are kept, slow ones divided, with a ramp between (Peng 2023, arXiv:2309.00071).
    fn yarn(&self, theta: f64, mut frequencies: Vec<f32>) -> Result<Rope> {
        let (factor, original) = self.extension()?;
        let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let attention_scaling = match self.positive_or_absent("attention_factor")? {
            Some(factor) => factor,
            None => match (self.positive_or_absent("mscale")?, self.positive_or_absent("mscale_all_dim")?) {
                (Some(mscale), Some(all)) => scale(mscale) / scale(all),
                _ => scale(1.0),
            },
        };
        // The pair that turns so many times within the original context.
        let rotary = 2.0 * frequencies.len() as f64;
        let pair = |turns: f64| rotary * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
        let mut low = pair(self.positive_or_absent("beta_fast")?.unwrap_or(32.0));
        let mut high = pair(self.positive_or_absent("beta_slow")?.unwrap_or(1.0));
        if self.config.optional::<bool>(&format!("{}.truncate", self.object))?.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(rotary - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, f) in frequencies.iter_mut().enumerate() {
            let slow = (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
            *f = *f / factor as f32 * slow + *f * (1.0 - slow);
        }
        Ok(Rope { inverse_frequencies: frequencies, attention_scaling: attention_scaling as f32, long: None })
    }

    /// A factor for each frequency, and others for long texts (Ding 2024, arXiv:2402.13753).
    fn longrope(&self, frequencies: Vec<f32>) -> Result<Rope> {
        let divided = |key: &str| -> Result<Vec<f32>> {
            let key = format!("{}.{key}", self.object);
            let factors: Vec<f32> = self.config.field(&key)?;
            if factors.len() != frequencies.len() || !factors.iter().all(|f| *f > 0.0 && f.is_finite()) {
                let found = format!("found {} factors, expected {} above zero", factors.len(), frequencies.len());
                return Err(Error::new(found).at(format!("key `{key}`")).at(self.config.path().display()));
            }
            Ok(frequencies.iter().zip(factors).map(|(f, factor)| f / factor).collect())
        };
        let (factor, original) = self.extension()?;
        let attention_scaling = match self.positive_or_absent("attention_factor")? {
            Some(factor) => factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let long = Long { inverse_frequencies: divided("long_factor")?, from: original as usize };
        let inverse_frequencies = divided("short_factor")?;
        Ok(Rope { inverse_frequencies, attention_scaling: attention_scaling as f32, long: Some(long) })
    }

    /// By how much texts may be longer than those of the first training, and how long those were.
    fn extension(&self) -> Result<(f64, f64)> {
        let longest = self.positive_or_absent("max_position_embeddings")?;
        let original = match self.positive_or_absent("original_max_position_embeddings")?.or(longest) {
            Some(original) if original > 1.0 => original,
            found => {
                let found = found.map_or("no such key".to_owned(), |n| n.to_string());
                return Err(self.wrong("original_max_position_embeddings", found, "a number above one"));
            }
        };
        let factor = match self.config.optional(&format!("{}.factor", self.object))? {
            Some(factor) => factor,
            None => longest.unwrap_or(original) / original,
        };
        match factor > 0.0 && f64::is_finite(factor) {
            true => Ok((factor, original)),
            false => Err(self.wrong("factor", factor.to_string(), "a number above zero")),
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

    /// Expected values: transformers 4.53's `ROPE_INIT_FUNCTIONS`; pairs 0, 10, 23, 30, 35, 40 and 63 of YaRN.
    #[test]
    fn yarn_and_longrope_are_those_of_transformers() {
        let yarn = r#"{"rope_theta": 1000000.0, "max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn",
            "factor": 4.0, "original_max_position_embeddings": 32768}}"#;
        let found = rope(yarn, 128).unwrap();
        let expected = [1.0, 0.115_478_2, 6.978_306e-3, 1.064_361e-3, 2.462_584e-4, 4.445_698_5e-5, 3.102_344_4e-7];
        for (i, expected) in [0, 10, 23, 30, 35, 40, 63].into_iter().zip(expected) {
            let found = found.inverse_frequencies[i];
            assert!((found - expected).abs() < expected * 1e-6, "{i}: found {found}, expected {expected}");
        }
        assert!((found.attention_scaling - 1.138_629_4).abs() < 1e-6);
        let longrope = r#"{"partial_rotary_factor": 0.5, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.0, 8.0, 30.0]}}"#;
        let found = rope(longrope, 16).unwrap();
        near(&found.inverse_frequencies, &[1.0, 0.090_909_09, 8.333_333e-3, 6.666_667e-4]);
        assert!((found.attention_scaling - 1.190_238_1).abs() < 1e-6);
        let long = found.long.unwrap();
        assert_eq!(long.from, 4096);
        near(&long.inverse_frequencies, &[1.0, 0.05, 1.25e-3, 3.333_333_4e-5]);
    }

    #[test]
    fn types_of_layers_have_keys_of_their_own() {
        let sliding =
            RopeKeys { layer_type: Some("sliding_attention"), theta: "rope_local_base_freq", ..RopeKeys::default() };
        let full = RopeKeys { layer_type: Some("full_attention"), ..RopeKeys::default() };
        let new = r#"{"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}"#;
        let old =
            r#"{"rope_theta": 1e6, "rope_local_base_freq": 100.0, "rope_scaling": {"type": "linear", "factor": 8.0}}"#;
        for text in [new, old] {
            let config = Config::from_text("c", text).unwrap();
            near(&Rope::with_keys(&config, 4, &full).unwrap().inverse_frequencies, &[0.125, 1.25e-4]);
            near(&Rope::with_keys(&config, 4, &sliding).unwrap().inverse_frequencies, &[1.0, 0.1]);
        }
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
        let error = rope(r#"{"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}"#, 4).unwrap_err().to_string();
        assert_eq!(
            error,
            "c: key `rope_scaling.rope_type`: found `spiral`, expected default, linear, dynamic, llama3, yarn or longrope"
        );
        let error = rope(r#"{"rope_parameters": {"rope_type": "linear"}}"#, 4).unwrap_err().to_string();
        assert_eq!(error, "c: key `rope_parameters.factor`: found no such key, expected a number above zero");
        let error = rope(r#"{"partial_rotary_factor": 1.5}"#, 4).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor`: found 1.5, expected a number above 0"), "{error}");
        let error = rope(r#"{"rotary_pct": 0.25}"#, 4).unwrap_err().to_string();
        assert_eq!(error, "c: found heads of 4 elements of which 1 are rotated, expected an even number");
        let short = r#"{"max_position_embeddings": 8, "rope_scaling": {"type": "longrope", "long_factor": [1, 2],
            "short_factor": [1]}}"#;
        let error = rope(short, 4).unwrap_err().to_string();
        assert_eq!(error, "c: key `rope_scaling.short_factor`: found 1 factors, expected 2 above zero");
        assert!(rope("{}", 3).is_err() && rope("{}", 0).is_err());
        assert!(rope(r#"{"rope_theta": 0}"#, 4).is_err());
    }
}
