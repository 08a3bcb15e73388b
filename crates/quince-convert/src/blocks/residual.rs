//! Layers: attention and a feed-forward block, where the norms are and what goes around what.

use crate::graph::{Graph, Norm};
use quince_mil::{Result, Var};

/// The names in a layer whose norms stand before attention and before the feed-forward block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PreNorm {
    /// The norm before attention.
    pub first: &'static str,
    /// The scope of attention.
    pub attention: &'static str,
    /// The norm before the feed-forward block.
    pub second: &'static str,
}

impl PreNorm {
    /// The names that most decoders have.
    pub const USUAL: PreNorm =
        PreNorm { first: "input_layernorm", attention: "self_attn", second: "post_attention_layernorm" };
}

/// `x + attention(first(x))`, then `x + mlp(second(x))`: the layer of most decoders.
pub fn pre_norm(
    g: &mut Graph,
    x: Var,
    names: PreNorm,
    norm: Norm,
    attention: impl FnOnce(&mut Graph, Var) -> Result<Var>,
    mlp: impl FnOnce(&mut Graph, Var) -> Result<Var>,
) -> Result<Var> {
    let normed = g.norm(names.first, x, norm)?;
    let attended = g.scope(names.attention, |g| attention(g, normed))?;
    let x = g.add(x, attended)?;
    let normed = g.norm(names.second, x, norm)?;
    let y = mlp(g, normed)?;
    g.add(x, y)
}

/// `x + attention(first(x)) + mlp(second(x))`: both at once; `second` may be the same norm as `first`.
pub fn parallel(
    g: &mut Graph,
    x: Var,
    names: PreNorm,
    norm: Norm,
    attention: impl FnOnce(&mut Graph, Var) -> Result<Var>,
    mlp: impl FnOnce(&mut Graph, Var) -> Result<Var>,
) -> Result<Var> {
    let first = g.norm(names.first, x, norm)?;
    let second = if names.second == names.first { first } else { g.norm(names.second, x, norm)? };
    let attended = g.scope(names.attention, |g| attention(g, first))?;
    let y = mlp(g, second)?;
    let around = g.add(x, attended)?;
    g.add(around, y)
}

/// `x + post_attention_layernorm(attention(input_layernorm(x)))`, then `x + post_feedforward_layernorm(mlp(
/// pre_feedforward_layernorm(x)))`: norms on both sides.
pub fn sandwich(
    g: &mut Graph,
    x: Var,
    norm: Norm,
    attention: impl FnOnce(&mut Graph, Var) -> Result<Var>,
    mlp: impl FnOnce(&mut Graph, Var) -> Result<Var>,
) -> Result<Var> {
    let normed = g.norm("input_layernorm", x, norm)?;
    let attended = g.scope("self_attn", |g| attention(g, normed))?;
    let attended = g.norm("post_attention_layernorm", attended, norm)?;
    let x = g.add(x, attended)?;
    let normed = g.norm("pre_feedforward_layernorm", x, norm)?;
    let y = mlp(g, normed)?;
    let y = g.norm("post_feedforward_layernorm", y, norm)?;
    g.add(x, y)
}

/// `first(x + attention(x))`, then `second(x + mlp(x))`: the layer of the first encoders. `names` are the norms.
pub fn post_norm(
    g: &mut Graph,
    x: Var,
    names: [&str; 2],
    norm: Norm,
    attention: impl FnOnce(&mut Graph, Var) -> Result<Var>,
    mlp: impl FnOnce(&mut Graph, Var) -> Result<Var>,
) -> Result<Var> {
    let attended = attention(g, x)?;
    let x = g.add(attended, x)?;
    let x = g.norm(names[0], x, norm)?;
    let y = mlp(g, x)?;
    let y = g.add(y, x)?;
    g.norm(names[1], y, norm)
}
