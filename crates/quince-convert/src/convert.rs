//! From a checkpoint to a lowered program: options in, defaults filled in, contradictions refused.

use crate::lower::{
    ComputeUnits, FunctionKind, FunctionSpec, Grouping, KvCache, KvGeometry, Length, LogitsOf, Precision, Settings,
    Shapes, Target, kv_geometry, lower,
};
use crate::models::Model;
use crate::pooling::{Embedding, Pooling};
use crate::semantic::{Reading, Semantic, Voice, has_head, semantic_of};
use quince_checkpoint::{Adapted, Checkpoint};
use quince_mil::{Error, Function, Program, Result, bail};
use std::fmt;
use std::str::FromStr;

/// The context if none is asked for and the model has no shorter one, in tokens.
pub const DEFAULT_CONTEXT: usize = 2048;
/// The tokens of a prefill call if none are asked for and the context is not shorter.
pub const DEFAULT_PREFILL_LENGTH: usize = 128;

/// What is asked for of a conversion.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// The functions, the default one first; empty for `init,decode`, `full` without a cache, or `encode` for a model
    /// without logits.
    pub functions: Vec<FunctionName>,
    /// Tokens that there is room for.
    pub context: Option<usize>,
    /// Smaller contexts: each has functions `init` and `decode` of its own, called after it (`init_512`), which cost less.
    pub buckets: Vec<usize>,
    /// Tokens of a call of `init`.
    pub prefill_length: Option<usize>,
    /// Tokens of a call of `full`, which takes any number if this is not given; of `encode` if its shape is fixed.
    pub length: Option<usize>,
    /// Which texts `encode` takes; if not given any in a range, on the Neural Engine one of some lengths.
    pub shapes: Option<ShapesKind>,
    /// How `encode` makes one vector of a text; as the checkpoint says if not given.
    pub pooling: Option<Pooling>,
    /// What carries the KV cache.
    pub kv_cache: KvCache,
    /// The floating-point type.
    pub precision: Precision,
    /// Which processors may be used.
    pub units: ComputeUnits,
    /// How heads share keys and values.
    pub grouping: Grouping,
    /// Which tokens of `init` have logits.
    pub logits: LogitsOf,
    /// In how many products the logits are computed, where the target splits them.
    pub head_parts: Option<usize>,
}

/// A function that can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FunctionName {
    /// Prefill: a chunk of a prompt.
    Init,
    /// One token more.
    Decode,
    /// A text without a cache.
    Full,
    /// Embeddings of texts.
    Encode,
}

/// Which numbers of texts, and of tokens in each, the function `encode` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShapesKind {
    /// 1 to 64 texts of 8 to 512 tokens.
    Range,
    /// 1, 8 or 32 texts of 16, 32, 64 and so on to 512 tokens.
    Enumerated,
    /// One text of 16, 32, 64 and so on to 512 tokens.
    Lengths,
    /// One text of as many tokens as there is room for.
    Fixed,
}

/// What a cache on the Neural Engine has a multiple of, in tokens.
const CONTEXT_STEP: usize = 32;
/// The most texts of a call of `encode`.
const MOST_TEXTS: usize = 64;
/// The tokens that there is room for in `encode` if nothing is asked for and the model has no shorter context.
const ENCODER_CONTEXT: usize = 512;

/// A converted model.
pub struct Converted {
    /// The program for the target.
    pub program: Program,
    /// What it was lowered from, and what it is validated against.
    pub semantic: Semantic,
    /// The sizes of the KV cache.
    pub kv_geometry: KvGeometry,
    /// The functions, in order.
    pub functions: Vec<FunctionSpec>,
    /// What they share.
    pub settings: Settings,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// What is converted beside the checkpoint itself.
#[derive(Default)]
pub struct Adapters<'a> {
    /// By name: each has functions of its own, called `init_NAME`, `decode_NAME` and so on.
    pub kept: Vec<(String, Adapted<'a>)>,
    /// What `encode` is made of instead of the checkpoint, and how it makes vectors.
    pub encoder: Option<(Adapted<'a>, Embedding)>,
}

/// Converts a checkpoint. Weights stay lazy: nothing is read but the configuration.
///
/// # Errors
/// When the model is not supported (see [`semantic`](crate::semantic())), or options contradict each other or the model.
pub fn convert(checkpoint: &Checkpoint, options: &Options) -> Result<Converted> {
    convert_with(checkpoint, &Adapters::default(), options)
}

/// Converts a checkpoint, with adapters that are kept apart from it. Functions share the weights that are the same.
///
/// # Errors
/// As [`convert`]; and when an adapter changes what cannot be kept apart.
pub fn convert_with(checkpoint: &Checkpoint, adapters: &Adapters, options: &Options) -> Result<Converted> {
    let config = checkpoint.config();
    let model = Model::of_config(config)?;
    let target = Target::of_units(options.units)?;
    let names = options.names(has_head(model.read(config)?.as_ref(), config, checkpoint))?;
    let (voices, plan) = plan(checkpoint, adapters, options, &names)?;
    let semantic = semantic_of(model, &voices)?;
    let (context, mut warnings) = options.rounded(&names, options.context_of(&names, &semantic), &semantic);
    let buckets = options.buckets_of(&names, context, &semantic)?;
    let settings = Settings {
        precision: options.precision,
        grouping: options.grouping,
        kv_cache: options.kv_cache,
        context,
        head_parts: options.head_parts,
    };
    let smallest = buckets.first().copied().unwrap_or(context);
    let plan = with_buckets(plan, &buckets);
    let functions = plan.into_iter().map(|planned| options.spec(planned, context, smallest)).collect::<Vec<_>>();
    let program = lower(&semantic, target, &settings, &functions)?;
    let kv_geometry = kv_geometry(&semantic, context)?;
    warnings.extend(options.without_effect(&names));
    if let Some(from) = semantic.long_from().filter(|&from| context > from) {
        warnings.push(format!(
            "positions of all texts turn as those of texts of more than {from} tokens do, because the context is {context}"
        ));
    }
    warnings.extend(options.flexible_on_neural_engine(&functions));
    if settings.kv_cache == KvCache::Rotating && !program.functions.iter().any(rotates) {
        warnings.push(
            "no slot of the cache is used twice: no layer has a window that is short beside the context".to_owned(),
        );
    }
    if context > semantic.max_positions {
        let trained = semantic.max_positions;
        warnings.push(format!("the context is {context} tokens, but the model was made for {trained}"));
    }
    warnings.extend(semantic.unused.iter().map(|name| format!("an adapter changes `{name}`, which no function uses")));
    Ok(Converted { program, semantic, kv_geometry, functions, settings, warnings })
}

impl Converted {
    /// The same functions of another semantic program, which is to have the same functions.
    ///
    /// # Errors
    /// As [`convert`].
    pub fn with_semantic(mut self, semantic: Semantic, units: ComputeUnits) -> Result<Converted> {
        self.program = lower(&semantic, Target::of_units(units)?, &self.settings, &self.functions)?;
        self.semantic = semantic;
        Ok(self)
    }

    /// The smaller contexts that there are functions for, the smallest first.
    pub fn buckets(&self) -> Vec<usize> {
        let mut buckets: Vec<usize> = self.functions.iter().filter_map(|function| function.context).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    }

    /// The model and each of its adapters, a program for each reading, in float32 and without a cache, as operations of the
    /// target: for looking at the values of whole texts.
    ///
    /// # Errors
    /// As [`convert`].
    pub fn exact(&self, units: ComputeUnits) -> Result<Vec<Program>> {
        let settings = Settings { precision: Precision::Float32, kv_cache: KvCache::None, ..self.settings };
        let longest = settings.context.min(ENCODER_CONTEXT);
        let program = |&(voice, reading): &(usize, Reading)| {
            let kind = match reading {
                Reading::Logits => FunctionKind::Full(Length::Flexible),
                Reading::Embedding(_) => FunctionKind::Encode(ShapesKind::Range.of(longest)),
            };
            let spec = FunctionSpec { name: "main".to_owned(), kind, voice, context: None };
            lower(&self.semantic, Target::of_units(units)?, &settings, &[spec])
        };
        self.semantic.readings.iter().map(program).collect()
    }
}

/// Whether a function has a state with fewer slots than the context.
fn rotates(function: &Function) -> bool {
    function.inputs.iter().any(|input| function.var(input.var).name.starts_with("kv_rotating"))
}

/// A function to be written.
struct Planned {
    /// What it is called in the package.
    called: String,
    name: FunctionName,
    voice: usize,
    /// That of a bucket.
    context: Option<usize>,
}

/// Which weights are read how, and the functions that come of it: those of the checkpoint, then those of each adapter.
fn plan<'a>(
    checkpoint: &'a Checkpoint,
    adapters: &'a Adapters,
    options: &Options,
    names: &[FunctionName],
) -> Result<(Vec<Voice<'a>>, Vec<Planned>)> {
    let with_pooling = |own: Embedding| match options.pooling {
        Some(pooling) => Embedding { pooling, ..own },
        None => own,
    };
    let is_encode = |name: &FunctionName| *name == FunctionName::Encode;
    let own: Vec<FunctionName> =
        names.iter().copied().filter(|name| !(is_encode(name) && adapters.encoder.is_some())).collect();
    let mut readings = Vec::new();
    if own.iter().any(|name| !is_encode(name)) {
        readings.push(Reading::Logits);
    }
    if own.iter().any(is_encode) {
        readings.push(Reading::Embedding(with_pooling(Embedding::of_checkpoint(checkpoint)?)));
    }
    let (mut voices, mut planned) = (Vec::new(), Vec::new());
    if !own.is_empty() {
        let called = |name: &FunctionName| Planned { called: name.to_string(), name: *name, voice: 0, context: None };
        planned.extend(own.iter().map(called));
        let config = checkpoint.config();
        voices.push(Voice { name: None, config, weights: checkpoint, readings: readings.clone() });
    }
    if let (true, Some((adapted, embedding))) = (names.iter().any(is_encode), &adapters.encoder) {
        let name = FunctionName::Encode;
        planned.push(Planned { called: name.to_string(), name, voice: voices.len(), context: None });
        let readings = vec![Reading::Embedding(with_pooling(*embedding))];
        voices.push(Voice { name: Some("llm2vec".to_owned()), config: adapted.config(), weights: adapted, readings });
    }
    for (adapter, adapted) in adapters.kept.iter().filter(|_| !own.is_empty()) {
        if adapter.chars().all(|c| c.is_ascii_digit()) {
            bail!("found an adapter called `{adapter}`, expected a name that is no number"; hint: "rename its directory");
        }
        let called = |name: &FunctionName| Planned {
            called: format!("{name}_{adapter}"),
            name: *name,
            voice: voices.len(),
            context: None,
        };
        planned.extend(own.iter().map(called));
        let (name, config) = (Some(adapter.clone()), adapted.config());
        voices.push(Voice { name, config, weights: adapted, readings: readings.clone() });
    }
    if let [only] = &mut planned[..] {
        // Core ML requires it.
        only.called = "main".to_owned();
    }
    Ok((voices, planned))
}

/// The functions of the largest context, then those of the others, which are called after them.
fn with_buckets(mut plan: Vec<Planned>, buckets: &[usize]) -> Vec<Planned> {
    let cached: Vec<(String, FunctionName, usize)> = plan
        .iter()
        .filter(|planned| matches!(planned.name, FunctionName::Init | FunctionName::Decode))
        .map(|planned| (planned.called.clone(), planned.name, planned.voice))
        .collect();
    for &bucket in buckets {
        plan.extend(cached.iter().map(|(called, name, voice)| {
            // The only function of a package is called `main`.
            let called = if called == "main" { name.to_string() } else { called.clone() };
            Planned { called: format!("{called}_{bucket}"), name: *name, voice: *voice, context: Some(bucket) }
        }));
    }
    if let [only, _, ..] = &mut plan[..]
        && only.called == "main"
    {
        only.called = only.name.to_string();
    }
    plan
}

impl Options {
    /// The functions that are asked for, each once.
    fn names(&self, has_head: bool) -> Result<Vec<FunctionName>> {
        let names = match (&self.functions[..], self.kv_cache) {
            ([], _) if !has_head => vec![FunctionName::Encode],
            ([], KvCache::None) => vec![FunctionName::Full],
            ([], _) => vec![FunctionName::Init, FunctionName::Decode],
            (names, _) => names.to_vec(),
        };
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                bail!("the function `{name}` is asked for twice");
            }
        }
        Ok(names)
    }

    /// Options for functions that are not asked for: no error, because scripts give them always.
    fn without_effect(&self, names: &[FunctionName]) -> Vec<String> {
        let options = [
            ("the pooling", self.pooling.is_some(), FunctionName::Encode),
            ("the prefill length", self.prefill_length.is_some(), FunctionName::Init),
            ("more than one context", !self.buckets.is_empty(), FunctionName::Decode),
            ("asking for all logits", self.logits == LogitsOf::All, FunctionName::Init),
        ];
        let mut warnings = Vec::new();
        if self.units != ComputeUnits::CpuAndNeuralEngine && self.head_parts.is_some() {
            warnings.push("parts of the head have no effect: only the Neural Engine's layout has them".to_owned());
        }
        let fixed = names.contains(&FunctionName::Encode) && self.shapes == Some(ShapesKind::Fixed);
        if self.length.is_some() && !fixed && !names.contains(&FunctionName::Full) {
            warnings.push("the length has no effect: the package has no function `full`".to_owned());
        }
        let unused = options.into_iter().filter(|(_, given, name)| *given && !names.contains(name));
        let unused =
            unused.map(|(what, _, name)| format!("{what} has no effect: the package has no function `{name}`"));
        warnings.extend(unused);
        warnings
    }

    /// The Neural Engine runs functions of fixed shapes.
    fn flexible_on_neural_engine(&self, functions: &[FunctionSpec]) -> Option<String> {
        let flexible = |function: &&FunctionSpec| match &function.kind {
            FunctionKind::Full(length) => *length == Length::Flexible,
            FunctionKind::Encode(shapes) => matches!(shapes, Shapes::Range { .. }),
            FunctionKind::Cached { .. } => false,
        };
        let function = functions.iter().filter(|_| self.units == ComputeUnits::CpuAndNeuralEngine).find(flexible)?;
        let (name, instead) = match function.kind {
            FunctionKind::Encode(_) => (&function.name, "--shapes fixed or lengths"),
            _ => (&function.name, "--length"),
        };
        Some(format!(
            "the function `{name}` takes texts of any length, which the Neural Engine does not run: give {instead}"
        ))
    }

    fn context_of(&self, names: &[FunctionName], semantic: &Semantic) -> usize {
        match (self.context, self.length) {
            (Some(context), _) => context,
            (None, Some(length)) if names == [FunctionName::Full] || names == [FunctionName::Encode] => length,
            (None, _) if names == [FunctionName::Encode] => semantic.max_positions.min(ENCODER_CONTEXT),
            (None, _) => semantic.max_positions.min(DEFAULT_CONTEXT),
        }
    }

    /// On the Neural Engine a cache has room for a multiple of 32 tokens, more rather than fewer than were asked for; unless
    /// the model has no more positions.
    fn rounded(&self, names: &[FunctionName], asked: usize, semantic: &Semantic) -> (usize, Vec<String>) {
        let cached = names.iter().any(|name| matches!(name, FunctionName::Init | FunctionName::Decode));
        let rounded = asked.next_multiple_of(CONTEXT_STEP);
        let beyond = asked <= semantic.max_positions && rounded > semantic.max_positions;
        if !cached || self.units != ComputeUnits::CpuAndNeuralEngine || rounded == asked || beyond {
            return (asked, Vec::new());
        }
        let note = format!(
            "the context is {rounded} tokens, not {asked}: a cache for the Neural Engine has a multiple of {CONTEXT_STEP}"
        );
        (rounded, vec![note])
    }

    /// The smaller contexts, the smallest first.
    fn buckets_of(&self, names: &[FunctionName], context: usize, semantic: &Semantic) -> Result<Vec<usize>> {
        let of = |&asked: &usize| self.rounded(names, asked, semantic).0;
        let mut buckets: Vec<usize> = self.buckets.iter().map(of).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets.retain(|&bucket| bucket != context);
        match buckets.iter().find(|&&bucket| bucket == 0 || bucket > context) {
            Some(bucket) => bail!("found a smaller context of {bucket} tokens, expected 1 to {context}"),
            None => Ok(buckets),
        }
    }

    fn spec(&self, planned: Planned, context: usize, smallest: usize) -> FunctionSpec {
        let kind = match planned.name {
            FunctionName::Full => FunctionKind::Full(self.length.map_or(Length::Flexible, Length::Fixed)),
            FunctionName::Encode => {
                let longest = self.context.or(self.length).unwrap_or(ENCODER_CONTEXT).min(context);
                let usual = match self.units {
                    // It runs texts one after the other.
                    ComputeUnits::CpuAndNeuralEngine => ShapesKind::Lengths,
                    _ => ShapesKind::Range,
                };
                FunctionKind::Encode(self.shapes.unwrap_or(usual).of(longest))
            }
            FunctionName::Decode => FunctionKind::Cached { tokens: 1, logits: LogitsOf::Last },
            FunctionName::Init => {
                // A call of any context is the same call, so that a text may go on in the next.
                let tokens = self.prefill_length.unwrap_or(smallest.min(DEFAULT_PREFILL_LENGTH));
                FunctionKind::Cached { tokens, logits: self.logits }
            }
        };
        FunctionSpec { name: planned.called, kind, voice: planned.voice, context: planned.context }
    }
}

impl ShapesKind {
    /// The shapes for texts of up to `longest` tokens.
    fn of(self, longest: usize) -> Shapes {
        let lengths = || {
            let doubled = std::iter::successors(Some(16usize), |length| length.checked_mul(2));
            doubled.take_while(|&length| length < longest).chain([longest])
        };
        let listed = |texts: &[usize]| texts.iter().flat_map(|&n| lengths().map(move |length| [n, length])).collect();
        match self {
            ShapesKind::Range => Shapes::Range { texts: (1, MOST_TEXTS), tokens: (longest.min(8), longest) },
            ShapesKind::Enumerated => Shapes::Listed(listed(&[1, 8, 32])),
            ShapesKind::Lengths => Shapes::Listed(listed(&[1])),
            ShapesKind::Fixed => Shapes::Listed(vec![[1, longest]]),
        }
    }
}

impl FunctionName {
    const ALL: [FunctionName; 4] = [FunctionName::Init, FunctionName::Decode, FunctionName::Full, FunctionName::Encode];
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FunctionName::Init => "init",
            FunctionName::Decode => "decode",
            FunctionName::Full => "full",
            FunctionName::Encode => "encode",
        })
    }
}

impl FromStr for FunctionName {
    type Err = Error;

    fn from_str(name: &str) -> Result<FunctionName> {
        let found = FunctionName::ALL.into_iter().find(|function| function.to_string() == name);
        found.ok_or_else(|| Error::new(format!("found the function `{name}`, expected init, decode, full or encode")))
    }
}
