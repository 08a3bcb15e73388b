//! `layer_norm` of a sum: the residual of a block, or the embeddings of token, position and type. The sum is never
//! written down.

use super::Fused;
use crate::planner::Planner;
use crate::steps::emit_layer_norm;
use quince_mil::{Operation, Var};

/// The most terms of a sum.
const TERMS: usize = 4;

pub(super) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    if operation.op_name() != "layer_norm" {
        return None;
    }
    let x = operation.var("x")?;
    let shape = planner.shape(x).ok()?;
    let axes = planner.ints(operation, "axes")?;
    if axes != [-1] && axes != [shape.len() as i64 - 1] || shape.contains(&0) {
        return None;
    }
    let mut terms = Vec::new();
    sum_of(planner, x, &shape, &mut terms);
    if !(2..=TERMS).contains(&terms.len()) {
        return None;
    }
    let mut inputs = terms.clone();
    inputs.extend(["gamma", "beta"].into_iter().filter_map(|param| operation.var(param)));
    Some(Fused {
        inputs,
        emit: Box::new(move |planner, operation| emit_layer_norm(planner, operation, &terms).map(|_| ())),
    })
}

/// The terms of a sum that nothing else wants, from the left; one that is no such sum is its own only term.
fn sum_of(planner: &Planner, var: Var, shape: &[usize], terms: &mut Vec<Var>) {
    let sides = |operation: &Operation| {
        let sides = [operation.var("x")?, operation.var("y")?];
        sides.iter().all(|&side| planner.shape(side).is_ok_and(|own| repeats_rows(&own, shape))).then_some(sides)
    };
    // Only what has the shape of the sum is taken apart: a smaller sum is cheaper by itself.
    let whole = planner.shape(var).is_ok_and(|own| own == shape) && planner.used_once(var);
    match planner.producer_of(var, &["add"]).filter(|_| whole).and_then(sides) {
        Some(sides) => sides.into_iter().for_each(|side| sum_of(planner, side, shape, terms)),
        None => terms.push(var),
    }
}

/// Whether a shape is that of the whole or of its last rows, which repeat.
fn repeats_rows(own: &[usize], whole: &[usize]) -> bool {
    let missing = whole.len().saturating_sub(own.len());
    let first = own.iter().position(|&n| n != 1).unwrap_or(own.len());
    own.len() <= whole.len() && own.last() == whole.last() && own[first..] == whole[missing + first..]
}
