//! `cache-shift`: caches that are shifted by a slot for each token.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, Operation, Var};

pub(super) static RULE: Rule = Rule {
    id: "cache-shift",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "a cache that is written as concat(all but its first slots, the new ones), as sliding windows often are",
    why: "the compiler of the Neural Engine refuses it, and elsewhere the whole window is copied for every token",
    fix: "rotate: write slot position % window and mask by age; quince writes sliding-window layers so",
    source: "apple/coreai-models neural_engine_rules.md; Anemll (fails to compile)",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("concat") {
        let parts: Vec<Var> = operation.args("values").iter().filter_map(|arg| match arg {
            Arg::Var(var) => Some(*var),
            Arg::Value(_) => None,
        }).collect();
        let Some((first, _)) = parts.split_first().filter(|(_, rest)| !rest.is_empty()) else { continue };
        if is_rest_of_cache(view, *first) && is_kept(view, operation) {
            let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
            sink.operation(view, operation, "a cache that is shifted by concat", detail);
        }
    }
}

/// A slice of a state or of an input that leaves out its beginning.
fn is_rest_of_cache(view: &View, var: Var) -> bool {
    let between = ["reshape", "expand_dims", "squeeze", "identity", "cast", "transpose"];
    let Some(slice) = view.producer(view.back(var, &between)) else { return false };
    let skips = match slice.op_name() {
        "slice_by_index" => view.integers(slice, "begin").is_none_or(|begin| begin.iter().any(|n| *n != 0)),
        "slice_by_size" => view.integers(slice, "begin").is_none_or(|begin| begin.iter().any(|n| *n != 0)),
        "split" => slice.outputs.first() != Some(&var),
        _ => false,
    };
    let Some(x) = slice.var("x").filter(|_| skips) else { return false };
    let origin = view.back(x, super::LAYOUT_OR_CAST);
    let is_input = view.function.inputs.iter().any(|input| input.var == origin);
    is_input || view.producer(origin).is_some_and(|op| op.op_name() == "read_state")
}

/// Whether the result becomes a state or an output.
fn is_kept(view: &View, operation: &Operation) -> bool {
    let mut open: Vec<Var> = operation.outputs.clone();
    for _ in 0..64 {
        let Some(var) = open.pop() else { return false };
        if view.is_output(var) {
            return true;
        }
        for user in view.users(var) {
            match user.op_name() {
                "write_state" | "slice_update" => return true,
                name if super::LAYOUT_OR_CAST.contains(&name) || matches!(name, "concat" | "stack") => open.extend(&user.outputs),
                _ => {}
            }
        }
    }
    false
}
