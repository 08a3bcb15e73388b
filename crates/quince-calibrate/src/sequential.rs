//! Compresses weights in the order in which a model uses them, each for the inputs that those before it have left.
//!
//! ```text
//! original    x₁ ──▶ x₂ ──▶ x₃ ──▶ ...      the values that weights are multiplied with
//! compressed  y₁ ──▶ y₂ ──▶ y₃ ──▶ ...      the same, of what is compressed so far
//!             │      │
//!             ▼      ▼
//!             W₁     W₂ ...                 nearest to what W makes of x, for y; then compressed
//! ```
//! Both programs are run at once, on all texts, from one such value to the next: a model is run twice, however many layers
//! it has (three times where a table of embeddings is also the head: it comes first), and no more of it is in memory than is
//! run. What each weight aims for is that of [`quince_compress::aimed`]. Compressed weights are in a file from then on.
//!
//! A text has to be one call, so that all of its values are there before the next weight is compressed; and a weight that is
//! multiplied with several values has no turn. Where that does not hold [`compress_sequentially`] does nothing.

mod plan;
mod segments;
mod spool;
mod turns;

use crate::statistics::key;
use crate::{Run, Runner};
use plan::{Group, Plan, Residual, Text};
use quince_compress::{Cross, Moments, Multiplier, OptimizationConfig, Report, compress_guided, graft};
use quince_engine::{Engine, Observed, Observer, Options, Tensors};
use quince_mil::{Arg, Program};
use quince_runtime::Watch;
use quince_tensor::{Error, Result, Tensor, Weight};
use segments::Segment;
use spool::Spool;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use turns::{Turn, Turns};

/// How much of what was lost of the residual stream the weights make up for that add to it. All of it is best where much is
/// lost, and follows chance where little is.
const RESIDUAL: f32 = 0.5;
/// Channels from which on it takes long to run a model.
const LARGE: usize = 1024;
/// Tokens for each channel that are enough to know what a table is multiplied with that is also looked up in; at least one in
/// as many texts is read.
const ENOUGH: usize = 4;
/// Tokens whose values are summed together.
const BATCH: usize = 2048;
/// How far values may be from those of the whole function, relative to their norm, where states are cut.
const SAME: f64 = 0.05;

/// How programs are compressed sequentially.
#[derive(Clone, Debug)]
pub struct SequentialOptions<'a> {
    /// Where the file is that weights are in until the program is gone.
    pub directory: &'a Path,
    /// How programs are run.
    pub engine: Options,
}

/// Compresses a program as [`compress_guided`] does, its weights one after the other. `runs` are of `run_on`, a program with
/// the same weights, or of the program itself. `progress` hears how many steps of how many were done.
///
/// Nothing is done and nothing returned where the program does not allow it.
///
/// # Errors
/// As [`compress_guided`]; what the engine reports; a file that cannot be written.
pub fn compress_sequentially(
    program: &mut Program,
    run_on: Option<&Program>,
    runs: &mut [Run],
    config: &OptimizationConfig,
    options: &SequentialOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Option<Report>> {
    let original = run_on.unwrap_or(program);
    let Some(mut plans) =
        runs.iter().map(|run| Plan::of(original, run, &options.engine)).collect::<Result<Option<Vec<_>>>>()?
    else {
        return Ok(None);
    };
    let known: Vec<&str> = plans.iter().flat_map(Plan::weights).collect();
    let distinct: HashSet<String> = known.iter().map(|name| key(name)).collect();
    // Runs with weights in common would each compress them for themselves.
    if distinct.len() < known.len() || distinct.is_empty() {
        return Ok(None);
    }
    let turns = Turns::new(distinct);
    let mut out = program.clone();
    let report = compress_guided(&mut out, config, Some(Arc::new(turns.clone())))?;
    let spool = Spool::create(options.directory)?;
    let kept = keep(program, &mut out, &spool);
    let compressed = match run_on {
        None => out.clone(),
        Some(run_on) => {
            let mut compressed = run_on.clone();
            let result = compress_guided(&mut compressed, config, Some(Arc::new(turns.clone())));
            // A rule or a weight that only one of them has.
            if result.and_then(|_| graft(&mut compressed, &out)).is_err() {
                return Ok(None);
            }
            compressed
        }
    };
    plans.iter_mut().for_each(|plan| plan.retain(&kept));
    let total = plans.iter().map(|plan| plan.groups.len() + plan.tied.len()).sum();
    let mut done = 0;
    let mut step = || {
        progress(done, total);
        done += 1;
    };
    for (plan, run) in plans.iter().zip(runs) {
        let stage = Stage { turns: &turns, kept: &kept, options };
        if !stage.tied(plan, original, &mut step)?
            || !stage.sequence(plan, run.runner, [original, &compressed], &mut step)?
        {
            return Ok(None);
        }
    }
    *program = out;
    Ok(Some(report))
}

/// Puts weights that are computed once in the place of the compressed ones, and tells which there are by weight.
fn keep(before: &Program, after: &mut Program, spool: &Arc<Spool>) -> HashMap<String, Vec<Weight>> {
    let mut by_id: HashMap<usize, Weight> = HashMap::new();
    let mut found: HashMap<String, Vec<Weight>> = HashMap::new();
    for (before, after) in before.functions.iter().zip(&mut after.functions) {
        let constants = before.block.operations.iter().filter_map(|operation| {
            let var = *operation.outputs.first()?;
            Some((var, key(operation.constant()?.weight(&before.var(var).name)?.name())))
        });
        let constants: HashMap<_, _> = constants.collect();
        // A chain of operations ends with the variable that the constant had.
        let mut chain: Vec<Weight> = Vec::new();
        for operation in &mut after.block.operations {
            if !operation.op_name().starts_with("constexpr_") {
                continue;
            }
            for arg in operation.inputs.iter_mut().flat_map(|(_, args)| args) {
                let Arg::Value(value) = arg else { continue };
                let Some(weight) = value.weight(&operation.name) else { continue };
                let kept = by_id.entry(weight.id()).or_insert_with(|| spool.keep(&weight)).clone();
                *value = kept.clone().into();
                chain.push(kept);
            }
            if let Some(weight) = operation.outputs.first().and_then(|var| constants.get(var)) {
                found.entry(weight.clone()).or_insert_with(|| std::mem::take(&mut chain));
                chain.clear();
            }
        }
    }
    found
}

/// What the steps have in common.
struct Stage<'a> {
    turns: &'a Turns,
    kept: &'a HashMap<String, Vec<Weight>>,
    options: &'a SequentialOptions<'a>,
}

impl Stage<'_> {
    /// Compresses the weights that rows are also looked up in, by what the original multiplies them with; false if it
    /// cannot be cut.
    fn tied(&self, plan: &Plan, original: &Program, step: &mut dyn FnMut()) -> Result<bool> {
        if plan.tied.is_empty() {
            return Ok(true);
        }
        // Pieces that end before: no more of the model is in memory than one of them.
        let mut groups: Vec<(&Group, bool)> = plan.groups.iter().map(|group| (group, false)).collect();
        groups.extend(plan.tied.iter().map(|group| (group, true)));
        groups.sort_by_key(|(group, _)| group.at);
        let cuts: Vec<&Group> = groups.iter().map(|(group, _)| *group).collect();
        let Some(pieces) = plan.pieces(&cuts, original, &self.options.engine)? else { return Ok(false) };
        // All channels count besides what is known of them, so that of a large model a part of the texts tells enough.
        let channels = plan.tied.iter().map(|group| group.channels).max().unwrap_or(1);
        let tokens: usize = plan.texts.iter().map(|text| text.tokens.len()).sum();
        let every = if channels < LARGE { 1 } else { (tokens / (ENOUGH * channels)).clamp(1, ENOUGH) };
        let mut course = Course::new(plan.texts.iter().step_by(every), pieces);
        for (number, (group, is_tied)) in groups.into_iter().enumerate() {
            course.advance(number, &self.options.engine)?;
            if !is_tied {
                course.forget(number);
                continue;
            }
            step();
            let mut moments = Moments::new(group.channels);
            for texts in course.batches() {
                moments.add(&course.rows(texts, &group.value, group.axis, group.channels)?)?;
            }
            course.forget(number);
            self.turn(group.members.iter().map(|member| (key(member.weight.name()), None)).collect(), moments, None)?;
        }
        Ok(true)
    }

    /// Compresses all others in turn; false if the program cannot be cut.
    fn sequence(
        &self,
        plan: &Plan,
        runner: &mut dyn Runner,
        programs: [&Program; 2],
        step: &mut dyn FnMut(),
    ) -> Result<bool> {
        let engine = &self.options.engine;
        let cuts: Vec<&Group> = plan.groups.iter().collect();
        let pieces = |program| plan.pieces(&cuts, program, engine);
        let [Some(original), Some(compressed)] = [pieces(programs[0])?, pieces(programs[1])?] else {
            return Ok(plan.groups.is_empty());
        };
        // One that no padding is in.
        let checked = plan.texts.iter().position(|text| text.tokens.len() == text.length).unwrap_or(0);
        let whole = self.whole(plan, &plan.texts[checked], runner, programs[0])?;
        let [mut of_original, mut of_compressed] =
            [original, compressed].map(|pieces| Course::new(plan.texts.iter(), pieces));
        for (number, group) in plan.groups.iter().enumerate() {
            step();
            of_original.advance(number, engine)?;
            if let Some(expected) = whole.as_ref().and_then(|whole| whole.get(&group.value))
                && !is_near(of_original.get(checked, &group.value)?, expected)?
            {
                return Ok(false);
            }
            of_compressed.advance(number, engine)?;
            let n = group.channels;
            let (mut moments, mut sums) = (Moments::new(n), Sums::of(group)?);
            for texts in of_original.batches() {
                let rows =
                    |of: &Course, value: &str, channels: usize| of.rows(texts.clone(), value, group.axis, channels);
                let inputs = rows(&of_compressed, &group.value, n)?;
                moments.add(&inputs)?;
                let lost_inputs = lost(rows(&of_original, &group.value, n)?, &inputs);
                if let Some(sums) = &mut sums.inputs {
                    sums.add(&lost_inputs, &inputs)?;
                }
                for Results { residual: Residual { value, rows: height }, multiplier, sums, .. } in &mut sums.results {
                    let mut lost = lost(rows(&of_original, value, *height)?, &rows(&of_compressed, value, *height)?);
                    lost.iter_mut().for_each(|lost| *lost *= RESIDUAL);
                    multiplier.add(&lost_inputs, &mut lost)?;
                    sums.add(&lost, &inputs)?;
                }
            }
            of_original.forget(number);
            of_compressed.forget(number);
            let mut results: HashMap<String, Cross> =
                sums.results.into_iter().map(|Results { weight, sums, .. }| (weight, sums)).collect();
            let names = group.members.iter().map(|member| key(member.weight.name()));
            let members = names.map(|weight| (weight.clone(), results.remove(&weight))).collect();
            self.turn(members, moments, sums.inputs)?;
        }
        Ok(true)
    }

    /// Compresses some weights, by what is known now.
    fn turn(&self, weights: HashMap<String, Option<Cross>>, moments: Moments, inputs: Option<Cross>) -> Result<()> {
        let names: Vec<String> = weights.keys().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        self.turns.set(Some(Turn::new(weights, moments, inputs)));
        let parts = names.iter().filter_map(|name| self.kept.get(name)).flatten();
        let result = parts.into_iter().try_for_each(|part| part.load().map(drop));
        self.turns.set(None);
        result
    }

    /// The values of a text in the whole function, where it has states: those must not be in the way.
    fn whole(
        &self,
        plan: &Plan,
        text: &Text,
        runner: &mut dyn Runner,
        original: &Program,
    ) -> Result<Option<HashMap<String, Tensor>>> {
        let (name, _) = &plan.variants[text.variant];
        if original.function(name)?.states().next().is_none() || text.tokens.len() != text.length {
            return Ok(None);
        }
        let names = plan.groups.iter().map(|group| group.value.clone()).collect();
        let mut seen = Seen { names, values: HashMap::new() };
        runner.observe(&text.tokens, &mut seen)?;
        Ok(Some(seen.values))
    }
}

/// What was lost of what the weights of a group take and give.
struct Sums<'a> {
    /// Of their inputs, if they add to nothing.
    inputs: Option<Cross>,
    results: Vec<Results<'a>>,
}

/// What was lost of the results of a weight, and of what they are added to.
struct Results<'a> {
    weight: String,
    residual: &'a Residual,
    multiplier: Multiplier,
    sums: Cross,
}

impl Sums<'_> {
    fn of(group: &Group) -> Result<Sums<'_>> {
        let results = group.members.iter().filter_map(|member| Some((member, member.residual.as_ref()?)));
        let results = results.map(|(member, residual)| {
            let multiplier = Multiplier::new(&member.weight, member.axes)?;
            let sums = Cross::new(residual.rows, group.channels);
            Ok(Results { weight: key(member.weight.name()), residual, multiplier, sums })
        });
        let results = results.collect::<Result<Vec<Results>>>()?;
        let inputs = (results.len() < group.members.len()).then(|| Cross::new(group.channels, group.channels));
        Ok(Sums { inputs, results })
    }
}

/// Keeps some values of a call.
struct Seen {
    names: HashSet<String>,
    values: HashMap<String, Tensor>,
}

impl Watch for Seen {
    fn enter(&mut self, _: &str) {}
}

impl Observer for Seen {
    fn value(&mut self, value: &Observed) -> Result<()> {
        if self.names.contains(value.name) {
            self.values.insert(value.name.to_owned(), value.tensor()?);
        }
        Ok(())
    }
}

/// Whether two tensors are the same but for rounding.
fn is_near(found: &Tensor, expected: &Tensor) -> Result<bool> {
    let [found, expected] = [found.to_f32()?, expected.to_f32()?];
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let error = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
    Ok(found.len() == expected.len() && error <= SAME.powi(2) * square(&mut expected.iter().copied()))
}

/// What was lost of a value.
fn lost(mut original: Vec<f32>, compressed: &[f32]) -> Vec<f32> {
    original.iter_mut().zip(compressed).for_each(|(original, compressed)| *original -= compressed);
    original
}

/// A program that is run on all texts at once, piece by piece.
struct Course<'a> {
    /// By variant.
    pieces: Vec<Vec<Segment>>,
    /// Each text with those of its values that are still needed.
    texts: Vec<(&'a Text, Tensors)>,
}

impl<'a> Course<'a> {
    /// At the beginning.
    fn new(texts: impl Iterator<Item = &'a Text>, pieces: Vec<Vec<Segment>>) -> Self {
        Course { pieces, texts: texts.map(|text| (text, text.inputs.clone())).collect() }
    }

    /// Runs the piece that ends with the value of a group.
    fn advance(&mut self, number: usize, options: &Options) -> Result<()> {
        let mut functions = Vec::new();
        for (variant, pieces) in self.pieces.iter_mut().enumerate() {
            let Some(mut function) = pieces[number].function.take() else { continue };
            function.name = variant.to_string();
            functions.push(function);
        }
        if functions.is_empty() {
            return Ok(());
        }
        let engine = Engine::load(Program { functions, ..Program::default() }, options.clone())?;
        for (text, values) in &mut self.texts {
            let name = text.variant.to_string();
            let Some(function) = engine.program().functions.iter().find(|function| function.name == name) else {
                continue;
            };
            let inputs = function.inputs.iter().filter_map(|input| {
                let name = &function.var(input.var).name;
                Some((name.clone(), values.get(name)?.clone()))
            });
            let inputs: Tensors = inputs.collect();
            values.extend(engine.predict(&name, &inputs, &mut engine.new_state()?)?);
        }
        Ok(())
    }

    /// Drops what no piece after this one needs.
    fn forget(&mut self, number: usize) {
        for (text, values) in &mut self.texts {
            for name in &self.pieces[text.variant][number].done {
                values.remove(name);
            }
        }
    }

    fn get(&self, text: usize, value: &str) -> Result<&Tensor> {
        self.texts[text].1.get(value).ok_or_else(|| Error::new(format!("the value `{value}` was not computed")))
    }

    /// Texts whose values are summed together: sums as large as the square of the channels are gone through once for each.
    fn batches(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let longest = self.texts.iter().map(|(text, _)| text.length).max().unwrap_or(1);
        let (count, size) = (self.texts.len(), (BATCH / longest.max(1)).max(1));
        (0..count).step_by(size).map(move |first| first..count.min(first + size))
    }

    /// A value of some texts, a row for each token.
    fn rows(&self, texts: Range<usize>, value: &str, axis: usize, channels: usize) -> Result<Vec<f32>> {
        let rows = texts.map(|text| self.texts[text].0.rows(self.get(text, value)?, axis, channels));
        Ok(rows.collect::<Result<Vec<_>>>()?.concat())
    }
}
