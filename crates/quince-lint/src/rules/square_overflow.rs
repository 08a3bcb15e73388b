//! `square-overflow`: squares in fp16 that are summed, as plain RMSNorm does.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, DType, Operation, Var};

pub(super) static RULE: Rule = Rule {
    id: "square-overflow",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "squares of activations that are summed in fp16, as RMSNorm and L2 norms do when written plainly",
    why: "x² is infinite where |x| is above 256, and residuals of language models are: the norm then gives 0, the layer \
          nothing. The Neural Engine computes in fp16 whatever the type says",
    fix: "divide by max|x| first (with eps/max² for eps), or take layer_norm of concat([x, -x]) and the first half; quince \
          convert --compute-units cpuAndNeuralEngine writes the norm so",
    source: "apple/coreai-models neural_engine_rules.md; Anemll models/llama_model.py (RMSNorm by layer_norm); \
             huggingface/swift-transformers#95",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        let Some(squared) = squared(view, operation) else { continue };
        if view.tensor(squared).is_none_or(|ty| ty.dtype != DType::F16) || is_bounded(view, squared) {
            continue;
        }
        let found = match operation.op_name() {
            name @ ("reduce_l2_norm" | "reduce_sum_square" | "l2_norm") => format!("`{name}` of activations in fp16"),
            name => format!("`{name}` of activations in fp16, summed"),
        };
        sink.operation(view, operation, found, view.tensor(squared).map_or_else(String::new, ToString::to_string));
    }
}

/// What is squared and summed, if that is what the operation does or begins.
fn squared(view: &View, operation: &Operation) -> Option<Var> {
    match operation.op_name() {
        "reduce_l2_norm" | "reduce_sum_square" | "l2_norm" => operation.var("x"),
        "square" => operation.var("x").filter(|_| is_summed(view, operation)),
        "mul" => operation.var("x").filter(|x| operation.var("y") == Some(*x) && is_summed(view, operation)),
        "pow" => operation.var("x").filter(|_| view.number(operation, "y") == Some(2.0) && is_summed(view, operation)),
        "matmul" => {
            let (x, y) = (operation.var("x")?, operation.var("y")?);
            (view.back(x, super::LAYOUT) == view.back(y, super::LAYOUT) && !view.is_constant(&Arg::Var(x))).then_some(x)
        }
        _ => None,
    }
}

/// Whether the result is summed next, as it is or moved.
fn is_summed(view: &View, operation: &Operation) -> bool {
    let moved = view.becomes(&operation.outputs, &|op| super::LAYOUT.contains(&op.op_name()));
    let sums = |user: &Operation| matches!(user.op_name(), "reduce_mean" | "reduce_sum" | "avg_pool" | "conv" | "matmul");
    view.users_of(&moved).any(sums)
}

/// Whether the values are small whatever the model: divided by their maximum, clipped, scaled down, or what is bounded.
fn is_bounded(view: &View, var: Var) -> bool {
    let Some(operation) = view.producer(view.back(var, super::LAYOUT_OR_CAST)) else { return false };
    let from_max = |arg: Option<&Arg>| match arg {
        Some(Arg::Var(var)) => {
            let is_max = |op: &Operation| matches!(op.op_name(), "reduce_max" | "max_pool" | "reduce_l1_norm" | "reduce_min");
            let passes = |op: &Operation| !matches!(op.op_name(), "conv" | "linear" | "matmul");
            view.comes_from(*var, &is_max, &passes)
        }
        _ => false,
    };
    match operation.op_name() {
        "real_div" => from_max(operation.arg("y")) || view.number(operation, "y").is_some_and(|y| y.abs() >= 16.0),
        "mul" => ["x", "y"].iter().any(|side| {
            from_max(operation.arg(side)) || view.number(operation, side).is_some_and(|scale| scale.abs() <= 0.0625)
        }),
        "layer_norm" | "l2_norm" | "batch_norm" | "instance_norm" | "tanh" | "sigmoid" | "softmax" | "clip" | "sin"
        | "cos" | "erf" | "softsign" | "relu6" => true,
        _ => false,
    }
}
