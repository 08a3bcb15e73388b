//! `epsilon-underflow`: epsilons that are zero in fp16 and alone keep a result finite.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, DType, Operation};

pub(super) static RULE: Rule = Rule {
    id: "epsilon-underflow",
    severity: Severity::Warning,
    scope: Scope::Accelerators,
    what: "an epsilon below 3e-8 in a norm, root, inverse or logarithm of fp16 values, or one that was rounded to 0",
    why: "the least fp16 number above 0 is 6e-8, and what is below half of it is 0: padding rows of zeros give 0/0 or 1/0, \
          infinite or NaN",
    fix: "use an epsilon of 1e-5 or more with fp16, or scale it with the values (eps/max² after dividing by the maximum)",
    source: "IEEE 754 half precision; MIL's own default of 1e-12 for rsqrt and layer_norm, apple/coremltools ops/defs",
    check: Check::Function(check),
};

/// Half of the least number above 0 of fp16: what is below rounds to 0.
const LEAST: f64 = 2.980_232_238_769_531e-8;

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        if view.result(operation).is_none_or(|ty| ty.dtype != DType::F16) {
            continue;
        }
        let name = operation.op_name();
        match name {
            "rsqrt" | "log" | "inverse" | "layer_norm" | "batch_norm" | "instance_norm" | "l2_norm" => {
                if let Some(epsilon) = view.number(operation, "epsilon").filter(|e| (0.0..LEAST).contains(e))
                    && !is_kept_from_zero(view, operation.var("x"))
                    && !varies_by_itself(view, operation)
                {
                    sink.operation(view, operation, format!("`{name}` with an epsilon that is 0 in fp16"), format!("{epsilon:e}"));
                }
            }
            // An epsilon that a converter rounded: x + 0 under a root or in a denominator.
            "add" => {
                let zero = ["x", "y"].iter().any(|side| {
                    view.number(operation, side).is_some_and(|value| value.abs() < LEAST)
                });
                if zero && is_under_root(view, operation) {
                    sink.operation(view, operation, "an epsilon that is 0 in fp16 under a root or in a denominator", "");
                }
            }
            _ => {}
        }
    }
}

/// Whether a positive number that fp16 has was added before, or the value cannot be below one.
fn is_kept_from_zero(view: &View, var: Option<quince_mil::Var>) -> bool {
    let Some(operation) = var.and_then(|var| view.producer(view.back(var, super::LAYOUT_OR_CAST))) else { return false };
    let least = |param: &str| view.number(operation, param).is_some_and(|value| value >= LEAST);
    match operation.op_name() {
        // `rsqrt` and the others add their own epsilon to this; one that was rounded to 0 is found there.
        "add" | "maximum" => [operation.arg("x"), operation.arg("y")].into_iter().flatten().any(|arg| {
            matches!(arg, Arg::Value(_) | Arg::Var(_)) && view.is_constant(arg) && view.scalar(arg).is_none_or(|v| v.abs() < LEAST || v > 0.0)
        }),
        "clip" => least("alpha"),
        "softmax" | "sigmoid" | "exp" | "softplus" => true,
        _ => false,
    }
}

/// `layer_norm` of concat([x, -x]) has the mean 0 and is 0 only where x is; its epsilon cannot keep more than that.
fn varies_by_itself(view: &View, operation: &Operation) -> bool {
    operation.op_name() == "layer_norm" && view.behind(operation, "x").is_some_and(|op| op.op_name() == "real_div")
}

fn is_under_root(view: &View, operation: &Operation) -> bool {
    let users = operation.outputs.first().map_or(&[][..], |var| view.users(*var));
    users.iter().any(|user| match user.op_name() {
        "sqrt" | "log" => true,
        // Their own epsilon keeps the result finite if fp16 has it.
        "rsqrt" | "inverse" => view.number(user, "epsilon").is_none_or(|epsilon| epsilon < LEAST),
        "real_div" => user.var("y") == operation.outputs.first().copied(),
        "pow" => view.number(user, "y").is_some_and(|power| power < 0.0),
        _ => false,
    })
}
