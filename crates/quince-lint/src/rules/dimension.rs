//! `dimension`: values with an axis longer than 16384.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Operation, TensorType};

pub(super) static RULE: Rule = Rule {
    id: "dimension",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "a value with an axis of more than 16384 elements",
    why: "that is the most for the Neural Engine: the operation, and often all that follows, runs on the CPU",
    fix: "split the axis; an lm_head is split by --lm-head-parts",
    source: "apple/coreai-models neural_engine_rules.md; sbryngelson/ANEForge (16384 until A15)",
    check: Check::Function(check),
};

/// The longest axis.
pub(super) const MOST: usize = 16384;

fn check(view: &View, sink: &mut Sink) {
    for input in &view.function.inputs {
        if let Some(ty) = view.function.ty(input.var).as_tensor().filter(|ty| is_long(ty)) {
            sink.feature(view, input.var, "input", format!("an axis of more than {MOST}"), ty.to_string());
        }
    }
    for operation in view.computing() {
        let mut results = operation.outputs.iter().filter_map(|var| view.tensor(*var));
        let Some(ty) = results.find(|ty| is_long(ty)) else { continue };
        // `lm-head` and `embedding-rows` say more of these; what is joined for the output is joined by the CPU anyway.
        if !super::lm_head::is_too_wide(view, operation) && !only_moves(view, operation) {
            sink.operation(view, operation, format!("an axis of more than {MOST}"), ty.to_string());
        }
    }
}

fn is_long(ty: &TensorType) -> bool {
    ty.shape.iter().any(|dim| dim.fixed().is_some_and(|n| n > MOST))
}

/// Whether the operation only carries what was found elsewhere to an output.
fn only_moves(view: &View, operation: &Operation) -> bool {
    let is_move = |op: &Operation| op.op_name() == "concat" || super::LAYOUT_OR_CAST.contains(&op.op_name());
    let mut open = vec![operation];
    for _ in 0..8 {
        let Some(operation) = open.pop() else { return true };
        if !is_move(operation) {
            return false;
        }
        for var in &operation.outputs {
            if !view.is_output(*var) {
                open.extend(view.users(*var));
            }
        }
    }
    false
}
