//! `state-update`: states that are written otherwise than by `slice_update`.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

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
        if matches!(name, "scatter" | "scatter_along_axis" | "scatter_nd" | "gather" | "gather_nd" | "gather_along_axis" | "pad") {
            sink.operation(view, origin, format!("a state written by `{name}`"), "");
        }
    }
}
