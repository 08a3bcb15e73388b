//! Removes operations that nothing uses.

use super::is_pure;
use crate::{Block, Function, Var};
use std::collections::HashSet;

/// Removes operations whose results nothing uses and that have no other effect, constants among them.
///
/// ```text
/// fp32 two = const()[val = fp32(0x1p+1)];
/// tensor<fp32, [2]> unused = mul(x = x, y = two);
/// tensor<fp32, [2]> y = silu(x = x);
/// ```
/// becomes
/// ```text
/// tensor<fp32, [2]> y = silu(x = x);
/// ```
pub fn dead_code(function: &mut Function) -> bool {
    sweep(&mut function.block, &mut HashSet::new())
}

/// Goes through a block backwards; `used` gains what it uses.
fn sweep(block: &mut Block, used: &mut HashSet<Var>) -> bool {
    used.extend(&block.outputs);
    let (mut kept, mut changed) = (Vec::with_capacity(block.operations.len()), false);
    for mut operation in std::mem::take(&mut block.operations).into_iter().rev() {
        if is_pure(&operation) && !operation.outputs.iter().any(|var| used.contains(var)) {
            changed = true;
            continue;
        }
        for inner in &mut operation.blocks {
            changed |= sweep(inner, used);
        }
        used.extend(operation.used_vars());
        kept.push(operation);
    }
    kept.reverse();
    block.operations = kept;
    changed
}

#[cfg(test)]
mod tests {
    use super::super::tests::{function, ops, values};
    use super::*;

    #[test]
    fn what_nothing_uses_goes_and_effects_stay() {
        let mut function = function(|b, x| {
            let two = b.constant("two", 2f32.into());
            let unused = b.op("mul", "unused", &[("x", x.into()), ("y", two.into())])?;
            b.op("sin", "also_unused", &[("x", unused.into())])?;
            Ok(vec![b.op("silu", "y", &[("x", x.into())])?])
        });
        let before = values(&function);
        assert!(dead_code(&mut function));
        assert_eq!((ops(&function), values(&function)), (vec!["silu"], before));
        assert!(!dead_code(&mut function));
        // An operation that is not in the table may have an effect.
        function.block.operations[0].kind = crate::OpKind::from_name("from_the_future");
        function.block.outputs.clear();
        assert!(!dead_code(&mut function));
    }
}
