//! Checks a program: every variable assigned once and before its use, every operation known to the opset, its
//! parameters those of its definition and constant where they have to be, its declared types those that it infers.

use crate::op::ArgInfo;
use crate::{Arg, Args, Block, Error, Function, Op, Operation, Program, Result, Value, ValueType, Var, bail};
use std::collections::{HashMap, HashSet};

/// Checks every function of a program.
pub fn program(program: &Program) -> Result<()> {
    let mut names = HashSet::new();
    for f in &program.functions {
        if !names.insert(&f.name) {
            bail!("there are two functions `{}`", f.name);
        }
        function(f).map_err(|e| e.at(format!("function `{}`", f.name)))?;
    }
    if program.functions.is_empty() {
        bail!("the program has no function");
    }
    Ok(())
}

/// Checks a function.
pub fn function(function: &Function) -> Result<()> {
    let mut scope = Scope { function, known: HashMap::new(), constant: HashSet::new(), assigned: HashSet::new() };
    for input in &function.inputs {
        scope.assign(input.var)?;
    }
    scope.block(&function.block)
}

struct Scope<'a> {
    function: &'a Function,
    /// The values of `const` operations.
    known: HashMap<Var, Value>,
    /// What is the same in every run: the results of `const` and of `constexpr_*`, whose values are never computed here.
    constant: HashSet<Var>,
    assigned: HashSet<Var>,
}

impl Scope<'_> {
    fn assign(&mut self, var: Var) -> Result<()> {
        let Some(info) = self.function.vars.get(var.0 as usize) else {
            bail!("variable number {} is not in the function's table", var.0);
        };
        if !self.assigned.insert(var) {
            bail!("variable `{}` is assigned twice", info.name);
        }
        Ok(())
    }

    fn used(&self, var: Var) -> Result<()> {
        if self.assigned.contains(&var) {
            return Ok(());
        }
        let name = self.function.vars.get(var.0 as usize).map_or("?", |info| info.name.as_str());
        bail!("variable `{name}` is used before it is assigned"; hint: "the operations may form a cycle, or one is missing")
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        for operation in &block.operations {
            self.operation(operation).map_err(|e| e.at(operation.place()))?;
        }
        let value = |var: &Var| self.used(*var).and_then(|()| self.value(*var));
        block.outputs.iter().try_for_each(|var| value(var).map_err(|e| e.at("block outputs")))
    }

    /// A state is no value itself.
    fn value(&self, var: Var) -> Result<()> {
        if matches!(self.function.ty(var), ValueType::State(_)) {
            bail!("the state `{}` is used as a value", self.function.var(var).name; hint: "read it with `read_state`");
        }
        Ok(())
    }

    fn operation(&mut self, operation: &Operation) -> Result<()> {
        operation.used_vars().try_for_each(|var| self.used(var))?;
        let of_state = matches!(operation.op_name(), "read_state" | "write_state");
        for (_, args) in operation.inputs.iter().filter(|(param, _)| !(of_state && param == "input")) {
            let vars = args.iter().filter_map(|arg| if let Arg::Var(var) = arg { Some(*var) } else { None });
            for var in vars {
                self.value(var)?;
            }
        }
        for block in &operation.blocks {
            // What a nested block assigns is not seen outside of it.
            let outside = self.assigned.clone();
            block.inputs.iter().try_for_each(|var| self.assign(*var))?;
            self.block(block)?;
            self.assigned = outside;
        }
        self.constants(operation)?;
        self.types(operation)?;
        operation.outputs.iter().try_for_each(|var| self.assign(*var))
    }

    /// Parameters that have to be constant are.
    fn constants(&mut self, operation: &Operation) -> Result<()> {
        let params = operation.op()?.params();
        let must_be = |name: &str| params.iter().any(|param| param.name == name && param.constant);
        for (name, args) in operation.inputs.iter().filter(|(name, _)| must_be(name)) {
            let computed = args.iter().find_map(|arg| match arg {
                Arg::Var(var) if !self.constant.contains(var) => Some(*var),
                _ => None,
            });
            if let Some(var) = computed {
                let found = &self.function.var(var).name;
                bail!("parameter `{name}` is `{found}`, which is computed when the program runs, expected a constant");
            }
        }
        if operation.op_name() == "const" || operation.op_name().starts_with("constexpr_") {
            self.constant.extend(&operation.outputs);
        }
        Ok(())
    }

    fn types(&mut self, operation: &Operation) -> Result<()> {
        if let Some(value) = operation.constant() {
            if let [var] = operation.outputs[..] {
                self.known.insert(var, value.clone());
            }
        } else if operation.op()?.since() > self.function.opset && !operation.op_name().starts_with("constexpr_") {
            bail!("it came with opset {}, the function's is {}", operation.op()?.since(), self.function.opset);
        }
        let inferred = infer(self.function, &|var| self.known.get(&var).cloned(), operation)?;
        if inferred.len() != operation.outputs.len() {
            bail!("it has {} results, expected {}", operation.outputs.len(), inferred.len());
        }
        for (ty, var) in inferred.iter().zip(&operation.outputs) {
            let declared = self.function.ty(*var);
            if !declared.fits(ty) {
                bail!("its result `{}` is declared {declared}, expected {ty}", self.function.var(*var).name);
            }
        }
        Ok(())
    }
}

/// The types that an operation's results have, from its arguments in `function`; `known` gives constants. Errors do not
/// name the operation: the caller does ([`Operation::place`]).
pub fn infer(
    function: &Function,
    known: &dyn Fn(Var) -> Option<Value>,
    operation: &Operation,
) -> Result<Vec<ValueType>> {
    if operation.op_name() == "const" {
        let value = operation.constant().ok_or_else(|| Error::new("a const without the attribute `val`"))?;
        return Ok(vec![value.value_type()]);
    }
    let op = operation.op()?;
    if !operation.blocks.is_empty() {
        // Control flow gives what its blocks give.
        let outputs = operation.blocks.last().map_or(&[][..], |block| &block.outputs);
        return Ok(outputs.iter().map(|var| function.ty(*var).clone()).collect());
    }
    let args = bind(op, operation, |arg| match arg {
        Arg::Value(value) => Ok(ArgInfo::known(value.clone())),
        Arg::Var(var) => Ok(ArgInfo { ty: function.ty(*var).clone(), value: known(*var) }),
    })?;
    op.infer(&args)
}

/// The arguments of an operation by its definition: checks that required parameters are given, element types allowed,
/// and that there is no other parameter. Whether constants are constant, [`function`] checks: what is bound here may be
/// known for other reasons.
pub fn bind<'a>(
    op: &'a dyn Op,
    operation: &'a Operation,
    mut info: impl FnMut(&Arg) -> Result<ArgInfo>,
) -> Result<Args<'a>> {
    let mut entries = Vec::with_capacity(operation.inputs.len());
    for (name, args) in &operation.inputs {
        let Some(param) = op.params().iter().find(|p| p.name == name) else {
            let names: Vec<&str> = op.params().iter().map(|p| p.name).collect();
            bail!("found the parameter `{name}`, expected {}", names.join(", "));
        };
        if args.len() != 1 && !param.variadic {
            bail!("parameter `{name}` has {} arguments, expected one", args.len());
        }
        let infos = args.iter().map(&mut info).collect::<Result<Vec<_>>>()?;
        for info in &infos {
            if let (Some(ty), false) = (info.ty.as_tensor(), param.types.is_empty())
                && !param.types.contains(&ty.dtype)
            {
                let types: Vec<&str> = param.types.iter().map(|t| t.name()).collect();
                bail!("parameter `{name}` is {ty}, expected an element type of {}", types.join(", "));
            }
        }
        entries.push((name.as_str(), infos));
    }
    for param in op.params().iter().filter(|p| !p.optional) {
        if !entries.iter().any(|(name, args)| *name == param.name && !args.is_empty()) {
            bail!("the parameter `{}` is missing", param.name);
        }
    }
    Ok(Args::new(op, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Flexibility, Opset, Tensor};

    /// Checks a function with a `linear` of this weight.
    fn linear(weight: impl Fn(&mut Builder) -> Result<Var>) -> Result<()> {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let x = b.input("x", ValueType::tensor(DType::F32, &[2, 3]), Flexibility::Fixed);
        let weight = weight(&mut b)?;
        let y = b.op("linear", "y", &[("x", x.into()), ("weight", weight.into())])?;
        function(&b.finish(vec![y]))
    }

    #[test]
    fn what_has_to_be_constant_is() {
        let ty = ValueType::tensor(DType::F32, &[1, 3]);
        let error = linear(|b| Ok(b.input("w", ty.clone(), Flexibility::Fixed))).unwrap_err().to_string();
        let expected = "parameter `weight` is `w`, which is computed when the program runs, expected a constant";
        assert!(error.contains(expected), "{error}");
        linear(|b| {
            let indices: Value = Tensor::from_codes(DType::U1, [1, 3], &[0, 1, 1])?.into();
            let lut: Value = Tensor::from_vec([1, 1, 2, 1], vec![0.5f32, 2.0])?.into();
            b.op("constexpr_lut_to_dense", "w", &[("indices", indices.into()), ("lut", lut.into())])
        })
        .unwrap();
    }

    #[test]
    fn a_state_is_read_before_it_is_a_value() {
        let verified = |result: &dyn Fn(&mut Builder, Var) -> Var| {
            let mut b = Builder::new(Function::new("main", Opset::CoreML8));
            let ty = ValueType::State(crate::TensorType::fixed(DType::F16, &[2]));
            let state = b.input("s", ty, Flexibility::Fixed);
            let result = result(&mut b, state);
            function(&b.finish(vec![result])).map_err(|e| e.to_string())
        };
        let refused = |found: Result<(), String>| found.is_err_and(|e| e.contains("the state `s` is used as a value"));
        let abs = |b: &mut Builder, x: Var| b.op("abs", "y", &[("x", x.into())]).unwrap();
        let read = |b: &mut Builder, s: Var| b.op("read_state", "r", &[("input", s.into())]).unwrap();
        assert!(refused(verified(&abs)));
        assert!(refused(verified(&|_, state| state)));
        assert_eq!(
            verified(&|b, state| {
                let read = read(b, state);
                abs(b, read)
            }),
            Ok(())
        );
    }
}
