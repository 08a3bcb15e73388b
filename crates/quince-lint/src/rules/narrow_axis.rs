//! `narrow-axis`: large values with short rows.

use crate::rule::{Check, Sink};
use crate::view::{View, elements, is_index};
use crate::{Rule, Scope, Severity};
use quince_mil::TensorType;

pub(super) static RULE: Rule = Rule {
    id: "narrow-axis",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "a value whose rows are so short that their padding takes more than a megabyte",
    why: "rows are padded to 64 bytes, 32 elements of fp16",
    fix: "put the longest axis last",
    source: "apple/ml-ane-transformers (`the last axis is not packed`); apple/coreai-models neural_engine_rules.md",
    check: Check::Function(check),
};

const ROW_BYTES: u64 = 64;
const LEAST_WASTE: u64 = 1 << 20;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        if let Some(ty) = view.result(operation).filter(|ty| !is_index(ty) && waste(ty) > LEAST_WASTE) {
            sink.operation(view, operation, format!("`{}` with rows shorter than 64 bytes", operation.op_name()), ty.to_string());
        }
    }
}

/// Bytes of padding; a last axis of one element is another rule's.
fn waste(ty: &TensorType) -> u64 {
    let Some(row) = ty.shape.last().and_then(|dim| dim.fixed()).filter(|row| *row > 1) else { return 0 };
    let bytes = row as u64 * ty.dtype.bits() as u64 / 8;
    let rows = elements(ty).unwrap_or(0) as u64 / row as u64;
    if bytes >= ROW_BYTES { 0 } else { rows.saturating_mul(ROW_BYTES - bytes) }
}
