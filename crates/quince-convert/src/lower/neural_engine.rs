//! The Neural Engine: (B, C, 1, S), 1×1 convolutions, attention written out for each head of keys.
//!
//! A value [B, S, D] of the semantic program lies as [B, D, 1, S] here, and heads [B, S, H, D] as [B, H, S, D], as the cache
//! keeps them: nothing is transposed between the state and its use. Shapes have at most four axes, and everything is in
//! the precision of the program.
//!
//! - `linear` is a convolution with the weight as [O, I, 1, 1]. Logits are several, of at most
//!   [`MOST_CHANNELS`](super::MOST_CHANNELS) outputs unless a number is asked for, and one after the other in the end.
//! - `rms_norm` cannot overflow in float16, because no square is ever written down: a vector beside its negative has no mean,
//!   so that dividing by its deviation is dividing by the root of the mean square.
//!
//!   ```text
//!   twice = concat([x, x · -1]);  normed = layer_norm(twice, epsilon)[first half];  y = normed · weight
//!   ```
//!
//! - `attention` is [`Form::WrittenOut`]; masks and rotary tables are gathered from constants, once for all layers
//!   (`lower/positions.rs`).
//! - Experts are computed as on the GPU: which of them are chosen is not known beforehand, and the Neural Engine does not
//!   choose.
//!
//! Where a text may have any number of tokens, the function is the same, but such a function does not run there.

use super::attention::{Attention, Form};
use super::gpu::{epsilon, linear, rope};
use super::{ComputeUnits, Layout, MOST_CHANNELS, Rule, Target, Writer, encoder, experts};
use quince_mil::{Arg, Args, Dim, Error, Input, Operation, Result, Tensor, Var, bail};
use std::ops::Range;

/// The target.
pub(super) const NEURAL_ENGINE: Target = Target {
    name: "Neural Engine",
    units: &[ComputeUnits::CpuAndNeuralEngine],
    layout: Layout::ChannelsFirst,
    rules: RULES,
};

/// Outputs of a part of the head are a multiple of this, as far as they can be.
const GROUP: usize = 64;

const RULES: &[(&str, Rule)] = &[
    ("add", channelwise),
    ("add_positions", add_positions),
    ("attention", attention),
    ("embedding", embedding),
    ("experts", mixture),
    ("identity", identity),
    ("layer_norm", layer_norm),
    ("linear", convolution),
    ("logits", logits),
    ("mul", channelwise),
    ("pool", encoder::pool),
    ("relative_bias", encoder::relative_bias),
    ("rms_norm", rms_norm),
    ("rope", rope),
    ("slice_by_index", part),
    ("split_heads", split_heads),
];

fn embedding(w: &mut Writer, operation: &Operation, _: &Args) -> Result<Var> {
    let (table, ids) = (w.input(operation, "weight")?, w.input(operation, "ids")?);
    let rows = w.gather(&format!("{}.rows", operation.name), table, ids)?;
    w.by_channel(&operation.name, rows)
}

fn add_positions(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    let x = w.input(operation, "x")?;
    let rows = encoder::position_rows(w, operation, args)?;
    let rows = w.op("expand_dims", &format!("{name}.text"), &[("x", rows.into()), ("axes", [0].into())])?;
    let rows = w.by_channel(&format!("{name}.by_channel"), rows)?;
    w.op("add", name, &[("x", x.into()), ("y", rows.into())])
}

fn convolution(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    if !w.lies_otherwise(operation, "x") {
        // Of one vector for each text.
        return linear(w, operation, args);
    }
    let outputs = outputs(args)?;
    let x = w.input(operation, "x")?;
    product(w, operation, &operation.name, x, 0..outputs, None)
}

/// The number of outputs of a product.
fn outputs(args: &Args) -> Result<usize> {
    match args.shape("weight")? {
        &[Dim::Fixed(outputs), _] => Ok(outputs),
        other => bail!("found a weight of shape {other:?}, expected [O, I]"),
    }
}

/// Some outputs of a product; `called` is the name of its weight, if it is not its own.
fn product(
    w: &mut Writer,
    operation: &Operation,
    name: &str,
    x: Var,
    outputs: Range<usize>,
    called: Option<&str>,
) -> Result<Var> {
    let weight = operation.var("weight").filter(|&weight| w.is_constant(weight));
    let Some(weight) = weight else { bail!("found a weight that is computed, expected a constant") };
    let weight = w.kernel(weight, outputs.clone(), called)?;
    let mut inputs: Vec<(&str, Input)> = vec![
        ("x", x.into()),
        ("weight", weight.into()),
        ("strides", [1, 1].into()),
        ("pad_type", "valid".into()),
        ("pad", [0, 0, 0, 0].into()),
        ("dilations", [1, 1].into()),
        ("groups", 1.into()),
    ];
    if let Some(bias) = operation.var("bias") {
        inputs.push(("bias", w.vector_part(bias, outputs)?.into()));
    }
    w.op("conv", name, &inputs)
}

/// Several products, of which the results come one after the other.
fn logits(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let (name, outputs) = (&operation.name, outputs(args)?);
    let count = w.settings.head_parts.unwrap_or(outputs.div_ceil(MOST_CHANNELS)).max(1);
    if count > outputs {
        bail!("found {count} parts of {outputs} logits, expected at most as many as there are logits");
    }
    // A head that is the table of embeddings is one more weight here, of another form.
    let tied = operation.var("weight").is_some_and(|weight| w.is_table(weight));
    let called = tied.then_some("lm_head.weight");
    let x = w.input(operation, "x")?;
    w.stays_by_token(operation);
    // Groups of channels that are compressed together stay whole.
    let size = match outputs.div_ceil(count) {
        size if size > GROUP => size.next_multiple_of(GROUP),
        size => size,
    };
    let mut parts = Vec::new();
    for first in (0..outputs).step_by(size) {
        let rows = first..outputs.min(first + size);
        let whole = rows.len() == outputs;
        let part_name = if whole { name.clone() } else { format!("{name}.from_{first}") };
        let part = product(w, operation, &format!("{part_name}.product"), x, rows, called)?;
        parts.push(w.by_token(&part_name, part)?);
    }
    match parts[..] {
        [only] => Ok(only),
        _ => w.concat(name, parts, -1),
    }
}

/// An operation element by element: a vector stands for the channels.
fn channelwise(w: &mut Writer, operation: &Operation, _: &Args) -> Result<Var> {
    let sides = ["x", "y"].map(|param| operation.var(param));
    let by_channel = ["x", "y"].iter().any(|param| w.lies_otherwise(operation, param));
    if !by_channel {
        return w.copy(operation);
    }
    let mut inputs = Vec::new();
    for (param, side) in ["x", "y"].into_iter().zip(sides) {
        let side: Input = match side {
            Some(var) if w.is_constant(var) && w.semantic_rank(var) == 1 => {
                let channels = w.semantic_width(var)?;
                w.kernel(var, 0..channels, None)?.into()
            }
            Some(_) => w.input(operation, param)?.into(),
            None => match operation.arg(param) {
                Some(Arg::Value(value)) => w.in_precision(value)?.into(),
                _ => return Err(Error::new(format!("found no value for the parameter `{param}`, expected one"))),
            },
        };
        inputs.push((param, side));
    }
    w.op(operation.op_name(), &operation.name, &inputs)
}

/// A value under another name, as the function gives it.
fn identity(w: &mut Writer, operation: &Operation, _: &Args) -> Result<Var> {
    match w.lies_otherwise(operation, "x") {
        true => {
            let x = w.input(operation, "x")?;
            w.stays_by_token(operation);
            w.by_token(&operation.name, x)
        }
        false => w.copy(operation),
    }
}

fn rms_norm(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    let part = |part: &str| format!("{name}.{part}");
    let by_channel = w.lies_otherwise(operation, "x");
    let (rank, width) = match operation.var("x") {
        Some(x) => (if by_channel { 4 } else { w.semantic_rank(x) }, w.semantic_width(x)?),
        None => bail!("found no variable for the parameter `x`, expected one"),
    };
    let axis = if by_channel { 1 } else { rank - 1 };
    let (x, minus_one) = (w.input(operation, "x")?, w.number(-1.0)?);
    let weight = match (by_channel, operation.var("weight")) {
        (true, Some(weight)) => w.kernel(weight, 0..width, None)?,
        _ => w.input(operation, "weight")?,
    };
    let negative = w.op("mul", &part("negative"), &[("x", x.into()), ("y", minus_one)])?;
    let twice = w.concat(&part("twice"), vec![x, negative], axis as i32)?;
    let inputs = [("x", twice.into()), ("axes", [axis as i32].into()), ("epsilon", epsilon(w, args)?)];
    let normed = w.op("layer_norm", &part("scaled"), &inputs)?;
    let normed = along(w, &part("normed"), normed, rank, axis, 0..width)?;
    w.op("mul", name, &[("x", normed.into()), ("y", weight.into())])
}

fn layer_norm(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let by_channel = w.lies_otherwise(operation, "x");
    let (x, gamma, beta) =
        (w.input(operation, "x")?, w.input(operation, "gamma")?, w.optional_input(operation, "beta")?);
    if args.ints("axes")? != [-1] {
        bail!("found a norm over axes {:?}, expected one over the last", args.ints("axes")?);
    }
    let axis = if by_channel { 1 } else { -1 };
    let mut inputs = vec![("x", x.into()), ("axes", [axis].into()), ("gamma", gamma.into())];
    inputs.extend(beta.map(|beta| ("beta", beta.into())));
    inputs.push(("epsilon", epsilon(w, args)?));
    w.op("layer_norm", &operation.name, &inputs)
}

/// [B, H · D, 1, S] as [B, H, S, D].
fn split_heads(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    let (x, heads) = (w.input(operation, "x")?, args.int("heads")?);
    let width = args.shape("x")?.last().and_then(|dim| dim.fixed());
    let (Ok(heads), Some(width)) = (usize::try_from(heads), width) else {
        bail!("found {heads} heads, expected a number that divides a known width");
    };
    let (heads, dim) = (heads as i64, (width / heads.max(1)) as i64);
    if w.single_token() {
        return w.reshaped(name, x, &[heads, 1, dim]);
    }
    let channels = w.reshaped(&format!("{name}.channels"), x, &[heads, dim, -1])?;
    w.op("transpose", name, &[("x", channels.into()), ("perm", [0, 1, 3, 2].into())])
}

fn attention(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    let a = Attention::new(name, args)?;
    let heads = a.inputs(w, operation)?;
    let y = a.attend(w, operation, args, Form::WrittenOut, heads)?;
    let width = a.heads.saturating_mul(a.dim) as i64;
    if w.single_token() {
        return w.reshaped(name, y, &[width, 1, 1]);
    }
    let channels = w.op("transpose", &format!("{name}.channels"), &[("x", y.into()), ("perm", [0, 1, 3, 2].into())])?;
    w.reshaped(name, channels, &[width, 1, -1])
}

fn mixture(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = format!("{}.by_token", operation.name);
    let y = experts::experts(w, &name, operation, args, experts::Products::ByExpert)?;
    w.by_channel(&operation.name, y)
}

/// Some elements of each token.
fn part(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    if !w.lies_otherwise(operation, "x") {
        return w.copy(operation);
    }
    let last = |param: &str| -> Result<usize> {
        let found = args.ints(param)?.last().copied();
        let found = found.and_then(|place| usize::try_from(place).ok());
        found.ok_or_else(|| Error::new(format!("found `{param}` without a place on the last axis, expected one")))
    };
    let (begin, end) = (last("begin")?, last("end")?);
    let x = w.input(operation, "x")?;
    along(w, &operation.name, x, 4, 1, begin..end)
}

/// A part of x along one of its axes.
fn along(w: &mut Writer, name: &str, x: Var, rank: usize, axis: usize, part: Range<usize>) -> Result<Var> {
    let corner = |place: usize| -> Result<Input> {
        let mut corner = vec![0; rank];
        corner[axis] = place;
        Ok(super::writer::int_vector(&corner)?.into())
    };
    let others: Vec<bool> = (0..rank).map(|other| other != axis).collect();
    let others = Tensor::from_bools([rank], &others)?;
    let inputs = [
        ("x", x.into()),
        ("begin", corner(part.start)?),
        ("end", corner(part.end)?),
        ("begin_mask", others.clone().into()),
        ("end_mask", others.into()),
    ];
    w.op("slice_by_index", name, &inputs)
}
