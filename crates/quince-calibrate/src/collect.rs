//! Runs texts and adds up the second moments of what weights are multiplied with.

use crate::Texts;
use crate::statistics::{self, Layout};
use quince_compress::{Moments, weight_inputs};
use quince_engine::{Observed, Observer};
use quince_mil::Program;
use quince_runtime::{Call, Decoder, Embedder, Watch};
use quince_tensor::Result;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// How statistics are collected.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// Bytes of sums that may be in memory; where there are more, the texts are run again for the others.
    pub memory: usize,
}

impl Default for CollectOptions {
    fn default() -> CollectOptions {
        CollectOptions { memory: 1 << 30 }
    }
}

/// What can be run on tokens while somebody looks at its values.
pub trait Runner {
    /// What the values of a text count, of `tokens` tokens.
    fn weight(&self, tokens: usize) -> f32;

    /// Runs it on a text.
    ///
    /// # Errors
    /// A text that is too long; what the engine or the observer reports.
    fn observe(&mut self, tokens: &[u32], watch: &mut dyn Watch) -> Result<()>;

    /// The one call that computes a text, if there is one.
    ///
    /// # Errors
    /// A text that is too long, or tokens that there are not.
    fn call_for(&self, tokens: &[u32]) -> Result<Option<Call>>;
}

impl Runner for Decoder {
    /// Every token is predicted by itself.
    fn weight(&self, _: usize) -> f32 {
        1.0
    }

    fn observe(&mut self, tokens: &[u32], watch: &mut dyn Watch) -> Result<()> {
        Decoder::observe(self, tokens, watch)
    }

    fn call_for(&self, tokens: &[u32]) -> Result<Option<Call>> {
        Decoder::call_for(self, tokens)
    }
}

impl Runner for Embedder {
    /// Every text has one embedding, to which all of its tokens add.
    fn weight(&self, tokens: usize) -> f32 {
        1.0 / tokens.max(1) as f32
    }

    fn observe(&mut self, tokens: &[u32], watch: &mut dyn Watch) -> Result<()> {
        Embedder::observe(self, tokens, watch)
    }

    fn call_for(&self, tokens: &[u32]) -> Result<Option<Call>> {
        Embedder::call_for(self, tokens).map(Some)
    }
}

/// A function of a program, or several that belong together, and the texts that they are run on.
pub struct Run<'a> {
    /// What is run.
    pub runner: &'a mut dyn Runner,
    /// On what.
    pub texts: Texts,
}

/// Runs all texts while somebody looks. `progress` hears how many of how many were run.
pub(crate) fn observe_all(
    runs: &mut [Run],
    watch: &mut dyn Watch,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let total = runs.iter().map(|run| run.texts.windows.len()).sum();
    let mut done = 0;
    for run in runs {
        for text in &run.texts.windows {
            progress(done, total);
            run.runner.observe(text, watch)?;
            done += 1;
        }
    }
    Ok(())
}

/// Runs texts through a program and writes a file with the second moments of the inputs of all weights. `progress` hears
/// how many texts of how many were run.
///
/// # Errors
/// A program without weights that could use them; what the engine reports; a file that cannot be written.
pub fn collect(
    program: &Program,
    runs: &mut [Run],
    file: &Path,
    options: CollectOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let values = Values::of(program);
    let layout = Layout { sizes: values.sizes.clone(), weights: values.weights.clone() };
    let mut out = statistics::Writer::create(file, &layout)?;
    let passes = passes(&values.sizes, options.memory);
    let total = passes.len() * runs.iter().map(|run| run.texts.windows.len()).sum::<usize>();
    let mut done = 0;
    for wanted in &passes {
        let sums = wanted.clone().map(|group| (group, Moments::new(values.sizes[group]))).collect();
        let mut sums = Sums { values: &values, function: String::new(), scale: 1.0, sums };
        for run in runs.iter_mut() {
            for text in &run.texts.windows {
                progress(done, total);
                sums.scale = run.runner.weight(text.len()).sqrt();
                run.runner.observe(text, &mut sums)?;
                done += 1;
            }
        }
        sums.sums.values().try_for_each(|moments| out.append(moments))?;
    }
    out.finish()
}

/// Groups that fit in memory together, in order; each at least one.
fn passes(sizes: &[usize], memory: usize) -> Vec<std::ops::Range<usize>> {
    let mut passes: Vec<std::ops::Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (group, size) in sizes.iter().enumerate() {
        let needed = Moments::triangle(*size) * size_of::<f32>();
        match passes.last_mut() {
            Some(pass) if bytes + needed <= memory => (pass.end, bytes) = (group + 1, bytes + needed),
            _ => {
                passes.push(group..group + 1);
                bytes = needed;
            }
        }
    }
    passes
}

/// Which values are added up to what.
struct Values {
    /// By function and variable: the group that its channels belong to, and their axis.
    places: HashMap<String, HashMap<String, (usize, usize)>>,
    /// By group: the number of channels.
    sizes: Vec<usize>,
    /// By weight: its group.
    weights: BTreeMap<String, usize>,
}

impl Values {
    /// Weights that are multiplied with the same value share a group; so do the values that a weight is multiplied with
    /// in several functions.
    fn of(program: &Program) -> Values {
        let mut values = Values { places: HashMap::new(), sizes: Vec::new(), weights: BTreeMap::new() };
        for function in &program.functions {
            let places = values.places.entry(function.name.clone()).or_default();
            for input in weight_inputs(function) {
                let name = statistics::key(&input.weight);
                let known = values.weights.get(&name).copied();
                let group = match (known, places.get(&input.value)) {
                    (Some(group), _) => group,
                    (None, Some((group, _))) if values.sizes[*group] == input.channels => *group,
                    (None, _) => {
                        values.sizes.push(input.channels);
                        values.sizes.len() - 1
                    }
                };
                values.weights.insert(name, group);
                places.entry(input.value).or_insert((group, input.axis));
            }
        }
        values
    }
}

/// Sums while texts are run.
struct Sums<'a> {
    values: &'a Values,
    function: String,
    /// What values are multiplied with before they are squared.
    scale: f32,
    /// By group.
    sums: BTreeMap<usize, Moments>,
}

impl Watch for Sums<'_> {
    fn enter(&mut self, function: &str) {
        function.clone_into(&mut self.function);
    }
}

impl Observer for Sums<'_> {
    fn value(&mut self, value: &Observed) -> Result<()> {
        let Some((group, axis)) = self.values.places.get(&self.function).and_then(|places| places.get(value.name))
        else {
            return Ok(());
        };
        let Some(moments) = self.sums.get_mut(group) else { return Ok(()) };
        if value.shape.get(*axis) != Some(&moments.size()) {
            return Ok(());
        }
        let inner: usize = value.shape[axis + 1..].iter().product();
        moments.add(&channels_last(value.tensor()?.to_f32()?, moments.size(), inner, self.scale))
    }
}

/// The channels of each position one after the other, all times `scale`.
pub(crate) fn channels_last(mut elements: Vec<f32>, channels: usize, inner: usize, scale: f32) -> Vec<f32> {
    if scale != 1.0 {
        elements.iter_mut().for_each(|x| *x *= scale);
    }
    if inner == 1 {
        return elements;
    }
    let mut out = Vec::with_capacity(elements.len());
    for block in elements.chunks_exact(channels * inner) {
        for position in 0..inner {
            out.extend((0..channels).map(|channel| block[channel * inner + position]));
        }
    }
    out
}
