//! `raw-keys`: keys that are rotated after they were read from the cache.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Operation, Var};

pub(super) static RULE: Rule = Rule {
    id: "raw-keys",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "rotary positions that are applied to the whole cache for each token",
    why: "the cache is rotated again for each token, which costs more than attention itself; rotated once, keys stay right",
    fix: "rotate the new keys before they are written",
    source: "apple/coreai-models neural_engine_rules.md (the cache holds rotated keys)",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("matmul").chain(view.named("scaled_dot_product_attention")) {
        let params: &[&str] = if operation.op_name() == "matmul" { &["x", "y"] } else { &["key"] };
        let keys = params.iter().filter_map(|param| operation.var(param));
        for sum in keys.filter_map(|var| rotated(view, var)) {
            sink.operation(view, sum, "a cache that is rotated when it is read", "");
        }
    }
}

/// A sum of two products of what was read from a state, as x·cos + rotate(x)·sin is, or each half by itself, with nothing but
/// joins after it.
fn rotated<'a>(view: &View<'a>, keys: Var) -> Option<&'a Operation> {
    let mut open = vec![keys];
    for _ in 0..64 {
        let operation = view.producer(view.back(open.pop()?, super::LAYOUT_OR_CAST));
        let Some(operation) = operation else { continue };
        match operation.op_name() {
            "concat" | "stack" => open.extend(operation.used_vars()),
            "add" | "sub" => {
                let operands: Vec<Var> = operation.used_vars().collect();
                if operands.len() == 2 && operands.iter().all(|var| is_product_of_cache(view, *var)) {
                    return Some(operation);
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether a value is what was read, with its elements in some order, times something.
fn is_product_of_cache(view: &View, var: Var) -> bool {
    let is_read = |op: &Operation| op.op_name() == "read_state";
    let reorders = |op: &Operation| match op.op_name() {
        "concat" | "stack" | "mul" | "sub" | "add" => true,
        // With a constant, as the matrix of a rotation is.
        "matmul" => op.arg("x").into_iter().chain(op.arg("y")).any(|arg| view.is_constant(arg)),
        name => super::LAYOUT_OR_CAST.contains(&name),
    };
    let product = view.producer(view.back(var, super::LAYOUT_OR_CAST)).filter(|op| op.op_name() == "mul");
    product.is_some_and(|op| op.used_vars().any(|var| view.comes_from(var, &is_read, &reorders)))
}
