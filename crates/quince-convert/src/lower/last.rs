//! Which values of a semantic program are needed for the last token only, when only that has logits.
//!
//! Prefilling then computes the last layer's projection, feed-forward block and the norms after it for one token instead
//! of a whole chunk, whatever the architecture.

use quince_mil::{Function, Value, Var};
use std::collections::{HashMap, HashSet};

/// Operations that treat each token alone, tokens being the second axis of what they compute with.
const TOKENWISE: &[&str] =
    &["add", "experts", "gelu", "layer_norm", "linear", "logits", "mul", "relu", "rms_norm", "silu", "tanh"];

/// The variables that are computed token by token and used for nothing but such ones and the logits.
pub(super) fn only_last(main: &Function, constants: &HashMap<Var, &Value>) -> HashSet<Var> {
    let mut found: HashSet<Var> = main.block.outputs.iter().copied().collect();
    let mut used_otherwise: HashSet<Var> = HashSet::new();
    // Users come after what they use, so one walk from the end knows all users of a variable when it comes to it.
    let mut used: HashSet<Var> = found.clone();
    for operation in main.block.operations.iter().rev() {
        let [output] = operation.outputs[..] else { continue };
        let alone = TOKENWISE.contains(&operation.op_name())
            && used.contains(&output)
            && !used_otherwise.contains(&output)
            && !constants.contains_key(&output);
        if alone {
            found.insert(output);
        } else {
            found.remove(&output);
        }
        for var in operation.used_vars() {
            used.insert(var);
            if !alone {
                used_otherwise.insert(var);
            }
        }
    }
    found
}
