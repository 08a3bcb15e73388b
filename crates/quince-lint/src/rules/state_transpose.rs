//! `state-transpose`: states that are transposed between where they are kept and where they are used.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "state-transpose",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "`transpose` of what was read from a state, or of what is written to it as a whole",
    why: "the whole cache is copied for every token, and on some systems the model does not load (`not found in Core ML model \
          inputs`)",
    fix: "keep the state in the layout in which it is used, transpose the new keys, and use transpose_y of matmul",
    source: "apple/coremltools#2278 and #2275; apple/coreai-models neural_engine_rules.md",
    check: Check::Function(check),
};

/// What may stand between a state and the transpose of it.
const BETWEEN: &[&str] = &["reshape", "expand_dims", "squeeze", "identity", "slice_by_index", "slice_by_size", "split", "cast"];

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("transpose") {
        let Some(x) = operation.var("x") else { continue };
        let origin = view.producer(view.back(x, BETWEEN));
        let from_state = origin.is_some_and(|op| match op.op_name() {
            "read_state" => true,
            "slice_update" => view.behind(op, "x").is_some_and(|op| op.op_name() == "read_state"),
            _ => false,
        });
        let to_state = operation
            .outputs
            .iter()
            .flat_map(|var| view.users(*var))
            .any(|user| user.op_name() == "write_state" && user.var("data") == operation.outputs.first().copied());
        let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
        if from_state {
            sink.operation(view, operation, "a transpose between a state and its use", detail);
        } else if to_state {
            sink.operation(view, operation, "a transpose of what is written to a state", detail);
        }
    }
}
