//! `rotary-range`: sines and cosines that the program computes itself.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::DType;

pub(super) static RULE: Rule = Rule {
    id: "rotary-range",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "`sin` or `cos` computed by the program, from positions",
    why: "in fp16 the angle of position 3000 is off by a whole radian, so that texts fall apart with their length; and the \
          Neural Engine has sin and cos only from A15 on",
    fix: "gather rows of a constant table of sines and cosines, or pass them as inputs",
    source: "apple/coreai-models neural_engine_rules.md; fp16 has steps of 2 above 2048 (IEEE 754); \
             sbryngelson/ANEForge aneforge/_op_catalog.py",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("sin").chain(view.named("cos")) {
        let Some(ty) = view.result(operation) else { continue };
        let found = match ty.dtype {
            DType::F16 => format!("`{}` of angles in fp16", operation.op_name()),
            _ => format!("`{}` of angles", operation.op_name()),
        };
        let severity = if ty.dtype == DType::F16 { Severity::Warning } else { Severity::Note };
        sink.operation_as(severity, view, operation, found, ty.to_string());
    }
}
