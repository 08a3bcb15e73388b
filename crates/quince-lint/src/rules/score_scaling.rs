//! `score-scaling`: attention scores that are scaled after the product.

use crate::rule::{Check, Sink};
use crate::view::{View, elements};
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, Operation};

pub(super) static RULE: Rule = Rule {
    id: "score-scaling",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "a product of queries and keys in fp16 that is divided by √d afterwards",
    why: "the product is √d times larger than what is wanted, and infinite where the scaled one would have fitted: 65504 is \
          all that fp16 has",
    fix: "multiply the queries or the keys by 1/√d before the product, or fold the factor into their weights",
    source: "apple/ml-ane-transformers and apple/coreai-models neural_engine_rules.md scale before the product",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for product in view.named("matmul") {
        let computed = |param: &str| product.arg(param).is_some_and(|arg| !view.is_constant(arg));
        let half = view.result(product).is_some_and(|ty| ty.dtype == DType::F16 && elements(ty) != Some(1));
        if !half || !computed("x") || !computed("y") {
            continue;
        }
        // Moved, with a mask or without.
        let passes = |op: &Operation| op.op_name() == "add" || super::LAYOUT_OR_CAST.contains(&op.op_name());
        let scores = view.becomes(&product.outputs, &passes);
        for user in view.users_of(&scores).filter(|user| scales_down(view, user) && reaches_softmax(view, user)) {
            sink.operation(view, user, "scores that are scaled after the product", "");
        }
    }
}

fn scales_down(view: &View, operation: &Operation) -> bool {
    let constant = |param: &str| view.number(operation, param);
    match operation.op_name() {
        "mul" => constant("x").or(constant("y")).is_some_and(|scale| scale.abs() < 1.0),
        "real_div" => constant("y").is_some_and(|scale| scale.abs() > 1.0),
        _ => false,
    }
}

/// Whether a softmax follows, with nothing but a mask between; a soft cap (tanh) scales after the product by its nature.
fn reaches_softmax(view: &View, operation: &Operation) -> bool {
    let passes =
        |op: &Operation| matches!(op.op_name(), "add" | "select" | "reshape" | "transpose" | "cast" | "maximum");
    view.users_of(&view.becomes(&operation.outputs, &passes)).any(|user| user.op_name() == "softmax")
}
