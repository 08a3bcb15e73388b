//! `integer-compute`: arithmetic on many int32 values.

use crate::rule::{Check, Sink};
use crate::view::{View, elements};
use crate::{Rule, Scope, Severity};
use quince_mil::DType;

pub(super) static RULE: Rule = Rule {
    id: "integer-compute",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "arithmetic on more than 65536 int32 values, such as a mask that is made from positions",
    why: "the Neural Engine computes in fp16, int8 and int16: int32 runs on the CPU",
    fix: "make the mask outside and pass it, gather it from a constant, or compute it in fp16",
    source: "apple/coreai-models neural_engine_rules.md; sbryngelson/ANEForge (`cast to int32 is walled`)",
    check: Check::Function(check),
};

const MANY: usize = 1 << 16;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        let name = operation.op_name();
        let moves = super::LAYOUT_OR_CAST.contains(&name) || matches!(name, "gather" | "concat" | "read_state" | "slice_update");
        let wide = view.result(operation).filter(|ty| matches!(ty.dtype, DType::I32 | DType::U32 | DType::I64));
        if let Some(ty) = wide.filter(|ty| !moves && elements(ty).is_some_and(|n| n > MANY)) {
            sink.operation(view, operation, format!("`{name}` on int32"), ty.to_string());
        }
    }
}
