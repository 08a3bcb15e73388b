//! Identifiers: every variable gets one that MIL accepts and that no other variable in its scope has.

use std::collections::{HashMap, HashSet};

use quince_mil::{Block, Function, Operation, Var};

/// Turns any name into an identifier, `[A-Za-z_][A-Za-z0-9_@]*`: what does not fit becomes `_`.
pub fn identifier(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '@';
    let mut out: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if !out.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        out.insert(0, '_');
    }
    out
}

/// The names that can be seen at one place, and the order they came in.
#[derive(Default)]
struct Scope {
    names: HashSet<String>,
    trail: Vec<String>,
}

/// The identifiers of one function.
pub struct Names {
    vars: Vec<Option<String>>,
    /// Names of variables and operations, in whatever scope: what an invented name must differ from.
    all: HashSet<String>,
    operations: HashSet<String>,
    /// The next number to try for a base; only saves time.
    next: HashMap<String, usize>,
}

impl Names {
    /// Inputs and outputs of the function choose first: their names are what its users see. The others follow in
    /// order; a name that is taken gets a number.
    pub fn new(function: &Function) -> Names {
        let mut names = Names {
            vars: vec![None; function.vars.len()],
            all: HashSet::new(),
            operations: HashSet::new(),
            next: HashMap::new(),
        };
        let mut scope = Scope::default();
        let seen = function.inputs.iter().map(|input| input.var).chain(function.block.outputs.iter().copied());
        seen.for_each(|var| names.choose(function, var, &mut scope));
        names.block(function, &function.block, &mut scope);
        names
    }

    fn block(&mut self, function: &Function, block: &Block, scope: &mut Scope) {
        block.inputs.iter().for_each(|&var| self.choose(function, var, scope));
        for operation in &block.operations {
            self.all.insert(identifier(&operation.name));
            for inner in &operation.blocks {
                // Names inside are free again outside, so branches may use the same ones.
                let outside = scope.trail.len();
                self.block(function, inner, scope);
                for name in scope.trail.drain(outside..) {
                    scope.names.remove(&name);
                }
            }
            operation.outputs.iter().for_each(|&var| self.choose(function, var, scope));
        }
    }

    fn choose(&mut self, function: &Function, var: Var, scope: &mut Scope) {
        let Some(slot) = self.vars.get(var.0 as usize) else { return };
        if slot.is_none() {
            let mut name = identifier(&function.var(var).name);
            if scope.names.contains(&name) {
                name = self.invent(&name);
            }
            scope.names.insert(name.clone());
            scope.trail.push(name.clone());
            self.all.insert(name.clone());
            self.vars[var.0 as usize] = Some(name);
        }
    }

    /// The identifier of a variable; `None` if it belongs to nothing in the function.
    pub fn var(&self, var: Var) -> Option<&str> {
        self.vars.get(var.0 as usize)?.as_deref()
    }

    /// A name that nothing in the function has: `base`, with a number if it is taken.
    pub fn free(&mut self, base: &str) -> String {
        let name = identifier(base);
        if self.all.insert(name.clone()) { name } else { self.invent(base) }
    }

    /// A name that nothing in the function has, made from `base` and a number.
    pub fn invent(&mut self, base: &str) -> String {
        let base = identifier(base);
        let next = self.next.entry(base.clone()).or_default();
        loop {
            let name = format!("{base}_{next}");
            *next += 1;
            if self.all.insert(name.clone()) {
                return name;
            }
        }
    }

    /// The `name` attribute of an operation, unique among the operations of the function.
    pub fn operation(&mut self, operation: &Operation) -> String {
        let output = operation.outputs.first().and_then(|&var| self.var(var));
        let wanted = match operation.name.as_str() {
            "" => output.unwrap_or(operation.op_name()).to_owned(),
            name => identifier(name),
        };
        if self.operations.insert(wanted.clone()) {
            return wanted;
        }
        let name = self.invent(&wanted);
        self.operations.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_mil::{DType, Flexibility, Opset, ValueType};

    #[test]
    fn identifiers_are_what_mil_accepts() {
        for (name, expected) in
            [("a.b/c", "a_b_c"), ("0x", "_0x"), ("", "_"), ("a@1", "a@1"), ("@a", "_@a"), ("é", "_")]
        {
            assert_eq!(identifier(name), expected);
        }
    }

    #[test]
    fn inputs_and_outputs_keep_their_names() {
        let mut f = Function::new("main", Opset::CoreML8);
        let ty = ValueType::tensor(DType::F16, &[1]);
        let x = f.add_input("x", ty.clone(), Flexibility::Fixed);
        let vars: Vec<Var> = ["y", "x", "a.b", "a_b", "y"].iter().map(|name| f.add_var(name, ty.clone())).collect();
        f.block.operations = vars
            .iter()
            .map(|&var| {
                let mut op = Operation::new(quince_mil::ops::find("const").unwrap(), "op");
                op.outputs.push(var);
                op
            })
            .collect();
        f.block.outputs.push(vars[4]);
        let mut names = Names::new(&f);
        let chosen: Vec<&str> = vars.iter().map(|&var| names.var(var).unwrap()).collect();
        assert_eq!(chosen, ["y_0", "x_0", "a_b", "a_b_0", "y"]);
        assert_eq!(names.var(x), Some("x"));
        let ops: Vec<String> = f.block.operations.iter().map(|op| names.operation(op)).collect();
        assert_eq!(ops, ["op", "op_0", "op_1", "op_2", "op_3"]);
    }
}
