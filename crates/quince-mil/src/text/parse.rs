//! Parses MIL text: tokens, programs, functions, operations. Types and values are in `parse_value.rs`.

use super::lexer::{Lexer, Position, Token};
use super::{BlobRef, DEFAULT_FUNCTION, OPSETS, flexible};
use crate::{
    Arg, Block, Error, Flexibility, Function, FunctionInput, Op, OpKind, Operation, Opset, Program, Result, Value,
    ValueType, Var, Weight,
};
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

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token that comes next, and where it is.
    pub(super) token: Token<'a>,
    pub(super) at: Position,
    depth: usize,
    pub(super) resolve: &'a dyn Fn(&BlobRef) -> Result<Weight>,
    /// The function that is being parsed, and its variables that can be used here.
    function: Function,
    scope: HashMap<String, Var>,
    /// The names in `scope` in the order in which they came.
    defined: Vec<String>,
}

type Attributes = BTreeMap<String, Value>;

/// Tokens.
impl<'a> Parser<'a> {
    pub(super) fn next(&mut self) -> Result<Token<'a>> {
        let (token, at) = self.lexer.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, token))
    }

    pub(super) fn wrong<T>(&self, expected: &str) -> Result<T> {
        Err(Error::new(format!("found {}, expected {expected}", self.token)).at(self.at))
    }

    fn is(&self, mark: char) -> bool {
        self.token == Token::Mark(mark)
    }

    /// Goes past a mark if it comes next.
    pub(super) fn eat(&mut self, mark: char) -> Result<bool> {
        let found = self.is(mark);
        if found {
            self.next()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, mark: char) -> Result<()> {
        match self.eat(mark)? {
            true => Ok(()),
            false => self.wrong(&format!("`{mark}`")),
        }
    }

    pub(super) fn keyword(&mut self, keyword: &str) -> Result<()> {
        if self.token != Token::Identifier(keyword) {
            return self.wrong(&format!("`{keyword}`"));
        }
        self.next().map(drop)
    }

    /// An identifier, or a name in quotes.
    pub(super) fn name(&mut self, what: &str) -> Result<String> {
        match self.token {
            Token::Identifier(_) | Token::String(_) => match self.next()? {
                Token::String(name) => Ok(name),
                Token::Identifier(name) => Ok(name.to_owned()),
                _ => self.wrong(what),
            },
            _ => self.wrong(what),
        }
    }

    pub(super) fn string(&mut self) -> Result<String> {
        match self.token {
            Token::String(_) => match self.next()? {
                Token::String(text) => Ok(text),
                _ => self.wrong("a string"),
            },
            _ => self.wrong("a string in quotes"),
        }
    }

    /// Items with commas between them up to a closing mark; the opening one is behind us.
    pub(super) fn until(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
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
    pub(super) fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
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
            // The name may be the beginning of another.
            None if self.token == Token::End => self.wrong("the rest of an operation"),
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
        if let OpKind::Known(op) = &kind
            && op.name().starts_with("constexpr_")
        {
            self.legacy_parameters(*op, std::mem::take(&mut attributes), &mut inputs)?;
        }
        let mut blocks = Vec::new();
        while self.token == Token::Identifier("block") {
            self.next()?;
            blocks.push(self.inner_block()?);
        }
        self.expect(';')?;
        let outputs = results.into_iter().map(|(name, ty, at)| self.define(name, ty, at));
        Ok(Operation { kind, name, inputs, outputs: outputs.collect::<Result<_>>()?, blocks, attributes })
    }

    /// Up to iOS 17 the parameters of decompressing operations are attributes; the program knows only one form, in the
    /// order of the definition.
    fn legacy_parameters(&self, op: &dyn Op, from: Attributes, inputs: &mut Vec<(String, Vec<Arg>)>) -> Result<()> {
        let legacy = !from.is_empty();
        for (param, value) in from {
            if inputs.iter().any(|(name, _)| *name == param) {
                return Err(Error::new(format!("`{param}` is given as an attribute and as an input")).at(self.at));
            }
            inputs.push((param, vec![Arg::Value(value)]));
        }
        if legacy {
            inputs.sort_by_key(|(name, _)| op.params().iter().position(|p| p.name == name).unwrap_or(usize::MAX));
        }
        Ok(())
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
