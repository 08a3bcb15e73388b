//! `quince bench`: how fast a package loads, reads a prompt and answers.

use crate::console::{Console, Counted, table};
use crate::failure::Result;
use crate::options::engine::EngineArgs;
use crate::units;
use quince_engine::{Engine, Precision};
use quince_runtime::{Bench, BenchOptions, Bundle, Spread, bench};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure how fast a package loads, reads a prompt and answers
///
/// Everything is measured as often as --repeat says, loading included; the median and the ends are printed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince bench tiny.bundle --prefill 128 --decode 64
  quince bench story.bundle --prefill 512 --decode 128 --depth 1024 --threads 2 --repeat 5 --json")]
pub struct Args {
    /// A bundle, or a package
    package: PathBuf,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().prefill)]
    prefill: usize,
    /// Tokens that are decoded
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().decode)]
    decode: usize,
    /// Tokens in the cache when decoding begins
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().depth)]
    depth: usize,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().repeat)]
    repeat: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Measures.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let bundle = Bundle::open(&args.package)?;
    let options =
        BenchOptions { prefill: args.prefill, decode: args.decode, depth: args.depth, repeat: args.repeat };
    let engine = args.engine.options(console, Precision::Default);
    let bar = console.bar("measuring", args.repeat as u64, Counted::Things("repetitions"));
    let mut load = || Engine::load(bundle.read_package()?.program, engine.clone());
    let found = bench(&mut load, &options, &mut |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    let found = found?;
    if args.json { console.json(&found)? } else { console.print(&text(&found))? }
    Ok(ExitCode::SUCCESS)
}

fn text(found: &Bench) -> String {
    let rate = |value: f64| format!("{value:.1} tokens/s");
    let seconds = |value: f64| format!("{value:.3} s");
    let bytes = |value: f64| units::bytes(value as u64);
    let rows = [
        row("load", Some(found.load_seconds), seconds),
        row("first token", found.first_token_seconds, seconds),
        row("prefill", found.prefill_tokens_per_second, rate),
        row("decode", found.decode_tokens_per_second, rate),
        row("peak resident memory", found.peak_resident_bytes, bytes),
    ];
    let mut text = table(&["", "median", "least", "most"], &[1, 2, 3], rows.into_iter().flatten());
    text += &format!(
        "\nprompt of {} tokens, {} decoded after {}; {} repetitions, {} threads, {}\n",
        found.prefill, found.decode, found.depth, found.repeat, found.threads, found.isa
    );
    text
}

fn row(name: &str, spread: Option<Spread>, show: impl Fn(f64) -> String) -> Option<Vec<String>> {
    let spread = spread?;
    Some(vec![name.to_string(), show(spread.median), show(spread.min), show(spread.max)])
}
