//! `embedding-rows`: embedding tables with more rows than the Neural Engine can index.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};


pub(super) static RULE: Rule = Rule {
    id: "embedding-rows",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "`gather` from a constant table of more than 65535 rows",
    why: "indices become uint16 there: token 65536 is looked up as token 0",
    fix: "make the embedding a part of its own, and load that part with cpuOnly",
    source: "apple/coreai-models neural_engine_rules.md; coremltools' pass add_int16_cast",
    check: Check::Function(check),
};

const MOST: usize = 65535;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("gather").chain(view.named("gather_nd")).chain(view.named("gather_along_axis")) {
        let table = operation.arg("x").filter(|arg| view.is_constant(arg)).and_then(|arg| view.arg_type(arg));
        let Some(table) = table else { continue };
        let axis = view.number(operation, "axis").unwrap_or(0.0);
        let axis = if axis < 0.0 { axis + table.shape.len() as f64 } else { axis } as usize;
        let rows = table.shape.get(axis).and_then(|dim| dim.fixed()).unwrap_or(0);
        if rows > MOST && !operation.arg("indices").is_some_and(|arg| view.is_constant(arg)) {
            sink.operation(view, operation, format!("a table of more than {MOST} rows"), table.to_string());
        }
    }
}
