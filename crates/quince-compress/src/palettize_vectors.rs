//! Vector palettization: neighbours along an axis become one index into a table of 2^nbits vectors.

use crate::kmeans::vectors::{Vectors, assign, cluster};
use crate::palettize::Groups;
use crate::values::{check_finite, check_shape};
use crate::{PaletteGranularity, PalettizeOptions, Palettized, TableType};
use quince_tensor::{DType, Error, Result, Tensor, Weight, bail};
use rayon::prelude::*;

/// Elements that one index stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterDim {
    /// Two.
    Two,
    /// Four.
    Four,
}

impl ClusterDim {
    /// The number of elements.
    pub fn get(self) -> usize {
        match self {
            ClusterDim::Two => 2,
            ClusterDim::Four => 4,
        }
    }

    /// The shape of the indices of a weight.
    ///
    /// # Errors
    /// When vectors do not divide the axis or a group.
    pub(crate) fn index_shape(self, shape: &[usize], axis: usize, options: &PalettizeOptions) -> Result<Vec<usize>> {
        let dim = self.get();
        let group = match options.granularity {
            PaletteGranularity::PerTensor => shape.get(axis).copied().unwrap_or(0),
            PaletteGranularity::PerGroupedChannel { group_size, .. } => group_size,
        };
        if group == 0 || !group.is_multiple_of(dim) {
            bail!("vectors of {dim} do not divide {group} channels that share a table"; hint: "use groups of 8, or no vectors");
        }
        let mut shape = shape.to_vec();
        shape[axis] /= dim;
        Ok(shape)
    }
}

/// Palettizes vectors of neighbours along `axis`, which is also that of the groups; the same for any number of threads.
/// The mode of the options does not matter: it is k-means.
///
/// # Errors
/// When an element is not finite, vectors or groups do not divide the axis, or the weight cannot be read.
pub fn palettize_vectors(
    weight: &Weight,
    dim: ClusterDim,
    axis: usize,
    options: &PalettizeOptions,
) -> Result<Palettized> {
    match dim {
        ClusterDim::Two => vectors::<2>(weight, dim, axis, options),
        ClusterDim::Four => vectors::<4>(weight, dim, axis, options),
    }
}

fn vectors<const D: usize>(
    weight: &Weight,
    dim: ClusterDim,
    axis: usize,
    options: &PalettizeOptions,
) -> Result<Palettized> {
    check_shape(weight.shape())?;
    let groups = Groups::new(weight.shape(), options.granularity)?;
    let shape = dim.index_shape(weight.shape(), axis, options)?;
    let values = weight.load()?.to_f32()?;
    check_finite(&values, 0)?;
    let inner: usize = shape[axis + 1..].iter().product();
    // The first element of a vector, by the number of its index.
    let first = |index: usize| (index / inner) * D * inner + index % inner;
    let count: usize = shape.iter().product();
    let mut members = vec![Vec::new(); groups.count()];
    (0..count).for_each(|index| members[groups.of(first(index))].push(index));
    let clustered = members.into_par_iter().map(|own| {
        let vectors = Vectors::new(own.iter().map(|&i| std::array::from_fn(|d| values[first(i) + d * inner])));
        let table = Table::<D>::new(&vectors, options)?;
        let (codes, sse) = assign(&vectors, &table.entries);
        Ok((own, codes, table, sse))
    });
    let clustered = clustered.collect::<Result<Vec<_>>>()?;
    let mut codes = vec![0; count];
    for (own, group_codes, ..) in &clustered {
        own.iter().zip(group_codes).for_each(|(&index, &code)| codes[index] = code);
    }
    let index = DType::unsigned(options.nbits.get()).ok_or_else(|| Error::new("no type for the indices"))?;
    let sizes = options.groups(weight.shape())?;
    let tables: Vec<&Table<D>> = clustered.iter().map(|group| &group.2).collect();
    Ok(Palettized {
        indices: Tensor::from_codes(index, shape, &codes)?,
        lut: lut(&tables, &sizes, options)?,
        scale: scales(&tables, &sizes, options)?,
        sse: clustered.iter().map(|group| group.3).sum(),
    })
}

/// The vectors of one group's table as they are after scaling.
struct Table<const D: usize> {
    entries: Vec<[f32; D]>,
    /// If the entries are integers: their scale.
    scale: Option<f64>,
}

impl<const D: usize> Table<D> {
    fn new(vectors: &Vectors<D>, options: &PalettizeOptions) -> Result<Self> {
        let mut entries = cluster(vectors, options.nbits.entries(), options.lut)?;
        if options.table == TableType::Float {
            return Ok(Self { entries, scale: None });
        }
        let greatest = entries.as_flattened().iter().fold(0f32, |max, v| max.max(v.abs()));
        let scale = options.lut.cover(f64::from(greatest) / 127.0, 127.0)?;
        for entry in entries.as_flattened_mut() {
            let steps = (f64::from(*entry) / scale).round().clamp(-127.0, 127.0);
            *entry = options.lut.round(steps * scale) as f32;
        }
        Ok(Self { entries, scale: Some(scale) })
    }

    /// As stored, where a group has fewer vectors the last repeated.
    fn padded(&self, entries: usize) -> impl Iterator<Item = f64> {
        let last = self.entries.len().saturating_sub(1);
        let stored = |v: f32| self.scale.map_or(f64::from(v), |scale| (f64::from(v) / scale).round());
        (0..entries).flat_map(move |i| self.entries[i.min(last)].map(stored))
    }
}

fn lut<const D: usize>(tables: &[&Table<D>], groups: &[usize], options: &PalettizeOptions) -> Result<Tensor> {
    let shape = [groups, &[options.nbits.entries(), D]].concat();
    let values = tables.iter().flat_map(|table| table.padded(options.nbits.entries()));
    match options.table {
        TableType::Float => options.lut.tensor(shape, values.collect()),
        TableType::Int8 => {
            let steps: Vec<i64> = values.map(|value| value as i64).collect();
            Tensor::from_i64(DType::I8, shape, &steps)
        }
    }
}

fn scales<const D: usize>(
    tables: &[&Table<D>],
    groups: &[usize],
    options: &PalettizeOptions,
) -> Result<Option<Tensor>> {
    let scales: Option<Vec<f64>> = tables.iter().map(|table| table.scale).collect();
    scales.map(|scales| options.lut.tensor([groups, &[1, 1]].concat(), scales)).transpose()
}
