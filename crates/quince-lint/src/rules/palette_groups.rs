//! `palette-groups`: lookup tables for groups of channels that the hardware has no form for.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::Operation;

pub(super) static RULE: Rule = Rule {
    id: "palette-groups",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "palettized weights whose groups are not of 8, 16, 32 or 64 channels, or along two axes",
    why: "the Neural Engine looks up groups of those sizes; others are unpacked to fp16 when the model is loaded, or \
          refused",
    fix: "palettize with --palett-group-size 8, 16, 32 or 64, or with one table for the tensor",
    source: "apple/coreai-models neural_engine_rules.md (8 to 32); docs-guides/source/opt-palettization-overview.html",
    check: Check::Function(check),
};

const SIZES: &[usize] = &[8, 16, 32, 64];

fn check(view: &View, sink: &mut Sink) {
    for operation in view.operations.iter() {
        let indices = match operation.op_name() {
            "constexpr_lut_to_dense" => "indices",
            "constexpr_lut_to_sparse" => "indices_mask",
            _ => continue,
        };
        // Tables of one channel with scales of their own are another rule's.
        let scaled = view.behind(operation, "lut").is_some_and(|op| super::table_scale::scales_table(view, op));
        if scaled {
            continue;
        }
        match groups(view, operation, indices) {
            Some(Groups::Size(size)) if !SIZES.contains(&size) => {
                let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
                sink.operation(view, operation, format!("a lookup table for each group of {size}"), detail);
            }
            Some(Groups::SeveralAxes) => {
                let detail = view.result(operation).map_or_else(String::new, ToString::to_string);
                sink.operation(view, operation, "lookup tables for blocks of two axes", detail);
            }
            _ => {}
        }
    }
}

enum Groups {
    Size(usize),
    SeveralAxes,
}

/// How many channels share a table; none if all do.
fn groups(view: &View, operation: &Operation, indices: &str) -> Option<Groups> {
    let indices = view.arg_type(operation.arg(indices)?)?.dims()?;
    let table = view.arg_type(operation.arg("lut")?)?.dims()?;
    // Older forms have one table, as a vector.
    if table.len() != indices.len() + 2 {
        return None;
    }
    let mut several = table.iter().zip(&indices).filter(|(groups, _)| **groups > 1);
    let (groups, size) = several.next()?;
    if several.next().is_some() {
        return Some(Groups::SeveralAxes);
    }
    Some(Groups::Size(size / groups))
}
