//! `control-flow`: branches and loops.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "control-flow",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "`cond`, `while_loop` and lists",
    why: "the Neural Engine has neither branches nor loops: what is inside runs on the CPU, and the program is cut in pieces \
          around it",
    fix: "unroll the loop, compute both branches and `select`, or let the host loop and branch",
    source: "sbryngelson/ANEForge aneforge/_op_catalog.py (`no standalone ANE codegen`); hollance/neural-engine",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        let name = operation.op_name();
        if matches!(name, "cond" | "while_loop" | "make_list") || name.starts_with("list_") {
            sink.operation(view, operation, format!("`{name}`"), "");
        }
    }
}
