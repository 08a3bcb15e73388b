//! `enumerated-shapes`: lists of shapes that are too long, or of several inputs where that is not supported.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::Flexibility;

pub(super) static RULE: Rule = Rule {
    id: "enumerated-shapes",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "more than 128 shapes of an input, several inputs with lists of shapes before iOS 18 or of different lengths, or \
           lists and ranges in one function",
    why: "Core ML takes at most 128 enumerated shapes, on one input only before iOS 18, matched by their position after it, \
          and no mixture with ranges",
    fix: "list the lengths that are used, pad to them, and target iOS 18 where several inputs change together",
    source: "apple.github.io/coremltools/docs-guides/source/flexible-inputs.html; apple/coremltools#2548",
    check: Check::Function(check),
};

/// How many shapes Core ML takes.
const MOST: usize = 128;

fn check(view: &View, sink: &mut Sink) {
    let mut lists = Vec::new();
    let mut ranges = false;
    for input in &view.function.inputs {
        match &input.flexibility {
            Flexibility::Enumerated(shapes) => {
                lists.push((input.var, shapes.len()));
                if shapes.len() > MOST {
                    let found = format!("more than {MOST} shapes of an input");
                    sink.feature(view, input.var, "input", found, format!("{} shapes", shapes.len()));
                }
            }
            Flexibility::Range { bounds, .. } => ranges |= bounds.iter().any(|(low, high)| Some(*low) != *high),
            Flexibility::Fixed => {}
        }
    }
    let Some((first, count)) = lists.first().copied() else { return };
    if lists.len() > 1 && view.package.specification_version() < 9 {
        let found = "several inputs with lists of shapes, which needs iOS 18";
        sink.feature(view, first, "input", found, format!("{} inputs", lists.len()));
    }
    if let Some((var, other)) = lists.iter().find(|(_, other)| *other != count) {
        sink.feature(view, *var, "input", "inputs with lists of shapes of different lengths", format!("{other} and {count}"));
    }
    if ranges {
        sink.feature(view, first, "input", "lists of shapes beside ranges of sizes", "");
    }
}
