//! Indices into lookup tables: `constexpr_lut_to_dense`.

use super::{Lowered, Method, Scheme, Step, Target};
use crate::{Float, Nbits, PaletteGranularity, PaletteMode, PalettizeOptions, palettize};
use quince_mil::{DType, Opset, Result, Weight, bail};
use quince_tensor::parts;
use std::fmt;

/// Indices into lookup tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Palette {
    /// Bits of an index.
    pub nbits: Nbits,
    /// How the table is chosen.
    pub mode: PaletteMode,
    /// Output channels that share a table; `None` for one table.
    pub group_size: Option<usize>,
}

impl Palette {
    /// Tables of least squared error.
    pub fn kmeans(nbits: Nbits, group_size: Option<usize>) -> Palette {
        Palette { nbits, mode: PaletteMode::KMeans, group_size }
    }

    fn options(&self, weight: &Weight, target: &Target) -> Result<PalettizeOptions> {
        let granularity = self.group_size.map_or(PaletteGranularity::PerTensor, |group_size| {
            PaletteGranularity::PerGroupedChannel { axis: target.axes.output, group_size }
        });
        let lut = Float::of_weight(weight.dtype())?;
        Ok(PalettizeOptions { nbits: self.nbits, mode: self.mode, granularity, lut })
    }
}

impl Method for Palette {
    fn bits(&self) -> f64 {
        self.nbits.get() as f64
    }

    fn with_nbits(&self, nbits: Nbits) -> Option<Scheme> {
        Some(Palette { nbits, ..*self }.into())
    }

    fn check(&self, opset: Opset) -> Result<()> {
        if opset < Opset::CoreML8 {
            bail!(
                "found opset {opset}, expected CoreML8 or later";
                hint: "this form of compressed weights needs iOS 18 or macOS 15"
            );
        }
        Ok(())
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let options = self.options(weight, target)?;
        let groups = options.groups(weight.shape())?;
        let indices = DType::unsigned(self.nbits.get()).unwrap_or(DType::U8);
        let types = vec![
            (format!("{}_indices", weight.name()), indices, weight.shape().to_vec()),
            (format!("{}_lut", weight.name()), options.lut.dtype(), [groups, vec![self.nbits.entries(), 1]].concat()),
        ];
        let weight = weight.clone();
        let weights = parts(types, move || palettize(&weight, &options).map(|p| vec![p.indices, p.lut]));
        Ok(Step::new("constexpr_lut_to_dense", ["indices", "lut"].into_iter().zip(weights)).into())
    }
}

impl fmt::Display for Palette {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit palette, {}", self.nbits.get(), self.mode)?;
        match self.group_size {
            Some(size) => write!(f, ", groups of {size}"),
            None => f.write_str(", per tensor"),
        }
    }
}
