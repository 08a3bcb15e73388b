//! `quince predict`: calls functions of a package on arrays from files.

mod range;

use crate::arrays;
use crate::console::Console;
use crate::failure::{Failure, Result, refused};
use crate::interrupt;
use crate::options::calls::Call;
use crate::options::engine::EngineArgs;
use crate::output::Existing;
use crate::trace::Trace;
use quince_engine::{Engine, Observed, Observer, Precision, RangeReport, State, Tensors};
use quince_mil::{Program, VarInfo};
use quince_runtime::Bundle;
use quince_tensor::Error;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Call functions of a package on arrays from files
///
/// The calls are made in order and share one state, as calls of one `MLState` do, so that the KV cache that one call
/// wrote is read by the next. Arrays are named like the inputs of the function; int64 arrays that fit become int32, and
/// floating-point arrays become what the input is. The outputs of call 0 are written to DIR/0.npz, those of call 1 to
/// DIR/1.npz, and so on. Arithmetic is exact unless told otherwise.
///
/// --trace writes every value on the way from the inputs to the outputs, each under the name of its variable: float as
/// float32, whatever the program declares; the fourth iteration of a loop as NAME[3]; states as NAME.before and
/// NAME.after, and as often as they are read or updated; constants not at all.
///
/// With --precision fp16-strict a report says what float16 would do to the program: by operation, how many elements
/// overflowed (became infinite without an infinity going in), are no numbers, are subnormal, or became zero. "inside"
/// counts numbers that an operation makes on the way and that float16 could not hold, such as the squares of a
/// layer_norm or the scores of an attention: hardware that keeps them in float16 overflows there; here they are float32.
/// The report is no failure: the exit status is 0.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince predict tiny.bundle --call init:prompt.npz --call decode:token.npz --outputs out
  quince predict bert.mlpackage --call main:inputs.npz --outputs out --trace values
  quince predict bert.mlpackage --call main:inputs.npz --outputs out --precision fp16-strict

In Python, numpy.savez(\"prompt.npz\", input_ids=..., position=...) writes inputs and numpy.load(\"out/0.npz\") reads \
outputs.")]
pub struct Args {
    /// A package, a compiled model (.mlmodelc), or a bundle
    package: PathBuf,
    /// A function and the .npz or .safetensors file with its inputs; repeat it for consecutive calls
    #[arg(long = "call", required = true, value_name = "FUNCTION:FILE")]
    calls: Vec<Call>,
    /// Where outputs are written: 0.npz, 1.npz, ...
    #[arg(long, value_name = "DIR")]
    outputs: PathBuf,
    /// Where every value is written: 0.npz, 1.npz, ...
    #[arg(long, value_name = "DIR")]
    trace: Option<PathBuf>,
    /// Trace only values whose names contain TEXT; may be repeated
    #[arg(long, value_name = "TEXT", requires = "trace")]
    trace_only: Vec<String>,
    /// Give each call a fresh state instead of the one that the calls before it wrote
    #[arg(long)]
    reset_state: bool,
    /// Replace outputs that exist
    #[arg(long)]
    force: bool,
    /// Print what was called, and the report of fp16-strict, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Makes the calls and writes their outputs.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    check_outputs(args)?;
    let bundle = Bundle::open(&args.package)?;
    let program = bundle.read_package()?.program;
    for call in &args.calls {
        program.function(&call.function).map_err(|e| Failure::Usage(e.at(args.package.display())))?;
    }
    check_trace(args, &program)?;
    let place = |error: Error| error.at(args.package.display());
    let options = args.engine.options(console, Precision::Exact);
    let report = (options.precision == Precision::Strict).then(RangeReport::default);
    let engine = Engine::load(program, options).map_err(place)?;
    let state = engine.new_state().map_err(place)?;
    for directory in [Some(&args.outputs), args.trace.as_ref()].into_iter().flatten() {
        std::fs::create_dir_all(directory).map_err(|e| refused("create the outputs", directory, &e))?;
    }
    let mut caller = Caller { args, console, engine, state, report };
    let calls = (0..args.calls.len()).map(|number| caller.call(number)).collect::<Result<Vec<_>>>()?;
    let report = caller.report.as_ref().map(|report| range::Report::of(report, calls.len()));
    match (args.json, &report) {
        (true, _) => console.json(&Called { calls, fp16: report.as_ref() })?,
        (false, Some(report)) => console.print(&report.text())?,
        (false, None) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing is replaced unasked, and outputs and traces do not get in each other's way.
fn check_outputs(args: &Args) -> Result<()> {
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    if args.trace.as_ref() == Some(&args.outputs) {
        return Err(Failure::usage_hint("--trace and --outputs name one directory", "name two"));
    }
    for directory in [Some(&args.outputs), args.trace.as_ref()].into_iter().flatten() {
        for number in 0..args.calls.len() {
            crate::output::vacant(&numbered(directory, number), existing)?;
        }
    }
    Ok(())
}

/// A text that no value has in its name is a slip of the keyboard.
fn check_trace(args: &Args, program: &Program) -> Result<()> {
    let functions = args.calls.iter().filter_map(|call| program.function(&call.function).ok());
    let vars: Vec<&VarInfo> = functions.flat_map(|function| &function.vars).collect();
    for text in &args.trace_only {
        // States are traced before and after the call.
        let names = |var: &VarInfo| [".before", ".after"].map(|moment| format!("{}{moment}", var.name));
        // What stands before the iteration of a loop, as in `sum[3]`.
        let stem = text.split('[').next().unwrap_or_default();
        if !vars.iter().any(|var| names(var).iter().any(|name| name.contains(stem))) {
            let message = format!("--trace-only: found no value with `{text}` in its name");
            return Err(Failure::usage_hint(message, "`quince print` shows the names"));
        }
    }
    Ok(())
}

/// What was called, for machines.
#[derive(Serialize)]
struct Called<'a> {
    calls: Vec<Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fp16: Option<&'a range::Report>,
}

/// A call, for machines.
#[derive(Serialize)]
struct Record {
    function: String,
    inputs: PathBuf,
    outputs: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<PathBuf>,
}

struct Caller<'a> {
    args: &'a Args,
    console: &'a Console,
    engine: Engine,
    state: State,
    report: Option<RangeReport>,
}

impl Caller<'_> {
    fn call(&mut self, number: usize) -> Result<Record> {
        interrupt::check()?;
        let (args, console) = (self.args, self.console);
        let call = &args.calls[number];
        let place = |error: Error| error.at(format!("call {number} ({}:{})", call.function, call.file.display()));
        let function = self.engine.program().function(&call.function).map_err(place)?;
        let (inputs, unused) =
            arrays::inputs_of(function, arrays::read(&call.file)?).map_err(|e| e.at(call.file.display()))?;
        if !unused.is_empty() {
            let names = unused.join(", ");
            console.note(&format!("{}: not an input of `{}`: {names}", call.file.display(), call.function));
        }
        if args.reset_state && number > 0 {
            self.state = self.engine.new_state()?;
        }
        let start = Instant::now();
        let trace = args.trace.as_ref().map(|directory| numbered(directory, number));
        let outputs = self.predict(number, &inputs, trace.as_deref()).map_err(|e| match e {
            Failure::Error(error) => Failure::Error(place(error)),
            other => other,
        })?;
        let path = numbered(&args.outputs, number);
        arrays::write(&path, &outputs)?;
        let shapes: Vec<String> = outputs.iter().map(|(name, tensor)| format!("{name} {tensor:?}")).collect();
        let seconds = start.elapsed().as_secs_f64();
        console.note(&format!("{}: {} in {:.1} ms", path.display(), shapes.join(", "), seconds * 1e3));
        Ok(Record { function: call.function.clone(), inputs: call.file.clone(), outputs: path, trace })
    }

    fn predict(&mut self, number: usize, inputs: &Tensors, trace: Option<&Path>) -> Result<Tensors> {
        let function = &self.args.calls[number].function;
        if trace.is_none() && self.report.is_none() {
            return Ok(self.engine.predict(function, inputs, &mut self.state)?);
        }
        if let Some(report) = &mut self.report {
            report.begin(function);
        }
        let traced = trace.map(|path| Trace::create(path, &self.args.trace_only)).transpose()?;
        let mut watch = Watch { trace: traced, report: self.report.as_mut() };
        let outputs = self.engine.observe(function, inputs, &mut self.state, &mut watch)?;
        if let (Some(traced), Some(path)) = (watch.trace, trace) {
            let count = traced.finish()?;
            self.console.note(&format!("{}: {count} values", path.display()));
        }
        Ok(outputs)
    }
}

/// Whoever looks at the values of a call.
struct Watch<'a> {
    trace: Option<Trace>,
    report: Option<&'a mut RangeReport>,
}

impl Observer for Watch<'_> {
    fn value(&mut self, value: &Observed) -> quince_tensor::Result<()> {
        if let Some(report) = &mut self.report {
            report.value(value)?;
        }
        match &mut self.trace {
            Some(trace) => trace.value(value),
            None => Ok(()),
        }
    }
}

fn numbered(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{number}.npz"))
}
