//! Computes what does not depend on the inputs.

use super::{MAX_ELEMENTS, is_repeatable};
use crate::op::ArgInfo;
use crate::{Arg, Block, Error, Function, OpKind, Operation, Result, Tensor, Value, ValueType, Var, VarInfo, verify};
use std::collections::HashMap;

/// Replaces operations whose arguments are all constant and whose results are small by their results. It never looks
/// into compressed weights (`constexpr_*`) and loads no weight of more than 4096 elements.
///
/// ```text
/// fp32 half = const()[val = fp32(0x1p-1)];
/// fp32 scale = mul(x = half, y = half);
/// ```
/// becomes
/// ```text
/// fp32 half = const()[val = fp32(0x1p-1)];
/// fp32 scale = const()[val = fp32(0x1p-2)];
/// ```
pub fn fold_constants(function: &mut Function) -> bool {
    let Function { vars, block, .. } = function;
    fold(block, vars, &mut HashMap::new())
}

fn fold(block: &mut Block, vars: &mut [VarInfo], known: &mut HashMap<Var, Value>) -> bool {
    let (mut folded, mut changed) = (Vec::with_capacity(block.operations.len()), false);
    for mut operation in std::mem::take(&mut block.operations) {
        if let (Some(value), [var]) = (operation.constant(), &operation.outputs[..]) {
            if is_small(value) {
                known.insert(*var, value.clone());
            }
        } else if let Some(values) = results(&operation, vars, known) {
            for (&var, tensor) in operation.outputs.iter().zip(values) {
                vars[var.0 as usize].ty = ValueType::tensor(tensor.dtype(), tensor.shape());
                known.insert(var, tensor.clone().into());
                folded.push(constant(var, &vars[var.0 as usize].name, tensor));
            }
            changed = true;
            continue;
        }
        for inner in &mut operation.blocks {
            changed |= fold(inner, vars, known);
        }
        folded.push(operation);
    }
    block.operations = folded;
    changed
}

/// What an operation gives, if it can be known and is worth it.
fn results(operation: &Operation, vars: &[VarInfo], known: &HashMap<Var, Value>) -> Option<Vec<Tensor>> {
    if !is_repeatable(operation) || operation.op_name().starts_with("constexpr_") {
        return None;
    }
    compute(operation, vars, known).ok()
}

/// An error means that the operation stays as it is; the verifier says what is wrong with it.
fn compute(operation: &Operation, vars: &[VarInfo], known: &HashMap<Var, Value>) -> Result<Vec<Tensor>> {
    let op = operation.op()?;
    let args = verify::bind(op, operation, |arg| {
        let value = match arg {
            Arg::Var(var) => known.get(var),
            Arg::Value(value) => Some(value).filter(|value| is_small(value)),
        };
        value.cloned().map(ArgInfo::known).ok_or_else(|| Error::new("an argument is not a small constant"))
    })?;
    let types = op.infer(&args)?;
    let declared = operation.outputs.iter().map(|var| &vars[var.0 as usize].ty);
    let size = |ty: &ValueType| ty.as_tensor().and_then(|t| crate::ops::layout::count(&t.dims()?).ok());
    let fits = types.len() == operation.outputs.len() && types.iter().zip(declared).all(|(ty, d)| d.fits(ty));
    if !fits || types.iter().any(|ty| size(ty).is_none_or(|size| size > MAX_ELEMENTS)) {
        return Err(Error::new("the results are large, or not what is declared"));
    }
    op.eval(&args)
}

fn is_small(value: &Value) -> bool {
    match value {
        Value::Tensor(tensor) => tensor.len() <= MAX_ELEMENTS,
        Value::Weight(weight) => weight.len() <= MAX_ELEMENTS,
        Value::String(_) => true,
        _ => false,
    }
}

fn constant(var: Var, name: &str, tensor: Tensor) -> Operation {
    Operation {
        kind: OpKind::from_name("const"),
        name: name.to_owned(),
        inputs: Vec::new(),
        outputs: vec![var],
        blocks: Vec::new(),
        attributes: [("val".to_owned(), tensor.into())].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{function, ops, values};
    use super::*;
    use crate::Weight;

    #[test]
    fn small_constants_are_computed_and_large_ones_stay() {
        let mut function = function(|b, x| {
            let half = b.constant("half", 0.5f32.into());
            let scale = b.op("mul", "scale", &[("x", half.into()), ("y", half.into())])?;
            let best = b.ops("topk", "best", &[("x", Value::from(vec![1f32, 4.0, 2.0]).into())])?;
            let big = Tensor::from_vec([MAX_ELEMENTS + 1], vec![1f32; MAX_ELEMENTS + 1])?;
            let big = b.weight(&Weight::from_tensor("big", big));
            let sum = b.op("reduce_sum", "sum", &[("x", big.into())])?;
            let y = b.op("mul", "y", &[("x", x.into()), ("y", scale.into())])?;
            let z = b.op("add", "z", &[("x", y.into()), ("y", best[0].into())])?;
            Ok(vec![b.op("add", "out", &[("x", z.into()), ("y", sum.into())])?])
        });
        let before = values(&function);
        assert!(fold_constants(&mut function));
        assert_eq!(ops(&function), ["const", "const", "const", "const", "const", "reduce_sum", "mul", "add", "add"]);
        assert_eq!(values(&function), before);
        verify::function(&function).unwrap();
        assert!(!fold_constants(&mut function));
    }
}
