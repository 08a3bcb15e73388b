//! `non-finite`: constants that are infinite, no number, or too large for fp16.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{Arg, DType, Operation, Tensor, Value};
use std::collections::HashSet;

pub(super) static RULE: Rule = Rule {
    id: "non-finite",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "a constant with elements that are infinite, no number, or beyond 65504, the largest number of fp16",
    why: "fp16 turns -3.4e38 into -inf, and a row of the mask that is all -inf into NaN: softmax subtracts the maximum, and \
          -inf - -inf is no number. One NaN spoils every later token",
    fix: "use -3e4 or -4e4 in masks; `quince lint --fix` does where that gives the same softmax. A weight that is not finite \
          comes from a broken checkpoint or conversion",
    source: "a BERT mask of finfo(f32).min in a package of coremltools 9.0, measured; huggingface/swift-transformers#95",
    check: Check::Function(check),
};

fn check(view: &View, sink: &mut Sink) {
    let mut seen = HashSet::new();
    for operation in &view.operations {
        let own = operation.constant().into_iter().map(|value| (value, None));
        let given = operation.inputs.iter().flat_map(|(param, args)| args.iter().map(move |arg| (param, arg)));
        let given = given.filter_map(|(param, arg)| match arg {
            Arg::Value(value) => Some((value, Some(param.as_str()))),
            Arg::Var(_) => None,
        });
        for (value, param) in own.chain(given) {
            let known = matches!(value, Value::Weight(weight) if !seen.insert(weight.id()));
            if !known && !is_bound(view, operation, param) {
                value_of(view, operation, value, sink);
            }
        }
    }
}

/// Whether a constant only bounds others: `clip` up to infinity is well defined.
fn is_bound(view: &View, operation: &Operation, param: Option<&str>) -> bool {
    let bounds = |operation: &Operation, param: &str| operation.op_name() == "clip" && ["alpha", "beta"].contains(&param);
    match (param, &operation.outputs[..]) {
        (Some(param), _) => bounds(operation, param),
        (None, [var]) => {
            let users = view.users(*var);
            let is_bound = |user: &&Operation| {
                user.inputs.iter().all(|(param, args)| {
                    !args.iter().any(|arg| matches!(arg, Arg::Var(used) if used == var)) || bounds(user, param)
                })
            };
            !users.is_empty() && users.iter().all(is_bound)
        }
        _ => false,
    }
}

fn value_of(view: &View, operation: &Operation, value: &Value, sink: &mut Sink) {
    let Some(ty) = value.tensor_type().filter(|ty| matches!(ty.dtype, DType::F16 | DType::F32)) else { return };
    let Ok(tensor) = value.tensor() else { return };
    let Some((element, worst)) = worst(&tensor) else { return };
    let found = match worst {
        Worst::NotANumber => "a constant with elements that are no number",
        Worst::Infinite => "a constant with infinite elements",
        Worst::TooLarge => "a constant with elements that fp16 makes infinite",
    };
    let severity = match worst {
        // In a program that computes in fp32 they are as they were meant.
        Worst::TooLarge => Severity::Warning,
        _ => Severity::Error,
    };
    sink.operation_as(severity, view, operation, found, format!("{element:e} in {ty}"));
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worst {
    TooLarge,
    Infinite,
    NotANumber,
}

/// The worst of the elements, with it.
fn worst(tensor: &Tensor) -> Option<(f64, Worst)> {
    let judge = |value: f64| {
        let worst = match value {
            v if v.is_nan() => Worst::NotANumber,
            v if v.is_infinite() => Worst::Infinite,
            _ => Worst::TooLarge,
        };
        (value, worst)
    };
    // Blocks are asked without a branch for each element, so that weights of gigabytes are gone through at the speed of
    // the disk.
    let bytes: &[u8] = tensor.bytes();
    let found = match tensor.dtype() {
        DType::F16 => first(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00)
            .map(|b| f64::from(half::f16::from_le_bytes(b))),
        // 65520 is the least that rounds to infinity.
        DType::F32 => first(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7fff_ffff >= 65520f32.to_bits())
            .map(|b| f64::from(f32::from_le_bytes(b))),
        _ => None,
    };
    found.map(judge)
}

fn first<const N: usize>(bytes: &[u8], wrong: impl Fn([u8; N]) -> bool) -> Option<[u8; N]> {
    const BLOCK: usize = 1 << 12;
    let (elements, _) = bytes.as_chunks::<N>();
    let block = elements.chunks(BLOCK).find(|block| block.iter().fold(false, |found, bits| found | wrong(*bits)))?;
    block.iter().copied().find(|bits| wrong(*bits))
}
