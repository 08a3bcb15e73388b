//! Lookup tables with scales of their own.

use super::{Effect, Mend, name};
use quince_mil::op::ArgInfo;
use quince_mil::{Arg, Error, Function, Operation, Result, Value, Var, Weight, verify};
use std::collections::{HashMap, HashSet};

pub(super) static MEND: Mend = Mend {
    id: "table-scale",
    fault: "lookup tables of fp16 that are scaled when the model is loaded, which crashes the GPU on macOS 26",
    remedy: "the scales multiplied into the tables: the same values, the same size",
    source: "apple/coremltools pull request 2688 (enable_per_channel_scale)",
    effect: Effect::Kept,
    run,
};

fn run(function: &mut Function) -> Result<Vec<String>> {
    let mut tables: HashMap<Var, Value> = HashMap::new();
    let mut changed = Vec::new();
    for operation in function.block.operations.iter().filter(|op| op.op_name() == "constexpr_blockwise_shift_scale") {
        let (Some(out), true) = (operation.outputs.first(), is_table(function, operation)) else { continue };
        let folded = fold(function, operation).map_err(|e| e.at(operation.place()))?;
        tables.insert(*out, Weight::from_tensor(&function.var(*out).name, folded).into());
        changed.push(name(function, operation));
    }
    for operation in &mut function.block.operations {
        for arg in operation.inputs.iter_mut().flat_map(|(_, args)| args) {
            if let Arg::Var(var) = arg
                && let Some(table) = tables.get(var)
            {
                *arg = Arg::Value(table.clone());
            }
        }
    }
    let gone: HashSet<Var> = tables.into_keys().collect();
    function.block.operations.retain(|operation| !operation.outputs.iter().any(|var| gone.contains(var)));
    Ok(changed)
}

/// Whether it scales a table of floating-point numbers, and nothing else uses the result.
fn is_table(function: &Function, operation: &Operation) -> bool {
    let Some(out) = operation.outputs.first() else { return false };
    let of_floats = match operation.arg("data") {
        Some(Arg::Value(value)) => value.tensor_type().is_some_and(|ty| ty.dtype.is_float()),
        Some(Arg::Var(var)) => function.ty(*var).as_tensor().is_some_and(|ty| ty.dtype.is_float()),
        None => false,
    };
    let mut users = function.block.operations.iter().filter(|user| user.used_vars().any(|var| var == *out)).peekable();
    let is_used = users.peek().is_some() && !function.block.outputs.contains(out);
    of_floats
        && is_used
        && users.all(|user| user.op_name() == "constexpr_lut_to_dense" && user.var("lut") == Some(*out))
}

/// The table with its scales in it.
fn fold(function: &Function, operation: &Operation) -> Result<quince_mil::Tensor> {
    let op = operation.op()?;
    let args = verify::bind(op, operation, |arg| {
        let value = match arg {
            Arg::Value(value) => Some(value),
            Arg::Var(var) => super::producer(function, *var).and_then(Operation::constant),
        };
        let value = value.ok_or_else(|| Error::new("found a value that is no plain constant"))?;
        Ok(ArgInfo::known(value.tensor()?.into()))
    })?;
    let results = op.eval(&args)?;
    results.into_iter().next().ok_or_else(|| Error::new("the operation has no result"))
}
