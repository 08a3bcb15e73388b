//! Values whose elements are not in the text: where they are, and how to find them again.

use crate::{Block, Program, Result, TensorType, Value, Weight, bail};
use std::collections::HashMap;

/// Where the elements of a tensor are, if not in the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// In a file, at the offset of the blob's metadata: `BLOBFILE(path = ..., offset = ...)`.
    File {
        /// The path, usually `@model_path/weights/weight.bin`.
        path: String,
        /// The offset in bytes.
        offset: u64,
    },
    /// With who parses the text: `WEIGHT("name")`.
    Name(String),
}

/// A reference to elements that are not in the text, and the type that it must have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobRef {
    /// Where they are.
    pub location: Location,
    /// The type; sizes may be unknown.
    pub ty: TensorType,
}

/// Names for the weights of a program and for its large constants, so that they need not be in the text.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    by_key: HashMap<Key, String>,
    by_name: HashMap<String, Weight>,
}

/// What makes two values the same without looking at their elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Key {
    Weight(usize),
    Tensor(usize, TensorType),
}

fn key(value: &Value) -> Option<Key> {
    match value {
        Value::Weight(weight) => Some(Key::Weight(weight.id())),
        Value::Tensor(tensor) => {
            let ty = TensorType::fixed(tensor.dtype(), tensor.shape());
            Some(Key::Tensor(tensor.bytes().as_ptr() as usize, ty))
        }
        _ => None,
    }
}

impl Weights {
    /// The weights of a program, and its constant tensors of more than `max_elements` elements.
    pub fn of(program: &Program, max_elements: usize) -> Weights {
        let mut weights = Weights::default();
        for function in &program.functions {
            weights.block(&function.block, max_elements);
        }
        weights
    }

    fn block(&mut self, block: &Block, max_elements: usize) {
        for operation in &block.operations {
            let values = operation.inputs.iter().flat_map(|(_, args)| args).filter_map(|arg| match arg {
                crate::Arg::Value(value) => Some(value),
                crate::Arg::Var(_) => None,
            });
            for value in operation.attributes.values().chain(values) {
                match value {
                    Value::Weight(weight) => self.add(value, weight.clone()),
                    Value::Tensor(tensor) if tensor.len() > max_elements => {
                        self.add(value, Weight::from_tensor(&operation.name, tensor.clone()));
                    }
                    _ => {}
                }
            }
            operation.blocks.iter().for_each(|block| self.block(block, max_elements));
        }
    }

    fn add(&mut self, value: &Value, weight: Weight) {
        let Some(key) = key(value).filter(|key| !self.by_key.contains_key(key)) else { return };
        let mut name = weight.name().to_owned();
        let mut n = 0;
        while self.by_name.contains_key(&name) {
            n += 1;
            name = format!("{}#{n}", weight.name());
        }
        self.by_key.insert(key, name.clone());
        self.by_name.insert(name, weight);
    }

    /// The reference to a value, if it is one of these.
    pub fn locate(&self, value: &Value) -> Option<Location> {
        self.by_key.get(&key(value)?).cloned().map(Location::Name)
    }

    /// The weight behind a reference.
    pub fn resolve(&self, reference: &BlobRef) -> Result<Weight> {
        match &reference.location {
            Location::Name(name) => match self.by_name.get(name) {
                Some(weight) => Ok(weight.clone()),
                None => bail!("there is no weight `{name}`"),
            },
            Location::File { path, .. } => bail!("found a reference to the file `{path}`, expected one to a weight"),
        }
    }
}
