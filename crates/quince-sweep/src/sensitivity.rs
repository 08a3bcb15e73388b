//! What is lost when a weight alone is compressed, for each way to do it.
//!
//! Running the model is what costs, so it is run for some ways only: for each weight on its own where that is affordable,
//! else for weights of neighbouring layers together; for all widths of one granularity, or for two. What lies between is
//! read off the line through the measured points over the squared error of the weight itself, both as logarithms: the
//! loss grows with the error of the results, and that with the error of the weight.

use crate::{Judge, Measure};
use quince_compress::{
    Axes, Component, Float, Guide, OptimizationConfig, PaletteGranularity, PalettizeOptions, Rule, Scheme, Selector,
    compress, compress_guided, layer_of, palettize,
};
use quince_mil::{Program, Result, Tensor, Weight};
use quince_tensor::Bytes;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Elements of a weight that its squared error is taken of, about: enough for the error of the whole.
const SAMPLE: usize = 1 << 19;
/// Rows that are taken together, which is a multiple of every group of channels.
const SAMPLE_ROWS: usize = 64;
/// Losses below this are noise of rounding.
const NO_LOSS: f64 = 1e-9;

/// A weight that may be compressed, and what each way makes of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The name that rules go by.
    pub name: String,
    /// The weights of this name: one, unless functions have different ones.
    pub weights: Vec<(Weight, Axes)>,
    /// By scheme: bytes, tables included; none where the weight cannot take it.
    pub bytes: Vec<Option<u64>>,
}

impl Candidate {
    /// Its elements.
    pub fn elements(&self) -> u64 {
        self.weights.iter().map(|(weight, _)| weight.len() as u64).sum()
    }

    /// Its bytes if it is not compressed.
    pub fn dense_bytes(&self) -> u64 {
        self.weights.iter().map(|(weight, _)| weight.byte_len() as u64).sum()
    }

    /// Its bytes in one of its forms, of which the last is not to be compressed.
    pub fn bytes_of(&self, pick: usize) -> u64 {
        self.bytes.get(pick).copied().flatten().unwrap_or(self.dense_bytes())
    }
}

/// The weights that one of the schemes could compress, in the order of the program.
///
/// # Errors
/// When none of them can take any scheme; the reason is that of the first.
pub fn candidates(program: &Program, schemes: &[Scheme]) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused = None;
    for (number, &scheme) in schemes.iter().enumerate() {
        let report = match compress(&mut program.clone(), &OptimizationConfig::all(scheme)) {
            Ok(report) => report,
            Err(error) => {
                refused.get_or_insert(error);
                continue;
            }
        };
        for touched in report.weights {
            let place = *places.entry(touched.name.clone()).or_insert_with(|| {
                let bytes = vec![None; schemes.len()];
                found.push(Candidate { name: touched.name.clone(), weights: Vec::new(), bytes });
                found.len() - 1
            });
            let candidate = &mut found[place];
            if candidate.weights.iter().all(|(weight, _)| weight.id() != touched.weight.id()) {
                candidate.weights.push((touched.weight, touched.axes));
            }
            *candidate.bytes[number].get_or_insert(0) += touched.bytes_after as u64;
        }
    }
    match (found.is_empty(), refused) {
        (true, Some(error)) => Err(error),
        _ => Ok(found),
    }
}

/// How often the model may be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Runs over all texts.
    pub runs: usize,
}

impl Effort {
    /// As often as takes some minutes for a billion parameters, and for all weights of a small model on its own: 5e13
    /// multiplications, but 32 runs at least and 128 at most.
    pub fn of(parameters: u64, tokens: usize) -> Effort {
        let run = parameters.max(1) as f64 * tokens.max(1) as f64;
        Effort { runs: (5e13 / run).clamp(32.0, 128.0) as usize }
    }
}

/// What is lost.
#[derive(Clone, Debug)]
pub struct Sensitivities {
    /// By candidate, by scheme: the expected loss ([`Measure::loss`]); none where the weight cannot take the scheme.
    pub losses: Vec<Vec<Option<f64>>>,
    /// What was run: names of the weights that were compressed, how, and what came of it.
    pub measured: Vec<Measured>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The numbers of the candidates that were compressed.
    pub candidates: Vec<usize>,
    /// How.
    pub scheme: Scheme,
    /// What came of it.
    pub measure: Measure,
}

impl Sensitivities {
    /// What parts of the model lose by one scheme: as many parts as the effort allows runs, weights or neighbouring layers.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn of_parts(
        (program, judge, guide): (&Program, &Judge, Option<&Arc<dyn Guide>>),
        candidates: &[Candidate],
        scheme: Scheme,
        effort: Effort,
    ) -> Result<Vec<Measured>> {
        let (units, _) = plan(candidates, &[scheme], &[0], scheme.bits(), effort);
        let run = |unit: Vec<usize>| {
            let measure = alone((program, judge, guide), candidates, &unit, scheme)?;
            Ok(Measured { candidates: unit, scheme, measure })
        };
        units.into_iter().map(run).collect()
    }

    /// What is known without running the model: the squared error of each weight beside its squares.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn of_weights(candidates: &[Candidate], schemes: &[Scheme]) -> Result<Sensitivities> {
        let losses: Vec<Vec<Option<f64>>> =
            candidates.par_iter().map(|candidate| relative_errors(candidate, schemes)).collect::<Result<_>>()?;
        Ok(Sensitivities { losses, measured: Vec::new() })
    }

    /// Measures them. `rungs` are the numbers of the schemes that may be run, from few bits to many; `focus` is the
    /// number of bits around which exactness matters.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn measure(
        (program, judge, guide): (&Program, &Judge, Option<&Arc<dyn Guide>>),
        candidates: &[Candidate],
        (schemes, rungs, focus): (&[Scheme], &[usize], f64),
        effort: Effort,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Sensitivities> {
        let (units, rungs) = plan(candidates, schemes, rungs, focus, effort);
        let errors = Sensitivities::of_weights(candidates, schemes)?.losses;
        let mut found =
            Sensitivities { losses: vec![vec![None; schemes.len()]; candidates.len()], measured: Vec::new() };
        let total = units.len() * rungs.len();
        for unit in &units {
            let mut curve = Curve::default();
            for &rung in &rungs {
                progress(found.measured.len(), total);
                let able: Vec<usize> = unit.iter().copied().filter(|&i| candidates[i].bytes[rung].is_some()).collect();
                if able.is_empty() {
                    continue;
                }
                let measure = alone((program, judge, guide), candidates, &able, schemes[rung])?;
                let error: f64 = able.iter().filter_map(|&i| errors[i][rung]).sum();
                curve.add(error, measure.loss());
                found.measured.push(Measured { candidates: able, scheme: schemes[rung], measure });
            }
            curve.finish();
            let sum = |scheme: usize| unit.iter().filter_map(|&i| errors[i][scheme]).sum();
            let sums: Vec<f64> = (0..schemes.len()).map(sum).collect();
            for &i in unit {
                let share = |error: f64, sum: f64| if sum > 0.0 { error / sum } else { 0.0 };
                let lost = |(error, sum): (&Option<f64>, &f64)| error.map(|error| curve.at(*sum) * share(error, *sum));
                found.losses[i] = errors[i].iter().zip(&sums).map(lost).collect();
            }
        }
        progress(total, total);
        Ok(found)
    }
}

/// A run with some weights compressed and the others as they are.
fn alone(
    (program, judge, guide): (&Program, &Judge, Option<&Arc<dyn Guide>>),
    candidates: &[Candidate],
    chosen: &[usize],
    scheme: Scheme,
) -> Result<Measure> {
    let rule = |&i: &usize| Rule { selector: Selector::Name(candidates[i].name.clone()), scheme: Some(scheme) };
    let config = OptimizationConfig { rules: chosen.iter().map(rule).collect(), weight_threshold: 0 };
    let mut program = program.clone();
    compress_guided(&mut program, &config, guide.cloned())?;
    judge.judge(program)
}

/// Which weights are measured together, and at which rungs: as finely as the effort allows.
fn plan(
    candidates: &[Candidate],
    schemes: &[Scheme],
    rungs: &[usize],
    focus: f64,
    effort: Effort,
) -> (Vec<Vec<usize>>, Vec<usize>) {
    let all: Vec<Vec<usize>> = (0..candidates.len()).map(|i| vec![i]).collect();
    // Few weights get less than half or more than twice the bits of the mean.
    let usual = |rung: &&usize| (focus / 2.0..=focus * 2.0).contains(&schemes[**rung].bits());
    let usual: Vec<usize> = rungs.iter().filter(usual).copied().collect();
    let rungs = if usual.len() < 2 { rungs } else { &usual };
    if all.len() * rungs.len() <= effort.runs {
        return (all, rungs.to_vec());
    }
    let mut near = rungs.to_vec();
    let distance = |rung: &usize| (schemes[*rung].bits() - focus).abs();
    near.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    near.truncate(2);
    near.sort_unstable();
    if all.len() * near.len() <= effort.runs {
        return (all, near);
    }
    let mut width = 1;
    loop {
        let mut units: BTreeMap<(Component, Option<usize>), Vec<usize>> = BTreeMap::new();
        for (i, candidate) in candidates.iter().enumerate() {
            let layer = layer_of(&candidate.name).map(|layer| layer / width);
            units.entry((Component::of(&candidate.name), layer)).or_default().push(i);
        }
        let layers = units.keys().any(|(_, layer)| layer.is_some_and(|layer| layer > 0));
        if units.len() * near.len() <= effort.runs || !layers {
            return (units.into_values().collect(), near);
        }
        width *= 2;
    }
}

/// By scheme: the squared error relative to the squares of the weight, summed over the weights of a name.
fn relative_errors(candidate: &Candidate, schemes: &[Scheme]) -> Result<Vec<Option<f64>>> {
    let samples: Vec<(Weight, Axes)> =
        candidate.weights.iter().map(|(weight, axes)| Ok((sample(weight, *axes)?, *axes))).collect::<Result<_>>()?;
    let error = |(&scheme, bytes): (&Scheme, &Option<u64>)| -> Result<Option<f64>> {
        let Some(_) = bytes else { return Ok(None) };
        let errors = samples.iter().map(|(weight, axes)| relative_error(weight, *axes, scheme));
        errors.sum::<Result<f64>>().map(Some)
    };
    schemes.iter().zip(&candidate.bytes).map(error).collect()
}

fn relative_error(weight: &Weight, axes: Axes, scheme: Scheme) -> Result<f64> {
    // Each bit halves the distance between the values that there are.
    let guess = 4f64.powf(-scheme.bits());
    let Scheme::Palette(palette) = scheme else { return Ok(guess) };
    let granularity = palette.group_size.map_or(PaletteGranularity::PerTensor, |group_size| {
        PaletteGranularity::PerGroupedChannel { axis: axes.output, group_size }
    });
    let lut = Float::of_weight(weight.dtype())?;
    let options = PalettizeOptions { nbits: palette.nbits, mode: palette.mode, granularity, lut, table: palette.table };
    let energy: f64 = weight.load()?.to_f32()?.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    Ok(palettize(weight, &options)?.sse / energy.max(f64::MIN_POSITIVE))
}

/// Some blocks of rows from all over a large weight; a small one itself.
fn sample(weight: &Weight, axes: Axes) -> Result<Weight> {
    let rows = weight.shape().first().copied().unwrap_or(0);
    let blocks = rows / SAMPLE_ROWS;
    let wanted = (SAMPLE * rows / weight.len().max(1) / SAMPLE_ROWS).max(1);
    if axes.output != 0 || blocks <= wanted {
        return Ok(weight.clone());
    }
    let whole = if weight.streams() { None } else { Some(weight.load()?) };
    let mut bytes = Vec::new();
    for i in 0..wanted {
        let start = i * blocks / wanted * SAMPLE_ROWS;
        let range = start..start + SAMPLE_ROWS;
        let block = whole.as_ref().map_or_else(|| weight.rows(range.clone()), |whole| whole.rows(range.clone()))?;
        bytes.extend_from_slice(block.bytes());
    }
    let mut shape = weight.shape().to_vec();
    shape[0] = wanted * SAMPLE_ROWS;
    Ok(Weight::from_tensor(weight.name(), Tensor::new(weight.dtype(), shape, Bytes::from_vec(bytes))?))
}

/// A loss over an error, both as logarithms: straight lines between points, and beyond them proportional.
#[derive(Default)]
struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    fn add(&mut self, error: f64, loss: f64) {
        self.points.push((error.max(f64::MIN_POSITIVE).ln(), loss.max(NO_LOSS).ln()));
    }

    /// More error is never less loss: where it seems so, it was chance.
    fn finish(&mut self) {
        self.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        for i in 1..self.points.len() {
            self.points[i].1 = self.points[i].1.max(self.points[i - 1].1);
        }
    }

    fn at(&self, error: f64) -> f64 {
        let x = error.max(f64::MIN_POSITIVE).ln();
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return error };
        if error <= 0.0 {
            return 0.0;
        }
        if x <= first.0 {
            return (first.1 + x - first.0).exp();
        }
        let between = self.points.windows(2).find(|pair| x <= pair[1].0);
        let y = match between {
            Some([a, b]) if b.0 > a.0 => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
            Some([_, b]) => b.1,
            _ => last.1 + x - last.0,
        };
        y.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_its_points_and_on() {
        let mut curve = Curve::default();
        for (error, loss) in [(0.01, 0.1), (0.1, 10.0), (0.0001, 0.2)] {
            curve.add(error, loss);
        }
        curve.finish();
        let near = |error: f64, expected: f64| {
            let found = curve.at(error);
            assert!((found / expected - 1.0).abs() < 1e-9, "at {error}: found {found}, expected {expected}");
        };
        near(0.0001, 0.2);
        near(0.01, 0.2);
        near(0.1, 10.0);
        near(0.2, 20.0);
        near(0.00005, 0.1);
        near(0.01f64.sqrt() * 0.1f64.sqrt(), 2f64.sqrt());
        assert_eq!(curve.at(0.0), 0.0);
        assert_eq!(Curve::default().at(0.5), 0.5);
    }

    #[test]
    fn effort_falls_with_the_size_of_the_model() {
        assert_eq!(Effort::of(1_500_000, 2048).runs, 128);
        assert_eq!(Effort::of(1_000_000_000, 512).runs, 97);
        assert_eq!(Effort::of(70_000_000_000, 512).runs, 32);
    }
}
