//! `state-position`: where a state is written, if that does not come from an int32 input.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, Operation, ValueType, Var};
use std::collections::HashSet;

pub(super) static RULE: Rule = Rule {
    id: "state-position",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "a `slice_update` of a state whose place is computed from values that are not int32, or never changes",
    why: "fp16 counts exactly to 2048 only, and the size of a mask as position makes every shape dynamic; a place that never \
          changes overwrites the same slot for each token",
    fix: "pass the position as an int32 input",
    source: "Anemll models/llama_model.py (current_pos int32); docs-guides/source/stateful-models.html",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for update in view.named("slice_update") {
        let of_state = update.var("x").is_some_and(|x| {
            view.comes_from(x, &|op| op.op_name() == "read_state", &|op| op.op_name() == "slice_update")
        });
        if !of_state {
            continue;
        }
        let from: HashSet<Var> =
            ["begin", "end"].iter().filter_map(|side| update.var(side)).flat_map(|var| view.origins(var)).collect();
        let inputs: Vec<Var> =
            view.function.inputs.iter().map(|input| input.var).filter(|var| from.contains(var)).collect();
        let integer = |var: &Var| {
            let ty = view.function.ty(*var);
            matches!(ty, ValueType::Tensor(ty) if matches!(ty.dtype, DType::I32 | DType::I16 | DType::U16))
        };
        if let Some(var) = inputs.iter().find(|var| !integer(var)) {
            let detail = format!("`{}`, {}", view.name(*var), view.function.ty(*var));
            sink.operation(view, update, "a place in a state that comes from an input that is not int32", detail);
        } else if inputs.is_empty() && !is_renewed(view, update) {
            sink.operation(view, update, "a place in a state that never changes", "");
        }
    }
}

/// Whether what is written is made of what was there: slots that are kept or written over by a mask, as caches that rotate
/// are, lie where they lie.
fn is_renewed(view: &View, update: &Operation) -> bool {
    let masks = |operation: &Operation| matches!(operation.op_name(), "add" | "mul" | "select" | "slice_by_index");
    let new = update.var("update");
    new.is_some_and(|new| view.comes_from(new, &|operation| operation.op_name() == "read_state", &masks))
}
