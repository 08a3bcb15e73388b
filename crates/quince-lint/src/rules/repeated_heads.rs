//! `repeated-heads`: keys and values that are copied for each query head.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, Operation, Var};
use std::collections::HashSet;

pub(super) static RULE: Rule = Rule {
    id: "repeated-heads",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "keys or values that are tiled, or joined with themselves, before the product with queries or weights",
    why: "grouped-query attention is there to read the cache once; repeated, it is copied as often as there are query heads to \
          a key head, for every token",
    fix: "reshape the queries to (key heads, group · tokens) and multiply, or loop over key heads",
    source: "apple/coreai-models neural_engine_rules.md; apple/ml-ane-transformers",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    let mut said: HashSet<Var> = HashSet::new();
    for operation in view.computing() {
        let params: &[&str] = match operation.op_name() {
            "matmul" => &["x", "y"],
            "scaled_dot_product_attention" => &["key", "value"],
            "einsum" => &["values"],
            _ => continue,
        };
        for arg in params.iter().flat_map(|param| operation.args(param)) {
            let Arg::Var(var) = arg else { continue };
            let direct = view.producer(view.back(*var, super::LAYOUT_OR_CAST)).filter(|origin| repeats(view, origin));
            let Some(origin) = direct.or_else(|| tiled(view, *var)) else { continue };
            if origin.outputs.first().is_some_and(|var| said.insert(*var)) {
                let detail = view.result(origin).map_or_else(String::new, ToString::to_string);
                sink.operation(view, origin, format!("heads repeated by `{}`", origin.op_name()), detail);
            }
        }
    }
}

/// The `tile` that a value comes from, where only products and sums with others are between.
fn tiled<'a>(view: &View<'a>, var: Var) -> Option<&'a Operation> {
    const MAX_STEPS: usize = 64;
    let mut open = vec![var];
    for _ in 0..MAX_STEPS {
        let operation = match open.pop() {
            Some(var) => view.producer(var),
            None => return None,
        };
        let Some(operation) = operation else { continue };
        match operation.op_name() {
            "tile" if repeats(view, operation) => return Some(operation),
            "mul" | "add" | "sub" => open.extend(operation.used_vars()),
            name if super::LAYOUT_OR_CAST.contains(&name) => open.extend(operation.used_vars().next()),
            _ => {}
        }
    }
    None
}

/// Whether the operation gives some of its elements more than once.
fn repeats(view: &View, operation: &Operation) -> bool {
    let computed = operation.used_vars().next().is_some_and(|var| !view.is_constant(&Arg::Var(var)));
    let repeated = match operation.op_name() {
        "tile" => view.integers(operation, "reps").is_none_or(|reps| reps.iter().any(|n| *n > 1)),
        "concat" | "stack" => {
            let vars: Vec<Var> = operation.used_vars().collect();
            let mut seen = HashSet::new();
            vars.iter().any(|var| !view.is_constant(&Arg::Var(*var)) && !seen.insert(view.back(*var, &["identity", "expand_dims"])))
        }
        "upsample_nearest_neighbor" | "resize_nearest_neighbor" => true,
        "gather" => view.integers(operation, "indices").is_some_and(|indices| {
            let mut seen = HashSet::new();
            !indices.iter().all(|index| seen.insert(*index))
        }),
        // A product with ones of a larger shape, as `expand` is converted to.
        "mul" | "add" => {
            let expands = |param: &str, value: f64| {
                let other = if param == "x" { "y" } else { "x" };
                let larger = operation.arg(other).and_then(|arg| view.arg_type(arg)).zip(view.result(operation).cloned());
                view.number(operation, param) == Some(value) && larger.is_some_and(|(from, to)| from.shape != to.shape)
            };
            let neutral = if operation.op_name() == "mul" { 1.0 } else { 0.0 };
            expands("x", neutral) || expands("y", neutral)
        }
        _ => false,
    };
    computed && repeated
}
