//! How many sentences an encoder embeds in a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quince_engine::{Engine, work};
use quince_tensor::{Result, bail};
use serde::Serialize;

use super::{Machine, Named, Peak, Percentiles, Random, Spread, peak_resident_bytes, spread_of};
use crate::embed::Embedder;
use crate::metrics::Latencies;

/// What is measured: every number of sentences with every length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmbedBenchOptions {
    /// Sentences of a call.
    pub batch: Vec<usize>,
    /// Tokens of a sentence.
    pub length: Vec<usize>,
    /// How often everything is measured, loading included.
    pub repeat: usize,
}

impl Default for EmbedBenchOptions {
    fn default() -> EmbedBenchOptions {
        EmbedBenchOptions { batch: vec![1, 32], length: vec![16, 64, 256], repeat: 5 }
    }
}

/// What was measured, in JSON as the command gives it. Names are of sentences and tokens, as `b32_l256`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EmbedBench {
    /// Sentences per second.
    pub sentences_per_second: Named<Spread>,
    /// More about each.
    pub embed: Named<EmbedRate>,
    /// Opening the package until it takes calls.
    pub load_seconds: Spread,
    /// From loaded to the first embedding.
    pub first_embedding_seconds: Option<Spread>,
    /// The most memory that the process ever had in use, pages of mapped files included; null where the system does not
    /// tell. It never falls from one repetition to the next.
    pub peak_resident_bytes: Option<Spread>,
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

/// Calls of one shape.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EmbedRate {
    /// Sentences of a call.
    pub batch: usize,
    /// Tokens of a sentence.
    pub length: usize,
    /// The time of single calls of all repetitions.
    pub latency_seconds: Percentiles,
    /// Products with weights, by the median; null if the machine was not measured.
    pub arithmetic: Option<Peak>,
    #[serde(skip)]
    operations: Option<u64>,
}

impl EmbedBench {
    /// Relates every rate to what the machine can do.
    pub fn relate(&mut self, machine: Machine) {
        for ((_, rate), (_, spread)) in self.embed.0.iter_mut().zip(&self.sentences_per_second.0) {
            let calls = spread.median / rate.batch.max(1) as f64;
            rate.arithmetic = rate.operations.map(|operations| machine.computing(operations as f64 * calls));
        }
        self.machine = Some(machine);
    }
}

/// How long one shape is measured in one repetition, at least; and how many calls at least.
const TIME: Duration = Duration::from_millis(200);
const CALLS: usize = 2;

/// Measures an encoder that `load` opens anew for each repetition: package and engine, so that both count as loading.
/// Tokens are pseudo-random and the same each time, without padding. `progress` hears how many repetitions are done.
///
/// # Errors
/// No repetition, or a shape that the encoder does not take; what `load` and the engine report.
pub fn bench_embed(
    load: &mut dyn FnMut() -> Result<Engine>,
    options: &EmbedBenchOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<EmbedBench> {
    let shapes: Vec<[usize; 2]> =
        options.length.iter().flat_map(|&length| options.batch.iter().map(move |&batch| [batch, length])).collect();
    let (mut runs, mut loaded) = (Vec::new(), None);
    for done in 0..options.repeat {
        progress(done, options.repeat);
        drop(loaded.take());
        let start = Instant::now();
        let embedder = Embedder::new(Arc::new(load()?))?;
        runs.push(Run::measure(&embedder, &shapes, start.elapsed())?);
        loaded = Some(embedder);
    }
    progress(options.repeat, options.repeat);
    let (Some(embedder), Some(load_seconds)) = (loaded, spread_of(&runs, |run| Some(run.load.as_secs_f64()))) else {
        bail!("bench: found 0 repetitions, expected at least one");
    };
    let (mut rates, mut embed) = (Vec::new(), Vec::new());
    for (i, &[batch, length]) in shapes.iter().enumerate() {
        let name = format!("b{batch}_l{length}");
        let rate = spread_of(&runs, |run| {
            let seconds: f64 = run.calls[i].iter().map(Duration::as_secs_f64).sum();
            (seconds > 0.0).then(|| (batch * run.calls[i].len()) as f64 / seconds)
        });
        let times: Vec<Duration> = runs.iter().flat_map(|run| run.calls[i].iter().copied()).collect();
        let (Some(rate), Some(latencies)) = (rate, Latencies::of(&times)) else { continue };
        rates.push((name.clone(), rate));
        let operations = operations(&embedder, batch, length)?;
        let latency_seconds = latencies.into();
        embed.push((name, EmbedRate { batch, length, latency_seconds, arithmetic: None, operations }));
    }
    Ok(EmbedBench {
        sentences_per_second: Named(rates),
        embed: Named(embed),
        load_seconds,
        first_embedding_seconds: spread_of(&runs, |run| Some(run.first?.as_secs_f64())),
        peak_resident_bytes: spread_of(&runs, |run| run.peak_resident_bytes.map(|bytes| bytes as f64)),
        machine: None,
        repeat: options.repeat,
        threads: embedder.engine().threads(),
        isa: embedder.engine().isa().name(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

fn operations(embedder: &Embedder, batch: usize, length: usize) -> Result<Option<u64>> {
    let function = embedder.engine().program().function(embedder.function())?;
    let shapes = vec![vec![batch, length]; function.inputs.len()];
    Ok(work(function, &shapes)?.map(|work| work.operations))
}

/// One repetition.
struct Run {
    load: Duration,
    first: Option<Duration>,
    /// By shape: each call's time.
    calls: Vec<Vec<Duration>>,
    peak_resident_bytes: Option<u64>,
}

impl Run {
    fn measure(embedder: &Embedder, shapes: &[[usize; 2]], load: Duration) -> Result<Run> {
        let mut random = Random::new();
        let mut run = Run { load, first: None, calls: Vec::new(), peak_resident_bytes: None };
        for &[batch, length] in shapes {
            // Without a table the smallest vocabulary that any encoder has.
            let vocab_size = embedder.vocab_size().unwrap_or(256);
            let sentences: Vec<Vec<u32>> = (0..batch).map(|_| random.tokens(length, vocab_size)).collect();
            let rows: Vec<&[u32]> = sentences.iter().map(Vec::as_slice).collect();
            let call = || -> Result<Duration> {
                let start = Instant::now();
                embedder.call(&rows, [batch, length])?;
                Ok(start.elapsed())
            };
            // The first call of a shape makes its plan.
            let first = call()?;
            run.first.get_or_insert(first);
            let (start, mut times) = (Instant::now(), Vec::new());
            while start.elapsed() < TIME || times.len() < CALLS {
                times.push(call()?);
            }
            run.calls.push(times);
        }
        run.peak_resident_bytes = peak_resident_bytes();
        Ok(run)
    }
}
