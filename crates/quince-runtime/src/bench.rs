//! How fast a model loads, reads a prompt and answers, and how much memory that takes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quince_engine::Engine;
use quince_tensor::{Result, bail};
use serde::Serialize;

use crate::generate::LanguageModel;
use crate::metrics::Latencies;
use crate::model::Decoder;
use crate::sampler::most_likely;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BenchOptions {
    /// Tokens of the prompt.
    pub prefill: usize,
    /// Tokens that are decoded.
    pub decode: usize,
    /// Tokens in the cache when decoding begins.
    pub depth: usize,
    /// How often everything is measured, loading included.
    pub repeat: usize,
}

impl Default for BenchOptions {
    fn default() -> BenchOptions {
        BenchOptions { prefill: 512, decode: 128, depth: 0, repeat: 5 }
    }
}

/// What was measured, in JSON as the command gives it. What was not asked for is null.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Bench {
    /// Tokens per second of a prompt, from an empty cache to the logits that follow it; the second prompt of a process,
    /// when plans are made and weights are in memory.
    pub prefill_tokens_per_second: Option<Spread>,
    /// Tokens per second of decoding, one call each.
    pub decode_tokens_per_second: Option<Spread>,
    /// Opening the package until it takes calls.
    pub load_seconds: Spread,
    /// From loaded to the first token chosen after the prompt: the first prompt of a process.
    pub first_token_seconds: Option<Spread>,
    /// The most memory that the process ever had in use, pages of mapped files included; null where the system does not
    /// tell. It never falls from one repetition to the next.
    pub peak_resident_bytes: Option<Spread>,
    /// The time of single decode calls of all repetitions.
    pub decode_latency_seconds: Option<Percentiles>,
    /// Tokens of the prompt.
    pub prefill: usize,
    /// Tokens decoded.
    pub decode: usize,
    /// Tokens in the cache when decoding began.
    pub depth: usize,
    /// Repetitions.
    pub repeat: usize,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set of the kernels.
    pub isa: &'static str,
    /// The version of quince.
    pub version: &'static str,
}

/// The middle and the ends of what repetitions gave.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// Half are below; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// The distribution of times, in seconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Percentiles {
    /// Half are shorter.
    pub median: f64,
    /// Nine of ten are shorter.
    pub p90: f64,
    /// Ninety-nine of a hundred are shorter.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    /// Of some values, in any order; `None` without any.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Spread { median, min, max })
    }
}

impl From<Latencies> for Percentiles {
    fn from(times: Latencies) -> Percentiles {
        let [median, p90, p99, max] = [times.median, times.p90, times.p99, times.max].map(|time| time.as_secs_f64());
        Percentiles { median, p90, p99, max }
    }
}

/// Measures a model that `load` opens anew for each repetition: package and engine, so that both count as loading.
/// Tokens are pseudo-random and the same each time. `progress` hears how many repetitions are done.
///
/// # Errors
/// No repetition, or more tokens than the context; what `load` and the engine report.
pub fn bench(
    load: &mut dyn FnMut() -> Result<Engine>,
    options: &BenchOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Bench> {
    let mut runs = Vec::new();
    let mut machine = (0, "");
    for done in 0..options.repeat {
        progress(done, options.repeat);
        let start = Instant::now();
        let engine = Arc::new(load()?);
        let mut decoder = Decoder::new(engine.clone())?;
        let load = start.elapsed();
        machine = (engine.threads(), engine.isa().name());
        runs.push(Run::measure(&mut decoder, options, load)?);
    }
    progress(options.repeat, options.repeat);
    let spread = |value: &dyn Fn(&Run) -> Option<f64>| Spread::of(&runs.iter().filter_map(value).collect::<Vec<_>>());
    let Some(load_seconds) = spread(&|run| Some(run.load.as_secs_f64())) else {
        bail!("bench: found 0 repetitions, expected at least one");
    };
    let latencies: Vec<Duration> = runs.iter().flat_map(|run| run.decode.iter().copied()).collect();
    Ok(Bench {
        prefill_tokens_per_second: spread(&|run| rate(options.prefill, run.prefill?)),
        decode_tokens_per_second: spread(&|run| rate(run.decode.len(), run.decode.iter().sum())),
        load_seconds,
        first_token_seconds: spread(&|run| Some(run.first_token?.as_secs_f64())),
        peak_resident_bytes: spread(&|run| run.peak_resident_bytes.map(|bytes| bytes as f64)),
        decode_latency_seconds: Latencies::of(&latencies).map(Percentiles::from),
        prefill: options.prefill,
        decode: options.decode,
        depth: options.depth,
        repeat: options.repeat,
        threads: machine.0,
        isa: machine.1,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// One repetition.
struct Run {
    load: Duration,
    first_token: Option<Duration>,
    prefill: Option<Duration>,
    decode: Vec<Duration>,
    peak_resident_bytes: Option<u64>,
}

impl Run {
    fn measure(decoder: &mut Decoder, options: &BenchOptions, load: Duration) -> Result<Run> {
        let (context, wanted) = (decoder.context(), options.prefill.max(options.depth.saturating_add(options.decode)));
        if wanted > context {
            bail!(
                "bench: found {wanted} tokens to compute, expected at most {context}, the model's context";
                hint: "use smaller --prefill, --decode and --depth, or convert the model with a larger --context"
            );
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let prompt = random.tokens(options.prefill, decoder.vocab_size());
        let (mut first_token, mut prefill) = (None, None);
        if options.prefill > 0 {
            let start = Instant::now();
            fill(decoder, &prompt)?;
            most_likely(decoder.logits())?;
            first_token = Some(start.elapsed());
            let start = Instant::now();
            fill(decoder, &prompt)?;
            prefill = Some(start.elapsed());
        }
        let decode = Run::decode(decoder, options, &mut random)?;
        Ok(Run { load, first_token, prefill, decode, peak_resident_bytes: peak_resident_bytes() })
    }

    fn decode(decoder: &mut Decoder, options: &BenchOptions, random: &mut Random) -> Result<Vec<Duration>> {
        let (depth, vocab_size) = (options.depth, decoder.vocab_size());
        let before = random.tokens(depth, vocab_size);
        fill(decoder, &before)?;
        let mut times = Vec::with_capacity(options.decode);
        for (i, token) in random.tokens(options.decode, vocab_size).into_iter().enumerate() {
            if i == 0 {
                // The first call makes the plan.
                decoder.decode(token)?;
                decoder.truncate(depth)?;
            }
            let start = Instant::now();
            decoder.decode(token)?;
            times.push(start.elapsed());
        }
        Ok(times)
    }
}

/// Empties the cache and fills it with `tokens`.
fn fill(decoder: &mut Decoder, tokens: &[u32]) -> Result<()> {
    decoder.truncate(0)?;
    decoder.prefill(tokens, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn tokens(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        (0..count).map(|_| (self.next() % vocab_size.max(1) as u64) as u32).collect()
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The most memory that this process ever had in use, in bytes: `VmHWM` of Linux.
#[cfg(target_os = "linux")]
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The most memory that this process ever had in use; this system does not tell without foreign code.
#[cfg(not(target_os = "linux"))]
pub fn peak_resident_bytes() -> Option<u64> {
    None
}
