//! Computes what is the same only once.

use super::{MAX_ELEMENTS, is_repeatable};
use crate::{Arg, Block, Function, Operation, Value, Var};
use std::collections::HashMap;

/// Removes an operation if an earlier one does the same on the same arguments, constants among them; whatever used its
/// results uses those of the earlier one. The operation that sets an output of the function stays, for its name.
///
/// ```text
/// tensor<fp32, [2]> a = silu(x = x);
/// tensor<fp32, [2]> b = silu(x = x);
/// tensor<fp32, [2]> y = mul(x = a, y = b);
/// ```
/// becomes
/// ```text
/// tensor<fp32, [2]> a = silu(x = x);
/// tensor<fp32, [2]> y = mul(x = a, y = a);
/// ```
pub fn common_subexpression(function: &mut Function) -> bool {
    let mut seen: HashMap<Vec<u8>, Vec<Var>> = HashMap::new();
    let mut same: HashMap<Var, Var> = HashMap::new();
    let types: Vec<String> = function.vars.iter().map(|info| info.ty.to_string()).collect();
    let outputs = function.block.outputs.clone();
    let before = function.block.operations.len();
    function.block.operations.retain_mut(|operation| {
        replace(operation, &same);
        if !is_repeatable(operation) {
            return true;
        }
        let key = key(operation, &types);
        match seen.get(&key) {
            Some(_) if operation.outputs.iter().any(|var| outputs.contains(var)) => true,
            Some(earlier) => {
                same.extend(operation.outputs.iter().copied().zip(earlier.iter().copied()));
                false
            }
            None => {
                seen.insert(key, operation.outputs.clone());
                true
            }
        }
    });
    function.block.operations.len() < before
}

/// Replaces the variables that an operation and its blocks use.
fn replace(operation: &mut Operation, same: &HashMap<Var, Var>) {
    if same.is_empty() {
        return;
    }
    for arg in operation.inputs.iter_mut().flat_map(|(_, args)| args) {
        if let Arg::Var(var) = arg {
            *var = same.get(var).copied().unwrap_or(*var);
        }
    }
    for Block { operations, outputs, .. } in &mut operation.blocks {
        operations.iter_mut().for_each(|operation| replace(operation, same));
        outputs.iter_mut().for_each(|var| *var = same.get(var).copied().unwrap_or(*var));
    }
}

/// Equal for operations that do the same: name, arguments by parameter name, attributes, and types of the results.
fn key(operation: &Operation, types: &[String]) -> Vec<u8> {
    let mut key = Key(Vec::new());
    key.text(operation.op_name());
    let mut inputs: Vec<&(String, Vec<Arg>)> = operation.inputs.iter().collect();
    inputs.sort_by(|a, b| a.0.cmp(&b.0));
    for (param, args) in inputs {
        key.text(param);
        key.number(args.len());
        for arg in args {
            match arg {
                Arg::Var(var) => {
                    key.0.push(0);
                    key.number(var.0 as usize);
                }
                Arg::Value(value) => {
                    key.0.push(1);
                    key.value(value);
                }
            }
        }
    }
    for (name, value) in &operation.attributes {
        key.text(name);
        key.value(value);
    }
    for var in &operation.outputs {
        key.text(types.get(var.0 as usize).map_or("", String::as_str));
    }
    key.0
}

struct Key(Vec<u8>);

impl Key {
    fn number(&mut self, number: usize) {
        self.0.extend((number as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.extend(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Weights and large tensors are compared by where they come from, others by their bytes.
    fn value(&mut self, value: &Value) {
        self.text(&value.value_type().to_string());
        match value {
            Value::Tensor(tensor) if tensor.len() <= MAX_ELEMENTS => self.bytes(tensor.bytes()),
            Value::Tensor(tensor) => self.number(tensor.bytes().as_ptr() as usize),
            Value::Weight(weight) => self.number(weight.id()),
            Value::String(text) => self.text(text),
            Value::List(_, values) | Value::Tuple(values) => {
                self.number(values.len());
                values.iter().for_each(|value| self.value(value));
            }
            Value::Dictionary(_, _, pairs) => {
                self.number(pairs.len());
                pairs.iter().for_each(|(key, value)| {
                    self.value(key);
                    self.value(value);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{function, ops, values};
    use super::*;
    use crate::verify;

    #[test]
    fn equal_operations_run_once() {
        let mut function = function(|b, x| {
            let (two, also_two) = (b.constant("two", 2f32.into()), b.constant("also_two", 2f32.into()));
            let three = b.constant("three", 3f32.into());
            let p = b.op("mul", "p", &[("x", x.into()), ("y", two.into())])?;
            let q = b.op("mul", "q", &[("y", also_two.into()), ("x", x.into())])?;
            let r = b.op("mul", "r", &[("x", x.into()), ("y", three.into())])?;
            let sum = b.op("add", "sum", &[("x", p.into()), ("y", q.into())])?;
            let out = b.op("add", "out", &[("x", sum.into()), ("y", r.into())])?;
            // The same once more, but it is an output.
            Ok(vec![out, b.op("add", "out_2", &[("x", sum.into()), ("y", r.into())])?])
        });
        let before = values(&function);
        assert!(common_subexpression(&mut function));
        assert_eq!(ops(&function), ["const", "const", "mul", "mul", "add", "add", "add"]);
        assert_eq!(values(&function), before);
        verify::function(&function).unwrap();
        assert!(!common_subexpression(&mut function));
    }
}
