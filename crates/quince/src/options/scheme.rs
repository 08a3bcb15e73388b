//! What a weight becomes: the options that say it, on the command line and in recipes.

use crate::failure::{Failure, Result};
use clap::ValueEnum;
use quince_compress::{
    ClusterDim, Granularity, Linear, LinearDType, LinearMode, Nbits, Palette, PaletteMode, Pruning, Scheme, Sparse,
    SparseLinear, SparsePalette, TableType, VectorPalette,
};

/// Output channels that share a lookup table if none are asked for; coremltools' default.
const GROUP_SIZE: usize = 32;
/// Input channels that share a scale if none are asked for; coremltools' default.
const BLOCK_SIZE: usize = 32;
/// Group sizes that the Neural Engine and the GPU take.
pub const DEVICE_GROUP_SIZES: &[usize] = &[8, 16, 32, 64];

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct SchemeArgs {
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
    /// Output channels that share an index into a table of vectors: 2 or 4. Bits per weight are those of the index
    /// divided by it
    #[arg(long, value_name = "V")]
    palett_cluster_dim: Option<usize>,
    /// Give each output channel a scale of its own, folded into a lookup table of its own
    #[arg(long)]
    palett_per_channel_scale: bool,
    /// How the entries of lookup tables are stored: as the weight's floats, or as int8 with a scale for each table
    #[arg(long, value_name = "TYPE")]
    palett_lut_dtype: Option<TableArg>,
    /// Quantize weights to this integer type
    #[arg(long, value_name = "TYPE")]
    quantize: Option<QuantizeArg>,
    /// Where the range lies: symmetric about zero, from the least to the greatest element, or symmetric and cut off where
    /// the squared error is least
    #[arg(long, value_name = "MODE", default_value = "linear_symmetric", requires = "quantize")]
    quantize_mode: QuantizeModeArg,
    /// What shares a scale. Per block if a block size is given, else per channel
    #[arg(long, value_name = "WHAT", requires = "quantize")]
    quantize_granularity: Option<QuantizeGranularityArg>,
    /// Input channels of an output channel that share a scale
    #[arg(long, value_name = "B", requires = "quantize")]
    quantize_block_size: Option<usize>,
    /// Make this share of each weight zero, the least magnitudes, and store the rest: alone, palettized, or quantized
    #[arg(long, value_name = "SHARE")]
    sparsity: Option<f64>,
    /// Make N of each M neighbouring input channels zero
    #[arg(long, value_name = "N:M", conflicts_with = "sparsity")]
    sparsity_n_m: Option<String>,
    /// Make elements whose magnitude is below this zero
    #[arg(long, value_name = "X", conflicts_with_all = ["sparsity", "sparsity_n_m"])]
    sparsity_threshold: Option<f64>,
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
    #[value(name = "fp8e4m3fn", alias = "fp8")]
    Fp8E4M3,
    #[value(name = "fp8e5m2")]
    Fp8E5M2,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TableArg {
    #[value(alias = "float16", alias = "float32")]
    Float,
    Int8,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum QuantizeModeArg {
    LinearSymmetric,
    Linear,
    #[value(alias = "linear_symmetric_with_clipping")]
    SymmetricWithClipping,
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

impl SchemeArgs {
    /// What weights become; `None` if nothing is asked for.
    ///
    /// # Errors
    /// When options contradict each other, or the devices cannot do what is asked for.
    pub fn scheme(&self, devices: Devices) -> Result<Option<Scheme>> {
        match (self.wbits, self.quantize) {
            (Some(bits), _) => Ok(Some(self.palettized(bits, devices)?)),
            (None, Some(dtype)) => Ok(Some(self.quantized(dtype, devices)?)),
            (None, None) => Ok(self.pruning()?.map(|pruning| Sparse { pruning }.into())),
        }
    }

    /// Whether the bits of a palette are given.
    pub fn has_bits(&self) -> bool {
        self.wbits.is_some()
    }

    /// Whether what else a palette is, is given.
    pub fn has_palette_options(&self) -> bool {
        let stored = self.palett_cluster_dim.is_some() || self.palett_lut_dtype.is_some();
        self.has_groups() || stored
    }

    /// Whether what shares a table is given.
    pub fn has_groups(&self) -> bool {
        self.palett_group_size.is_some() || self.palett_granularity.is_some() || self.palett_per_channel_scale
    }

    /// A palette with what goes with it: vectors or sparsity.
    ///
    /// # Errors
    /// When options contradict each other, or the devices cannot do what is asked for.
    pub fn palettized(&self, bits: usize, devices: Devices) -> Result<Scheme> {
        let palette = self.palette(bits, devices)?;
        let dim = match self.palett_cluster_dim {
            None | Some(1) => None,
            Some(2) => Some(ClusterDim::Two),
            Some(4) => Some(ClusterDim::Four),
            Some(found) => return Err(Failure::usage(format!("--palett-cluster-dim: found {found}, expected 2 or 4"))),
        };
        match (dim, self.pruning()?) {
            (None, None) => Ok(palette.into()),
            (None, Some(pruning)) => Ok(SparsePalette { palette, pruning }.into()),
            (Some(_), _) if self.palett_per_channel_scale => Err(Failure::usage_hint(
                "found --palett-per-channel-scale with --palett-cluster-dim, expected one of them",
                "a vector spans several channels, whose scales one table cannot hold",
            )),
            (Some(dim), None) => Ok(VectorPalette { palette, dim }.into()),
            (Some(_), Some(_)) => Err(Failure::usage_hint(
                "found --palett-cluster-dim with sparsity, expected one of them",
                "a vector of which some elements are zero has no index",
            )),
        }
    }

    /// Integers, of the elements that are not zero if there is sparsity.
    fn quantized(&self, dtype: QuantizeArg, devices: Devices) -> Result<Scheme> {
        let linear = self.linear(dtype, devices)?;
        Ok(match self.pruning()? {
            None => linear.into(),
            Some(pruning) => SparseLinear { linear, pruning }.into(),
        })
    }

    fn pruning(&self) -> Result<Option<Pruning>> {
        let (pruning, option) = match (self.sparsity, &self.sparsity_n_m, self.sparsity_threshold) {
            (Some(sparsity), ..) => (Pruning::magnitude(sparsity), "--sparsity"),
            (_, Some(ratio), _) => {
                let numbers = ratio.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
                let Some((zeros, of)) = numbers else {
                    let message = format!("--sparsity-n-m: found `{ratio}`, expected N:M");
                    return Err(Failure::usage_hint(message, "2:4 makes 2 of 4 neighbours zero"));
                };
                (Pruning::ratio(zeros, of), "--sparsity-n-m")
            }
            (.., Some(threshold)) => (Pruning::threshold(threshold), "--sparsity-threshold"),
            _ => return Ok(None),
        };
        pruning.map(Some).map_err(|e| Failure::Usage(e.at(option)))
    }

    fn palette(&self, bits: usize, devices: Devices) -> Result<Palette> {
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
        let group_size = if self.palett_per_channel_scale { Some(1) } else { group_size };
        let table = match self.palett_lut_dtype {
            Some(TableArg::Int8) => TableType::Int8,
            Some(TableArg::Float) | None => TableType::Float,
        };
        Ok(Palette { nbits, mode, group_size, table })
    }

    fn linear(&self, dtype: QuantizeArg, devices: Devices) -> Result<Linear> {
        let dtype = match dtype {
            QuantizeArg::Int8 => LinearDType::Int8,
            QuantizeArg::Uint8 => LinearDType::UInt8,
            QuantizeArg::Int4 => LinearDType::Int4,
            QuantizeArg::Uint4 => LinearDType::UInt4,
            QuantizeArg::Fp8E4M3 | QuantizeArg::Fp8E5M2 => {
                return Err(Failure::usage_hint(
                    "--quantize: found fp8, which no deployment target up to iOS 26 and macOS 26 has, expected integers",
                    "int8 takes as many bytes; --wbits 8 has the values that suit a weight best",
                ));
            }
        };
        let mode = match self.quantize_mode {
            QuantizeModeArg::LinearSymmetric => LinearMode::Symmetric,
            QuantizeModeArg::Linear => LinearMode::Asymmetric,
            QuantizeModeArg::SymmetricWithClipping => LinearMode::SymmetricClipped,
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
        Ok(Linear { dtype, mode, granularity })
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
