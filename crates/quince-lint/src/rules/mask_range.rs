//! `mask-range`: finite masks so low that a sum with them is infinite.

use crate::rule::{Check, Sink};
use crate::view::View;
use super::LAYOUT_OR_CAST;
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, Operation, Value};

pub(super) static RULE: Rule = Rule {
    id: "mask-range",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "a number near -65504 that is added to scores in fp16",
    why: "finfo(float16).min plus a score below -16 is -inf, and two such masks together are -inf everywhere: a row without \
          any other entry gives NaN",
    fix: "mask with -1e4 to -4e4, which is as good as -inf for softmax",
    source: "Anemll and apple/coreai-models mask with -1e4 and -4e4; fp16 rounds -65520 to -inf (IEEE 754)",
    check: Check::Function(check),
};

/// Two of these are infinite.
const LEAST: f64 = -6.0e4;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("add").chain(view.named("select")).chain(view.named("mul")) {
        if view.result(operation).is_none_or(|ty| ty.dtype != DType::F16) {
            continue;
        }
        if let Some(value) = lowest(view, operation).filter(|value| value.is_finite() && *value <= LEAST) {
            sink.operation(view, operation, format!("`{}` with a mask near the end of fp16", operation.op_name()), format!("{value}"));
        } else if scales_zeros(view, operation) {
            sink.operation(view, operation, "`mul` of a mask to the end of fp16", "");
        }
    }
}

/// Whether zeros and ones, less one or as they are, become numbers that scores cannot be added to: (mask - 1) · 65504.
fn scales_zeros(view: &View, operation: &Operation) -> bool {
    let far = |param: &str| view.number(operation, param).is_some_and(|n| n.is_finite() && n >= -LEAST);
    let passes = |op: &Operation| op.op_name() == "clip" || LAYOUT_OR_CAST.contains(&op.op_name());
    let is_sum = |user: &Operation| matches!(user.op_name(), "add" | "sub");
    let scaled = operation.op_name() == "mul" && (far("x") || far("y"));
    scaled && view.users_of(&view.becomes(&operation.outputs, &passes)).any(is_sum)
}

/// The lowest element of the constants among the arguments.
fn lowest<'a>(view: &View<'a>, operation: &'a Operation) -> Option<f64> {
    const MAX_ELEMENTS: usize = 1 << 24;
    let args = operation.inputs.iter().filter(|(param, _)| param != "cond").flat_map(|(_, args)| args);
    let small = |value: &&Value| {
        let elements = value.tensor_type().and_then(|ty| crate::view::elements(&ty));
        elements.is_some_and(|n| n <= MAX_ELEMENTS)
    };
    let values = args.filter_map(|arg| view.constant(arg)).filter(small);
    let values = values.filter_map(|value| value.tensor().ok()?.to_f32().ok());
    values.flatten().map(f64::from).filter(|value| !value.is_nan()).reduce(f64::min)
}
