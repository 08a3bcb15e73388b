//! How weights are compressed: the options of `convert` and `compress`, and the rules that they mean.

use crate::failure::{Failure, Result};
use clap::ValueEnum;
use quince_compress::{
    Granularity, Linear, LinearDType, LinearMode, Nbits, OptimizationConfig, Palette, PaletteMode, Rule, Scheme,
    Selector,
};

/// Output channels that share a lookup table if none are asked for; coremltools' default.
const GROUP_SIZE: usize = 32;
/// Input channels that share a scale if none are asked for; coremltools' default.
const BLOCK_SIZE: usize = 32;
/// Group sizes that the Neural Engine and the GPU take.
const DEVICE_GROUP_SIZES: &[usize] = &[8, 16, 32, 64];

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct CompressionArgs {
    /// Palettize weights to this many bits: 1, 2, 3, 4, 6 or 8
    #[arg(long, value_name = "N", conflicts_with = "quantize")]
    wbits: Option<usize>,
    /// How the lookup table of a palette is chosen; kmeans has the least squared error there is
    #[arg(long, value_name = "MODE", default_value = "kmeans")]
    palett_mode: PaletteModeArg,
    /// What shares a lookup table: the weight, or a group of its output channels. Grouped if a group size is given
    #[arg(long, value_name = "WHAT")]
    palett_granularity: Option<PaletteGranularityArg>,
    /// Output channels that share a lookup table
    #[arg(long, value_name = "G")]
    palett_group_size: Option<usize>,
    /// Quantize weights to this integer type
    #[arg(long, value_name = "TYPE")]
    quantize: Option<QuantizeArg>,
    /// Whether the range is symmetric about zero
    #[arg(long, value_name = "MODE", default_value = "linear_symmetric", requires = "quantize")]
    quantize_mode: QuantizeModeArg,
    /// What shares a scale. Per block if a block size is given, else per channel
    #[arg(long, value_name = "WHAT", requires = "quantize")]
    quantize_granularity: Option<QuantizeGranularityArg>,
    /// Input channels of an output channel that share a scale
    #[arg(long, value_name = "B", requires = "quantize")]
    quantize_block_size: Option<usize>,
    /// Bits of palettes by part of the model (embed, attention, mlp, lm_head, norm, other) or by a pattern of weight
    /// names, `none` for no compression: attention=6,mlp=4,*.layers.0.*=8. The rest is as --wbits says
    #[arg(long, value_name = "PART=N,...", conflicts_with = "quantize")]
    mixed_precision: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PaletteModeArg {
    Kmeans,
    Uniform,
    Unique,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum PaletteGranularityArg {
    PerTensor,
    PerGroupedChannel,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum QuantizeArg {
    Int8,
    Uint8,
    Int4,
    Uint4,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum QuantizeModeArg {
    LinearSymmetric,
    Linear,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum QuantizeGranularityArg {
    #[value(name = "per_tensor")]
    Tensor,
    #[value(name = "per_channel")]
    Channel,
    #[value(name = "per_block")]
    Block,
}

/// Where a package is to run, as far as that limits compression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Devices {
    /// On a GPU or Neural Engine, not only on the processor.
    pub accelerators: bool,
    /// On the Neural Engine and not on the GPU.
    pub only_neural_engine: bool,
}

impl CompressionArgs {
    /// The rules; `None` if nothing is to be compressed.
    ///
    /// # Errors
    /// When options contradict each other, or the devices cannot do what is asked for.
    pub fn config(&self, devices: Devices) -> Result<Option<OptimizationConfig>> {
        let base = match (self.wbits, self.quantize) {
            (Some(bits), _) => Some(self.palette(bits, devices)?),
            (None, Some(dtype)) => Some(self.linear(dtype, devices)?),
            (None, None) => None,
        };
        let Some(mixed) = &self.mixed_precision else {
            if base.is_none() && (self.palett_group_size.is_some() || self.palett_granularity.is_some()) {
                return Err(Failure::usage_hint("found options of a palette without --wbits", "add --wbits 4"));
            }
            return Ok(base.map(OptimizationConfig::all));
        };
        // Rules give the bits; what else a palette is, is the same for all of them.
        let palette = match base {
            Some(base) => base,
            None => self.palette(8, devices)?,
        };
        let mut config = OptimizationConfig::all(palette);
        config.rules = base.into_iter().map(|s| Rule { selector: Selector::Default, scheme: Some(s) }).collect();
        config.add_mixed_precision(mixed, palette).map_err(|e| Failure::Usage(e.at("--mixed-precision")))?;
        Ok(Some(config))
    }

    fn palette(&self, bits: usize, devices: Devices) -> Result<Scheme> {
        let nbits = Nbits::new(bits).map_err(|e| Failure::Usage(e.at("--wbits")))?;
        let mode = match self.palett_mode {
            PaletteModeArg::Kmeans => PaletteMode::KMeans,
            PaletteModeArg::Uniform => PaletteMode::Uniform,
            PaletteModeArg::Unique => PaletteMode::Unique,
        };
        let group_size = match (self.palett_granularity, self.palett_group_size) {
            (Some(PaletteGranularityArg::PerTensor), Some(_)) => {
                return Err(Failure::usage_hint(
                    "found --palett-group-size with --palett-granularity per_tensor, expected one of them",
                    "a group size is for per_grouped_channel",
                ));
            }
            (Some(PaletteGranularityArg::PerTensor) | None, None) => None,
            (Some(PaletteGranularityArg::PerGroupedChannel), None) => Some(GROUP_SIZE),
            (_, Some(size)) => Some(size),
        };
        if let Some(size) = group_size {
            check_group_size(size, devices)?;
        }
        Ok(Palette { nbits, mode, group_size }.into())
    }

    fn linear(&self, dtype: QuantizeArg, devices: Devices) -> Result<Scheme> {
        let dtype = match dtype {
            QuantizeArg::Int8 => LinearDType::Int8,
            QuantizeArg::Uint8 => LinearDType::UInt8,
            QuantizeArg::Int4 => LinearDType::Int4,
            QuantizeArg::Uint4 => LinearDType::UInt4,
        };
        let mode = match self.quantize_mode {
            QuantizeModeArg::LinearSymmetric => LinearMode::Symmetric,
            QuantizeModeArg::Linear => LinearMode::Asymmetric,
        };
        use QuantizeGranularityArg::{Block, Channel, Tensor};
        let granularity = match (self.quantize_granularity, self.quantize_block_size) {
            (Some(Tensor | Channel), Some(_)) => {
                return Err(Failure::usage("found --quantize-block-size with another granularity, expected per_block"));
            }
            (Some(Tensor), None) => Granularity::PerTensor,
            (Some(Channel) | None, None) => Granularity::PerChannel,
            (Some(Block), None) => Granularity::PerBlock(BLOCK_SIZE),
            (_, Some(0)) => return Err(Failure::usage("--quantize-block-size: found 0, expected at least 1")),
            (_, Some(size)) => Granularity::PerBlock(size),
        };
        if devices.only_neural_engine && matches!(granularity, Granularity::PerBlock(_)) {
            return Err(Failure::usage_hint(
                "found weights quantized per block for the Neural Engine, which does not run them",
                "quantize per_channel, or palettize with --wbits 4 --palett-group-size 16",
            ));
        }
        Ok(Linear { dtype, mode, granularity }.into())
    }
}

fn check_group_size(size: usize, devices: Devices) -> Result<()> {
    if size == 0 {
        return Err(Failure::usage("--palett-group-size: found 0, expected at least 1"));
    }
    if devices.accelerators && !DEVICE_GROUP_SIZES.contains(&size) {
        return Err(Failure::usage_hint(
            format!("--palett-group-size: found {size}, expected 8, 16, 32 or 64, which GPU and Neural Engine take"),
            "--compute-units cpuOnly takes any size",
        ));
    }
    Ok(())
}

/// What people should know before they ship weights compressed so.
pub fn warnings(config: &OptimizationConfig) -> Vec<String> {
    let bits = config.rules.iter().filter_map(|rule| rule.scheme).map(Scheme::bits);
    match bits.min_by(f64::total_cmp) {
        Some(bits) if bits <= 2.0 => vec![format!(
            "{bits}-bit weights chosen without calibration data make most models unusable: validate before you ship"
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
        let config = args.config(ANYWHERE).map_err(|e| format!("{e:?}"))?;
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
            "--wbits 4 --quantize int8",
            "--palett-group-size 16",
            "--wbits 4 --palett-group-size 12",
            "--wbits 4 --palett-group-size 16 --palett-granularity per_tensor",
            "--quantize-block-size 32",
            "--quantize int4 --quantize-granularity per_channel --quantize-block-size 32",
            "--mixed-precision attention",
            "--mixed-precision attention=4 --quantize int8",
        ] {
            assert!(rules(line).is_err(), "{line}");
        }
    }
}
