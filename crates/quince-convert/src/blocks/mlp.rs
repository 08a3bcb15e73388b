//! Feed-forward blocks: plain ones, and those with a gate (SwiGLU and its kin, Shazeer 2020, arXiv:2002.05202).

use crate::graph::{Bias, Graph};
use quince_mil::{Result, Var, bail};
use serde::Deserialize;

/// The activation functions, by the names that `hidden_act` gives them.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// `x · Φ(x)`.
    #[serde(rename = "gelu")]
    Gelu,
    /// `gelu` approximated with a hyperbolic tangent.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new", alias = "gelu_fast")]
    GeluTanh,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

/// `down_proj(activation(gate_proj(x)) · up_proj(x))` in the scope `mlp`.
pub fn gated_mlp(g: &mut Graph, x: Var, intermediate: usize, activation: Activation, bias: Bias) -> Result<Var> {
    g.scope("mlp", |g| {
        let width = g.width(x)?;
        let gate = g.linear("gate_proj", x, intermediate, bias)?;
        let gate = g.activation(gate, activation)?;
        let up = g.linear("up_proj", x, intermediate, bias)?;
        let gated = g.mul(gate, up)?;
        g.linear("down_proj", gated, width, bias)
    })
}

/// The same in the scope `mlp` with gate and up, in this order, as the outputs of one module: `names` are those of it and
/// of the projection down.
pub fn fused_gated_mlp(
    g: &mut Graph,
    x: Var,
    names: [&str; 2],
    intermediate: usize,
    activation: Activation,
    bias: Bias,
) -> Result<Var> {
    g.scope("mlp", |g| {
        let width = g.width(x)?;
        let Some(double) = intermediate.checked_mul(2) else { bail!("found an intermediate size of {intermediate}") };
        let both = g.linear(names[0], x, double, bias)?;
        let gate = g.part(both, 0, intermediate)?;
        let gate = g.activation(gate, activation)?;
        let up = g.part(both, intermediate, double)?;
        let gated = g.mul(gate, up)?;
        g.linear(names[1], gated, width, bias)
    })
}

/// `names[1](activation(names[0](x)))` with biases.
pub fn plain_mlp(g: &mut Graph, x: Var, names: [&str; 2], intermediate: usize, activation: Activation) -> Result<Var> {
    let width = g.width(x)?;
    let inner = g.linear(names[0], x, intermediate, Bias::Present)?;
    let inner = g.activation(inner, activation)?;
    g.linear(names[1], inner, width, Bias::Present)
}
