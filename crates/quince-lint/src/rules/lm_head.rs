//! `lm-head`: a last layer with more outputs than the Neural Engine has room for.

use super::dimension::MOST;
use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::Operation;

pub(super) static RULE: Rule = Rule {
    id: "lm-head",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "a layer with more than 16384 outputs, as the last one of a language model has",
    why: "an axis of the Neural Engine has at most 16384 elements: the largest layer of the model runs on the CPU",
    fix: "split it along its outputs; 8 parts are common, 16 were needed for a vocabulary of 262 144",
    source: "apple/coreai-models neural_engine_rules.md; Anemll (8 or 16 parts); smpanaro/more-ane-transformers",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing().filter(|op| is_layer(view, op)) {
        if let Some(ty) = view.result(operation).filter(|ty| ty.shape.iter().any(|dim| dim.fixed().is_some_and(|n| n > MOST))) {
            sink.operation(view, operation, format!("a layer with more than {MOST} outputs"), ty.to_string());
        }
    }
}

/// Whether the operation multiplies by a weight.
pub(super) fn is_layer(view: &View, operation: &Operation) -> bool {
    let constant = |param: &str| operation.arg(param).is_some_and(|arg| view.is_constant(arg));
    match operation.op_name() {
        "linear" | "conv" => constant("weight"),
        "matmul" => constant("x") != constant("y"),
        _ => false,
    }
}
