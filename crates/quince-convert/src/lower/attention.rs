//! Attention over (B, S, D): heads come forward, the cache is extended, heads are grouped, and the fused operation runs.
//!
//! ```text
//! query = transpose(query, [0, 2, 1, 3])                      [1, heads, S, D]; key and value likewise
//! query = reshape(query, [1, kv heads, -1, D])                a group's heads become rows (Grouping::Grouped), or
//! keys  = reshape(tile(expand_dims(keys, 2), group))          keys and values are repeated (Grouping::Repeated)
//! y = scaled_dot_product_attention(query, keys, values, mask) its scale is 1/√D; for another, the query is scaled before
//! y = reshape(transpose(reshape(y), [0, 2, 1, 3]))            [1, S, heads · D]
//! ```
//!
//! Soft caps and sinks, which the fused operation does not know, write it out; a sink is one more column of scores, of
//! which the softmax's weight is cut off:
//!
//! ```text
//! scores = matmul(query, keysᵀ) · 1/√D;  capped = tanh(scores / c) · c;  scores = capped + (mask - 1) · 30000
//! weights = softmax(concat([scores, sinks]))[.., .. -1];  y = matmul(weights, values)
//! ```

use super::positions::MaskKind;
use super::writer::shape;
use super::{Grouping, Writer};
use quince_mil::{Args, Error, Input, Operation, Result, Var, bail};

/// The sizes of an attention, and the part of its operations' names before the dot.
struct Attention<'a> {
    name: &'a str,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

pub(super) fn attention(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let a = Attention::new(&operation.name, args)?;
    let causal = args.bool("causal")?;
    if !causal && w.start().is_some() {
        bail!("found attention that is not causal, expected causal in a function with a cache");
    }
    let size = |param: &str| -> Result<usize> {
        let found = args.int(param)?;
        usize::try_from(found).map_err(|_| Error::new(format!("found {param} {found}, expected zero or more")))
    };
    let (layer, window) = (size("layer")?, size("window")?);
    let (scale, softcap) = (args.float("scale")? as f32, args.float("softcap")? as f32);
    let (query, key, value) = (w.input(operation, "query")?, w.input(operation, "key")?, w.input(operation, "value")?);
    let (sinks, bias) = (w.optional_input(operation, "sinks")?, w.optional_input(operation, "bias")?);
    let query = a.by_head(w, "query", query)?;
    let key = a.by_head(w, "key", key)?;
    let value = a.by_head(w, "value", value)?;
    let (mut keys, mut values) = w.extend_cache(a.name, layer, key, value)?;
    let mut query = a.scaled(w, query, scale)?;
    // Of how many query heads the rows stand in one head's product.
    let mut stacked = 1;
    if a.heads != a.kv_heads {
        match w.settings.grouping {
            // A bias is by query head, so heads stay apart.
            Grouping::Grouped if bias.is_none() => {
                stacked = a.heads / a.kv_heads;
                query = a.reshape(w, "groups", query, &[a.kv_heads as i64, -1, a.dim as i64])?;
            }
            Grouping::Grouped | Grouping::Repeated => {
                keys = a.repeated(w, "keys", keys)?;
                values = a.repeated(w, "values", values)?;
            }
        }
    }
    let kind = (causal || window > 0).then_some(MaskKind { causal, window, repeats: stacked });
    let fused = softcap == 0.0 && sinks.is_none();
    let mut mask = match kind {
        Some(kind) if fused && bias.is_none() && !w.has_padding() => Some(w.mask(kind)?),
        kind => w.mask_scores(kind)?,
    };
    if let Some(bias) = bias {
        mask = Some(match mask {
            Some(mask) => w.op("add", &a.named("biased"), &[("x", bias.into()), ("y", mask.into())])?,
            None => bias,
        });
    }
    let mut y = match fused {
        true => a.fused(w, query, keys, values, mask)?,
        false => a.written_out(w, [query, keys, values], mask, softcap, sinks)?,
    };
    if stacked > 1 {
        y = a.reshape(w, "heads", y, &[a.heads as i64, -1, a.dim as i64])?;
    }
    let y = a.by_head(w, "tokens", y)?;
    w.reshaped(a.name, y, &[-1, a.heads.saturating_mul(a.dim) as i64])
}

impl<'a> Attention<'a> {
    fn new(name: &'a str, args: &Args) -> Result<Attention<'a>> {
        let heads_and_dim = |param: &str| -> Result<(usize, usize)> {
            match args.shape(param)? {
                [_, _, heads, dim] if heads.fixed() > Some(0) && dim.fixed() > Some(0) => {
                    Ok((heads.fixed().unwrap_or(1), dim.fixed().unwrap_or(1)))
                }
                other => bail!("found a {param} of shape {other:?}, expected [B, S, heads, D] with known heads and D"),
            }
        };
        let ((heads, dim), (kv_heads, _)) = (heads_and_dim("query")?, heads_and_dim("key")?);
        if !heads.is_multiple_of(kv_heads) {
            bail!("found {heads} query heads, expected a multiple of the {kv_heads} heads of keys");
        }
        Ok(Attention { name, heads, kv_heads, dim })
    }

    fn named(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// Puts the second and third of four axes in each other's place.
    fn by_head(&self, w: &mut Writer, part: &str, x: Var) -> Result<Var> {
        w.op("transpose", &self.named(part), &[("x", x.into()), ("perm", [0, 2, 1, 3].into())])
    }

    /// x with as many texts as there are, and these sizes.
    fn reshape(&self, w: &mut Writer, part: &str, x: Var, sizes: &[i64]) -> Result<Var> {
        w.reshaped(&self.named(part), x, sizes)
    }

    /// The query, scaled so that the 1/√D of the fused operation makes `scale` of it.
    fn scaled(&self, w: &mut Writer, query: Var, scale: f32) -> Result<Var> {
        let before = f64::from(scale) * (self.dim as f64).sqrt();
        if (before - 1.0).abs() < 1e-6 {
            return Ok(query);
        }
        let before = w.number(before as f32)?;
        w.op("mul", &self.named("scaled"), &[("x", query.into()), ("y", before)])
    }

    /// Keys or values [1, kv heads, K, D] as [1, heads, K, D].
    fn repeated(&self, w: &mut Writer, part: &str, x: Var) -> Result<Var> {
        let (spread, tiled) = (self.named(&format!("{part}.spread")), self.named(&format!("{part}.tiled")));
        let x = w.op("expand_dims", &spread, &[("x", x.into()), ("axes", [2].into())])?;
        let reps = shape(&[1, 1, (self.heads / self.kv_heads) as i64, 1, 1])?;
        let x = w.op("tile", &tiled, &[("x", x.into()), ("reps", reps)])?;
        self.reshape(w, &format!("{part}.repeated"), x, &[self.heads as i64, -1, self.dim as i64])
    }

    fn fused(&self, w: &mut Writer, query: Var, keys: Var, values: Var, mask: Option<Var>) -> Result<Var> {
        let mut inputs: Vec<(&str, Input)> =
            vec![("query", query.into()), ("key", keys.into()), ("value", values.into())];
        inputs.extend(mask.map(|mask| ("attn_mask", mask.into())));
        w.op("scaled_dot_product_attention", &self.named("attended"), &inputs)
    }

    /// Attention that the fused operation does not know: with a soft cap, or with sinks. What is masked gets -30000: that
    /// is in float16, and far below any score.
    fn written_out(
        &self,
        w: &mut Writer,
        [query, keys, values]: [Var; 3],
        mask: Option<Var>,
        softcap: f32,
        sinks: Option<Var>,
    ) -> Result<Var> {
        let inputs =
            [("x", query.into()), ("y", keys.into()), ("transpose_x", false.into()), ("transpose_y", true.into())];
        let scores = w.op("matmul", &self.named("scores"), &inputs)?;
        let root = (self.dim as f32).sqrt();
        let narrow = w.number(if softcap > 0.0 { 1.0 / (softcap * root) } else { 1.0 / root })?;
        let mut scores = w.op("mul", &self.named("narrowed"), &[("x", scores.into()), ("y", narrow)])?;
        if softcap > 0.0 {
            scores = w.op("tanh", &self.named("tanh"), &[("x", scores.into())])?;
            let softcap = w.number(softcap)?;
            scores = w.op("mul", &self.named("capped"), &[("x", scores.into()), ("y", softcap)])?;
        }
        if let Some(mask) = mask {
            scores = w.op("add", &self.named("masked_scores"), &[("x", scores.into()), ("y", mask.into())])?;
        }
        let weights = match sinks {
            None => self.softmax(w, scores)?,
            Some(sinks) => self.with_sinks(w, scores, sinks)?,
        };
        let inputs =
            [("x", weights.into()), ("y", values.into()), ("transpose_x", false.into()), ("transpose_y", false.into())];
        w.op("matmul", &self.named("attended"), &inputs)
    }

    fn softmax(&self, w: &mut Writer, scores: Var) -> Result<Var> {
        w.op("softmax", &self.named("weights"), &[("x", scores.into()), ("axis", (-1).into())])
    }

    /// The softmax of scores, each row with its head's sink, without the weight of that. Rows of a group's heads stand one
    /// after the other, so that a column by head is one by group without a copy.
    fn with_sinks(&self, w: &mut Writer, scores: Var, sinks: Var) -> Result<Var> {
        let grouped = self.heads != self.kv_heads && w.settings.grouping == Grouping::Grouped;
        let inputs = [
            ("x", scores.into()),
            ("begin", [0, 0, 0, 0].into()),
            ("end", [0, 0, 0, 1].into()),
            ("end_mask", [true, true, true, false].into()),
        ];
        let mut column = w.op("slice_by_index", &self.named("first_column"), &inputs)?;
        if grouped {
            column = self.reshape(w, "column_by_head", column, &[self.heads as i64, -1, 1])?;
        }
        let zero = w.number(0.0)?;
        let column = w.op("mul", &self.named("empty_column"), &[("x", column.into()), ("y", zero)])?;
        let sinks = w.op("expand_dims", &self.named("sinks"), &[("x", sinks.into()), ("axes", [0, 2, 3].into())])?;
        let mut column = w.op("add", &self.named("sink_column"), &[("x", column.into()), ("y", sinks.into())])?;
        if grouped {
            column = self.reshape(w, "column_by_group", column, &[self.kv_heads as i64, -1, 1])?;
        }
        let scores = w.concat(&self.named("scores_and_sinks"), vec![scores, column], -1)?;
        let weights = self.softmax(w, scores)?;
        let inputs = [
            ("x", weights.into()),
            ("begin", [0, 0, 0, 0].into()),
            ("end", [0, 0, 0, -1].into()),
            ("end_mask", [true, true, true, false].into()),
        ];
        w.op("slice_by_index", &self.named("weights_of_keys"), &inputs)
    }
}
