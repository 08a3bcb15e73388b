//! `opset`: operations, states or functions that the package's opset does not have yet.

use crate::rule::{Check, Sink};
use crate::view::{View, is_constant};
use crate::{Rule, Scope, Severity};
use quince_mil::{OpKind, Opset};

pub(super) static RULE: Rule = Rule {
    id: "opset",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "an operation, a state or a second function in a package whose opset is too old for it",
    why: "the system refuses to load the model: states, several functions, fused attention and grouped tables came with \
          iOS 18 (opset CoreML8)",
    fix: "convert with --minimum-deployment-target iOS18, or leave the operation out",
    source: "apple/coremltools, the iOS15 to iOS18 folders of mil/ops/defs; docs-guides/source/stateful-models",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    let opset = view.function.opset;
    for operation in view.operations.iter().filter(|op| !is_constant(op)) {
        if let OpKind::Known(op) = operation.kind
            && op.since() > opset
        {
            sink.operation(view, operation, format!("`{}` came with {}, the package has {opset}", op.name(), op.since()), "");
        }
    }
    // What packs weights has older forms under the same name; grouped and blockwise ones have not.
    for operation in view.operations.iter().filter(|op| is_constant(op)) {
        let new = ["constexpr_blockwise_shift_scale", "constexpr_lut_to_sparse", "constexpr_sparse_blockwise_shift_scale"];
        if new.contains(&operation.op_name()) && opset < Opset::CoreML8 {
            let found = format!("`{}` came with CoreML8, the package has {opset}", operation.op_name());
            sink.operation(view, operation, found, "");
        }
    }
    if opset < Opset::CoreML8 {
        for input in &view.function.inputs {
            if matches!(view.function.ty(input.var), quince_mil::ValueType::State(_)) {
                sink.feature(view, input.var, "state", format!("states came with CoreML8, the package has {opset}"), "");
            }
        }
        if view.package.program.functions.len() > 1 {
            sink.whole(format!("several functions need CoreML8, the package has {opset}"));
        }
    }
}
