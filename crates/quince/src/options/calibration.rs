//! Calibration: which texts a model is run on so that compression knows what its weights are multiplied with.

use crate::console::{Console, Counted};
use crate::failure::{Failure, Result, refused};
use crate::stored;
use quince_calibrate::{CollectOptions, RangeRule, Run, Statistics, Texts, activation_ranges, collect};
use quince_checkpoint::sha256;
use quince_compress::{ActivationRanges, Guide, OptimizationConfig};
use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_runtime::{Decoder, Embedder, Tokenizer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest text that is run at once, in tokens, unless the model takes less.
const LENGTH: usize = 256;
/// The most parameters of models that also read what they write themselves. Small ones were trained on few kinds of text,
/// of which what comes with quince may have none; large ones know it, and write slowly.
const WRITERS: u64 = 200_000_000;

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct CalibrationArgs {
    /// Choose palettes and integers by what weights are multiplied with: run the model on a text, use a file of `quince calibrate`,
    /// or, without a file, on texts that come with quince and, if it has at most 200 million parameters, as much that it
    /// writes itself. A text is UTF-8, or JSON lines (.jsonl) with `messages`, which go through the chat template, or `text`
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
        let source = Source { tokenizer, text: self.text(), tokens: self.calibration_tokens, console };
        on_texts(program, &source, &mut |runs, progress| activation_ranges(program, runs, rule, progress))
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

    /// What is known of the weights of a program, if it is asked for; the tokenizer is read if texts are. Statistics of its
    /// own are in a file in `directory`, which is gone when the program is.
    ///
    /// # Errors
    /// When the program cannot be run, or a file not be read.
    pub fn guide(
        &self,
        program: &Program,
        tokenizer: impl FnOnce() -> Result<Option<Tokenizer>>,
        directory: &Path,
        console: &Console,
    ) -> Result<Option<Arc<dyn Guide>>> {
        let Some(source) = &self.calibrate else { return Ok(None) };
        if let Some(file) = source.as_ref().filter(|file| is_statistics(file)) {
            return Ok(Some(Arc::new(Statistics::open(file)?)));
        }
        let file = tempfile::Builder::new().prefix(".quince-").suffix(".safetensors").tempfile_in(directory);
        let file = file.map_err(|e| refused("make a file for statistics", directory, &e))?;
        statistics(program, tokenizer()?.as_ref(), source.as_deref(), self.calibration_tokens, file.path(), console)?;
        // The map keeps what the name no longer does.
        Ok(Some(Arc::new(Statistics::open(file.path())?)))
    }
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
    let source = Source { tokenizer, text, tokens, console };
    on_texts(program, &source, &mut |runs, progress| collect(program, runs, file, CollectOptions::default(), progress))
}

/// Who is told how many texts of how many were run.
type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Does something with a program and its texts.
fn on_texts<T>(
    program: &Program,
    source: &Source,
    work: &mut dyn FnMut(&mut [Run], Progress) -> quince_tensor::Result<T>,
) -> Result<T> {
    let console = source.console;
    let options = Options { threads: console.threads(), precision: Precision::Default, limits: console.limits() };
    let engine = Arc::new(Engine::load(program.clone(), options)?);
    // A program may be both, each with weights of its own.
    let (mut decoder, mut embedder) = match (Decoder::new(engine.clone()), Embedder::new(engine)) {
        (Err(error), Err(_)) => return Err(error.into()),
        (decoder, embedder) => (decoder.ok(), embedder.ok()),
    };
    let mut runs = Vec::new();
    if let Some(decoder) = &mut decoder {
        let parameters = stored::weights(program).iter().map(|weight| weight.parameters()).sum();
        let texts = source.of_decoder(decoder, parameters)?;
        runs.push(Run { runner: decoder, texts });
    }
    if let Some(embedder) = &mut embedder {
        let texts = source.of_encoder(embedder.shapes().longest())?;
        runs.push(Run { runner: embedder, texts });
    }
    let bar = console.bar("calibrating", 0, Counted::Things("texts"));
    let found = work(&mut runs, &mut |done, total| {
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
}

impl Source<'_> {
    /// A given text; or what comes with quince, and what a small model, or one without a tokenizer, writes itself.
    fn of_decoder(&self, decoder: &mut Decoder, parameters: u64) -> Result<Texts> {
        let longest = decoder.routes().first().map_or(0, |&route| decoder.longest(route));
        let length = LENGTH.min(longest);
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
            let begin = self.tokenizer.map(|tokenizer| tokenizer.begin_of_text()).transpose()?.flatten();
            let ends = self.tokenizer.map_or(&[][..], |tokenizer| tokenizer.eos());
            let bar = self.console.bar("writing texts", wanted as u64, Counted::Things("tokens"));
            let written = Texts::written_by(decoder, begin, ends, [length, wanted], &mut |done| {
                bar.set_position(done as u64);
            });
            bar.finish_and_clear();
            texts.windows.extend(written?.windows);
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
