//! `interface-type`: inputs and outputs of types that Core ML does not pass.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, ValueType, Var};

pub(super) static RULE: Rule = Rule {
    id: "interface-type",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "an input or output that is neither fp32, fp16, int32 nor, from iOS 26 on, int8, or is described as another type than \
           it has",
    why: "MLMultiArray has no bool, uint8, int16 or int64, and fp16 only from iOS 16 on: the model does not load, nor does one \
          whose description and program differ",
    fix: "make the input or output int32 or fp16 and cast inside the program; a description is made anew when quince writes the package",
    source: "apple/coremltools mlmodel/format/FeatureTypes.proto, ArrayFeatureType; converters/mil/frontend/_utils",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for input in &view.function.inputs {
        one(view, input.var, "input", sink);
    }
    for var in &view.function.block.outputs {
        one(view, *var, "output", sink);
    }
    for (var, described) in view.package.contradictions(view.function) {
        let described = described.map_or_else(|| "of no type".to_string(), |dtype| format!("as {dtype}"));
        sink.feature(view, var, "feature", format!("described {described}, of another type in the program"), view.function.ty(var).to_string());
    }
}

fn one(view: &View, var: Var, kind: &str, sink: &mut Sink) {
    let version = view.package.specification_version();
    let ty = match view.function.ty(var) {
        ValueType::Tensor(ty) => ty,
        ValueType::State(_) => return,
        other => return sink.feature(view, var, kind, format!("an {kind} of type {other}"), ""),
    };
    let since = match ty.dtype {
        DType::F32 | DType::I32 => 0,
        DType::F16 => 7,
        DType::I8 => 10,
        dtype => return sink.feature(view, var, kind, format!("an {kind} of type {dtype}"), ty.to_string()),
    };
    if version < since {
        let found = format!("an {kind} of type {} needs specification version {since}, found {version}", ty.dtype);
        sink.feature(view, var, kind, found, ty.to_string());
    }
}
