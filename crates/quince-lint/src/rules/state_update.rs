//! `state-update`: states that are written otherwise than by `slice_update`.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::Operation;

pub(super) static RULE: Rule = Rule {
    id: "state-update",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "a state that is written by `scatter`, `gather` or `pad`, or replaced by values that do not come from it",
    why: "read_state, slice_update, write_state is the pattern that the compiler makes an update in place of; others copy the \
          whole cache for each token or run on the CPU",
    fix: "write new rows with slice_update; blend with a mask where the slot rotates",
    source: "docs-guides/source/stateful-models.html; Anemll models/llama_model.py",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for write in view.named("write_state") {
        let Some(origin) = write.var("data").and_then(|var| view.producer(view.back(var, super::LAYOUT_OR_CAST))) else {
            continue;
        };
        let name = origin.op_name();
        if COPIES.contains(&name) || is_sum_of_padded(view, origin) {
            sink.operation(view, origin, format!("a state written by `{name}`"), "");
        } else if !comes_from_itself(view, write) {
            sink.operation(view, write, "a state replaced by values that do not come from it", "");
        }
    }
}

/// Operations that copy a state to change it.
const COPIES: &[&str] =
    &["scatter", "scatter_along_axis", "scatter_nd", "gather", "gather_nd", "gather_along_axis", "pad"];

/// A sum of a part of a state with zeros beside it, and of something else.
fn is_sum_of_padded(view: &View, sum: &Operation) -> bool {
    let is_padded = |var| {
        let pad = view.producer(view.back(var, super::LAYOUT_OR_CAST)).filter(|op| op.op_name() == "pad");
        let origin = pad.and_then(|pad| view.producer(view.back(pad.var("x")?, super::LAYOUT_OR_CAST)));
        origin.is_some_and(|op| op.op_name() == "read_state")
    };
    matches!(sum.op_name(), "add" | "maximum") && sum.used_vars().any(is_padded)
}

/// Whether anything of what is written was computed from what the state held.
fn comes_from_itself(view: &View, write: &Operation) -> bool {
    let (Some(state), Some(data)) = (write.var("input"), write.var("data")) else { return true };
    let is_read = |op: &Operation| op.op_name() == "read_state" && op.var("input") == Some(state);
    view.comes_from(data, &is_read, &|_| true)
}
