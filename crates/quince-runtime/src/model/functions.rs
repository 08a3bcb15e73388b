//! Which functions of a program continue a text, told by what they take and give rather than by their names.

use quince_mil::{DType, Dim, Flexibility, Function, Program, TensorType, ValueType};
use quince_tensor::{Error, Result, bail};

/// The input with the tokens.
pub(super) const INPUT_IDS: &str = "input_ids";
/// The input with the number of tokens in the cache.
pub(super) const POSITION: &str = "position";
const LOGITS: &str = "logits";
/// What the names of states begin with whose slots are used again and again.
const ROTATING: &str = "kv_rotating";
/// The constant that says for how many tokens a function was written, where every state rotates.
const CONTEXT: &str = "context";

/// The functions of a decoder.
pub(super) struct Functions {
    /// The functions with a cache, if one of them takes a single token.
    pub cached: Option<CachedFunctions>,
    /// The function without a cache.
    pub full: Option<Full>,
    /// V, the length of a row of logits.
    pub vocab_size: usize,
}

/// The functions that share a cache.
pub(super) struct CachedFunctions {
    /// By their contexts, the smallest first; the last one has the functions of the whole cache.
    buckets: Vec<Bucket>,
    /// Those for the whole cache.
    largest: Bucket,
    /// Slots of the states that rotate: layers with a window see the last tokens only, and slots are used again.
    pub rotating: Option<usize>,
}

/// The functions that see so many tokens.
#[derive(Clone)]
pub(super) struct Bucket {
    /// Takes one token.
    pub decode: Cached,
    /// Takes more; the longest of several that are not longer than the context, and as long as that of other buckets.
    pub prefill: Option<Cached>,
    /// Tokens that there is room for.
    context: usize,
}

/// `input_ids` [1, tokens] and `position` [1] to logits.
#[derive(Clone)]
pub(super) struct Cached {
    /// The function's name.
    pub name: String,
    /// Tokens of a call.
    pub tokens: usize,
    /// The output with the logits.
    pub logits: String,
    /// Which of the call's tokens have logits.
    pub rows: Rows,
    /// The caches that are inputs, with the outputs that extend them.
    pub io: Vec<IoFeature>,
    rotating: Option<usize>,
    /// Tokens that there is room for.
    pub context: usize,
    vocab_size: usize,
}

/// Which tokens of a call have logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rows {
    /// Only the last one.
    Last,
    /// Every one.
    All,
}

/// A cache that is an input: [layers, kv heads, context, head dim].
#[derive(Clone, PartialEq, Eq)]
pub(super) struct IoFeature {
    /// `k_cache`.
    pub input: String,
    /// `new_k`, [layers, kv heads, tokens, head dim].
    pub output: String,
    pub dtype: DType,
    pub shape: [usize; 4],
}

/// `input_ids` [1, S] to logits [1, S, V].
pub(super) struct Full {
    /// The function's name.
    pub name: String,
    /// The output with the logits.
    pub logits: String,
    /// The values of S.
    pub lengths: Lengths,
    vocab_size: usize,
}

/// The lengths that an input may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Lengths {
    /// From one length to another.
    Range(usize, usize),
    /// One of these, ascending; never none.
    Listed(Vec<usize>),
}

impl Lengths {
    /// The shortest length that holds `tokens` and is a multiple of `step`, or the nearest to such a one.
    pub fn holding(&self, tokens: usize, step: usize) -> Option<usize> {
        match self {
            Lengths::Range(low, high) if tokens <= *high => {
                Some(tokens.checked_next_multiple_of(step).unwrap_or(tokens).clamp(*low, *high))
            }
            Lengths::Range(..) => None,
            Lengths::Listed(lengths) => lengths.iter().copied().find(|&length| length >= tokens),
        }
    }

    /// The longest.
    pub fn longest(&self) -> usize {
        match self {
            Lengths::Range(_, high) => *high,
            Lengths::Listed(lengths) => lengths.last().copied().unwrap_or(0),
        }
    }
}

enum Kind {
    Cached(Cached),
    Full(Full),
}

impl Functions {
    /// Looks through a program, for the functions of an adapter or those without any.
    pub fn find(program: &Program, adapter: Option<&str>) -> Result<Functions> {
        let (mut cached, mut full) = (Vec::new(), None);
        for function in super::adapters::functions(program, adapter)? {
            match kind(function) {
                Some(Kind::Cached(mut found)) => {
                    // A state is as long for all functions; its name says how much of it one sees.
                    let bucket = super::adapters::bucket_of(function, program);
                    found.context = bucket.map_or(found.context, |(_, context)| context.min(found.context));
                    cached.push(found);
                }
                Some(Kind::Full(found)) => full = full.or(Some(found)),
                None => {}
            }
        }
        let cached = CachedFunctions::of(cached)?;
        let sizes = [cached.as_ref().map(|c| c.largest.decode.vocab_size), full.as_ref().map(|f| f.vocab_size)];
        let vocab_size = match sizes {
            [Some(a), Some(b)] if a != b => bail!("the functions disagree on the number of logits: found {a} and {b}"),
            [Some(size), _] | [None, Some(size)] => size,
            [None, None] => return Err(none_found(program)),
        };
        Ok(Functions { cached, full, vocab_size })
    }
}

impl CachedFunctions {
    fn of(functions: Vec<Cached>) -> Result<Option<CachedFunctions>> {
        let rotating = functions.iter().filter_map(|f| f.rotating).min();
        let mut contexts: Vec<usize> = functions.iter().map(|f| f.context).collect();
        contexts.sort_unstable();
        contexts.dedup();
        let decodes = |context: &usize| functions.iter().any(|f| f.tokens == 1 && f.context == *context);
        if !contexts.iter().all(decodes) {
            // Functions of one cache that is smaller in some of them.
            contexts.truncate(1);
        }
        let mut buckets = Vec::new();
        for &context in &contexts {
            let own = functions.iter().filter(|f| contexts.len() == 1 || f.context == context).cloned().collect();
            buckets.extend(Bucket::of(own, context)?);
        }
        let Some(largest) = buckets.last().cloned() else { return Ok(None) };
        // Texts go on from bucket to bucket, with the same chunks and the same cache.
        buckets.retain(|bucket| bucket.goes_with(&largest));
        Ok(Some(CachedFunctions { buckets, largest, rotating }))
    }

    /// Those for the whole cache.
    pub fn largest(&self) -> &Bucket {
        &self.largest
    }

    /// Those that see the fewest tokens of all that have room for `end`.
    pub fn holding(&self, end: usize) -> &Bucket {
        self.buckets.iter().find(|bucket| end <= bucket.context).unwrap_or(&self.largest)
    }

    /// Tokens that the cache has room for.
    pub fn context(&self) -> usize {
        self.largest.context
    }

    /// Tokens of a call that prefills, if there is a function for it.
    pub fn chunk(&self) -> Option<usize> {
        self.largest.prefill.as_ref().map(|prefill| prefill.tokens)
    }
}

impl Bucket {
    fn of(functions: Vec<Cached>, context: usize) -> Result<Option<Bucket>> {
        let (mut decode, mut prefill) = (None, None::<Cached>);
        for function in functions {
            if function.tokens == 1 {
                decode = decode.or(Some(function));
            } else if function.tokens <= context && prefill.as_ref().is_none_or(|p| p.tokens < function.tokens) {
                prefill = Some(function);
            }
        }
        let Some(decode) = decode else { return Ok(None) };
        if let Some(other) = prefill.as_ref().filter(|p| p.io != decode.io || p.vocab_size != decode.vocab_size) {
            bail!("the functions `{}` and `{}` do not share a cache: their inputs differ", other.name, decode.name);
        }
        Ok(Some(Bucket { decode, prefill, context }))
    }

    /// Whether a text may go on from one to the other.
    fn goes_with(&self, other: &Bucket) -> bool {
        let call = |bucket: &Bucket| bucket.prefill.as_ref().map(|prefill| (prefill.tokens, prefill.rows));
        let alike = |a: &IoFeature, b: &IoFeature| {
            let shape = |feature: &IoFeature| [feature.shape[0], feature.shape[1], feature.shape[3]];
            (&a.input, &a.output, a.dtype, shape(a)) == (&b.input, &b.output, b.dtype, shape(b))
        };
        let (a, b) = (&self.decode, &other.decode);
        call(self) == call(other)
            && (a.vocab_size, a.io.len()) == (b.vocab_size, b.io.len())
            && a.io.iter().zip(&b.io).all(|(a, b)| alike(a, b))
    }
}

fn none_found(program: &Program) -> Error {
    let signature = |function: &Function| {
        let inputs: Vec<String> = function.inputs.iter().map(|i| describe(function, i.var)).collect();
        format!("{}({})", function.name, inputs.join(", "))
    };
    let found: Vec<String> = program.functions.iter().map(signature).collect();
    Error::new(format!(
        "found the functions {}, expected one that takes `input_ids` [1, 1] and `position` [1], or `input_ids` [1, S], \
         and gives `logits`",
        found.join(", ")
    ))
    .hint("`quince convert MODEL --functions init,decode` makes a package that generates")
}

fn describe(function: &Function, var: quince_mil::Var) -> String {
    let info = function.var(var);
    format!("{}: {}", info.name, info.ty)
}

/// What a function is to a decoder, if anything.
fn kind(function: &Function) -> Option<Kind> {
    let ids = function.inputs.iter().find(|input| function.var(input.var).name == INPUT_IDS)?;
    let ValueType::Tensor(ids_type) = function.ty(ids.var) else { return None };
    if ids_type.dtype != DType::I32 || ids_type.shape.len() != 2 || !ids_type.shape[0].fits(Dim::Fixed(1)) {
        return None;
    }
    let (logits, logits_type) = logits(function)?;
    let vocab_size = logits_type.shape.last().and_then(|dim| dim.fixed()).filter(|&size| size > 0)?;
    let others: Vec<_> = function.inputs.iter().filter(|input| input.var != ids.var).collect();
    if others.is_empty() {
        let lengths = lengths(&ids.flexibility, ids_type)?;
        return Some(Kind::Full(Full { name: function.name.clone(), logits, lengths, vocab_size }));
    }
    let tokens = ids_type.shape[1].fixed().filter(|&tokens| tokens > 0)?;
    let (mut context, mut rotating, mut io, mut positions) = (None::<usize>, None::<usize>, Vec::new(), 0);
    for input in others {
        let info = function.var(input.var);
        let dims = info.ty.as_tensor()?.dims()?;
        match (&info.ty, &dims[..]) {
            (ValueType::Tensor(ty), [1]) if info.name == POSITION && ty.dtype == DType::I32 => {
                positions += 1;
                continue;
            }
            (ValueType::State(_), &[_, _, slots, _]) if info.name.starts_with(ROTATING) => {
                rotating = Some(rotating.map_or(slots, |least| least.min(slots)));
                continue;
            }
            (ValueType::State(_), [_, _, _, _]) => {}
            (ValueType::Tensor(ty), &[a, b, c, d]) => {
                io.push(io_feature(function, &info.name, ty.dtype, [a, b, c, d], tokens)?)
            }
            _ => return None,
        }
        context = Some(context.map_or(dims[2], |context| context.min(dims[2])));
    }
    let context = context
        .or_else(|| rotating.and_then(|_| constant(function, CONTEXT)))
        .filter(|&context| context > 0 && positions == 1 && i32::try_from(context).is_ok())?;
    let rows = match logits_type.shape.get(1)?.fixed()? {
        rows if rows == tokens && tokens > 1 => Rows::All,
        1 => Rows::Last,
        _ => return None,
    };
    let name = function.name.clone();
    Some(Kind::Cached(Cached { name, tokens, logits, rows, io, rotating, context, vocab_size }))
}

/// The value of a constant number.
fn constant(function: &Function, name: &str) -> Option<usize> {
    let operation = function.block.operations.iter().find(|operation| operation.name == name)?;
    let numbers = operation.constant()?.tensor().ok()?.to_i64().ok()?;
    usize::try_from(*numbers.first()?).ok()
}

/// The output with logits: the one of that name, or the only one of rank three.
fn logits(function: &Function) -> Option<(String, &TensorType)> {
    let outputs = || function.block.outputs.iter().map(|&var| function.var(var));
    let tensor = |info: &'_ quince_mil::VarInfo| info.ty.as_tensor().is_some_and(|ty| ty.shape.len() == 3);
    let mut candidates = outputs().filter(|info| tensor(info));
    let found = match outputs().find(|info| info.name == LOGITS && tensor(info)) {
        Some(found) => found,
        None => candidates.next().filter(|_| candidates.next().is_none())?,
    };
    Some((found.name.clone(), found.ty.as_tensor().filter(|ty| ty.dtype.is_float())?))
}

fn lengths(flexibility: &Flexibility, ty: &TensorType) -> Option<Lengths> {
    match flexibility {
        Flexibility::Fixed => Some(Lengths::Listed(vec![ty.shape[1].fixed().filter(|&n| n > 0)?])),
        Flexibility::Range { bounds, .. } => {
            let &(low, high) = bounds.get(1)?;
            let high = high.unwrap_or(i32::MAX as usize);
            (high > 0 && low <= high).then_some(Lengths::Range(low.max(1), high))
        }
        Flexibility::Enumerated(shapes) => {
            let mut lengths: Vec<usize> = shapes.iter().filter_map(|shape| shape.get(1).copied()).collect();
            lengths.sort_unstable();
            lengths.retain(|&length| length > 0);
            (!lengths.is_empty()).then_some(Lengths::Listed(lengths))
        }
    }
}

/// The input `X_cache` goes with the output `new_X`, which has the call's tokens in place of the context.
fn io_feature(function: &Function, input: &str, dtype: DType, shape: [usize; 4], tokens: usize) -> Option<IoFeature> {
    let output = format!("new_{}", input.strip_suffix("_cache")?);
    let var = function.block.outputs.iter().find(|&&var| function.var(var).name == output)?;
    let [layers, heads, _, dim] = shape;
    let fits = function.ty(*var).as_tensor()?.dims()? == [layers, heads, tokens, dim];
    let stored = matches!(dtype, DType::F16 | DType::F32);
    (fits && stored).then(|| IoFeature { input: input.to_owned(), output, dtype, shape })
}
