//! Prints a program as MIL text.

use super::{DEFAULT_FUNCTION, Location, OPSETS, flexible, number};
use crate::names::{Names, is_identifier};
use crate::{
    Arg, Block, DType, Function, OpKind, Operation, Opset, Program, Tensor, TensorType, Value, ValueType, Var,
};
use std::collections::{BTreeMap, HashMap};

/// How to print.
#[derive(Clone, Copy)]
pub struct PrintOptions<'a> {
    /// How names are written that are no identifiers.
    pub spelling: Spelling,
    /// Where the elements of a tensor or weight are, if they are not to be printed. A weight for which this says
    /// nothing is printed as a reference to its name.
    pub locate: &'a dyn Fn(&Value) -> Option<Location>,
}

/// How names of variables and operations are written that are no identifiers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spelling {
    /// As they are, in quotes: the parser gives them back.
    Exact,
    /// As identifiers, which Apple's compiler reads.
    Identifiers,
}

impl Default for PrintOptions<'_> {
    /// Names as they are, every tensor whole, weights by name.
    fn default() -> Self {
        PrintOptions { spelling: Spelling::Exact, locate: &|_| None }
    }
}

/// The text of a program, without a line end after the last line. See [`crate::text`] for its form.
pub fn print(program: &Program, options: &PrintOptions) -> String {
    let modern = program.functions.iter().any(|f| f.opset >= Opset::CoreML8);
    let mut printer = Printer { options, modern, out: String::new(), names: HashMap::new() };
    printer.out.push_str(if modern { "program(1.3)" } else { "program(1.0)" });
    let mut attributes = program.attributes.clone();
    if let Some(default) = &program.default_function {
        attributes.insert(DEFAULT_FUNCTION.into(), default.as_str().into());
    }
    if !attributes.is_empty() {
        printer.out.push('\n');
        printer.attributes(&attributes);
    }
    printer.out.push_str("\n{\n");
    for function in &program.functions {
        printer.function(function);
    }
    printer.out.push('}');
    printer.out
}

struct Printer<'a> {
    options: &'a PrintOptions<'a>,
    /// Whether scalars and strings have types of their own.
    modern: bool,
    out: String,
    /// The variables of the function as they are written.
    names: HashMap<Var, String>,
}

impl Printer<'_> {
    fn function(&mut self, function: &Function) {
        self.name_vars(function);
        let opset = OPSETS.iter().find(|row| row.0 == function.opset).map_or("", |row| row.1);
        self.out.push_str("    func ");
        self.name(&function.name);
        self.out.push_str(&format!("<{opset}>("));
        self.vars(function, &function.inputs.iter().map(|input| input.var).collect::<Vec<Var>>());
        self.out.push(')');
        let mut attributes = function.attributes.clone();
        let shapes: Vec<_> = function.inputs.iter().map(|i| (self.names[&i.var].as_str(), &i.flexibility)).collect();
        if let Some(value) = flexible::to_value(&shapes) {
            attributes.insert(flexible::ATTRIBUTE.into(), value);
        }
        if !attributes.is_empty() {
            self.out.push(' ');
            self.attributes(&attributes);
        }
        self.out.push(' ');
        self.block(function, &function.block, 8);
        self.out.push_str(";\n");
    }

    /// Names every variable once: inputs and outputs first, which the program is called by.
    fn name_vars(&mut self, function: &Function) {
        fn all(block: &Block, vars: &mut Vec<Var>) {
            vars.extend(&block.inputs);
            for operation in &block.operations {
                operation.blocks.iter().for_each(|block| all(block, vars));
                vars.extend(&operation.outputs);
            }
        }
        let mut vars: Vec<Var> = function.inputs.iter().map(|input| input.var).collect();
        vars.extend(&function.block.outputs);
        all(&function.block, &mut vars);
        let mut names = Names::new();
        self.names.clear();
        for var in vars {
            let name = &function.var(var).name;
            self.names.entry(var).or_insert_with(|| match self.options.spelling {
                Spelling::Exact => names.unique(name),
                Spelling::Identifiers => names.identifier(name),
            });
        }
    }

    /// Types and names of variables that are defined here.
    fn vars(&mut self, function: &Function, vars: &[Var]) {
        for (i, &var) in vars.iter().enumerate() {
            self.comma(i);
            self.ty(function.ty(var));
            self.out.push(' ');
            self.var(var);
        }
    }

    fn block(&mut self, function: &Function, block: &Block, indent: usize) {
        self.out.push_str("{\n");
        for operation in &block.operations {
            self.operation(function, operation, indent + 4);
        }
        self.out.push_str(&format!("{:indent$}}} -> (", ""));
        for (i, &var) in block.outputs.iter().enumerate() {
            self.comma(i);
            self.var(var);
        }
        self.out.push(')');
    }

    fn operation(&mut self, function: &Function, operation: &Operation, indent: usize) {
        self.out.push_str(&" ".repeat(indent));
        self.vars(function, &operation.outputs);
        if !operation.outputs.is_empty() {
            self.out.push_str(" = ");
        }
        self.name(operation.op_name());
        self.out.push('(');
        let mut attributes = operation.attributes.clone();
        let inputs = match legacy_parameters(function, operation) {
            Some(parameters) => {
                attributes.extend(parameters);
                &[]
            }
            None => &operation.inputs[..],
        };
        for (i, (param, args)) in inputs.iter().enumerate() {
            self.comma(i);
            self.name(param);
            self.out.push_str(" = ");
            match &args[..] {
                [arg] => self.arg(arg),
                several => {
                    self.out.push('(');
                    for (i, arg) in several.iter().enumerate() {
                        self.comma(i);
                        self.arg(arg);
                    }
                    self.out.push(')');
                }
            }
        }
        self.out.push(')');
        attributes.insert("name".into(), operation.name.as_str().into());
        self.attributes(&attributes);
        for block in &operation.blocks {
            self.out.push_str(" block(");
            self.vars(function, &block.inputs);
            self.out.push_str(") ");
            self.block(function, block, indent);
        }
        self.out.push_str(";\n");
    }

    fn arg(&mut self, arg: &Arg) {
        match arg {
            Arg::Var(var) => self.var(*var),
            Arg::Value(value) => self.value(value),
        }
    }

    fn attributes(&mut self, attributes: &BTreeMap<String, Value>) {
        self.out.push('[');
        for (i, (key, value)) in attributes.iter().enumerate() {
            self.comma(i);
            self.name(key);
            self.out.push_str(" = ");
            self.value(value);
        }
        self.out.push(']');
    }

    fn comma(&mut self, i: usize) {
        if i > 0 {
            self.out.push_str(", ");
        }
    }

    fn var(&mut self, var: Var) {
        // A variable that nothing defines makes a wrong program, which should print all the same.
        let name = self.names.get(&var).cloned().unwrap_or_else(|| format!("?{}", var.0));
        self.name(&name);
    }

    fn name(&mut self, name: &str) {
        match is_identifier(name) {
            true => self.out.push_str(name),
            false => self.string(name),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                c if c.is_ascii_control() => self.out.push_str(&format!("\\x{:02x}", c as u32)),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn ty(&mut self, ty: &ValueType) {
        match ty {
            ValueType::Tensor(t) => self.tensor_type(t),
            ValueType::State(t) => {
                self.out.push_str("state<");
                self.tensor_type(t);
                self.out.push('>');
            }
            ValueType::String => self.out.push_str(if self.modern { "string" } else { "tensor<string, []>" }),
            ValueType::List(element, length) => {
                self.out.push_str("list<");
                self.ty(element);
                self.out.push_str(&format!(", {length}>"));
            }
            ValueType::Tuple(types) => {
                self.out.push_str("tuple<");
                for (i, ty) in types.iter().enumerate() {
                    self.comma(i);
                    self.ty(ty);
                }
                self.out.push('>');
            }
            ValueType::Dictionary(key, value) => {
                self.out.push_str("dict<");
                self.ty(key);
                self.out.push_str(", ");
                self.ty(value);
                self.out.push('>');
            }
        }
    }

    fn tensor_type(&mut self, ty: &TensorType) {
        match ty.shape.is_empty() && self.modern {
            true => self.out.push_str(ty.dtype.name()),
            false => self.out.push_str(&ty.to_string()),
        }
    }

    fn value(&mut self, value: &Value) {
        self.ty(&value.value_type());
        self.out.push('(');
        self.literal(value);
        self.out.push(')');
    }

    fn literal(&mut self, value: &Value) {
        match value {
            Value::Tensor(tensor) => match (self.options.locate)(value) {
                Some(location) => self.location(&location),
                None => self.elements(tensor),
            },
            Value::Weight(weight) => {
                let location = (self.options.locate)(value);
                self.location(&location.unwrap_or_else(|| Location::Name(weight.name().to_owned())));
            }
            Value::String(text) => self.string(text),
            Value::List(_, values) => self.several('[', values, ']'),
            Value::Tuple(values) => self.several('(', values, ')'),
            Value::Dictionary(_, _, pairs) => {
                self.out.push('{');
                for (i, (key, value)) in pairs.iter().enumerate() {
                    self.comma(i);
                    self.out.push('{');
                    self.literal(key);
                    self.out.push_str(", ");
                    self.literal(value);
                    self.out.push('}');
                }
                self.out.push('}');
            }
        }
    }

    fn several(&mut self, open: char, values: &[Value], close: char) {
        self.out.push(open);
        for (i, value) in values.iter().enumerate() {
            self.comma(i);
            self.literal(value);
        }
        self.out.push(close);
    }

    fn location(&mut self, location: &Location) {
        match location {
            Location::File { path, offset } => {
                let (string, offset_type) = (ValueType::String, ValueType::tensor(DType::U64, &[]));
                self.out.push_str("BLOBFILE(path = ");
                self.ty(&string);
                self.out.push('(');
                self.string(path);
                self.out.push_str("), offset = ");
                self.ty(&offset_type);
                self.out.push_str(&format!("({offset}))"));
            }
            Location::Name(name) => {
                self.out.push_str("WEIGHT(");
                self.string(name);
                self.out.push(')');
            }
        }
    }

    fn elements(&mut self, tensor: &Tensor) {
        let texts = element_texts(tensor);
        self.nested(tensor.shape(), &mut texts.iter());
    }

    fn nested(&mut self, shape: &[usize], texts: &mut std::slice::Iter<String>) {
        let Some((&size, inner)) = shape.split_first() else {
            self.out.push_str(texts.next().map_or("", String::as_str));
            return;
        };
        self.out.push('[');
        // A tensor without elements says so at its first empty axis and not at every place before it.
        let size = if texts.len() == 0 && inner.contains(&0) { 0 } else { size };
        for i in 0..size {
            self.comma(i);
            self.nested(inner, texts);
        }
        self.out.push(']');
    }
}

/// The parameters of a decompressing operation as attributes, which they are up to iOS 17; `None` if they cannot be.
fn legacy_parameters(function: &Function, operation: &Operation) -> Option<BTreeMap<String, Value>> {
    let decompresses = matches!(operation.kind, OpKind::Known(op) if op.name().starts_with("constexpr_"));
    if function.opset >= Opset::CoreML8 || !decompresses {
        return None;
    }
    let mut attributes = BTreeMap::new();
    for (param, args) in &operation.inputs {
        let taken = param == "name" || operation.attributes.contains_key(param);
        match &args[..] {
            [Arg::Value(value)] if !taken => match attributes.insert(param.clone(), value.clone()) {
                None => {}
                Some(_) => return None,
            },
            _ => return None,
        }
    }
    Some(attributes)
}

/// Each element as text: truth values as words, floats in hexadecimal, 8-bit floats by their codes.
fn element_texts(tensor: &Tensor) -> Vec<String> {
    fn all<T>(values: crate::Result<Vec<T>>, f: impl Fn(T) -> String) -> Vec<String> {
        values.unwrap_or_default().into_iter().map(f).collect()
    }
    match tensor.dtype() {
        DType::Bool => all(tensor.to_bools(), |v| v.to_string()),
        DType::F8E4M3FN | DType::F8E5M2 => all(tensor.codes(), |v| v.to_string()),
        DType::U64 => {
            let words = tensor.bytes().as_chunks::<8>().0;
            words.iter().map(|word| u64::from_le_bytes(*word).to_string()).collect()
        }
        dtype if dtype.is_float() => all(tensor.to_f64(), number::print),
        _ => all(tensor.to_i64(), |v| v.to_string()),
    }
}
