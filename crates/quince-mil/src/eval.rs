//! Runs a function plainly: each operation by its own [`crate::Op::eval`], in order, every value kept. This is what a
//! program means; quince-engine does the same fast.

use crate::op::ArgInfo;
use crate::verify::bind;
use crate::{Arg, Args, Block, Error, Function, Limits, Op, Operation, Result, Tensor, Value, ValueType, Var, bail};
use std::collections::BTreeMap;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Runs `function` on inputs by name; states are read from `states` and written there. A state that is not there yet
/// is zeros. The limits are those of [`Limits::default`].
pub fn run(function: &Function, inputs: &Tensors, states: &mut Tensors) -> Result<Tensors> {
    run_observed(function, inputs, states, &Limits::default(), &mut Unobserved)
}

/// Is shown every value of a run: inputs, results of operations, and what loops hand to their blocks.
pub trait Observer {
    /// A value that was just computed; what comes back takes its place.
    fn value(&mut self, seen: &Seen, value: Value) -> Result<Value>;
}

/// Where a value is assigned.
pub struct Seen<'a> {
    /// The variable.
    pub var: Var,
    /// What assigned it; none for an input of the function.
    pub operation: Option<&'a Operation>,
    /// How often each loop around it ran before, the outermost first.
    pub iterations: &'a [usize],
}

struct Unobserved;

impl Observer for Unobserved {
    fn value(&mut self, _: &Seen, value: Value) -> Result<Value> {
        Ok(value)
    }
}

/// [`run`] within other limits, with somebody who looks on.
pub fn run_observed(
    function: &Function,
    inputs: &Tensors,
    states: &mut Tensors,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> Result<Tensors> {
    let values = vec![None; function.vars.len()];
    let mut frame = Frame { function, values, states, limits, iterations: 0, bytes: 0, loops: Vec::new(), observer };
    for input in &function.inputs {
        let info = function.var(input.var);
        match &info.ty {
            ValueType::State(ty) => {
                let Some(shape) = ty.dims() else { bail!("state `{}` has an unknown size", info.name) };
                if !frame.states.contains_key(&info.name) {
                    limits.check_value(&info.ty).map_err(|e| e.at(format!("state `{}`", info.name)))?;
                    frame.states.insert(info.name.clone(), Tensor::zeros(ty.dtype, shape)?);
                }
            }
            expected => {
                let Some(tensor) = inputs.get(&info.name) else { bail!("the input `{}` is missing", info.name) };
                let found: ValueType = ValueType::tensor(tensor.dtype(), tensor.shape());
                if !expected.fits(&found) {
                    bail!("input `{}`: found {found}, expected {expected}", info.name);
                }
                frame.assign(input.var, None, tensor.clone().into())?;
            }
        }
    }
    frame.block(&function.block)?;
    let output = |var: &Var| {
        let (info, tensor) = (function.var(*var), frame.get(*var)?.tensor()?);
        let found = ValueType::tensor(tensor.dtype(), tensor.shape());
        if !info.ty.fits(&found) {
            bail!("output `{}`: found {found}, expected {} as it is declared", info.name, info.ty);
        }
        Ok((info.name.clone(), tensor))
    };
    function.block.outputs.iter().map(output).collect()
}

struct Frame<'a> {
    function: &'a Function,
    values: Vec<Option<Value>>,
    states: &'a mut Tensors,
    limits: &'a Limits,
    /// How often loops have run.
    iterations: usize,
    /// Bytes of the values that are kept.
    bytes: usize,
    /// How often each loop around the current operation ran before.
    loops: Vec<usize>,
    observer: &'a mut dyn Observer,
}

impl Frame<'_> {
    fn get(&self, var: Var) -> Result<&Value> {
        let value = self.values.get(var.0 as usize).and_then(Option::as_ref);
        value.ok_or_else(|| Error::new(format!("variable number {} has no value", var.0)))
    }

    fn assign(&mut self, var: Var, operation: Option<&Operation>, value: Value) -> Result<()> {
        let value = self.observer.value(&Seen { var, operation, iterations: &self.loops }, value)?;
        let bytes = |value: &Value| if let Value::Tensor(tensor) = value { tensor.bytes().len() } else { 0 };
        self.bytes = self.bytes.saturating_add(bytes(&value));
        if let Some(before) = self.values[var.0 as usize].replace(value) {
            self.bytes = self.bytes.saturating_sub(bytes(&before));
        }
        self.limits.check_call(self.bytes)
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        for operation in &block.operations {
            let results = self.operation(operation).map_err(|e| e.at(operation.place()))?;
            if results.len() != operation.outputs.len() {
                bail!("operation `{}` gave {} results", operation.name, results.len());
            }
            for (var, value) in operation.outputs.iter().zip(results) {
                self.assign(*var, Some(operation), value)?;
            }
        }
        Ok(())
    }

    fn operation(&mut self, operation: &Operation) -> Result<Vec<Value>> {
        match operation.op_name() {
            "const" => {
                let value = operation.constant().ok_or_else(|| Error::new("a const without the attribute `val`"))?;
                Ok(vec![value.clone()])
            }
            "read_state" => {
                let name = self.state_name(operation)?;
                let state = self.states.get(name).cloned();
                Ok(vec![state.ok_or_else(|| Error::new(format!("there is no state `{name}`")))?.into()])
            }
            "write_state" => {
                let name = self.state_name(operation)?.to_owned();
                let data = self.arg(operation, "data")?.tensor()?;
                self.states.insert(name, data);
                Ok(Vec::new())
            }
            "cond" => self.cond(operation),
            "while_loop" => self.while_loop(operation),
            _ => {
                let op = operation.op()?;
                let args = bind(op, operation, |arg| match arg {
                    Arg::Value(value) => Ok(ArgInfo::known(value.clone())),
                    Arg::Var(var) => Ok(ArgInfo::known(self.get(*var)?.clone())),
                })?;
                self.check_results(op, &args)?;
                Ok(op.eval(&args)?.into_iter().map(Value::from).collect())
            }
        }
    }

    /// Sizes are checked before memory is taken.
    fn check_results(&self, op: &dyn Op, args: &Args) -> Result<()> {
        op.infer(args)?.iter().try_for_each(|ty| self.limits.check_value(ty))
    }

    fn arg(&self, operation: &Operation, param: &str) -> Result<Value> {
        match operation.arg(param) {
            Some(Arg::Var(var)) => self.get(*var).cloned(),
            Some(Arg::Value(value)) => Ok(value.clone()),
            None => bail!("the parameter `{param}` is missing"),
        }
    }

    fn state_name(&self, operation: &Operation) -> Result<&str> {
        match operation.var("input") {
            Some(var) => Ok(&self.function.var(var).name),
            None => bail!("the parameter `input` must be a state"),
        }
    }

    fn truth(value: &Value) -> Result<bool> {
        match value.tensor()?.to_bools()?[..] {
            [truth] => Ok(truth),
            ref several => bail!("found {} truth values, expected one", several.len()),
        }
    }

    fn results(&self, block: &Block) -> Result<Vec<Value>> {
        block.outputs.iter().map(|var| self.get(*var).cloned()).collect()
    }

    fn cond(&mut self, operation: &Operation) -> Result<Vec<Value>> {
        let [yes, no] = &operation.blocks[..] else {
            bail!("a cond has {} blocks, expected 2", operation.blocks.len())
        };
        let block = if Self::truth(&self.arg(operation, "pred")?)? { yes } else { no };
        self.block(block)?;
        self.results(block)
    }

    fn while_loop(&mut self, operation: &Operation) -> Result<Vec<Value>> {
        let [condition, body] = &operation.blocks[..] else {
            bail!("a while_loop has {} blocks, expected 2", operation.blocks.len());
        };
        let mut values = Vec::new();
        for arg in operation.args("loop_vars") {
            values.push(match arg {
                Arg::Var(var) => self.get(*var)?.clone(),
                Arg::Value(value) => value.clone(),
            });
        }
        self.loops.push(0);
        loop {
            self.limits.check_iterations(self.iterations)?;
            self.iterations += 1;
            self.set(operation, &condition.inputs, &values)?;
            self.block(condition)?;
            match &self.results(condition)?[..] {
                [go_on] if Self::truth(go_on)? => {}
                [_] => {
                    self.loops.pop();
                    return Ok(values);
                }
                several => bail!("the condition of a while_loop gave {} results, expected one", several.len()),
            }
            self.set(operation, &body.inputs, &values)?;
            self.block(body)?;
            values = self.results(body)?;
            if let Some(count) = self.loops.last_mut() {
                *count += 1;
            }
        }
    }

    fn set(&mut self, operation: &Operation, vars: &[Var], values: &[Value]) -> Result<()> {
        if vars.len() != values.len() {
            bail!("a block takes {} values, found {}", vars.len(), values.len());
        }
        vars.iter().zip(values).try_for_each(|(var, value)| self.assign(*var, Some(operation), value.clone()))
    }
}
