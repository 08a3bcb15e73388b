//! A program as a model that continues a text: prefill in chunks, decode token by token, with whatever cache it has.
//!
//! ```text
//! tokens in the cache     0 ........ position                 end
//! whole chunks                       [ chunk ][ chunk ]
//! what is left, few                                    d d d
//! what is left, more                                   [ rest ]padding    the engine leaves the padding out
//! no room for padding                            [ again ][ rest ]padding
//! ```
//!
//! Where a chunk gives logits for its last row only, padding would have them: the last token is decoded by itself.
//!
//! Rows of the cache beyond the position are never attended to, and the next token overwrites them: padding leaves no
//! trace, and forgetting tokens is free. In states that rotate a slot is written over when its token is out of sight; they
//! have room to go back by as many tokens as the longest call has, and who goes back further begins anew. A program without a cache computes every token anew for each one; it is exact
//! and slow, and is what references are.

mod adapters;
mod functions;
mod host_cache;
mod io_cache;

use std::ops::ControlFlow;
use std::sync::Arc;

use quince_engine::{Engine, Observer, State, Tensors};
use quince_tensor::{Error, Result, Tensor, bail, f16};

use crate::generate::LanguageModel;
pub use adapters::adapters;
use functions::{Cached, CachedFunctions, Full, Functions, INPUT_IDS, POSITION, Rows};
pub(crate) use host_cache::HostCache;
use io_cache::IoCache;

/// As many tokens in a chunk are taken to cost what a call of one token does: the weights are read once, and the arithmetic
/// on them is that much denser. It decides only what is faster, never what comes out.
const CHUNK_GAIN: usize = 4;
/// Lengths of calls without a cache are rounded up to a multiple of this, because the engine plans each length anew.
const LENGTH_STEP: usize = 32;

/// A program with what it has seen so far.
pub struct Decoder {
    functions: Functions,
    machine: Machine,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

/// An observer of several functions.
pub trait Watch: Observer {
    /// The values to come are those of a call of this function.
    fn enter(&mut self, function: &str);
}

/// A call of a function.
#[derive(Clone, Debug)]
pub struct Call {
    /// The function.
    pub function: String,
    /// Its inputs by name, states left out.
    pub inputs: Tensors,
    /// Tokens that it takes; those beyond the text are padding, on which nothing depends that comes before.
    pub length: usize,
}

/// Who looks at a call, if anybody does.
type Watcher<'a> = Option<&'a mut dyn Watch>;

/// Which functions compute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// The function that takes a whole text, without a cache.
    Full,
    /// Those with a cache.
    Cached,
}

impl Decoder {
    /// An empty cache over an engine, which several decoders may share. Which functions there are is told by their
    /// inputs and outputs:
    ///
    /// - `input_ids` int32 [1, T] and `position` int32 [1] to `logits` [1, 1 or T, V]: with a cache, which is states
    ///   [.., .., context, ..], those called `kv_rotating` with fewer slots, or inputs `k_cache`, `v_cache` [layers, kv heads, context, head dim] with outputs
    ///   `new_k`, `new_v` [layers, kv heads, T, head dim]. T = 1 decodes and must be there; T > 1 prefills.
    /// - The same for fewer tokens, called after them: `decode_512` beside `decode`. Of several, the one that sees the fewest
    ///   tokens runs, as long as there is room; the text goes on in the next.
    /// - `input_ids` int32 [1, S] to `logits` [1, S, V]: without a cache. It generates if nothing else can.
    ///
    /// # Errors
    /// When there is no such function, or memory has no room for the cache.
    pub fn new(engine: Arc<Engine>) -> Result<Decoder> {
        Decoder::with_adapter(engine, None)
    }

    /// The same with the functions of an adapter that the program keeps apart: those called `decode_NAME` and so on.
    /// Decoders of different adapters share an engine, and with it the weights.
    ///
    /// # Errors
    /// As [`Decoder::new`]; and when there is no such adapter.
    pub fn with_adapter(engine: Arc<Engine>, adapter: Option<&str>) -> Result<Decoder> {
        let functions = Functions::find(engine.program(), adapter)?;
        let cache = IoCache::new(functions.cached.as_ref().map_or(&[], |cached| &cached.largest().decode.io))?;
        let state = engine.new_state()?;
        let machine = Machine { engine, state, cache, written: 0 };
        Ok(Decoder { functions, machine, tokens: Vec::new(), logits: Vec::new() })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.machine.engine
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of a call of the prefill function, if there is one.
    pub fn prefill_length(&self) -> Option<usize> {
        self.functions.cached.as_ref()?.chunk()
    }

    /// The ways in which it can compute the logits of a text, the one with the fewest calls first.
    pub fn routes(&self) -> Vec<Route> {
        let full = self.functions.full.as_ref().map(|_| Route::Full);
        full.into_iter().chain(self.functions.cached.as_ref().map(|_| Route::Cached)).collect()
    }

    /// The logits after each of `tokens`, computed from an empty cache: `on_row` gets the index of the token and the
    /// `[vocab_size]` logits that follow it. The cache is empty afterwards.
    ///
    /// # Errors
    /// More tokens than the route takes, or ids beyond the vocabulary; what the engine or `on_row` reports.
    pub fn score(
        &mut self,
        route: Route,
        tokens: &[u32],
        on_row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.tokens.clear();
        let result = match route {
            Route::Full => self.score_full(tokens, on_row),
            Route::Cached => self.score_cached(tokens, on_row),
        };
        self.tokens.clear();
        result
    }

    /// The most tokens that [`Decoder::score`] takes by a route; 0 if the program does not have it.
    pub fn longest(&self, route: Route) -> usize {
        match route {
            Route::Full => self.functions.full.as_ref().map_or(0, |full| full.lengths.longest()),
            Route::Cached => self.functions.cached.as_ref().map_or(0, |cached| cached.context()),
        }
    }

    /// Computes a text from an empty cache and shows an observer all values, no token more than the text has. The cache
    /// is empty afterwards.
    ///
    /// # Errors
    /// As for [`Decoder::score`], and those of the observer.
    pub fn observe(&mut self, tokens: &[u32], watch: &mut dyn Watch) -> Result<()> {
        self.tokens.clear();
        self.check_room(tokens, *self.routes().first().unwrap_or(&Route::Full))?;
        if let Some(full) = &self.functions.full {
            return self.machine.full(full, tokens, 1, Some(watch)).map(drop);
        }
        let cached = self.functions.cached()?;
        let mut position = 0;
        while position < tokens.len() {
            let rest = tokens.len() - position;
            let taken = cached.chunk().filter(|&chunk| chunk <= rest).unwrap_or(1);
            let bucket = cached.holding(position + taken);
            let call = bucket.prefill.as_ref().filter(|_| taken > 1).unwrap_or(&bucket.decode);
            self.machine.call(call, &tokens[position..position + call.tokens], position, Some(watch))?;
            position += call.tokens;
        }
        Ok(())
    }

    /// The most tokens of a text that one call takes; as many as there is room for where each has a call of its own.
    pub fn at_once(&self) -> usize {
        match (&self.functions.full, &self.functions.cached) {
            (Some(full), _) => full.lengths.longest(),
            (None, Some(cached)) => cached.chunk().unwrap_or(cached.context()),
            (None, None) => 0,
        }
    }

    /// The call that computes a text from an empty cache, padded to a length that a function takes; nothing if none takes so
    /// many tokens.
    ///
    /// # Errors
    /// Tokens beyond the vocabulary; no memory for a cache.
    pub fn call_for(&self, tokens: &[u32]) -> Result<Option<Call>> {
        if let Some(full) = &self.functions.full {
            let Some(length) = full.lengths.holding(tokens.len(), 1) else { return Ok(None) };
            let inputs = Tensors::from([(INPUT_IDS.to_owned(), ids(tokens, length)?)]);
            return Ok(Some(Call { function: full.name.clone(), inputs, length }));
        }
        let cached = self.functions.cached()?;
        // Buckets of a context below the length of a call have none.
        let bucket = cached.holding(cached.chunk().unwrap_or(1));
        let functions = [Some(&bucket.decode), bucket.prefill.as_ref()].into_iter().flatten();
        let Some(function) = functions.into_iter().find(|function| function.tokens >= tokens.len()) else {
            return Ok(None);
        };
        let position = (POSITION.to_owned(), Tensor::vector(vec![0i32]));
        let mut inputs = Tensors::from([(INPUT_IDS.to_owned(), ids(tokens, function.tokens)?), position]);
        let mut cache = IoCache::new(&function.io)?;
        cache.fit(function.context)?;
        cache.enter(&mut inputs)?;
        Ok(Some(Call { function: function.name.clone(), inputs, length: function.tokens }))
    }

    fn score_full(&mut self, tokens: &[u32], on_row: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.check_room(tokens, Route::Full)?;
        let full = self.functions.full()?;
        let logits = self.machine.full(full, tokens, 1, None)?;
        for i in 0..tokens.len() {
            copy_row(&logits, i, self.functions.vocab_size, &mut self.logits)?;
            on_row(i, &self.logits)?;
        }
        Ok(())
    }

    fn score_cached(&mut self, tokens: &[u32], on_row: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.check_room(tokens, Route::Cached)?;
        let cached = self.functions.cached()?;
        let chunks = cached.largest().prefill.as_ref().filter(|prefill| prefill.rows == Rows::All);
        let length = chunks.map_or(1, |prefill| prefill.tokens);
        for start in (0..tokens.len()).step_by(length) {
            // The last chunk is padded; where that would pass the context, it begins earlier.
            let begin = start.min(cached.context() - length);
            let end = (start + length).min(tokens.len());
            let bucket = cached.holding(begin + length);
            let call = bucket.prefill.as_ref().filter(|_| length > 1).unwrap_or(&bucket.decode);
            let logits = self.machine.call(call, &tokens[begin..end], begin, None)?;
            for i in start..end {
                copy_row(&logits, i - begin, self.functions.vocab_size, &mut self.logits)?;
                on_row(i, &self.logits)?;
            }
        }
        Ok(())
    }

    /// Appends as many of `rest` as one step takes.
    fn advance(&mut self, rest: &[u32]) -> Result<()> {
        let (cached, position) = (self.functions.cached()?, self.tokens.len());
        let step = next_step(position, rest.len(), cached.chunks());
        let end = match step {
            Step::Decode => position + 1,
            Step::Chunk { end, .. } => end,
        };
        self.tokens.extend_from_slice(&rest[..end - position]);
        let result = self.run(step);
        if result.is_err() {
            self.tokens.truncate(position);
        }
        result
    }

    /// Computes the rows of the cache that are not there yet, and the logits after the last of the tokens if the call has
    /// them.
    fn run(&mut self, step: Step) -> Result<()> {
        let (cached, end) = (self.functions.cached()?, self.tokens.len());
        let (start, length) = match step {
            Step::Decode => (end - 1, 1),
            Step::Chunk { start, .. } => (start, cached.chunk().unwrap_or(1)),
        };
        let bucket = cached.holding(start + length);
        let call = bucket.prefill.as_ref().filter(|_| step != Step::Decode).unwrap_or(&bucket.decode);
        let logits = self.machine.call(call, &self.tokens[start..end], start, None)?;
        match call.rows {
            Rows::Last if end - start < length => Ok(()),
            Rows::Last => copy_row(&logits, 0, self.functions.vocab_size, &mut self.logits),
            Rows::All => copy_row(&logits, end - start - 1, self.functions.vocab_size, &mut self.logits),
        }
    }

    /// Computes everything anew, without a cache.
    fn recompute(&mut self, new: &[u32]) -> Result<()> {
        let full = self.functions.full()?;
        let position = self.tokens.len();
        self.tokens.extend_from_slice(new);
        let logits = self.machine.full(full, &self.tokens, LENGTH_STEP, None);
        let last = self.tokens.len() - 1;
        let result = logits.and_then(|l| copy_row(&l, last, self.functions.vocab_size, &mut self.logits));
        if result.is_err() {
            self.tokens.truncate(position);
        }
        result
    }

    fn check_room(&self, tokens: &[u32], route: Route) -> Result<()> {
        let (room, vocabulary) = (self.longest(route), self.functions.vocab_size);
        let wanted = self.tokens.len() + tokens.len();
        if wanted > room {
            bail!("found {wanted} tokens, expected at most {room}, the model's context"; hint: "shorten the text or convert the model with a larger --context");
        }
        match tokens.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => bail!("found token {id}, expected ids below {vocabulary}, the model's vocabulary"),
            None => Ok(()),
        }
    }

    /// How it generates.
    fn route(&self) -> Route {
        if self.functions.cached.is_some() { Route::Cached } else { Route::Full }
    }
}

impl LanguageModel for Decoder {
    fn context(&self) -> usize {
        self.longest(self.route())
    }

    fn vocab_size(&self) -> usize {
        self.functions.vocab_size
    }

    fn position(&self) -> usize {
        self.tokens.len()
    }

    fn truncate(&mut self, position: usize) -> Result<usize> {
        let written = self.machine.written;
        let lost = self.functions.cached.as_ref().is_some_and(|cached| {
            let rewound = written.saturating_sub(position);
            cached.rotating.is_some_and(|slots| written > slots && rewound > cached.prefill_tokens().max(1))
        });
        self.tokens.truncate(if lost { 0 } else { position });
        Ok(self.tokens.len())
    }

    fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.check_room(tokens, self.route())?;
        let mut rest = tokens;
        while !rest.is_empty() {
            let position = self.tokens.len();
            match self.route() {
                Route::Full => self.recompute(rest)?,
                Route::Cached => self.advance(rest)?,
            }
            rest = &rest[self.tokens.len() - position..];
            if progress(tokens.len() - rest.len()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn decode(&mut self, token: u32) -> Result<()> {
        self.prefill(&[token], &mut |_| ControlFlow::Continue(())).map(|_| ())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// How the next tokens are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// One token.
    Decode,
    /// The tokens from `start`, which may be before the position, to `end`, and padding if they are fewer than a chunk.
    Chunk { start: usize, end: usize },
}

/// The calls that take several tokens.
#[derive(Clone, Copy)]
struct Chunks {
    /// Tokens of a call.
    length: usize,
    /// Tokens that there is room for, padding included.
    context: usize,
    rows: Rows,
}

/// The step after `position` tokens when `rest` more are given. It never passes them.
fn next_step(position: usize, rest: usize, chunks: Option<Chunks>) -> Step {
    let Some(Chunks { length, context, rows }) = chunks else { return Step::Decode };
    let end = position + rest;
    if rest >= length {
        return Step::Chunk { start: position, end: position + length };
    }
    if rest <= CHUNK_GAIN {
        return Step::Decode;
    }
    if rows == Rows::Last && end >= length && length - rest <= CHUNK_GAIN {
        // Some tokens again are cheaper than the last one by itself.
        return Step::Chunk { start: end - length, end };
    }
    let start = position.min(context - length);
    let padded = end - start < length;
    Step::Chunk { start, end: if padded && rows == Rows::Last { end - 1 } else { end } }
}

/// What runs functions: the engine, and the cache in either form.
struct Machine {
    engine: Arc<Engine>,
    state: State,
    cache: IoCache,
    /// The end of what was written to the cache since a text began.
    written: usize,
}

impl Machine {
    /// The logits of a call with a cache. `tokens` begin at `position`, and are padded to the length of a call.
    fn call(&mut self, function: &Cached, tokens: &[u32], position: usize, watch: Watcher) -> Result<Tensor> {
        let mut inputs = Tensors::new();
        inputs.insert(INPUT_IDS.to_owned(), ids(tokens, function.tokens)?);
        inputs.insert(POSITION.to_owned(), Tensor::vector(vec![int(position)?]));
        self.cache.fit(function.context)?;
        self.cache.enter(&mut inputs)?;
        let end = position + function.tokens;
        self.written = if position == 0 { end } else { self.written.max(end) };
        let mut outputs = self.run(&function.name, &inputs, tokens.len(), watch)?;
        self.cache.extend(&mut outputs, position)?;
        outputs.remove(&function.logits).ok_or_else(|| no_logits(&function.name))
    }

    /// The logits of a call without a cache, padded to a length that the function takes.
    fn full(&mut self, function: &Full, tokens: &[u32], step: usize, watch: Watcher) -> Result<Tensor> {
        let length = function.lengths.holding(tokens.len(), step).unwrap_or(tokens.len());
        let inputs = Tensors::from([(INPUT_IDS.to_owned(), ids(tokens, length)?)]);
        let mut outputs = self.run(&function.name, &inputs, tokens.len(), watch)?;
        outputs.remove(&function.logits).ok_or_else(|| no_logits(&function.name))
    }

    fn run(&mut self, function: &str, inputs: &Tensors, tokens: usize, watch: Watcher) -> Result<Tensors> {
        match watch {
            None => self.engine.predict_tokens(function, inputs, tokens, &mut self.state),
            Some(watch) => {
                watch.enter(function);
                self.engine.observe(function, inputs, &mut self.state, watch)
            }
        }
    }
}

fn no_logits(function: &str) -> Error {
    Error::new(format!("function `{function}`: the call gave no logits"))
}

/// Tokens as `input_ids` [1, length], padded on the right, where padding is behind what every token attends to.
fn ids(tokens: &[u32], length: usize) -> Result<Tensor> {
    let mut ids = tokens.iter().map(|&id| int(id as usize)).collect::<Result<Vec<i32>>>()?;
    ids.resize(length, 0);
    Tensor::from_vec([1, length], ids)
}

fn int(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| Error::new(format!("found {number}, expected a number below 2^31")))
}

/// Copies one row of logits [1, S, V] to `into`, whose memory is used again.
fn copy_row(logits: &Tensor, row: usize, vocab_size: usize, into: &mut Vec<f32>) -> Result<()> {
    let range = row * vocab_size..(row + 1) * vocab_size;
    into.clear();
    if let Some(values) = logits.as_slice::<f32>().and_then(|values| values.get(range.clone())) {
        into.extend_from_slice(values);
    } else if let Some(values) = logits.as_slice::<f16>().and_then(|values| values.get(range)) {
        into.extend(values.iter().map(|value| value.to_f32()));
    } else {
        bail!("logits: found {logits:?}, expected row {row} of {vocab_size} in fp16 or fp32");
    }
    Ok(())
}

impl Functions {
    fn cached(&self) -> Result<&CachedFunctions> {
        self.cached.as_ref().ok_or_else(|| Error::new("the program has no function with a cache"))
    }

    fn full(&self) -> Result<&Full> {
        self.full.as_ref().ok_or_else(|| Error::new("the program has no function without a cache"))
    }
}

impl CachedFunctions {
    fn prefill_tokens(&self) -> usize {
        self.chunk().unwrap_or(1)
    }

    fn chunks(&self) -> Option<Chunks> {
        let prefill = self.largest().prefill.as_ref()?;
        Some(Chunks { length: prefill.tokens, context: self.context(), rows: prefill.rows })
    }
}

#[cfg(test)]
mod tests;
