//! `rank`: values of more than five axes.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "rank",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "a value of more than 5 axes",
    why: "the Neural Engine knows 5 axes; the operation runs on the CPU, with a copy there and back",
    fix: "merge axes by reshape: (B, C, 1, S) is what it is made for",
    source: "apple/coreai-models neural_engine_rules.md; `Rank must be between 0 and 5`, sbryngelson/ANEForge graph.py",
    check: Check::Function(check),
};

const MOST: usize = 5;

fn check(view: &View, sink: &mut Sink) {
    for input in &view.function.inputs {
        if let Some(ty) = view.function.ty(input.var).as_tensor().filter(|ty| ty.shape.len() > MOST) {
            sink.feature(view, input.var, "input", format!("a value of {} axes", ty.shape.len()), ty.to_string());
        }
    }
    for operation in view.computing() {
        let mut results = operation.outputs.iter().filter_map(|var| view.tensor(*var));
        if let Some(ty) = results.find(|ty| ty.shape.len() > MOST) {
            sink.operation(view, operation, format!("a value of {} axes", ty.shape.len()), ty.to_string());
        }
    }
}
