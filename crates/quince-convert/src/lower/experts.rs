//! Mixtures of experts: in a call of one token, the weights of the chosen experts are gathered; in others all experts
//! compute all tokens.
//!
//! ```text
//! decode   best, numbers = topk(scores, k);  w = softmax(best)         the weights of a projection are [E · rows, columns]
//!          gathered = gather(weight, numbers · rows + 0, 1, ..)        [k, rows, columns]
//!          y = reduce_sum(mlp(x, the three gathered) · w)
//! others   shares = reduce_sum(one_hot(numbers) · w)                   [1, S, E], zero for who is not chosen
//!          inner = linear(x, up) · act(linear(x, gate))                [1, S, E · I]
//!          y = reduce_sum(matmul(inner by expert, down by expert) · shares)
//! ```
//!
//! Where products are no `linear` ([`Products::ByExpert`]), up and gate are `matmul` by expert like down: one convolution
//! of all experts has more channels than a dimension may have there (92160 for gpt-oss-20b, of 16384).
//!
//! Core ML has no product with chosen matrices, and runs no branch for a token. What a call reads of the weights of a
//! layer's experts, with k of E chosen: `decode` the rows of k, packed if they are compressed, and it writes and reads them
//! once more dense; `init` and `full` all E, once for any number of tokens, with E / k times the arithmetic. For
//! gpt-oss-20b (4 of 32) and Qwen3-30B-A3B (8 of 128) at 4 bits a token thus reads 1/8 and 1/16 of the packed weights, and
//! moves 8 times those bytes in float16 beside them: as much as all experts packed, and half as much.

use super::Writer;
use super::writer::{int_vector, shape};
use quince_mil::{Args, Dim, Input, Operation, Result, Tensor, Var, bail};

/// What is known of a mixture, and the part of its operations' names before the dot.
struct Mixture<'a> {
    name: &'a str,
    experts: usize,
    chosen: i32,
    normalize: bool,
    alpha: f32,
    limit: f32,
    up_offset: f32,
}

/// The weight [E · rows, columns] and the bias [E · rows] of one projection.
#[derive(Clone, Copy)]
struct Projection {
    part: &'static str,
    weight: Var,
    bias: Option<Var>,
    rows: usize,
}

/// How all experts are multiplied with what they have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Products {
    /// As one layer.
    Together,
    /// Each by itself.
    ByExpert,
}

pub(super) fn mixture(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    experts(w, &operation.name, operation, args, Products::Together)
}

/// The same under another name: tokens come first in the result, whatever the layout.
pub(super) fn experts(
    w: &mut Writer,
    name: &str,
    operation: &Operation,
    args: &Args,
    products: Products,
) -> Result<Var> {
    let (&[.., Dim::Fixed(experts)], &[.., Dim::Fixed(inner)]) = (args.shape("scores")?, args.shape("down")?) else {
        bail!("found scores {:?}, expected a known number of experts", args.shape("scores")?);
    };
    if w.has_padding() {
        bail!("found experts in a function of several texts, expected a model without"; hint: "ask for `full`");
    }
    let m = Mixture {
        name,
        experts,
        chosen: args.int("chosen")? as i32,
        normalize: args.bool("normalize")?,
        alpha: args.float("alpha")? as f32,
        limit: args.float("limit")? as f32,
        up_offset: args.float("up_offset")? as f32,
    };
    let (x, scores) = (w.tokens_first(operation, "x")?, w.tokens_first(operation, "scores")?);
    let mut projection = |part: &'static str, bias: &str| -> Result<Projection> {
        let rows = if part == "down" { args.shape("x")?.last().and_then(|dim| dim.fixed()) } else { Some(inner) };
        let Some(rows) = rows else { bail!("found x {:?}, expected a known width", args.shape("x")?) };
        Ok(Projection { part, weight: w.input(operation, part)?, bias: w.optional_input(operation, bias)?, rows })
    };
    let all = [projection("gate", "gate_bias")?, projection("up", "up_bias")?, projection("down", "down_bias")?];
    let (weights, numbers) = m.choice(w, scores)?;
    match w.single_token() {
        true => m.of_chosen(w, x, all, weights, numbers),
        false => m.of_all(w, x, all, [weights, numbers], products),
    }
}

impl Mixture<'_> {
    fn named(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// One token [1, 1, D] with the weights of the chosen experts.
    fn of_chosen(&self, w: &mut Writer, x: Var, all: [Projection; 3], weights: Var, numbers: Var) -> Result<Var> {
        let numbers = w.op("reshape", &self.named("numbers"), &[("x", numbers.into()), ("shape", [-1, 1].into())])?;
        let shares = w.op("reshape", &self.named("shares"), &[("x", weights.into()), ("shape", [-1, 1, 1].into())])?;
        let [gate, up, down] = all;
        let rows_of = |w: &mut Writer, by: Projection| {
            let rows = int_vector(&[by.rows])?[0];
            let inputs = [("x", numbers.into()), ("y", rows.into())];
            let first = w.op("mul", &self.named(&format!("{}.first_rows", by.part)), &inputs)?;
            let inputs = [("x", first.into()), ("y", (0..rows).collect::<Vec<_>>().into())];
            w.op("add", &self.named(&format!("{}.rows", by.part)), &inputs)
        };
        let inner_rows = rows_of(w, gate)?;
        let g = self.product(w, gate, x, inner_rows)?;
        let u = self.product(w, up, x, inner_rows)?;
        let inner = self.gated(w, g, u)?;
        let down_rows = rows_of(w, down)?;
        let y = self.product(w, down, inner, down_rows)?;
        let y = w.op("mul", &self.named("shared"), &[("x", y.into()), ("y", shares.into())])?;
        w.op("reduce_sum", self.name, &[("x", y.into()), ("axes", [0].into()), ("keep_dims", true.into())])
    }

    /// x [1 or k, 1, columns] times the rows [k, rows] of a projection: [k, 1, rows].
    fn product(&self, w: &mut Writer, by: Projection, x: Var, rows: Var) -> Result<Var> {
        let part = |part: &str| self.named(&format!("{}.{part}", by.part));
        let weight = w.gather(&part("chosen"), by.weight, rows)?;
        let inputs =
            [("x", x.into()), ("y", weight.into()), ("transpose_x", false.into()), ("transpose_y", true.into())];
        let y = w.op("matmul", &self.named(by.part), &inputs)?;
        let Some(bias) = by.bias else { return Ok(y) };
        let bias = w.gather(&part("chosen_bias"), bias, rows)?;
        let bias = w.op("expand_dims", &part("bias"), &[("x", bias.into()), ("axes", [1].into())])?;
        w.op("add", &part("biased"), &[("x", y.into()), ("y", bias.into())])
    }

    /// All tokens [1, S, D] with the weights of all experts.
    fn of_all(
        &self,
        w: &mut Writer,
        x: Var,
        [gate, up, down]: [Projection; 3],
        [weights, numbers]: [Var; 2],
        products: Products,
    ) -> Result<Var> {
        let shares = self.shares(w, weights, numbers)?;
        let inner = match products {
            Products::Together => {
                let (g, u) = (self.layer(w, gate, x)?, self.layer(w, up, x)?);
                let inner = self.gated(w, g, u)?;
                let inputs = [("x", inner.into()), ("shape", shape(&[1, -1, self.experts as i64, gate.rows as i64])?)];
                let inner = w.op("reshape", &self.named("by_token"), &inputs)?;
                let inputs = [("x", inner.into()), ("perm", [0, 2, 1, 3].into())];
                w.op("transpose", &self.named("by_expert"), &inputs)?
            }
            Products::ByExpert => {
                let inputs = [("x", x.into()), ("axes", [1].into())];
                let x = w.op("expand_dims", &self.named("for_all"), &inputs)?;
                let (g, u) = (self.by_expert(w, gate, x)?, self.by_expert(w, up, x)?);
                self.gated(w, g, u)?
            }
        };
        let y = self.by_expert(w, down, inner)?;
        let y = match w.known_tokens().filter(|_| products == Products::ByExpert) {
            Some(tokens) => self.shared_by_product(w, shares, y, tokens)?,
            None => {
                let inputs = [("x", shares.into()), ("axes", [-1].into())];
                let shares = w.op("expand_dims", &self.named("shares"), &inputs)?;
                w.op("mul", &self.named("shared"), &[("x", y.into()), ("y", shares.into())])?
            }
        };
        w.op("reduce_sum", self.name, &[("x", y.into()), ("axes", [1].into()), ("keep_dims", false.into())])
    }

    /// y [1, E, S, rows] times the shares [1, E, S], as the product with matrices that have them on their diagonal: a column
    /// of shares would be padded to 32 times its size.
    fn shared_by_product(&self, w: &mut Writer, shares: Var, y: Var, tokens: usize) -> Result<Var> {
        let inputs = [("x", shares.into()), ("axes", [2].into())];
        let rows = w.op("expand_dims", &self.named("share_rows"), &inputs)?;
        let ones: Vec<f32> = (0..tokens * tokens).map(|i| if i / tokens == i % tokens { 1.0 } else { 0.0 }).collect();
        let ones = w.constant(&self.named("diagonal"), Tensor::from_f32(w.dtype(), [1, 1, tokens, tokens], ones)?);
        let diagonal = w.op("mul", &self.named("shares"), &[("x", rows.into()), ("y", ones.into())])?;
        let inputs =
            [("x", diagonal.into()), ("y", y.into()), ("transpose_x", false.into()), ("transpose_y", false.into())];
        w.op("matmul", &self.named("shared"), &inputs)
    }

    /// x [1, S, columns] times all rows of a projection: [1, S, E · rows].
    fn layer(&self, w: &mut Writer, by: Projection, x: Var) -> Result<Var> {
        let bias = by.bias.map_or_else(|| w.zeros(self.experts.saturating_mul(by.rows)), Ok)?;
        let inputs = [("x", x.into()), ("weight", by.weight.into()), ("bias", bias.into())];
        w.op("linear", &self.named(by.part), &inputs)
    }

    /// x [1, E or 1, S, columns] times the rows of each expert: [1, E, S, rows].
    fn by_expert(&self, w: &mut Writer, by: Projection, x: Var) -> Result<Var> {
        let part = |part: &str| self.named(&format!("{}.{part}", by.part));
        let (experts, rows) = (self.experts as i64, by.rows as i64);
        let Some(columns) = w.last_size(by.weight) else {
            bail!("found a weight of unknown width, expected a constant")
        };
        let inputs = [("x", by.weight.into()), ("shape", shape(&[1, experts, rows, columns as i64])?)];
        let matrices = w.op("reshape", &part("by_expert"), &inputs)?;
        let inputs =
            [("x", x.into()), ("y", matrices.into()), ("transpose_x", false.into()), ("transpose_y", true.into())];
        let y = w.op("matmul", &self.named(by.part), &inputs)?;
        let Some(bias) = by.bias else { return Ok(y) };
        let inputs = [("x", bias.into()), ("shape", shape(&[1, experts, 1, rows])?)];
        let bias = w.op("reshape", &part("bias"), &inputs)?;
        w.op("add", &part("biased"), &[("x", y.into()), ("y", bias.into())])
    }

    /// The weights of the chosen experts and their numbers: [1, S, k] each.
    fn choice(&self, w: &mut Writer, scores: Var) -> Result<(Var, Var)> {
        let softmax =
            |w: &mut Writer, x: Var| w.op("softmax", &self.named("weights"), &[("x", x.into()), ("axis", (-1).into())]);
        let from = if self.normalize { scores } else { softmax(w, scores)? };
        let inputs = [
            ("x", from.into()),
            ("k", self.chosen.into()),
            ("axis", (-1).into()),
            ("ascending", false.into()),
            ("sort", true.into()),
            ("return_indices", true.into()),
            ("output_indices_dtype", "int32".into()),
        ];
        let [best, numbers] = w.ops("topk", &self.named("best"), &inputs)?[..] else {
            bail!("found topk with other than two results");
        };
        Ok((if self.normalize { softmax(w, best)? } else { best }, numbers))
    }

    /// What each expert has of each token: [1, E, S].
    fn shares(&self, w: &mut Writer, weights: Var, numbers: Var) -> Result<Var> {
        let size: Input = Tensor::scalar(self.experts as i32).into();
        let (on, off) = (w.number(1.0)?, w.number(0.0)?);
        let inputs = [
            ("indices", numbers.into()),
            ("one_hot_vector_size", size),
            ("axis", (-1).into()),
            ("on_value", on),
            ("off_value", off),
        ];
        let places = w.op("one_hot", &self.named("places"), &inputs)?;
        let weights = w.op("expand_dims", &self.named("columns"), &[("x", weights.into()), ("axes", [-1].into())])?;
        let placed = w.op("mul", &self.named("placed"), &[("x", places.into()), ("y", weights.into())])?;
        let inputs = [("x", placed.into()), ("axes", [2].into()), ("keep_dims", false.into())];
        let shares = w.op("reduce_sum", &self.named("of_tokens"), &inputs)?;
        let inputs = [("x", shares.into()), ("perm", [0, 2, 1].into())];
        w.op("transpose", &self.named("of_experts"), &inputs)
    }

    /// What is between the projections.
    fn gated(&self, w: &mut Writer, mut g: Var, mut u: Var) -> Result<Var> {
        if self.limit > 0.0 {
            let (limit, below) = (w.number(self.limit)?, w.number(-self.limit)?);
            g = w.op("minimum", &self.named("gate.limited"), &[("x", g.into()), ("y", limit.clone())])?;
            let inputs = [("x", u.into()), ("alpha", below), ("beta", limit)];
            u = w.op("clip", &self.named("up.limited"), &inputs)?;
        }
        if self.up_offset != 0.0 {
            let offset = w.number(self.up_offset)?;
            u = w.op("add", &self.named("up.more"), &[("x", u.into()), ("y", offset)])?;
        }
        let gate = match self.alpha == 1.0 {
            true => w.op("silu", &self.named("gate.silu"), &[("x", g.into())])?,
            false => {
                let alpha = w.number(self.alpha)?;
                let steep = w.op("mul", &self.named("gate.steep"), &[("x", g.into()), ("y", alpha)])?;
                let open = w.op("sigmoid", &self.named("gate.open"), &[("x", steep.into())])?;
                w.op("mul", &self.named("gate.gated"), &[("x", g.into()), ("y", open.into())])?
            }
        };
        w.op("mul", &self.named("gated"), &[("x", gate.into()), ("y", u.into())])
    }
}
