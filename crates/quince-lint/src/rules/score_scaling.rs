//! `score-scaling`: attention scores that are scaled after the product.

use crate::rule::{Check, Sink};
use crate::view::{View, elements};
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, Operation, Var};

pub(super) static RULE: Rule = Rule {
    id: "score-scaling",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "a product of queries and keys in fp16 that is divided by √d afterwards",
    why: "the product is √d times larger than what is wanted, and infinite where the scaled one would have fitted: 65504 is \
          all that fp16 has",
    fix: "multiply the queries or the keys by 1/√d before the product, or fold the factor into their weights",
    source: "apple/ml-ane-transformers and apple/coreai-models neural_engine_rules.md scale before the product",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    for product in view.named("matmul") {
        let computed = |param: &str| product.arg(param).is_some_and(|arg| !view.is_constant(arg));
        let half = view.result(product).is_some_and(|ty| ty.dtype == DType::F16 && elements(ty) != Some(1));
        if !half || !computed("x") || !computed("y") {
            continue;
        }
        for user in users_of_scores(view, product) {
            if scales_down(view, user) && reaches_softmax(view, user) {
                sink.operation(view, user, "scores that are scaled after the product", "");
            }
        }
    }
}

/// What uses the scores, moved or with a mask or not.
fn users_of_scores<'a>(view: &View<'a>, product: &Operation) -> Vec<&'a Operation> {
    let (mut open, mut found): (Vec<Var>, Vec<&Operation>) = (product.outputs.clone(), Vec::new());
    while let Some(var) = open.pop().filter(|_| found.len() < 64) {
        for user in view.users(var) {
            if user.op_name() == "add" || super::LAYOUT_OR_CAST.contains(&user.op_name()) {
                open.extend(user.outputs.first());
            }
            found.push(user);
        }
    }
    found
}

fn scales_down(view: &View, operation: &Operation) -> bool {
    let constant = |param: &str| view.number(operation, param);
    match operation.op_name() {
        "mul" => constant("x").or(constant("y")).is_some_and(|scale| scale.abs() < 1.0),
        "real_div" => constant("y").is_some_and(|scale| scale.abs() > 1.0),
        _ => false,
    }
}

/// Whether a softmax follows, with nothing but a mask between; a soft cap (tanh) scales after the product by its nature.
fn reaches_softmax(view: &View, operation: &Operation) -> bool {
    let mut open = operation.outputs.first().map_or(Vec::new(), |var| view.users(*var).to_vec());
    for _ in 0..16 {
        let Some(user) = open.pop() else { return false };
        match user.op_name() {
            "softmax" => return true,
            "add" | "select" | "reshape" | "transpose" | "cast" | "maximum" => {
                open.extend(user.outputs.first().map_or(&[][..], |var| view.users(*var)));
            }
            _ => {}
        }
    }
    false
}
