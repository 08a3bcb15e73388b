//! Value types of the program to and from their messages.

use quince_mil::{Dim, TensorType, ValueType};
use quince_tensor::{DType, Error, Result, bail};

use crate::proto::mil::{self, DataType, dimension, value_type::Type};

/// Element types with their codes in a program.
const DATA_TYPES: &[(DataType, DType)] = &[
    (DataType::Bool, DType::Bool),
    (DataType::Float16, DType::F16),
    (DataType::Float32, DType::F32),
    (DataType::Float64, DType::F64),
    (DataType::BFloat16, DType::BF16),
    (DataType::Int8, DType::I8),
    (DataType::Int16, DType::I16),
    (DataType::Int32, DType::I32),
    (DataType::Int64, DType::I64),
    (DataType::Int4, DType::I4),
    (DataType::UInt8, DType::U8),
    (DataType::UInt16, DType::U16),
    (DataType::UInt32, DType::U32),
    (DataType::UInt64, DType::U64),
    (DataType::UInt4, DType::U4),
    (DataType::UInt2, DType::U2),
    (DataType::UInt1, DType::U1),
    (DataType::UInt6, DType::U6),
    (DataType::UInt3, DType::U3),
    (DataType::Float8E4M3Fn, DType::F8E4M3FN),
    (DataType::Float8E5M2, DType::F8E5M2),
];

/// The type that a message describes.
pub fn from_proto(message: Option<&mil::ValueType>) -> Result<ValueType> {
    let Some(ty) = message.and_then(|m| m.r#type.as_ref()) else { bail!("found no type, expected one") };
    Ok(match ty {
        Type::Tensor(t) if t.data_type == DataType::String as i32 => {
            if t.rank != 0 || !t.dimensions.is_empty() {
                bail!("found a tensor of strings of rank {}, expected a single string", t.rank);
            }
            ValueType::String
        }
        Type::Tensor(t) => ValueType::Tensor(tensor(t)?),
        Type::List(t) => {
            let length = t.length.as_ref().map(dim).transpose()?;
            ValueType::List(Box::new(from_proto(t.r#type.as_ref())?), length.unwrap_or(Dim::Unknown))
        }
        Type::Tuple(t) => ValueType::Tuple(t.types.iter().map(|t| from_proto(Some(t))).collect::<Result<_>>()?),
        Type::Dictionary(t) => {
            let (key, value) = (from_proto(t.key_type.as_ref())?, from_proto(t.value_type.as_ref())?);
            ValueType::Dictionary(Box::new(key), Box::new(value))
        }
        Type::State(t) => match from_proto(t.wrapped_type.as_ref())? {
            ValueType::Tensor(t) => ValueType::State(t),
            other => bail!("found a state of type {other}, expected a tensor in it"),
        },
    })
}

fn tensor(t: &mil::TensorType) -> Result<TensorType> {
    let Some((_, dtype)) = DATA_TYPES.iter().find(|(code, _)| *code as i32 == t.data_type) else {
        bail!("element type {} is not known", t.data_type; hint: "a newer version of quince may know it");
    };
    if t.rank != t.dimensions.len() as i64 {
        bail!("found rank {} with {} dimensions, expected as many", t.rank, t.dimensions.len());
    }
    if let Some(name) = t.attributes.keys().next() {
        bail!("the tensor type has an attribute `{name}`, which would be lost");
    }
    Ok(TensorType { dtype: *dtype, shape: t.dimensions.iter().map(dim).collect::<Result<_>>()? })
}

fn dim(message: &mil::Dimension) -> Result<Dim> {
    use dimension::Dimension::{Constant, Unknown};
    match &message.dimension {
        Some(Constant(c)) => usize::try_from(c.size)
            .map(Dim::Fixed)
            .map_err(|_| Error::new(format!("size {} is larger than memory can address", c.size))),
        Some(Unknown(u)) if !u.variadic => Ok(Dim::Unknown),
        Some(Unknown(_)) => bail!("found a variadic dimension, expected a size or one unknown size"),
        None => bail!("found an empty dimension, expected a size or an unknown size"),
    }
}

/// The message that describes a type.
pub fn to_proto(ty: &ValueType) -> mil::ValueType {
    let ty = match ty {
        ValueType::Tensor(t) => Type::Tensor(tensor_to_proto(t)),
        ValueType::String => Type::Tensor(mil::TensorType { data_type: DataType::String as i32, ..Default::default() }),
        ValueType::List(element, length) => {
            Type::List(Box::new(mil::ListType { r#type: Some(to_proto(element)), length: Some(dim_to_proto(*length)) }))
        }
        ValueType::Tuple(types) => Type::Tuple(mil::TupleType { types: types.iter().map(to_proto).collect() }),
        ValueType::Dictionary(key, value) => Type::Dictionary(Box::new(mil::DictionaryType {
            key_type: Some(to_proto(key)),
            value_type: Some(to_proto(value)),
        })),
        ValueType::State(t) => {
            let wrapped = mil::ValueType { r#type: Some(Type::Tensor(tensor_to_proto(t))) };
            Type::State(Box::new(mil::StateType { wrapped_type: Some(wrapped) }))
        }
    };
    mil::ValueType { r#type: Some(ty) }
}

fn tensor_to_proto(t: &TensorType) -> mil::TensorType {
    let data_type = DATA_TYPES.iter().find(|(_, dtype)| *dtype == t.dtype).map_or(DataType::Unused, |(code, _)| *code);
    mil::TensorType {
        data_type: data_type as i32,
        rank: t.shape.len() as i64,
        dimensions: t.shape.iter().map(|d| dim_to_proto(*d)).collect(),
        attributes: Default::default(),
    }
}

fn dim_to_proto(dim: Dim) -> mil::Dimension {
    use dimension::{ConstantDimension, Dimension, UnknownDimension};
    let dimension = match dim {
        Dim::Fixed(n) => Dimension::Constant(ConstantDimension { size: n as u64 }),
        Dim::Unknown => Dimension::Unknown(UnknownDimension { variadic: false }),
    };
    mil::Dimension { dimension: Some(dimension) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_comes_back() {
        for dtype in DType::all() {
            assert!(DATA_TYPES.iter().any(|(_, d)| *d == dtype), "{dtype} has no code");
        }
        let tensor = TensorType { dtype: DType::U3, shape: vec![Dim::Fixed(2), Dim::Unknown] };
        let types = [
            ValueType::Tensor(tensor.clone()),
            ValueType::State(tensor.clone()),
            ValueType::String,
            ValueType::List(Box::new(tensor.clone().into()), Dim::Unknown),
            ValueType::Tuple(vec![tensor.clone().into(), ValueType::String]),
            ValueType::Dictionary(Box::new(ValueType::String), Box::new(tensor.into())),
        ];
        for ty in types {
            assert_eq!(from_proto(Some(&to_proto(&ty))).unwrap(), ty);
        }
    }

    #[test]
    fn ranks_that_lie_are_refused() {
        let mut message = tensor_to_proto(&TensorType::fixed(DType::F32, &[2, 3]));
        for rank in [-1, 0, 1, 3, i64::MAX] {
            message.rank = rank;
            let ty = mil::ValueType { r#type: Some(Type::Tensor(message.clone())) };
            assert!(from_proto(Some(&ty)).unwrap_err().to_string().contains("dimensions"), "{rank}");
        }
    }
}
