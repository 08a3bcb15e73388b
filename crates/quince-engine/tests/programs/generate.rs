//! Programs made of bytes: every operation is asked whether its arguments go together before it becomes part of one, so
//! that nearly all of them verify.

use crate::choices::{Choices, MOST_ELEMENTS};
use crate::recipes;
use quince_mil::eval::Tensors;
use quince_mil::op::FLOAT;
use quince_mil::{
    Arg, Block, DType, Dim, Flexibility, Function, Operation, Opset, Program, Tensor, TensorType, Value, ValueType,
    Var, ops, verify,
};
use std::collections::{HashMap, HashSet};

/// A program that verifies, and what it is called with, one call after the other.
pub struct Case {
    /// The program; its function is `main`.
    pub program: Program,
    /// Inputs of each call.
    pub calls: Vec<Tensors>,
}

/// The program that these bytes mean; none if the verifier refuses it.
pub fn case(bytes: &[u8]) -> Option<Case> {
    let mut g = Generator::new(Choices::new(bytes));
    let calls = g.inputs()?;
    let most = g.choices.within(1, 12);
    for _ in 0..most {
        recipes::operation(&mut g);
        if g.choices.done() {
            break;
        }
    }
    let program = Program { functions: vec![g.finish()], ..Program::default() };
    verify::program(&program).ok()?;
    Some(Case { program, calls })
}

/// A function in the making.
pub struct Generator<'a> {
    /// What decides.
    pub choices: Choices<'a>,
    /// The states.
    pub states: Vec<Var>,
    /// How many blocks are open around the next operation.
    pub depth: usize,
    function: Function,
    known: HashMap<Var, Value>,
    constant: HashSet<Var>,
    used: HashSet<Var>,
    /// The operations of the block that is open.
    open: Vec<Operation>,
    /// The variables that may be used, the newest last.
    scope: Vec<Var>,
}

/// Element types that values between operations have.
const TYPES: &[DType] = &[DType::F32, DType::F16, DType::F32, DType::F16, DType::I32, DType::Bool, DType::F32];

impl<'a> Generator<'a> {
    fn new(mut choices: Choices<'a>) -> Generator<'a> {
        let opset = if choices.rarely(6) { Opset::Semantic } else { Opset::CoreML8 };
        Generator {
            choices,
            states: Vec::new(),
            depth: 0,
            function: Function::new("main", opset),
            known: HashMap::new(),
            constant: HashSet::new(),
            used: HashSet::new(),
            open: Vec::new(),
            scope: Vec::new(),
        }
    }

    /// Adds inputs and states; gives two calls, which differ in sizes that are not fixed.
    fn inputs(&mut self) -> Option<Vec<Tensors>> {
        let mut calls = vec![Tensors::new(); 2];
        for i in 0..self.choices.within(1, 3) {
            let (dtype, name) = (self.choices.pick(TYPES), format!("x{i}"));
            let shape = self.choices.shape((0, 4));
            let mut ty = TensorType::fixed(dtype, &shape);
            let mut flexibility = Flexibility::Fixed;
            let loose = self.choices.rarely(4).then(|| self.choices.below(shape.len()));
            if let Some(axis) = loose.filter(|axis| *axis < shape.len()) {
                ty.shape[axis] = Dim::Unknown;
                let mut bounds: Vec<(usize, Option<usize>)> = shape.iter().map(|&n| (n, Some(n))).collect();
                bounds[axis] = (0, None);
                flexibility = Flexibility::Range { bounds, default: shape.clone() };
            }
            for call in &mut calls {
                let mut sizes = shape.clone();
                if let Some(axis) = loose.filter(|axis| *axis < shape.len()) {
                    sizes[axis] = self.choices.pick(&[3, 1, 2, 17, 0]);
                }
                call.insert(name.clone(), self.choices.tensor(dtype, &sizes).ok()?);
            }
            let var = self.function.add_input(&name, ty.into(), flexibility);
            self.scope.push(var);
        }
        for i in 0..self.choices.below(8).saturating_sub(5) {
            let ty = TensorType::fixed(self.choices.pick(FLOAT), &self.choices.shape((1, 4)));
            let var = self.function.add_input(&format!("s{i}"), ValueType::State(ty), Flexibility::Fixed);
            self.states.push(var);
        }
        Some(calls)
    }

    /// Ends the function: its results are what nothing uses, and some of the others.
    fn finish(mut self) -> Function {
        let mut outputs: Vec<Var> = Vec::new();
        for var in self.scope.clone() {
            let is_tensor = matches!(self.function.ty(var), ValueType::Tensor(_));
            if is_tensor && (!self.used.contains(&var) || self.choices.rarely(8)) {
                outputs.push(var);
            }
        }
        self.function.block = Block { inputs: Vec::new(), operations: self.open, outputs };
        self.function
    }

    /// The type of a variable.
    pub fn ty(&self, var: Var) -> &ValueType {
        self.function.ty(var)
    }

    /// The element type and the sizes of a variable that is a tensor; a size that is not known counts as 1.
    pub fn tensor(&self, var: Var) -> Option<(DType, Vec<usize>)> {
        let ty = self.ty(var).as_tensor()?;
        Some((ty.dtype, ty.shape.iter().map(|dim| dim.fixed().unwrap_or(1)).collect()))
    }

    /// A variable that `fits`, often the newest.
    pub fn find(&mut self, fits: impl Fn(&ValueType) -> bool) -> Option<Var> {
        let all: Vec<Var> = self.scope.iter().rev().copied().filter(|var| fits(self.function.ty(*var))).collect();
        let last = all.len().checked_sub(1)?;
        Some(all[self.choices.pick(&[0, 0, 1, 0, 2, 1, 3, 5]).min(last)])
    }

    /// A tensor of one of these element types, of any if there are none.
    pub fn find_tensor(&mut self, types: &[DType]) -> Option<Var> {
        let fits = |ty: &TensorType| types.is_empty() || types.contains(&ty.dtype);
        self.find(|ty| matches!(ty, ValueType::Tensor(ty) if fits(ty)))
    }

    /// The newest variable of exactly this type.
    pub fn newest(&self, ty: &ValueType) -> Option<Var> {
        self.scope.iter().rev().copied().find(|var| self.function.ty(*var) == ty)
    }

    /// A constant in place, or of an operation of its own.
    pub fn constant(&mut self, value: Value) -> Arg {
        if self.choices.rarely(2) {
            return Arg::Value(value);
        }
        let var = self.add_var("const", value.value_type());
        let mut operation = self.operation("const", var.0);
        operation.attributes.insert("val".into(), value.clone());
        operation.outputs = vec![var];
        self.known.insert(var, value);
        self.constant.insert(var);
        self.open.push(operation);
        Arg::Var(var)
    }

    /// Appends an operation, unless its arguments do not go together, and gives its results.
    pub fn emit(&mut self, op: &str, inputs: Vec<(&str, Arg)>) -> Option<Vec<Var>> {
        self.emit_all(op, inputs.into_iter().map(|(name, arg)| (name, vec![arg])).collect(), Vec::new())
    }

    /// [`Generator::emit`] for an operation with one result.
    pub fn one(&mut self, op: &str, inputs: Vec<(&str, Arg)>) -> Option<Arg> {
        self.emit(op, inputs)?.first().map(|var| Arg::Var(*var))
    }

    /// [`Generator::emit`] with parameters of several arguments, and with blocks.
    pub fn emit_all(&mut self, op: &str, inputs: Vec<(&str, Vec<Arg>)>, blocks: Vec<Block>) -> Option<Vec<Var>> {
        let mut operation = self.operation(op, self.function.vars.len() as u32);
        let params = ops::find(op)?.params();
        let computed = |arg: &Arg| matches!(arg, Arg::Var(var) if !self.constant.contains(var));
        for (name, args) in inputs {
            let constant = params.iter().any(|param| param.name == name && param.constant);
            if constant && args.iter().any(computed) {
                return None;
            }
            operation.inputs.push((name.to_owned(), args));
        }
        operation.blocks = blocks;
        let types = verify::infer(&self.function, &|var| self.known.get(&var).cloned(), &operation).ok()?;
        let large = |ty: &ValueType| ty.as_tensor().is_some_and(|ty| elements(ty) > MOST_ELEMENTS);
        if types.iter().any(large) {
            return None;
        }
        self.used.extend(operation.used_vars());
        for ty in types {
            let var = self.add_var(op, ty);
            operation.outputs.push(var);
            self.scope.push(var);
        }
        if op.starts_with("constexpr_") {
            self.constant.extend(&operation.outputs);
        }
        let outputs = operation.outputs.clone();
        self.open.push(operation);
        Some(outputs)
    }

    /// A block with variables of these types, whose operations and results `fill` makes; what it assigns is not seen
    /// afterwards.
    pub fn block(
        &mut self,
        types: &[ValueType],
        fill: impl FnOnce(&mut Self, &[Var]) -> Option<Vec<Var>>,
    ) -> Option<Block> {
        let around = (std::mem::take(&mut self.open), self.scope.len());
        let inputs: Vec<Var> = types.iter().map(|ty| self.add_var("block", ty.clone())).collect();
        self.scope.extend(&inputs);
        self.depth += 1;
        let outputs = fill(self, &inputs);
        self.depth -= 1;
        let operations = std::mem::replace(&mut self.open, around.0);
        self.scope.truncate(around.1);
        let outputs = outputs?;
        self.used.extend(&outputs);
        Some(Block { inputs, operations, outputs })
    }

    fn operation(&self, op: &str, number: u32) -> Operation {
        let mut operation = Operation::new(ops::find(op).unwrap_or(ops::OPS[0]), "");
        operation.name = format!("{op}_{number}");
        operation
    }

    fn add_var(&mut self, op: &str, ty: ValueType) -> Var {
        let name = format!("{op}_{}", self.function.vars.len());
        self.function.add_var(&name, ty)
    }
}

fn elements(ty: &TensorType) -> usize {
    ty.shape.iter().filter_map(|dim| dim.fixed()).fold(1, |n, dim| n.saturating_mul(dim))
}

/// A vector of 32-bit integers in place.
pub fn ints(values: impl IntoIterator<Item = i64>) -> Arg {
    Arg::Value(Tensor::vector(values.into_iter().map(|v| v as i32).collect::<Vec<i32>>()).into())
}

/// An integer in place.
pub fn int(value: usize) -> Arg {
    Arg::Value((value as i32).into())
}
