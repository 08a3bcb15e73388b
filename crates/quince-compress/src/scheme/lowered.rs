//! What a compressed weight is in a program: one operation or a chain of them, over lazy weights.

use quince_mil::{Arg, Function, OpKind, Operation, Result, Value, Var, Weight, verify};
use std::collections::BTreeMap;

/// Operations of which the last gives the weight.
#[derive(Clone, Debug)]
pub(crate) struct Lowered(pub Vec<Step>);

/// An operation of the chain and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub op: &'static str,
    pub inputs: Vec<(&'static str, Input)>,
}

/// What a parameter is.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A constant.
    Value(Value),
    /// A result of an earlier step, both by number.
    Result(usize, usize),
}

impl Step {
    /// A step whose parameters are weights.
    pub fn new(op: &'static str, inputs: impl IntoIterator<Item = (&'static str, Weight)>) -> Step {
        let inputs = inputs.into_iter().map(|(name, weight)| (name, Input::Value(weight.into()))).collect();
        Step { op, inputs }
    }

    /// The step with one more parameter.
    pub fn with(mut self, name: &'static str, input: Input) -> Step {
        self.inputs.push((name, input));
        self
    }
}

impl From<Step> for Lowered {
    fn from(step: Step) -> Lowered {
        Lowered(vec![step])
    }
}

impl Lowered {
    /// The bytes of all constants.
    pub fn byte_len(&self) -> usize {
        let inputs = self.0.iter().flat_map(|step| &step.inputs);
        let bytes = inputs.map(|(_, input)| match input {
            Input::Value(value) => value.weight("").map_or(0, |weight| weight.byte_len()),
            Input::Result(..) => 0,
        });
        bytes.sum()
    }

    /// The operations in place of the constant `old`, in order. Results on the way are new variables of `function`.
    ///
    /// # Errors
    /// When the operations refuse their arguments.
    pub fn operations(self, old: Operation, function: &mut Function) -> Result<Vec<Operation>> {
        let mut operations: Vec<Operation> = Vec::with_capacity(self.0.len());
        let last = self.0.len().saturating_sub(1);
        for (number, step) in self.0.into_iter().enumerate() {
            let arg = |input: Input| match input {
                Input::Value(value) => Some(Arg::Value(value)),
                Input::Result(step, result) => operations.get(step)?.outputs.get(result).copied().map(Arg::Var),
            };
            let inputs = step.inputs.into_iter().filter_map(|(name, input)| Some((name.to_owned(), vec![arg(input)?])));
            let mut operation = Operation {
                kind: OpKind::from_name(step.op),
                name: if number == last { old.name.clone() } else { format!("{}_{number}", old.name) },
                inputs: inputs.collect(),
                outputs: Vec::new(),
                blocks: Vec::new(),
                attributes: BTreeMap::new(),
            };
            operation.outputs = match number == last {
                true => old.outputs.clone(),
                false => results(&operation, function)?,
            };
            operations.push(operation);
        }
        Ok(operations)
    }
}

/// New variables for the results of an operation.
///
/// # Errors
/// When it refuses its arguments.
pub(crate) fn results(operation: &Operation, function: &mut Function) -> Result<Vec<Var>> {
    let types = verify::infer(function, &|_| None, operation).map_err(|e| e.at(operation.place()))?;
    let named = types.into_iter().enumerate().map(|(i, ty)| match i {
        0 => (operation.name.clone(), ty),
        _ => (format!("{}_{i}", operation.name), ty),
    });
    Ok(named.map(|(name, ty)| function.add_var(&name, ty)).collect())
}
