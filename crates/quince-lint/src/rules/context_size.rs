//! `context-size`: a long context that every token pays for.

use crate::rule::{Check, Sink};
use crate::view::{PackageView, View};
use crate::{Rule, Scope, Severity};
use quince_mil::ValueType;
use std::collections::BTreeSet;

pub(super) static RULE: Rule = Rule {
    id: "context-size",
    severity: Severity::Warning,
    scope: Scope::NeuralEngine,
    what: "a cache with room for more than 2048 tokens and no shorter one beside it",
    why: "attention goes over all that is allocated, used or not: one model of 1.7B gave 24 tokens/s at 1024, 9.4 at 2048 and \
          4.9 at 4096",
    fix: "offer several lengths as functions that share the weights (--context 512,1024,4096)",
    source: "measured on one 1.7B model, Anemll; john-rocky/CoreML-LLM",
    check: Check::Package(check),
};

const LONG: usize = 2048;

fn check(whole: &PackageView, sink: &mut Sink) {
    let contexts: BTreeSet<usize> = whole.functions.iter().filter_map(context).collect();
    if let Some(shortest) = contexts.first().filter(|n| **n > LONG) {
        sink.whole(format!("a cache for {shortest} tokens"));
    }
}

/// Tokens that the caches of a function have room for: the longest of their last two axes.
fn context(view: &View) -> Option<usize> {
    let caches = view.function.inputs.iter().filter_map(|input| match view.function.ty(input.var) {
        ValueType::State(ty) => Some(ty),
        ValueType::Tensor(ty) if ty.shape.len() >= 4 && view.name(input.var).contains("cache") => Some(ty),
        _ => None,
    });
    caches.filter_map(|ty| ty.dims()).filter(|dims| dims.len() >= 3).filter_map(|dims| dims.iter().rev().take(2).max().copied()).max()
}
