//! What the model description says of inputs, outputs and states, and what the program knows of them.
//!
//! A description that was read is written again as it was, as long as it says what the program says; otherwise it is
//! made anew from the program and keeps only its text, its optionality and its default value.

use quince_mil::{Flexibility, Function, TensorType, ValueType, Var};
use quince_tensor::{DType, Result, bail};

use crate::proto::feature::array_feature_type::{self as array, ShapeFlexibility};
use crate::proto::feature::{
    ArrayDataType, ArrayFeatureType, FeatureType, SizeRange, StateFeatureType, feature_type, state_feature_type,
};
use crate::proto::model::{FeatureDescription, FunctionDescription};

/// Element types of inputs and outputs with their codes and the first specification version that has them.
const ARRAY_TYPES: &[(ArrayDataType, DType, i32)] = &[
    (ArrayDataType::Float32, DType::F32, 1),
    (ArrayDataType::Double, DType::F64, 1),
    (ArrayDataType::Int32, DType::I32, 1),
    (ArrayDataType::Float16, DType::F16, 7),
    (ArrayDataType::Int8, DType::I8, 10),
];

/// Which shapes the described input may have.
pub fn flexibility(description: Option<&FeatureDescription>) -> Result<Flexibility> {
    let Some(feature_type::Type::MultiArray(a)) = description.and_then(|d| d.r#type.as_ref()?.r#type.as_ref()) else {
        return Ok(Flexibility::Fixed);
    };
    let default = sizes(&a.shape)?;
    Ok(match &a.shape_flexibility {
        None => Flexibility::Fixed,
        Some(ShapeFlexibility::EnumeratedShapes(shapes)) => {
            let mut shapes = shapes.shapes.iter().map(|s| sizes(&s.shape)).collect::<Result<Vec<_>>>()?;
            if shapes.is_empty() {
                bail!("found an empty list of shapes, expected at least one");
            }
            if !default.is_empty() {
                let Some(at) = shapes.iter().position(|s| *s == default) else {
                    bail!("the default shape {default:?} is none of the shapes {shapes:?}");
                };
                // Inputs are matched by index, so the order after the default stays.
                let chosen = shapes.remove(at);
                shapes.insert(0, chosen);
            }
            Flexibility::Enumerated(shapes)
        }
        Some(ShapeFlexibility::ShapeRange(ranges)) => {
            let bounds = ranges.size_ranges.iter().map(bounds).collect::<Result<Vec<_>>>()?;
            let default = if default.is_empty() { bounds.iter().map(|b| b.0).collect() } else { default };
            if default.len() != bounds.len() {
                bail!("found {} ranges for a default shape {default:?}, expected as many", bounds.len());
            }
            Flexibility::Range { bounds, default }
        }
    })
}

fn sizes(shape: &[i64]) -> Result<Vec<usize>> {
    let size = |n: &i64| match usize::try_from(*n) {
        Ok(n) => Ok(n),
        Err(_) => bail!("found the size {n} in the shape {shape:?}, expected no negative one"),
    };
    shape.iter().map(size).collect()
}

fn bounds(range: &SizeRange) -> Result<(usize, Option<usize>)> {
    let upper = usize::try_from(range.upper_bound).ok();
    match usize::try_from(range.lower_bound) {
        Ok(lower) if upper.is_none_or(|upper| lower <= upper) => Ok((lower, upper)),
        _ => bail!("found the range {} to {}, expected it to be one", range.lower_bound, range.upper_bound),
    }
}

/// Describes a function: `name` gives the identifiers of its inputs and outputs, `read` is the description it was read
/// with, `specification` the version of the package.
pub fn describe(
    function: &Function,
    name: impl Fn(quince_mil::Var) -> String,
    read: &FunctionDescription,
    specification: i32,
) -> Result<FunctionDescription> {
    let mut described = FunctionDescription { input: vec![], output: vec![], state: vec![], ..read.clone() };
    for input in &function.inputs {
        let (name, ty) = (name(input.var), function.ty(input.var));
        let place = |e: quince_tensor::Error| e.at(format!("input `{name}`"));
        match ty {
            ValueType::State(ty) => {
                described.state.push(state(&name, ty, &read.state, specification).map_err(place)?);
            }
            ty => {
                let mut array = array_type(ty, &input.flexibility, specification).map_err(place)?;
                let agrees = |d: &FeatureDescription| {
                    flexibility(Some(d)).is_ok_and(|f| f == input.flexibility) && agree(d, ty, &array)
                };
                if let Some(kept) = read.input.iter().find(|d| d.name == name && agrees(d)) {
                    described.input.push(kept.clone());
                    continue;
                }
                check_flexibility(ty, &input.flexibility).map_err(place)?;
                if array.shape.is_empty() {
                    array.shape.push(1); // Core ML describes a scalar input as an array of one element.
                }
                described.input.push(feature(&name, array, &read.input));
            }
        }
    }
    for &output in &function.block.outputs {
        let (name, ty) = (name(output), function.ty(output));
        let array = array_type(ty, &Flexibility::Fixed, specification).map_err(|e| e.at(format!("output `{name}`")))?;
        let kept = read.output.iter().find(|d| d.name == name && agree(d, ty, &array)).cloned();
        described.output.push(kept.unwrap_or_else(|| feature(&name, array, &read.output)));
    }
    restore_order(&mut described.input, &read.input);
    restore_order(&mut described.output, &read.output);
    restore_order(&mut described.state, &read.state);
    Ok(described)
}

fn array_code(dtype: DType, specification: i32) -> Result<ArrayDataType> {
    match ARRAY_TYPES.iter().find(|(_, d, _)| *d == dtype) {
        Some((code, _, since)) if *since <= specification => Ok(*code),
        Some((_, _, since)) => bail!(
            "{dtype} needs specification version {since}, the package has {specification}";
            hint: "choose a newer deployment target or fp32 inputs and outputs"
        ),
        None => bail!("Core ML has no inputs and outputs of {dtype}"; hint: "cast it to int32, fp16 or fp32"),
    }
}

/// The array that inputs or outputs of this type are; sizes that are known only at run time leave the shape out.
fn array_type(ty: &ValueType, flexibility: &Flexibility, specification: i32) -> Result<ArrayFeatureType> {
    let ValueType::Tensor(ty) = ty else { bail!("found a {ty}, expected a tensor") };
    let signed = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect::<Vec<_>>();
    let mut array = ArrayFeatureType {
        data_type: array_code(ty.dtype, specification)? as i32,
        shape: ty.dims().map(|dims| signed(&dims)).unwrap_or_default(),
        ..Default::default()
    };
    match flexibility {
        Flexibility::Fixed => {}
        Flexibility::Enumerated(shapes) => {
            array.shape = shapes.first().map(|s| signed(s)).unwrap_or_default();
            let shapes = shapes.iter().map(|s| array::Shape { shape: signed(s) }).collect();
            array.shape_flexibility = Some(ShapeFlexibility::EnumeratedShapes(array::EnumeratedShapes { shapes }));
        }
        Flexibility::Range { bounds, default } => {
            array.shape = signed(default);
            let range = |(lower, upper): &(usize, Option<usize>)| SizeRange {
                lower_bound: *lower as u64,
                upper_bound: upper.map_or(-1, |n| n as i64),
            };
            let size_ranges = bounds.iter().map(range).collect();
            array.shape_flexibility = Some(ShapeFlexibility::ShapeRange(array::ShapeRange { size_ranges }));
        }
    }
    Ok(array)
}

/// Whether a description says of element type and fixed sizes what the program says.
fn agree(description: &FeatureDescription, ty: &ValueType, array: &ArrayFeatureType) -> bool {
    match description.r#type.as_ref().and_then(|t| t.r#type.as_ref()) {
        Some(feature_type::Type::MultiArray(read)) => {
            let Some(ty) = ty.as_tensor() else { return false };
            // A scalar is described as an array of one element, and sizes may be left out.
            let scalar = ty.shape.is_empty() && read.shape == [1];
            let same = |(dim, &size): (&quince_mil::Dim, &i64)| dim.fixed().is_none_or(|n| n as i64 == size);
            let fits = read.shape.len() == ty.shape.len() && ty.shape.iter().zip(&read.shape).all(same);
            read.data_type == array.data_type && (read.shape.is_empty() || scalar || fits)
        }
        // Images, numbers and dictionaries are facts of the interface that the program does not know.
        Some(_) => true,
        None => false,
    }
}

/// Inputs, outputs and states that the description says another element type of than the program, with that type; none where
/// it is one that no array has.
pub fn contradictions(function: &Function, read: &FunctionDescription) -> Vec<(Var, Option<DType>)> {
    let described = |var: Var, features: &[FeatureDescription]| {
        let feature = features.iter().find(|feature| feature.name == function.var(var).name)?;
        let code = match feature.r#type.as_ref()?.r#type.as_ref()? {
            feature_type::Type::MultiArray(array) => array.data_type,
            feature_type::Type::State(state) => match state.r#type.as_ref()? {
                state_feature_type::Type::Array(array) => array.data_type,
            },
            _ => return None,
        };
        let (ValueType::Tensor(ty) | ValueType::State(ty)) = function.ty(var) else { return None };
        let dtype = ARRAY_TYPES.iter().find(|(known, ..)| *known as i32 == code).map(|(_, dtype, _)| *dtype);
        (dtype != Some(ty.dtype)).then_some((var, dtype))
    };
    let inputs = function.inputs.iter().flat_map(|input| [(input.var, &read.input), (input.var, &read.state)]);
    let outputs = function.block.outputs.iter().map(|var| (*var, &read.output));
    inputs.chain(outputs).filter_map(|(var, features)| described(var, features)).collect()
}

/// Whether the shapes that an input may have are those of its type.
fn check_flexibility(ty: &ValueType, flexibility: &Flexibility) -> Result<()> {
    let Some(ty) = ty.as_tensor() else { return Ok(()) };
    let takes = |shape: &[usize]| {
        shape.len() == ty.shape.len() && ty.shape.iter().zip(shape).all(|(d, &n)| d.fits(quince_mil::Dim::Fixed(n)))
    };
    match flexibility {
        Flexibility::Fixed if ty.dims().is_none() => {
            bail!("{ty} has an unknown size, expected a range or a list of shapes for it")
        }
        Flexibility::Fixed => {}
        Flexibility::Enumerated(shapes) => {
            if let Some(shape) = shapes.iter().find(|shape| !takes(shape)) {
                bail!("the shape {shape:?} does not go with {ty}");
            }
        }
        Flexibility::Range { bounds, default } => {
            let inside =
                |(&n, &(low, high)): (&usize, &(usize, Option<usize>))| n >= low && high.is_none_or(|h| n <= h);
            if !takes(default) || bounds.len() != default.len() || !default.iter().zip(bounds).all(inside) {
                bail!("the default shape {default:?} with bounds {bounds:?} does not go with {ty}");
            }
        }
    }
    Ok(())
}

/// A description made anew, with what only the old one knows.
fn feature(name: &str, mut array: ArrayFeatureType, read: &[FeatureDescription]) -> FeatureDescription {
    let read = read.iter().find(|d| d.name == name);
    let old = read.and_then(|d| d.r#type.as_ref());
    if let Some(feature_type::Type::MultiArray(old)) = old.and_then(|t| t.r#type.as_ref()) {
        array.default_optional_value = old.default_optional_value;
    }
    let ty = FeatureType {
        r#type: Some(feature_type::Type::MultiArray(array)),
        is_optional: old.is_some_and(|t| t.is_optional),
    };
    let short_description = read.map(|d| d.short_description.clone()).unwrap_or_default();
    FeatureDescription { name: name.to_owned(), short_description, r#type: Some(ty) }
}

fn state(name: &str, ty: &TensorType, read: &[FeatureDescription], specification: i32) -> Result<FeatureDescription> {
    if specification < 9 {
        bail!("states need specification version 9, the package has {specification}"; hint: "target iOS 18 or newer");
    }
    if ty.dtype != DType::F16 && (ty.dtype != DType::I8 || specification < 10) {
        bail!("found a state of {}, expected fp16 (or int8 from iOS 26)", ty.dtype; hint: "cast what it holds");
    }
    let Some(shape) = ty.dims() else { bail!("the state has an unknown size {ty}, expected fixed sizes") };
    let array = ArrayFeatureType {
        data_type: array_code(ty.dtype, specification)? as i32,
        shape: shape.iter().map(|&n| n as i64).collect(),
        ..Default::default()
    };
    let array = StateFeatureType { r#type: Some(state_feature_type::Type::Array(array)) };
    let short_description = read.iter().find(|d| d.name == name).map(|d| d.short_description.clone());
    let ty = FeatureType { r#type: Some(feature_type::Type::State(array)), is_optional: false };
    Ok(FeatureDescription {
        name: name.to_owned(),
        short_description: short_description.unwrap_or_default(),
        r#type: Some(ty),
    })
}

/// Puts the features into the order they were read in, if they are the same ones.
fn restore_order(features: &mut [FeatureDescription], read: &[FeatureDescription]) {
    let place = |f: &FeatureDescription| read.iter().position(|r| r.name == f.name);
    if features.len() == read.len() && features.iter().all(|f| place(f).is_some()) {
        features.sort_by_key(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_mil::{Dim, Opset};

    fn function(flexibility: Flexibility) -> Function {
        let mut f = Function::new("main", Opset::CoreML8);
        let ty = TensorType { dtype: DType::I32, shape: vec![Dim::Fixed(1), Dim::Unknown] };
        f.add_input("ids", ty.into(), flexibility);
        f
    }

    fn described(f: &Function, read: &FunctionDescription) -> FunctionDescription {
        describe(f, |var| f.var(var).name.clone(), read, 9).unwrap()
    }

    #[test]
    fn flexible_shapes_come_back() {
        let range = Flexibility::Range { bounds: vec![(1, Some(1)), (1, None)], default: vec![1, 8] };
        let shapes = Flexibility::Enumerated(vec![vec![1, 8], vec![1, 4], vec![1, 16]]);
        for flexible in [range, shapes] {
            let description = described(&function(flexible.clone()), &FunctionDescription::default());
            assert_eq!(flexibility(description.input.first()).unwrap(), flexible);
        }
    }

    #[test]
    fn what_was_read_stays_unless_the_program_changed() {
        let shapes = Flexibility::Enumerated(vec![vec![1, 8], vec![1, 4]]);
        let mut read = described(&function(shapes.clone()), &FunctionDescription::default());
        read.input[0].short_description = "token ids".into();
        if let Some(feature_type::Type::MultiArray(a)) = read.input[0].r#type.as_mut().unwrap().r#type.as_mut() {
            a.default_optional_value = Some(array::DefaultOptionalValue::Int(7));
            if let Some(ShapeFlexibility::EnumeratedShapes(s)) = &mut a.shape_flexibility {
                s.shapes.reverse(); // the default last: only a description that was read says this
            }
        }
        assert_eq!(described(&function(shapes), &read), read);
        let changed = described(&function(Flexibility::Enumerated(vec![vec![1, 2]])), &read);
        assert_eq!(changed.input[0].short_description, "token ids");
        assert_eq!(flexibility(changed.input.first()).unwrap(), Flexibility::Enumerated(vec![vec![1, 2]]));
        let message = format!("{changed:?}");
        assert!(message.contains("default_optional_value: Some(Int(7))"), "{message}");
    }

    #[test]
    fn a_description_of_another_type_is_found() {
        let f = function(Flexibility::Enumerated(vec![vec![1, 8]]));
        assert_eq!(contradictions(&f, &FunctionDescription::default()), []);
        let mut read = described(&f, &FunctionDescription::default());
        assert_eq!(contradictions(&f, &read), []);
        for (code, dtype) in [(ArrayDataType::Double as i32, Some(DType::F64)), (12345, None)] {
            if let Some(feature_type::Type::MultiArray(a)) = read.input[0].r#type.as_mut().unwrap().r#type.as_mut() {
                a.data_type = code;
            }
            assert_eq!(contradictions(&f, &read), [(f.inputs[0].var, dtype)]);
        }
    }
}
