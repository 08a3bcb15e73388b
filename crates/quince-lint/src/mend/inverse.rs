//! `inverse` with the epsilon that MIL adds unasked.

use super::{Effect, Mend, name};
use quince_mil::{Arg, DType, Function, OpKind, Result, Tensor};

pub(super) static MEND: Mend = Mend {
    id: "inverse",
    fault: "`inverse` with MIL's default epsilon of 1e-4, which makes 909 of 1/0.001",
    remedy: "real_div(1, x) in its place",
    source: "apple/coremltools 375ce908 (the torch converter, 2020 to 2026)",
    effect: Effect::Corrected,
    run,
};

/// The default, as fp16 has it or more.
const LEAST: f64 = 0.99e-4;

fn run(function: &mut Function) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    for i in 0..function.block.operations.len() {
        let operation = &function.block.operations[i];
        if operation.op_name() != "inverse" {
            continue;
        }
        let epsilon = match operation.arg("epsilon") {
            Some(Arg::Value(value)) => value.tensor()?.to_f64()?.first().copied(),
            Some(Arg::Var(var)) => match super::producer(function, *var).and_then(|op| op.constant()) {
                Some(value) => value.tensor()?.to_f64()?.first().copied(),
                None => continue,
            },
            None => Some(1e-4),
        };
        let x = operation.arg("x").cloned();
        let dtype = operation.outputs.first().and_then(|var| function.ty(*var).as_tensor()).map(|ty| ty.dtype);
        let (Some(epsilon), Some(x), Some(dtype @ (DType::F16 | DType::F32))) = (epsilon, x, dtype) else { continue };
        if epsilon < LEAST {
            continue;
        }
        changed.push(name(function, operation));
        let one = Tensor::from_f32(dtype, [], vec![1.0])?;
        let operation = &mut function.block.operations[i];
        operation.kind = OpKind::from_name("real_div");
        operation.inputs = vec![("x".into(), vec![Arg::Value(one.into())]), ("y".into(), vec![x])];
    }
    Ok(changed)
}
