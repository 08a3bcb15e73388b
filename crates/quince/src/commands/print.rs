//! `quince print`: a package or a compiled model as MIL text.

use crate::console::Console;
use crate::failure::Result;
use quince_mil::text::{PrintOptions, Spelling, Weights, print};
use quince_checkpoint::Checkpoint;
use quince_convert::semantic;
use quince_mil::Program;
use quince_runtime::Bundle;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Constants of more elements are printed by name.
const MAX_ELEMENTS: usize = 64;

/// Print a package, a compiled model, or the program of a checkpoint, as MIL text
///
/// The text is of the form of model.mil in compiled models. Of a checkpoint it is the semantic program: what the model
/// computes, before it is lowered to functions, caches and operations of Core ML. Weights, and constants of more than 64
/// elements, are printed by name.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince print tiny.bundle | less
  quince print model.mlpackage --function decode
  quince print models/tiny-llama")]
pub struct Args {
    /// A package, a compiled model (.mlmodelc), a bundle, or a checkpoint
    model: PathBuf,
    /// Only this function
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Write names as Apple's compiler takes them, not as they are in the package
    #[arg(long)]
    identifiers: bool,
}

/// Prints it.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let mut program = program(&args.model)?;
    if let Some(name) = &args.function {
        let function = program.function(name)?.clone();
        program.default_function = None;
        program.functions = vec![function];
    }
    let weights = Weights::of(&program, MAX_ELEMENTS);
    let spelling = if args.identifiers { Spelling::Identifiers } else { Spelling::Exact };
    console.print(&print(&program, &PrintOptions { spelling, locate: &|value| weights.locate(value) }))?;
    Ok(ExitCode::SUCCESS)
}

fn program(path: &Path) -> Result<Program> {
    if Bundle::recognizes(path) || !path.join("config.json").is_file() {
        return Ok(Bundle::open(path)?.read_package()?.program);
    }
    Ok(semantic(&Checkpoint::open(path)?)?.program)
}
