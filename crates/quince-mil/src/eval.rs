//! Runs a function plainly: each operation by its own [`crate::Op::eval`], in order, every value kept. This is what a
//! program means; quince-engine does the same fast.

use crate::op::ArgInfo;
use crate::verify::bind;
use crate::{Arg, Block, Error, Function, Operation, Result, Tensor, Value, ValueType, Var, bail};
use std::collections::BTreeMap;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Runs `function` on inputs by name; states are read from `states` and written there. A state that is not there yet
/// is zeros. Loops stop with an error when they have run [`MAX_ITERATIONS`] times, all together.
pub fn run(function: &Function, inputs: &Tensors, states: &mut Tensors) -> Result<Tensors> {
    let mut frame = Frame { function, values: vec![None; function.vars.len()], states, iterations: 0 };
    for input in &function.inputs {
        let info = function.var(input.var);
        match &info.ty {
            ValueType::State(ty) => {
                let Some(shape) = ty.dims() else { bail!("state `{}` has an unknown size", info.name) };
                if !frame.states.contains_key(&info.name) {
                    frame.states.insert(info.name.clone(), Tensor::zeros(ty.dtype, shape)?);
                }
            }
            expected => {
                let Some(tensor) = inputs.get(&info.name) else { bail!("the input `{}` is missing", info.name) };
                let found: ValueType = ValueType::tensor(tensor.dtype(), tensor.shape());
                if !expected.fits(&found) {
                    bail!("input `{}`: found {found}, expected {expected}", info.name);
                }
                frame.values[input.var.0 as usize] = Some(tensor.clone().into());
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

/// How often the `while_loop`s of a function may run, all together.
pub const MAX_ITERATIONS: usize = 1 << 20;

struct Frame<'a> {
    function: &'a Function,
    values: Vec<Option<Value>>,
    states: &'a mut Tensors,
    /// How often loops have run.
    iterations: usize,
}

impl Frame<'_> {
    fn get(&self, var: Var) -> Result<&Value> {
        let value = self.values.get(var.0 as usize).and_then(Option::as_ref);
        value.ok_or_else(|| Error::new(format!("variable number {} has no value", var.0)))
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        for operation in &block.operations {
            let results = self.operation(operation).map_err(|e| e.at(operation.place()))?;
            if results.len() != operation.outputs.len() {
                bail!("operation `{}` gave {} results", operation.name, results.len());
            }
            for (var, value) in operation.outputs.iter().zip(results) {
                self.values[var.0 as usize] = Some(value);
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
                Ok(op.eval(&args)?.into_iter().map(Value::from).collect())
            }
        }
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
        while self.iterations < MAX_ITERATIONS {
            self.iterations += 1;
            self.set(&condition.inputs, &values)?;
            self.block(condition)?;
            match &self.results(condition)?[..] {
                [go_on] if Self::truth(go_on)? => {}
                [_] => return Ok(values),
                several => bail!("the condition of a while_loop gave {} results, expected one", several.len()),
            }
            self.set(&body.inputs, &values)?;
            self.block(body)?;
            values = self.results(body)?;
        }
        bail!("loops ran {MAX_ITERATIONS} times without an end")
    }

    fn set(&mut self, vars: &[Var], values: &[Value]) -> Result<()> {
        if vars.len() != values.len() {
            bail!("a block takes {} values, found {}", vars.len(), values.len());
        }
        for (var, value) in vars.iter().zip(values) {
            self.values[var.0 as usize] = Some(value.clone());
        }
        Ok(())
    }
}
