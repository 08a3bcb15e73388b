//! Types of values: tensors with fixed or unknown sizes, states, strings, lists.

use quince_tensor::DType;
use std::fmt;

/// The size along one axis, as far as the program says it. Which sizes an unknown one may take is said at the
/// function's input ([`crate::Flexibility`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Known only when the program runs.
    Unknown,
}

impl Dim {
    /// The size, if it is fixed.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::Unknown => None,
        }
    }

    /// Whether both may be the same size.
    pub fn fits(self, other: Dim) -> bool {
        self == Dim::Unknown || other == Dim::Unknown || self == other
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Element type and size along each axis.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The size along each axis; empty for a scalar.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type whose sizes are all fixed.
    pub fn fixed(dtype: DType, shape: &[usize]) -> TensorType {
        TensorType { dtype, shape: shape.iter().map(|&n| Dim::Fixed(n)).collect() }
    }

    /// The sizes, if all are fixed.
    pub fn dims(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(|dim| dim.fixed()).collect()
    }

    /// Whether a value can be of both types: same element type and rank, and sizes that do not contradict.
    pub fn fits(&self, other: &TensorType) -> bool {
        self.dtype == other.dtype
            && self.shape.len() == other.shape.len()
            && self.shape.iter().zip(&other.shape).all(|(a, b)| a.fits(*b))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor<{}, [", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]>")
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The type of a value. It prints as MIL text writes it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// A tensor, or a scalar as a tensor of rank 0.
    Tensor(TensorType),
    /// A tensor that outlives the call (Core ML's `MLState`), such as a KV cache.
    State(TensorType),
    /// A string, as parameters like `pad_type` are.
    String,
    /// A list whose elements have one type; the length may be unknown.
    List(Box<ValueType>, Dim),
    /// Values of several types.
    Tuple(Vec<ValueType>),
    /// A map from keys to values, used in attributes.
    Dictionary(Box<ValueType>, Box<ValueType>),
}

impl ValueType {
    /// A tensor type whose sizes are all fixed.
    pub fn tensor(dtype: DType, shape: &[usize]) -> ValueType {
        ValueType::Tensor(TensorType::fixed(dtype, shape))
    }

    /// The tensor type, also of a state.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(t) | ValueType::State(t) => Some(t),
            _ => None,
        }
    }

    /// Whether a value can be of both types.
    pub fn fits(&self, other: &ValueType) -> bool {
        match (self, other) {
            (ValueType::Tensor(a), ValueType::Tensor(b)) | (ValueType::State(a), ValueType::State(b)) => a.fits(b),
            (ValueType::List(a, n), ValueType::List(b, m)) => n.fits(*m) && a.fits(b),
            (ValueType::Tuple(a), ValueType::Tuple(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.fits(b)),
            (a, b) => a == b,
        }
    }
}

impl From<TensorType> for ValueType {
    fn from(ty: TensorType) -> ValueType {
        ValueType::Tensor(ty)
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(t) if t.shape.is_empty() => write!(f, "{}", t.dtype),
            ValueType::Tensor(t) => write!(f, "{t}"),
            ValueType::State(t) => write!(f, "state<{t}>"),
            ValueType::String => f.write_str("string"),
            ValueType::List(element, len) => write!(f, "list<{element}, {len}>"),
            ValueType::Tuple(types) => {
                f.write_str("tuple<")?;
                for (i, ty) in types.iter().enumerate() {
                    write!(f, "{}{ty}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(">")
            }
            ValueType::Dictionary(key, value) => write!(f, "dict<{key}, {value}>"),
        }
    }
}

impl fmt::Debug for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
