//! Whether two programs are the same: functions, names, types, operations, attributes and values, whatever the order
//! of the tables of variables.

use crate::{Arg, Block, Error, Function, Operation, Program, Result, Value, Var, bail};
use std::collections::{BTreeMap, HashMap};

/// An error that names the first place where two programs differ.
pub fn same(a: &Program, b: &Program) -> Result<()> {
    equal("the default function", &a.default_function, &b.default_function)?;
    attributes(&a.attributes, &b.attributes)?;
    let names = |p: &Program| p.functions.iter().map(|f| f.name.clone()).collect::<Vec<String>>();
    equal("the functions", &names(a), &names(b))?;
    for (a, b) in a.functions.iter().zip(&b.functions) {
        let mut pair = Pair { a, b, vars: HashMap::new() };
        pair.functions().map_err(|e| e.at(format!("function `{}`", a.name)))?;
    }
    Ok(())
}

/// An error unless two values are equal: type and elements. Weights of the same source are not loaded.
pub fn same_values(a: &Value, b: &Value) -> Result<()> {
    let (ty_a, ty_b) = (a.value_type(), b.value_type());
    if ty_a != ty_b {
        bail!("found a value of type {ty_b}, expected {ty_a}");
    }
    let all = |a: &[Value], b: &[Value]| a.iter().zip(b).try_for_each(|(a, b)| same_values(a, b));
    match (a, b) {
        (Value::Weight(a), Value::Weight(b)) if a.id() == b.id() => Ok(()),
        (Value::String(a), Value::String(b)) => equal("the string", a, b),
        (Value::List(_, a), Value::List(_, b)) | (Value::Tuple(a), Value::Tuple(b)) => all(a, b),
        (Value::Dictionary(_, _, a), Value::Dictionary(_, _, b)) => {
            equal("the number of keys", &a.len(), &b.len())?;
            a.iter().zip(b).try_for_each(|(a, b)| {
                same_values(&a.0, &b.0)?;
                same_values(&a.1, &b.1)
            })
        }
        _ if a.tensor()?.same(&b.tensor()?) => Ok(()),
        _ => Err(Error::new(format!("the elements of two values of type {ty_a} differ"))),
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, a: &T, b: &T) -> Result<()> {
    match a == b {
        true => Ok(()),
        false => bail!("{what}: found {b:?}, expected {a:?}"),
    }
}

fn attributes(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> Result<()> {
    equal("the attributes", &a.keys().collect::<Vec<_>>(), &b.keys().collect::<Vec<_>>())?;
    a.iter().zip(b).try_for_each(|((key, a), (_, b))| same_values(a, b).map_err(|e| e.at(format!("attribute `{key}`"))))
}

struct Pair<'a> {
    a: &'a Function,
    b: &'a Function,
    vars: HashMap<Var, Var>,
}

impl Pair<'_> {
    fn functions(&mut self) -> Result<()> {
        let (a, b) = (self.a, self.b);
        equal("the opset", &a.opset, &b.opset)?;
        attributes(&a.attributes, &b.attributes)?;
        equal("the number of inputs", &a.inputs.len(), &b.inputs.len())?;
        for (a, b) in a.inputs.iter().zip(&b.inputs) {
            self.define(a.var, b.var)?;
            equal("the shapes of an input", &a.flexibility, &b.flexibility)?;
        }
        self.blocks(&a.block, &b.block)
    }

    /// Two variables that stand for each other from here on.
    fn define(&mut self, a: Var, b: Var) -> Result<()> {
        let (info_a, info_b) = (self.a.var(a), self.b.var(b));
        equal("the name of a variable", &info_a.name, &info_b.name)?;
        if info_a.ty != info_b.ty {
            bail!("variable `{}`: found the type {}, expected {}", info_a.name, info_b.ty, info_a.ty);
        }
        self.vars.insert(a, b);
        Ok(())
    }

    fn used(&self, a: Var, b: Var) -> Result<()> {
        match self.vars.get(&a) == Some(&b) {
            true => Ok(()),
            false => bail!("found the variable `{}`, expected `{}`", self.b.var(b).name, self.a.var(a).name),
        }
    }

    fn blocks(&mut self, a: &Block, b: &Block) -> Result<()> {
        equal("the number of block inputs", &a.inputs.len(), &b.inputs.len())?;
        a.inputs.iter().zip(&b.inputs).try_for_each(|(&a, &b)| self.define(a, b))?;
        for (a, b) in a.operations.iter().zip(&b.operations) {
            self.operations(a, b).map_err(|e| e.at(format!("operation `{}`", a.name)))?;
        }
        equal("the number of operations", &a.operations.len(), &b.operations.len())?;
        equal("the number of block outputs", &a.outputs.len(), &b.outputs.len())?;
        a.outputs.iter().zip(&b.outputs).try_for_each(|(&a, &b)| self.used(a, b))
    }

    fn operations(&mut self, a: &Operation, b: &Operation) -> Result<()> {
        equal("the operation", &a.op_name(), &b.op_name())?;
        equal("the name", &a.name, &b.name)?;
        attributes(&a.attributes, &b.attributes)?;
        let params = |o: &Operation| o.inputs.iter().map(|(n, v)| (n.clone(), v.len())).collect::<Vec<_>>();
        equal("the parameters", &params(a), &params(b))?;
        let args = |o: &Operation| o.inputs.iter().flat_map(|(_, args)| args.clone()).collect::<Vec<Arg>>();
        for (a, b) in args(a).iter().zip(&args(b)) {
            match (a, b) {
                (Arg::Var(a), Arg::Var(b)) => self.used(*a, *b)?,
                (Arg::Value(a), Arg::Value(b)) => same_values(a, b)?,
                _ => bail!("found the argument {b:?}, expected {a:?}"),
            }
        }
        equal("the number of blocks", &a.blocks.len(), &b.blocks.len())?;
        for (a, b) in a.blocks.iter().zip(&b.blocks) {
            self.blocks(a, b)?;
        }
        equal("the number of results", &a.outputs.len(), &b.outputs.len())?;
        a.outputs.iter().zip(&b.outputs).try_for_each(|(&a, &b)| self.define(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Flexibility, Opset, ValueType};

    fn program(constant: f32) -> Program {
        let mut builder = Builder::new(Function::new("main", Opset::CoreML8));
        let x = builder.input("x", ValueType::tensor(DType::F32, &[2]), Flexibility::Fixed);
        let y = builder.op("add", "y", &[("x", x.into()), ("y", constant.into())]).unwrap();
        Program { functions: vec![builder.finish(vec![y])], ..Program::default() }
    }

    #[test]
    fn the_first_difference_is_named() {
        same(&program(1.0), &program(1.0)).unwrap();
        let error = same(&program(1.0), &program(2.0)).unwrap_err().to_string();
        assert_eq!(error, "function `main`: operation `y`: the elements of two values of type fp32 differ");
        let mut other = program(1.0);
        other.functions[0].block.outputs = vec![Var(0)];
        let error = same(&program(1.0), &other).unwrap_err().to_string();
        assert_eq!(error, "function `main`: found the variable `x`, expected `y`");
    }
}
