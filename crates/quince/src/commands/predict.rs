//! `quince predict`: calls functions of a package on arrays from files.

use crate::arrays;
use crate::console::Console;
use crate::failure::{Failure, Result, refused};
use crate::interrupt;
use crate::options::engine::EngineArgs;
use crate::output::Existing;
use quince_engine::{Engine, Precision};
use quince_runtime::Bundle;
use quince_tensor::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

/// Call functions of a package on arrays from files
///
/// The calls are made in order and share one state, as calls of one `MLState` do, so that the KV cache that one call
/// wrote is read by the next. Arrays are named like the inputs of the function; int64 arrays that fit become int32, and
/// floating-point arrays become what the input is. The outputs of call 0 are written to DIR/0.npz, those of call 1 to
/// DIR/1.npz, and so on. Arithmetic is exact unless told otherwise.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince predict tiny.bundle --call init:prompt.npz --call decode:token.npz --outputs out
  quince predict bert.mlpackage --call main:inputs.npz --outputs out

In Python, numpy.savez(\"prompt.npz\", input_ids=..., position=...) writes inputs and numpy.load(\"out/0.npz\") reads \
outputs.")]
pub struct Args {
    /// A package, or a bundle
    package: PathBuf,
    /// A function and the .npz or .safetensors file with its inputs; repeat it for consecutive calls
    #[arg(long = "call", required = true, value_name = "FUNCTION:FILE")]
    calls: Vec<Call>,
    /// Where outputs are written: 0.npz, 1.npz, ...
    #[arg(long, value_name = "DIR")]
    outputs: PathBuf,
    /// Give each call a fresh state instead of the one that the calls before it wrote
    #[arg(long)]
    reset_state: bool,
    /// Replace outputs that exist
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A function and the file with its inputs.
#[derive(Clone, Debug)]
struct Call {
    function: String,
    file: PathBuf,
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Call, String> {
        match text.split_once(':') {
            Some((function, file)) if !function.is_empty() && !file.is_empty() => {
                Ok(Call { function: function.to_string(), file: file.into() })
            }
            _ => Err("expected FUNCTION:FILE, such as decode:token.npz".to_string()),
        }
    }
}

/// Makes the calls and writes their outputs.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    for number in 0..args.calls.len() {
        crate::output::vacant(&output(&args.outputs, number), existing)?;
    }
    let bundle = Bundle::open(&args.package)?;
    let program = bundle.read_package()?.program;
    for call in &args.calls {
        program.function(&call.function).map_err(|e| Failure::Usage(e.at(args.package.display())))?;
    }
    let place = |error: Error| error.at(args.package.display());
    let engine = Engine::load(program, args.engine.options(console, Precision::Exact)).map_err(place)?;
    let mut state = engine.new_state().map_err(place)?;
    std::fs::create_dir_all(&args.outputs).map_err(|e| refused("create the outputs", &args.outputs, &e))?;
    for (number, call) in args.calls.iter().enumerate() {
        interrupt::check()?;
        let place = |error: Error| error.at(format!("call {number} ({}:{})", call.function, call.file.display()));
        let function = engine.program().function(&call.function).map_err(place)?;
        let (inputs, unused) =
            arrays::inputs_of(function, arrays::read(&call.file)?).map_err(|e| e.at(call.file.display()))?;
        if !unused.is_empty() {
            let names = unused.join(", ");
            console.note(&format!("{}: not an input of `{}`: {names}", call.file.display(), call.function));
        }
        if args.reset_state && number > 0 {
            state = engine.new_state()?;
        }
        let start = Instant::now();
        let outputs = engine.predict(&call.function, &inputs, &mut state).map_err(place)?;
        let path = output(&args.outputs, number);
        arrays::write(&path, &outputs)?;
        let shapes: Vec<String> = outputs.iter().map(|(name, tensor)| format!("{name} {tensor:?}")).collect();
        let seconds = start.elapsed().as_secs_f64();
        console.note(&format!("{}: {} in {:.1} ms", path.display(), shapes.join(", "), seconds * 1e3));
    }
    Ok(ExitCode::SUCCESS)
}

fn output(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{number}.npz"))
}
