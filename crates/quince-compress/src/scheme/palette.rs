//! Indices into lookup tables: `constexpr_lut_to_dense`.
//!
//! Integer tables are scaled first: int8 table, `constexpr_blockwise_shift_scale` with a scale for each table,
//! `constexpr_lut_to_dense`. A scale for each output channel is no operation of its own: coremltools multiplies the dense
//! weight with it in `constexpr_blockwise_shift_scale`, which does not load on the Neural Engine of macOS 26
//! (apple/coremltools#2688). Folded into the tables it gives each channel a table of its own; the best of these is the
//! channel's own k-means (`group_size: Some(1)`), which is never worse than a scaled one.

use super::{Input, Lowered, Method, Scheme, Step, Target, opset};
use crate::calibrated::{DAMPING, TIED_DAMPING, palettize_calibrated};
use crate::{Float, Nbits, PaletteGranularity, PaletteMode, PalettizeOptions, Palettized, TableType, palettize};
use quince_mil::{DType, Opset, Result, Tensor, Weight, bail};
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
    /// How the entries of the table are stored.
    pub table: TableType,
}

impl Palette {
    /// Tables of least squared error.
    pub fn kmeans(nbits: Nbits, group_size: Option<usize>) -> Palette {
        Palette { nbits, mode: PaletteMode::KMeans, group_size, table: TableType::Float }
    }

    /// How a weight is palettized.
    pub(super) fn options(&self, weight: &Weight, target: &Target) -> Result<PalettizeOptions> {
        let granularity = self.group_size.map_or(PaletteGranularity::PerTensor, |group_size| {
            PaletteGranularity::PerGroupedChannel { axis: target.axes.output, group_size }
        });
        let lut = Float::of_weight(weight.dtype())?;
        Ok(PalettizeOptions { nbits: self.nbits, mode: self.mode, granularity, lut, table: self.table })
    }

    /// How the weight is palettized when it is asked for: by what it is multiplied with, where that is known.
    fn compute(
        &self,
        weight: &Weight,
        target: &Target,
        options: PalettizeOptions,
    ) -> impl Fn() -> Result<Palettized> + Send + Sync + 'static {
        let (weight, axes) = (weight.clone(), target.axes);
        let guide = target.guide.clone().filter(|_| self.is_guided());
        let damping = if target.tied { TIED_DAMPING } else { DAMPING };
        move || match guide.as_ref().map(|guide| guide.factor(weight.name(), damping)).transpose()?.flatten() {
            Some(factor) => palettize_calibrated(&weight, &options, [axes.output, axes.input], &factor),
            None => palettize(&weight, &options),
        }
    }

    /// The form of iOS 16: packed bytes, one table, and the shape.
    fn packed(&self, weight: &Weight, target: &Target, options: PalettizeOptions) -> Result<Lowered> {
        let bytes = (weight.len() * self.nbits.get()).div_ceil(8);
        let types = vec![
            (format!("{}_indices", weight.name()), DType::U8, vec![bytes]),
            (format!("{}_lut", weight.name()), options.lut.dtype(), vec![self.nbits.entries()]),
        ];
        let (shape, compute) = (shape_value(weight)?, self.compute(weight, target, options));
        let weights = parts(types, move || {
            let Palettized { indices, lut, .. } = compute()?;
            Ok(vec![Tensor::new(DType::U8, [bytes], indices.bytes().clone())?, lut.reshape([lut.len()])?])
        });
        let step = Step::new("constexpr_lut_to_dense", ["indices", "lut"].into_iter().zip(weights));
        Ok(step.with("shape", Input::Value(shape)).into())
    }
}

/// The shape of a weight as the operations of iOS 16 want it.
pub(super) fn shape_value(weight: &Weight) -> Result<quince_mil::Value> {
    let sizes = weight.shape().iter().map(|&size| u32::try_from(size));
    match sizes.collect::<Result<Vec<u32>, _>>() {
        Ok(sizes) => Ok(Tensor::vector(sizes).into()),
        Err(_) => bail!("found a weight of shape {:?}, expected sizes below 2^32", weight.shape()),
    }
}

/// The types of indices, tables and scales: of `count` indices in `indices` shape.
pub(super) fn types(
    weight: &Weight,
    options: &PalettizeOptions,
    indices: &[usize],
    length: usize,
    groups: Vec<usize>,
) -> Vec<(String, DType, Vec<usize>)> {
    let name = |part: &str| format!("{}_{part}", weight.name());
    let index = DType::unsigned(options.nbits.get()).unwrap_or(DType::U8);
    let float = options.lut.dtype();
    let entry = if options.table == TableType::Int8 { DType::I8 } else { float };
    let table = [&groups[..], &[options.nbits.entries(), length]].concat();
    let mut types = vec![(name("indices"), index, indices.to_vec()), (name("lut"), entry, table)];
    if options.table == TableType::Int8 {
        types.push((name("lut_scale"), float, [groups, vec![1, 1]].concat()));
    }
    types
}

/// The operations before the one that looks up, and the parameter `lut` of that.
pub(super) fn tables(lut: Weight, scale: Option<Weight>) -> (Vec<Step>, Input) {
    match scale {
        None => (Vec::new(), Input::Value(lut.into())),
        Some(scale) => {
            let step = Step::new("constexpr_blockwise_shift_scale", [("data", lut), ("scale", scale)]);
            (vec![step], Input::Result(0, 0))
        }
    }
}

impl Method for Palette {
    fn bits(&self) -> f64 {
        self.nbits.get() as f64
    }

    fn with_nbits(&self, nbits: Nbits) -> Option<Scheme> {
        Some(Palette { nbits, ..*self }.into())
    }

    fn is_guided(&self) -> bool {
        self.mode == PaletteMode::KMeans && self.table == TableType::Float
    }

    fn check(&self, found: Opset) -> Result<()> {
        if self.mode == PaletteMode::Unique && self.table == TableType::Int8 {
            bail!("found int8 tables of unique values, which they would round"; hint: "use kmeans, or tables of floats");
        }
        let newer = [
            (self.group_size.is_some(), "tables for groups of channels"),
            (self.table == TableType::Int8, "int8 tables"),
            (self.nbits.get() == 3, "3-bit indices"),
        ];
        opset::check(found, newer.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what))
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let options = self.options(weight, target)?;
        let groups = options.groups(weight.shape())?;
        if target.opset < Opset::CoreML8 {
            return self.packed(weight, target, options);
        }
        let types = types(weight, &options, weight.shape(), 1, groups);
        let compute = self.compute(weight, target, options);
        let compute = move || {
            let palettized = compute()?;
            Ok([palettized.indices, palettized.lut].into_iter().chain(palettized.scale).collect())
        };
        let mut weights = parts(types, compute).into_iter();
        let (Some(indices), Some(lut)) = (weights.next(), weights.next()) else { bail!("a palette without tables") };
        let (mut steps, lut) = tables(lut, weights.next());
        steps.push(Step::new("constexpr_lut_to_dense", [("indices", indices)]).with("lut", lut));
        Ok(Lowered(steps))
    }
}

impl fmt::Display for Palette {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit palette, {}", self.nbits.get(), self.mode)?;
        f.write_str(if self.table == TableType::Int8 { ", int8 tables" } else { "" })?;
        match self.group_size {
            Some(1) => f.write_str(", a table for each channel"),
            Some(size) => write!(f, ", groups of {size}"),
            None => f.write_str(", per tensor"),
        }
    }
}
