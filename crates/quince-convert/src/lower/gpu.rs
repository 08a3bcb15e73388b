//! The GPU and the CPU: (B, S, D) with `linear` and fused `scaled_dot_product_attention`.
//!
//! What the rules write is fixed, because the engine recognises it:
//!
//! - `rms_norm` computes in float32, where squares cannot overflow: in float16 programs x is cast to float32 first and
//!   the result cast back before it is multiplied with the weight, as transformers does.
//!
//!   ```text
//!   squares = square(x);  mean = reduce_mean(squares, axes = [-1], keep_dims = true)
//!   scale = rsqrt(mean, epsilon);  normed = mul(x, scale);  y = mul(normed, weight)
//!   ```
//!
//! - `rope` is written as in transformers, with tables of [1, S, 1, R] made once for all layers (`lower/positions.rs`):
//!
//!   ```text
//!   a = slice_by_index(x, .. R / 2);  b = slice_by_index(x, R / 2 ..);  half = concat([mul(b, -1), a])
//!   y = add(mul(x, cos), mul(half, sin))
//!   ```
//!
//!   where only the first R elements of a head are rotated, x is those, and `concat` puts y before the others.
//!
//! - `attention`: see `lower/attention.rs`; its cache: `lower/cache.rs`.

use super::attention::attention;
use super::encoder::{add_positions, pool, relative_bias};
use super::experts::mixture;
use super::{ComputeUnits, Layout, Precision, Rule, Target, Writer};
use quince_mil::{Args, DType, Dim, Input, Operation, Result, Var, bail};

/// The target.
pub(super) const GPU: Target = Target {
    name: "GPU and CPU",
    units: &[ComputeUnits::All, ComputeUnits::CpuAndGpu, ComputeUnits::CpuOnly],
    layout: Layout::TokensFirst,
    rules: RULES,
};

const RULES: &[(&str, Rule)] = &[
    ("add_positions", add_positions),
    ("attention", attention),
    ("embedding", embedding),
    ("experts", mixture),
    ("layer_norm", layer_norm),
    ("linear", linear),
    ("logits", linear),
    ("pool", pool),
    ("relative_bias", relative_bias),
    ("rms_norm", rms_norm),
    ("rope", rope),
    ("split_heads", split_heads),
];

fn embedding(w: &mut Writer, operation: &Operation, _: &Args) -> Result<Var> {
    let (table, ids) = (w.input(operation, "weight")?, w.input(operation, "ids")?);
    w.gather(&operation.name, table, ids)
}

/// `linear` and `logits`. Core ML's own converter writes a bias of zeros where there is none, and so do we: readers that
/// take defaults for given find what they expect.
pub(super) fn linear(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let (x, weight) = (w.input(operation, "x")?, w.input(operation, "weight")?);
    let bias = match (w.optional_input(operation, "bias")?, args.shape("weight")?) {
        (Some(bias), _) => bias,
        (None, [Dim::Fixed(outputs), _]) => w.zeros(*outputs)?,
        (None, other) => bail!("found a weight of shape {other:?}, expected [O, I]"),
    };
    w.op("linear", &operation.name, &[("x", x.into()), ("weight", weight.into()), ("bias", bias.into())])
}

fn rms_norm(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    let (x, weight) = (w.input(operation, "x")?, w.input(operation, "weight")?);
    let epsilon = args.float("epsilon")? as f32;
    let wide = match w.settings.precision {
        Precision::Float16 => w.cast(&format!("{name}.float32"), x, DType::F32)?,
        Precision::Float32 => x,
    };
    let squares = w.op("square", &format!("{name}.squares"), &[("x", wide.into())])?;
    let inputs = [("x", squares.into()), ("axes", [-1].into()), ("keep_dims", true.into())];
    let mean = w.op("reduce_mean", &format!("{name}.mean"), &inputs)?;
    let scale = w.op("rsqrt", &format!("{name}.scale"), &[("x", mean.into()), ("epsilon", epsilon.into())])?;
    let mut normed = w.op("mul", &format!("{name}.normed"), &[("x", wide.into()), ("y", scale.into())])?;
    if w.settings.precision == Precision::Float16 {
        normed = w.cast(&format!("{name}.float16"), normed, DType::F16)?;
    }
    w.op("mul", name, &[("x", normed.into()), ("y", weight.into())])
}

/// The operation of MIL, but with an epsilon that is not zero in float16.
fn layer_norm(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let (x, gamma, beta) =
        (w.input(operation, "x")?, w.input(operation, "gamma")?, w.optional_input(operation, "beta")?);
    let epsilon = epsilon(w, args)?;
    let axes = args.ints("axes")?.iter().map(|&axis| axis as i32).collect::<Vec<_>>();
    let mut inputs = vec![("x", x.into()), ("axes", axes.into()), ("gamma", gamma.into())];
    inputs.extend(beta.map(|beta| ("beta", beta.into())));
    inputs.push(("epsilon", epsilon));
    w.op("layer_norm", &operation.name, &inputs)
}

/// The epsilon of a norm, as a number that is not zero in the type of the program.
pub(super) fn epsilon(w: &Writer, args: &Args) -> Result<Input> {
    let smallest = match w.settings.precision {
        Precision::Float16 => 6e-8,
        Precision::Float32 => f32::MIN_POSITIVE,
    };
    w.number((args.float("epsilon")? as f32).max(smallest))
}

pub(super) fn rope(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    if args.bool("interleaved")? || args.has("position") {
        bail!("found rotary positions of interleaved pairs or of its own, expected halves and those of the tokens");
    }
    let x = w.input(operation, "x")?;
    // Keys of a cache stay turned as they are, so that a program turns by one set of frequencies: that for texts as long as
    // its context.
    let long = args.has("long_inverse_frequencies") && w.settings.context as i64 > args.int("long_from")?;
    let frequencies = if long { "long_inverse_frequencies" } else { "inverse_frequencies" };
    let frequencies = args.tensor(frequencies)?.to_f32()?;
    let (cos, sin) = w.rotary(&frequencies, args.float("attention_scaling")? as f32)?;
    let (pairs, width) = (frequencies.len(), args.shape("x")?.last().and_then(|dim| dim.fixed()));
    if width == Some(2 * pairs) {
        return rotated(w, name, name, x, pairs, (cos, sin));
    }
    let first = last_axis(w, &format!("{name}.first"), x, 0, Some(2 * pairs))?;
    let rest = last_axis(w, &format!("{name}.rest"), x, 2 * pairs, None)?;
    let turned = rotated(w, &format!("{name}.turned"), name, first, pairs, (cos, sin))?;
    w.concat(name, vec![turned, rest], -1)
}

/// All of x, rotated; the result is called `result`.
fn rotated(w: &mut Writer, result: &str, name: &str, x: Var, pairs: usize, (cos, sin): (Var, Var)) -> Result<Var> {
    let a = last_axis(w, &format!("{name}.a"), x, 0, Some(pairs))?;
    let b = last_axis(w, &format!("{name}.b"), x, pairs, None)?;
    let minus_one = w.number(-1.0)?;
    let minus_b = w.op("mul", &format!("{name}.minus_b"), &[("x", b.into()), ("y", minus_one)])?;
    let half = w.concat(&format!("{name}.half"), vec![minus_b, a], -1)?;
    let straight = w.op("mul", &format!("{name}.cos"), &[("x", x.into()), ("y", cos.into())])?;
    let across = w.op("mul", &format!("{name}.sin"), &[("x", half.into()), ("y", sin.into())])?;
    w.op("add", result, &[("x", straight.into()), ("y", across.into())])
}

/// The elements of the last of four axes from `begin` to before `end`, or to the last.
fn last_axis(w: &mut Writer, name: &str, x: Var, begin: usize, end: Option<usize>) -> Result<Var> {
    let corner = |last: usize| -> Result<Input> { Ok(super::writer::int_vector(&[0, 0, 0, last])?.into()) };
    let inputs = [
        ("x", x.into()),
        ("begin", corner(begin)?),
        ("end", corner(end.unwrap_or(0))?),
        ("end_mask", [true, true, true, end.is_none()].into()),
    ];
    w.op("slice_by_index", name, &inputs)
}

fn split_heads(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let (x, heads) = (w.input(operation, "x")?, args.int("heads")?);
    let width = args.shape("x")?.last().and_then(|dim| dim.fixed());
    let (Ok(heads), Some(width)) = (usize::try_from(heads), width) else {
        bail!("found {heads} heads, expected a number that divides a known width");
    };
    w.reshaped(&operation.name, x, &[-1, heads as i64, (width / heads.max(1)) as i64])
}
