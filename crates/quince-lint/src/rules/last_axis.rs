//! `last-axis`: values whose last axis has one element.

use crate::rule::{Check, Sink};
use crate::view::{View, elements, is_index};
use crate::{Rule, Scope, Severity};
use quince_mil::{Dim, TensorType};
use quince_mlpackage::PART_KEY;

pub(super) static RULE: Rule = Rule {
    id: "last-axis",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "a value of many elements whose last axis has one",
    why: "rows are padded to 64 bytes: with one fp16 element in each, a value takes 32 times its memory and bandwidth",
    fix: "put the longest axis last: (B, C, 1, S), and rows of 32 elements or more",
    source: "apple/ml-ane-transformers (`the last axis is not packed`); apple/coreai-models neural_engine_rules.md",
    check: Check::Function(check),
};

/// Fewer elements than this are statistics of rows, not activations; padded they take 16 kB.
const LEAST: usize = 257;

fn check(view: &View, sink: &mut Sink) {
    let one_token = takes_one_token(view);
    let is_single = |ty: &TensorType| is_single(ty) && !(one_token && is_vector(ty));
    for input in &view.function.inputs {
        if let Some(ty) = view.function.ty(input.var).as_tensor().filter(|ty| is_single(ty)) {
            sink.feature(view, input.var, "input", "a last axis of one element", ty.to_string());
        }
    }
    for operation in view.computing() {
        if let Some(ty) = view.result(operation).filter(|ty| is_single(ty)) {
            // Shapes that only pass through are the fault of who made them.
            sink.operation(view, operation, format!("`{}` with a last axis of one element", operation.op_name()), ty.to_string());
        }
    }
}

/// Whether the function takes one token, by its number, or as a part of a model by its channels [1, C, 1, 1]: they then have
/// nothing to lie beside, and their padding is small.
fn takes_one_token(view: &View) -> bool {
    let is_part = view.package.metadata.user_defined.contains_key(PART_KEY);
    view.function.inputs.iter().filter_map(|input| view.function.ty(input.var).as_tensor()).any(|ty| {
        let number = is_index(ty) && elements(ty) == Some(1);
        number || (is_part && is_channels(ty))
    })
}

/// Whether a value is the channels of one token.
fn is_channels(ty: &TensorType) -> bool {
    matches!(ty.shape[..], [Dim::Fixed(1), Dim::Fixed(_), Dim::Fixed(1), Dim::Fixed(1)]) && !is_index(ty)
}

/// Whether all elements lie along one axis.
fn is_vector(ty: &TensorType) -> bool {
    ty.shape.iter().filter(|dim| **dim != Dim::Fixed(1)).count() <= 1
}

fn is_single(ty: &TensorType) -> bool {
    !is_index(ty) && ty.shape.len() > 1 && ty.shape.last() == Some(&Dim::Fixed(1)) && elements(ty).is_some_and(|n| n >= LEAST)
}
