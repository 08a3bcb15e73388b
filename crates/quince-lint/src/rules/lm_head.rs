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
    for operation in view.computing().filter(|op| is_too_wide(view, op)) {
        let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
        sink.operation(view, operation, format!("a layer with more than {MOST} outputs"), detail);
    }
}

/// Whether the operation is a layer with more outputs than there is room for.
pub(super) fn is_too_wide(view: &View, operation: &Operation) -> bool {
    let axis_from_end = match operation.op_name() {
        // Channels are the second axis of [B, C, H, W].
        "conv" => view.result(operation).map_or(0, |ty| ty.shape.len().saturating_sub(2)),
        _ => 0,
    };
    let outputs = view.result(operation).and_then(|ty| ty.shape.iter().rev().nth(axis_from_end)?.fixed());
    is_layer(view, operation) && outputs.is_some_and(|n| n > MOST)
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
