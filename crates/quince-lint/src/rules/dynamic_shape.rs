//! `dynamic-shape`: sizes that are known only when the model runs.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Flexibility, ValueType};

pub(super) static RULE: Rule = Rule {
    id: "dynamic-shape",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "inputs with ranges of sizes, or values whose size depends on other values",
    why: "the Neural Engine compiles for fixed sizes: a function with a range runs on CPU or GPU, and is compiled anew for \
          each size there",
    fix: "make a function for each length that is used (--context 512,1024; --shapes lengths for `encode`)",
    source: "apple/coreai-models neural_engine_rules.md; apple/coremltools#2730 and #2370",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    let mut explained = false;
    for input in &view.function.inputs {
        match &input.flexibility {
            Flexibility::Range { bounds, .. } => {
                let ranges = bounds.iter().enumerate().filter(|(_, (low, high))| Some(*low) != *high);
                // A batch alone is another rule's.
                if ranges.clone().any(|(axis, _)| axis > 0 || bounds.len() == 1) {
                    let unbounded = ranges.clone().any(|(_, (_, high))| high.is_none());
                    let found = if unbounded { "an input without a largest size" } else { "an input with ranges of sizes" };
                    sink.feature(view, input.var, "input", found, shown(bounds));
                }
                explained |= ranges.count() > 0;
            }
            Flexibility::Enumerated(shapes) => explained |= shapes.len() > 1,
            Flexibility::Fixed => {
                let open = matches!(view.function.ty(input.var), ValueType::Tensor(ty) if ty.dims().is_none());
                if open {
                    sink.feature(view, input.var, "input", "an input of unknown size", view.function.ty(input.var).to_string());
                }
                explained |= open;
            }
        }
    }
    if explained {
        return;
    }
    for operation in view.computing() {
        if let Some(ty) = view.result(operation).filter(|ty| ty.dims().is_none()) {
            sink.operation(view, operation, "a size that depends on values", ty.to_string());
        }
    }
}

fn shown(bounds: &[(usize, Option<usize>)]) -> String {
    let sizes: Vec<String> = bounds
        .iter()
        .map(|(low, high)| match high {
            Some(high) if high == low => low.to_string(),
            Some(high) => format!("{low}..{high}"),
            None => format!("{low}.."),
        })
        .collect();
    format!("[{}]", sizes.join(", "))
}
