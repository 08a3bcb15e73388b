//! `quince calibrate`: what the weights of a model are multiplied with, measured once for many compressions.

use crate::console::Console;
use crate::failure::{Failure, Result, refused};
use crate::loading;
use crate::options::calibration::statistics;
use crate::output::{self, Existing};
use crate::units;
use quince_calibrate::Statistics;
use quince_checkpoint::Checkpoint;
use quince_convert::{Options, convert};
use quince_runtime::{Bundle, Tokenizer};
use quince_mil::Program;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measure what the weights of a model are multiplied with, for --calibrate of convert and compress
///
/// The model is run on a text, or on texts that come with quince and, if it is small, as much that it writes itself, and the
/// second moments of the inputs of its weights go into a safetensors file. The names of weights are those of the model:
/// statistics of a checkpoint are for its conversion, those of a package for its compression.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince calibrate models/tiny-llama -o tiny.safetensors
  quince convert models/tiny-llama -o tiny2.bundle --wbits 2 --palett-group-size 16 --calibrate tiny.safetensors")]
pub struct Args {
    /// A checkpoint, a package, or a bundle
    model: PathBuf,
    /// The file of statistics; its name ends in .safetensors
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// A file with UTF-8 text, or with JSON lines (.jsonl) that have `messages` or `text`. Default: texts that come with
    /// quince, and what a small model writes itself
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens that the model is run on
    #[arg(long, value_name = "N", default_value_t = 16384)]
    tokens: usize,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    output: String,
    weights: usize,
    bytes: u64,
}

/// Measures it.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    if args.output.extension().is_none_or(|ending| ending != "safetensors") {
        let found = format!("--output: found {}, expected a name that ends in .safetensors", args.output.display());
        return Err(Failure::usage(found));
    }
    output::vacant(&args.output, if args.force { Existing::Replace } else { Existing::Refuse })?;
    let (program, tokenizer) = program(&args.model)?;
    let file = output::beside(&args.output)?;
    statistics(&program, tokenizer.as_ref(), args.text.as_deref(), args.tokens, file.path(), console)?;
    let bytes = file.as_file().metadata().map_err(|e| refused("read", file.path(), &e))?.len();
    let weights = Statistics::open(file.path())?.weights();
    output::name(file, &args.output)?;
    let report = Report { output: args.output.display().to_string(), weights, bytes };
    match args.json {
        true => console.json(&report)?,
        false => console.print(&format!(
            "{}: what {} weights are multiplied with, {}\n",
            report.output,
            report.weights,
            units::bytes(report.bytes)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The program that a checkpoint would become, or that of a package.
fn program(path: &Path) -> Result<(Program, Option<Tokenizer>)> {
    if loading::is_checkpoint(path) {
        let checkpoint = Checkpoint::open(path)?;
        return Ok((convert(&checkpoint, &Options::default())?.program, loading::tokenizer_of(&checkpoint)?));
    }
    let bundle = Bundle::open(path)?;
    Ok((bundle.read_package()?.program, loading::tokenizer(bundle.directory())?))
}
