//! `x · rsqrt(mean(x²) + epsilon) · weight` over the last axis: RMSNorm (Zhang & Sennrich 2019, equation 4) as
//! converters write it out; or as the Neural Engine has it, the first half of the `layer_norm` of x beside -x.

use super::Fused;
use crate::planner::Planner;
use crate::steps::emit_rms_norm;
use quince_mil::{Arg, Operation, Var};

pub(super) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    if operation.op_name() != "mul" {
        return None;
    }
    let shape = planner.shape(*operation.outputs.first()?).ok()?;
    let width = *shape.last()?;
    let weight = |var: Var| {
        let constant = planner.constant_tensor(var)?;
        let vector = constant.shape().last() == Some(&width) && constant.len() == width;
        vector.then_some(var)
    };
    let (weight, normed) = planner.either(operation, weight)?;
    let (x, epsilon) = match planner.producer_of(normed, &["slice_by_index"]) {
        Some(slice) => half_of_twice(planner, slice)?,
        None => normalized(planner, planner.producer_of(normed, &["mul", "real_div"])?)?,
    };
    (planner.shape(x).ok()? == shape).then_some(())?;
    Some(Fused {
        inputs: vec![x, weight],
        emit: Box::new(move |planner, operation| emit_rms_norm(planner, operation, x, Some(weight), epsilon)),
    })
}

/// `x · rsqrt(mean(x²) + epsilon)` or `x / sqrt(...)`: x and epsilon.
fn normalized(planner: &Planner, operation: &Operation) -> Option<(Var, f32)> {
    let (mean, mut epsilon, x) = if operation.op_name() == "mul" {
        let rsqrt = |var: Var| {
            let rsqrt = planner.producer_of(var, &["rsqrt"])?;
            Some((rsqrt.var("x")?, planner.number(rsqrt, "epsilon").unwrap_or(1e-12)))
        };
        let ((mean, epsilon), x) = planner.either(operation, rsqrt)?;
        (mean, epsilon, x)
    } else {
        let root = planner.producer_of(operation.var("y")?, &["sqrt"])?;
        (root.var("x")?, 0.0, operation.var("x")?)
    };
    let mut mean = planner.uncast(mean);
    if let Some(add) = planner.producer_of(mean, &["add"]) {
        let (number, other) = planner.number_and_other(add)?;
        epsilon += number;
        mean = other;
    }
    let mean = planner.producer_of(mean, &["reduce_mean"])?;
    let rank = planner.shape(x).ok()?.len() as i64;
    let axes = planner.ints(mean, "axes")?;
    // Without its axis of size one, the mean would go with columns.
    let kept = planner.shape(*mean.outputs.first()?).ok()?.len() as i64 == rank;
    (kept && (axes == [-1] || axes == [rank - 1])).then_some(())?;
    let square = planner.producer_of(mean.var("x")?, &["square", "mul", "pow"])?;
    let base = planner.uncast(square.var("x")?);
    let squared = match square.op_name() {
        "mul" => planner.uncast(square.var("y")?) == base,
        "pow" => planner.number(square, "y") == Some(2.0),
        _ => true,
    };
    (squared && base == planner.uncast(x)).then_some((base, epsilon as f32))
}

/// The first half of `layer_norm(concat([x, x · -1]))`: x and epsilon.
fn half_of_twice(planner: &Planner, slice: &Operation) -> Option<(Var, f32)> {
    let norm = planner.producer_of(slice.var("x")?, &["layer_norm"])?;
    let twice = planner.producer_of(norm.var("x")?, &["concat"])?;
    let [Arg::Var(x), Arg::Var(negative)] = twice.args("values") else { return None };
    let (shape, base) = (planner.shape(*x).ok()?, planner.uncast(*x));
    let (number, other) = planner.number_and_other(planner.producer_of(*negative, &["mul"])?)?;
    (number == -1.0 && planner.uncast(other) == base).then_some(())?;
    let rank = shape.len() as i64;
    let last = |axis: i64| axis == -1 || axis == rank - 1;
    let axes = planner.ints(norm, "axes")?;
    let axis = planner.number(twice, "axis")? as i64;
    (last(axis) && matches!(axes[..], [axis] if last(axis))).then_some(())?;
    let plain = ["gamma", "beta"].iter().all(|param| norm.arg(param).is_none());
    let half =
        planner.shape(*slice.outputs.first()?).ok()? == shape && planner.ints(slice, "begin")?.last() == Some(&0);
    let unit = planner.ints(slice, "stride").is_none_or(|strides| strides.iter().all(|&stride| stride == 1));
    (plain && half && unit).then_some((base, planner.number(norm, "epsilon")? as f32))
}
