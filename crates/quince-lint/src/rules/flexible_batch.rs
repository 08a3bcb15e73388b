//! `flexible-batch`: several texts or pictures at a time, as many as there are.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::Flexibility;

pub(super) static RULE: Rule = Rule {
    id: "flexible-batch",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "an input whose first axis has a range or a list of sizes",
    why: "the Neural Engine runs a batch one after the other, and for each size there is another compiled program; states \
          take no batch at all",
    fix: "fix the batch at 1 and call several times, or make a function for the one batch that is used",
    source: "apple/coreai-models neural_engine_rules.md; apple/coremltools#2275 and #2730",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for input in &view.function.inputs {
        let varies = match &input.flexibility {
            Flexibility::Range { bounds, .. } => bounds.len() > 1 && bounds.first().is_some_and(|b| b.1 != Some(b.0)),
            Flexibility::Enumerated(shapes) => {
                let mut firsts = shapes.iter().filter(|shape| shape.len() > 1).map(|shape| shape.first());
                let first = firsts.next();
                firsts.any(|other| Some(other) != first)
            }
            Flexibility::Fixed => false,
        };
        if varies {
            sink.feature(view, input.var, "input", "a batch of several sizes", "");
        }
    }
}
