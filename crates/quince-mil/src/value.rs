//! Values known before the program runs: constants and attributes.

use crate::{Dim, TensorType, ValueType};
use quince_tensor::{Element, Error, Result, Tensor, Weight};

/// A value known before the program runs. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub enum Value {
    /// A tensor in memory: small constants, parameters.
    Tensor(Tensor),
    /// A tensor that is computed or read when asked for: weights.
    Weight(Weight),
    /// A string.
    String(String),
    /// A list of values of one type.
    List(ValueType, Vec<Value>),
    /// Values of several types.
    Tuple(Vec<Value>),
    /// Keys and values, sorted by what they were read as.
    Dictionary(ValueType, ValueType, Vec<(Value, Value)>),
}

impl Value {
    /// The type of this value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::Tensor(t) => TensorType::fixed(t.dtype(), t.shape()).into(),
            Value::Weight(w) => TensorType::fixed(w.dtype(), w.shape()).into(),
            Value::String(_) => ValueType::String,
            Value::List(element, values) => ValueType::List(Box::new(element.clone()), Dim::Fixed(values.len())),
            Value::Tuple(values) => ValueType::Tuple(values.iter().map(Value::value_type).collect()),
            Value::Dictionary(key, value, _) => ValueType::Dictionary(Box::new(key.clone()), Box::new(value.clone())),
        }
    }

    /// The tensor, loaded if it is a weight.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Value::Tensor(t) => Ok(t.clone()),
            Value::Weight(w) => w.load(),
            other => Err(Error::new(format!("found a {}, expected a tensor", other.value_type()))),
        }
    }

    /// The weight; a tensor becomes one of the given name.
    pub fn weight(&self, name: &str) -> Option<Weight> {
        match self {
            Value::Tensor(t) => Some(Weight::from_tensor(name, t.clone())),
            Value::Weight(w) => Some(w.clone()),
            _ => None,
        }
    }

    /// The string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The tensor type, of a tensor or weight.
    pub fn tensor_type(&self) -> Option<TensorType> {
        match self.value_type() {
            ValueType::Tensor(t) => Some(t),
            _ => None,
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Value {
        Value::Tensor(tensor)
    }
}
impl From<Weight> for Value {
    fn from(weight: Weight) -> Value {
        Value::Weight(weight)
    }
}
impl From<&str> for Value {
    fn from(string: &str) -> Value {
        Value::String(string.to_owned())
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Tensor(Tensor::scalar_bool(value))
    }
}
impl From<i32> for Value {
    fn from(value: i32) -> Value {
        Value::Tensor(Tensor::scalar(value))
    }
}
impl From<f32> for Value {
    fn from(value: f32) -> Value {
        Value::Tensor(Tensor::scalar(value))
    }
}
impl<T: Element> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Value {
        Value::Tensor(Tensor::vector(values))
    }
}
impl<T: Element, const N: usize> From<[T; N]> for Value {
    fn from(values: [T; N]) -> Value {
        Value::Tensor(Tensor::vector(values.to_vec()))
    }
}
