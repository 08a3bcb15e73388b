//! Palettization: each element becomes an index into a table of 2^nbits values.
//!
//! One table serves the whole weight or a group of channels. A weight is read group by group where
//! groups are rows, so that only the indices and one group for each thread are in memory; one table
//! for all takes two passes over the rows. Groups along another axis, and one table for an f32
//! weight, need the whole weight at once.

use crate::assign::{Distinct, Thresholds};
use crate::bits::BitWriter;
use crate::kmeans::{self, Points, sort_key};
use crate::values::{Values, check_finite, check_shape, divisors, task_rows, whole_rows};
use crate::{Float, Nbits};
use quince_tensor::{Bytes, DType, Error, Result, Tensor, Weight, bail};
use rayon::prelude::*;
use std::fmt;

/// How a weight is palettized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PalettizeOptions {
    /// Bits of an index.
    pub nbits: Nbits,
    /// How the table is chosen.
    pub mode: PaletteMode,
    /// What shares a table.
    pub granularity: PaletteGranularity,
    /// The type of the table's entries, after scaling if they are integers.
    pub lut: Float,
    /// How the entries are stored.
    pub table: TableType,
}

impl PalettizeOptions {
    /// The number of groups along each axis of a weight of this shape.
    ///
    /// # Errors
    /// When the group size does not divide the axis.
    pub fn groups(&self, shape: &[usize]) -> Result<Vec<usize>> {
        let groups = Groups::new(shape, self.granularity)?;
        Ok((0..shape.len()).map(|axis| if axis == groups.axis { groups.count } else { 1 }).collect())
    }
}

/// How the entries of a table are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaletteMode {
    /// Least sum of squared errors.
    KMeans,
    /// Evenly spaced from the least to the greatest value.
    Uniform,
    /// The values themselves; an error if there are more than entries.
    Unique,
}

impl fmt::Display for PaletteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PaletteMode::KMeans => "k-means",
            PaletteMode::Uniform => "uniform",
            PaletteMode::Unique => "unique",
        })
    }
}

/// What shares a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaletteGranularity {
    /// The whole weight.
    PerTensor,
    /// `group_size` neighbours along `axis`, whatever their place along other axes.
    PerGroupedChannel {
        /// The axis that is divided; 0 for the output channels of `linear` and `conv`.
        axis: usize,
        /// Must divide the dimension of the axis.
        group_size: usize,
    },
}

/// How the entries of a table are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableType {
    /// As the numbers they stand for.
    Float,
    /// As int8, with a scale for each table.
    Int8,
}

/// The arguments of `constexpr_lut_to_dense` (iOS 18) for a weight of rank K.
#[derive(Clone, Debug)]
pub struct Palettized {
    /// uint`nbits` in the shape of the weight.
    pub indices: Tensor,
    /// Rank K + 2: the number of groups along each axis, 2^nbits, 1. Entries ascend; where a group has fewer values, the
    /// last is repeated.
    pub lut: Tensor,
    /// What to multiply integer entries with, by group: rank K + 2, the last two sizes 1.
    pub scale: Option<Tensor>,
    /// The sum of squared differences between the weight and its palettized form.
    pub sse: f64,
}

/// Palettizes `weight`, the same for any number of threads.
///
/// # Errors
/// When an element is not finite, the group size does not divide the axis, a table entry is beyond the range of its
/// type, `unique` finds too many values, or the weight cannot be read.
pub fn palettize(weight: &Weight, options: &PalettizeOptions) -> Result<Palettized> {
    check_shape(weight.shape())?;
    let groups = Groups::new(weight.shape(), options.granularity)?;
    let mut indices = vec![0u8; (weight.len() * options.nbits.get()).div_ceil(8)];
    let tables = if groups.count == 1 {
        vec![one_table(weight, options, &mut indices)?]
    } else if groups.axis == 0 {
        by_rows(weight, options, &groups, &mut indices)?
    } else {
        by_columns(weight, options, &groups, &mut indices)?
    };
    let dtype = DType::unsigned(options.nbits.get()).ok_or_else(|| Error::new("no type for the indices"))?;
    Ok(Palettized {
        indices: Tensor::new(dtype, weight.shape(), Bytes::from_vec(indices))?,
        sse: tables.iter().map(|table| table.sse).sum(),
        lut: lut(weight.shape(), options, &groups, &tables)?,
        scale: scales(weight.shape(), options, &groups, &tables)?,
    })
}

/// The groups along one axis.
pub(crate) struct Groups {
    axis: usize,
    count: usize,
    /// Elements of a group that lie one after the other.
    run: usize,
}

impl Groups {
    pub(crate) fn new(shape: &[usize], granularity: PaletteGranularity) -> Result<Self> {
        let PaletteGranularity::PerGroupedChannel { axis, group_size } = granularity else {
            return Ok(Self { axis: 0, count: 1, run: shape.iter().product() });
        };
        let Some(&dim) = shape.get(axis) else {
            bail!("axis {axis} is not an axis of a weight of shape {shape:?}");
        };
        if group_size == 0 || !dim.is_multiple_of(group_size) {
            bail!(
                "group size {group_size} does not divide dimension {dim} of axis {axis}";
                hint: "sizes that do: {}", divisors(dim)
            );
        }
        let inner: usize = shape[axis + 1..].iter().product();
        Ok(Self { axis, count: dim / group_size, run: group_size * inner })
    }

    /// The number of groups.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The group of an element.
    pub(crate) fn of(&self, element: usize) -> usize {
        element / self.run % self.count
    }
}

/// A table without the repetitions at its end.
pub(crate) struct Table {
    /// Ascending.
    pub(crate) entries: Vec<f64>,
    /// If the entries are integers: their scale.
    scale: Option<f64>,
    sse: f64,
}

impl Table {
    pub(crate) fn new(points: &Points, options: &PalettizeOptions) -> Result<Self> {
        let entries = match options.mode {
            PaletteMode::KMeans => kmeans::cluster(points, options.nbits.entries(), options.lut)?,
            PaletteMode::Uniform => evenly_spaced(points, options.nbits.entries(), options.lut)?,
            PaletteMode::Unique => options.lut.store(distinct(points, options.nbits)?)?,
        };
        Ok(match options.table {
            TableType::Float => Self { sse: points.sse(&entries), entries, scale: None },
            TableType::Int8 => Self::int8(points, &entries, options.lut)?,
        })
    }

    /// The entries rounded to multiples of a scale, from -127 to 127: of a few scales the one that costs least.
    fn int8(points: &Points, entries: &[f64], lut: Float) -> Result<Self> {
        let greatest = entries.iter().fold(0.0, |max: f64, entry| max.max(entry.abs()));
        let mut best: Option<Self> = None;
        for steps in (INT8_STEPS - INT8_CANDIDATES..=INT8_STEPS).rev().map(f64::from) {
            let scale = lut.cover(greatest / steps, steps)?;
            let most = f64::from(INT8_STEPS);
            let entries = entries.iter().map(|entry| lut.round((entry / scale).round().clamp(-most, most) * scale));
            let entries = lut.store(entries.collect())?;
            let sse = points.sse(&entries);
            if best.as_ref().is_none_or(|best| sse < best.sse) {
                best = Some(Self { entries, scale: Some(scale), sse });
            }
        }
        best.ok_or_else(|| Error::new("no scale for a table"))
    }
}

/// Steps of an int8 table on either side of zero, and how many fewer are tried.
const INT8_STEPS: i32 = 127;
const INT8_CANDIDATES: i32 = 15;

/// Entries from the least to the greatest value; with the exact step, or with the step rounded to the type of the table
/// as coremltools has it, whichever costs less.
fn evenly_spaced(points: &Points, entries: usize, lut: Float) -> Result<Vec<f64>> {
    let (Some(&low), Some(&high)) = (points.values().first(), points.values().last()) else { return Ok(Vec::new()) };
    let last = (entries - 1) as f64;
    let exact = lut.store((0..entries).map(|i| low + (high - low) * (i as f64 / last)).collect())?;
    let step = lut.round(lut.round(high - low) / last);
    match lut.store((0..entries).map(|i| low + step * i as f64).collect()) {
        Ok(rounded) if points.sse(&rounded) < points.sse(&exact) => Ok(rounded),
        _ => Ok(exact),
    }
}

fn distinct(points: &Points, nbits: Nbits) -> Result<Vec<f64>> {
    let (found, entries) = (points.values().len(), nbits.entries());
    if found > entries {
        bail!(
            "found {found} distinct values in one group, expected at most {entries}";
            hint: "use kmeans, or more bits"
        );
    }
    Ok(points.values().to_vec())
}

/// One table for the whole weight.
fn one_table(weight: &Weight, options: &PalettizeOptions, indices: &mut [u8]) -> Result<Table> {
    if weight.dtype() == DType::F32 {
        let points = Points::from_sorted_keys(&sorted_keys(weight)?);
        let table = Table::new(&points, options)?;
        let thresholds = Thresholds::new(&table.entries);
        encode(weight, options.nbits, indices, |values, out| thresholds.encode(values, out))?;
        return Ok(table);
    }
    let mut distinct = count(weight)?;
    let table = Table::new(&distinct.points(), options)?;
    distinct.assign(&table.entries);
    encode(weight, options.nbits, indices, |values, out| distinct.encode(values, out))?;
    Ok(table)
}

/// The bit patterns of all elements, counted.
fn count(weight: &Weight) -> Result<Distinct> {
    let rows = task_rows(row_len(weight), 1, 8);
    let total = weight.shape()[0];
    let tasks = (0..total.div_ceil(rows)).into_par_iter();
    tasks
        .try_fold(Distinct::default, |mut distinct, task| {
            let tensor = weight.rows(task * rows..((task + 1) * rows).min(total))?.aligned();
            distinct.count(Values::new(&tensor)?, task * rows * row_len(weight))?;
            Ok(distinct)
        })
        .try_reduce(Distinct::default, |mut a, b| {
            a.merge(&b)?;
            Ok(a)
        })
}

/// The keys of all elements of an f32 weight, in the order of their values.
fn sorted_keys(weight: &Weight) -> Result<Vec<u32>> {
    let row_len = row_len(weight);
    let rows = task_rows(row_len, 1, 8);
    let mut keys = vec![0u32; weight.len()];
    keys.par_chunks_mut(rows * row_len).enumerate().try_for_each(|(task, keys)| {
        let first = task * rows;
        let tensor = weight.rows(first..first + keys.len() / row_len)?.aligned();
        if let Values::Single(values) = Values::new(&tensor)? {
            check_finite(values, first * row_len)?;
            keys.iter_mut().zip(values).for_each(|(key, &value)| *key = sort_key(value));
        }
        Ok::<(), Error>(())
    })?;
    keys.par_sort_unstable();
    Ok(keys)
}

/// Reads the weight in pieces of whole rows and writes the indices of each.
fn encode(
    weight: &Weight,
    nbits: Nbits,
    indices: &mut [u8],
    codes: impl Fn(Values<'_>, &mut BitWriter<'_>) + Sync,
) -> Result<()> {
    let row_len = row_len(weight);
    let rows = task_rows(row_len, 1, nbits.get());
    let total = weight.shape()[0];
    indices.par_chunks_mut(rows * row_len * nbits.get() / 8).enumerate().try_for_each(|(task, out)| {
        let tensor = weight.rows(task * rows..((task + 1) * rows).min(total))?.aligned();
        codes(Values::new(&tensor)?, &mut BitWriter::new(out, nbits.get()));
        Ok(())
    })
}

/// A table for each group of rows: read, clustered and written by one thread.
fn by_rows(weight: &Weight, options: &PalettizeOptions, groups: &Groups, indices: &mut [u8]) -> Result<Vec<Table>> {
    let bits = options.nbits.get();
    let group_rows = weight.shape()[0] / groups.count;
    let rows = whole_rows(row_len(weight), group_rows, bits);
    let task_bytes = rows * row_len(weight) * bits / 8;
    let tasks = indices.par_chunks_mut(task_bytes).enumerate();
    let tables = tasks.map_init(Distinct::default, |distinct, (task, out)| {
        let mut out = BitWriter::new(out, bits);
        let last = ((task + 1) * rows).min(weight.shape()[0]);
        let one = |row: usize| {
            let tensor = weight.rows(row..row + group_rows)?.aligned();
            group(Values::new(&tensor)?, row * row_len(weight), options, distinct, &mut out)
        };
        (task * rows..last).step_by(group_rows).map(one).collect::<Result<Vec<Table>>>()
    });
    Ok(tables.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Clusters and writes the elements of one group, of which the first is element `first` of the weight.
fn group(
    values: Values<'_>,
    first: usize,
    options: &PalettizeOptions,
    distinct: &mut Distinct,
    out: &mut BitWriter<'_>,
) -> Result<Table> {
    match values {
        Values::Half(..) => {
            distinct.count(values, first)?;
            let table = Table::new(&distinct.points(), options)?;
            distinct.assign(&table.entries);
            distinct.encode(values, out);
            Ok(table)
        }
        Values::Single(singles) => {
            check_finite(singles, first)?;
            let table = Table::new(&Points::new(singles)?, options)?;
            Thresholds::new(&table.entries).encode(values, out);
            Ok(table)
        }
    }
}

/// A table for each group along an axis other than the first: the weight is loaded once, clustered group by group and
/// then written row by row.
fn by_columns(weight: &Weight, options: &PalettizeOptions, groups: &Groups, indices: &mut [u8]) -> Result<Vec<Table>> {
    let tensor = weight.load()?.aligned();
    let values = Values::new(&tensor)?;
    let one = |distinct: &mut Distinct, group: usize| {
        let runs = (group * groups.run..values.len()).step_by(groups.count * groups.run);
        let runs = runs.map(|start| (start, values.slice(start..start + groups.run)));
        Table::new(&points_of_runs(runs, distinct)?, options)
    };
    let tables = (0..groups.count).into_par_iter().map_init(Distinct::default, one);
    let tables = tables.collect::<Result<Vec<Table>>>()?;
    let thresholds: Vec<Thresholds> = tables.iter().map(|table| Thresholds::new(&table.entries)).collect();
    let resident = Weight::from_tensor(weight.name(), tensor.clone());
    encode(&resident, options.nbits, indices, |values, out| {
        for (run, start) in (0..values.len()).step_by(groups.run).enumerate() {
            thresholds[run % groups.count].encode(values.slice(start..start + groups.run), out);
        }
    })?;
    Ok(tables)
}

fn points_of_runs<'a>(runs: impl Iterator<Item = (usize, Values<'a>)>, distinct: &mut Distinct) -> Result<Points> {
    let mut singles: Vec<f32> = Vec::new();
    for (start, values) in runs {
        match values {
            Values::Half(..) => distinct.count(values, start)?,
            Values::Single(values) => {
                check_finite(values, start)?;
                singles.extend_from_slice(values);
            }
        }
    }
    if singles.is_empty() { Ok(distinct.points()) } else { Points::new(&singles) }
}

pub(crate) fn lut(shape: &[usize], options: &PalettizeOptions, groups: &Groups, tables: &[Table]) -> Result<Tensor> {
    let entries = options.nbits.entries();
    let lut_shape = table_shape(shape, groups, entries);
    let padded = |table: &Table| {
        let stored = |&entry: &f64| table.scale.map_or(entry, |scale| (entry / scale).round());
        let last = table.entries.last().map_or(0.0, stored);
        let padding = entries.saturating_sub(table.entries.len());
        table.entries.iter().map(stored).chain(std::iter::repeat_n(last, padding)).collect::<Vec<f64>>()
    };
    let values: Vec<f64> = tables.iter().flat_map(padded).collect();
    match options.table {
        TableType::Float => options.lut.tensor(lut_shape, values),
        TableType::Int8 => {
            let steps: Vec<i64> = values.into_iter().map(|value| value as i64).collect();
            Tensor::from_i64(DType::I8, lut_shape, &steps)
        }
    }
}

/// The scales of integer tables.
pub(crate) fn scales(
    shape: &[usize],
    options: &PalettizeOptions,
    groups: &Groups,
    tables: &[Table],
) -> Result<Option<Tensor>> {
    let Some(scales) = tables.iter().map(|table| table.scale).collect::<Option<Vec<f64>>>() else { return Ok(None) };
    options.lut.tensor(table_shape(shape, groups, 1), scales).map(Some)
}

fn table_shape(shape: &[usize], groups: &Groups, entries: usize) -> Vec<usize> {
    let mut sizes = vec![1; shape.len()];
    sizes[groups.axis] = groups.count;
    sizes.extend([entries, 1]);
    sizes
}

/// Elements of one row along the first axis.
fn row_len(weight: &Weight) -> usize {
    weight.shape()[1..].iter().product()
}

#[cfg(test)]
mod tests;
