//! `unshared-tables`: palettized weights that share their indices, and not their tables.

use crate::rule::{Check, Sink};
use crate::view::PackageView;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, Operation};
use crate::view::View;
use std::collections::BTreeMap;

pub(super) static RULE: Rule = Rule {
    id: "unshared-tables",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "functions that share the indices of a weight, and have lookup tables of their own",
    why: "the compiler of the Neural Engine then copies the indices for each function as well",
    fix: "share the tables too: `quince repair` writes equal constants once; where the tables differ, so should the indices",
    source: "apple/coremltools, multifunction utilities",
    check: Check::Package(check),
};

fn check(whole: &PackageView, sink: &mut Sink) {
    // By the indices: the table, and the function that has it.
    let mut tables: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
    let mut differing = 0usize;
    for view in &whole.functions {
        for operation in view.named("constexpr_lut_to_dense") {
            let (Some(indices), Some(table)) = (id(view, operation, "indices"), id(view, operation, "lut")) else { continue };
            let (first, function) = *tables.entry(indices).or_insert((table, &view.function.name));
            differing += usize::from(first != table && function != view.function.name);
        }
    }
    if differing > 0 {
        sink.whole(format!("{differing} weights share indices, and not their lookup tables"));
    }
}

/// Which stored constant a parameter is.
fn id(view: &View, operation: &Operation, param: &str) -> Option<usize> {
    match operation.arg(param)? {
        Arg::Value(quince_mil::Value::Weight(weight)) => Some(weight.id()),
        Arg::Value(_) => None,
        Arg::Var(var) => match view.producer(*var)?.constant()? {
            quince_mil::Value::Weight(weight) => Some(weight.id()),
            _ => None,
        },
    }
}
