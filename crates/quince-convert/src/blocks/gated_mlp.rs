//! The feed-forward block with a gate: SwiGLU and its kin (Shazeer 2020, arXiv:2002.05202).

use crate::graph::{Bias, Graph};
use quince_mil::{Result, Var};
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
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
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
