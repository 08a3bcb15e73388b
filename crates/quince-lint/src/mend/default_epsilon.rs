//! Epsilons that are left to the system.

use super::{Effect, Mend, name};
use quince_mil::op::Default;
use quince_mil::{Arg, DType, Function, OpKind, Result, Tensor};

pub(super) static MEND: Mend = Mend {
    id: "default-epsilon",
    fault: "operations without their epsilon, which the system then chooses",
    remedy: "its default, written out",
    source: "apple/coremltools ops/defs/iOS15/elementwise_unary.py and normalization.py, default_inputs",
    effect: Effect::Kept,
    run,
};

fn run(function: &mut Function) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    for i in 0..function.block.operations.len() {
        let operation = &function.block.operations[i];
        let OpKind::Known(op) = operation.kind else { continue };
        let Some(Default::Float(epsilon)) = op.params().iter().find(|p| p.name == "epsilon").and_then(|p| p.default)
        else {
            continue;
        };
        let dtype = operation.outputs.first().and_then(|var| function.ty(*var).as_tensor()).map(|ty| ty.dtype);
        let (true, Some(dtype)) = (operation.args("epsilon").is_empty(), dtype) else { continue };
        // What fp16 would round to 0 is kept in fp32, which these operations take beside values of fp16.
        let is_elementwise = matches!(op.name(), "rsqrt" | "log" | "inverse");
        let dtype = if is_elementwise { DType::F32 } else { dtype };
        changed.push(name(function, operation));
        let value = Tensor::from_f64(dtype, [], vec![epsilon])?;
        function.block.operations[i].inputs.push(("epsilon".into(), vec![Arg::Value(value.into())]));
    }
    Ok(changed)
}
