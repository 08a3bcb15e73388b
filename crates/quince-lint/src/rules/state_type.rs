//! `state-type`: states that are not fp16 or have no fixed size.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::DType;

pub(super) static RULE: Rule = Rule {
    id: "state-type",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "a state that is not fp16, or int8 from iOS 26 on, or whose size is not fixed",
    why: "states of other types and of flexible shapes are not supported: the model does not load",
    fix: "make the state fp16 and of a fixed size; offer several lengths as several functions",
    source: "apple/coremltools#2537 (`we don't support flexible shape`), docs-guides/source/stateful-models",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    let states = view.function.inputs.iter().filter_map(|input| match view.function.ty(input.var) {
        quince_mil::ValueType::State(ty) => Some((input.var, ty)),
        _ => None,
    });
    for (var, ty) in states {
        let allowed = match ty.dtype {
            DType::F16 => true,
            DType::I8 => view.package.specification_version() >= 10,
            _ => false,
        };
        if !allowed {
            sink.feature(view, var, "state", format!("a state of type {}", ty.dtype), ty.to_string());
        }
        if ty.dims().is_none() {
            sink.feature(view, var, "state", "a state without a fixed size", ty.to_string());
        }
    }
}
