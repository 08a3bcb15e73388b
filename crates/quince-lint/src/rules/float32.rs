//! `float32`: operations that compute in fp32.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, Operation};

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

/// Whether an input is scaled and moved on its way into the program, as coremltools does with pixels: one small pass or two.
fn scales_input(view: &View, operation: &Operation) -> bool {
    let simple = |op: &Operation| {
        let knows = |param| op.arg(param).is_some_and(|arg| view.is_constant(arg));
        matches!(op.op_name(), "mul" | "add" | "sub" | "real_div") && (knows("x") || knows("y"))
    };
    let from_input = operation.outputs.iter().all(|var| !view.comes_from(*var, &|op| !simple(op), &|_| true));
    let mut users = view.users_of(&operation.outputs).peekable();
    from_input && users.peek().is_some() && users.all(|user| user.op_name() == "cast" || simple(user))
}
