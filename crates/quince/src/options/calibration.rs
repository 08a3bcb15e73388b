//! Calibration: which texts a model is run on so that compression knows what its weights are multiplied with.

use crate::console::{Console, Counted};
use crate::failure::{Failure, Result, refused};
use crate::stored;
use quince_calibrate::{
    CollectOptions, RangeRule, Run, SequentialOptions, Statistics, Texts, activation_ranges, collect,
    compress_sequentially,
};
use quince_checkpoint::sha256;
use quince_compress::{ActivationRanges, Guide, OptimizationConfig, Report, compress_guided};
use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_runtime::{Decoder, Embedder, Tokenizer};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// The longest text that is run at once, in tokens, unless the model takes less.
const LENGTH: usize = 256;
/// The most parameters of models that also read what they write themselves. Small ones were trained on few kinds of text,
/// of which what comes with quince may have none; large ones know it, and write slowly.
const WRITERS: u64 = 200_000_000;

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct CalibrationArgs {
    /// Choose palettes and integers by what weights are multiplied with: run the model on a text, or, without a file, on texts
    /// that come with quince and, if it has at most 200 million parameters, as much that it writes itself. Weights are
    /// compressed in the order of the model, each making up for what those before it lost. Or use a file of `quince
    /// calibrate`: faster for many compressions, and less exact. A text is UTF-8, or JSON lines (.jsonl) with `messages`,
    /// which go through the chat template, or `text`
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    calibrate: Option<Option<PathBuf>>,
    /// Tokens that the model is run on
    #[arg(long, value_name = "N", default_value_t = 16384)]
    calibration_tokens: usize,
}

impl CalibrationArgs {
    /// Whether it is asked for.
    pub fn asked(&self) -> bool {
        self.calibrate.is_some()
    }

    /// What calibration there will be, such that equal ones are told alike: the SHA-256 of the file if there is one, and the
    /// tokens.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn told(&self) -> Result<Option<String>> {
        let source = match &self.calibrate {
            None => return Ok(None),
            Some(None) => "texts of quince".to_owned(),
            Some(Some(file)) => sha256(file)?,
        };
        Ok(Some(format!("{source}, {} tokens", self.calibration_tokens)))
    }

    /// The ranges of the values that the layers of a program take, on the text for calibration if one is given.
    ///
    /// # Errors
    /// As [`CalibrationArgs::guide`].
    pub fn ranges(
        &self,
        program: &Program,
        tokenizer: Option<&Tokenizer>,
        rule: RangeRule,
        console: &Console,
    ) -> Result<ActivationRanges> {
        let tokens = self.calibration_tokens;
        let source = Source { tokenizer, text: self.text(), tokens, console, written: None };
        on_texts(program, None, &source, &mut |runs, _, progress| activation_ranges(program, runs, rule, progress))
    }

    /// The text that is to be run, if one is given.
    pub fn text(&self) -> Option<&Path> {
        self.calibrate.iter().flatten().map(PathBuf::as_path).find(|file| !is_statistics(file))
    }

    /// Calibration is for a way to compress.
    ///
    /// # Errors
    /// When there is none.
    pub fn check(&self, config: Option<&OptimizationConfig>) -> Result<()> {
        match config.is_none() && self.asked() {
            true => Err(Failure::usage_hint("found --calibrate without a way to compress", "add --wbits 4")),
            false => Ok(()),
        }
    }

    /// The calibration of a model, if it is asked for. Files of its own are in `directory`, gone when nothing needs them.
    ///
    /// # Errors
    /// When the tokenizer cannot be read.
    pub fn of<'a>(
        &'a self,
        tokenizer: impl FnOnce() -> Result<Option<Tokenizer>>,
        directory: &'a Path,
    ) -> Result<Option<Calibration<'a>>> {
        let Some(source) = &self.calibrate else { return Ok(None) };
        let tokenizer = if self.statistics().is_some() { None } else { tokenizer()? };
        let (source, tokens) = (source.as_deref(), self.calibration_tokens);
        let (texts, guide) = (Written::default(), OnceLock::new());
        Ok(Some(Calibration { source, tokens, tokenizer, directory, texts, guide }))
    }

    /// The file of statistics, if one is given.
    fn statistics(&self) -> Option<&Path> {
        self.calibrate.iter().flatten().map(PathBuf::as_path).find(|file| is_statistics(file))
    }
}

/// How the weights of a model are compressed by what they are multiplied with. Whoever asks again for the same model gets
/// what was found.
pub struct Calibration<'a> {
    /// A text, or a file of statistics.
    source: Option<&'a Path>,
    tokens: usize,
    tokenizer: Option<Tokenizer>,
    directory: &'a Path,
    texts: Written,
    guide: OnceLock<Arc<dyn Guide>>,
}

impl Calibration<'_> {
    /// What is known of the weights of a program as it is. `run_on` has the same weights and is fast on whole texts, if
    /// there is such a program.
    ///
    /// # Errors
    /// When the program cannot be run, or a file not be read or written.
    pub fn guide(&self, program: &Program, run_on: Option<&Program>, console: &Console) -> Result<Arc<dyn Guide>> {
        if let Some(guide) = self.guide.get() {
            return Ok(guide.clone());
        }
        let guide: Arc<dyn Guide> = match self.source.filter(|file| is_statistics(file)) {
            Some(file) => Arc::new(Statistics::open(file)?),
            None => {
                let file =
                    tempfile::Builder::new().prefix(".quince-").suffix(".safetensors").tempfile_in(self.directory);
                let file = file.map_err(|e| refused("make a file for statistics", self.directory, &e))?;
                on_texts(program, run_on, &self.texts(console), &mut |runs, run_on, progress| {
                    let options = CollectOptions::default();
                    collect(run_on.unwrap_or(program), runs, file.path(), options, progress)
                })?;
                // The map keeps what the name no longer does.
                Arc::new(Statistics::open(file.path())?)
            }
        };
        Ok(self.guide.get_or_init(|| guide).clone())
    }

    /// Compresses a program: one weight after the other, where there are texts and the program allows it. `run_on` as for
    /// [`Calibration::guide`].
    ///
    /// # Errors
    /// As there, and as [`compress_guided`].
    pub fn compress(
        &self,
        program: &mut Program,
        run_on: Option<&Program>,
        config: &OptimizationConfig,
        console: &Console,
    ) -> Result<Report> {
        if self.source.is_none_or(|file| !is_statistics(file)) {
            let options = SequentialOptions { directory: self.directory, engine: engine_options(console) };
            let before = program.clone();
            let report = on_texts(&before, run_on, &self.texts(console), &mut |runs, run_on, progress| {
                compress_sequentially(program, run_on, runs, config, &options, progress)
            })?;
            if let Some(report) = report {
                return Ok(report);
            }
            console
                .note("note: weights are calibrated by their inputs as they were: the program cannot be run in pieces");
        }
        let guide = self.guide(program, run_on, console)?;
        Ok(compress_guided(program, config, Some(guide))?)
    }

    fn texts<'a>(&'a self, console: &'a Console) -> Source<'a> {
        let (tokenizer, text) = (self.tokenizer.as_ref(), self.source);
        Source { tokenizer, text, tokens: self.tokens, console, written: Some(&self.texts) }
    }
}

fn engine_options(console: &Console) -> Options {
    Options { threads: console.threads(), precision: Precision::Default, limits: console.limits() }
}

/// Runs a program on a text, or on its own, and writes statistics to a file.
///
/// # Errors
/// When the program cannot be run, or a file not be read or written.
pub fn statistics(
    program: &Program,
    tokenizer: Option<&Tokenizer>,
    text: Option<&Path>,
    tokens: usize,
    file: &Path,
    console: &Console,
) -> Result<()> {
    let source = Source { tokenizer, text, tokens, console, written: None };
    on_texts(program, None, &source, &mut |runs, _, progress| {
        collect(program, runs, file, CollectOptions::default(), progress)
    })
}

/// Who is told how many texts of how many were run.
type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// What is done with texts, and with the program that runs in another's place, if one does.
type Work<'a, T> = &'a mut dyn FnMut(&mut [Run], Option<&Program>, Progress) -> quince_tensor::Result<T>;

/// Does something with a program and its texts, or with one that has the same weights and runs in its place: it is told
/// which.
fn on_texts<T>(program: &Program, run_on: Option<&Program>, source: &Source, work: Work<T>) -> Result<T> {
    let console = source.console;
    let load = |program: &Program| Ok::<_, Failure>(Arc::new(Engine::load(program.clone(), engine_options(console))?));
    // A program may be both, each with weights of its own.
    let both = |engine: Arc<Engine>| match (Decoder::new(engine.clone()), Embedder::new(engine)) {
        (Err(error), Err(_)) => Err(error),
        (decoder, embedder) => Ok((decoder.ok(), embedder.ok())),
    };
    let (mut writer, mut embedder) = both(load(program)?)?;
    // What makes embeddings besides runs only as the program that it is.
    let run_on = run_on.filter(|_| writer.is_some() && embedder.is_none());
    let mut decoder = None;
    if let Some(run_on) = run_on {
        (decoder, embedder) = both(load(run_on)?)?;
    }
    let mut runs = Vec::new();
    if let Some(writer) = &mut writer {
        let parameters = stored::weights(program).iter().map(|weight| weight.parameters()).sum();
        let length = decoder.as_ref().unwrap_or(writer).at_once().min(LENGTH);
        let texts = source.of_decoder(writer, length, parameters)?;
        runs.push(Run { runner: decoder.as_mut().unwrap_or(writer), texts });
    }
    if let Some(embedder) = &mut embedder {
        let texts = source.of_encoder(embedder.shapes().longest())?;
        runs.push(Run { runner: embedder, texts });
    }
    let bar = console.bar("calibrating", 0, Counted::Things("steps"));
    let found = work(&mut runs, run_on, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(found?)
}

/// Where texts come from.
struct Source<'a> {
    tokenizer: Option<&'a Tokenizer>,
    text: Option<&'a Path>,
    tokens: usize,
    console: &'a Console,
    /// Where texts are that were written already.
    written: Option<&'a Written>,
}

/// What a model wrote, by the longest text that was asked for.
type Written = Mutex<HashMap<usize, Texts>>;

impl Source<'_> {
    /// A given text; or what comes with quince, and what a small model, or one without a tokenizer, writes itself.
    fn of_decoder(&self, decoder: &mut Decoder, length: usize, parameters: u64) -> Result<Texts> {
        if let Some(path) = self.text {
            return windows(path, self.tokenizer()?, [length, self.tokens]);
        }
        let small = parameters <= WRITERS;
        let read = if small { self.tokens / 2 } else { self.tokens };
        let mut texts = match self.tokenizer {
            Some(tokenizer) if read > 0 => Texts::prose(tokenizer, length, read)?,
            _ => Texts::default(),
        };
        let wanted = self.tokens.saturating_sub(texts.tokens());
        if wanted > 0 && (small || texts.windows.is_empty()) {
            let known = self.written.map(|written| written.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            if let Some(written) = known.as_ref().and_then(|known| known.get(&length)) {
                texts.windows.extend_from_slice(&written.windows);
                return Ok(texts);
            }
            let begin = self.tokenizer.map(|tokenizer| tokenizer.begin_of_text()).transpose()?.flatten();
            let ends = self.tokenizer.map_or(&[][..], |tokenizer| tokenizer.eos());
            let bar = self.console.bar("writing texts", wanted as u64, Counted::Things("tokens"));
            let written = Texts::written_by(decoder, begin, ends, [length, wanted], &mut |done| {
                bar.set_position(done as u64);
            });
            bar.finish_and_clear();
            let written = written?;
            texts.windows.extend_from_slice(&written.windows);
            known.into_iter().for_each(|mut known| drop(known.insert(length, written.clone())));
        }
        Ok(texts)
    }

    /// The lines of a given text, or of one that was written for this.
    fn of_encoder(&self, longest: usize) -> Result<Texts> {
        let sizes @ [length, tokens] = [LENGTH.min(longest), self.tokens];
        match self.text {
            Some(path) => sentences(path, self.tokenizer()?, sizes),
            None => Ok(Texts::of_lines(Texts::BUILT_IN, self.tokenizer()?, length, tokens)?),
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || Failure::usage("--calibrate: found no tokenizer, expected one beside the model");
        self.tokenizer.ok_or_else(missing)
    }
}

/// The text of a file in windows of so many tokens, and of how many in all.
///
/// # Errors
/// A file that cannot be read, or without text.
pub fn windows(path: &Path, tokenizer: &Tokenizer, [length, tokens]: [usize; 2]) -> Result<Texts> {
    let text = read(path)?;
    let texts = match is_json_lines(path) {
        true => Texts::of_json_lines(&text, tokenizer, length, tokens),
        false => Texts::of_text(&text, tokenizer, length, tokens),
    };
    Ok(texts.map_err(|e| e.at(path.display()))?)
}

/// The same with each line by itself.
///
/// # Errors
/// As [`windows`].
pub fn sentences(path: &Path, tokenizer: &Tokenizer, [length, tokens]: [usize; 2]) -> Result<Texts> {
    let text = read(path)?;
    let lines = match is_json_lines(path) {
        true => Texts::lines_of_json(&text),
        false => Ok(text),
    };
    let texts = lines.and_then(|lines| Texts::of_lines(&lines, tokenizer, length, tokens));
    Ok(texts.map_err(|e| e.at(path.display()))?)
}

/// Whether each line of a file is a JSON object.
fn is_json_lines(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "jsonl")
}

/// Whether a file is one of `quince calibrate`.
fn is_statistics(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "safetensors")
}

fn read(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(|e| refused("read the text", path, &e))?)
}
