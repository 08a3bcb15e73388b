//! How values lie: as the semantic program has them, or with channels before tokens, as the Neural Engine wants them.

use super::Writer;
use quince_mil::{Dim, Operation, Result, Var, bail};

/// How values of the semantic program lie in the lowered one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// As in the semantic program: [B, S, D], and heads as [B, S, H, D].
    TokensFirst,
    /// [B, D, 1, S], and heads as [B, H, S, D]. Values of other ranks lie as in the semantic program.
    ChannelsFirst,
}

impl Layout {
    /// The axis of tokens of a value that has so many axes in the semantic program.
    pub(super) fn token_axis(self, rank: usize) -> usize {
        match (self, rank) {
            (Layout::ChannelsFirst, 3) => 3,
            (Layout::ChannelsFirst, 4) => 2,
            _ => 1,
        }
    }
}

impl Writer<'_> {
    /// An argument [B, S, D] of a semantic operation with tokens first, whatever the layout.
    pub(super) fn tokens_first(&mut self, operation: &Operation, param: &str) -> Result<Var> {
        let x = self.input(operation, param)?;
        match self.lies_otherwise(operation, param) {
            true => {
                let name = format!("{}.{param}_by_token", operation.name);
                self.by_token(&name, x)
            }
            false => Ok(x),
        }
    }

    /// Whether an argument [B, S, D] has its channels first.
    pub(super) fn lies_otherwise(&self, operation: &Operation, param: &str) -> bool {
        let var = operation.var(param);
        self.layout == Layout::ChannelsFirst
            && var.is_some_and(|var| self.semantic_rank(var) == 3 && !self.by_tokens.contains(&var))
    }

    /// Whether a constant is a table that embeddings are looked up in.
    pub(super) fn is_table(&self, weight: Var) -> bool {
        let mut operations = self.source.block.operations.iter();
        operations.any(|operation| operation.op_name() == "embedding" && operation.var("weight") == Some(weight))
    }

    /// [B, D, 1, S] as [B, S, D].
    pub(super) fn by_token(&mut self, name: &str, x: Var) -> Result<Var> {
        let rows = self.op("squeeze", &format!("{name}.channels"), &[("x", x.into()), ("axes", [2].into())])?;
        self.op("transpose", name, &[("x", rows.into()), ("perm", [0, 2, 1].into())])
    }

    /// [B, S, D] as [B, D, 1, S].
    pub(super) fn by_channel(&mut self, name: &str, x: Var) -> Result<Var> {
        let rows = self.op("transpose", &format!("{name}.channels"), &[("x", x.into()), ("perm", [0, 2, 1].into())])?;
        self.op("expand_dims", name, &[("x", rows.into()), ("axes", [2].into())])
    }

    /// The result [B, S, D] of an operation stays with tokens first, in either layout.
    pub(super) fn stays_by_token(&mut self, operation: &Operation) {
        self.by_tokens.extend(operation.outputs.first());
    }

    /// The number of axes that a value has in the semantic program.
    pub(super) fn semantic_rank(&self, var: Var) -> usize {
        self.source.ty(var).as_tensor().map_or(0, |ty| ty.shape.len())
    }

    /// The size of the last axis of a value of the semantic program.
    pub(super) fn semantic_width(&self, var: Var) -> Result<usize> {
        match self.source.ty(var).as_tensor().and_then(|ty| ty.shape.last()) {
            Some(Dim::Fixed(width)) => Ok(*width),
            _ => bail!("found the type {}, expected a last axis of known size", self.source.ty(var)),
        }
    }
}
