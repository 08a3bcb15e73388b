//! `quince diff`: where two packages part.

use crate::arrays;
use crate::console::{Console, table};
use crate::failure::{Failure, Result, refused};
use crate::interrupt;
use crate::options::calls::Call;
use quince_checkpoint::Checkpoint;
use quince_convert::semantic;
use quince_engine::{Engine, Options, Precision, Tensors};
use quince_mil::Program;
use quince_runtime::{Bundle, CallDiff, Compared, Diff};
use quince_tensor::Error;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Find the first operation in which two packages differ
///
/// Both are run on the same inputs, and compared value by value. Values are matched by the names and the order of the operations, so that packages with other weights, another
/// compression, precision or cache can be compared, also those that another tool made. For each value the largest
/// difference, that by the largest magnitude in A, and the signal-to-noise ratio are printed; then the first operation
/// that diverges, with what went into it.
///
/// Without --call, every function that both have is called once, in order, on inputs that are made up: tokens and other
/// indices below the length of their table, ones for other integers, normal numbers, a position where the call before
/// ended. States, and caches that are inputs, begin with zeros and are kept from call to call. All arithmetic is
/// float32; values of A lie in a temporary file while B runs.
///
/// The exit status is 1 if a value diverges.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince diff fp16.mlpackage palettized.mlpackage
  quince diff state.bundle io.bundle --call init:prompt.npz --call decode:token.npz --summary
  quince diff models/tiny-llama full.mlpackage --tolerance 0.001 --json")]
pub struct Args {
    /// A package, a compiled model, a bundle, or a checkpoint, which stands for its model without cache
    #[arg(value_name = "A")]
    first: PathBuf,
    /// Another
    #[arg(value_name = "B")]
    second: PathBuf,
    /// A function and the .npz or .safetensors file with its inputs; repeat it for consecutive calls
    #[arg(long = "call", value_name = "FUNCTION:FILE")]
    calls: Vec<Call>,
    /// How far values may be apart, by the largest magnitude in A [default: 0.0001 where both functions compute in
    /// float32, else 0.01]
    #[arg(long, value_name = "RELATIVE", value_parser = tolerance)]
    tolerance: Option<f64>,
    /// Print only what differs in structure, and the first divergence
    #[arg(long)]
    summary: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where values of A are kept while B runs [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    tmp: Option<PathBuf>,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number that is not negative, such as 0.001".to_string())
}

/// Runs both, and prints how they differ.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let programs = [program(&args.first)?, program(&args.second)?];
    let functions = functions(args, &programs)?;
    let structure = Structure::of(&programs);
    let options = Options { threads: console.threads(), precision: Precision::Exact, limits: console.limits() };
    let load = |program: Program, path: &Path| Engine::load(program, options.clone()).map_err(|e| e.at(path.display()));
    let [first, second] = programs;
    let (first, second) = (load(first, &args.first)?, load(second, &args.second)?);
    let mut diff = Diff::new(&first, &second, args.tolerance)?;
    let mut calls = Vec::new();
    for (number, (function, file)) in functions.iter().enumerate() {
        interrupt::check()?;
        let arrays = file.map(arrays::read).transpose()?.unwrap_or_default();
        let inputs = |engine: &Engine| -> Result<Tensors> {
            let place = |e: Failure| e.at(file.unwrap_or(Path::new("")).display());
            Ok(arrays::given_inputs_of(engine.program().function(function)?, arrays.clone()).map_err(place)?.0)
        };
        let scratch = match &args.tmp {
            Some(directory) => tempfile::tempfile_in(directory),
            None => tempfile::tempfile(),
        };
        let scratch = scratch
            .map_err(|e| refused("write a temporary file", args.tmp.as_deref().unwrap_or(&std::env::temp_dir()), &e))?;
        let found = diff.call(function, [&inputs(&first)?, &inputs(&second)?], scratch);
        calls.push(found.map_err(|e| {
            let error = e.at(format!("call {number} ({function})"));
            let made_up = "the inputs were made up, and may not go together: --call FUNCTION:FILE gives others";
            if file.is_none() { error.hint(made_up) } else { error }
        })?);
    }
    let equal = calls.iter().all(|call| call.divergence.is_none());
    match args.json {
        true => console.json(&json(&structure, &calls))?,
        false => console.print(&text(args, &structure, &calls))?,
    }
    Ok(ExitCode::from(u8::from(!equal)))
}

/// The program of a package, or of a checkpoint.
fn program(path: &Path) -> Result<Program> {
    if Bundle::recognizes(path) || !path.join("config.json").is_file() {
        return Ok(Bundle::open(path)?.read_package()?.program);
    }
    Ok(semantic(&Checkpoint::open(path)?)?.program)
}

/// The functions to call with the files of their inputs.
fn functions<'a>(args: &'a Args, programs: &[Program; 2]) -> Result<Vec<(String, Option<&'a Path>)>> {
    let [first, second] = programs;
    if !args.calls.is_empty() {
        for (program, path) in [(first, &args.first), (second, &args.second)] {
            for call in &args.calls {
                program.function(&call.function).map_err(|e| Failure::Usage(e.at(path.display())))?;
            }
        }
        return Ok(args.calls.iter().map(|call| (call.function.clone(), Some(call.file.as_path()))).collect());
    }
    let names = |program: &Program| program.functions.iter().map(|f| f.name.clone()).collect::<Vec<String>>();
    let both: Vec<String> = match (&first.functions[..], &second.functions[..]) {
        ([only], [_]) => vec![only.name.clone()],
        _ => names(first).into_iter().filter(|name| second.functions.iter().any(|f| &f.name == name)).collect(),
    };
    if both.is_empty() {
        let (a, b) = (names(first).join(", "), names(second).join(", "));
        return Err(Error::new(format!("found no function that both have: {a} in A, {b} in B")).into());
    }
    Ok(both.into_iter().map(|name| (name, None)).collect())
}

/// What the programs have.
#[derive(Serialize)]
struct Structure {
    functions_of_both: Vec<String>,
    functions_of_a_only: Vec<String>,
    functions_of_b_only: Vec<String>,
    operations: [usize; 2],
}

impl Structure {
    fn of([a, b]: &[Program; 2]) -> Structure {
        let has = |program: &Program, name: &str| program.functions.iter().any(|f| f.name == name);
        let names = |program: &Program, other: &Program, both: bool| {
            let names = program.functions.iter().map(|f| f.name.clone());
            names.filter(|name| has(other, name) == both).collect()
        };
        let operations = |program: &Program| program.functions.iter().map(|f| f.block.operations.len()).sum();
        Structure {
            functions_of_both: names(a, b, true),
            functions_of_a_only: names(a, b, false),
            functions_of_b_only: names(b, a, false),
            operations: [operations(a), operations(b)],
        }
    }

    fn text(&self) -> String {
        let [a, b] = self.operations;
        let mut parts = vec![format!("operations: {a} in A, {b} in B")];
        for (what, names) in [
            ("functions of both", &self.functions_of_both),
            ("only in A", &self.functions_of_a_only),
            ("only in B", &self.functions_of_b_only),
        ] {
            if !names.is_empty() {
                parts.push(format!("{what}: {}", names.join(", ")));
            }
        }
        parts.join("; ") + "\n"
    }
}

fn json(structure: &Structure, calls: &[CallDiff]) -> serde_json::Value {
    let calls: Vec<serde_json::Value> = calls
        .iter()
        .map(|call| {
            let values: Vec<serde_json::Value> =
                call.values.iter().map(|value| value_json(value, call.tolerance)).collect();
            serde_json::json!({
                "function": call.function,
                "tolerance": call.tolerance,
                "equal": call.divergence.is_none(),
                "first_difference": call.first_difference().map(|value| &value.second),
                "divergence": call.divergence.as_ref().map(|blame| serde_json::json!({
                    "name": call.values[blame.value].second,
                    "operation": call.values[blame.value].operation,
                    "type": call.values[blame.value].kind,
                    "inputs": blame.inputs.iter().map(|input| serde_json::json!({
                        "name": input.name, "relative": finite(input.relative),
                    })).collect::<Vec<_>>(),
                    "constants": blame.constants,
                })),
                "only_in_a": call.only_first,
                "only_in_b": call.only_second,
                "values": values,
            })
        })
        .collect();
    serde_json::json!({ "structure": structure, "calls": calls })
}

fn value_json(value: &Compared, tolerance: f64) -> serde_json::Value {
    serde_json::json!({
        "name": value.first,
        "name_in_b": value.second,
        "operation": value.operation,
        "type": value.kind,
        "shape": value.shape,
        "max_abs": finite(value.max_abs),
        "relative": finite(value.relative),
        "psnr": finite(value.psnr),
        "diverges": value.diverges(tolerance),
    })
}

/// JSON has no infinity; null stands for it.
fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

fn text(args: &Args, structure: &Structure, calls: &[CallDiff]) -> String {
    let mut text = structure.text();
    for (number, call) in calls.iter().enumerate() {
        text += &format!("\ncall {number}, {}:\n", call.function);
        if !args.summary {
            text += &rows(call);
        }
        text += &summary(call);
    }
    text
}

fn rows(call: &CallDiff) -> String {
    let row = |value: &Compared| {
        let name = match value.first == value.second {
            true => value.first.clone(),
            false => format!("{} = {}", value.first, value.second),
        };
        let mark = if value.diverges(call.tolerance) { "diverges" } else { "" };
        let psnr = if value.psnr.is_finite() { format!("{:.1}", value.psnr) } else { "-".to_owned() };
        let shape = format!("{:?}", value.shape);
        let numbers = [scientific(value.max_abs), scientific(value.relative), psnr];
        let end = mark.to_owned();
        [name, value.kind.clone(), shape].into_iter().chain(numbers).chain([end]).collect::<Vec<String>>()
    };
    table(&["value", "type", "shape", "max abs", "relative", "PSNR dB", ""], &[3, 4, 5], call.values.iter().map(row))
}

fn scientific(number: f64) -> String {
    if number == 0.0 { "0".to_owned() } else { format!("{number:.2e}") }
}

fn summary(call: &CallDiff) -> String {
    let place = |value: &Compared| match value.operation.is_empty() {
        true => format!("`{}` ({})", value.second, value.kind),
        false if value.operation == value.second => format!("`{}` ({})", value.second, value.kind),
        false => format!("`{}`, computed by `{}` ({})", value.second, value.operation, value.kind),
    };
    let mut text = format!(
        "{} values compared; {} only in A, {} only in B\n",
        call.values.len(),
        call.only_first,
        call.only_second
    );
    if let Some(value) = call.first_difference() {
        text += &format!("first difference: {}, relative {}\n", place(value), scientific(value.relative));
    }
    let Some(blame) = &call.divergence else {
        return text + &format!("equal within {}\n", call.tolerance);
    };
    let value = &call.values[blame.value];
    let found = scientific(value.relative);
    text += &format!("FIRST DIVERGENCE: {}, relative {found}, more than {}\n", place(value), call.tolerance);
    for input in &blame.inputs {
        let agrees = if input.relative > call.tolerance { "differs" } else { "agrees" };
        text += &format!("  its input `{}` {agrees}: relative {}\n", input.name, scientific(input.relative));
    }
    for constant in &blame.constants {
        text += &format!("  its constant {constant}\n");
    }
    text
}
