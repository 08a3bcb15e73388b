//! Flexible shapes of inputs as the function attribute `FlexibleShapeInformation`: default shapes by input, ranges by
//! input and axis, enumerated shapes as groups of one shape for each input.

use crate::{DType, Dim, Flexibility, Tensor, TensorType, Value, ValueType};

/// The name of the attribute.
pub const ATTRIBUTE: &str = "FlexibleShapeInformation";

const DEFAULTS: &str = "DefaultShapes";
const RANGES: &str = "RangeDims";
const ENUMERATED: &str = "EnumeratedShapes";

/// The attribute for inputs of these names and shapes; `None` if all are fixed.
pub fn to_value(inputs: &[(&str, &Flexibility)]) -> Option<Value> {
    let (mut defaults, mut ranges, mut groups) = (Vec::new(), Vec::new(), Vec::<Vec<(Value, Value)>>::new());
    for (name, flexibility) in inputs {
        match flexibility {
            Flexibility::Fixed => {}
            Flexibility::Range { bounds, default } => {
                defaults.push((Value::from(*name), shape(default)));
                let bounds = bounds.iter().map(|(low, high)| Value::from(vec![int(*low), high.map_or(-1, int)]));
                ranges.push((Value::from(*name), Value::List(pair_type(), bounds.collect())));
            }
            Flexibility::Enumerated(shapes) => {
                defaults.extend(shapes.first().map(|default| (Value::from(*name), shape(default))));
                groups.resize(groups.len().max(shapes.len()), Vec::new());
                for (group, sizes) in groups.iter_mut().zip(shapes) {
                    group.push((Value::from(*name), shape(sizes)));
                }
            }
        }
    }
    let entry = |key: &str, ty: ValueType, pairs| {
        Value::Tuple(vec![Value::from(key), Value::Dictionary(ValueType::String, ty, pairs)])
    };
    let mut parts = vec![entry(DEFAULTS, shape_type(), defaults)];
    if !ranges.is_empty() {
        parts.push(entry(RANGES, ValueType::List(Box::new(pair_type()), Dim::Unknown), ranges));
    }
    if !groups.is_empty() {
        let ty = ValueType::Dictionary(Box::new(ValueType::String), Box::new(shape_type()));
        let group = |(i, pairs): (usize, Vec<(Value, Value)>)| {
            (Value::from(&*i.to_string()), Value::Dictionary(ValueType::String, shape_type(), pairs))
        };
        parts.push(entry(ENUMERATED, ty, groups.into_iter().enumerate().map(group).collect()));
    }
    (parts.len() > 1).then_some(Value::Tuple(parts))
}

/// What the attribute says of the input of this name: `None` if it has another form than the one above.
pub fn from_value(value: &Value, name: &str) -> Option<Flexibility> {
    let Value::Tuple(parts) = value else { return None };
    let (mut default, mut bounds, mut shapes) = (None, None, Vec::new());
    for part in parts {
        let Value::Tuple(part) = part else { return None };
        let [Value::String(key), Value::Dictionary(_, _, pairs)] = &part[..] else { return None };
        match key.as_str() {
            DEFAULTS => default = find(pairs, name).map(|v| sizes(v).ok_or(())).transpose().ok()?,
            RANGES => bounds = find(pairs, name).map(|v| ranges(v).ok_or(())).transpose().ok()?,
            ENUMERATED => {
                for (_, group) in pairs {
                    let Value::Dictionary(_, _, pairs) = group else { return None };
                    if let Some(shape) = find(pairs, name) {
                        shapes.push(sizes(shape)?);
                    }
                }
            }
            _ => return None,
        }
    }
    match (default, bounds, shapes.is_empty()) {
        (Some(default), Some(bounds), true) => Some(Flexibility::Range { bounds, default }),
        (Some(default), None, false) => {
            // The default comes first.
            let at = shapes.iter().position(|shape| *shape == default)?;
            shapes[..=at].rotate_right(1);
            Some(Flexibility::Enumerated(shapes))
        }
        (None, None, true) => Some(Flexibility::Fixed),
        _ => None,
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn shape(sizes: &[usize]) -> Value {
    Value::Tensor(Tensor::vector(sizes.iter().map(|&n| int(n)).collect::<Vec<i32>>()))
}

fn shape_type() -> ValueType {
    TensorType { dtype: DType::I32, shape: vec![Dim::Unknown] }.into()
}

fn pair_type() -> ValueType {
    ValueType::tensor(DType::I32, &[2])
}

fn find<'a>(pairs: &'a [(Value, Value)], name: &str) -> Option<&'a Value> {
    pairs.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

fn ints(value: &Value) -> Option<Vec<i64>> {
    match value {
        Value::Tensor(tensor) if tensor.rank() == 1 => tensor.to_i64().ok(),
        _ => None,
    }
}

fn sizes(value: &Value) -> Option<Vec<usize>> {
    ints(value)?.into_iter().map(|n| usize::try_from(n).ok()).collect()
}

fn ranges(value: &Value) -> Option<Vec<(usize, Option<usize>)>> {
    let Value::List(_, pairs) = value else { return None };
    let range = |pair: &Value| match ints(pair)?[..] {
        [low, -1] => Some((usize::try_from(low).ok()?, None)),
        [low, high] => Some((usize::try_from(low).ok()?, Some(usize::try_from(high).ok()?))),
        _ => None,
    };
    pairs.iter().map(range).collect()
}
