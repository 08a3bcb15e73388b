//! Parses the types and values of MIL text.

use super::lexer::Token;
use super::parse::Parser;
use super::{BlobRef, Location, number};
use crate::{DType, Dim, Error, Result, Tensor, TensorType, Value, ValueType};
use quince_tensor::Bytes;

/// Types.
impl Parser<'_> {
    pub(super) fn ty(&mut self) -> Result<ValueType> {
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
    pub(super) fn value(&mut self) -> Result<Value> {
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
