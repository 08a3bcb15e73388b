//! Tables and indices that change least what a weight computes.

use super::Factor;
use super::lanes::{Lanes, Table, lanes_of};
use super::rows::Rows;
use crate::kmeans::{self, Points};
use crate::palettize::{PaletteGranularity, PalettizeOptions, Palettized};
use crate::values::divisors;
use quince_tensor::{DType, Error, Result, Tensor, Weight, bail};
use rayon::prelude::*;

/// How often tables and indices are improved in turn, at most, and steps towards the best entries for given indices, each of
/// which costs as much as rounding does. With many columns a step takes long, and what half of them find is nearly as good.
const THOROUGH: Effort = Effort { rounds: 4, steps: 4, exact: true };
const LARGE: Effort = Effort { rounds: 2, steps: 2, exact: false };
/// Columns from which on a weight is large.
const COLUMNS: usize = 1024;
/// Elements for each entry of a table that are enough to begin with.
const ENOUGH: usize = 512;
/// Columns of which elements are taken at least.
const FEWEST: usize = 64;
/// The relative improvement below which another round is not worth its time.
const WORTH: f64 = 1e-3;

struct Effort {
    rounds: usize,
    steps: usize,
    /// Whether the gradient is computed anew where it is nearly known.
    exact: bool,
}

/// Palettizes a weight of rank 2, or whose other axes have one element, so that tr((W - Q) H (W - Q)ᵀ) is small. The
/// error reported is that of the weight itself, as without calibration.
///
/// # Errors
/// As for [`crate::palettize()`], and when the inputs of the factor are not those of the weight.
pub(crate) fn palettize_calibrated(
    weight: &Weight,
    options: &PalettizeOptions,
    [output, input]: [usize; 2],
    factor: &Factor,
) -> Result<Palettized> {
    let matrix = Rows::new(weight, [output, input], factor)?;
    let size = match options.granularity {
        PaletteGranularity::PerTensor => matrix.rows,
        PaletteGranularity::PerGroupedChannel { group_size, .. } => group_size,
    };
    if size == 0 || !matrix.rows.is_multiple_of(size) {
        bail!(
            "group size {size} does not divide dimension {} of axis {output}", matrix.rows;
            hint: "sizes that do: {}", divisors(matrix.rows)
        );
    }
    // Small groups are worked on together, so that there are lanes enough.
    let most = lanes_of(matrix.rows);
    let step = size * (most / size).max(1);
    let batches = (0..matrix.rows.div_ceil(step)).into_par_iter().map(|batch| {
        let rows = matrix.read(batch * step..matrix.rows.min((batch + 1) * step))?;
        solve(&rows, [size, most], factor, options)
    });
    let groups: Vec<Group> = batches.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let entries = options.nbits.entries();
    let codes = matrix.arrange(groups.iter().flat_map(|group| &group.codes));
    let indices = Tensor::from_codes(index_type(options)?, weight.shape(), &codes)?;
    let mut lut_shape = vec![1; weight.shape().len()];
    lut_shape[output] = groups.len();
    lut_shape.extend([entries, 1]);
    let table = |group: &Group| {
        let last = group.entries.last().copied().unwrap_or(0.0);
        group.entries.iter().copied().chain(std::iter::repeat(last)).take(entries).collect::<Vec<f32>>()
    };
    let luts: Vec<f64> = groups.iter().flat_map(table).map(f64::from).collect();
    let lut = Tensor::from_f64(options.lut.dtype(), lut_shape, luts)?;
    Ok(Palettized { indices, lut, scale: None, sse: groups.iter().map(|group| group.sse).sum() })
}

fn index_type(options: &PalettizeOptions) -> Result<DType> {
    DType::unsigned(options.nbits.get()).ok_or_else(|| Error::new("no type for the indices"))
}

/// What became of the rows that share a table.
struct Group {
    entries: Vec<f32>,
    codes: Vec<Vec<u8>>,
    sse: f64,
}

/// Chooses tables and indices of rows, of which every `shared` have a table and at most `most` are worked on together.
fn solve(
    rows: &[Vec<f32>],
    [shared, most]: [usize; 2],
    factor: &Factor,
    options: &PalettizeOptions,
) -> Result<Vec<Group>> {
    let lanes = |rows| Lanes::new(factor, rows, shared.min(most));
    // Either several tables in the lanes of one, or one table for several.
    let per_lanes = shared.min(most) * (most / shared).max(1);
    let mut lanes: Vec<Lanes> = rows.par_chunks(per_lanes).map(lanes).collect();
    let count = rows.len().div_ceil(shared);
    let mut tables = (0..count)
        .map(|table| start(&lanes, table, shared * factor.size(), options))
        .collect::<Result<Vec<Table>>>()?;
    lanes.par_iter_mut().for_each(|lanes| {
        lanes.round(&tables);
        lanes.measure(&tables);
    });
    let mut best: Vec<(f64, Vec<f32>)> = vec![(f64::INFINITY, Vec::new()); count];
    let effort = if factor.size() < COLUMNS { THOROUGH } else { LARGE };
    for round in 0..=effort.rounds {
        let costs = sum(lanes.iter().map(Lanes::costs).collect());
        let mut worth = false;
        for (number, (best, cost)) in best.iter_mut().zip(costs).enumerate() {
            worth |= cost < best.0 * (1.0 - WORTH);
            if cost < best.0 {
                *best = (cost, tables[number].entries.clone());
                lanes.iter_mut().for_each(|lanes| lanes.keep(number));
            }
        }
        if round == effort.rounds || !worth {
            break;
        }
        lanes.par_iter_mut().for_each(|lanes| lanes.descend(&tables));
        tables = improved(&mut lanes, &tables, &effort, options)?;
    }
    if best.iter().any(|(_, entries)| entries.is_empty()) {
        bail!("found costs that are not numbers, expected finite moments");
    }
    let codes: Vec<Vec<u8>> = lanes
        .iter()
        .zip(rows.chunks(per_lanes))
        .flat_map(|(lanes, rows)| (0..rows.len()).map(|row| lanes.row_codes(row)))
        .collect();
    let groups = best.into_iter().zip(rows.chunks(shared)).zip(codes.chunks(shared));
    Ok(groups.map(|(((_, entries), rows), codes)| Group::new(entries, rows, codes)).collect())
}

impl Group {
    fn new(entries: Vec<f32>, rows: &[Vec<f32>], codes: &[Vec<u8>]) -> Group {
        let error = |(value, code): (&f32, &u8)| f64::from(value - entries[usize::from(*code)]).powi(2);
        let sse = rows.iter().zip(codes).flat_map(|(row, codes)| row.iter().zip(codes)).map(error).sum();
        Group { entries, codes: codes.to_vec(), sse }
    }
}

/// The table to begin with: k-means of its elements, or of some of many, each as important as its input.
fn start(lanes: &[Lanes], table: usize, elements: usize, options: &PalettizeOptions) -> Result<Table> {
    let columns = lanes.first().map_or(0, Lanes::columns);
    let every = (elements / (ENOUGH * options.nbits.entries())).min(columns / FEWEST).max(1);
    let elements = lanes.iter().flat_map(|lanes| lanes.elements(table, every));
    let (values, importance): (Vec<f32>, Vec<f64>) = elements.unzip();
    let points = Points::with_importance(&values, &importance)?;
    let entries = kmeans::cluster(&points, options.nbits.entries(), options.lut)?;
    Ok(Table::new(entries.into_iter().map(|entry| entry as f32).collect()))
}

fn sum(parts: Vec<Vec<f64>>) -> Vec<f64> {
    parts.into_iter().reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).unwrap_or_default()
}

/// The entries that cost least for the indices as they are, nearly: conjugate gradients on Sᵀ H S δ = Sᵀ H (W - Q)ᵀ,
/// where S says which element has which index, preconditioned by the diagonal of H; for each table of its own. Indices
/// are renumbered with the entries, so that these ascend.
fn improved(lanes: &mut [Lanes], tables: &[Table], effort: &Effort, options: &PalettizeOptions) -> Result<Vec<Table>> {
    let k = options.nbits.entries();
    let masses = sum(lanes.iter().map(|lanes| lanes.masses(k)).collect());
    // An entry that no element has stays where it is.
    let solve = |v: &[f64]| -> Vec<f64> {
        v.iter().zip(&masses).map(|(v, mass)| if *mass > 0.0 { v / mass } else { 0.0 }).collect()
    };
    let dots = |a: &[f64], b: &[f64]| -> Vec<f64> {
        let dot = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| a * b).sum();
        a.chunks_exact(k).zip(b.chunks_exact(k)).map(dot).collect()
    };
    let mut residual = sum(lanes.iter().map(|lanes| lanes.slopes(k)).collect());
    let mut scaled = solve(&residual);
    let mut direction = scaled.clone();
    let mut change = vec![0.0; residual.len()];
    let mut lengths = dots(&residual, &scaled);
    for _ in 0..effort.steps.min(k) {
        let products = lanes.par_iter().map(|lanes| lanes.curvature(&direction, k));
        let (products, curvature): (Vec<_>, Vec<_>) = products.unzip();
        let curvature = sum(curvature);
        let along = dots(&direction, &curvature);
        // A table that has arrived takes steps of length 0.
        let ratio = |(a, b): (&f64, &f64)| if *a > 0.0 && *b > 0.0 { a / b } else { 0.0 };
        let steps: Vec<f64> = lengths.iter().zip(&along).map(ratio).collect();
        lanes.par_iter_mut().zip(&products).for_each(|(lanes, product)| lanes.move_gradient(&steps, product));
        for (i, (change, residual)) in change.iter_mut().zip(&mut residual).enumerate() {
            *change += steps[i / k] * direction[i];
            *residual -= steps[i / k] * curvature[i];
        }
        scaled = solve(&residual);
        let next = dots(&residual, &scaled);
        let turns: Vec<f64> = next.iter().zip(&lengths).map(ratio).collect();
        direction = scaled.iter().zip(&direction).enumerate().map(|(i, (s, d))| s + turns[i / k] * d).collect();
        lengths = next;
    }
    let mut out = Vec::with_capacity(tables.len());
    for (number, (table, change)) in tables.iter().zip(change.chunks_exact(k)).enumerate() {
        let moved = table.entries.iter().zip(change).map(|(entry, change)| f64::from(*entry) + change).collect();
        let moved = options.lut.store(moved)?;
        let mut order: Vec<usize> = (0..moved.len()).collect();
        order.sort_by(|&a, &b| moved[a].total_cmp(&moved[b]).then(a.cmp(&b)));
        let mut new = vec![0u8; k];
        order.iter().enumerate().for_each(|(now, &before)| new[before] = now as u8);
        lanes.iter_mut().for_each(|lanes| lanes.renumber(number, &new));
        out.push(Table::new(order.into_iter().map(|entry| moved[entry] as f32).collect()));
    }
    lanes.par_iter_mut().for_each(|lanes| match effort.exact {
        true => lanes.measure(&out),
        // What storing the entries has changed matters little to the gradient.
        false => lanes.take_errors(&out),
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrated::{DAMPING, Moments};
    use crate::test_weights::{values, with_threads};
    use crate::{Float, Nbits, PaletteMode, TableType, palettize};

    /// Inputs whose channels depend on each other, as those of models do.
    fn inputs(count: usize, size: usize) -> Vec<f32> {
        let (noise, common) = (values(count * size, 5), values(count, 6));
        (0..count * size).map(|i| noise[i] * (1.0 + (i % size % 5) as f32) + 2.0 * common[i / size]).collect()
    }

    fn options(bits: usize, group_size: usize) -> PalettizeOptions {
        let granularity = PaletteGranularity::PerGroupedChannel { axis: 0, group_size };
        let (nbits, table) = (Nbits::new(bits).unwrap(), TableType::Float);
        PalettizeOptions { nbits, mode: PaletteMode::KMeans, granularity, lut: Float::F32, table }
    }

    fn factor(inputs: &[f32], size: usize) -> Factor {
        let mut moments = Moments::new(size);
        moments.add(inputs).unwrap();
        Factor::new(&moments, DAMPING).unwrap()
    }

    fn decoded(palettized: &Palettized, rows: usize) -> Vec<f64> {
        let (codes, lut) = (palettized.indices.to_f64().unwrap(), palettized.lut.to_f64().unwrap());
        let [groups, entries] = [palettized.lut.shape()[0], palettized.lut.shape()[2]];
        let row = codes.len() / rows;
        (0..codes.len()).map(|i| lut[i / row / (rows / groups) * entries + codes[i] as usize]).collect()
    }

    /// The mean squared error of the results over the inputs, by the definition.
    fn output_error(weight: &[f32], decoded: &[f64], inputs: &[f32], size: usize) -> f64 {
        let mut sum = 0.0;
        for x in inputs.chunks_exact(size) {
            for (w, q) in weight.chunks_exact(size).zip(decoded.chunks_exact(size)) {
                let error = |((w, q), x): ((&f32, &f64), &f32)| (f64::from(*w) - q) * f64::from(*x);
                sum += w.iter().zip(q).zip(x).map(error).sum::<f64>().powi(2);
            }
        }
        sum / inputs.len() as f64
    }

    #[test]
    fn results_change_far_less_than_with_the_nearest_weights() {
        let (rows, size) = (32, 96);
        let (x, w) = (inputs(400, size), values(rows * size, 9));
        let weight = Weight::from_tensor("w", Tensor::from_vec([rows, size], w.clone()).unwrap());
        let factor = factor(&x, size);
        for bits in 1..=4 {
            let options = options(bits, 16);
            let nearest = palettize(&weight, &options).unwrap();
            let run = || palettize_calibrated(&weight, &options, [0, 1], &factor).unwrap();
            let (chosen, again) = (with_threads(1, run), with_threads(3, run));
            assert_eq!(decoded(&chosen, rows), decoded(&again, rows));
            let error = |p: &Palettized| output_error(&w, &decoded(p, rows), &x, size);
            let (chosen, nearest) = (error(&chosen), error(&nearest));
            assert!(chosen < 0.7 * nearest, "{bits} bits: {chosen} of {nearest}");
        }
    }

    #[test]
    fn small_weights_come_near_the_best_of_all_choices() {
        // 2^8 choices of indices; the best two entries for each are those of least squares.
        let size = 8;
        let (x, w) = (inputs(60, size), values(size, 21));
        let weight = Weight::from_tensor("w", Tensor::from_vec([1, size], w.clone()).unwrap());
        let chosen = palettize_calibrated(&weight, &options(1, 1), [0, 1], &factor(&x, size)).unwrap();
        let best = (0..1u32 << size).map(|choice| {
            let in_one = |i: usize| choice >> i & 1 == 1;
            // By input: what each entry is multiplied with, and what the result should be.
            let (mut aa, mut ab, mut bb, mut ay, mut by, mut yy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
            for x in x.chunks_exact(size) {
                let sum = |one: bool| (0..size).filter(|&i| in_one(i) == one).map(|i| f64::from(x[i])).sum::<f64>();
                let (a, b) = (sum(false), sum(true));
                let y: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                (aa, ab, bb) = (aa + a * a, ab + a * b, bb + b * b);
                (ay, by, yy) = (ay + a * y, by + b * y, yy + y * y);
            }
            let det = aa * bb - ab * ab;
            let gain = match det > 1e-9 * aa * bb {
                true => (ay * (ay * bb - by * ab) + by * (by * aa - ay * ab)) / det,
                false => (ay * ay / aa.max(1e-30)).max(by * by / bb.max(1e-30)),
            };
            (yy - gain) / x.len() as f64
        });
        let best = best.fold(f64::INFINITY, f64::min);
        let found = output_error(&w, &decoded(&chosen, 1), &x, size);
        assert!(found >= best * 0.999, "{found} is below the optimum, {best}");
        assert!(found < best * 1.3, "{found} of {best}");
    }

    #[test]
    fn weights_that_lie_the_other_way_give_the_same() {
        let (rows, size) = (16, 24);
        let (x, w) = (inputs(100, size), values(rows * size, 2));
        let transposed: Vec<f32> = (0..rows * size).map(|i| w[i % rows * size + i / rows]).collect();
        let factor = factor(&x, size);
        let upright = Weight::from_tensor("w", Tensor::from_vec([rows, size], w).unwrap());
        let lying = Weight::from_tensor("w", Tensor::from_vec([size, rows], transposed).unwrap());
        let a = palettize_calibrated(&upright, &options(2, 8), [0, 1], &factor).unwrap();
        let by_column = PaletteGranularity::PerGroupedChannel { axis: 1, group_size: 8 };
        let lying_options = PalettizeOptions { granularity: by_column, ..options(2, 8) };
        let b = palettize_calibrated(&lying, &lying_options, [1, 0], &factor).unwrap();
        assert_eq!(a.lut.to_f64().unwrap(), b.lut.to_f64().unwrap());
        let (a, b) = (a.indices.to_f64().unwrap(), b.indices.to_f64().unwrap());
        assert!((0..rows * size).all(|i| a[i % rows * size + i / rows] == b[i]));
        let error = palettize_calibrated(&upright, &options(2, 5), [0, 1], &factor).map(drop).unwrap_err().to_string();
        assert!(error.contains("group size 5 does not divide dimension 16"), "{error}");
    }
}
