//! The program: functions, blocks, operations, variables, as owned values in vectors.
//!
//! A [`Var`] is an index into its function's table of variables. Every variable is assigned once, before it is used;
//! blocks inside an operation (`cond`, `while_loop`) see the variables of the blocks around them.

use crate::{Op, Opset, TensorType, Value, ValueType, ops};
use quince_tensor::{Error, Result, bail};
use std::collections::{BTreeMap, HashMap};

/// A program: one function or several that share constants.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The functions in the order they were added; names are unique.
    pub functions: Vec<Function>,
    /// Which function runs when none is named; needed when there are several.
    pub default_function: Option<String>,
    /// Attributes of the whole program, such as `buildInfo`.
    pub attributes: BTreeMap<String, Value>,
}

/// A function: typed inputs and one block of operations.
#[derive(Clone, Debug)]
pub struct Function {
    /// `main`, or `init`, `decode`, ...
    pub name: String,
    /// Inputs in order; states are inputs whose type is a state.
    pub inputs: Vec<FunctionInput>,
    /// Which operations may be used, and in which form.
    pub opset: Opset,
    /// Every variable of the function and of its nested blocks.
    pub vars: Vec<VarInfo>,
    /// The operations, and the outputs of the function.
    pub block: Block,
    /// Attributes of the function.
    pub attributes: BTreeMap<String, Value>,
}

/// An input of a function.
#[derive(Clone, Debug)]
pub struct FunctionInput {
    /// The variable; its type is the type of the input.
    pub var: Var,
    /// Which shapes the input may have.
    pub flexibility: Flexibility,
}

/// Which shapes an input may have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Flexibility {
    /// Only the shape of its type.
    #[default]
    Fixed,
    /// Along each axis a range, `None` for no upper bound, and the default shape.
    Range {
        /// Lower and upper bound of each axis.
        bounds: Vec<(usize, Option<usize>)>,
        /// The shape when none is asked for.
        default: Vec<usize>,
    },
    /// One of several shapes, the default first.
    Enumerated(Vec<Vec<usize>>),
}

/// A sequence of operations with the variables it takes and gives.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Variables that the surrounding operation sets; empty for a function's block.
    pub inputs: Vec<Var>,
    /// The operations in the order they run.
    pub operations: Vec<Operation>,
    /// The variables that are the block's results.
    pub outputs: Vec<Var>,
}

/// An operation: what it does, on what, and the variables it assigns.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Which operation.
    pub kind: OpKind,
    /// The `name` attribute; unique names make errors and traces readable.
    pub name: String,
    /// Parameters by name, in the order they were given; one that takes several values has several arguments.
    pub inputs: Vec<(String, Vec<Arg>)>,
    /// The variables it assigns.
    pub outputs: Vec<Var>,
    /// Nested blocks of control flow.
    pub blocks: Vec<Block>,
    /// Attributes other than the name: `val` of a constant, and what other writers put there.
    pub attributes: BTreeMap<String, Value>,
}

/// An operation of the table, or one that was read and is not in it: that can be printed and written, not checked or run.
#[derive(Clone)]
pub enum OpKind {
    /// An entry of [`ops::OPS`].
    Known(&'static dyn Op),
    /// The name as read.
    Unknown(String),
}

/// An argument of an operation: a variable, or a value written in place.
#[derive(Clone, Debug)]
pub enum Arg {
    /// The value of a variable.
    Var(Var),
    /// A constant in place. When a package is written it becomes a `const` operation where the format wants one.
    Value(Value),
}

/// A variable: an index into [`Function::vars`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Var(pub u32);

/// What is known of a variable.
#[derive(Clone, Debug)]
pub struct VarInfo {
    /// The name in the file. Hugging Face names have dots, identifiers may not: the writer makes one of it.
    pub name: String,
    /// The type.
    pub ty: ValueType,
}

impl Program {
    /// The function of this name; `main` also stands for the only or the default function, and the only function
    /// answers to every name it was known by before it became `main`.
    pub fn function(&self, name: &str) -> Result<&Function> {
        if let Some(function) = self.functions.iter().find(|f| f.name == name) {
            return Ok(function);
        }
        match (&self.functions[..], &self.default_function) {
            ([only], _) => Ok(only),
            (several, Some(default)) if name == "main" => {
                several.iter().find(|f| &f.name == default).ok_or_else(|| self.no_function(default))
            }
            _ => Err(self.no_function(name)),
        }
    }

    fn no_function(&self, name: &str) -> Error {
        let names: Vec<&str> = self.functions.iter().map(|f| f.name.as_str()).collect();
        Error::new(format!("found no function `{name}`, expected one of {}", names.join(", ")))
    }
}

impl Function {
    /// A function without inputs and operations.
    pub fn new(name: &str, opset: Opset) -> Function {
        Function {
            name: name.to_owned(),
            inputs: Vec::new(),
            opset,
            vars: Vec::new(),
            block: Block::default(),
            attributes: BTreeMap::new(),
        }
    }

    /// Adds a variable to the table.
    pub fn add_var(&mut self, name: &str, ty: ValueType) -> Var {
        self.vars.push(VarInfo { name: name.to_owned(), ty });
        Var((self.vars.len() - 1) as u32)
    }

    /// Adds an input.
    pub fn add_input(&mut self, name: &str, ty: ValueType, flexibility: Flexibility) -> Var {
        let var = self.add_var(name, ty);
        self.inputs.push(FunctionInput { var, flexibility });
        var
    }

    /// What is known of a variable of this function.
    pub fn var(&self, var: Var) -> &VarInfo {
        &self.vars[var.0 as usize]
    }

    /// The type of a variable of this function.
    pub fn ty(&self, var: Var) -> &ValueType {
        &self.var(var).ty
    }

    /// The type of an argument.
    pub fn arg_type(&self, arg: &Arg) -> ValueType {
        match arg {
            Arg::Var(var) => self.ty(*var).clone(),
            Arg::Value(value) => value.value_type(),
        }
    }

    /// The states among the inputs, in order.
    pub fn states(&self) -> impl Iterator<Item = (&VarInfo, &TensorType)> {
        self.inputs.iter().filter_map(|input| match self.ty(input.var) {
            ValueType::State(ty) => Some((self.var(input.var), ty)),
            _ => None,
        })
    }
}

impl Operation {
    /// An operation of the table without arguments.
    pub fn new(op: &'static dyn Op, name: &str) -> Operation {
        Operation {
            kind: OpKind::Known(op),
            name: name.to_owned(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            blocks: Vec::new(),
            attributes: BTreeMap::new(),
        }
    }

    /// The operation's name in MIL: `linear`, `const`, ...
    pub fn op_name(&self) -> &str {
        match &self.kind {
            OpKind::Known(op) => op.name(),
            OpKind::Unknown(name) => name,
        }
    }

    /// How errors name this operation.
    pub fn place(&self) -> String {
        format!("operation `{}` ({})", self.name, self.op_name())
    }

    /// The definition; an error that names the operation if the table has none.
    pub fn op(&self) -> Result<&'static dyn Op> {
        match &self.kind {
            OpKind::Known(op) => Ok(*op),
            OpKind::Unknown(name) => bail!(
                "operation `{}` is a `{name}`, which is not in the table of operations", self.name;
                hint: "`quince ops` lists the operations that can be checked and run"
            ),
        }
    }

    /// The value of a `const` operation.
    pub fn constant(&self) -> Option<&Value> {
        (self.op_name() == "const").then(|| self.attributes.get("val"))?
    }

    /// The arguments of a parameter; empty if it was not given.
    pub fn args(&self, param: &str) -> &[Arg] {
        self.inputs.iter().find(|(name, _)| name == param).map_or(&[], |(_, args)| args)
    }

    /// The only argument of a parameter.
    pub fn arg(&self, param: &str) -> Option<&Arg> {
        match self.args(param) {
            [arg] => Some(arg),
            _ => None,
        }
    }

    /// The variable that is the only argument of a parameter.
    pub fn var(&self, param: &str) -> Option<Var> {
        match self.arg(param) {
            Some(Arg::Var(var)) => Some(*var),
            _ => None,
        }
    }

    /// Every variable it uses, nested blocks not counted.
    pub fn used_vars(&self) -> impl Iterator<Item = Var> {
        self.inputs.iter().flat_map(|(_, args)| args).filter_map(|arg| match arg {
            Arg::Var(var) => Some(*var),
            Arg::Value(_) => None,
        })
    }

    /// Every variable it uses, those of nested blocks included.
    pub fn visit_uses(&self, f: &mut impl FnMut(Var)) {
        self.used_vars().for_each(&mut *f);
        for block in &self.blocks {
            block.operations.iter().for_each(|operation| operation.visit_uses(f));
            block.outputs.iter().copied().for_each(&mut *f);
        }
    }

    /// Puts another variable in the place of every one that it uses or assigns, those of nested blocks included.
    pub fn map_vars(&mut self, f: &mut impl FnMut(Var) -> Var) {
        for arg in self.inputs.iter_mut().flat_map(|(_, args)| args) {
            if let Arg::Var(var) = arg {
                *var = f(*var);
            }
        }
        for Block { inputs, operations, outputs } in &mut self.blocks {
            inputs.iter_mut().for_each(|var| *var = f(*var));
            operations.iter_mut().for_each(|operation| operation.map_vars(f));
            outputs.iter_mut().for_each(|var| *var = f(*var));
        }
        self.outputs.iter_mut().for_each(|var| *var = f(*var));
    }
}

impl OpKind {
    /// The entry of the table of this name, or the name itself.
    pub fn from_name(name: &str) -> OpKind {
        ops::find(name).map_or_else(|| OpKind::Unknown(name.to_owned()), OpKind::Known)
    }
}

impl std::fmt::Debug for OpKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpKind::Known(op) => f.write_str(op.name()),
            OpKind::Unknown(name) => write!(f, "unknown {name}"),
        }
    }
}

/// Where the variables of a function's top block are defined and used: made when needed, never kept up to date.
pub struct Defs<'a> {
    function: &'a Function,
    producers: HashMap<Var, usize>,
    users: HashMap<Var, Vec<usize>>,
}

impl<'a> Defs<'a> {
    /// Looks through the top block, and through nested blocks for uses.
    pub fn new(function: &'a Function) -> Defs<'a> {
        let (mut producers, mut users) = (HashMap::new(), HashMap::<Var, Vec<usize>>::new());
        for (i, operation) in function.block.operations.iter().enumerate() {
            producers.extend(operation.outputs.iter().map(|&var| (var, i)));
            operation.visit_uses(&mut |var| {
                let users = users.entry(var).or_default();
                if users.last() != Some(&i) {
                    users.push(i);
                }
            });
        }
        Defs { function, producers, users }
    }

    /// The operation of the top block that assigns the variable; `None` for inputs.
    pub fn producer(&self, var: Var) -> Option<&'a Operation> {
        self.producers.get(&var).map(|&i| &self.function.block.operations[i])
    }

    /// The index of that operation.
    pub fn producer_index(&self, var: Var) -> Option<usize> {
        self.producers.get(&var).copied()
    }

    /// The indices of the operations of the top block that use the variable, each once; outputs of the function are
    /// not counted.
    pub fn users(&self, var: Var) -> &[usize] {
        self.users.get(&var).map_or(&[], Vec::as_slice)
    }

    /// Whether the variable is a result of the function.
    pub fn is_output(&self, var: Var) -> bool {
        self.function.block.outputs.contains(&var)
    }

    /// The constant behind an argument: a value in place, or that of a `const` operation.
    pub fn constant(&self, arg: &'a Arg) -> Option<&'a Value> {
        match arg {
            Arg::Value(value) => Some(value),
            Arg::Var(var) => self.producer(*var)?.constant(),
        }
    }
}
