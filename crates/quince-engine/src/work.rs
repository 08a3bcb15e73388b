//! How much a call has to do at least: products with weights, and weights that are read.

use crate::specialize::{Unplanned, specialize};
use quince_mil::{Defs, Function, Limits, Operation, Result, ValueType, Var, bail};
use std::collections::HashSet;

/// What one call of a function computes with its weights. Products of computed values, as in attention, and everything
/// that is not a product are not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Multiplications and additions, counted separately.
    pub operations: u64,
    /// Bytes of the weights of those products as they are stored, each weight once.
    pub weight_bytes: u64,
}

/// The work of a function for given shapes of its inputs, in their order; shapes of states are not looked at. `None` if
/// sizes depend on values.
///
/// # Errors
/// A number of shapes that is not that of the inputs, and what is wrong in the function.
pub fn work(function: &Function, shapes: &[Vec<usize>]) -> Result<Option<Work>> {
    if shapes.len() != function.inputs.len() {
        bail!("function `{}`: found {} shapes, expected {}", function.name, shapes.len(), function.inputs.len());
    }
    let specialized = match specialize(function, shapes, &Limits::default()) {
        Ok(specialized) => specialized,
        Err(Unplanned::Dynamic) => return Ok(None),
        Err(Unplanned::Wrong(error)) => return Err(error),
    };
    let (function, defs) = (&specialized.function, Defs::new(&specialized.function));
    let (mut total, mut seen) = (Work::default(), HashSet::new());
    for operation in &function.block.operations {
        let [out] = operation.outputs[..] else { continue };
        let Some(weight) = factor(operation).filter(|&weight| is_weight(&defs, weight)) else { continue };
        let (results, elements) = (elements(function, out), elements(function, weight));
        // One multiplication and one addition for each element of the weight's matrix and each row of the other side.
        let columns = match operation.op_name() {
            "matmul" => function.ty(out).as_tensor().and_then(|ty| ty.shape.last()?.fixed()),
            _ => function.ty(weight).as_tensor().and_then(|ty| ty.shape.first()?.fixed()),
        };
        let per_result = elements / columns.unwrap_or(1).max(1) as u64;
        total.operations = total.operations.saturating_add(results.saturating_mul(per_result).saturating_mul(2));
        let bytes = weight_bytes(function, &defs, weight, &mut seen);
        total.weight_bytes = total.weight_bytes.saturating_add(bytes);
    }
    Ok(Some(total))
}

/// The argument of a product that may be a weight.
fn factor(operation: &Operation) -> Option<Var> {
    match operation.op_name() {
        "linear" | "conv" | "logits" => operation.var("weight"),
        "matmul" => operation.var("y"),
        _ => None,
    }
}

fn is_weight(defs: &Defs, var: Var) -> bool {
    defs.producer(var).is_some_and(|op| op.op_name() == "const" || op.op_name().starts_with("constexpr_"))
}

/// Bytes of the constants that a weight is made of, those in `seen` left out.
fn weight_bytes(function: &Function, defs: &Defs, var: Var, seen: &mut HashSet<Var>) -> u64 {
    if !seen.insert(var) {
        return 0;
    }
    let Some(producer) = defs.producer(var) else { return 0 };
    if producer.constant().is_some() {
        let ty = function.ty(var).as_tensor();
        let bytes = ty.and_then(|ty| ty.dtype.byte_len(usize::try_from(elements(function, var)).ok()?));
        return bytes.unwrap_or(0) as u64;
    }
    let in_place: u64 = producer.inputs.iter().flat_map(|(_, args)| args).map(stored_in_place).sum();
    let vars: Vec<Var> = producer.used_vars().collect();
    vars.into_iter().map(|var| weight_bytes(function, defs, var, seen)).sum::<u64>().saturating_add(in_place)
}

fn stored_in_place(arg: &quince_mil::Arg) -> u64 {
    let quince_mil::Arg::Value(value) = arg else { return 0 };
    let Some(ty) = value.tensor_type() else { return 0 };
    let count = ty.dims().map(|dims| dims.iter().product::<usize>());
    count.and_then(|count| ty.dtype.byte_len(count)).unwrap_or(0) as u64
}

fn elements(function: &Function, var: Var) -> u64 {
    match function.ty(var) {
        ty @ ValueType::Tensor(_) => crate::specialize::elements(ty) as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_mil::{Builder, DType, Dim, Flexibility, Opset, Tensor, TensorType};

    #[test]
    fn products_with_weights_are_counted_and_weights_once() {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ty = TensorType { dtype: DType::F32, shape: vec![Dim::Unknown, Dim::Fixed(6)] };
        let range = Flexibility::Range { bounds: vec![(1, None), (6, Some(6))], default: vec![1, 6] };
        let x = b.input("x", ValueType::Tensor(ty), range);
        let weight = b.constant("weight", Tensor::zeros(DType::F32, [6, 6]).unwrap().into());
        let bias = b.constant("bias", Tensor::zeros(DType::F32, [6]).unwrap().into());
        let first =
            b.op("linear", "first", &[("x", x.into()), ("weight", weight.into()), ("bias", bias.into())]).unwrap();
        let second =
            b.op("linear", "second", &[("x", first.into()), ("weight", weight.into()), ("bias", bias.into())]).unwrap();
        let head = b.constant("head", Tensor::zeros(DType::F16, [6, 4]).unwrap().cast(DType::F32).unwrap().into());
        let y = b.op("matmul", "y", &[("x", second.into()), ("y", head.into())]).unwrap();
        let squared = b.op("mul", "squared", &[("x", y.into()), ("y", y.into())]).unwrap();
        let function = b.finish(vec![squared]);
        let found = work(&function, &[vec![5, 6]]).unwrap().unwrap();
        assert_eq!(found, Work { operations: 2 * 5 * (36 + 36 + 24), weight_bytes: 4 * (36 + 24) });
        assert!(work(&function, &[]).is_err());
    }
}
