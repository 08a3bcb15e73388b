//! Calibration: which texts a model is run on so that compression knows what its weights are multiplied with.

use crate::console::{Console, Counted};
use crate::failure::{Failure, Result, refused};
use quince_calibrate::{CollectOptions, Statistics, Texts, collect};
use quince_compress::{Guide, OptimizationConfig};
use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_runtime::{Decoder, Tokenizer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest text that is run at once, in tokens, unless the model takes less.
const LENGTH: usize = 256;

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct CalibrationArgs {
    /// Choose palettes by what weights are multiplied with: run the model on a text, use a file of `quince calibrate`,
    /// or, without a file, on texts that it writes itself
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    calibrate: Option<Option<PathBuf>>,
    /// Tokens that the model is run on
    #[arg(long, value_name = "N", default_value_t = 16384, requires = "calibrate")]
    calibration_tokens: usize,
}

impl CalibrationArgs {
    /// Whether it is asked for.
    pub fn asked(&self) -> bool {
        self.calibrate.is_some()
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

    /// What is known of the weights of a program, if it is asked for; the tokenizer is read if texts are. Statistics of its own are in a file in `directory`,
    /// which is gone when the program is.
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
        if let Some(file) = source.as_ref().filter(|file| file.extension().is_some_and(|e| e == "safetensors")) {
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
    let options = Options { threads: console.threads(), precision: Precision::Default, limits: console.limits() };
    let mut decoder = Decoder::new(Arc::new(Engine::load(program.clone(), options)?))?;
    let texts = texts(&mut decoder, tokenizer, text, tokens, console)?;
    let bar = console.bar("calibrating", 0, Counted::Things("texts"));
    let found = collect(&mut decoder, &texts, file, CollectOptions::default(), &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(found?)
}

fn texts(
    decoder: &mut Decoder,
    tokenizer: Option<&Tokenizer>,
    text: Option<&Path>,
    tokens: usize,
    console: &Console,
) -> Result<Texts> {
    let longest = decoder.routes().first().map_or(0, |&route| decoder.longest(route));
    let length = LENGTH.min(longest);
    match text {
        Some(path) => {
            let Some(tokenizer) = tokenizer else {
                return Err(Failure::usage("--calibrate: found no tokenizer, expected one beside the model"));
            };
            let text = fs::read_to_string(path).map_err(|e| refused("read the text", path, &e))?;
            Ok(Texts::of_text(&text, tokenizer, length, tokens).map_err(|e| e.at(path.display()))?)
        }
        None => {
            let begin = tokenizer.map(|tokenizer| tokenizer.begin_of_text()).transpose()?.flatten();
            let ends = tokenizer.map_or(&[][..], |tokenizer| tokenizer.eos());
            let bar = console.bar("writing texts", tokens as u64, Counted::Things("tokens"));
            let texts =
                Texts::written_by(decoder, begin, ends, [length, tokens], &mut |done| bar.set_position(done as u64));
            bar.finish_and_clear();
            Ok(texts?)
        }
    }
}
