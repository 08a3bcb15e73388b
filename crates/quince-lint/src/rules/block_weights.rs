//! `block-weights`: weights with scales for blocks.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Operation, TensorType};

pub(super) static RULE: Rule = Rule {
    id: "block-weights",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "weights that are quantized with a scale for each block of a channel, as int4 usually is",
    why: "the form is for the GPU: on the Neural Engine it is refused, or gives wrong numbers",
    fix: "palettize instead (--wbits 4 --palett-group-size 16), or quantize to int8 per channel",
    source: "apple/coreai-models neural_engine_rules.md; docs-guides/source/opt-quantization-overview.html",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.operations.iter() {
        let data = match operation.op_name() {
            "constexpr_blockwise_shift_scale" => "data",
            "constexpr_sparse_blockwise_shift_scale" => "nonzero_data",
            _ => continue,
        };
        // A lookup table of int8 has a scale; it is no weight with blocks.
        let users = operation.outputs.first().map_or(&[][..], |var| view.users(*var));
        if users.iter().any(|user| user.var("lut").is_some() && user.var("lut") == operation.outputs.first().copied()) {
            continue;
        }
        let Some(scale) = operation.arg("scale").and_then(|arg| view.arg_type(arg)) else { continue };
        let Some(of) = weight_type(view, operation) else { continue };
        if has_blocks(&scale, of) {
            let dtype = operation.arg(data).and_then(|arg| view.arg_type(arg)).map_or_else(String::new, |ty| ty.dtype.to_string());
            sink.operation(view, operation, format!("{dtype} weights with a scale for each block"), format!("{of}, scales {scale}"));
        }
    }
}

fn weight_type<'a>(view: &View<'a>, operation: &Operation) -> Option<&'a TensorType> {
    operation.outputs.iter().filter_map(|var| view.tensor(*var)).find(|ty| ty.dtype.is_float())
}

/// Whether scales are for less than a whole channel.
fn has_blocks(scale: &TensorType, weight: &TensorType) -> bool {
    let (Some(scale), Some(weight)) = (scale.dims(), weight.dims()) else { return false };
    let mut varying = scale.iter().zip(&weight).filter(|(scale, _)| **scale > 1);
    let inside = varying.clone().any(|(scale, weight)| scale < weight);
    varying.next();
    inside || varying.next().is_some()
}
