//! `float32`: operations that compute in fp32.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, DType, Operation, Var};

pub(super) static RULE: Rule = Rule {
    id: "float32",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "operations that compute in fp32",
    why: "the Neural Engine computes in fp16: what is fp32 runs on the CPU or the GPU, with casts and copies around it",
    fix: "convert with --compute-precision float16",
    source: "apple/coreai-models neural_engine_rules.md; docs-guides/source/typed-execution.html",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        // Casts at the border of the program are not computing.
        if matches!(operation.op_name(), "cast" | "read_state" | "write_state") {
            continue;
        }
        if let Some(ty) = view.result(operation).filter(|ty| matches!(ty.dtype, DType::F32 | DType::F64)) {
            if scales_input(view, operation) {
                let found = format!("`{}` of an input in {} before it becomes fp16", operation.op_name(), ty.dtype);
                sink.operation_as(Severity::Warning, view, operation, found, ty.to_string());
                continue;
            }
            sink.operation(view, operation, format!("`{}` in {}", operation.op_name(), ty.dtype), ty.to_string());
        }
    }
}

/// Whether an input is scaled or moved on its way into the program, as coremltools does with pixels: one small pass.
fn scales_input(view: &View, operation: &Operation) -> bool {
    let is_input = |var: Var| view.function.inputs.iter().any(|input| input.var == var);
    let known = |var: &Var| view.is_constant(&Arg::Var(*var));
    let simple = matches!(operation.op_name(), "mul" | "add" | "sub" | "real_div");
    let from_input = operation.used_vars().all(|var| is_input(var) || known(&var));
    let users = operation.outputs.first().map_or(&[][..], |var| view.users(*var));
    simple && from_input && !users.is_empty() && users.iter().all(|user| user.op_name() == "cast")
}
