//! How weights are compressed: the options of `convert` and `compress`, and what they mean.

use super::recipe;
pub use super::scheme::Devices;
use super::scheme::{DEVICE_GROUP_SIZES, SchemeArgs};
use crate::failure::{Failure, Result};
use crate::options::calibration::CalibrationArgs;
use quince_compress::{Nbits, OptimizationConfig, Palette, Rule, Scheme, Selector};
use quince_sweep::Budget;
use std::path::PathBuf;

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct CompressionArgs {
    #[command(flatten)]
    scheme: SchemeArgs,
    /// Bits of palettes by part of the model (embed, attention, mlp, lm_head, norm, other), by layers or by a pattern of
    /// weight names, `none` for no compression: attention=6,layers.0-1=8,layers.5.mlp=3,*.q_proj.*=6. The rest is as --wbits
    /// says
    #[arg(long, value_name = "PART=N,...", conflicts_with = "quantize")]
    mixed_precision: Option<String>,
    /// Weights to leave as they are: parts of the model, layers or patterns, as in --mixed-precision
    #[arg(long, value_name = "PART,...", value_delimiter = ',', conflicts_with_all = ["target_size", "bits_per_weight"])]
    skip: Vec<Selector>,
    /// Which weight gets what, from a YAML file; bundles with compressed weights have theirs in recipe.yaml
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "wbits", "quantize", "mixed_precision", "palett_granularity", "palett_group_size", "palett_cluster_dim",
        "palett_per_channel_scale", "palett_lut_dtype", "skip", "sparsity", "sparsity_n_m", "sparsity_threshold",
        "target_size", "bits_per_weight",
    ])]
    recipe: Option<PathBuf>,
    /// Choose the bits of each weight so that the package, all its files together, is at most this large and loses least:
    /// 900MB, 1.5GiB, 800kB. What is lost is measured by running the model
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["wbits", "quantize", "mixed_precision"])]
    target_size: Option<u64>,
    /// The same for the mean of bits that a weight takes, tables and scales included: 3.5
    #[arg(long, value_name = "BITS", conflicts_with_all = ["wbits", "quantize", "mixed_precision", "target_size"])]
    bits_per_weight: Option<f64>,
}

/// How weights are to be compressed.
#[derive(Clone, Debug)]
pub enum Asked {
    /// By these rules.
    Rules(OptimizationConfig),
    /// By what loses least within a budget.
    Search(Ways),
}

impl Asked {
    /// The rules as far as they are known: none before a search.
    pub fn config(&self) -> OptimizationConfig {
        match self {
            Asked::Rules(config) => config.clone(),
            Asked::Search(_) => {
                OptimizationConfig { rules: Vec::new(), weight_threshold: OptimizationConfig::WEIGHT_THRESHOLD }
            }
        }
    }
}

/// The ways to compress a weight that are tried.
#[derive(Clone, Debug)]
pub struct Ways {
    /// What must hold.
    pub budget: Budget,
    /// All of them: families of palettes that differ in their bits.
    pub schemes: Vec<Scheme>,
    /// The numbers of those that are measured, from few bits to many.
    pub rungs: Vec<usize>,
}

impl CompressionArgs {
    /// How weights are to be compressed; `None` if they are not.
    ///
    /// # Errors
    /// When options contradict each other, the devices cannot do what is asked for, or a recipe cannot be read.
    pub fn asked(&self, devices: Devices) -> Result<Option<Asked>> {
        let budget = match (self.target_size, self.bits_per_weight) {
            (Some(bytes), _) => Some(Budget::Package(bytes)),
            (None, Some(bits)) if bits > 0.0 && bits.is_finite() => Some(Budget::BitsPerWeight(bits)),
            (None, Some(bits)) => {
                return Err(Failure::usage(format!("--bits-per-weight: found {bits}, expected a number above 0")));
            }
            (None, None) => None,
        };
        match (budget, &self.recipe) {
            (Some(budget), _) => Ok(Some(Asked::Search(self.ways(budget, devices)?))),
            (None, Some(file)) => Ok(Some(Asked::Rules(recipe::read(file, devices)?))),
            (None, None) => Ok(self.rules(devices)?.map(Asked::Rules)),
        }
    }

    /// Whether anything is asked for.
    pub fn is_asked(&self, devices: Devices) -> Result<bool> {
        Ok(self.recipe.is_some() || self.asked(devices)?.is_some())
    }

    fn rules(&self, devices: Devices) -> Result<Option<OptimizationConfig>> {
        let mut config = self.compressing(devices)?;
        let skipped = self.skip.iter().map(|selector| Rule { selector: selector.clone(), scheme: None });
        match &mut config {
            Some(config) => config.rules.extend(skipped),
            None if self.skip.is_empty() => {}
            None => return Err(Failure::usage_hint("found --skip without a way to compress", "add --wbits 4")),
        }
        Ok(config)
    }

    fn compressing(&self, devices: Devices) -> Result<Option<OptimizationConfig>> {
        let base = self.scheme.scheme(devices)?;
        let Some(mixed) = &self.mixed_precision else {
            if !self.scheme.has_bits() && self.scheme.has_palette_options() {
                return Err(Failure::usage_hint("found options of a palette without --wbits", "add --wbits 4"));
            }
            return Ok(base.map(OptimizationConfig::all));
        };
        // Rules give the bits; what else a palette is, is the same for all of them.
        let palette = match base {
            Some(base) if self.scheme.has_bits() => base,
            _ => self.scheme.palettized(8, devices)?,
        };
        let mut config = OptimizationConfig::all(palette);
        config.rules = base.into_iter().map(|s| Rule { selector: Selector::Default, scheme: Some(s) }).collect();
        config.add_mixed_precision(mixed, palette).map_err(|e| Failure::Usage(e.at("--mixed-precision")))?;
        Ok(Some(config))
    }

    /// Palettes of all widths: of the groups that are asked for, else of all that GPU and Neural Engine take, because
    /// large tables are dear for small weights.
    fn ways(&self, budget: Budget, devices: Devices) -> Result<Ways> {
        let own = self.scheme.palettized(8, devices)?;
        let families: Vec<Scheme> = match own {
            Scheme::Palette(own) if !self.scheme.has_groups() => {
                let sizes = [Some(16), None].into_iter().chain(DEVICE_GROUP_SIZES.iter().map(|&size| Some(size)));
                let mut sizes: Vec<Option<usize>> = sizes.collect();
                sizes.dedup_by_key(|size| *size);
                sizes.into_iter().map(|group_size| Palette { group_size, ..own }.into()).collect()
            }
            own => vec![own],
        };
        let mut ways = Ways { budget, schemes: Vec::new(), rungs: Vec::new() };
        for family in families {
            let schemes = Nbits::ALL.iter().filter_map(|&nbits| family.with_nbits(nbits));
            ways.schemes.extend(schemes.filter(|scheme| !ways.schemes.contains(scheme)).collect::<Vec<_>>());
            // The first family is measured; the others follow from their squared errors.
            if ways.rungs.is_empty() {
                ways.rungs = (0..ways.schemes.len()).collect();
            }
        }
        Ok(ways)
    }
}

/// A number of bytes: `900MB`, `1.5GiB`, `800000`.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, f64)] = &[
        ("kib", 1024.0),
        ("mib", 1024.0 * 1024.0),
        ("gib", 1024.0 * 1024.0 * 1024.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("b", 1.0),
        ("", 1.0),
    ];
    let lower = text.trim().to_ascii_lowercase();
    let found = UNITS.iter().find_map(|(unit, factor)| {
        let number: f64 = lower.strip_suffix(unit)?.trim().parse().ok()?;
        (number > 0.0 && number.is_finite()).then_some(number * factor)
    });
    match found {
        Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(bytes as u64),
        _ => Err(format!("found `{text}`, expected a size such as 900MB, 1.5GiB or 800000")),
    }
}

/// What people should know before they ship weights compressed so.
pub fn warnings(config: &OptimizationConfig, calibration: &CalibrationArgs) -> Vec<String> {
    let bits = config.rules.iter().filter_map(|rule| rule.scheme).map(Scheme::bits);
    match bits.min_by(f64::total_cmp) {
        Some(bits) if bits <= 2.0 && !calibration.asked() => vec![format!(
            "{bits}-bit weights chosen without calibration data make most models unusable: use --calibrate, and validate before you ship"
        )],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CompressionArgs,
    }

    const ANYWHERE: Devices = Devices { accelerators: true, only_neural_engine: false };

    fn rules(line: &str) -> Result<Vec<String>, String> {
        let line = Line::try_parse_from(std::iter::once("x").chain(line.split(' ').filter(|word| !word.is_empty())));
        let args = line.map_err(|e| e.to_string())?.args;
        let config = args.rules(ANYWHERE).map_err(|e| format!("{e:?}"))?;
        let show = |rule: Rule| format!("{}: {}", rule.selector, rule.scheme.map_or("-".into(), |s| s.to_string()));
        Ok(config.map_or(Vec::new(), |config| config.rules.into_iter().map(show).collect()))
    }

    #[test]
    fn options_become_rules() {
        for (line, expected) in [
            ("", &[][..]),
            ("--wbits 4", &["all weights: 4-bit palette, k-means, per tensor"]),
            ("--wbits 4 --palett-group-size 16", &["all weights: 4-bit palette, k-means, groups of 16"]),
            (
                "--wbits 6 --palett-granularity per_grouped_channel --palett-mode uniform",
                &["all weights: 6-bit palette, uniform, groups of 32"],
            ),
            ("--quantize int8", &["all weights: int8 symmetric, per channel"]),
            (
                "--quantize uint4 --quantize-mode linear --quantize-block-size 16",
                &["all weights: uint4 asymmetric, blocks of 16"],
            ),
            (
                "--wbits 6 --palett-group-size 8 --palett-cluster-dim 4 --palett-lut-dtype int8",
                &["all weights: 6-bit palette, k-means, int8 tables, groups of 8, vectors of 4"],
            ),
            (
                "--wbits 4 --palett-group-size 16 --palett-per-channel-scale",
                &["all weights: 4-bit palette, k-means, a table for each channel"],
            ),
            (
                "--quantize int4 --quantize-mode symmetric_with_clipping",
                &["all weights: int4 symmetric with clipping, per channel"],
            ),
            (
                "--quantize int8 --skip lm_head,layers.0-1.mlp",
                &["all weights: int8 symmetric, per channel", "lm_head: -", "layers.0-1.mlp: -"],
            ),
            ("--sparsity 0.5", &["all weights: sparse, 50 % zeros"]),
            ("--sparsity-n-m 2:4 --quantize int8", &["all weights: int8 symmetric, per channel, 2 of 4 zeros"]),
            (
                "--sparsity-threshold 0.01 --wbits 4",
                &["all weights: 4-bit palette, k-means, per tensor, zeros below 0.01"],
            ),
            (
                "--mixed-precision attention=6,lm_head=none",
                &["attention: 6-bit palette, k-means, per tensor", "lm_head: -"],
            ),
            (
                "--wbits 4 --palett-group-size 8 --mixed-precision embed=8",
                &["all weights: 4-bit palette, k-means, groups of 8", "embed: 8-bit palette, k-means, groups of 8"],
            ),
        ] {
            assert_eq!(rules(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "--wbits 5",
            "--skip embed",
            "--wbits 4 --skip atention",
            "--wbits 4 --quantize int8",
            "--palett-group-size 16",
            "--wbits 4 --palett-group-size 12",
            "--wbits 4 --palett-group-size 16 --palett-granularity per_tensor",
            "--quantize-block-size 32",
            "--quantize int4 --quantize-granularity per_channel --quantize-block-size 32",
            "--wbits 4 --palett-cluster-dim 3",
            "--wbits 4 --palett-cluster-dim 2 --palett-per-channel-scale",
            "--wbits 4 --palett-cluster-dim 2 --sparsity 0.5",
            "--palett-lut-dtype int8",
            "--quantize fp8",
            "--sparsity 1",
            "--sparsity 0.5 --sparsity-n-m 2:4",
            "--sparsity-n-m 4:4",
            "--sparsity-n-m two",
            "--mixed-precision attention",
            "--mixed-precision attention=4 --quantize int8",
        ] {
            assert!(rules(line).is_err(), "{line}");
        }
    }

    #[test]
    fn sizes_are_numbers_with_units() {
        for (text, expected) in [
            ("900MB", Ok(900_000_000)),
            ("1.5 GiB", Ok(3 << 29)),
            ("800000", Ok(800_000)),
            ("12kb", Ok(12_000)),
            ("MB", Err(())),
            ("-1MB", Err(())),
            ("1e300GB", Err(())),
            ("nanMB", Err(())),
        ] {
            assert_eq!(size(text).map_err(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn a_budget_tries_palettes_of_all_widths() {
        let ways = |line: &str| {
            let line = Line::try_parse_from(["x"].into_iter().chain(line.split(' '))).map_err(|e| e.to_string())?;
            match line.args.asked(ANYWHERE) {
                Ok(Some(Asked::Search(ways))) => Ok(ways),
                other => Err(format!("{other:?}")),
            }
        };
        let found = ways("--target-size 900MB --palett-group-size 32").unwrap();
        assert_eq!((found.budget, found.schemes.len(), found.rungs.len()), (Budget::Package(900_000_000), 6, 6));
        let found = ways("--bits-per-weight 3.5").unwrap();
        assert_eq!((found.budget, found.schemes.len(), found.rungs.len()), (Budget::BitsPerWeight(3.5), 30, 6));
        assert!(found.schemes[0].to_string().ends_with("groups of 16"));
        for line in ["--bits-per-weight 0", "--target-size 900MB --wbits 4", "--target-size 1MB --bits-per-weight 3"] {
            assert!(ways(line).is_err(), "{line}");
        }
    }
}
