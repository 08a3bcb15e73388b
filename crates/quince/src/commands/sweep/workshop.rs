//! What the jobs of a sweep share: the converted model, and the uncompressed one that others are judged by.

use super::Args;
use super::plan::{Plan, Variant};
use crate::bundling;
use crate::console::Console;
use crate::failure::{Failure, Result, refused};
use crate::loading;
use crate::options::calibration::Calibration;
use quince_calibrate::Texts;
use quince_checkpoint::Checkpoint;
use quince_compress::{Component, OptimizationConfig, compress_guided, graft, layer_of};
use quince_convert::lower::KvCache;
use quince_convert::{FunctionName, Options as Conversion, convert};
use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_mlpackage::Package;
use quince_runtime::{Decoder, LanguageModel};
use quince_sweep::{Effort, Judge, Outcome, PartLoss, Sensitivities, candidates};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most logits of the uncompressed model that are kept: one gibibyte of them.
const MOST_LOGITS: usize = 1 << 28;
/// Tokens that are decoded to see how fast that is.
const DECODED: usize = 24;
/// The most parameters of a model of which several variants are made at a time, and how many.
const SMALL: u64 = 100_000_000;
const WORKERS: usize = 2;
/// How often the model is run to see what its parts lose, at most.
const PART_RUNS: usize = 24;

/// What the jobs of a sweep share.
pub struct Workshop<'a> {
    args: &'a Args,
    workers: usize,
    /// The program of the packages, not compressed.
    program: Program,
    /// The same weights in a function without a cache.
    full: Program,
    judge: Judge,
    calibration: Option<Calibration<'a>>,
    options: Options,
    /// What is decoded to see how fast that is.
    text: Vec<u32>,
}

impl<'a> Workshop<'a> {
    /// Converts the model and runs it as it is.
    ///
    /// # Errors
    /// A model that is no decoder or has no tokenizer; what the engine reports.
    pub fn open(args: &'a Args, plan: &Plan, model: &Path, console: &Console) -> Result<Workshop<'a>> {
        let checkpoint = Checkpoint::open(model)?;
        let Some(tokenizer) = loading::tokenizer_of(&checkpoint)? else {
            return Err(Failure::usage("found no tokenizer.json beside the model, expected one for the text"));
        };
        let conversion =
            Conversion { context: args.context, units: args.compute_units.into(), ..Conversion::default() };
        let full = Conversion { functions: vec![FunctionName::Full], kv_cache: KvCache::None, ..conversion.clone() };
        let full =
            convert(&checkpoint, &full).map_err(|e| e.hint("a sweep is for models that continue texts"))?.program;
        let program = convert(&checkpoint, &conversion)?.program;
        let workers = if checkpoint.parameters() <= SMALL { WORKERS.min(console.threads()) } else { 1 };
        let threads = (console.threads() / workers).max(1);
        let options = Options { threads, precision: Precision::Default, limits: console.limits() };
        let decoder = Decoder::new(Arc::new(Engine::load(full.clone(), options.clone())?))?;
        let tokens = args.tokens.min(MOST_LOGITS / decoder.vocab_size().max(1)).max(2);
        let length = args.length.min(decoder.context());
        let texts = Texts::of_text(&plan.content, &tokenizer, length, tokens).map_err(|e| e.at(&plan.text))?;
        drop(decoder);
        let text = texts.windows.first().cloned().unwrap_or_default();
        let calibration = args.calibration.of(|| Ok(Some(tokenizer)), &args.output)?;
        let judge = Judge::new(full.clone(), texts.windows, options.clone())?;
        Ok(Workshop { args, workers, program, full, judge, calibration, options, text })
    }

    /// How many jobs run at a time.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Compresses, writes, reads back and judges a variant.
    ///
    /// # Errors
    /// What the scheme cannot do with the model; what the system refuses.
    pub fn variant(&self, variant: &Variant, console: &Console) -> Result<Outcome> {
        let start = Instant::now();
        let path = self.args.output.join(format!("{}.mlpackage", variant.name));
        let (package, full) =
            (Package::new(self.compressed(variant, console)?), self.plainly_compressed(&self.full, variant)?);
        let written = bundling::write_package(&package, &path, console)?;
        let shipped = Package::read(&path)?.program;
        let quality = match variant.scheme {
            None => self.judge.own().text()?,
            Some(_) => {
                let mut full = full;
                graft(&mut full, &shipped)?;
                self.judge.judge(full)?.text()?
            }
        };
        let decode_ms = self.decode(shipped)?.map(|time| time.as_secs_f64() * 1e3);
        let package_bytes = bytes_below(&path)?;
        if self.args.discard_packages {
            fs::remove_dir_all(&path).map_err(|e| refused("remove", &path, &e))?;
        }
        Ok(Outcome {
            name: variant.name.clone(),
            scheme: variant.scheme.map_or("float16".to_owned(), |scheme| scheme.to_string()),
            bits: variant.scheme.map_or(16.0, |scheme| scheme.bits()),
            family: variant.family.clone(),
            package_bytes,
            weight_bytes: written.weight_bytes,
            quality,
            decode_ms,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// What parts of the model lose by the way with the fewest bits.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn parts(&self, plan: &Plan, console: &Console) -> Result<Vec<PartLoss>> {
        let Some(scheme) = plan.smallest() else { return Ok(Vec::new()) };
        let weights = candidates(&self.full, &[scheme])?;
        let guide = |calibration: &Calibration| calibration.guide(&self.program, Some(&self.full), console);
        let guide = self.calibration.as_ref().map(guide).transpose()?;
        let shared = (&self.full, &self.judge, guide.as_ref());
        let found = Sensitivities::of_parts(shared, &weights, scheme, Effort { runs: PART_RUNS })?;
        let name = |i: &usize| weights[*i].name.as_str();
        let mut parts: Vec<(Option<usize>, PartLoss)> = found
            .iter()
            .map(|run| {
                let names: Vec<&str> = run.candidates.iter().map(name).collect();
                let part = PartLoss { part: part_of(&names), scheme: scheme.to_string(), kl: run.measure.loss() };
                (names.first().and_then(|name| layer_of(name)), part)
            })
            .collect();
        parts.sort_by_key(|(layer, _)| *layer);
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    }

    /// The program of the packages, compressed as it was asked for.
    fn compressed(&self, variant: &Variant, console: &Console) -> Result<Program> {
        let (Some(calibration), Some(scheme)) = (&self.calibration, variant.scheme) else {
            return self.plainly_compressed(&self.program, variant);
        };
        let mut program = self.program.clone();
        calibration.compress(&mut program, Some(&self.full), &OptimizationConfig::all(scheme), console)?;
        Ok(program)
    }

    /// A program, compressed without regard to what weights are multiplied with; nothing is computed yet.
    fn plainly_compressed(&self, program: &Program, variant: &Variant) -> Result<Program> {
        let mut program = program.clone();
        if let Some(scheme) = variant.scheme {
            compress_guided(&mut program, &OptimizationConfig::all(scheme), None).map_err(|e| e.at(&variant.name))?;
        }
        Ok(program)
    }

    /// The median time of a call that decodes a token by the functions of the package.
    fn decode(&self, shipped: Program) -> Result<Option<Duration>> {
        let mut decoder = Decoder::new(Arc::new(Engine::load(shipped, self.options.clone())?))?;
        let mut times = Vec::new();
        for &token in self.text.iter().take(DECODED.min(decoder.context())) {
            let start = Instant::now();
            decoder.decode(token)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(times.get(times.len() / 2).copied())
    }
}

/// What weights that were compressed together are called.
fn part_of(names: &[&str]) -> String {
    let layers: BTreeSet<usize> = names.iter().filter_map(|name| layer_of(name)).collect();
    let what = match names {
        [only] if layers.is_empty() => Component::of(only).to_string(),
        [only] => only.trim_end_matches(".weight").to_owned(),
        many => many.first().map_or(String::new(), |name| Component::of(name).to_string()),
    };
    match (names.len(), layers.first(), layers.last()) {
        (1, ..) | (_, None, _) | (_, _, None) => what,
        (_, Some(first), Some(last)) if first == last => format!("layer {first}, {what}"),
        (_, Some(first), Some(last)) => format!("layers {first} to {last}, {what}"),
    }
}

/// The bytes of all files below a directory.
fn bytes_below(directory: &Path) -> Result<u64> {
    let mut total = 0;
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let look = |e: &std::io::Error| refused("look at", &path, e);
        let found = fs::metadata(&path).map_err(|e| look(&e))?;
        if !found.is_dir() {
            total += found.len();
            continue;
        }
        for entry in fs::read_dir(&path).map_err(|e| look(&e))? {
            open.push(entry.map_err(|e| look(&e))?.path());
        }
    }
    Ok(total)
}
