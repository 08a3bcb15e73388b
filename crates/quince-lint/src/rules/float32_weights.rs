//! `float32-weights`: weights that are stored in fp32.

use crate::rule::{Check, Sink};
use crate::view::{PackageView, is_constant};
use crate::{Rule, Scope, Severity};
use quince_mil::DType;
use std::collections::BTreeMap;

pub(super) static RULE: Rule = Rule {
    id: "float32-weights",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "more than a megabyte of weights that are stored in fp32",
    why: "they take twice the space and the memory, and are rounded to fp16 when the model is loaded on GPU or Neural Engine",
    fix: "convert with --compute-precision float16, or compress them: `quince compress PACKAGE --wbits 8`",
    source: "docs-guides/source/typed-execution.html",
    check: Check::Package(check),
};

const LEAST_BYTES: u64 = 1 << 20;

fn check(whole: &PackageView, sink: &mut Sink) {
    let mut found: BTreeMap<usize, u64> = BTreeMap::new();
    for view in &whole.functions {
        for operation in view.operations.iter().filter(|op| is_constant(op)) {
            if let Some(weight) = operation.constant().and_then(|value| value.weight("")).filter(|w| w.dtype() == DType::F32) {
                found.insert(weight.id(), weight.byte_len() as u64);
            }
        }
    }
    let bytes: u64 = found.values().sum();
    if bytes > LEAST_BYTES {
        sink.whole(format!("{} MB of weights in fp32", bytes / 1_000_000));
    }
}
