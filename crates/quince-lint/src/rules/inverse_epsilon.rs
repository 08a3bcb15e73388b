//! `inverse-epsilon`: `inverse` and `log` with the large epsilon that MIL adds unasked.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "inverse-epsilon",
    severity: Severity::Warning,
    scope: Scope::Everywhere,
    what: "`inverse` with an epsilon of 1e-4 or more",
    why: "MIL computes 1/(x + epsilon), and its default of 1e-4 is no rounding error: 1/0.001 becomes 909. Converters used it \
          unaware for years",
    fix: "give an epsilon that is small beside the values, or write real_div(1, x); `quince repair` does",
    source: "apple/coremltools 375ce908 (the torch converter, 2020 to 2026); ops/defs/iOS15/elementwise_unary.py, inverse",
    check: Check::Function(check),
};

/// MIL's default.
const DEFAULT: f64 = 1e-4;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("inverse") {
        // fp16 has 1e-4 only roughly.
        if let Some(epsilon) = view.number(operation, "epsilon").filter(|e| *e > DEFAULT * 0.99) {
            sink.operation(view, operation, "`inverse` with the epsilon that MIL adds unasked", format!("{epsilon:.1e}"));
        }
    }
}
