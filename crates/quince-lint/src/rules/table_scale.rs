//! `table-scale`: scales of channels beside lookup tables.

use crate::rule::{Check, Sink};
use crate::view::{View, is_constant};
use crate::{Rule, Scope, Severity};
use quince_mil::Operation;

pub(super) static RULE: Rule = Rule {
    id: "table-scale",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "a palettized weight whose lookup table is fp16 and scaled when the model is loaded",
    why: "packages made with enable_per_channel_scale crash the GPU on macOS 26, and fail to convert with vector tables",
    fix: "multiply the scale into a lookup table for each channel: the same size and the same values. `quince repair` does",
    source: "apple/coremltools pull request 2688",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.operations.iter().filter(|op| op.op_name() == "constexpr_blockwise_shift_scale") {
        if scales_table(view, operation) || scales_palettized(view, operation) {
            let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
            sink.operation(view, operation, "a lookup table of fp16 with scales of its own", detail);
        }
    }
}

/// A table of fp16 that is scaled before it is looked up. A table of int8 has to be.
pub(crate) fn scales_table(view: &View, operation: &Operation) -> bool {
    let of_floats = operation.arg("data").and_then(|arg| view.arg_type(arg)).is_some_and(|ty| ty.dtype.is_float());
    let users = operation.outputs.first().map_or(&[][..], |var| view.users(*var));
    of_floats && users.iter().any(|user| user.op_name() == "constexpr_lut_to_dense" && user.var("lut") == operation.outputs.first().copied())
}

/// A weight that is scaled after it was looked up.
fn scales_palettized(view: &View, operation: &Operation) -> bool {
    view.behind(operation, "data").is_some_and(|op| is_constant(op) && op.op_name() == "constexpr_lut_to_dense")
}
