//! `cache-shift`: caches that are shifted by a slot for each token.

use crate::rule::{Check, Sink};
use crate::view::{View, elements};
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, Operation, Var};

pub(super) static RULE: Rule = Rule {
    id: "cache-shift",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "a cache that is written as concat(all but its first slots, the new ones), or as the last slots of \
           concat(the cache, the new ones), as sliding windows often are",
    why: "the compiler of the Neural Engine refuses it, and elsewhere the whole window is copied for every token",
    fix: "rotate: write slot position % window and mask by age; quince writes sliding-window layers so",
    source: "apple/coreai-models neural_engine_rules.md; Anemll (fails to compile)",
    check: Check::Function(check),
};

/// What moves elements, and keeps all.
const BETWEEN: &[&str] = &["reshape", "expand_dims", "squeeze", "identity", "cast", "transpose"];

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("concat") {
        let parts: Vec<Var> = operation.args("values").iter().filter_map(|arg| match arg {
            Arg::Var(var) => Some(*var),
            Arg::Value(_) => None,
        }).collect();
        let Some((first, _)) = parts.split_first().filter(|(_, rest)| !rest.is_empty()) else { continue };
        let shifted = is_rest_of_cache(view, *first) && is_kept(view, &operation.outputs);
        if shifted || is_cache(view, *first) && keeps_its_end(view, operation, *first) {
            let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
            sink.operation(view, operation, "a cache that is shifted by concat", detail);
        }
    }
}

/// A slice of a cache that leaves out its beginning.
fn is_rest_of_cache(view: &View, var: Var) -> bool {
    let moved = view.back(var, BETWEEN);
    let slice = view.producer(moved).filter(|op| leaves_out_beginning(view, op, moved));
    slice.and_then(|slice| slice.var("x")).is_some_and(|x| is_cache(view, x))
}

/// Whether a value is a part of what an operation takes, without its first elements.
fn leaves_out_beginning(view: &View, slice: &Operation, var: Var) -> bool {
    let param = match slice.op_name() {
        "slice_by_index" | "slice_by_size" => "begin",
        "gather" | "gather_along_axis" => "indices",
        "split" => return slice.outputs.first() != Some(&var),
        _ => return false,
    };
    match view.integers(slice, param) {
        Some(places) if param == "indices" => places.len() > 1 && places[0] > 0 && places.is_sorted(),
        Some(places) => places.iter().any(|n| *n != 0),
        None => param == "begin",
    }
}

/// A state, an input, or a part of one.
fn is_cache(view: &View, var: Var) -> bool {
    let origin = view.back(var, super::LAYOUT_OR_CAST);
    let is_input = view.function.inputs.iter().any(|input| input.var == origin);
    is_input || view.producer(origin).is_some_and(|op| op.op_name() == "read_state")
}

/// Whether the end of the result, as long as its first part, is kept in place of that.
fn keeps_its_end(view: &View, concat: &Operation, first: Var) -> bool {
    let size = |var: Var| view.tensor(var).and_then(elements);
    let moved = view.becomes(&concat.outputs, &|op| BETWEEN.contains(&op.op_name()));
    view.users_of(&moved).any(|user| {
        let is_end = |part: &Var| leaves_out_beginning(view, user, *part) && size(*part) == size(first);
        let ends: Vec<Var> = user.outputs.iter().copied().filter(is_end).collect();
        is_kept(view, &ends)
    })
}

/// Whether one of the values becomes a state or an output.
fn is_kept(view: &View, values: &[Var]) -> bool {
    let joins = |op: &Operation| matches!(op.op_name(), "concat" | "stack") || super::LAYOUT_OR_CAST.contains(&op.op_name());
    let moved = view.becomes(values, &joins);
    let is_written = |op: &Operation| matches!(op.op_name(), "write_state" | "slice_update");
    moved.iter().any(|var| view.is_output(*var)) || view.users_of(&moved).any(is_written)
}
