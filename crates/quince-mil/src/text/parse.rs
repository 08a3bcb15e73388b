//! Parses MIL text.

use super::lexer::{Lexer, Position, Token};
use super::{BlobRef, DEFAULT_FUNCTION, Location, OPSETS, flexible, number};
use crate::{
    Arg, Block, DType, Dim, Error, Flexibility, Function, FunctionInput, OpKind, Operation, Opset, Program, Result,
    Tensor, TensorType, Value, ValueType, Var, Weight,
};
use quince_tensor::Bytes;
use std::collections::{BTreeMap, HashMap};

/// How deep types, values and blocks may be nested.
const MAX_DEPTH: usize = 64;

/// The program that a text says. `resolve` gives the weights whose elements are elsewhere. An error begins with line
/// and column, such as `3:17`. What the text says is not verified: see [`crate::verify`].
pub fn parse(text: &str, resolve: &dyn Fn(&BlobRef) -> Result<Weight>) -> Result<Program> {
    let mut lexer = Lexer::new(text);
    let (token, at) = lexer.next()?;
    let mut parser = Parser {
        lexer,
        token,
        at,
        depth: 0,
        resolve,
        function: Function::new("", Opset::CoreML5),
        scope: HashMap::new(),
        defined: Vec::new(),
    };
    parser.program()
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token that comes next, and where it is.
    token: Token<'a>,
    at: Position,
    depth: usize,
    resolve: &'a dyn Fn(&BlobRef) -> Result<Weight>,
    /// The function that is being parsed, and its variables that can be used here.
    function: Function,
    scope: HashMap<String, Var>,
    /// The names in `scope` in the order in which they came.
    defined: Vec<String>,
}

type Attributes = BTreeMap<String, Value>;

/// Tokens.
impl<'a> Parser<'a> {
    fn next(&mut self) -> Result<Token<'a>> {
        let (token, at) = self.lexer.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn wrong<T>(&self, expected: &str) -> Result<T> {
        Err(Error::new(format!("found {}, expected {expected}", self.token)).at(self.at))
    }

    fn is(&self, mark: char) -> bool {
        self.token == Token::Mark(mark)
    }

    /// Goes past a mark if it comes next.
    fn eat(&mut self, mark: char) -> Result<bool> {
        let found = self.is(mark);
        if found {
            self.next()?;
        }
        Ok(found)
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        match self.eat(mark)? {
            true => Ok(()),
            false => self.wrong(&format!("`{mark}`")),
        }
    }

    fn keyword(&mut self, keyword: &str) -> Result<()> {
        if self.token != Token::Identifier(keyword) {
            return self.wrong(&format!("`{keyword}`"));
        }
        self.next().map(drop)
    }

    /// An identifier, or a name in quotes.
    fn name(&mut self, what: &str) -> Result<String> {
        match self.token {
            Token::Identifier(_) | Token::String(_) => match self.next()? {
                Token::String(name) => Ok(name),
                Token::Identifier(name) => Ok(name.to_owned()),
                _ => self.wrong(what),
            },
            _ => self.wrong(what),
        }
    }

    fn string(&mut self) -> Result<String> {
        match self.token {
            Token::String(_) => match self.next()? {
                Token::String(text) => Ok(text),
                _ => self.wrong("a string"),
            },
            _ => self.wrong("a string in quotes"),
        }
    }

    /// Items with commas between them up to a closing mark; the opening one is behind us.
    fn until(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if self.eat(close)? {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.eat(close)? {
                return Ok(());
            }
            if !self.eat(',')? {
                return self.wrong(&format!("`,` or `{close}`"));
            }
        }
    }

    /// One level deeper, so that hostile text cannot exhaust the stack.
    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new(format!("nested more than {MAX_DEPTH} deep")).at(self.at));
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }
}

/// Programs, functions, operations.
impl Parser<'_> {
    fn program(&mut self) -> Result<Program> {
        let mut program = Program::default();
        self.keyword("program")?;
        self.expect('(')?;
        match self.token {
            Token::Number(_) => self.next()?,
            _ => return self.wrong("a version such as 1.0"),
        };
        self.expect(')')?;
        program.attributes = self.attributes()?;
        if let Some(Value::String(name)) = program.attributes.get(DEFAULT_FUNCTION) {
            program.default_function = Some(name.clone());
            program.attributes.remove(DEFAULT_FUNCTION);
        }
        self.expect('{')?;
        while !self.eat('}')? {
            let function = self.function()?;
            program.functions.push(function);
        }
        match self.token {
            Token::End => Ok(program),
            _ => self.wrong("the end of the text"),
        }
    }

    fn function(&mut self) -> Result<Function> {
        self.keyword("func")?;
        let name = self.name("the name of a function")?;
        self.expect('<')?;
        let opset = self.opset()?;
        self.expect('>')?;
        self.function = Function::new(&name, opset);
        self.scope.clear();
        self.defined.clear();
        self.expect('(')?;
        let vars = self.definitions()?;
        let mut attributes = self.attributes()?;
        self.flexibility(&vars, &mut attributes);
        self.function.attributes = attributes;
        self.function.block = self.block(Vec::new())?;
        self.expect(';')?;
        Ok(std::mem::replace(&mut self.function, Function::new("", opset)))
    }

    fn opset(&mut self) -> Result<Opset> {
        let row = OPSETS.iter().find(|row| Token::Identifier(row.1) == self.token);
        match row {
            Some(row) => self.next().map(|_| row.0),
            None => {
                let names: Vec<&str> = OPSETS.iter().map(|row| row.1).collect();
                self.wrong(&format!("one of {}", names.join(", ")))
            }
        }
    }

    /// Makes inputs of variables; takes the attribute that gives their shapes, if it is of the form we know.
    fn flexibility(&mut self, vars: &[Var], attributes: &mut Attributes) {
        let value = attributes.get(flexible::ATTRIBUTE);
        let of = |var: &Var| match value {
            Some(value) => flexible::from_value(value, &self.function.var(*var).name),
            None => Some(Flexibility::Fixed),
        };
        let (known, shapes) = match vars.iter().map(of).collect::<Option<Vec<_>>>() {
            Some(shapes) => (true, shapes),
            None => (false, vec![Flexibility::Fixed; vars.len()]),
        };
        let inputs = vars.iter().zip(shapes).map(|(&var, flexibility)| FunctionInput { var, flexibility });
        self.function.inputs = inputs.collect();
        if known {
            attributes.remove(flexible::ATTRIBUTE);
        }
    }

    /// Types and names of new variables up to `)`.
    fn definitions(&mut self) -> Result<Vec<Var>> {
        let mut vars = Vec::new();
        self.until(')', |p| {
            let ty = p.ty()?;
            let at = p.at;
            let name = p.name("the name of a variable")?;
            vars.push(p.define(name, ty, at)?);
            Ok(())
        })?;
        Ok(vars)
    }

    fn define(&mut self, name: String, ty: ValueType, at: Position) -> Result<Var> {
        let var = self.function.add_var(&name, ty);
        self.defined.push(name.clone());
        match self.scope.insert(name, var) {
            None => Ok(var),
            Some(_) => Err(Error::new(format!("variable `{}` is assigned twice", self.function.var(var).name)).at(at)),
        }
    }

    fn variable(&mut self) -> Result<Var> {
        let at = self.at;
        let name = self.name("the name of a variable")?;
        match self.scope.get(&name) {
            Some(&var) => Ok(var),
            None => Err(Error::new(format!("variable `{name}` is used before it is assigned")).at(at)),
        }
    }

    fn attributes(&mut self) -> Result<Attributes> {
        let mut attributes = Attributes::new();
        if self.eat('[')? {
            self.until(']', |p| {
                let key = p.name("the name of an attribute")?;
                p.expect('=')?;
                let value = p.value()?;
                attributes.insert(key, value);
                Ok(())
            })?;
        }
        Ok(attributes)
    }

    fn block(&mut self, inputs: Vec<Var>) -> Result<Block> {
        self.deeper(|p| {
            p.expect('{')?;
            let mut block = Block { inputs, ..Block::default() };
            while !p.eat('}')? {
                block.operations.push(p.operation()?);
            }
            if p.token != Token::Arrow {
                return p.wrong("`->`");
            }
            p.next()?;
            p.expect('(')?;
            p.until(')', |p| {
                block.outputs.push(p.variable()?);
                Ok(())
            })?;
            Ok(block)
        })
    }

    fn operation(&mut self) -> Result<Operation> {
        // Results are `type name` each; an operation without results begins with its name and `(`.
        let mut results = Vec::new();
        if !self.is_call()? {
            loop {
                let ty = self.ty()?;
                let at = self.at;
                results.push((self.name("the name of a variable")?, ty, at));
                if !self.eat(',')? {
                    break;
                }
            }
            self.expect('=')?;
        }
        let kind = OpKind::from_name(&self.name("the name of an operation")?);
        self.expect('(')?;
        let mut inputs = Vec::new();
        self.until(')', |p| {
            let param = p.name("the name of a parameter")?;
            p.expect('=')?;
            inputs.push((param, p.args()?));
            Ok(())
        })?;
        let mut attributes = self.attributes()?;
        let name = match attributes.get("name") {
            Some(Value::String(name)) => name.clone(),
            _ => results.first().map_or(String::new(), |(name, ..)| name.clone()),
        };
        attributes.remove("name");
        let mut blocks = Vec::new();
        while self.token == Token::Identifier("block") {
            self.next()?;
            blocks.push(self.inner_block()?);
        }
        self.expect(';')?;
        let outputs = results.into_iter().map(|(name, ty, at)| self.define(name, ty, at));
        Ok(Operation { kind, name, inputs, outputs: outputs.collect::<Result<_>>()?, blocks, attributes })
    }

    /// A block of an operation; what it assigns is not seen after it.
    fn inner_block(&mut self) -> Result<Block> {
        let outside = self.defined.len();
        self.expect('(')?;
        let inputs = self.definitions()?;
        let block = self.block(inputs)?;
        for name in self.defined.drain(outside..) {
            self.scope.remove(&name);
        }
        Ok(block)
    }

    /// Whether a name and `(` come next, without going past them.
    fn is_call(&self) -> Result<bool> {
        let named = matches!(self.token, Token::Identifier(_) | Token::String(_));
        Ok(named && self.lexer.clone().next()?.0 == Token::Mark('('))
    }

    /// The arguments of a parameter: one, or several in brackets.
    fn args(&mut self) -> Result<Vec<Arg>> {
        let mut args = Vec::new();
        if self.eat('(')? {
            self.until(')', |p| {
                args.push(p.arg()?);
                Ok(())
            })?;
        } else {
            args.push(self.arg()?);
        }
        Ok(args)
    }

    /// A value begins with its type, which `(` or `<` follows; a variable is a name alone.
    fn arg(&mut self) -> Result<Arg> {
        let typed = matches!(self.token, Token::Identifier(_))
            && matches!(self.lexer.clone().next()?.0, Token::Mark('(' | '<'));
        Ok(if typed { Arg::Value(self.value()?) } else { Arg::Var(self.variable()?) })
    }
}

/// Types.
impl Parser<'_> {
    fn ty(&mut self) -> Result<ValueType> {
        self.deeper(Self::type_here)
    }

    fn type_here(&mut self) -> Result<ValueType> {
        let Token::Identifier(name) = self.token else { return self.wrong("a type") };
        if let Some(dtype) = DType::from_name(name) {
            self.next()?;
            return Ok(ValueType::tensor(dtype, &[]));
        }
        if !matches!(name, "tensor" | "state" | "list" | "tuple" | "dict" | "string") {
            return self.wrong("a type");
        }
        self.next()?;
        if name == "string" {
            return Ok(ValueType::String);
        }
        self.expect('<')?;
        let ty = match name {
            "tensor" => self.tensor_type()?,
            "state" => {
                let at = self.at;
                match self.ty()? {
                    ValueType::Tensor(ty) => ValueType::State(ty),
                    other => return Err(Error::new(format!("found a state of {other}, expected of a tensor")).at(at)),
                }
            }
            "list" => {
                let element = self.ty()?;
                self.expect(',')?;
                ValueType::List(Box::new(element), self.dim()?)
            }
            "dict" => {
                let key = self.ty()?;
                self.expect(',')?;
                ValueType::Dictionary(Box::new(key), Box::new(self.ty()?))
            }
            _ => {
                let mut types = Vec::new();
                self.until('>', |p| {
                    types.push(p.ty()?);
                    Ok(())
                })?;
                return Ok(ValueType::Tuple(types));
            }
        };
        self.expect('>')?;
        Ok(ty)
    }

    /// What stands inside of `tensor<...>`.
    fn tensor_type(&mut self) -> Result<ValueType> {
        let at = self.at;
        let dtype = match self.token {
            Token::Identifier("string") => None,
            Token::Identifier(name) if DType::from_name(name).is_some() => DType::from_name(name),
            _ => return self.wrong("an element type"),
        };
        self.next()?;
        self.expect(',')?;
        self.expect('[')?;
        let mut shape = Vec::new();
        self.until(']', |p| {
            shape.push(p.dim()?);
            Ok(())
        })?;
        match dtype {
            Some(dtype) => Ok(TensorType { dtype, shape }.into()),
            None if shape.is_empty() => Ok(ValueType::String),
            None => Err(Error::new("found a tensor of strings, expected a single string").at(at)),
        }
    }

    fn dim(&mut self) -> Result<Dim> {
        if self.eat('?')? {
            return Ok(Dim::Unknown);
        }
        match self.token {
            Token::Number(text) => match text.parse() {
                Ok(size) => self.next().map(|_| Dim::Fixed(size)),
                Err(_) => self.wrong("a size"),
            },
            _ => self.wrong("a size or `?`"),
        }
    }
}

/// Values.
impl Parser<'_> {
    /// A value behind its type: `fp16(0x1p+0)`.
    fn value(&mut self) -> Result<Value> {
        let ty = self.ty()?;
        self.expect('(')?;
        let value = self.literal(&ty)?;
        self.expect(')')?;
        Ok(value)
    }

    fn literal(&mut self, ty: &ValueType) -> Result<Value> {
        self.deeper(|p| match ty {
            ValueType::Tensor(ty) => p.tensor(ty),
            ValueType::String => p.string().map(Value::String),
            ValueType::List(element, length) => {
                let at = p.at;
                p.expect('[')?;
                let mut values = Vec::new();
                p.until(']', |p| {
                    values.push(p.literal(element)?);
                    Ok(())
                })?;
                match length.fits(Dim::Fixed(values.len())) {
                    true => Ok(Value::List((**element).clone(), values)),
                    false => Err(Error::new(format!("found {} values, expected {length}", values.len())).at(at)),
                }
            }
            ValueType::Tuple(types) => p.tuple(types),
            ValueType::Dictionary(key, value) => {
                p.expect('{')?;
                let mut pairs = Vec::new();
                p.until('}', |p| {
                    p.expect('{')?;
                    let first = p.literal(key)?;
                    p.expect(',')?;
                    pairs.push((first, p.literal(value)?));
                    p.expect('}')
                })?;
                Ok(Value::Dictionary((**key).clone(), (**value).clone(), pairs))
            }
            ValueType::State(_) => p.wrong("no value, for a state has none"),
        })
    }

    fn tuple(&mut self, types: &[ValueType]) -> Result<Value> {
        self.expect('(')?;
        let mut values = Vec::new();
        for (i, ty) in types.iter().enumerate() {
            if i > 0 {
                self.expect(',')?;
            }
            values.push(self.literal(ty)?);
        }
        self.expect(')')?;
        Ok(Value::Tuple(values))
    }

    fn tensor(&mut self, ty: &TensorType) -> Result<Value> {
        let at = self.at;
        let location = match self.token {
            Token::Identifier("BLOBFILE") => self.file()?,
            Token::Identifier("WEIGHT") => {
                self.next()?;
                self.expect('(')?;
                let name = self.string()?;
                self.expect(')')?;
                Location::Name(name)
            }
            _ => return self.elements(ty),
        };
        let weight = (self.resolve)(&BlobRef { location, ty: ty.clone() }).map_err(|e| e.at(at))?;
        let found = TensorType::fixed(weight.dtype(), weight.shape());
        match ty.fits(&found) {
            true => Ok(weight.into()),
            false => Err(Error::new(format!("found a weight of type {found}, expected {ty}")).at(at)),
        }
    }

    fn file(&mut self) -> Result<Location> {
        self.next()?;
        self.expect('(')?;
        self.keyword("path")?;
        self.expect('=')?;
        let at = self.at;
        let path = self.value()?;
        self.expect(',')?;
        self.keyword("offset")?;
        self.expect('=')?;
        let offset = self.value()?;
        self.expect(')')?;
        let offset = offset.tensor().and_then(|t| t.to_i64());
        match (path, offset.as_deref()) {
            (Value::String(path), Ok(&[offset])) if offset >= 0 => Ok(Location::File { path, offset: offset as u64 }),
            _ => Err(Error::new("expected a string as path and one integer as offset").at(at)),
        }
    }

    fn elements(&mut self, ty: &TensorType) -> Result<Value> {
        let at = self.at;
        let mut elements = Elements { dtype: ty.dtype, ints: Vec::new(), floats: Vec::new() };
        let mut shape: Vec<Option<usize>> = ty.shape.iter().map(|dim| dim.fixed()).collect();
        // The text of a tensor without elements ends at its first empty axis.
        let empty = shape.contains(&Some(0));
        self.axis(0, &mut shape, empty, &mut elements)?;
        let shape = shape.into_iter().map(|size| size.unwrap_or(0)).collect();
        elements.tensor(shape).map(Value::from).map_err(|e| e.at(at))
    }

    /// The elements along an axis and the axes after it. What is not known of the shape is learnt here.
    fn axis(&mut self, i: usize, shape: &mut Vec<Option<usize>>, empty: bool, elements: &mut Elements) -> Result<()> {
        if i == shape.len() {
            return self.element(elements);
        }
        let (at, mut count) = (self.at, 0);
        self.expect('[')?;
        self.deeper(|p| {
            p.until(']', |p| {
                count += 1;
                p.axis(i + 1, shape, empty, elements)
            })
        })?;
        match shape[i] {
            None => shape[i] = Some(count),
            Some(size) if size == count || (empty && count == 0) => {}
            Some(size) => return Err(Error::new(format!("found {count} elements, expected {size}")).at(at)),
        }
        Ok(())
    }

    fn element(&mut self, elements: &mut Elements) -> Result<()> {
        let text = match self.token {
            Token::Number(text) | Token::Identifier(text) => text,
            _ => return self.wrong("a number"),
        };
        match elements.push(text) {
            Some(()) => self.next().map(drop),
            None => self.wrong(&format!("a value of type {}", elements.dtype)),
        }
    }
}

/// The elements of a tensor as they are read; integers, truth values and codes in one vector, floats in the other.
struct Elements {
    dtype: DType,
    ints: Vec<i64>,
    floats: Vec<f64>,
}

impl Elements {
    /// Adds what is written, or says that it is no element of the type.
    fn push(&mut self, text: &str) -> Option<()> {
        match self.dtype {
            DType::Bool => self.ints.push(i64::from(text.parse::<bool>().ok()?)),
            DType::F8E4M3FN | DType::F8E5M2 => self.ints.push(i64::from(text.parse::<u8>().ok()?)),
            // The bits are kept; they are the same as a signed number.
            DType::U64 => self.ints.push(text.parse::<u64>().ok()? as i64),
            dtype if dtype.is_float() => self.floats.push(number::parse(text)?),
            dtype => {
                let (low, high) = dtype.int_range()?;
                self.ints.push(text.parse::<i64>().ok().filter(|v| (low..=high).contains(v))?);
            }
        }
        Some(())
    }

    fn tensor(self, shape: Vec<usize>) -> Result<Tensor> {
        match self.dtype {
            DType::Bool => Tensor::from_bools(shape, &self.ints.iter().map(|&v| v != 0).collect::<Vec<bool>>()),
            DType::F8E4M3FN | DType::F8E5M2 => {
                let codes: Vec<u8> = self.ints.iter().map(|&v| v as u8).collect();
                Tensor::new(self.dtype, shape, Bytes::from_vec(codes))
            }
            dtype if dtype.is_float() => Tensor::from_f64(dtype, shape, self.floats),
            dtype => Tensor::from_i64(dtype, shape, &self.ints),
        }
    }
}
