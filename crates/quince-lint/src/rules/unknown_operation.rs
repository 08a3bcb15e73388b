//! `unknown-operation`: operations of names that MIL does not have.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::OpKind;

pub(super) static RULE: Rule = Rule {
    id: "unknown-operation",
    severity: Severity::Warning,
    scope: Scope::Everywhere,
    what: "an operation that is in no opset up to iOS 18",
    why: "a system that does not know it does not load the model; quince cannot run it either",
    fix: "write it with operations of the opset (`quince ops` lists them), or require the system that has it",
    source: "apple/coremltools ops/defs (the opsets of iOS 15 to iOS 18)",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        if let OpKind::Unknown(name) = &operation.kind {
            sink.operation(view, operation, format!("`{name}` is in no opset"), "");
        }
    }
}
