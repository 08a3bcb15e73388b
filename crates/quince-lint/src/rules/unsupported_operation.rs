//! `unsupported-operation`: operations that the Neural Engine has no unit for.

use crate::rule::{Check, Sink};
use crate::view::{View, elements, is_index};
use crate::{Rule, Scope, Severity};
use quince_mil::{Operation, TensorType};

pub(super) static RULE: Rule = Rule {
    id: "unsupported-operation",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "operations that run on the CPU whatever is asked for: recurrent layers, scatter, sorting, one_hot, band_part, \
           random numbers, fp16 remainders and some functions",
    why: "the values are copied to the CPU and back, and the program is cut in two at each of them",
    fix: "compute it beforehand (masks, one-hot rows, ranges as constants), or leave it to the host (sampling, top-k)",
    source: "sbryngelson/ANEForge aneforge/_op_catalog.py (`walled` on M1 to M5); hollance/neural-engine \
             docs/unsupported-layers.md",
    check: Check::Function(check),
};

/// Operations without a unit on any Neural Engine.
const NOWHERE: &[&str] = &[
    "lstm",
    "gru",
    "rnn",
    "scatter",
    "scatter_along_axis",
    "scatter_nd",
    "one_hot",
    "band_part",
    "non_zero",
    "reverse_sequence",
    "sliding_windows",
    "reduce_prod",
    "mod",
    "logical_and",
    "logical_or",
    "logical_xor",
    "random_bernoulli",
    "random_categorical",
    "random_normal",
    "random_uniform",
    "acos",
    "asin",
    "atanh",
    "cosh",
    "sinh",
    "tan",
    "range_1d",
    "shape",
    "non_maximum_suppression",
];

/// Operations that some have, for some sizes.
const RARELY: &[&str] = &["topk", "argsort", "cumsum", "gather_nd", "crop_resize", "resample", "affine"];

/// Operations on so few integers that the CPU does them on the way: positions and sizes.
const FEW: usize = 4096;
/// Choices so few that A14 and later make them, as the table of operations has it.
const FEW_CHOICES: usize = 256;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        let name = operation.op_name();
        if is_bookkeeping(view, operation) {
            continue;
        }
        let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
        if NOWHERE.contains(&name) {
            sink.operation(view, operation, format!("`{name}` runs on the CPU"), detail);
        } else if RARELY.contains(&name) {
            sink.operation(view, operation, format!("`{name}` runs on the CPU on most devices"), detail);
        }
    }
}

/// Whether it computes a few indices, or chooses among few: of experts, not of words.
fn is_bookkeeping(view: &View, operation: &Operation) -> bool {
    let index_math = matches!(
        operation.op_name(),
        "mod" | "logical_and" | "logical_or" | "logical_xor" | "range_1d" | "shape" | "reduce_prod"
    );
    let of = match operation.op_name() {
        "topk" => operation.arg("x").and_then(|arg| view.arg_type(arg)),
        _ => view.result(operation).cloned(),
    };
    let few = |ty: &TensorType| elements(ty).is_none_or(|n| n <= FEW);
    match operation.op_name() {
        "one_hot" => of.is_some_and(|ty| few(&ty)),
        // Counted by what it is chosen from, for one token.
        "topk" => of.is_some_and(|ty| ty.shape.last().and_then(|dim| dim.fixed()).is_some_and(|n| n <= FEW_CHOICES)),
        _ => index_math && of.is_some_and(|ty| is_index(&ty) && few(&ty)),
    }
}
