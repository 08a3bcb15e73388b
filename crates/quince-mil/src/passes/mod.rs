//! Passes over a function: each in its own file, changes the function in place and says whether it did.

mod common_subexpression;
mod dead_code;
mod fold_constants;

pub use common_subexpression::common_subexpression;
pub use dead_code::dead_code;
pub use fold_constants::fold_constants;

use crate::{Block, Error, Function, Operation, Program, Result, bail, verify};

/// A pass over a function.
#[derive(Clone, Copy)]
pub struct Pass {
    /// The name, which is that of its file.
    pub name: &'static str,
    /// Changes the function and says whether it did.
    pub run: fn(&mut Function) -> bool,
}

/// The passes that only make a program smaller, in the order in which they help each other.
pub const CLEANUP: &[Pass] = &[
    Pass { name: "fold_constants", run: fold_constants },
    Pass { name: "common_subexpression", run: common_subexpression },
    Pass { name: "dead_code", run: dead_code },
];

/// Constants and results of more elements than this are left alone: to compute or compare them is not worth the
/// memory.
const MAX_ELEMENTS: usize = 4096;

/// How often the passes may run over a function: far more often than any program needs.
const MAX_ROUNDS: usize = 100;

/// Runs passes over every function until none changes anything. In debug builds the function is verified after each
/// pass that did, if it could be before.
pub fn run(program: &mut Program, passes: &[Pass]) -> Result<bool> {
    let mut changed = false;
    for function in &mut program.functions {
        let verified = cfg!(debug_assertions) && verify::function(function).is_ok();
        let mut rounds = 0;
        while round(function, passes, verified).map_err(|e| e.at(format!("function `{}`", function.name)))? {
            changed = true;
            rounds += 1;
            if rounds == MAX_ROUNDS {
                bail!("the passes still change function `{}` after {MAX_ROUNDS} rounds", function.name);
            }
        }
    }
    Ok(changed)
}

fn round(function: &mut Function, passes: &[Pass], verified: bool) -> Result<bool> {
    let mut changed = false;
    for pass in passes {
        if (pass.run)(function) {
            changed = true;
            if verified {
                verify::function(function).map_err(|e: Error| e.at(format!("after the pass {}", pass.name)))?;
            }
        }
    }
    Ok(changed)
}

/// Whether an operation does nothing but give results. Those that are not in the table may do anything.
fn is_pure(operation: &Operation) -> bool {
    let inside = |block: &Block| block.operations.iter().all(is_pure);
    operation.op().is_ok() && !operation.outputs.is_empty() && operation.blocks.iter().all(inside)
}

/// Whether an operation gives the same whenever it runs on the same arguments.
fn is_repeatable(operation: &Operation) -> bool {
    let name = operation.op_name();
    is_pure(operation) && operation.blocks.is_empty() && name != "read_state" && !name.starts_with("random_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Flexibility, Opset, Tensor, ValueType, Var, eval};

    /// A function of `x` that `build` completes.
    pub fn function(build: impl FnOnce(&mut Builder, Var) -> Result<Vec<Var>>) -> Function {
        let mut builder = Builder::new(Function::new("main", Opset::CoreML8));
        let x = builder.input("x", ValueType::tensor(DType::F32, &[2, 2]), Flexibility::Fixed);
        let outputs = build(&mut builder, x).unwrap();
        builder.finish(outputs)
    }

    /// What the function gives for one `x`.
    pub fn values(function: &Function) -> Vec<Vec<f32>> {
        let x = Tensor::from_vec([2, 2], vec![1f32, -2.0, 3.0, 0.5]).unwrap();
        let inputs = [("x".to_owned(), x)].into_iter().collect();
        let outputs = eval::run(function, &inputs, &mut Default::default()).unwrap();
        outputs.values().map(|tensor| tensor.to_f32().unwrap()).collect()
    }

    /// The names of the operations in order.
    pub fn ops(function: &Function) -> Vec<&str> {
        function.block.operations.iter().map(Operation::op_name).collect()
    }

    #[test]
    fn cleanup_reaches_a_fixpoint_that_verifies() {
        let function = function(|b, x| {
            let one = b.op("add", "one", &[("x", 0.25f32.into()), ("y", 0.75f32.into())])?;
            let two = b.op("add", "two", &[("x", one.into()), ("y", 1f32.into())])?;
            let also_two = b.op("mul", "also_two", &[("x", 2f32.into()), ("y", one.into())])?;
            let a = b.op("mul", "a", &[("x", x.into()), ("y", two.into())])?;
            let b_ = b.op("mul", "b", &[("x", x.into()), ("y", also_two.into())])?;
            Ok(vec![b.op("add", "y", &[("x", a.into()), ("y", b_.into())])?])
        });
        let before = values(&function);
        let mut program = Program { functions: vec![function], ..Program::default() };
        assert!(run(&mut program, CLEANUP).unwrap());
        assert_eq!(ops(&program.functions[0]), ["const", "mul", "add"]);
        assert_eq!(values(&program.functions[0]), before);
        verify::program(&program).unwrap();
        assert!(!run(&mut program, CLEANUP).unwrap());
    }
}
