//! Mixtures of experts: their weights, one stack for each projection, however the checkpoint keeps them.

use super::Graph;
use crate::weights::{every_second, one_after_the_other, transposed};
use quince_mil::{Error, Input, Result, Var, bail};

/// How experts are chosen, mixed and computed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Experts<'a> {
    /// How many there are.
    pub number: usize,
    /// How many a token uses.
    pub chosen: usize,
    /// The width between the projections.
    pub inner: usize,
    /// Over which scores the softmax is taken that gives the weights.
    pub over: SoftmaxOver,
    /// How the checkpoint keeps them.
    pub weights: ExpertWeights<'a>,
    /// `down((up(x) + up_offset) · g · sigmoid(alpha · g))` with g = gate(x).
    pub alpha: f32,
    /// See `alpha`.
    pub up_offset: f32,
    /// g is at most this, and up(x) within plus and minus it.
    pub limit: Option<f32>,
}

/// Which scores share a softmax.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SoftmaxOver {
    /// Those of the chosen experts: their weights add up to one.
    Chosen,
    /// All.
    All,
}

/// How a checkpoint keeps the weights of experts, in the scope `experts`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExpertWeights<'a> {
    /// Modules `N.gate`, `N.up` and `N.down` by these names, without biases.
    Modules([&'a str; 3]),
    /// `gate_up_proj` [E, D, 2 · I] and `down_proj` [E, I, D] with biases `gate_up_proj_bias` [E, 2 · I] and
    /// `down_proj_bias` [E, D]. Gate and up are in turn.
    InTurn,
}

impl Graph<'_> {
    /// What the best experts by `scores` [B, S, E] make of x [B, S, D].
    pub fn experts(&mut self, x: Var, scores: Var, how: Experts) -> Result<Var> {
        let width = self.width(x)?;
        let chosen = i32::try_from(how.chosen).map_err(|_| Error::new("found more than 2^31 experts"))?;
        let weights = self.scope("experts", |g| match how.weights {
            ExpertWeights::Modules(names) => g.experts_of_modules(names, how.number, how.inner, width),
            ExpertWeights::InTurn => g.experts_in_turn(how.number, how.inner, width),
        })?;
        let mut inputs: Vec<(&str, Input)> = vec![("x", x.into()), ("scores", scores.into())];
        inputs.extend(weights.into_iter().map(|(name, var)| (name, var.into())));
        inputs.extend([
            ("chosen", chosen.into()),
            ("normalize", (how.over == SoftmaxOver::Chosen).into()),
            ("alpha", how.alpha.into()),
            ("limit", how.limit.unwrap_or(0.0).into()),
            ("up_offset", how.up_offset.into()),
        ]);
        self.op("experts", "experts", &inputs)
    }

    fn experts_of_modules(
        &mut self,
        names: [&str; 3],
        number: usize,
        inner: usize,
        width: usize,
    ) -> Result<Vec<(&'static str, Var)>> {
        let mut vars = Vec::new();
        for (param, name) in ["gate", "up", "down"].into_iter().zip(names) {
            let (rows, columns) = if param == "down" { (width, inner) } else { (inner, width) };
            let full = self.full_name(&format!("{name}.weight"));
            let parts: Vec<String> = (0..number).map(|i| self.full_name(&format!("{i}.{name}.weight"))).collect();
            let stack = |g: &mut Self| g.stored_stack(&full, &parts, &[rows, columns]);
            vars.push((param, self.cached(&full, &[number.saturating_mul(rows), columns], stack)?));
        }
        Ok(vars)
    }

    fn experts_in_turn(&mut self, number: usize, inner: usize, width: usize) -> Result<Vec<(&'static str, Var)>> {
        let Some(double) = inner.checked_mul(2) else { bail!("found an intermediate size of {inner}") };
        let [gate_up, gate_up_bias, down, down_bias] =
            ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"].map(|name| self.full_name(name));
        let rows = |of: usize| number.saturating_mul(of);
        let mut vars = Vec::new();
        for (param, bias_param, name, first) in [("gate", "gate_bias", "gate_proj", 0), ("up", "up_bias", "up_proj", 1)]
        {
            let full = self.full_name(&format!("{name}.weight"));
            let weight = self.cached(&full, &[rows(inner), width], |g| {
                let both = transposed(&g.stored(&gate_up, &[number, width, double])?)?;
                Ok(every_second(&both, first)?.renamed(&full))
            })?;
            let full = self.full_name(&format!("{name}.bias"));
            let bias = self.cached(&full, &[rows(inner)], |g| {
                Ok(every_second(&g.stored(&gate_up_bias, &[number, double])?, first)?.renamed(&full))
            })?;
            vars.extend([(param, weight), (bias_param, bias)]);
        }
        let whole = |g: &mut Self| one_after_the_other(&transposed(&g.stored(&down, &[number, inner, width])?)?);
        vars.push(("down", self.cached(&down, &[rows(width), inner], whole)?));
        let bias = |g: &mut Self| g.stored(&down_bias, &[number, width])?.reshape(&[rows(width)]);
        vars.push(("down_bias", self.cached(&down_bias, &[rows(width)], bias)?));
        Ok(vars)
    }
}
