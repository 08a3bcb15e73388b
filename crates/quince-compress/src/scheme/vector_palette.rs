//! Indices into lookup tables of short vectors: `constexpr_lut_to_dense` with a `vector_axis`. A vector is made of
//! neighbouring output channels, as coremltools makes them.

use super::palette::{tables, types};
use super::{Input, Lowered, Method, Palette, Scheme, Step, Target, opset};
use crate::{ClusterDim, Nbits, PaletteMode, palettize_vectors};
use quince_mil::{Opset, Result, Weight, bail};
use quince_tensor::parts;
use std::fmt;

/// Indices into lookup tables of short vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorPalette {
    /// Bits of an index, and what shares a table.
    pub palette: Palette,
    /// Elements that an index stands for.
    pub dim: ClusterDim,
}

impl Method for VectorPalette {
    fn bits(&self) -> f64 {
        self.palette.nbits.get() as f64 / self.dim.get() as f64
    }

    fn with_nbits(&self, nbits: Nbits) -> Option<Scheme> {
        Some(VectorPalette { palette: Palette { nbits, ..self.palette }, ..*self }.into())
    }

    fn check(&self, found: Opset) -> Result<()> {
        if self.palette.mode != PaletteMode::KMeans {
            bail!("found {} tables of vectors, expected k-means", self.palette.mode; hint: "leave the cluster dimension out");
        }
        opset::check(found, Some("tables of vectors"))
    }

    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered> {
        let (dim, axis) = (self.dim, target.axes.output);
        let options = self.palette.options(weight, target)?;
        let groups = options.groups(weight.shape())?;
        let indices = dim.index_shape(weight.shape(), axis, &options)?;
        let types = types(weight, &options, &indices, dim.get(), groups);
        let weight = weight.clone();
        let compute = move || {
            let palettized = palettize_vectors(&weight, dim, axis, &options)?;
            Ok([palettized.indices, palettized.lut].into_iter().chain(palettized.scale).collect())
        };
        let mut weights = parts(types, compute).into_iter();
        let (Some(indices), Some(lut)) = (weights.next(), weights.next()) else { bail!("a palette without tables") };
        let (mut steps, lut) = tables(lut, weights.next());
        let step = Step::new("constexpr_lut_to_dense", [("indices", indices)]).with("lut", lut);
        steps.push(step.with("vector_axis", Input::Value((axis as i32).into())));
        Ok(Lowered(steps))
    }
}

impl fmt::Display for VectorPalette {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, vectors of {}", self.palette, self.dim.get())
    }
}
