//! `state-count`: more than two states.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "state-count",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "three or more states in one function",
    why: "predictions fail with error -14 on some systems; one or two states work",
    fix: "pack keys and values of all layers into one state, [2·layers, heads, context, head dimension]",
    source: "Anemll (one packed state); apple/coremltools#2553; huggingface/swift-chat#31",
    check: Check::Function(check),
};

/// How many are known to work.
const MOST: usize = 2;

fn check(view: &View, sink: &mut Sink) {
    let states = view.function.states().count();
    if states > MOST {
        sink.whole(format!("{states} states in one function"));
    }
}
