//! What model files are written in: weights by Hugging Face name, and the semantic operations.

use crate::blocks::Activation;
use crate::rope::Rope;
use quince_checkpoint::Config;
use quince_mil::{Builder, DType, Dim, Error, Input, Result, Tensor, Var, Weight, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// A semantic program while it is written.
///
/// Names are given relative to the scope, so `linear("q_proj", ...)` within `model.layers.0` and `self_attn` uses the
/// weight `model.layers.0.self_attn.q_proj.weight`, and its operation is called `model.layers.0.self_attn.q_proj`.
/// Everything is float32 here: precision, layout, cache and functions are the lowering's.
pub struct Graph<'a> {
    config: &'a Config,
    weights: &'a dyn Weights,
    builder: Builder,
    scope: Vec<String>,
    ids: Var,
    /// By name: a weight asked for twice is the same weight.
    used: BTreeMap<String, Weight>,
    /// By identity of the float32 weight: the weight as it is in the checkpoint.
    stored: HashMap<usize, Weight>,
    layers: i32,
}

/// Where the weights of a model come from.
pub trait Weights {
    /// The weight of this Hugging Face name, which must have this shape.
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight>;
}

impl Weights for quince_checkpoint::Checkpoint {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.weight_with_shape(name, shape)
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

/// How attention differs from the usual: causal, over all earlier tokens, scaled by 1/√D.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Attention {
    /// A token sees this many tokens, itself included; all earlier ones if absent.
    pub window: Option<usize>,
    /// What scores are multiplied by, if not 1/√D.
    pub scale: Option<f32>,
    /// Scores become `softcap · tanh(score / softcap)` if given.
    pub softcap: Option<f32>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(config: &'a Config, weights: &'a dyn Weights, builder: Builder, ids: Var) -> Graph<'a> {
        let (used, stored) = (BTreeMap::new(), HashMap::new());
        Graph { config, weights, builder, scope: Vec::new(), ids, used, stored, layers: 0 }
    }

    pub(crate) fn finish(self, outputs: Vec<Var>) -> (quince_mil::Function, HashMap<usize, Weight>) {
        (self.builder.finish(outputs), self.stored)
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
        self.op("embedding", name, &[("ids", ids.into()), ("weight", weight.into())])
    }

    /// `x · weightᵀ + bias` over the last axis; the weight is [outputs, width of x].
    pub fn linear(&mut self, name: &str, x: Var, outputs: usize, bias: Bias) -> Result<Var> {
        let width = self.width(x)?;
        self.project("linear", name, name, x, &[outputs, width], bias)
    }

    /// Logits [B, S, vocabulary] of hidden states, called `logits`.
    pub(crate) fn logits(&mut self, module: &str, x: Var, vocabulary: usize, bias: Bias) -> Result<Var> {
        let width = self.width(x)?;
        self.project("logits", "logits", module, x, &[vocabulary, width], bias)
    }

    fn project(&mut self, op: &str, name: &str, module: &str, x: Var, shape: &[usize], bias: Bias) -> Result<Var> {
        let weight = self.weight(module, "weight", shape)?;
        let mut inputs: Vec<(&str, Input)> = vec![("x", x.into()), ("weight", weight.into())];
        if bias == Bias::Present {
            inputs.push(("bias", self.weight(module, "bias", &shape[..1])?.into()));
        }
        self.op(op, name, &inputs)
    }

    /// `x / √(mean(x²) + epsilon) · weight` over the last axis.
    pub fn rms_norm(&mut self, name: &str, x: Var, epsilon: f32) -> Result<Var> {
        let width = self.width(x)?;
        let weight = self.weight(name, "weight", &[width])?;
        self.op("rms_norm", name, &[("x", x.into()), ("weight", weight.into()), ("epsilon", epsilon.into())])
    }

    /// [B, S, heads · D] as [B, S, heads, D].
    pub fn split_heads(&mut self, x: Var, heads: usize) -> Result<Var> {
        let heads = i32::try_from(heads).map_err(|_| Error::new(format!("found {heads} heads, expected fewer")))?;
        self.op("split_heads", "heads", &[("x", x.into()), ("heads", heads.into())])
    }

    /// Rotates each head of x [B, S, heads, D] by its token's position.
    pub fn rope(&mut self, x: Var, rope: &Rope) -> Result<Var> {
        let frequencies = Tensor::vector(rope.inverse_frequencies.clone());
        let scaling = rope.attention_scaling.into();
        let inputs = [("x", x.into()), ("inverse_frequencies", frequencies.into()), ("attention_scaling", scaling)];
        self.op("rope", "rope", &inputs)
    }

    /// Attention of query [B, S, heads, D] to key and value [B, S, kv heads, D]: [B, S, heads · D]. Layers count
    /// themselves in the order they are written; the cache is the lowering's.
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
        let inputs = [
            ("query", query.into()),
            ("key", key.into()),
            ("value", value.into()),
            ("scale", scale.into()),
            ("causal", true.into()),
            ("window", window.unwrap_or(0).into()),
            ("softcap", how.softcap.unwrap_or(0.0).into()),
            ("layer", layer.into()),
        ];
        self.op("attention", "attention", &inputs)
    }

    /// The sum of two values of one shape, as after a block that goes around.
    pub fn add(&mut self, x: Var, y: Var) -> Result<Var> {
        self.op("add", "residual", &[("x", x.into()), ("y", y.into())])
    }

    /// The product of two values of one shape, element by element.
    pub fn mul(&mut self, x: Var, y: Var) -> Result<Var> {
        self.op("mul", "gated", &[("x", x.into()), ("y", y.into())])
    }

    /// An activation function.
    pub fn activation(&mut self, x: Var, activation: Activation) -> Result<Var> {
        match activation {
            Activation::Silu => self.op("silu", "act_fn", &[("x", x.into())]),
            Activation::Gelu => self.op("gelu", "act_fn", &[("x", x.into()), ("mode", "EXACT".into())]),
            Activation::GeluTanh => {
                self.op("gelu", "act_fn", &[("x", x.into()), ("mode", "TANH_APPROXIMATION".into())])
            }
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
        let weight = match self.used.get(&name) {
            Some(weight) if weight.shape() == shape => weight.clone(),
            Some(weight) => bail!("weight `{name}` is used as {:?} and as {shape:?}", weight.shape()),
            None => {
                let stored = self.weights.weight(&name, shape)?;
                if !matches!(stored.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
                    bail!(
                        "weight `{name}`: found elements of type {}, expected fp32, fp16 or bf16", stored.dtype();
                        hint: "quantized checkpoints are not read yet; use the original"
                    );
                }
                let weight = stored.cast(DType::F32);
                self.stored.insert(weight.id(), stored);
                self.used.insert(name, weight.clone());
                weight
            }
        };
        Ok(self.builder.weight(&weight))
    }
}
