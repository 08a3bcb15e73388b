//! Constants written in place: tensors, strings, lists, tuples and dictionaries to and from their messages.

use quince_mil::{TensorType, Value, ValueType};
use quince_tensor::{Bytes, DType, Error, Result, Tensor, bail};

use crate::proto::mil::{self, tensor_value::Value as Elements, value::Value as Place};
use crate::proto::mil::{
    KeyValuePair, tensor_value as repeated, value::ImmediateValue, value::immediate_value as kinds,
};
use crate::types;

/// The value that a message holds in place; `nested` reads the values inside lists, tuples and dictionaries.
pub fn from_immediate(
    ty: &ValueType,
    immediate: &ImmediateValue,
    nested: &mut dyn FnMut(&mil::Value) -> Result<Value>,
) -> Result<Value> {
    let value = match (ty, &immediate.value) {
        (ValueType::String, Some(kinds::Value::Tensor(t))) => match &t.value {
            Some(Elements::Strings(strings)) if strings.values.len() == 1 => Value::from(strings.values[0].as_str()),
            _ => bail!("found no single string, expected one"),
        },
        (ValueType::Tensor(ty), Some(kinds::Value::Tensor(t))) => Value::Tensor(tensor(ty, t)?),
        (ValueType::List(element, _), Some(kinds::Value::List(list))) => {
            let values: Vec<Value> = list.values.iter().map(nested).collect::<Result<_>>()?;
            if let Some(odd) = values.iter().find(|v| !v.value_type().fits(element)) {
                bail!("found a {} in a list of {element}", odd.value_type());
            }
            Value::List((**element).clone(), values)
        }
        (ValueType::Tuple(_), Some(kinds::Value::Tuple(tuple))) => {
            Value::Tuple(tuple.values.iter().map(nested).collect::<Result<_>>()?)
        }
        (ValueType::Dictionary(key, value), Some(kinds::Value::Dictionary(dictionary))) => {
            let mut side = |v: &Option<mil::Value>| match v {
                Some(v) => nested(v),
                None => bail!("found half a pair in a dictionary, expected a key and a value"),
            };
            let pairs = dictionary.values.iter().map(|pair| Ok((side(&pair.key)?, side(&pair.value)?)));
            Value::Dictionary((**key).clone(), (**value).clone(), pairs.collect::<Result<_>>()?)
        }
        (ty, _) => bail!("found a value of another kind, expected a {ty}"),
    };
    if value.value_type() != *ty {
        bail!("found a {}, expected a {ty}", value.value_type());
    }
    Ok(value)
}

fn tensor(ty: &TensorType, message: &mil::TensorValue) -> Result<Tensor> {
    use DType::*;
    let Some(shape) = ty.dims() else { bail!("found a constant of unknown size {ty}, expected fixed sizes") };
    match (ty.dtype, &message.value) {
        (F32, Some(Elements::Floats(v))) => Tensor::from_vec(shape, v.values.clone()),
        (F64, Some(Elements::Doubles(v))) => Tensor::from_vec(shape, v.values.clone()),
        (Bool, Some(Elements::Bools(v))) => Tensor::from_bools(shape, &v.values),
        (I32, Some(Elements::Ints(v))) => Tensor::from_vec(shape, v.values.clone()),
        (I16, Some(Elements::Ints(v))) => Tensor::from_vec(shape, narrow::<i16>(&v.values)?),
        (U16, Some(Elements::Ints(v))) => Tensor::from_vec(shape, narrow::<u16>(&v.values)?),
        (I64, Some(Elements::LongInts(v))) => Tensor::from_vec(shape, v.values.clone()),
        (U64, Some(Elements::LongInts(v))) => Tensor::from_vec(shape, v.values.iter().map(|x| *x as u64).collect()),
        (F16 | BF16 | F8E4M3FN | F8E5M2 | I8 | U8 | U32 | I4 | U1 | U2 | U3 | U4 | U6, Some(Elements::Bytes(v))) => {
            Ok(Tensor::new(ty.dtype, shape, Bytes::from_vec(v.values.clone()))?.aligned())
        }
        (dtype, _) => bail!("the elements of the {dtype} constant are stored as another type"),
    }
}

fn narrow<T: TryFrom<i32>>(values: &[i32]) -> Result<Vec<T>> {
    let one = |v: &i32| T::try_from(*v).map_err(|_| Error::new(format!("{v} does not fit in 16 bits")));
    values.iter().map(one).collect()
}

/// The message of a value that is stored in place.
pub fn to_proto(value: &Value) -> Result<mil::Value> {
    let kind = match value {
        Value::Tensor(t) => kinds::Value::Tensor(tensor_to_proto(t)?),
        Value::Weight(w) => kinds::Value::Tensor(tensor_to_proto(&w.load()?)?),
        Value::String(s) => kinds::Value::Tensor(mil::TensorValue {
            value: Some(Elements::Strings(repeated::RepeatedStrings { values: vec![s.clone()] })),
        }),
        Value::List(_, values) => kinds::Value::List(mil::ListValue { values: all_to_proto(values)? }),
        Value::Tuple(values) => kinds::Value::Tuple(mil::TupleValue { values: all_to_proto(values)? }),
        Value::Dictionary(_, _, pairs) => {
            let pair =
                |(k, v): &(Value, Value)| Ok(KeyValuePair { key: Some(to_proto(k)?), value: Some(to_proto(v)?) });
            kinds::Value::Dictionary(mil::DictionaryValue { values: pairs.iter().map(pair).collect::<Result<_>>()? })
        }
    };
    let place = Place::Immediate(ImmediateValue { value: Some(kind) });
    Ok(mil::Value { doc_string: String::new(), r#type: Some(types::to_proto(&value.value_type())), value: Some(place) })
}

fn all_to_proto(values: &[Value]) -> Result<Vec<mil::Value>> {
    values.iter().map(to_proto).collect()
}

fn tensor_to_proto(tensor: &Tensor) -> Result<mil::TensorValue> {
    use DType::*;
    let bytes = tensor.bytes();
    let value = match tensor.dtype() {
        F32 => Elements::Floats(repeated::RepeatedFloats { values: numbers(bytes, f32::from_le_bytes) }),
        F64 => Elements::Doubles(repeated::RepeatedDoubles { values: numbers(bytes, f64::from_le_bytes) }),
        Bool => Elements::Bools(repeated::RepeatedBools { values: tensor.to_bools()? }),
        I32 => Elements::Ints(repeated::RepeatedInts { values: numbers(bytes, i32::from_le_bytes) }),
        I16 => Elements::Ints(repeated::RepeatedInts { values: numbers(bytes, |b| i16::from_le_bytes(b).into()) }),
        U16 => Elements::Ints(repeated::RepeatedInts { values: numbers(bytes, |b| u16::from_le_bytes(b).into()) }),
        I64 | U64 => Elements::LongInts(repeated::RepeatedLongInts { values: numbers(bytes, i64::from_le_bytes) }),
        F16 | BF16 | F8E4M3FN | F8E5M2 | I8 | U8 | U32 | I4 | U1 | U2 | U3 | U4 | U6 => {
            Elements::Bytes(repeated::RepeatedBytes { values: bytes.to_vec() })
        }
    };
    Ok(mil::TensorValue { value: Some(value) })
}

fn numbers<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| from(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(message: &mil::Value) -> Result<Value> {
        let ty = types::from_proto(message.r#type.as_ref())?;
        match &message.value {
            Some(Place::Immediate(immediate)) => from_immediate(&ty, immediate, &mut back),
            _ => bail!("not in place"),
        }
    }

    #[test]
    fn every_element_type_comes_back() {
        for dtype in DType::all() {
            let bytes: Vec<u8> = (0..dtype.byte_len(3).unwrap() as u8).map(|i| i % 2).collect();
            let tensor = Tensor::new(dtype, [3], Bytes::from_vec(bytes)).unwrap();
            let again = back(&to_proto(&tensor.clone().into()).unwrap()).unwrap().tensor().unwrap();
            assert!(again.same(&tensor), "{dtype}");
        }
        let nested = Value::Tuple(vec![
            Value::List(ValueType::String, vec!["a".into(), "b".into()]),
            Value::Dictionary(ValueType::String, ValueType::String, vec![("k".into(), "v".into())]),
        ]);
        let again = back(&to_proto(&nested).unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{nested:?}"));
    }

    #[test]
    fn values_that_do_not_fit_their_type_are_refused() {
        let message = |ty: ValueType, elements: Elements| mil::Value {
            doc_string: String::new(),
            r#type: Some(types::to_proto(&ty)),
            value: Some(Place::Immediate(ImmediateValue {
                value: Some(kinds::Value::Tensor(mil::TensorValue { value: Some(elements) })),
            })),
        };
        let ints = |values: &[i32]| Elements::Ints(repeated::RepeatedInts { values: values.to_vec() });
        let i16s = ValueType::tensor(DType::I16, &[2]);
        assert!(back(&message(i16s.clone(), ints(&[1, -2]))).is_ok());
        assert!(back(&message(i16s.clone(), ints(&[1]))).is_err());
        assert!(back(&message(i16s, ints(&[1, 1 << 15]))).unwrap_err().to_string().contains("16 bits"));
        assert!(back(&message(ValueType::tensor(DType::F32, &[1]), ints(&[1]))).is_err());
        assert!(back(&message(ValueType::tensor(DType::I32, &[usize::MAX, 9]), ints(&[1]))).is_err());
    }
}
