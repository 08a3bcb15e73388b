//! Weights of scales and integers under [`Precision::Strict`](crate::Precision::Strict): their elements are products,
//! which fp16 hardware rounds. Entries of tables are elements as they are, and were rounded where they were found.

use crate::kernels::{self, Accuracy, Encoding, Kernels, PackedWeight};
use crate::planner::Planner;
use quince_mil::{Operation, Result};
use quince_tensor::{f16, zeroed};

/// Elements that are rounded at a time.
const BLOCK: usize = 1 << 21;

/// Appends the step of a `linear` that rounds the elements of its weight as it uses them; `false` if there is nothing
/// to round.
pub(crate) fn linear(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let Some(weight) = weight_of_linear(planner, operation)? else { return Ok(false) };
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let bias = planner.parameter(operation, "bias")?;
    let x = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    planner.push("linear", &operation.name, move |memory| {
        memory.write(id, len, |m, y| product(m.kernels, m.get(&x), &weight, bias.as_ref().map(|bias| m.get(bias)), y))
    });
    Ok(true)
}

/// The weight of a `linear` whose elements are to be rounded.
pub(crate) fn weight_of_linear(planner: &Planner, operation: &Operation) -> Result<Option<PackedWeight>> {
    let ("linear", Some(x), Some(weight)) = (operation.op_name(), operation.var("x"), operation.var("weight")) else {
        return Ok(None);
    };
    let inner = planner.shape(x)?.last().copied();
    let weight = planner.packed_as_stored(weight)?;
    Ok(weight.filter(|weight| is_product(weight) && weight.cols() > 0 && inner == Some(weight.cols())))
}

/// The weight with its elements rounded, in memory as a whole if that changes any.
pub(crate) fn rounded(weight: PackedWeight) -> Result<PackedWeight> {
    match is_product(&weight) {
        true => rounded_rows(&Kernels::new(1), &weight, 0, weight.rows()),
        false => Ok(weight),
    }
}

fn is_product(weight: &PackedWeight) -> bool {
    matches!(weight.encoding(), Encoding::Affine(_))
}

fn product(kernels: &Kernels, x: &[f32], weight: &PackedWeight, bias: Option<&[f32]>, y: &mut [f32]) -> Result<()> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let step = (BLOCK / cols).max(1);
    for first in (0..rows).step_by(step) {
        let part = rounded_rows(kernels, weight, first, step.min(rows - first))?;
        let end = first + part.rows();
        let mut results = zeroed::<f32>(x.len() / cols * part.rows())?;
        kernels::linear(kernels, Accuracy::Exact, x, &part, bias.map(|bias| &bias[first..end]), &mut results);
        for (y, results) in y.chunks_exact_mut(rows).zip(results.chunks_exact(part.rows())) {
            y[first..end].copy_from_slice(results);
        }
    }
    Ok(())
}

fn rounded_rows(kernels: &Kernels, weight: &PackedWeight, first: usize, count: usize) -> Result<PackedWeight> {
    let cols = weight.cols();
    let mut half = zeroed::<f16>(count * cols)?;
    kernels.for_rows(&mut half, cols, |start, half| {
        let mut row = vec![0f32; cols];
        for (i, half) in half.chunks_exact_mut(cols.max(1)).enumerate() {
            kernels::dequantize_row(kernels, weight, first + start + i, 0, &mut row);
            kernels::f32_to_f16(kernels, &row, half);
        }
    });
    PackedWeight::dense(count, cols, half.into())
}
