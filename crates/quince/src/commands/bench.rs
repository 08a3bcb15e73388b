//! `quince bench`: how fast a package loads, reads a prompt and answers, or embeds.

use crate::console::{Console, Counted, table};
use crate::failure::Result;
use crate::options::engine::EngineArgs;
use crate::units;
use quince_engine::{Engine, Precision};
use quince_runtime::{
    Bench, BenchOptions, Bundle, EmbedBench, EmbedBenchOptions, Machine, Peak, Percentiles, Spread, bench, bench_embed,
};
use quince_tensor::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure how fast a package loads, reads a prompt and answers, or embeds
///
/// Everything is measured as often as --repeat says, loading included; the median and the ends are printed. The read
/// bandwidth and the arithmetic of this machine are measured with the same threads, and every rate is related to them:
/// decoding reads all weights for each token, a prompt and an embedding are products with weights.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince bench tiny.bundle --prefill 128 --decode 64
  quince bench story.bundle --prefill 128,512,2048 --decode 128 --depth 0,2048 --threads 2 --repeat 5 --json
  quince bench minilm.mlpackage --embed --batch 1,32 --length 16,64,256 --threads 2 --json")]
pub struct Args {
    /// A bundle, or a package
    package: PathBuf,
    /// Tokens of the prompt; several lengths with commas between them
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = BenchOptions::default().prefill)]
    prefill: Vec<usize>,
    /// Tokens that are decoded
    #[arg(long, value_name = "N", default_value_t = BenchOptions::default().decode)]
    decode: usize,
    /// Tokens in the cache when decoding begins; several with commas between them
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = BenchOptions::default().depth)]
    depth: Vec<usize>,
    /// Measure embeddings: sentences per second by batch and length
    #[arg(long, conflicts_with_all = ["prefill", "decode", "depth"])]
    embed: bool,
    /// With --embed: sentences of a call
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = EmbedBenchOptions::default().batch,
          requires = "embed")]
    batch: Vec<usize>,
    /// With --embed: tokens of a sentence
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = EmbedBenchOptions::default().length,
          requires = "embed")]
    length: Vec<usize>,
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
    let engine = args.engine.options(console, Precision::Default);
    let bar = console.bar("measuring", args.repeat as u64, Counted::Things("repetitions"));
    let mut load = || Engine::load(bundle.read_package()?.program, engine.clone());
    let mut progress = |done: usize, _| bar.set_position(done as u64);
    let place = |error: Error| error.at(args.package.display());
    let machine = || {
        bar.finish_and_clear();
        Machine::measure(console.threads())
    };
    if args.embed {
        let options = EmbedBenchOptions { batch: args.batch.clone(), length: args.length.clone(), repeat: args.repeat };
        let mut found = bench_embed(&mut load, &options, &mut progress).map_err(place)?;
        found.relate(machine()?);
        if args.json { console.json(&found)? } else { console.print(&embed_text(&found))? }
    } else {
        let options = BenchOptions {
            prefill: args.prefill.clone(),
            decode: args.decode,
            depth: args.depth.clone(),
            repeat: args.repeat,
        };
        let mut found = bench(&mut load, &options, &mut progress).map_err(place)?;
        found.relate(machine()?);
        if args.json { console.json(&found)? } else { console.print(&decoder_text(&found))? }
    }
    Ok(ExitCode::SUCCESS)
}

const HEADING: [&str; 5] = ["", "median", "least", "most", "of what the machine can do"];

fn decoder_text(found: &Bench) -> String {
    let rate = |value: f64| format!("{value:.1} tokens/s");
    let mut rows = vec![
        row("load", Some(found.load_seconds), seconds, String::new()),
        row("first token", found.first_token_seconds, seconds, String::new()),
    ];
    for (_, prefill) in &found.prefill.0 {
        let name = format!("prompt of {}", prefill.tokens);
        rows.push(row(&name, Some(prefill.tokens_per_second), rate, arithmetic(prefill.arithmetic.as_ref())));
    }
    for (_, decode) in &found.decode.0 {
        let name = format!("{} decoded after {}", decode.tokens, decode.depth);
        let share = decode.reading.map(|share| format!("{} of reading", percent(share.fraction))).unwrap_or_default();
        rows.push(row(&name, Some(decode.tokens_per_second), rate, share));
    }
    rows.push(row("peak resident memory", found.peak_resident_bytes, bytes, String::new()));
    let mut text = table(&HEADING, &[1, 2, 3], rows.into_iter().flatten());
    let times = found.decode.0.iter().map(|(_, d)| (format!("token after {}", d.depth), d.latency_seconds));
    text += &latencies(times);
    text += &conditions(found.machine.as_ref(), found.repeat, found.threads, found.isa);
    text
}

fn embed_text(found: &EmbedBench) -> String {
    let rate = |value: f64| format!("{value:.1} sentences/s");
    let mut rows = vec![
        row("load", Some(found.load_seconds), seconds, String::new()),
        row("first embedding", found.first_embedding_seconds, seconds, String::new()),
    ];
    for ((_, spread), (_, one)) in found.sentences_per_second.0.iter().zip(&found.embed.0) {
        let name = format!("{} x {} tokens", one.batch, one.length);
        rows.push(row(&name, Some(*spread), rate, arithmetic(one.arithmetic.as_ref())));
    }
    rows.push(row("peak resident memory", found.peak_resident_bytes, bytes, String::new()));
    let mut text = table(&HEADING, &[1, 2, 3], rows.into_iter().flatten());
    let times = found.embed.0.iter().map(|(_, one)| {
        let name = format!("call of {} x {} tokens", one.batch, one.length);
        (name, one.latency_seconds)
    });
    text += &latencies(times);
    text += &conditions(found.machine.as_ref(), found.repeat, found.threads, found.isa);
    text
}

fn row(name: &str, spread: Option<Spread>, show: impl Fn(f64) -> String, share: String) -> Option<Vec<String>> {
    let spread = spread?;
    Some(vec![name.to_string(), show(spread.median), show(spread.min), show(spread.max), share])
}

/// A table of times of single calls; nothing without any.
fn latencies(times: impl Iterator<Item = (String, Percentiles)>) -> String {
    let milliseconds = |value: f64| format!("{:.2} ms", 1e3 * value);
    let rows: Vec<Vec<String>> = times
        .map(|(name, t)| [name].into_iter().chain([t.median, t.p90, t.p99, t.max].map(milliseconds)).collect())
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&["", "median", "90 %", "99 %", "longest"], &[1, 2, 3, 4], rows))
}

fn conditions(machine: Option<&Machine>, repeat: usize, threads: usize, isa: &str) -> String {
    let mut text = format!("\n{repeat} repetitions, {threads} threads, {isa}");
    if let Some(machine) = machine {
        text += &format!("; this machine reads {}/s", units::bytes(machine.read_bytes_per_second as u64));
        for (kind, peak) in &machine.operations_per_second.0 {
            text += &format!(", computes {:.0} G{kind} operations/s", 1e-9 * peak);
        }
    }
    text + "\n"
}

fn arithmetic(peak: Option<&Peak>) -> String {
    let shares = peak.into_iter().flat_map(|peak| &peak.0);
    let texts: Vec<String> = shares.map(|(kind, share)| format!("{} of {kind}", percent(share.fraction))).collect();
    texts.join(", ")
}

fn percent(fraction: f64) -> String {
    format!("{:.0} %", 100.0 * fraction)
}

fn seconds(value: f64) -> String {
    format!("{value:.3} s")
}

fn bytes(value: f64) -> String {
    units::bytes(value as u64)
}
