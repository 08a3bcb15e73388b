//! What targets share: running a program that a file made, and making programs, which is done as the tests of the engine
//! do it.

#[path = "../../crates/quince-engine/tests/programs/agree.rs"]
pub mod agree;
#[path = "../../crates/quince-engine/tests/programs/choices.rs"]
pub mod choices;
#[path = "../../crates/quince-engine/tests/programs/constants.rs"]
pub mod constants;
#[path = "../../crates/quince-engine/tests/programs/generate.rs"]
pub mod generate;
#[path = "../../crates/quince-engine/tests/programs/recipes.rs"]
pub mod recipes;

use quince_engine::{Engine, Options, Tensors};
use quince_mil::{Flexibility, Function, Program, Tensor, ValueType};

/// Programs whose declared sizes come to more elements than this are not run: they are slow, not wrong.
const MOST_ELEMENTS: usize = 1 << 20;

/// Runs each function of a program that verifies once, on zeros, with what its declarations say of shapes. Errors are
/// fine; results must have the types that are declared.
pub fn run(program: Program) {
    if program.functions.iter().any(|function| declared(function) > MOST_ELEMENTS) {
        return;
    }
    let Ok(engine) = Engine::load(program, Options { threads: 1, ..Default::default() }) else { return };
    for function in &engine.program().functions {
        let (Some(inputs), Ok(mut state)) = (zeros(function), engine.new_state()) else { continue };
        let Ok(results) = engine.predict(&function.name, &inputs, &mut state) else { continue };
        for var in &function.block.outputs {
            let info = function.var(*var);
            let found = &results[&info.name];
            let fits = info.ty.as_tensor().is_some_and(|ty| {
                ty.dtype == found.dtype()
                    && ty.shape.len() == found.rank()
                    && ty.shape.iter().zip(found.shape()).all(|(dim, &n)| dim.fits(n.into()))
            });
            assert!(fits, "`{}` is declared {}, found {found:?}", info.name, info.ty);
        }
    }
}

fn declared(function: &Function) -> usize {
    let elements = |ty: &ValueType| {
        let fixed = ty.as_tensor().into_iter().flat_map(|ty| &ty.shape).filter_map(|dim| dim.fixed());
        fixed.fold(1usize, |n, dim| n.saturating_mul(dim.max(1)))
    };
    function.vars.iter().fold(0, |n, var| n.saturating_add(elements(&var.ty)))
}

fn zeros(function: &Function) -> Option<Tensors> {
    let mut inputs = Tensors::new();
    for input in &function.inputs {
        let info = function.var(input.var);
        let ValueType::Tensor(ty) = &info.ty else { continue };
        let shape = match &input.flexibility {
            Flexibility::Fixed => ty.dims(),
            Flexibility::Range { default, .. } => Some(default.clone()),
            Flexibility::Enumerated(shapes) => shapes.first().cloned(),
        }?;
        let elements = shape.iter().fold(1usize, |n, &dim| n.saturating_mul(dim.max(1)));
        if elements > MOST_ELEMENTS {
            return None;
        }
        inputs.insert(info.name.clone(), Tensor::zeros(ty.dtype, shape).ok()?);
    }
    Some(inputs)
}
