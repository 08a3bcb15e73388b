//! A package as rules look at it: who makes a value, who uses it, what is constant, how large it is on disk.

use crate::Target;
use quince_mil::{Arg, Block, DType, Function, Operation, TensorType, Value, ValueType, Var, Weight};
use quince_mlpackage::Package;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How many operations a search may look at. Programs are far smaller; a hostile one is not worth more.
const MAX_STEPS: usize = 100_000;

/// A package.
pub(crate) struct PackageView<'a> {
    pub target: &'a Target,
    /// The functions, in order.
    pub functions: Vec<View<'a>>,
}

/// A function of a package.
pub(crate) struct View<'a> {
    pub package: &'a Package,
    pub function: &'a Function,
    /// Every operation, those of nested blocks after the one that they belong to.
    pub operations: Vec<&'a Operation>,
    producers: HashMap<Var, &'a Operation>,
    users: HashMap<Var, Vec<&'a Operation>>,
    constants: HashSet<Var>,
}

impl<'a> PackageView<'a> {
    pub fn new(package: &'a Package, target: &'a Target) -> PackageView<'a> {
        let functions = package.program.functions.iter().map(|f| View::new(package, f)).collect();
        PackageView { target, functions }
    }

    /// Bytes of all constants, each once.
    pub fn weight_bytes(&self) -> u64 {
        let mut seen: BTreeMap<usize, u64> = BTreeMap::new();
        for view in &self.functions {
            for weight in view.weights() {
                seen.insert(weight.id(), weight.byte_len() as u64);
            }
        }
        seen.values().sum()
    }

    /// Bytes of all states, each once.
    pub fn state_bytes(&self) -> u64 {
        let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
        for (info, ty) in self.functions.iter().flat_map(|view| view.function.states()) {
            seen.insert(&info.name, byte_len(ty));
        }
        seen.values().sum()
    }
}

impl<'a> View<'a> {
    fn new(package: &'a Package, function: &'a Function) -> View<'a> {
        let mut view = View {
            package,
            function,
            operations: Vec::new(),
            producers: HashMap::new(),
            users: HashMap::new(),
            constants: HashSet::new(),
        };
        view.block(&function.block);
        view
    }

    fn block(&mut self, block: &'a Block) {
        for operation in &block.operations {
            self.operations.push(operation);
            for var in operation.used_vars() {
                let users = self.users.entry(var).or_default();
                if !users.last().is_some_and(|last| std::ptr::eq(*last, operation)) {
                    users.push(operation);
                }
            }
            self.producers.extend(operation.outputs.iter().map(|var| (*var, operation)));
            if is_constant(operation) || self.folds(operation) {
                self.constants.extend(&operation.outputs);
            }
            operation.blocks.iter().for_each(|block| self.block(block));
        }
    }

    /// Whether an operation is computed of constants alone, before the model runs.
    fn folds(&self, operation: &Operation) -> bool {
        let mut vars = operation.used_vars().peekable();
        let draws = operation.op_name().starts_with("random_");
        vars.peek().is_some() && operation.blocks.is_empty() && !draws && vars.all(|var| self.constants.contains(&var))
    }

    /// The operations that compute when the model runs: all but constants and what they are made of.
    pub fn computing(&self) -> impl Iterator<Item = &'a Operation> {
        self.operations.iter().copied().filter(|operation| !is_constant(operation))
    }

    /// The operations of this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &'a Operation> {
        self.operations.iter().copied().filter(move |operation| operation.op_name() == name)
    }

    /// The name of a variable.
    pub fn name(&self, var: Var) -> &'a str {
        self.function.vars.get(var.0 as usize).map_or("?", |info| &info.name)
    }

    /// The tensor type of a variable; none for strings, lists and states.
    pub fn tensor(&self, var: Var) -> Option<&'a TensorType> {
        match &self.function.vars.get(var.0 as usize)?.ty {
            ValueType::Tensor(ty) => Some(ty),
            _ => None,
        }
    }

    /// The tensor type of an operation's first result.
    pub fn result(&self, operation: &Operation) -> Option<&'a TensorType> {
        self.tensor(*operation.outputs.first()?)
    }

    /// The tensor type of an argument.
    pub fn arg_type(&self, arg: &Arg) -> Option<TensorType> {
        match arg {
            Arg::Var(var) => self.tensor(*var).cloned(),
            Arg::Value(value) => value.tensor_type(),
        }
    }

    /// The operation that makes a variable; none for inputs.
    pub fn producer(&self, var: Var) -> Option<&'a Operation> {
        self.producers.get(&var).copied()
    }

    /// The operation behind a parameter, if it is one variable that an operation makes.
    pub fn behind(&self, operation: &Operation, param: &str) -> Option<&'a Operation> {
        self.producer(operation.var(param)?)
    }

    /// The operations that use a variable.
    pub fn users(&self, var: Var) -> &[&'a Operation] {
        self.users.get(&var).map_or(&[], Vec::as_slice)
    }

    /// Whether a variable is a result of the function.
    pub fn is_output(&self, var: Var) -> bool {
        self.function.block.outputs.contains(&var)
    }

    /// Whether an argument is known before the model runs, also if it has to be unpacked.
    pub fn is_constant(&self, arg: &Arg) -> bool {
        match arg {
            Arg::Value(_) => true,
            Arg::Var(var) => self.constants.contains(var),
        }
    }

    /// The value of an argument, if it is a plain constant.
    pub fn constant(&self, arg: &'a Arg) -> Option<&'a Value> {
        match arg {
            Arg::Value(value) => Some(value),
            Arg::Var(var) => self.producer(*var)?.constant(),
        }
    }

    /// The only number of a parameter, or the one that all its elements are, if it is constant.
    pub fn number(&self, operation: &Operation, name: &str) -> Option<f64> {
        self.scalar(operation.arg(name)?)
    }

    /// The only number of an argument, or the one that all its elements are, if it is constant.
    pub fn scalar(&self, arg: &Arg) -> Option<f64> {
        match arg {
            Arg::Value(value) => only_number(value),
            Arg::Var(var) => only_number(self.producer(*var)?.constant()?),
        }
    }

    /// The integers of a parameter, if they are constant and few.
    pub fn integers(&self, operation: &Operation, name: &str) -> Option<Vec<i64>> {
        let value = match operation.arg(name)? {
            Arg::Value(value) => value,
            Arg::Var(var) => self.producer(*var)?.constant()?,
        };
        let few = elements(&value.tensor_type()?)? <= 1 << 20;
        few.then(|| value.tensor().ok()?.to_i64().ok())?
    }

    /// Goes back from a variable through operations of these names, along their first parameter.
    pub fn back(&self, mut var: Var, through: &[&str]) -> Var {
        for _ in 0..MAX_STEPS {
            let Some(operation) = self.producer(var).filter(|op| through.contains(&op.op_name())) else { break };
            match operation.used_vars().next() {
                Some(before) => var = before,
                None => break,
            }
        }
        var
    }

    /// Whether going back from a variable meets an operation that `is` says yes to, going on only through those that
    /// `passes` says yes to; constants are not looked at.
    pub fn comes_from(&self, var: Var, is: &dyn Fn(&Operation) -> bool, passes: &dyn Fn(&Operation) -> bool) -> bool {
        let (mut open, mut seen) = (vec![var], HashSet::new());
        while let Some(var) = open.pop() {
            if !seen.insert(var) || seen.len() > MAX_STEPS {
                continue;
            }
            let Some(operation) = self.producer(var).filter(|op| !is_constant(op)) else { continue };
            if is(operation) {
                return true;
            }
            if passes(operation) {
                open.extend(operation.used_vars());
            }
        }
        false
    }

    /// Every variable that some become through operations that `passes` says yes to, themselves included.
    pub fn becomes(&self, vars: &[Var], passes: &dyn Fn(&Operation) -> bool) -> Vec<Var> {
        let (mut found, mut seen, mut next) = (vars.to_vec(), vars.iter().copied().collect::<HashSet<Var>>(), 0);
        while let Some(var) = found.get(next).copied().filter(|_| next < MAX_STEPS) {
            let on = self.users(var).iter().filter(|user| passes(user)).flat_map(|user| &user.outputs);
            found.extend(on.filter(|var| seen.insert(**var)));
            next += 1;
        }
        found
    }

    /// The operations that use one of these variables.
    pub fn users_of(&self, vars: &[Var]) -> impl Iterator<Item = &'a Operation> {
        vars.iter().flat_map(|var| self.users(*var)).copied()
    }

    /// Every variable that a variable is computed from, itself included.
    pub fn origins(&self, var: Var) -> HashSet<Var> {
        let (mut open, mut seen) = (vec![var], HashSet::new());
        while let Some(var) = open.pop() {
            if seen.len() < MAX_STEPS && seen.insert(var) {
                open.extend(self.producer(var).into_iter().flat_map(Operation::used_vars));
            }
        }
        seen
    }

    /// The constants of the function, each as often as it is used; those in memory as weights of their own.
    pub fn weights(&self) -> impl Iterator<Item = Weight> {
        self.values().filter_map(|value| value.weight(""))
    }

    /// The constants of the function that lie in a file, each as often as it is used; the same place has the same id.
    pub fn stored(&self) -> impl Iterator<Item = &'a Weight> {
        self.values().filter_map(|value| match value {
            Value::Weight(weight) => Some(weight),
            _ => None,
        })
    }

    fn values(&self) -> impl Iterator<Item = &'a Value> {
        self.operations.iter().flat_map(|operation| {
            let given = operation.inputs.iter().flat_map(|(_, args)| args).filter_map(|arg| match arg {
                Arg::Value(value) => Some(value),
                Arg::Var(_) => None,
            });
            operation.constant().into_iter().chain(given)
        })
    }
}

/// The number that all elements of a value are, if it is small enough to look.
fn only_number(value: &Value) -> Option<f64> {
    const MAX_ELEMENTS: usize = 1 << 16;
    if !(1..=MAX_ELEMENTS).contains(&elements(&value.tensor_type()?)?) {
        return None;
    }
    let values = value.tensor().ok()?.to_f64().ok()?;
    let first = *values.first()?;
    values.iter().all(|value| *value == first).then_some(first)
}

/// Whether an operation is a constant, or unpacks one when the model is loaded.
pub(crate) fn is_constant(operation: &Operation) -> bool {
    operation.op_name() == "const" || operation.op_name().starts_with("constexpr_")
}

/// Bytes of a tensor; 0 if a size is not known.
pub(crate) fn byte_len(ty: &TensorType) -> u64 {
    elements(ty).and_then(|n| ty.dtype.byte_len(n)).unwrap_or(0) as u64
}

/// The number of elements, if every size is known and the number is one that memory could hold.
pub(crate) fn elements(ty: &TensorType) -> Option<usize> {
    ty.dims()?.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim))
}

/// Whether a type is one that the Neural Engine computes in as such.
pub(crate) fn is_index(ty: &TensorType) -> bool {
    ty.dtype.is_int() || ty.dtype == DType::Bool
}
