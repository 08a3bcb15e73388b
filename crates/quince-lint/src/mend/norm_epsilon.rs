//! RMSNorm that divides by the maximum, and adds an epsilon that was not divided with it.
//!
//! coremltools writes sqrt(mean((x/m)²) + eps) · m with m = max|x|, which is sqrt(mean(x²) + eps · m²), and 0/0 for a row of
//! zeros. With eps/m² for eps, and at least 1 for m, it is what was meant: a row whose largest element is below 1 needs no
//! scaling.

use super::{Effect, Mend, name, producer, unused};
use quince_mil::{Arg, Function, OpKind, Operation, Result, Tensor, Var};
use std::collections::BTreeMap;

pub(super) static MEND: Mend = Mend {
    id: "norm-epsilon",
    fault: "an RMSNorm of x/max|x| with the epsilon of x: it counts max² times too much, or too little",
    remedy: "eps/max² in its place, and at least 1 for max, so that rows of zeros are no 0/0",
    source: "apple/coremltools#2821 (rms_norm is lowered with eps instead of eps/max²)",
    effect: Effect::Corrected,
    run,
};

fn run(function: &mut Function) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    let mut i = 0;
    while i < function.block.operations.len() {
        if let Some((param, epsilon, max)) = fault(function, &function.block.operations[i]) {
            changed.push(name(function, &function.block.operations[i]));
            let max = match bounded(function, max)? {
                Some(bounded) => {
                    i += 1;
                    bounded
                }
                None => max,
            };
            let (once, first) = divided(function, epsilon, max, i);
            let (twice, second) = divided(function, Arg::Var(once), max, i);
            for (_, args) in function.block.operations[i].inputs.iter_mut().filter(|(name, _)| name == param) {
                *args = vec![Arg::Var(twice)];
            }
            function.block.operations.splice(i..i, [first, second]);
            i += 2;
        }
        i += 1;
    }
    Ok(changed)
}

/// A maximum of magnitudes that is at least 1, in the place of one that may be 0; none if it is bounded already.
fn bounded(function: &mut Function, max: Var) -> Result<Option<Var>> {
    let made = function.block.operations.iter().position(|op| op.outputs.contains(&max));
    let Some(made) = made.filter(|&made| function.block.operations[made].op_name() == "reduce_max") else {
        return Ok(None);
    };
    let ty = function.ty(max).clone();
    let Some(dtype) = ty.as_tensor().map(|ty| ty.dtype) else { return Ok(None) };
    let one = Tensor::from_f32(dtype, [], vec![1.0])?;
    let of = name(function, &function.block.operations[made]);
    let name = unused(function, &format!("{of}_bounded"));
    let out = function.add_var(&name, ty);
    for arg in function.block.operations.iter_mut().flat_map(|op| &mut op.inputs).flat_map(|(_, args)| args) {
        if matches!(arg, Arg::Var(var) if *var == max) {
            *arg = Arg::Var(out);
        }
    }
    let inputs = vec![("x".into(), vec![Arg::Var(max)]), ("y".into(), vec![Arg::Value(one.into())])];
    function.block.operations.insert(made + 1, operation("maximum", name, inputs, out));
    Ok(Some(out))
}

/// `add(mean((x/max)²), eps)` with a constant eps: the parameter of eps, eps itself, and max.
fn fault(function: &Function, operation: &Operation) -> Option<(&'static str, Arg, Var)> {
    if operation.op_name() != "add" {
        return None;
    }
    for (mean, param) in [("x", "y"), ("y", "x")] {
        let epsilon = operation.arg(param).filter(|arg| is_small(function, arg));
        let mean = operation.var(mean).and_then(|var| producer(function, var));
        let (Some(epsilon), Some(mean)) = (epsilon, mean.filter(|op| op.op_name() == "reduce_mean")) else { continue };
        let squares = producer(function, mean.var("x")?)?;
        let scaled = match squares.op_name() {
            "square" | "pow" => squares.var("x")?,
            "mul" if squares.var("x") == squares.var("y") => squares.var("x")?,
            _ => continue,
        };
        let scaled = producer(function, scaled).filter(|op| op.op_name() == "real_div")?;
        let max = scaled.var("y")?;
        if is_maximum(function, max) {
            return Some((param, epsilon.clone(), max));
        }
    }
    None
}

/// Whether an argument is a constant as small as an epsilon.
fn is_small(function: &Function, arg: &Arg) -> bool {
    let value = match arg {
        Arg::Value(value) => Some(value),
        Arg::Var(var) => producer(function, *var).and_then(Operation::constant),
    };
    let is_one = |ty: &quince_mil::TensorType| crate::view::elements(ty) == Some(1);
    let value = value.filter(|value| value.tensor_type().is_some_and(|ty| is_one(&ty)));
    let number = value.and_then(|value| value.tensor().ok()?.to_f64().ok()?.first().copied());
    number.is_some_and(|number| number > 0.0 && number < 1e-2)
}

/// Whether a variable is the maximum of magnitudes, perhaps kept from 0.
fn is_maximum(function: &Function, var: Var) -> bool {
    let Some(operation) = producer(function, var) else { return false };
    match operation.op_name() {
        "reduce_max" => true,
        "maximum" | "clip" | "add" => {
            let mut inputs = operation.used_vars().filter_map(|var| producer(function, var));
            inputs.any(|op| op.op_name() == "reduce_max")
        }
        _ => false,
    }
}

/// An operation that divides by the maximum, with its result. Twice by max, not once by max², which fp16 may not have.
fn divided(function: &mut Function, x: Arg, max: Var, before: usize) -> (Var, Operation) {
    let of = name(function, &function.block.operations[before]);
    let name = unused(function, &format!("{of}_epsilon"));
    let ty = function.ty(max).clone();
    let out = function.add_var(&name, ty);
    let inputs = vec![("x".into(), vec![x]), ("y".into(), vec![Arg::Var(max)])];
    (out, operation("real_div", name, inputs, out))
}

/// An operation with one result.
fn operation(op: &str, name: String, inputs: Vec<(String, Vec<Arg>)>, out: Var) -> Operation {
    let kind = OpKind::from_name(op);
    Operation { kind, name, inputs, outputs: vec![out], blocks: Vec::new(), attributes: BTreeMap::new() }
}
