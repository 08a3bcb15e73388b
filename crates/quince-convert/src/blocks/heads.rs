//! Queries, keys and values: from the projections of a layer to its attention.

use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::Rope;
use quince_mil::{Result, Var, bail};

/// The heads of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heads {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub dim: usize,
}

/// Queries [B, S, heads, D], keys and values [B, S, kv heads, D].
#[derive(Clone, Copy)]
pub struct Qkv {
    q: Var,
    k: Var,
    v: Var,
}

impl Heads {
    /// As many heads of keys and values as of queries, which share `width` between them.
    pub fn sharing(width: usize, heads: usize) -> Heads {
        Heads { heads, kv_heads: heads, dim: width / heads.max(1) }
    }

    /// Elements of all heads of queries.
    pub fn width(self) -> usize {
        self.heads.saturating_mul(self.dim)
    }

    fn kv_width(self) -> usize {
        self.kv_heads.saturating_mul(self.dim)
    }

    /// A module for each of queries, keys and values.
    pub fn project(self, g: &mut Graph, x: Var, names: [&str; 3], bias: Bias) -> Result<Qkv> {
        let q = g.linear(names[0], x, self.width(), bias)?;
        let k = g.linear(names[1], x, self.kv_width(), bias)?;
        let v = g.linear(names[2], x, self.kv_width(), bias)?;
        self.split(g, q, k, v)
    }

    /// The outputs of one module: all queries, then all keys, then all values.
    pub fn fused(self, g: &mut Graph, all: Var) -> Result<Qkv> {
        let (keys, values) = (self.width(), self.width().saturating_add(self.kv_width()));
        let q = g.part(all, 0, keys)?;
        let k = g.part(all, keys, values)?;
        let v = g.part(all, values, self.fused_width())?;
        self.split(g, q, k, v)
    }

    /// The outputs of one module: query, key and value of the first head, then those of the second, and so on.
    pub fn fused_by_head(self, g: &mut Graph, all: Var) -> Result<Qkv> {
        if self.heads != self.kv_heads {
            bail!("found {} heads of keys, expected {} as of queries", self.kv_heads, self.heads);
        }
        let all = g.split_heads(all, self.heads)?;
        let part = |g: &mut Graph, i: usize| g.part(all, i * self.dim, (i + 1) * self.dim);
        Ok(Qkv { q: part(g, 0)?, k: part(g, 1)?, v: part(g, 2)? })
    }

    /// Elements of all queries, keys and values.
    pub fn fused_width(self) -> usize {
        self.width().saturating_add(self.kv_width()).saturating_add(self.kv_width())
    }

    fn split(self, g: &mut Graph, q: Var, k: Var, v: Var) -> Result<Qkv> {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        Ok(Qkv { q: g.split_heads(q, heads)?, k: g.split_heads(k, kv_heads)?, v: g.split_heads(v, kv_heads)? })
    }
}

impl Qkv {
    /// A norm on each head of queries, and one on each of keys.
    pub fn normed(self, g: &mut Graph, names: [&str; 2], norm: Norm) -> Result<Qkv> {
        Ok(Qkv { q: g.norm(names[0], self.q, norm)?, k: g.norm(names[1], self.k, norm)?, v: self.v })
    }

    /// Queries and keys turned by their positions.
    pub fn rotated(self, g: &mut Graph, rope: &Rope) -> Result<Qkv> {
        Ok(Qkv { q: g.rope(self.q, rope)?, k: g.rope(self.k, rope)?, v: self.v })
    }

    /// Attention: [B, S, heads · D].
    pub fn attend(self, g: &mut Graph, how: Attention) -> Result<Var> {
        g.attention(self.q, self.k, self.v, how)
    }
}
