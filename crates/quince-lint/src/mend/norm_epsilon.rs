//! RMSNorm that divides by the maximum, and adds an epsilon that was not divided with it.

use super::{Effect, Mend, name, producer, unused};
use quince_mil::{Arg, Function, OpKind, Operation, Result, Var};

pub(super) static MEND: Mend = Mend {
    id: "norm-epsilon",
    fault: "an RMSNorm of x/max|x| with the epsilon of x: it counts max² times too much, or too little",
    remedy: "eps/max² in its place",
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
    let operation = Operation {
        kind: OpKind::from_name("real_div"),
        name,
        inputs: vec![("x".into(), vec![x]), ("y".into(), vec![Arg::Var(max)])],
        outputs: vec![out],
        blocks: Vec::new(),
        attributes: std::collections::BTreeMap::default(),
    };
    (out, operation)
}
