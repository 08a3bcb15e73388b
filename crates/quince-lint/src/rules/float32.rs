//! `float32`: operations that compute in fp32.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::DType;

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
            sink.operation(view, operation, format!("`{}` in {}", operation.op_name(), ty.dtype), ty.to_string());
        }
    }
}
