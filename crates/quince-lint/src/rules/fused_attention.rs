//! `fused-attention`: the fused attention operation on the Neural Engine.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "fused-attention",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "`scaled_dot_product_attention`",
    why: "on the Neural Engine the fused operation gives inf and NaN on iOS 26, and is slower than its parts before",
    fix: "write matmul, add, softmax, matmul; quince convert --compute-units cpuAndNeuralEngine does",
    source: "apple/coreai-models neural_engine_rules.md; smpanaro/more-ane-transformers",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("scaled_dot_product_attention") {
        let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
        sink.operation(view, operation, "fused attention", detail);
    }
}
