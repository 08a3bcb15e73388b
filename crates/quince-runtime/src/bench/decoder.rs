//! How fast a decoder reads prompts and answers.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quince_engine::{Engine, Work, work};
use quince_mil::Program;
use quince_tensor::{Result, bail};
use serde::Serialize;

use super::{Machine, Named, Peak, Percentiles, Random, Share, Spread, peak_resident_bytes, spread_of};
use crate::generate::LanguageModel;
use crate::metrics::Latencies;
use crate::model::Decoder;
use crate::sampler::most_likely;

/// What is measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BenchOptions {
    /// Tokens of each prompt; 0 for none.
    pub prefill: Vec<usize>,
    /// Tokens that are decoded.
    pub decode: usize,
    /// Tokens in the cache when decoding begins, for each run of decoding.
    pub depth: Vec<usize>,
    /// How often everything is measured, loading included.
    pub repeat: usize,
}

impl Default for BenchOptions {
    fn default() -> BenchOptions {
        BenchOptions { prefill: vec![512], decode: 128, depth: vec![0], repeat: 5 }
    }
}

/// What was measured, in JSON as the command gives it. What was not asked for is null. Where several prompts or depths
/// were, the rates at the top are those of the first.
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
    /// By length of the prompt, as `pp512`.
    pub prefill: Named<Prefill>,
    /// By tokens and depth, as `tg128_d2048`.
    pub decode: Named<Decode>,
    /// What the machine can do at most, if that was measured.
    pub machine: Option<Machine>,
    /// Repetitions.
    pub repeat: usize,
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set of the kernels.
    pub isa: &'static str,
    /// The version of quince.
    pub version: &'static str,
}

/// Prompts of one length.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// As at the top.
    pub tokens_per_second: Spread,
    /// Products with weights, by the median; null if the machine was not measured.
    pub arithmetic: Option<Peak>,
    #[serde(skip)]
    operations: Option<u64>,
}

/// Decoding at one depth.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Decode {
    /// Tokens decoded.
    pub tokens: usize,
    /// Tokens in the cache when decoding began.
    pub depth: usize,
    /// As at the top.
    pub tokens_per_second: Spread,
    /// The time of single calls of all repetitions.
    pub latency_seconds: Percentiles,
    /// Weights and the part of the cache in use, by the median; null if the machine was not measured.
    pub reading: Option<Share>,
    #[serde(skip)]
    bytes: Option<u64>,
}

impl Bench {
    /// Relates every rate to what the machine can do.
    pub fn relate(&mut self, machine: Machine) {
        for (_, prefill) in &mut self.prefill.0 {
            let per_token = prefill.operations.map(|operations| operations as f64 / prefill.tokens.max(1) as f64);
            let rate = prefill.tokens_per_second.median;
            prefill.arithmetic = per_token.map(|operations| machine.computing(operations * rate));
        }
        for (_, decode) in &mut self.decode.0 {
            let rate = decode.tokens_per_second.median;
            decode.reading = decode.bytes.map(|bytes| machine.reading(bytes as f64 * rate));
        }
        self.machine = Some(machine);
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
    let (mut runs, mut loaded) = (Vec::new(), None);
    for done in 0..options.repeat {
        progress(done, options.repeat);
        // The engine before goes first, so that there is never memory for two.
        drop(loaded.take());
        let start = Instant::now();
        let engine = Arc::new(load()?);
        let mut decoder = Decoder::new(engine)?;
        runs.push(Run::measure(&mut decoder, options, start.elapsed())?);
        loaded = Some(decoder);
    }
    progress(options.repeat, options.repeat);
    let (Some(decoder), Some(load_seconds)) = (loaded, spread_of(&runs, |run| Some(run.load.as_secs_f64()))) else {
        bail!("bench: found 0 repetitions, expected at least one");
    };
    let (prefill, decode) = (prefills(&decoder, options, &runs)?, decodes(&decoder, options, &runs)?);
    Ok(Bench {
        prefill_tokens_per_second: prefill.first().map(|prefill| prefill.tokens_per_second),
        decode_tokens_per_second: decode.first().map(|decode| decode.tokens_per_second),
        load_seconds,
        first_token_seconds: spread_of(&runs, |run| Some(run.first_token?.as_secs_f64())),
        peak_resident_bytes: spread_of(&runs, |run| run.peak_resident_bytes.map(|bytes| bytes as f64)),
        decode_latency_seconds: decode.first().map(|decode| decode.latency_seconds),
        prefill,
        decode,
        machine: None,
        repeat: options.repeat,
        threads: decoder.engine().threads(),
        isa: decoder.engine().isa().name(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

fn prefills(decoder: &Decoder, options: &BenchOptions, runs: &[Run]) -> Result<Named<Prefill>> {
    let mut found = Vec::new();
    for (i, &tokens) in options.prefill.iter().enumerate() {
        let Some(tokens_per_second) = spread_of(runs, |run| rate(tokens, run.prefill[i]?)) else { continue };
        let operations = prompt_operations(decoder, tokens)?;
        let prefill = Prefill { tokens, tokens_per_second, arithmetic: None, operations };
        found.push((format!("pp{tokens}"), prefill));
    }
    Ok(Named(found))
}

fn decodes(decoder: &Decoder, options: &BenchOptions, runs: &[Run]) -> Result<Named<Decode>> {
    let mut found = Vec::new();
    let weights = work_of(decoder.engine().program(), 1)?.map(|work| work.weight_bytes);
    for (i, &depth) in options.depth.iter().enumerate() {
        let rates = spread_of(runs, |run| rate(run.decode[i].len(), run.decode[i].iter().sum()));
        let times: Vec<Duration> = runs.iter().flat_map(|run| run.decode[i].iter().copied()).collect();
        let (Some(tokens_per_second), Some(latencies)) = (rates, Latencies::of(&times)) else { continue };
        let cached = cache_bytes(decoder).saturating_mul((depth + options.decode / 2) as u64);
        let decode = Decode {
            tokens: options.decode,
            depth,
            tokens_per_second,
            latency_seconds: latencies.into(),
            reading: None,
            bytes: weights.map(|weights| weights.saturating_add(cached)),
        };
        found.push((format!("tg{}_d{depth}", options.decode), decode));
    }
    Ok(Named(found))
}

/// Operations of a prompt's products with weights: those of the function that reads prompts, for as many tokens as
/// there are.
fn prompt_operations(decoder: &Decoder, tokens: usize) -> Result<Option<u64>> {
    let chunk = decoder.prefill_length().unwrap_or(1);
    let work = work_of(decoder.engine().program(), chunk)?;
    Ok(work.map(|work| (work.operations as f64 * tokens as f64 / chunk as f64) as u64))
}

/// The work of the function whose inputs have fixed sizes and that takes so many tokens.
fn work_of(program: &Program, tokens: usize) -> Result<Option<Work>> {
    for function in &program.functions {
        let shapes = function.inputs.iter().map(|input| function.ty(input.var).as_tensor()?.dims());
        let Some(shapes) = shapes.collect::<Option<Vec<_>>>() else { continue };
        let takes = |(input, shape): (&quince_mil::FunctionInput, &Vec<usize>)| {
            function.var(input.var).name == "input_ids" && shape[..] == [1, tokens]
        };
        if function.inputs.iter().zip(&shapes).any(takes) {
            return work(function, &shapes);
        }
    }
    Ok(None)
}

/// Bytes of the cache for one token: what has the context as its third axis, states and inputs alike.
fn cache_bytes(decoder: &Decoder) -> u64 {
    let context = decoder.context();
    let functions = &decoder.engine().program().functions;
    let of = |function: &quince_mil::Function| -> u64 {
        let types = function.inputs.iter().filter_map(|input| function.ty(input.var).as_tensor());
        let bytes = types.filter_map(|ty| {
            let dims = ty.dims().filter(|dims| dims.get(2) == Some(&context))?;
            ty.dtype.byte_len(dims.iter().product::<usize>() / context.max(1))
        });
        bytes.map(|bytes| bytes as u64).sum()
    };
    functions.iter().map(of).max().unwrap_or(0)
}

/// One repetition.
struct Run {
    load: Duration,
    first_token: Option<Duration>,
    /// By prompt.
    prefill: Vec<Option<Duration>>,
    /// By depth: each token's time.
    decode: Vec<Vec<Duration>>,
    peak_resident_bytes: Option<u64>,
}

impl Run {
    fn measure(decoder: &mut Decoder, options: &BenchOptions, load: Duration) -> Result<Run> {
        let deepest = options.depth.iter().max().map_or(0, |depth| depth.saturating_add(options.decode));
        let wanted = options.prefill.iter().copied().max().unwrap_or(0).max(deepest);
        let context = decoder.context();
        if wanted > context {
            bail!(
                "bench: found {wanted} tokens to compute, expected at most {context}, the model's context";
                hint: "use smaller --prefill, --decode and --depth, or convert the model with a larger --context"
            );
        }
        let mut random = Random::new();
        let mut run = Run { load, first_token: None, prefill: vec![], decode: vec![], peak_resident_bytes: None };
        for &tokens in &options.prefill {
            let prompt = random.tokens(tokens, decoder.vocab_size());
            run.prefill.push(None);
            if tokens > 0 {
                let start = Instant::now();
                fill(decoder, &prompt)?;
                most_likely(decoder.logits())?;
                run.first_token.get_or_insert(start.elapsed());
                let start = Instant::now();
                fill(decoder, &prompt)?;
                run.prefill.pop();
                run.prefill.push(Some(start.elapsed()));
            }
        }
        for &depth in &options.depth {
            run.decode.push(Run::decode(decoder, depth, options.decode, &mut random)?);
        }
        run.peak_resident_bytes = peak_resident_bytes();
        Ok(run)
    }

    fn decode(decoder: &mut Decoder, depth: usize, count: usize, random: &mut Random) -> Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        if count == 0 {
            return Ok(times);
        }
        let vocab_size = decoder.vocab_size();
        let before = random.tokens(depth, vocab_size);
        fill(decoder, &before)?;
        for (i, token) in random.tokens(count, vocab_size).into_iter().enumerate() {
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
