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

/// x·cos + rotate(x)·sin, where x was read from a state and rotate joins its halves the other way round.
fn rotated<'a>(view: &View<'a>, var: Var) -> Option<&'a Operation> {
    let sum = view.producer(view.back(var, super::LAYOUT_OR_CAST)).filter(|op| matches!(op.op_name(), "add" | "concat"))?;
    let is_read = |op: &Operation| op.op_name() == "read_state";
    let plain = |op: &Operation| super::LAYOUT_OR_CAST.contains(&op.op_name()) || op.op_name() == "mul";
    let crossed = |op: &Operation| plain(op) || matches!(op.op_name(), "concat" | "sub" | "add");
    let of_cache = view.comes_from(sum.outputs.first().copied()?, &is_read, &crossed);
    let products = sum.used_vars().filter_map(|var| view.producer(var)).filter(|op| op.op_name() == "mul");
    let joined = |op: &Operation| {
        let is_join = |op: &Operation| op.op_name() == "concat";
        op.used_vars().any(|var| view.comes_from(var, &is_join, &plain) && view.comes_from(var, &is_read, &crossed))
    };
    (of_cache && products.into_iter().any(joined)).then_some(sum)
}
