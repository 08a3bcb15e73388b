//! `mul(silu(gate), up)`: the middle of a gated MLP.

use super::Fused;
use crate::planner::Planner;
use crate::steps::emit_gate;
use quince_mil::{Operation, Var};

pub(super) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    if operation.op_name() != "mul" {
        return None;
    }
    let silu = |var: Var| {
        if let Some(silu) = planner.producer_of(var, &["silu"]) {
            return silu.var("x");
        }
        // Written out: x · sigmoid(x).
        let product = planner.producer_of(var, &["mul"])?;
        let sigmoid = |var: Var| planner.producer_of(var, &["sigmoid"])?.var("x");
        let (gate, x) = planner.either(product, sigmoid)?;
        (planner.uncast(gate) == planner.uncast(x)).then_some(x)
    };
    let (gate, up) = planner.either(operation, silu)?;
    if planner.constant(up).is_some() || planner.shape(gate).ok()? != planner.shape(up).ok()? {
        return None;
    }
    Some(Fused {
        inputs: vec![gate, up],
        emit: Box::new(move |planner, operation| emit_gate(planner, operation, gate, up)),
    })
}
