//! Attention: the cache is extended, query heads that share keys are grouped, scores become weights and those a result.
//!
//! ```text
//! query = reshape(query, [1, kv heads, -1, D])                of [1, heads, S, D]; a group's heads become rows
//!                                                             (Grouping::Grouped), or keys and values are repeated:
//! keys  = reshape(tile(expand_dims(keys, 2), group))          (Grouping::Repeated)
//! ```
//!
//! The GPU has an operation for the rest. Its scale is 1/√D; for another, the query is scaled before:
//!
//! ```text
//! y = scaled_dot_product_attention(query, keys, values, mask)
//! ```
//!
//! For the Neural Engine, and where that operation does not do because of soft caps or sinks, it is written out. The query
//! is scaled before the product, whose sums thus stay small; a sink is one more column of scores, of which the softmax's
//! weight is cut off:
//!
//! ```text
//! scores = matmul(query · scale, keysᵀ);  capped = tanh(scores / c) · c;  scores = capped + mask
//! weights = softmax(concat([scores, sinks]))[.., .. -1];  y = matmul(weights, values)
//! ```

use super::positions::{MaskKind, UNSEEN};
use super::writer::{int_vector, shape};
use super::{Grouping, Layout, Writer};
use quince_mil::{Args, Error, Input, Operation, Result, Tensor, Var, bail};

/// The elements that the Neural Engine pads the last axis to.
const COLUMNS: usize = 32;

/// The sizes of an attention, and the part of its operations' names before the dot.
pub(super) struct Attention<'a> {
    name: &'a str,
    /// Heads of the query.
    pub heads: usize,
    kv_heads: usize,
    /// Elements of a head.
    pub dim: usize,
}

/// Which operations scores are computed by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One for all, where it does.
    Fused,
    /// A product, a sum, a softmax, a product.
    WrittenOut,
}

/// Attention in the layout of GPU and CPU: heads come forward and go back.
pub(super) fn attention(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let a = Attention::new(&operation.name, args)?;
    let heads = a.inputs(w, operation)?;
    let mut by_head = |part: &str, x: Var| a.by_head(w, part, x);
    let heads = [by_head("query", heads[0])?, by_head("key", heads[1])?, by_head("value", heads[2])?];
    let y = a.attend(w, operation, args, Form::Fused, heads)?;
    let y = a.by_head(w, "tokens", y)?;
    w.reshaped(a.name, y, &[-1, a.heads.saturating_mul(a.dim) as i64])
}

/// What an attention is told beside its values.
struct How {
    causal: bool,
    layer: usize,
    window: usize,
    scale: f32,
    softcap: f32,
}

impl How {
    fn new(args: &Args) -> Result<How> {
        let size = |param: &str| -> Result<usize> {
            let found = args.int(param)?;
            usize::try_from(found).map_err(|_| Error::new(format!("found {param} {found}, expected zero or more")))
        };
        Ok(How {
            causal: args.bool("causal")?,
            layer: size("layer")?,
            window: size("window")?,
            scale: args.float("scale")? as f32,
            softcap: args.float("softcap")? as f32,
        })
    }
}

impl<'a> Attention<'a> {
    pub(super) fn new(name: &'a str, args: &Args) -> Result<Attention<'a>> {
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

    /// Query, key and value.
    pub(super) fn inputs(&self, w: &mut Writer, operation: &Operation) -> Result<[Var; 3]> {
        Ok([w.input(operation, "query")?, w.input(operation, "key")?, w.input(operation, "value")?])
    }

    /// What the query [1, heads, S, D] attends to after the cache was extended by key and value [1, kv heads, S, D]: [1,
    /// heads, S, D].
    pub(super) fn attend(
        &self,
        w: &mut Writer,
        operation: &Operation,
        args: &Args,
        form: Form,
        [query, key, value]: [Var; 3],
    ) -> Result<Var> {
        let how = How::new(args)?;
        if !how.causal && w.start().is_some() {
            bail!("found attention that is not causal, expected causal in a function with a cache");
        }
        let (sinks, bias) = (w.optional_input(operation, "sinks")?, w.optional_input(operation, "bias")?);
        let (mut keys, mut values) = w.extend_cache(self.name, how.layer, key, value)?;
        let fused = form == Form::Fused && how.softcap == 0.0 && sinks.is_none();
        let scale = f64::from(how.scale);
        let mut query = match (fused, how.softcap) {
            (true, _) => self.scaled(w, query, scale * (self.dim as f64).sqrt())?,
            (false, 0.0) => self.scaled(w, query, scale)?,
            (false, softcap) => self.scaled(w, query, scale / f64::from(softcap))?,
        };
        // Of how many query heads the rows stand in one head's product.
        let mut stacked = 1;
        if self.heads != self.kv_heads {
            match w.settings.grouping {
                // A bias is by query head, so heads stay apart.
                Grouping::Grouped if bias.is_none() => {
                    stacked = self.heads / self.kv_heads;
                    query = self.reshape(w, "groups", query, &[self.kv_heads as i64, -1, self.dim as i64])?;
                }
                Grouping::Grouped | Grouping::Repeated => {
                    keys = self.repeated(w, "keys", keys)?;
                    values = self.repeated(w, "values", values)?;
                }
            }
        }
        // The mask of a single token is that of every head.
        let repeats = if form == Form::WrittenOut && w.single_token() { 1 } else { stacked };
        let kind = (how.causal || how.window > 0).then(|| MaskKind {
            causal: how.causal,
            window: how.window,
            repeats,
            slots: w.slots_of(how.layer),
        });
        let mut mask = match kind {
            Some(kind) if fused && bias.is_none() && !w.has_padding() => Some(w.mask(kind)?),
            kind => w.mask_scores(kind)?,
        };
        if let Some(bias) = bias {
            mask = Some(match mask {
                Some(mask) => w.op("add", &self.named("biased"), &[("x", bias.into()), ("y", mask.into())])?,
                None => bias,
            });
        }
        let y = match fused {
            true => self.fused(w, query, keys, values, mask)?,
            false => self.written_out(w, [query, keys, values], mask, how.softcap, sinks)?,
        };
        match stacked > 1 {
            true => self.reshape(w, "heads", y, &[self.heads as i64, -1, self.dim as i64]),
            false => Ok(y),
        }
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

    /// The query times a number.
    fn scaled(&self, w: &mut Writer, query: Var, factor: f64) -> Result<Var> {
        if (factor - 1.0).abs() < 1e-6 {
            return Ok(query);
        }
        let factor = w.number(factor as f32)?;
        w.op("mul", &self.named("scaled"), &[("x", query.into()), ("y", factor)])
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

    /// The query is scaled, and divided by the soft cap if there is one.
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
        let mut scores = w.op("matmul", &self.named("scores"), &inputs)?;
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
    /// after the other, so that columns by head are some by group without a copy. For the Neural Engine, which pads a
    /// single column to [`COLUMNS`], there are so many, of which all but the first weigh nothing.
    fn with_sinks(&self, w: &mut Writer, scores: Var, sinks: Var) -> Result<Var> {
        let grouped = self.heads != self.kv_heads && w.settings.grouping == Grouping::Grouped;
        let wide = w.layout == Layout::ChannelsFirst && w.known_tokens().is_some_and(|tokens| tokens > 1);
        let columns = if wide && w.last_size(scores).is_some_and(|keys| keys >= COLUMNS) { COLUMNS } else { 1 };
        let inputs = [
            ("x", scores.into()),
            ("begin", [0, 0, 0, 0].into()),
            ("end", [0, 0, 0, columns as i32].into()),
            ("end_mask", [true, true, true, false].into()),
        ];
        let mut column = w.op("slice_by_index", &self.named("first_column"), &inputs)?;
        if grouped {
            column = self.reshape(w, "column_by_head", column, &[self.heads as i64, -1, columns as i64])?;
        }
        let zero = w.number(0.0)?;
        let column = w.op("mul", &self.named("empty_column"), &[("x", column.into()), ("y", zero)])?;
        let mut sinks =
            w.op("expand_dims", &self.named("sinks"), &[("x", sinks.into()), ("axes", [0, 2, 3].into())])?;
        if columns > 1 {
            let shape = [1, self.heads, 1, columns - 1];
            let nothing = Tensor::from_f32(w.dtype(), shape, vec![UNSEEN; self.heads * (columns - 1)])?;
            let nothing = w.constant(&self.named("no_sinks"), nothing);
            sinks = w.concat(&self.named("sink_row"), vec![sinks, nothing], -1)?;
        }
        let mut column = w.op("add", &self.named("sink_column"), &[("x", column.into()), ("y", sinks.into())])?;
        if grouped {
            column = self.reshape(w, "column_by_group", column, &[self.kv_heads as i64, -1, columns as i64])?;
        }
        // Said from the front where it is known: coremltools changes ends below zero that several operations share.
        let keys = w.last_size(scores).map_or(Ok(-1), |size| int_vector(&[size]).map(|size| size[0]))?;
        let scores = w.concat(&self.named("scores_and_sinks"), vec![scores, column], -1)?;
        let weights = self.softmax(w, scores)?;
        let inputs = [
            ("x", weights.into()),
            ("begin", [0, 0, 0, 0].into()),
            ("end", [0, 0, 0, keys].into()),
            ("end_mask", [true, true, true, false].into()),
        ];
        w.op("slice_by_index", &self.named("weights_of_keys"), &inputs)
    }
}
