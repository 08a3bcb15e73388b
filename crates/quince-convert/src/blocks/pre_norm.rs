//! The layer of most decoders: attention, then a feed-forward block, each after a norm and around each a residual.

use crate::graph::Graph;
use quince_mil::{Result, Var};

/// `x + attention(input_layernorm(x))`, then `x + mlp(post_attention_layernorm(x))`, with RMS norms; `attention` runs in
/// the scope `self_attn`.
pub fn pre_norm(
    g: &mut Graph,
    x: Var,
    epsilon: f32,
    attention: impl FnOnce(&mut Graph, Var) -> Result<Var>,
    mlp: impl FnOnce(&mut Graph, Var) -> Result<Var>,
) -> Result<Var> {
    let normed = g.rms_norm("input_layernorm", x, epsilon)?;
    let attended = g.scope("self_attn", |g| attention(g, normed))?;
    let x = g.add(x, attended)?;
    let normed = g.rms_norm("post_attention_layernorm", x, epsilon)?;
    let y = mlp(g, normed)?;
    g.add(x, y)
}
