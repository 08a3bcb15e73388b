//! `linear-layer`: layers as `linear` or `matmul` where the Neural Engine wants a 1×1 convolution.

use crate::rule::{Check, Sink};
use crate::view::{View, elements};
use crate::{Rule, Scope, Severity};
use quince_mil::{Dim, TensorType};

pub(super) static RULE: Rule = Rule {
    id: "linear-layer",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "`linear`, or `matmul` with a weight, on (B, S, D) values",
    why: "the Neural Engine is made for (B, C, 1, S) and convolutions; linear layers are turned into them with transposes \
          around each, and large ones stay behind",
    fix: "convert with --compute-units cpuAndNeuralEngine; elsewhere: conv with a weight [O, I, 1, 1]",
    source: "apple/ml-ane-transformers; apple/coreai-models neural_engine_rules.md",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for operation in view.named("linear").chain(view.named("matmul")) {
        // A table of frequencies times positions is a matmul too.
        let large = |arg| view.arg_type(arg).is_some_and(|ty| is_matrix(&ty) && elements(&ty) >= Some(1024));
        let weight = ["weight", "x", "y"].iter().filter_map(|param| operation.arg(param)).find(|arg| view.is_constant(arg));
        if weight.is_some_and(large) && super::lm_head::is_layer(view, operation) {
            let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
            sink.operation(view, operation, format!("a layer as `{}`", operation.op_name()), detail);
        }
    }
}

/// Whether it is one matrix; products with several at once, as of experts, are no convolution.
fn is_matrix(ty: &TensorType) -> bool {
    ty.shape.iter().rev().skip(2).all(|dim| *dim == Dim::Fixed(1))
}
