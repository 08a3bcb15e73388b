//! The definition of an operation: its parameters, the types it gives, and what it computes.

use crate::{Dim, TensorType, Value, ValueType};
use quince_tensor::{DType, Error, Result, Tensor};
use std::fmt;

/// An operation of MIL, or a semantic one that a lowering replaces: one file in `ops/`, one line in [`crate::ops::OPS`].
pub trait Op: Sync {
    /// The name in MIL: `linear`.
    fn name(&self) -> &'static str;

    /// What it computes, for the reference page: shapes, units, the source of the formula.
    fn doc(&self) -> &'static str;

    /// The parameters.
    fn params(&self) -> &'static [Param];

    /// The first opset that has it.
    fn since(&self) -> Opset {
        Opset::CoreML5
    }

    /// The types of its results, or why the arguments do not go together.
    fn infer(&self, args: &Args) -> Result<Vec<ValueType>>;

    /// Its results. Clear before fast, and total on what `infer` accepts: this is the definition that fast kernels
    /// are compared with, and what folds constants. Floating point is computed in the element type of the arguments
    /// or wider, and rounded once to the type of the result.
    fn eval(&self, args: &Args) -> Result<Vec<Tensor>>;
}

/// The set of operations of an operating-system release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Opset {
    /// iOS 15, macOS 12.
    CoreML5,
    /// iOS 16, macOS 13.
    CoreML6,
    /// iOS 17, macOS 14.
    CoreML7,
    /// iOS 18, macOS 15.
    CoreML8,
    /// iOS 26, macOS 26.
    CoreML9,
    /// Operations that no system runs: they are lowered to the others.
    Semantic,
}

impl Opset {
    /// The opset of this name, as written in a package.
    pub fn from_name(name: &str) -> Option<Opset> {
        use Opset::*;
        [CoreML5, CoreML6, CoreML7, CoreML8, CoreML9, Semantic].into_iter().find(|opset| opset.name() == name)
    }

    /// The name, as written in a package.
    pub fn name(self) -> &'static str {
        match self {
            Opset::CoreML5 => "CoreML5",
            Opset::CoreML6 => "CoreML6",
            Opset::CoreML7 => "CoreML7",
            Opset::CoreML8 => "CoreML8",
            Opset::CoreML9 => "CoreML9",
            Opset::Semantic => "Semantic",
        }
    }

    /// The specification version of a package with this opset.
    pub fn specification_version(self) -> i32 {
        match self {
            Opset::CoreML5 => 6,
            Opset::CoreML6 => 7,
            Opset::CoreML7 => 8,
            Opset::CoreML8 => 9,
            Opset::CoreML9 | Opset::Semantic => 10,
        }
    }
}

impl fmt::Display for Opset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A parameter of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Whether its value must be known when the program is written.
    pub constant: bool,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it takes several arguments.
    pub variadic: bool,
    /// What it is when left out.
    pub default: Option<Default>,
    /// Element types it may have; empty for any.
    pub types: &'static [DType],
}

/// What a parameter is when left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
    /// A string.
    Str(&'static str),
}

/// The floating-point types that operations compute in.
pub const FLOAT: &[DType] = &[DType::F16, DType::F32];
/// The numbers that arithmetic takes.
pub const NUMBER: &[DType] = &[DType::F16, DType::F32, DType::I32];

impl Param {
    /// A parameter that must be given and may be computed.
    pub const fn new(name: &'static str) -> Param {
        Param { name, constant: false, optional: false, variadic: false, default: None, types: &[] }
    }
    /// Its value must be known when the program is written.
    pub const fn constant(self) -> Param {
        Param { constant: true, ..self }
    }
    /// It may be left out.
    pub const fn optional(self) -> Param {
        Param { optional: true, ..self }
    }
    /// It takes several arguments.
    pub const fn variadic(self) -> Param {
        Param { variadic: true, ..self }
    }
    /// The element types it may have.
    pub const fn types(self, types: &'static [DType]) -> Param {
        Param { types, ..self }
    }
    const fn or(self, default: Default) -> Param {
        Param { optional: true, default: Some(default), ..self }
    }
    /// It is this truth value when left out.
    pub const fn or_bool(self, value: bool) -> Param {
        self.or(Default::Bool(value))
    }
    /// It is this integer when left out.
    pub const fn or_int(self, value: i64) -> Param {
        self.or(Default::Int(value))
    }
    /// It is this number when left out.
    pub const fn or_float(self, value: f64) -> Param {
        self.or(Default::Float(value))
    }
    /// It is this string when left out.
    pub const fn or_str(self, value: &'static str) -> Param {
        self.or(Default::Str(value))
    }
}

/// One argument as an operation sees it: its type, and its value where that is known.
#[derive(Clone, Debug)]
pub struct ArgInfo {
    /// The type.
    pub ty: ValueType,
    /// The value: always when evaluating, for constants when inferring.
    pub value: Option<Value>,
}

impl ArgInfo {
    /// An argument whose value is known.
    pub fn known(value: Value) -> ArgInfo {
        ArgInfo { ty: value.value_type(), value: Some(value) }
    }

    /// An argument of which only the type is known.
    pub fn typed(ty: ValueType) -> ArgInfo {
        ArgInfo { ty, value: None }
    }

    /// The tensor type; an error for a string or list.
    pub fn tensor_type(&self) -> Result<&TensorType> {
        self.ty.as_tensor().ok_or_else(|| Error::new(format!("found a {}, expected a tensor", self.ty)))
    }

    /// The tensor; an error if the value is not known.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.value {
            Some(value) => value.tensor(),
            None => Err(Error::new(format!("the value of a {} is not known here, expected a constant", self.ty))),
        }
    }
}

/// The arguments of an operation by parameter name. Asking for what the definition does not declare is an error, as is
/// asking for a parameter that was left out and has no default.
pub struct Args<'a> {
    op: &'a dyn Op,
    entries: Vec<(&'a str, Vec<ArgInfo>)>,
}

impl<'a> Args<'a> {
    /// The arguments of `op`, each parameter with its arguments.
    pub fn new(op: &'a dyn Op, entries: Vec<(&'a str, Vec<ArgInfo>)>) -> Args<'a> {
        Args { op, entries }
    }

    fn param(&self, name: &str) -> Result<&'static Param> {
        let found = self.op.params().iter().find(|p| p.name == name);
        found.ok_or_else(|| Error::new(format!("`{}` has no parameter `{name}`", self.op.name())))
    }

    /// The arguments of a variadic parameter.
    pub fn many(&self, name: &str) -> &[ArgInfo] {
        self.entries.iter().find(|(n, _)| *n == name).map_or(&[], |(_, args)| args)
    }

    /// The argument, if it was given.
    pub fn get(&self, name: &str) -> Option<&ArgInfo> {
        self.many(name).first()
    }

    /// Whether the parameter was given.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn need(&self, name: &str) -> Result<&ArgInfo> {
        self.get(name).ok_or_else(|| Error::new(format!("`{}` needs the parameter `{name}`", self.op.name())))
    }

    /// The tensor type of an argument.
    pub fn ty(&self, name: &str) -> Result<&TensorType> {
        self.need(name)?.tensor_type().map_err(|e| e.at(format!("parameter `{name}`")))
    }

    /// The shape of an argument.
    pub fn shape(&self, name: &str) -> Result<&[Dim]> {
        Ok(&self.ty(name)?.shape)
    }

    /// The element type of an argument.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.ty(name)?.dtype)
    }

    /// The tensor of an argument; an error if its value is not known.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.need(name)?.tensor().map_err(|e| e.at(format!("parameter `{name}`")))
    }

    /// The tensor of an argument that may be left out.
    pub fn opt_tensor(&self, name: &str) -> Result<Option<Tensor>> {
        self.get(name).map(|_| self.tensor(name)).transpose()
    }

    /// The value of an argument if it is known, for inference that can do without.
    pub fn known(&self, name: &str) -> Option<Tensor> {
        self.get(name)?.value.as_ref()?.tensor().ok()
    }

    /// The integers of an argument; an error if its value is not known.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        self.tensor(name)?.to_i64().map_err(|e| e.at(format!("parameter `{name}`")))
    }

    /// The integers of an argument that may be left out.
    pub fn opt_ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        self.get(name).map(|_| self.ints(name)).transpose()
    }

    /// The truth values of an argument that may be left out.
    pub fn opt_bools(&self, name: &str) -> Result<Option<Vec<bool>>> {
        self.opt_tensor(name)?.map(|t| t.to_bools()).transpose()
    }

    /// An integer: as given, or the default.
    pub fn int(&self, name: &str) -> Result<i64> {
        match (self.get(name), self.param(name)?.default) {
            (None, Some(Default::Int(value))) => Ok(value),
            _ => self.single(name, self.ints(name)?),
        }
    }

    /// A truth value: as given, or the default.
    pub fn bool(&self, name: &str) -> Result<bool> {
        match (self.get(name), self.param(name)?.default) {
            (None, Some(Default::Bool(value))) => Ok(value),
            _ => self.single(name, self.tensor(name)?.to_bools()?),
        }
    }

    /// A number: as given, or the default.
    pub fn float(&self, name: &str) -> Result<f64> {
        match (self.get(name), self.param(name)?.default) {
            (None, Some(Default::Float(value))) => Ok(value),
            _ => self.single(name, self.tensor(name)?.to_f64()?),
        }
    }

    /// A string: as given, or the default.
    pub fn str(&self, name: &str) -> Result<&str> {
        match (self.get(name), self.param(name)?.default) {
            (None, Some(Default::Str(value))) => Ok(value),
            _ => {
                let found = self.need(name)?.value.as_ref().and_then(Value::as_str);
                found.ok_or_else(|| Error::new(format!("parameter `{name}` must be a constant string")))
            }
        }
    }

    fn single<T>(&self, name: &str, values: Vec<T>) -> Result<T> {
        let count = values.len();
        match values.into_iter().next() {
            Some(value) if count == 1 => Ok(value),
            _ => Err(Error::new(format!("parameter `{name}` has {count} values, expected one"))),
        }
    }
}
