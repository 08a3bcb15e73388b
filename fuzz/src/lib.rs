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

use quince_engine::{Engine, Limits, Options, Tensors};
use quince_mil::{Flexibility, Function, Program, Tensor, ValueType};

/// What programs may take: more would be slow, not wrong.
const LIMITS: Limits =
    Limits { iterations: 1 << 10, value_bytes: 1 << 18, call_bytes: 1 << 22, folded_elements: 1 << 18 };

/// Runs each function of a program that verifies once, on zeros, with what its declarations say of shapes. Errors are
/// fine; results must have the types that are declared.
pub fn run(program: Program) {
    let options = Options { threads: 1, limits: LIMITS, ..Options::default() };
    let Ok(engine) = Engine::load(program, options) else { return };
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
        LIMITS.check_value(&ValueType::tensor(ty.dtype, &shape)).ok()?;
        inputs.insert(info.name.clone(), Tensor::zeros(ty.dtype, shape).ok()?);
    }
    Some(inputs)
}
