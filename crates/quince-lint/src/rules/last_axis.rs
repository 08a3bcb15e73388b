//! `last-axis`: values whose last axis has one element.

use crate::rule::{Check, Sink};
use crate::view::{View, elements, is_index};
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, Dim, Operation, TensorType};
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
    let is_single = |ty: &TensorType| is_single(ty) && !(one_token && (is_vector(ty) || elements(ty) <= Some(FEW)));
    for input in &view.function.inputs {
        if let Some(ty) = view.function.ty(input.var).as_tensor().filter(|ty| is_single(ty)) {
            sink.feature(view, input.var, "input", "a last axis of one element", ty.to_string());
        }
    }
    for operation in view.computing() {
        if let Some(ty) = view.result(operation).filter(|ty| is_single(ty) && is_at_fault(view, operation, ty)) {
            // Shapes that only pass through are the fault of who made them.
            sink.operation(view, operation, format!("`{}` with a last axis of one element", operation.op_name()), ty.to_string());
        }
    }
}

/// Elements of one token, split into heads or not, whose padding is small.
const FEW: usize = 1 << 14;

/// Whether another form was possible: not for what is made of constants before the model runs, and not for what pooling left
/// of an image or a text.
fn is_at_fault(view: &View, operation: &Operation, ty: &TensorType) -> bool {
    let Some(var) = operation.outputs.first() else { return false };
    let pools = |op: &Operation| {
        let name = op.op_name();
        let reduces = matches!(name, "reduce_mean" | "reduce_sum" | "reduce_max" | "avg_pool" | "max_pool");
        let from = op.var("x").and_then(|x| view.tensor(x));
        reduces && view.result(op).is_some_and(is_channels) && from.is_some_and(|ty| !is_single(ty))
    };
    let pooled = || is_channels(ty) && view.comes_from(*var, &pools, &|op| view.result(op).is_some_and(is_channels));
    !view.is_constant(&Arg::Var(*var)) && !pooled()
}

/// Whether the function takes one token: by its number, or by its channels [1, C, 1, 1], as a part of a model or beside a cache
/// of earlier ones. They then have nothing to lie beside, and their padding is small.
fn takes_one_token(view: &View) -> bool {
    let inputs = || view.function.inputs.iter().filter_map(|input| view.function.ty(input.var).as_tensor());
    let is_cache = |ty: &TensorType| ty.shape.len() >= 3 && !is_index(ty) && !is_single(ty);
    let is_step = view.package.metadata.user_defined.contains_key(PART_KEY)
        || view.function.states().next().is_some()
        || inputs().any(is_cache);
    inputs().any(|ty| is_index(ty) && elements(ty) == Some(1) || is_step && is_channels(ty))
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
