//! Operations over the last axis: norms, softmax, sums.

use crate::kernels;
use crate::memory::Operand;
use crate::planner::Planner;
use quince_mil::{Operation, Result, Var};

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
    let Some(x) = operation.var("x") else { return Ok(false) };
    let shape = planner.shape(x)?;
    let last = shape.len() as i64 - 1;
    let axes = planner.ints(operation, "axes").unwrap_or_default();
    if axes != [-1] && axes != [last] {
        return Ok(false);
    }
    let epsilon = planner.number(operation, "epsilon").unwrap_or(1e-5) as f32;
    let width = shape.last().copied().unwrap_or(1);
    let mut affine = [None, None];
    for (slot, param) in affine.iter_mut().zip(["gamma", "beta"]) {
        *slot = planner.parameter(operation, param)?;
    }
    row_step(
        planner,
        operation,
        x,
        width,
        "layer_norm",
        move |m, weights, x, y| {
            kernels::layer_norm(m, x, width, weights[0], weights[1], epsilon, y);
        },
        affine,
    )?;
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

/// `reduce_mean` and `reduce_sum` over the last axis; sums are taken in `f64`.
pub(super) fn reduce(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let shape = planner.shape(x)?;
    let axes = planner.ints(operation, "axes");
    let width = shape.last().copied().unwrap_or(0);
    let last = shape.len() as i64 - 1;
    if !planner.dtype(x)?.is_float() || width == 0 || axes.is_none_or(|axes| axes != [-1] && axes != [last]) {
        return Ok(false);
    }
    let divisor = if operation.op_name() == "reduce_mean" { width as f64 } else { 1.0 };
    let x = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    planner.push("reduce", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            for (row, y) in m.get(&x).chunks_exact(width).zip(y) {
                *y = (row.iter().map(|&v| f64::from(v)).sum::<f64>() / divisor) as f32;
            }
            Ok(())
        })
    });
    Ok(true)
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
