//! Indices of the elements that are not zero: `constexpr_lut_to_sparse`, `constexpr_sparse_to_dense`. The tables are made
//! of these elements alone.

use super::palette::{tables, types};
use super::sparse::{chosen, share, to_dense};
use super::{Lowered, Method, Palette, Scheme, Step, Target, opset};
use crate::assign::Thresholds;
use crate::bits::BitWriter;
use crate::kmeans::Points;
use crate::palettize::{Groups, Table, lut, scales};
use crate::values::Values;
use crate::{Nbits, PalettizeOptions, Pruning};
use quince_mil::{DType, Opset, Result, Tensor, Weight, bail};
use quince_tensor::{Bytes, parts};
use rayon::prelude::*;
use std::fmt;

/// Indices into lookup tables, of the elements that are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparsePalette {
    /// Indices and tables.
    pub palette: Palette,
    /// Which elements become zero.
    pub pruning: Pruning,
}

impl Method for SparsePalette {
    /// With the bit of the mask.
    fn bits(&self) -> f64 {
        1.0 + self.palette.bits() * share(self.pruning)
    }

    fn with_nbits(&self, nbits: Nbits) -> Option<Scheme> {
        Some(SparsePalette { palette: Palette { nbits, ..self.palette }, ..*self }.into())
    }

    fn check(&self, found: Opset) -> Result<()> {
        self.palette.check(Opset::CoreML8)?;
        opset::check(found, Some("palettes of sparse weights"))
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let (pruning, axes) = (self.pruning, target.axes);
        let options = self.palette.options(weight, target)?;
        let groups = options.groups(weight.shape())?;
        let count = pruning.kept_count(weight, axes)?;
        let mut types = types(weight, &options, &[count], 1, groups);
        types.insert(0, (format!("{}_mask", weight.name()), DType::U1, weight.shape().to_vec()));
        let source = weight.clone();
        let compute = move || {
            let (values, kept) = pruning.kept(&source, axes)?;
            palettized(source.shape(), &values, &kept, &options)
        };
        let mut weights = parts(types, compute).into_iter();
        let (Some(mask), Some(indices), Some(lut)) = (weights.next(), weights.next(), weights.next()) else {
            bail!("a palette without tables")
        };
        let (steps, lut) = tables(lut, weights.next());
        let sparse = Step::new("constexpr_lut_to_sparse", [("indices_mask", mask), ("indices_nonzero_data", indices)]);
        Ok(to_dense(steps, sparse.with("lut", lut)))
    }
}

/// Mask, indices, tables and, of integer tables, scales.
fn palettized(shape: &[usize], values: &[f32], kept: &[u8], options: &PalettizeOptions) -> Result<Vec<Tensor>> {
    let groups = Groups::new(shape, options.granularity)?;
    let elements: Vec<usize> = chosen(&(0..values.len()).collect::<Vec<_>>(), kept).collect();
    let mut members = vec![Vec::new(); groups.count()];
    elements.iter().for_each(|&i| members[groups.of(i)].push(values[i]));
    // Tables that nothing looks into are there all the same.
    members.iter_mut().filter(|own| own.is_empty()).for_each(|own| own.push(0.0));
    let tables = members.into_par_iter().map(|own| Table::new(&Points::new(&own)?, options));
    let tables = tables.collect::<Result<Vec<Table>>>()?;
    let thresholds: Vec<Thresholds> = tables.iter().map(|table| Thresholds::new(&table.entries)).collect();
    let bits = options.nbits.get();
    let mut indices = vec![0u8; (elements.len() * bits).div_ceil(8)];
    let mut writer = BitWriter::new(&mut indices, bits);
    for own in elements.chunk_by(|&a, &b| groups.of(a) == groups.of(b)) {
        let (Some(&first), own) = (own.first(), own.iter().map(|&i| values[i]).collect::<Vec<f32>>()) else { continue };
        thresholds[groups.of(first)].encode(Values::Single(&own), &mut writer);
    }
    let index = DType::unsigned(bits).unwrap_or(DType::U8);
    let mask = Tensor::from_codes(DType::U1, shape, kept)?;
    let indices = Tensor::new(index, [elements.len()], Bytes::from_vec(indices))?;
    let lut = lut(shape, options, &groups, &tables)?;
    Ok([mask, indices, lut].into_iter().chain(scales(shape, options, &groups, &tables)?).collect())
}

impl fmt::Display for SparsePalette {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.palette, self.pruning)
    }
}
