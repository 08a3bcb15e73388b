//! `default-epsilon`: operations that leave their epsilon to the system.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "default-epsilon",
    severity: Severity::Warning,
    scope: Scope::Everywhere,
    what: "`rsqrt`, `log`, `inverse` or a norm without its epsilon",
    why: "the format has all parameters written out; one that is left out is 1e-12, 1e-45, 1e-4 or 1e-5 by operation, which \
          readers of the package do not see, and which other runtimes take to be 0",
    fix: "write the epsilon; `quince lint --fix` writes the default",
    source: "apple/coremltools ops/defs/iOS15/elementwise_unary.py and normalization.py, default_inputs",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        let name = operation.op_name();
        let has_one = matches!(name, "rsqrt" | "log" | "inverse" | "layer_norm" | "batch_norm" | "instance_norm" | "l2_norm");
        if has_one && operation.args("epsilon").is_empty() {
            sink.operation(view, operation, format!("`{name}` without an epsilon"), "");
        }
    }
}
