//! Operations that are done together. A matcher looks at the last operation of a pattern and names what goes in; what
//! lies between is then not computed, unless something else wants it. Precision casts are looked through, since the
//! engine keeps floating point in `f32`.

mod attention;
mod gate;
mod layer_norm;
mod matrices;
mod rms_norm;
mod rotary;
#[cfg(test)]
mod tests;

use crate::planner::Planner;
use quince_mil::{Operation, Result, Tensor, Var};

/// A pattern that was found.
pub(crate) struct Fused {
    /// The variables that go in.
    pub inputs: Vec<Var>,
    /// Appends the step that does it.
    pub emit: Box<EmitFused>,
}

/// Appends the step of a pattern whose last operation is given.
pub(crate) type EmitFused = dyn FnOnce(&mut Planner, &Operation) -> Result<()>;

/// The matchers, in the order they are tried.
const MATCHERS: &[fn(&Planner, &Operation) -> Option<Fused>] =
    &[attention::find, layer_norm::find, rms_norm::find, gate::find, rotary::find, matrices::find];

/// The pattern that ends with this operation.
pub(crate) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    MATCHERS.iter().find_map(|find| find(planner, operation))
}

impl<'a> Planner<'a> {
    /// The variable before casts between floating-point types.
    pub(crate) fn uncast(&self, mut var: Var) -> Var {
        while let Some(producer) = self.defs.producer(var)
            && matches!(producer.op_name(), "cast" | "identity")
            && let Some(x) = producer.var("x")
            && self.dtype(x).is_ok_and(|t| t.is_float())
            && self.dtype(var).is_ok_and(|t| t.is_float())
        {
            var = x;
        }
        var
    }

    /// The operation that computes a variable, casts left out, if it is one of these.
    pub(crate) fn producer_of(&self, var: Var, names: &[&str]) -> Option<&'a Operation> {
        let producer = self.defs.producer(self.uncast(var))?;
        names.contains(&producer.op_name()).then_some(producer)
    }

    /// Whether a variable that is computed is wanted by one operation only, and by nobody outside. Operations whose
    /// results are known beforehand, such as `shape`, want nothing.
    pub(crate) fn used_once(&self, var: Var) -> bool {
        let wants = |index: &&usize| {
            let outputs = &self.function.block.operations[**index].outputs;
            outputs.is_empty() || outputs.iter().any(|&out| self.constant(out).is_none())
        };
        self.constant(var).is_none()
            && self.defs.users(var).iter().filter(wants).count() == 1
            && !self.defs.is_output(var)
    }

    /// Both arguments of a commutative operation, in either order: the one that `first` accepts with what it gives,
    /// and the other.
    pub(crate) fn either<T>(&self, operation: &Operation, first: impl Fn(Var) -> Option<T>) -> Option<(T, Var)> {
        let (x, y) = (operation.var("x")?, operation.var("y")?);
        first(x).map(|found| (found, y)).or_else(|| first(y).map(|found| (found, x)))
    }

    /// The constant tensor of a variable, casts left out.
    pub(crate) fn constant_tensor(&self, var: Var) -> Option<Tensor> {
        self.tensor(self.constant(self.uncast(var)).or_else(|| self.constant(var))?).ok()
    }

    /// The number of a commutative operation whose other argument is computed, with that argument: `x + 1e-5`.
    pub(crate) fn number_and_other(&self, operation: &Operation) -> Option<(f64, Var)> {
        for (constant, other) in [("x", "y"), ("y", "x")] {
            if let (Some(number), Some(var)) = (self.number(operation, constant), operation.var(other))
                && self.constant(var).is_none()
            {
                return Some((number, var));
            }
        }
        None
    }
}
