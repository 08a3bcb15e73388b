//! Appends operations to a function: infers the types of results, and refuses what does not go together by the name of
//! the operation.

use crate::{Arg, Function, OpKind, Operation, Result, Tensor, Value, ValueType, Var, Weight, bail, ops, verify};
use std::collections::HashMap;

/// Builds the top block of a function.
pub struct Builder {
    function: Function,
    constants: HashMap<Var, Value>,
    names: HashMap<String, usize>,
    shared: HashMap<usize, Var>,
}

/// What can be given for a parameter.
#[derive(Clone, Debug)]
pub enum Input {
    /// One argument.
    One(Arg),
    /// Several, for a variadic parameter.
    Many(Vec<Arg>),
}

impl Builder {
    /// Goes on with a function, usually one that has inputs and no operations yet.
    pub fn new(function: Function) -> Builder {
        let mut builder =
            Builder { function, constants: HashMap::new(), names: HashMap::new(), shared: HashMap::new() };
        let names: Vec<String> = builder.function.vars.iter().map(|v| v.name.clone()).collect();
        names.into_iter().for_each(|name| *builder.names.entry(name).or_default() += 1);
        for operation in &builder.function.block.operations {
            if let (Some(value), [var]) = (operation.constant(), &operation.outputs[..]) {
                builder.constants.insert(*var, value.clone());
            }
        }
        builder
    }

    /// The function so far.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Adds an input to the function.
    pub fn input(&mut self, name: &str, ty: ValueType, flexibility: crate::Flexibility) -> Var {
        let name = self.unique(name);
        self.function.add_input(&name, ty, flexibility)
    }

    /// Ends the function with these results.
    pub fn finish(mut self, outputs: Vec<Var>) -> Function {
        self.function.block.outputs = outputs;
        self.function
    }

    /// The type of a variable.
    pub fn ty(&self, var: Var) -> &ValueType {
        self.function.ty(var)
    }

    /// Says more of a variable's type than was inferred, where that left sizes open: of `reshape` by a computed shape.
    ///
    /// # Errors
    /// When it contradicts what was inferred.
    pub fn declare(&mut self, var: Var, ty: ValueType) -> Result<()> {
        match self.function.vars.get_mut(var.0 as usize) {
            Some(info) if info.ty.fits(&ty) => info.ty = ty,
            Some(info) => bail!("`{}`: found the type {}, expected {ty}", info.name, info.ty),
            None => bail!("variable number {} is not there", var.0),
        }
        Ok(())
    }

    /// A constant of its own operation. The same weight asked for twice is the same variable.
    pub fn weight(&mut self, weight: &Weight) -> Var {
        if let Some(var) = self.shared.get(&weight.id()) {
            return *var;
        }
        let var = self.constant(weight.name(), weight.clone().into());
        self.shared.insert(weight.id(), var);
        var
    }

    /// A constant of its own operation.
    pub fn constant(&mut self, name: &str, value: Value) -> Var {
        let name = self.unique(name);
        let var = self.function.add_var(&name, value.value_type());
        let mut operation = Operation {
            kind: OpKind::from_name("const"),
            name,
            inputs: Vec::new(),
            outputs: vec![var],
            blocks: Vec::new(),
            attributes: Default::default(),
        };
        operation.attributes.insert("val".into(), value.clone());
        self.constants.insert(var, value);
        self.function.block.operations.push(operation);
        var
    }

    /// Appends an operation with one result and gives its variable. The variable is called `name`, or `name_1` and so on
    /// if that is taken.
    pub fn op(&mut self, op: &str, name: &str, inputs: &[(&str, Input)]) -> Result<Var> {
        match self.ops(op, name, inputs)?[..] {
            [var] => Ok(var),
            ref several => bail!("operation `{name}`: `{op}` has {} results, expected one", several.len()),
        }
    }

    /// Appends an operation and gives the variables of its results.
    pub fn ops(&mut self, op: &str, name: &str, inputs: &[(&str, Input)]) -> Result<Vec<Var>> {
        let Some(definition) = ops::find(op) else { bail!("operation `{name}`: there is no operation `{op}`") };
        let name = self.unique(name);
        let mut operation = Operation::new(definition, &name);
        for (param, input) in inputs {
            let args = match input {
                Input::One(arg) => vec![arg.clone()],
                Input::Many(args) => args.clone(),
            };
            operation.inputs.push(((*param).to_owned(), args));
        }
        let types = verify::infer(&self.function, &|var| self.constants.get(&var).cloned(), &operation)
            .map_err(|e| e.at(operation.place()))?;
        for (i, ty) in types.into_iter().enumerate() {
            let name = if i == 0 { name.clone() } else { self.unique(&format!("{name}_{i}")) };
            let var = self.function.add_var(&name, ty);
            operation.outputs.push(var);
        }
        let outputs = operation.outputs.clone();
        self.function.block.operations.push(operation);
        Ok(outputs)
    }

    /// A name that no variable has yet.
    fn unique(&mut self, name: &str) -> String {
        match self.names.get(name).copied() {
            None => {
                self.names.insert(name.to_owned(), 1);
                name.to_owned()
            }
            Some(mut n) => loop {
                let candidate = format!("{name}_{n}");
                n += 1;
                if !self.names.contains_key(&candidate) {
                    self.names.insert(name.to_owned(), n);
                    self.names.insert(candidate.clone(), 1);
                    return candidate;
                }
            },
        }
    }
}

impl From<Var> for Input {
    fn from(var: Var) -> Input {
        Input::One(Arg::Var(var))
    }
}
impl From<Value> for Input {
    fn from(value: Value) -> Input {
        Input::One(Arg::Value(value))
    }
}
impl From<Tensor> for Input {
    fn from(tensor: Tensor) -> Input {
        Value::from(tensor).into()
    }
}
impl From<i32> for Input {
    fn from(value: i32) -> Input {
        Value::from(value).into()
    }
}
impl From<f32> for Input {
    fn from(value: f32) -> Input {
        Value::from(value).into()
    }
}
impl From<bool> for Input {
    fn from(value: bool) -> Input {
        Value::from(value).into()
    }
}
impl From<&str> for Input {
    fn from(value: &str) -> Input {
        Value::from(value).into()
    }
}
impl From<Vec<i32>> for Input {
    fn from(values: Vec<i32>) -> Input {
        Value::from(values).into()
    }
}
impl<const N: usize> From<[i32; N]> for Input {
    fn from(values: [i32; N]) -> Input {
        Value::from(values).into()
    }
}
impl<const N: usize> From<[bool; N]> for Input {
    fn from(values: [bool; N]) -> Input {
        let bytes = quince_tensor::Bytes::from_vec(values.iter().map(|&b| u8::from(b)).collect::<Vec<u8>>());
        // The number of bytes is the number of elements, so this cannot fail.
        match Tensor::new(crate::DType::Bool, [N], bytes) {
            Ok(tensor) => tensor.into(),
            Err(_) => false.into(),
        }
    }
}
impl From<Vec<Var>> for Input {
    fn from(vars: Vec<Var>) -> Input {
        Input::Many(vars.into_iter().map(Arg::Var).collect())
    }
}
