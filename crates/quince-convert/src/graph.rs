//! What model files are written in: weights by Hugging Face name, and the semantic operations.

use crate::blocks::Activation;
use crate::rope::Rope;
pub use crate::weights::{Changed, Weights};
use crate::weights::{plus_one, stacked, transposed};
use quince_checkpoint::Config;
use quince_mil::{Builder, DType, Dim, Error, Input, Result, Tensor, Var, Weight, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

mod adapted;
mod mixture;

pub use mixture::{ExpertWeights, Experts, SoftmaxOver};

/// A semantic program while it is written.
///
/// Names are given relative to the scope, so `linear("q_proj", ...)` within `model.layers.0` and `self_attn` uses the
/// weight `model.layers.0.self_attn.q_proj.weight`, and its operation is called `model.layers.0.self_attn.q_proj`.
/// A checkpoint of a model without its head may lack the first part of names, here `model.`; that is seen to.
/// Everything is float32 here: precision, layout, cache and functions are the lowering's.
pub struct Graph<'a> {
    config: &'a Config,
    weights: &'a dyn Weights,
    builder: Builder,
    scope: Vec<String>,
    ids: Var,
    /// `attention_mask` [B, S]: 1 for a token, 0 for padding; of functions that take several texts at once.
    mask: Option<Var>,
    used: UsedWeights,
    /// The weights of the checkpoint that the constant in the making is made of.
    sources: Vec<String>,
    /// In which direction tokens look, if not as the model was made.
    sees: Option<Sees>,
    layers: i32,
}

/// The weights that the functions of a semantic program use, so that they are the same weights in each.
#[derive(Clone, Default)]
pub(crate) struct UsedWeights {
    /// By name: a weight asked for twice is the same weight.
    by_name: BTreeMap<String, Used>,
    /// By identity of the float32 weight: the weight as it is in the checkpoint.
    pub stored: HashMap<usize, Weight>,
    /// By identity of a weight of the checkpoint: the same in float32. A weight of two names, such as a head that only an
    /// adapter tells from the embedding, is one weight.
    wide: HashMap<usize, Weight>,
}

/// A weight in float32.
#[derive(Clone)]
struct Used {
    weight: Weight,
    /// The weights of the checkpoint that it is made of.
    sources: Vec<String>,
}

impl UsedWeights {
    /// Without what is made of any of these weights of the checkpoint.
    pub fn without(&self, changed: &BTreeSet<String>) -> UsedWeights {
        let mut others = self.clone();
        others.by_name.retain(|_, used| !used.sources.iter().any(|source| changed.contains(source)));
        others
    }
}

/// Whether a module has a bias.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(from = "bool")]
pub enum Bias {
    /// It has none.
    #[default]
    Absent,
    /// It has one, called `bias`.
    Present,
}

impl From<bool> for Bias {
    fn from(present: bool) -> Bias {
        if present { Bias::Present } else { Bias::Absent }
    }
}

/// A kind of norm over the last axis.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Norm {
    /// `x / √(mean(x²) + epsilon) · weight`.
    Rms {
        /// Added to the mean.
        epsilon: f32,
    },
    /// The same with `1 + weight`.
    RmsPlusOne {
        /// Added to the mean.
        epsilon: f32,
    },
    /// `(x - mean(x)) / √(variance(x) + epsilon) · weight + bias`.
    Layer {
        /// Added to the variance.
        epsilon: f32,
        /// Whether there is a bias.
        bias: Bias,
    },
}

/// Which other tokens a token attends to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sees {
    /// Itself and those before it.
    #[default]
    Earlier,
    /// Those after it too.
    All,
}

/// Which tokens a vector is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pooled {
    /// All that are seen.
    Seen,
    /// Those whose mask is 1: a greater number is seen and left out.
    Ones,
}

/// How attention differs from the usual: to all earlier tokens, scaled by 1/√D.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Attention {
    /// In which direction a token looks.
    pub sees: Sees,
    /// A token sees this many tokens, itself included, in each direction that it looks; all if absent.
    pub window: Option<usize>,
    /// What scores are multiplied by, if not 1/√D.
    pub scale: Option<f32>,
    /// Scores become `softcap · tanh(score / softcap)` if given.
    pub softcap: Option<f32>,
    /// A score for each head [heads] that takes its share of the softmax and gives nothing.
    pub sinks: Option<Var>,
    /// What is added to scores: [1, heads, S, S].
    pub bias: Option<Var>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(
        config: &'a Config,
        weights: &'a dyn Weights,
        used: UsedWeights,
        builder: Builder,
        ids: Var,
        mask: Option<Var>,
    ) -> Graph<'a> {
        let (scope, sources) = (Vec::new(), Vec::new());
        Graph { config, weights, builder, scope, ids, mask, used, sources, sees: None, layers: 0 }
    }

    /// Makes all tokens of a text see each other, whatever the model says.
    pub(crate) fn look_both_ways(&mut self) {
        self.sees = Some(Sees::All);
    }

    pub(crate) fn finish(self, outputs: Vec<Var>) -> (quince_mil::Function, UsedWeights) {
        (self.builder.finish(outputs), self.used)
    }

    /// The configuration, for blocks that read their own keys.
    pub fn config(&self) -> &'a Config {
        self.config
    }

    /// Runs `body` with `name` put before the names that it uses.
    pub fn scope<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.scope.push(name.to_owned());
        let result = body(self);
        self.scope.pop();
        result
    }

    /// The size of the last axis.
    pub fn width(&self, x: Var) -> Result<usize> {
        let shape = self.builder.ty(x).as_tensor().map_or(&[][..], |ty| &ty.shape);
        match shape.last() {
            Some(Dim::Fixed(width)) => Ok(*width),
            _ => bail!("found the type {}, expected a last axis of known size", self.builder.ty(x)),
        }
    }

    /// The rows of the table `name` [vocabulary, width] for the token ids: [B, S, width].
    pub fn embedding(&mut self, name: &str, vocabulary: usize, width: usize) -> Result<Var> {
        let (ids, weight) = (self.ids, self.weight(name, "weight", &[vocabulary, width])?);
        match self.steps(name) {
            steps if steps.is_empty() => self.op("embedding", name, &[("ids", ids.into()), ("weight", weight.into())]),
            steps => self.embedding_with(name, weight, &steps),
        }
    }

    /// x [B, S, D] plus the rows of the table `name` [rows, D] for the tokens' positions: row `offset` for the first.
    pub fn add_positions(&mut self, name: &str, x: Var, rows: usize, offset: usize) -> Result<Var> {
        let width = self.width(x)?;
        let weight = self.weight(name, "weight", &[rows, width])?;
        let offset = i32::try_from(offset).map_err(|_| Error::new(format!("found the offset {offset}")))?;
        self.op("add_positions", name, &[("x", x.into()), ("weight", weight.into()), ("offset", offset.into())])
    }

    /// x [B, S, D] plus one row of the table `name` [rows, D], the same for every token.
    pub fn add_row(&mut self, name: &str, x: Var, rows: usize, row: usize) -> Result<Var> {
        let width = self.width(x)?;
        let full = self.full_name(name);
        let weight = self.cached(&format!("{full}.{row}"), &[width], |g| {
            row_of(&g.stored(&format!("{full}.weight"), &[rows, width])?, row)
        })?;
        self.op("add", name, &[("x", x.into()), ("y", weight.into())])
    }

    /// `x · weightᵀ + bias` over the last axis; the weight is [outputs, width of x].
    pub fn linear(&mut self, name: &str, x: Var, outputs: usize, bias: Bias) -> Result<Var> {
        let width = self.width(x)?;
        let weight = self.weight(name, "weight", &[outputs, width])?;
        self.project("linear", name, name, x, weight, outputs, bias)
    }

    /// [`Graph::linear`] with a weight that is stored as [width of x, outputs].
    pub fn linear_transposed(&mut self, name: &str, x: Var, outputs: usize, bias: Bias) -> Result<Var> {
        let width = self.width(x)?;
        let full = format!("{}.weight", self.full_name(name));
        let weight = self.cached(&full, &[outputs, width], |g| transposed(&g.stored(&full, &[width, outputs])?))?;
        self.project("linear", name, name, x, weight, outputs, bias)
    }

    /// Logits [B, S, vocabulary] of hidden states, called `logits` unless they are to be changed.
    pub(crate) fn logits(&mut self, head: &crate::models::LmHead, x: Var) -> Result<Var> {
        let width = self.width(x)?;
        let weight = self.weight(head.module, "weight", &[head.vocab_size, width])?;
        let name = if head.softcap.is_some() { "scores" } else { "logits" };
        let logits = self.project("logits", name, head.module, x, weight, head.vocab_size, head.bias)?;
        match head.softcap {
            Some(softcap) => self.capped("logits", logits, softcap),
            None => Ok(logits),
        }
    }

    /// `softcap · tanh(x / softcap)`.
    fn capped(&mut self, name: &str, x: Var, softcap: f32) -> Result<Var> {
        let narrow = self.op("mul", "narrowed", &[("x", x.into()), ("y", (1.0 / softcap).into())])?;
        let bent = self.op("tanh", "bent", &[("x", narrow.into())])?;
        self.op("mul", name, &[("x", bent.into()), ("y", softcap.into())])
    }

    #[expect(clippy::too_many_arguments, reason = "an operation, two names, and what it computes with")]
    fn project(
        &mut self,
        op: &str,
        name: &str,
        module: &str,
        x: Var,
        weight: Var,
        outputs: usize,
        bias: Bias,
    ) -> Result<Var> {
        let bias = match bias {
            Bias::Present => Some(self.weight(module, "bias", &[outputs])?),
            Bias::Absent => None,
        };
        match self.steps(module) {
            steps if steps.is_empty() => self.product(op, name, x, weight, bias),
            steps => self.product_with(op, name, [x, weight], bias, &steps),
        }
    }

    fn product(&mut self, op: &str, name: &str, x: Var, weight: Var, bias: Option<Var>) -> Result<Var> {
        let mut inputs: Vec<(&str, Input)> = vec![("x", x.into()), ("weight", weight.into())];
        inputs.extend(bias.map(|bias| ("bias", bias.into())));
        self.op(op, name, &inputs)
    }

    /// A norm over the last axis.
    pub fn norm(&mut self, name: &str, x: Var, norm: Norm) -> Result<Var> {
        let width = self.width(x)?;
        let full = format!("{}.weight", self.full_name(name));
        let weight = match norm {
            Norm::RmsPlusOne { .. } => self.cached(&full, &[width], |g| Ok(plus_one(&g.stored(&full, &[width])?)))?,
            Norm::Rms { .. } | Norm::Layer { .. } => self.weight(name, "weight", &[width])?,
        };
        match norm {
            Norm::Rms { epsilon } | Norm::RmsPlusOne { epsilon } => self.rms_norm(name, x, weight, epsilon),
            Norm::Layer { epsilon, bias } => {
                let mut inputs: Vec<(&str, Input)> =
                    vec![("x", x.into()), ("axes", [-1].into()), ("gamma", weight.into()), ("epsilon", epsilon.into())];
                if bias == Bias::Present {
                    inputs.push(("beta", self.weight(name, "bias", &[width])?.into()));
                }
                self.op("layer_norm", name, &inputs)
            }
        }
    }

    fn rms_norm(&mut self, name: &str, x: Var, weight: Var, epsilon: f32) -> Result<Var> {
        self.op("rms_norm", name, &[("x", x.into()), ("weight", weight.into()), ("epsilon", epsilon.into())])
    }

    /// x, each vector along the last axis divided by its length. That is an RMS norm with a weight of 1/√D.
    pub(crate) fn normalized(&mut self, name: &str, x: Var) -> Result<Var> {
        let width = self.width(x)?;
        let share = 1.0 / (width as f32).sqrt();
        let weight = Weight::from_tensor("unit_length", Tensor::vector(vec![share; width]));
        let weight = self.builder.weight(&weight);
        self.rms_norm(name, x, weight, 1e-24)
    }

    /// [B, S, heads · D] as [B, S, heads, D].
    pub fn split_heads(&mut self, x: Var, heads: usize) -> Result<Var> {
        let heads = i32::try_from(heads).map_err(|_| Error::new(format!("found {heads} heads, expected fewer")))?;
        self.op("split_heads", "heads", &[("x", x.into()), ("heads", heads.into())])
    }

    /// The elements of the last axis from `begin` to before `end`.
    pub fn part(&mut self, x: Var, begin: usize, end: usize) -> Result<Var> {
        let rank = self.builder.ty(x).as_tensor().map_or(0, |ty| ty.shape.len());
        if begin > end || end > self.width(x)? {
            bail!("found a part from {begin} to {end}, expected one within {}", self.width(x)?);
        }
        let corner = |last: usize| -> Result<Input> {
            let mut corner = vec![0; rank];
            corner[rank - 1] = i32::try_from(last).map_err(|_| Error::new(format!("found a width of {last}")))?;
            Ok(corner.into())
        };
        let whole: Vec<bool> = (0..rank).map(|axis| axis + 1 < rank).collect();
        let whole = Tensor::from_bools([rank], &whole)?;
        let inputs = [
            ("x", x.into()),
            ("begin", corner(begin)?),
            ("end", corner(end)?),
            ("begin_mask", whole.clone().into()),
            ("end_mask", whole.into()),
        ];
        self.op("slice_by_index", "part", &inputs)
    }

    /// Rotates each head of x [B, S, heads, D] by its token's position.
    pub fn rope(&mut self, x: Var, rope: &Rope) -> Result<Var> {
        let frequencies = Tensor::vector(rope.inverse_frequencies.clone());
        let scaling = rope.attention_scaling.into();
        let mut inputs =
            vec![("x", x.into()), ("inverse_frequencies", frequencies.into()), ("attention_scaling", scaling)];
        if let Some(long) = &rope.long {
            inputs.push(("long_inverse_frequencies", Tensor::vector(long.inverse_frequencies.clone()).into()));
            let from = i32::try_from(long.from).map_err(|_| Error::new(format!("found {} tokens", long.from)))?;
            inputs.push(("long_from", from.into()));
        }
        self.op("rope", "rope", &inputs)
    }

    /// A weight [n] that is not part of a module.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Var> {
        let full = self.full_name(name);
        self.cached(&full, &[n], |g| g.stored(&full, &[n]))
    }

    /// What is added to scores for the distance of key and query, from the table `name` [buckets, heads]: [1, heads, S,
    /// S], where x is [B, S, ..].
    pub fn relative_bias(&mut self, name: &str, x: Var, buckets: usize, heads: usize) -> Result<Var> {
        let weight = self.weight(name, "weight", &[buckets, heads])?;
        let inputs = [("x", x.into()), ("weight", weight.into()), ("max_distance", 128.into())];
        self.op("relative_bias", name, &inputs)
    }

    /// Attention of query [B, S, heads, D] to key and value [B, S, kv heads, D]: [B, S, heads · D]. Layers count
    /// themselves in the order they are written; the cache is the lowering's. Padding is not seen.
    pub fn attention(&mut self, query: Var, key: Var, value: Var, how: Attention) -> Result<Var> {
        let scale = match how.scale {
            Some(scale) => scale,
            None => 1.0 / (self.width(query)? as f32).sqrt(),
        };
        let window = how.window.map(i32::try_from).transpose();
        let window =
            window.map_err(|_| Error::new("found a window of more than 2^31 tokens, expected a smaller one"))?;
        let layer = self.layers;
        self.layers += 1;
        let mut inputs = vec![
            ("query", query.into()),
            ("key", key.into()),
            ("value", value.into()),
            ("scale", scale.into()),
            ("causal", (self.sees.unwrap_or(how.sees) == Sees::Earlier).into()),
            ("window", window.unwrap_or(0).into()),
            ("softcap", how.softcap.unwrap_or(0.0).into()),
            ("layer", layer.into()),
        ];
        for (name, var) in [("sinks", how.sinks), ("bias", how.bias), ("padding", self.mask)] {
            inputs.extend(var.map(|var| (name, var.into())));
        }
        self.op("attention", "attention", &inputs)
    }

    /// One vector for each text: `mean`, `first` or `last` of the tokens of x [B, S, D] that are `pooled`.
    pub(crate) fn pool(&mut self, name: &str, x: Var, mode: &str, pooled: Pooled) -> Result<Var> {
        let Some(mut mask) = self.mask else { bail!("found no attention mask, expected one where texts are pooled") };
        if pooled == Pooled::Ones {
            let ones = self.op("equal", "text_tokens", &[("x", mask.into()), ("y", 1.into())])?;
            mask = self.op("cast", "text_mask", &[("x", ones.into()), ("dtype", "int32".into())])?;
        }
        self.op("pool", name, &[("x", x.into()), ("mask", mask.into()), ("mode", mode.into())])
    }

    /// The hyperbolic tangent.
    pub(crate) fn tanh(&mut self, x: Var) -> Result<Var> {
        self.op("tanh", "act_fn", &[("x", x.into())])
    }

    /// x under another name.
    pub(crate) fn named(&mut self, name: &str, x: Var) -> Result<Var> {
        self.op("identity", name, &[("x", x.into())])
    }

    /// The sum of two values of one shape, as after a block that goes around.
    pub fn add(&mut self, x: Var, y: Var) -> Result<Var> {
        self.op("add", "residual", &[("x", x.into()), ("y", y.into())])
    }

    /// The product of two values of one shape, element by element.
    pub fn mul(&mut self, x: Var, y: Var) -> Result<Var> {
        self.op("mul", "gated", &[("x", x.into()), ("y", y.into())])
    }

    /// x times a number.
    pub fn scaled(&mut self, x: Var, factor: f32) -> Result<Var> {
        self.op("mul", "scaled", &[("x", x.into()), ("y", factor.into())])
    }

    /// An activation function.
    pub fn activation(&mut self, x: Var, activation: Activation) -> Result<Var> {
        match activation {
            Activation::Silu => self.op("silu", "act_fn", &[("x", x.into())]),
            Activation::Gelu => self.op("gelu", "act_fn", &[("x", x.into()), ("mode", "EXACT".into())]),
            Activation::GeluTanh => {
                self.op("gelu", "act_fn", &[("x", x.into()), ("mode", "TANH_APPROXIMATION".into())])
            }
            Activation::Relu => self.op("relu", "act_fn", &[("x", x.into())]),
        }
    }

    fn op(&mut self, op: &str, name: &str, inputs: &[(&str, Input)]) -> Result<Var> {
        let name = self.full_name(name);
        self.builder.op(op, &name, inputs)
    }

    fn full_name(&self, name: &str) -> String {
        match self.scope.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.scope.join(".")),
        }
    }

    /// The constant of a weight in float32.
    fn weight(&mut self, module: &str, kind: &str, shape: &[usize]) -> Result<Var> {
        let name = format!("{}.{kind}", self.full_name(module));
        self.cached(&name, shape, |g| g.stored(&name, shape))
    }

    /// The constant of what `make` gives, in float32; made once.
    fn cached(&mut self, name: &str, shape: &[usize], make: impl FnOnce(&mut Self) -> Result<Weight>) -> Result<Var> {
        let weight = match self.used.by_name.get(name) {
            Some(used) if used.weight.shape() == shape => used.weight.clone(),
            Some(used) => bail!("weight `{name}` is used as {:?} and as {shape:?}", used.weight.shape()),
            None => {
                self.sources.clear();
                let stored = make(self)?;
                let weight = self.used.wide.entry(stored.id()).or_insert_with(|| stored.cast(DType::F32)).clone();
                self.used.stored.insert(weight.id(), stored);
                let used = Used { weight: weight.clone(), sources: std::mem::take(&mut self.sources) };
                self.used.by_name.insert(name.to_owned(), used);
                weight
            }
        };
        Ok(self.builder.weight(&weight))
    }

    /// A weight of the checkpoint as it is there.
    fn stored(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        let spelled = self.spelled(name);
        let stored = self.weights.weight(&spelled, shape)?;
        self.sources.push(spelled);
        if !matches!(stored.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
            bail!(
                "weight `{name}`: found elements of type {}, expected fp32, fp16 or bf16", stored.dtype();
                hint: "quantized checkpoints are not read yet; use the original"
            );
        }
        Ok(stored)
    }

    /// The name that the checkpoint has for a weight; the usual one if it has none.
    fn spelled(&self, name: &str) -> String {
        spellings(name).into_iter().find(|spelling| self.weights.has(spelling)).unwrap_or_else(|| name.to_owned())
    }

    /// Matrices of one shape as one with all their rows.
    fn stored_stack(&mut self, name: &str, parts: &[String], shape: &[usize]) -> Result<Weight> {
        stacked(name, parts.iter().map(|part| self.stored(part, shape)).collect::<Result<_>>()?)
    }
}

/// A row of a matrix as a vector.
fn row_of(weight: &Weight, row: usize) -> Result<Weight> {
    Ok(Weight::from_tensor(weight.name(), weight.rows(row..row + 1)?.reshape([weight.shape()[1]])?))
}

/// The names that a weight may have in a checkpoint, the usual one first: a model saved without its head lacks the first
/// part, and norms of old checkpoints have `gamma` and `beta`.
fn spellings(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    names.extend(name.split_once('.').map(|(_, rest)| rest.to_owned()));
    for (new, old) in [(".weight", ".gamma"), (".bias", ".beta")] {
        let olds: Vec<String> = names.iter().filter_map(|n| Some(format!("{}{old}", n.strip_suffix(new)?))).collect();
        names.extend(olds);
    }
    names
}
