//! Rows of a table by index: embeddings.

use crate::kernels::{self, PackedWeight};
use crate::planner::{Place, Planner};
use quince_mil::{Arg, Operation, Result, Tensor, Var, bail};

/// `gather` of rows of a constant table; other forms are left to the definition.
pub(super) fn gather(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let axis = if operation.arg("axis").is_some() { planner.number(operation, "axis") } else { Some(0.0) };
    let batch_dims =
        if operation.arg("batch_dims").is_some() { planner.number(operation, "batch_dims") } else { Some(0.0) };
    let (Some(table), Some(Arg::Var(indices))) = (operation.var("x"), operation.arg("indices")) else {
        return Ok(false);
    };
    if axis != Some(0.0) || batch_dims != Some(0.0) || !planner.dtype(table)?.is_float() {
        return Ok(false);
    }
    rows(planner, operation, *indices, table)
}

/// `embedding`.
pub(super) fn embedding(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    match (operation.var("ids"), operation.var("weight")) {
        (Some(ids), Some(weight)) => rows(planner, operation, ids, weight),
        _ => Ok(false),
    }
}

fn rows(planner: &mut Planner, operation: &Operation, indices: Var, table: Var) -> Result<bool> {
    // Where everything is rounded, so are the rows.
    let ([out], Some(packed)) = (&operation.outputs[..], planner.packed_as_stored(table)?) else { return Ok(false) };
    let Place::Tensor(ids) = planner.place(indices)? else { return Ok(false) };
    let (id, len) = planner.output(*out)?;
    planner.push("gather", &operation.name, move |memory| {
        memory.write(id, len, |m, y| look_up(m.kernels, &packed, m.tensor(ids)?, y))
    });
    Ok(true)
}

fn look_up(kernels: &kernels::Kernels, table: &PackedWeight, ids: &Tensor, y: &mut [f32]) -> Result<()> {
    let width = table.cols();
    if width == 0 {
        return Ok(());
    }
    let mut indices = Vec::with_capacity(ids.len());
    for id in ids.to_i64()? {
        // A negative index counts from the end, as in NumPy.
        match usize::try_from(if id < 0 { id + table.rows() as i64 } else { id }) {
            Ok(index) if index < table.rows() => indices.push(index),
            _ => bail!("found the index {id}, expected one below {}", table.rows()),
        }
    }
    kernels.for_rows(y, width, |first, rows| {
        for (&index, row) in indices[first..].iter().zip(rows.chunks_exact_mut(width)) {
            kernels::dequantize_row(kernels, table, index, 0, row);
        }
    });
    Ok(())
}
