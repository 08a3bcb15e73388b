//! `quince ops`: the reference of operations, printed from their definitions.

use crate::console::{self, Console};
use crate::failure::Result;
use quince_mil::op::Default;
use quince_mil::{Op, Opset, Param, ops};
use quince_tensor::Error;
use serde::Serialize;
use std::process::ExitCode;

/// Print the reference of operations: what each computes, its parameters, and since when
///
/// These are the operations that quince checks, runs, and prints. An operation that is not here is kept when a package
/// is read and written again, but cannot be run.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince ops             all operations, a line each
  quince ops linear      one operation, in full
  quince ops --json      all of it, for a machine")]
pub struct Args {
    /// Only this operation, in full
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the table, or one operation.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let mut chosen: Vec<&dyn Op> = match &args.name {
        None => ops::OPS.to_vec(),
        Some(name) => vec![find(name)?],
    };
    chosen.sort_by_key(|op| op.name());
    if args.json {
        let entries: Vec<Entry> = chosen.into_iter().map(Entry::of).collect();
        match (&args.name, entries.first()) {
            (Some(_), Some(only)) => console.json(only)?,
            _ => console.json(&entries)?,
        }
    } else if args.name.is_some() {
        chosen.into_iter().try_for_each(|op| console.print(&page(op)))?;
    } else {
        let rows = chosen.into_iter().map(|op| vec![op.name().to_string(), since(op), summary(op.doc())]);
        console.print(&console::table(&["operation", "since", "what it computes"], &[], rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn find(name: &str) -> Result<&'static dyn Op> {
    if let Some(op) = ops::find(name) {
        return Ok(op);
    }
    let near: Vec<&str> = ops::OPS.iter().map(|op| op.name()).filter(|known| is_near(known, name)).collect();
    let error = Error::new(format!("found no operation `{name}`"));
    Err(match near.is_empty() {
        true => error.hint("`quince ops` lists them all"),
        false => error.hint(format_args!("there is {}", near.join(", "))),
    }
    .into())
}

fn is_near(known: &str, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.len() > 2 && (known.contains(&name) || name.contains(known))
}

/// An operation as JSON has it.
#[derive(Serialize)]
struct Entry {
    name: &'static str,
    since: String,
    doc: &'static str,
    params: Vec<ParamEntry>,
}

#[derive(Serialize)]
struct ParamEntry {
    name: &'static str,
    constant: bool,
    optional: bool,
    variadic: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    types: Vec<&'static str>,
}

impl Entry {
    fn of(op: &dyn Op) -> Entry {
        let params = op.params().iter().map(|param| ParamEntry {
            name: param.name,
            constant: param.constant,
            optional: param.optional,
            variadic: param.variadic,
            default: param.default.map(default_json),
            types: param.types.iter().map(|dtype| dtype.name()).collect(),
        });
        Entry { name: op.name(), since: since(op), doc: op.doc(), params: params.collect() }
    }
}

fn default_json(default: Default) -> serde_json::Value {
    match default {
        Default::Bool(value) => value.into(),
        Default::Int(value) => value.into(),
        Default::Float(value) => value.into(),
        Default::Str(value) => value.into(),
    }
}

/// `iOS18`; semantic operations are in no system.
fn since(op: &dyn Op) -> String {
    match op.since() {
        Opset::CoreML5 => "iOS15",
        Opset::CoreML6 => "iOS16",
        Opset::CoreML7 => "iOS17",
        Opset::CoreML8 => "iOS18",
        Opset::CoreML9 => "iOS26",
        Opset::Semantic => "semantic",
    }
    .to_string()
}

/// The first sentence, on one line.
fn summary(doc: &str) -> String {
    let line: Vec<&str> = doc.split_whitespace().collect();
    let line = line.join(" ");
    let end = line.find(". ").unwrap_or(line.len());
    line.get(..end).unwrap_or(&line).trim_end_matches('.').to_string()
}

fn page(op: &dyn Op) -> String {
    let heading = format!("{} (since {})\n\n{}\n\n", op.name(), since(op), op.doc().trim());
    let rows = op.params().iter().map(|param| vec![param.name.to_string(), manner(param), types(param)]);
    heading + &console::table(&["parameter", "", "types"], &[], rows)
}

fn manner(param: &Param) -> String {
    let mut words = Vec::new();
    if param.constant {
        words.push("constant".to_string());
    }
    if param.variadic {
        words.push("one or more".to_string());
    }
    match param.default {
        Some(Default::Str(value)) => words.push(format!("\"{value}\" if not given")),
        Some(default) => words.push(format!("{} if not given", default_json(default))),
        None if param.optional => words.push("optional".to_string()),
        None => {}
    }
    words.join(", ")
}

fn types(param: &Param) -> String {
    let names: Vec<&str> = param.types.iter().map(|dtype| dtype.name()).collect();
    if names.is_empty() { "any".to_string() } else { names.join(", ") }
}
