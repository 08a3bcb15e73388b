//! `state-size`: states whose last axes are no multiples of 32.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "state-size",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "a state whose last or last but one axis (head dimension, context) is no multiple of 32",
    why: "the Neural Engine refuses the state at its first use, on some systems with a crash; 256 works where 270 does not",
    fix: "round the context up, and pad the heads to a multiple of 32 elements",
    source: "apple/coremltools#2631; Anemll#28",
    check: Check::Function(check),
};

const MULTIPLE: usize = 32;
const LEAST: usize = 8;

fn check(view: &View, sink: &mut Sink) {
    for input in &view.function.inputs {
        let quince_mil::ValueType::State(ty) = view.function.ty(input.var) else { continue };
        let Some(dims) = ty.dims() else { continue };
        // Of [B, C, 1, S] these are the channels and the context.
        let last = match dims[..] {
            [_, channels, 1, context] => [context, channels],
            [.., before, last] => [last, before],
            _ => continue,
        };
        let wrong = last.into_iter().find(|size| !fills_rows(*size));
        if let Some(size) = wrong {
            sink.feature(view, input.var, "state", format!("an axis of {size}, no multiple of {MULTIPLE}"), ty.to_string());
        }
    }
}

/// Whether rows of this size lie without gaps: multiples of 32, and what divides it, as the heads of small models do.
fn fills_rows(size: usize) -> bool {
    size.is_multiple_of(MULTIPLE) && size > 0 || size >= LEAST && MULTIPLE.is_multiple_of(size)
}
