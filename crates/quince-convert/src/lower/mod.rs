//! Lowering: the semantic program becomes MIL operations for a target, once for each function that is asked for.
//!
//! What is the same for every target is here: which functions there are ([`FunctionSpec`]), what carries the KV cache
//! ([`KvCache`]), positions and masks ([`positions`]), which values only the last token needs ([`last`]), and the
//! [`Writer`] that goes through the semantic program. A target is a file with a table of rules, one for each semantic
//! operation, and a line in [`TARGETS`]; an operation without a rule is copied, because MIL has it.

mod attention;
mod cache;
mod encoder;
mod experts;
mod finite;
mod gpu;
mod last;
mod layout;
mod neural_engine;
mod positions;
mod writer;

use crate::semantic::Semantic;
pub use layout::Layout;
use quince_mil::{Arg, DType, Error, Operation, Program, Result, Value, Var, bail, op::Args};
use writer::Shared;
pub use writer::Writer;

/// Which processors of a device a program may use; a target is chosen by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ComputeUnits {
    /// All of them. That is the layout of GPU and CPU: it is right on every processor, with norms in float32, and the Neural
    /// Engine takes what it can of it; its own layout is for it alone.
    #[default]
    All,
    /// No Neural Engine.
    CpuAndGpu,
    /// No GPU.
    CpuAndNeuralEngine,
    /// Nothing but the CPU.
    CpuOnly,
}

/// How one semantic operation becomes others; gives the variable of its result.
pub type Rule = fn(&mut Writer, &Operation, &Args) -> Result<Var>;

/// A target: for which compute units it writes, and its rules.
pub struct Target {
    /// Its name, for people.
    pub name: &'static str,
    /// The compute units that it serves.
    pub units: &'static [ComputeUnits],
    /// How values lie.
    pub layout: Layout,
    /// By name of the semantic operation. Operations that are not here must be MIL's own, and are copied.
    pub rules: &'static [(&'static str, Rule)],
}

/// Every target.
pub const TARGETS: &[Target] = &[gpu::GPU, neural_engine::NEURAL_ENGINE];

impl Target {
    /// The target that writes for these compute units.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_units(units: ComputeUnits) -> Result<&'static Target> {
        let found = TARGETS.iter().find(|target| target.units.contains(&units));
        found.ok_or_else(|| {
            let served: Vec<String> = TARGETS.iter().flat_map(|t| t.units).map(|u| format!("{u:?}")).collect();
            let error = Error::new(format!("found no lowering for {units:?}, expected one of {}", served.join(", ")));
            error.hint("a package for the CPU and GPU also runs where a Neural Engine is allowed")
        })
    }
}

/// The floating-point type that a program computes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Precision {
    /// float16, with norms in float32.
    #[default]
    Float16,
    /// float32.
    Float32,
}

impl Precision {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Float16 => DType::F16,
            Precision::Float32 => DType::F32,
        }
    }
}

/// How several query heads share the keys and values of one head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Grouping {
    /// The query heads of a group become rows of one product: keys and values are used as they are.
    #[default]
    Grouped,
    /// Keys and values are repeated for each query head.
    Repeated,
}

/// What carries keys and values from call to call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KvCache {
    /// A state that Core ML keeps: `kv_cache`, float16 [2 · layers, kv heads, context, head dim], the keys of a layer
    /// before its values. A program in float32 keeps the rest of each number in `kv_cache_low`, because states are float16.
    #[default]
    State,
    /// The same, but layers with a window have a state of their own, `kv_rotating`, of which each slot is used again when
    /// its token is out of sight: [2 · layers, kv heads, slots, head dim].
    Rotating,
    /// Inputs `k_cache` and `v_cache` [layers, kv heads, context, head dim] in the program's precision, of which rows
    /// before `position` are read; outputs `new_k` and `new_v` [layers, kv heads, tokens, head dim], which the caller
    /// writes at `position`.
    Io,
    /// Nothing: only the function `full` can be asked for.
    None,
}

/// A function of the lowered program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionSpec {
    /// Its name in the program.
    pub name: String,
    /// What it computes.
    pub kind: FunctionKind,
    /// With which weights: the number of a voice of the semantic program.
    pub voice: usize,
    /// For how many tokens there is room, if for fewer than [`Settings::context`] says: no more are attended to, which is
    /// what a call costs. All functions share the cache; a state has room for the most, as an input it is as long as this.
    pub context: Option<usize>,
}

impl FunctionSpec {
    /// For how many tokens there is room.
    pub fn context(&self, settings: &Settings) -> usize {
        self.context.unwrap_or(settings.context)
    }
}

/// What a function computes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FunctionKind {
    /// `input_ids` int32 [1, S] to `logits` [1, S, V], without a cache.
    Full(Length),
    /// `input_ids` int32 [1, tokens] and `position` int32 [1], the number of tokens in the cache, to `logits`. The
    /// cache is extended; `position + tokens` must not pass the context.
    Cached {
        /// The number of tokens in a call: one to decode, more to prefill.
        tokens: usize,
        /// Which tokens have logits.
        logits: LogitsOf,
    },
    /// `input_ids` and `attention_mask` int32 [B, S] to `embedding` [B, D] or `last_hidden_state` [B, S, D].
    Encode(Shapes),
}

/// Which numbers of texts, and of tokens in each, a function takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shapes {
    /// From one number to another, both included.
    Range {
        /// Texts of a call.
        texts: (usize, usize),
        /// Tokens of a text, padding included.
        tokens: (usize, usize),
    },
    /// One of these, texts and tokens. A single one is fixed.
    Listed(Vec<[usize; 2]>),
}

impl Shapes {
    /// The only one, if there is only one.
    pub fn fixed(&self) -> Option<[usize; 2]> {
        match self {
            Shapes::Listed(shapes) if shapes.len() == 1 => shapes.first().copied(),
            _ => None,
        }
    }

    /// The number of texts, if it is the same in all.
    pub fn texts(&self) -> Option<usize> {
        match self {
            Shapes::Range { texts, .. } => (texts.0 == texts.1).then_some(texts.0),
            Shapes::Listed(shapes) => {
                let &[texts, _] = shapes.first()?;
                shapes.iter().all(|shape| shape[0] == texts).then_some(texts)
            }
        }
    }

    /// The most tokens of a text.
    pub fn longest(&self) -> usize {
        match self {
            Shapes::Range { tokens, .. } => tokens.1,
            Shapes::Listed(shapes) => shapes.iter().map(|shape| shape[1]).max().unwrap_or(0),
        }
    }
}

/// The length of the input of a function without a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// From one token to the context.
    Flexible,
    /// This many tokens.
    Fixed(usize),
}

/// Which tokens of a call have logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogitsOf {
    /// Only the last one: [1, 1, V].
    #[default]
    Last,
    /// Every one: [1, tokens, V].
    All,
}

/// What all functions of a program share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The floating-point type.
    pub precision: Precision,
    /// How heads share keys and values.
    pub grouping: Grouping,
    /// What carries the cache.
    pub kv_cache: KvCache,
    /// The number of tokens that positions, and the cache, have room for.
    pub context: usize,
    /// In how many products logits are computed, where the target splits them; by default none has more than
    /// [`MOST_CHANNELS`] outputs.
    pub head_parts: Option<usize>,
}

/// The sizes of a KV cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvGeometry {
    /// Layers with attention.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens.
    pub context: usize,
}

/// Lowers a semantic program: one function for each of `functions`, which share their weights. The first is the default.
///
/// # Errors
/// When a function cannot be what is asked for, or the target has no rule for an operation.
pub fn lower(semantic: &Semantic, target: &Target, settings: &Settings, functions: &[FunctionSpec]) -> Result<Program> {
    check(settings, functions)?;
    let mut shared = Shared::new(functions);
    let mut program = Program::default();
    for spec in functions {
        let place = |error: Error| error.at(format!("function `{}`", spec.name));
        let function = Writer::new(semantic, target, settings, spec, &mut shared).and_then(Writer::write);
        program.functions.push(function.map_err(place)?);
    }
    if let (true, Some(first)) = (functions.len() > 1, functions.first()) {
        program.default_function = Some(first.name.clone());
    }
    Ok(program)
}

/// The most elements that the Neural Engine takes along an axis.
pub const MOST_CHANNELS: usize = 16384;

/// The longest context, in tokens: a function holds a constant of that many positions.
pub const MAX_CONTEXT: usize = 1 << 24;

fn check(settings: &Settings, functions: &[FunctionSpec]) -> Result<()> {
    let context = settings.context;
    if context == 0 || context > MAX_CONTEXT {
        bail!("found a context of {context} tokens, expected 1 to {MAX_CONTEXT}");
    }
    for spec in functions {
        let tokens = match spec.kind {
            FunctionKind::Full(Length::Flexible) => 1,
            FunctionKind::Full(Length::Fixed(length)) => length,
            FunctionKind::Cached { tokens, .. } => tokens,
            FunctionKind::Encode(ref shapes) => shapes.longest(),
        };
        let own = spec.context(settings);
        if own > context {
            bail!("function `{}`: found a context of {own} tokens, expected at most {context}", spec.name);
        }
        if tokens == 0 || tokens > own {
            bail!("function `{}`: found {tokens} tokens a call, expected 1 to the context, {own}", spec.name);
        }
        if matches!(spec.kind, FunctionKind::Cached { .. }) && settings.kv_cache == KvCache::None {
            bail!(
                "function `{}` continues a text, but there is no KV cache", spec.name;
                hint: "ask for a cache as state or as inputs and outputs, or for the function `full`"
            );
        }
    }
    Ok(())
}

/// The sizes of the KV cache that a model needs.
///
/// # Errors
/// When layers differ, as one cache for all then does not do.
pub fn kv_geometry(semantic: &Semantic, context: usize) -> Result<KvGeometry> {
    let main = semantic.main();
    let mut found: Option<KvGeometry> = None;
    for operation in main.block.operations.iter().filter(|operation| operation.op_name() == "attention") {
        let key = operation.var("key").and_then(|key| main.ty(key).as_tensor());
        let (kv_heads, head_dim) = match key.map(|ty| &ty.shape[..]) {
            Some([_, _, heads, dim]) => (heads.fixed(), dim.fixed()),
            _ => (None, None),
        };
        let (Some(kv_heads), Some(head_dim)) = (kv_heads, head_dim) else {
            bail!("operation `{}`: found a key without sizes, expected [B, S, kv heads, head dim]", operation.name);
        };
        let layers = found.map_or(0, |geometry| geometry.layers) + 1;
        let geometry = KvGeometry { layers, kv_heads, head_dim, context };
        match found {
            Some(other) if (other.kv_heads, other.head_dim) != (kv_heads, head_dim) => bail!(
                "operation `{}`: found {kv_heads} heads of {head_dim}, expected {} of {} as in other layers",
                operation.name,
                other.kv_heads,
                other.head_dim
            ),
            _ => found = Some(geometry),
        }
    }
    found.ok_or_else(|| Error::new("the model has no attention, expected at least one layer"))
}

/// By layer: how many tokens a token sees, itself included; 0 for all.
fn windows(semantic: &Semantic) -> Vec<usize> {
    let attentions = semantic.main().block.operations.iter().filter(|operation| operation.op_name() == "attention");
    let window = |operation: &Operation| {
        let Some(Arg::Value(Value::Tensor(window))) = operation.arg("window") else { return 0 };
        window.to_i64().ok().and_then(|window| usize::try_from(*window.first()?).ok()).unwrap_or(0)
    };
    attentions.map(window).collect()
}
