//! Operations over the last axis: norms, softmax, sums.

use crate::kernels;
use crate::memory::Operand;
use crate::planner::Planner;
use quince_mil::{Operation, Result, Var};
use std::ops::Range;

/// `rms_norm`.
pub(super) fn rms_norm(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), Some(weight)) = (operation.var("x"), operation.var("weight")) else { return Ok(false) };
    let Some(epsilon) = planner.number(operation, "epsilon") else { return Ok(false) };
    emit_rms_norm(planner, operation, x, Some(weight), epsilon as f32)?;
    Ok(true)
}

/// `x / sqrt(mean(x²) + epsilon) · weight` over the last axis, as one step.
pub(crate) fn emit_rms_norm(
    planner: &mut Planner,
    operation: &Operation,
    x: Var,
    weight: Option<Var>,
    epsilon: f32,
) -> Result<()> {
    let width = planner.shape(x)?.last().copied().unwrap_or(1);
    let weight = weight.map(|var| planner.operand(var)).transpose()?;
    row_step(
        planner,
        operation,
        x,
        width,
        "rms_norm",
        move |m, weights, x, y| {
            kernels::rms_norm(m, x, width, weights[0], epsilon, y);
        },
        [weight, None],
    )
}

/// `layer_norm` over the last axis.
pub(super) fn layer_norm(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    match operation.var("x") {
        Some(x) => emit_layer_norm(planner, operation, &[x]),
        None => Ok(false),
    }
}

/// `layer_norm` over the last axis of a sum of terms, of which some may be only the last rows, which repeat; `false`
/// if it is over other axes.
pub(crate) fn emit_layer_norm(planner: &mut Planner, operation: &Operation, terms: &[Var]) -> Result<bool> {
    let [out] = operation.outputs[..] else { return Ok(false) };
    let shape = planner.shape(out)?;
    let last = shape.len() as i64 - 1;
    let axes = planner.ints(operation, "axes").unwrap_or_default();
    let width = shape.last().copied().unwrap_or(1);
    if axes != [-1] && axes != [last] || width == 0 {
        return Ok(false);
    }
    let epsilon = planner.number(operation, "epsilon").unwrap_or(1e-5) as f32;
    let (weight, bias) = (planner.parameter(operation, "gamma")?, planner.parameter(operation, "beta")?);
    let terms = terms.iter().map(|&term| planner.operand(term)).collect::<Result<Vec<_>>>()?;
    let (id, len) = planner.output(out)?;
    planner.push("layer_norm", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let terms: Vec<&[f32]> = terms.iter().map(|term| m.get(term)).collect();
            let (weight, bias) = (weight.as_ref().map(|w| m.get(w)), bias.as_ref().map(|b| m.get(b)));
            kernels::layer_norm(m.kernels, &terms, width, weight, bias, epsilon, y);
            Ok(())
        })
    });
    Ok(true)
}

/// `softmax` over the last axis.
pub(super) fn softmax(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let Some(x) = operation.var("x") else { return Ok(false) };
    let shape = planner.shape(x)?;
    let axis = planner.number(operation, "axis").unwrap_or(-1.0);
    if axis != -1.0 && axis != shape.len() as f64 - 1.0 {
        return Ok(false);
    }
    let width = shape.last().copied().unwrap_or(1);
    row_step(
        planner,
        operation,
        x,
        width,
        "softmax",
        move |m, _, x, y| kernels::softmax(m, x, width, y),
        [None, None],
    )?;
    Ok(true)
}

/// `reduce_mean` and `reduce_sum` over axes that follow each other; sums are taken in `f64`.
pub(super) fn reduce(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let shape = planner.shape(x)?;
    let axes = match operation.arg("axes") {
        Some(_) => planner.ints(operation, "axes"),
        None => Some((0..shape.len() as i64).collect()),
    };
    let run = axes.and_then(|axes| consecutive(&axes, shape.len()));
    let Some(run) = run.filter(|_| planner.dtype(x).is_ok_and(|t| t.is_float()) && !shape.contains(&0)) else {
        return Ok(false);
    };
    let count = shape[run.clone()].iter().product::<usize>();
    let inner = shape[run.end..].iter().product::<usize>();
    let divisor = if operation.op_name() == "reduce_mean" { count as f64 } else { 1.0 };
    let x = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    planner.push("reduce", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            kernels::sum_rows(m.kernels, m.get(&x), count, inner, divisor, y);
            Ok(())
        })
    });
    Ok(true)
}

/// The axes as a range, if they follow each other.
fn consecutive(axes: &[i64], rank: usize) -> Option<Range<usize>> {
    let mut axes: Vec<i64> = axes.iter().map(|&axis| if axis < 0 { axis + rank as i64 } else { axis }).collect();
    axes.sort_unstable();
    let (&first, &last) = (axes.first()?, axes.last()?);
    let follow = axes.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    let range = usize::try_from(first).ok()?..usize::try_from(last).ok()? + 1;
    (follow && range.end <= rank).then_some(range)
}

/// A step that maps rows of `x` to rows of the result.
fn row_step(
    planner: &mut Planner,
    operation: &Operation,
    x: Var,
    width: usize,
    kind: &'static str,
    run: impl Fn(&kernels::Kernels, [Option<&[f32]>; 2], &[f32], &mut [f32]) + Send + Sync + 'static,
    weights: [Option<Operand>; 2],
) -> Result<()> {
    let x = planner.operand(x)?;
    let Some(out) = operation.outputs.first() else { return Ok(()) };
    let (id, len) = planner.output(*out)?;
    planner.push(kind, &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            if width > 0 {
                let weights = [weights[0].as_ref().map(|w| m.get(w)), weights[1].as_ref().map(|w| m.get(w))];
                run(m.kernels, weights, m.get(&x), y);
            }
            Ok(())
        })
    });
    Ok(())
}
