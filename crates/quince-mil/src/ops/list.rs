//! Lists of tensors of one shape: `make_list`, `list_length`, `list_read`, `list_write`, `list_gather`, `list_scatter`.
//!
//! While a program runs, a list is a tensor with one more axis, the first: its length.

use super::layout::{View, count, fixed, result};
use super::shape_rules::show;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, TensorType, Value, ValueType, bail};

/// Lists are not made longer than this: their elements are zeros until they are written.
const MOST: usize = 1 << 20;

const LS: Param = Param::new("ls");
const INDEX: Param = Param::new("index").types(&[DType::I32]);
const INDICES: Param = Param::new("indices").types(&[DType::I32]);
const VALUE: Param = Param::new("value");

/// See [`Op::doc`].
pub struct MakeList;

impl Op for MakeList {
    fn name(&self) -> &'static str {
        "make_list"
    }

    fn doc(&self) -> &'static str {
        "A list of `init_length` zeros of the shape `elem_shape` and the element type `dtype`. A size that is a string is \
         known when the first element is written."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("init_length").types(&[DType::I32]).or_int(1),
                Param::new("dynamic_length").constant().or_bool(true),
                Param::new("elem_shape").constant().variadic(),
                Param::new("dtype").constant().or_str("fp32"),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let length = match (args.bool("dynamic_length")?, args.has("init_length"), args.known("init_length")) {
            (true, ..) | (false, true, None) => Dim::Unknown,
            (false, ..) => Dim::Fixed(self::length(args)?),
        };
        let dtype = args.str("dtype")?;
        let Some(dtype) = DType::from_name(dtype) else { bail!("found the element type {dtype}, expected one of MIL") };
        let mut shape = Vec::new();
        for size in args.many("elem_shape") {
            match (&size.value, size.value.as_ref().map(|value| value.tensor().and_then(|t| t.to_i64()))) {
                (Some(Value::String(_)), _) => shape.push(Dim::Unknown),
                (Some(_), Some(Ok(sizes))) => {
                    for size in sizes {
                        match usize::try_from(size) {
                            Ok(size) => shape.push(Dim::Fixed(size)),
                            Err(_) => bail!("found the size {size} in elem_shape, expected none below 0"),
                        }
                    }
                }
                _ => bail!("found a {} in elem_shape, expected a constant", size.ty),
            }
        }
        let known: Vec<usize> = shape.iter().filter_map(|dim| dim.fixed()).collect();
        count(&known)?;
        Ok(vec![ValueType::List(Box::new(TensorType { dtype, shape }.into()), length)])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let Some(ValueType::List(element, _)) = self.infer(args)?.pop() else { bail!("found no list") };
        let Some(element) = element.as_tensor() else { bail!("found a list of {element}, expected of tensors") };
        let mut shape = vec![length(args)?];
        // What is not known yet has no elements; see `grown`.
        shape.extend(element.shape.iter().map(|dim| dim.fixed().unwrap_or(0)));
        count(&shape)?;
        Ok(vec![Tensor::zeros(element.dtype, shape)?])
    }
}

fn length(args: &Args) -> Result<usize> {
    match usize::try_from(args.int("init_length")?) {
        Ok(length) if length <= MOST => Ok(length),
        _ => bail!("found init_length {}, expected 0 to {MOST}", args.int("init_length")?),
    }
}

/// See [`Op::doc`].
pub struct ListLength;

impl Op for ListLength {
    fn name(&self) -> &'static str {
        "list_length"
    }

    fn doc(&self) -> &'static str {
        "The number of elements of the list `ls`."
    }

    fn params(&self) -> &'static [Param] {
        const { &[LS] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        element(args)?;
        result(DType::I32, vec![])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let list = args.tensor("ls")?;
        Ok(vec![Tensor::scalar(i32::try_from(list.shape().first().copied().unwrap_or(0)).unwrap_or(i32::MAX))])
    }
}

/// See [`Op::doc`].
pub struct ListRead;

impl Op for ListRead {
    fn name(&self) -> &'static str {
        "list_read"
    }

    fn doc(&self) -> &'static str {
        "The element of the list `ls` at `index`."
    }

    fn params(&self) -> &'static [Param] {
        const { &[LS, INDEX] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Ok(vec![element(args)?.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let list = args.tensor("ls")?;
        let mut taken = gathered(&list, &[args.int("index")?])?;
        taken = taken.reshape(list.shape().get(1..).unwrap_or(&[]).to_vec())?;
        Ok(vec![taken])
    }
}

/// See [`Op::doc`].
pub struct ListGather;

impl Op for ListGather {
    fn name(&self) -> &'static str {
        "list_gather"
    }

    fn doc(&self) -> &'static str {
        "The elements of the list `ls` at `indices`, [K], stacked along a new first axis."
    }

    fn params(&self) -> &'static [Param] {
        const { &[LS, INDICES] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (element, [n]) = (element(args)?, args.shape("indices")?) else {
            bail!("found indices {}, expected a vector", show(args.shape("indices")?));
        };
        result(element.dtype, [&[*n], &element.shape[..]].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![gathered(&args.tensor("ls")?, &args.ints("indices")?)?])
    }
}

/// See [`Op::doc`].
pub struct ListWrite;

impl Op for ListWrite {
    fn name(&self) -> &'static str {
        "list_write"
    }

    fn doc(&self) -> &'static str {
        "The list `ls` with `value` at `index`; it grows where it is too short, by zeros."
    }

    fn params(&self) -> &'static [Param] {
        const { &[LS, INDEX, VALUE] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        written(args, args.ty("value")?)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let value = args.tensor("value")?;
        let rows = value.reshape([&[1], value.shape()].concat())?;
        Ok(vec![scattered(args.tensor("ls")?, &[args.int("index")?], &rows)?])
    }
}

/// See [`Op::doc`].
pub struct ListScatter;

impl Op for ListScatter {
    fn name(&self) -> &'static str {
        "list_scatter"
    }

    fn doc(&self) -> &'static str {
        "The list `ls` with the rows of `value` at `indices`, [K]; it grows where it is too short, by zeros."
    }

    fn params(&self) -> &'static [Param] {
        const { &[LS, INDICES, VALUE] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (value, indices) = (args.ty("value")?, args.shape("indices")?);
        match (value.shape.split_first(), indices) {
            (Some((rows, element)), [n]) if rows.fits(*n) => {
                written(args, &TensorType { dtype: value.dtype, shape: element.to_vec() })
            }
            _ => bail!("found value {value} for indices {}, expected a row for each", show(indices)),
        }
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![scattered(args.tensor("ls")?, &args.ints("indices")?, &args.tensor("value")?)?])
    }
}

/// The type of the elements of `ls`.
fn element(args: &Args) -> Result<TensorType> {
    match args.get("ls").map(|info| &info.ty) {
        Some(ValueType::List(element, _)) => match &**element {
            ValueType::Tensor(ty) => Ok(ty.clone()),
            other => bail!("found a list of {other}, expected of tensors"),
        },
        // As it is while the program runs.
        Some(ValueType::Tensor(ty)) if !ty.shape.is_empty() => {
            Ok(TensorType { dtype: ty.dtype, shape: ty.shape[1..].to_vec() })
        }
        Some(other) => bail!("found a {other} for ls, expected a list"),
        None => bail!("the parameter `ls` is missing"),
    }
}

/// The type of `ls` after an element of this type was written to it.
fn written(args: &Args, value: &TensorType) -> Result<Vec<ValueType>> {
    let element = element(args)?;
    if !element.fits(value) {
        bail!("found a value {value}, expected an element {element}");
    }
    match args.get("ls").map(|info| &info.ty) {
        Some(ty @ ValueType::List(..)) => Ok(vec![ty.clone()]),
        _ => Ok(vec![ValueType::List(Box::new(element.into()), Dim::Unknown)]),
    }
}

/// The rows of a list at some places.
fn gathered(list: &Tensor, indices: &[i64]) -> Result<Tensor> {
    let Some((&length, element)) = list.shape().split_first() else { bail!("found {list:?}, expected a list") };
    let row = count(element)?;
    let shape = [&[indices.len()], element].concat();
    count(&shape)?;
    let mut out = Tensor::zeros(list.dtype(), shape)?;
    for (i, &index) in indices.iter().enumerate() {
        let Some(from) = usize::try_from(index).ok().filter(|&index| index < length) else {
            bail!("found the index {index}, expected one of a list of {length}");
        };
        let taken = View { first: from * row, axes: vec![(row, 1)] }.take(list)?;
        out = View { first: i * row, axes: vec![(row, 1)] }.put(&out, &taken)?;
    }
    Ok(out)
}

/// A list with rows written to some places.
fn scattered(list: Tensor, indices: &[i64], rows: &Tensor) -> Result<Tensor> {
    let Some((&given, element)) = rows.shape().split_first() else { bail!("found {rows:?}, expected rows") };
    if given != indices.len() {
        bail!("found {given} values for {} indices", indices.len());
    }
    let row = count(element)?;
    let mut list = grown(list, element, indices)?;
    for (i, &index) in indices.iter().enumerate() {
        let taken = View { first: i * row, axes: vec![(row, 1)] }.take(rows)?;
        // `grown` has refused what is no place.
        list = View { first: index as usize * row, axes: vec![(row, 1)] }.put(&list, &taken)?;
    }
    Ok(list)
}

/// A list of elements of this shape that has the places.
fn grown(list: Tensor, element: &[usize], indices: &[i64]) -> Result<Tensor> {
    let mut length = list.shape().first().copied().unwrap_or(0);
    for &index in indices {
        match usize::try_from(index) {
            Ok(index) if index < MOST => length = length.max(index + 1),
            _ => bail!("found the index {index}, expected 0 to {}", MOST - 1),
        }
    }
    let shape = [&[length], element].concat();
    if list.shape() == shape {
        return Ok(list);
    }
    let fits = list.shape().get(1..) == Some(element);
    if !fits && !list.is_empty() {
        bail!("found an element {}, expected {}", show(&fixed(element)), show(&fixed(&list.shape()[1..])));
    }
    count(&shape)?;
    let zeros = Tensor::zeros(list.dtype(), shape)?;
    if fits { View { first: 0, axes: vec![(list.len(), 1)] }.put(&zeros, &list) } else { Ok(zeros) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::op::ArgInfo;

    fn of(op: &dyn Op, values: Vec<(&str, Value)>) -> Result<Tensor> {
        Ok(op.eval(&args(op, values))?.remove(0))
    }

    fn list(length: i32) -> Tensor {
        let entries =
            vec![("init_length", vec![ArgInfo::known(length.into())]), ("elem_shape", vec![ArgInfo::known(2.into())])];
        MakeList.eval(&Args::new(&MakeList, entries)).unwrap().remove(0)
    }

    /// The steps of coremltools' test of lists, which Core ML makes.
    #[test]
    fn lists_are_written_read_and_grow() {
        let ls = of(&ListWrite, vec![("ls", list(2).into()), ("index", 0.into()), ("value", f32s(&[2], &[1.0, 3.0]))]);
        let ls =
            of(&ListWrite, vec![("ls", ls.unwrap().into()), ("index", 4.into()), ("value", f32s(&[2], &[2.0, 4.0]))]);
        let rows = f32s(&[2, 2], &[-1.0, -2.0, -4.0, -5.0]);
        let values = vec![("ls", ls.unwrap().into()), ("indices", [2, 1].into()), ("value", rows)];
        let ls: Value = of(&ListScatter, values).unwrap().into();
        let read = of(&ListRead, vec![("ls", ls.clone()), ("index", 0.into())]).unwrap();
        assert_eq!((read.shape(), read.to_f32().unwrap()), (&[2][..], vec![1.0, 3.0]));
        let gathered = of(&ListGather, vec![("ls", ls.clone()), ("indices", [4, 2, 3].into())]).unwrap();
        assert_eq!(gathered.to_f32().unwrap(), [2.0, 4.0, -1.0, -2.0, 0.0, 0.0]);
        assert_eq!(of(&ListLength, vec![("ls", ls.clone())]).unwrap().to_i64().unwrap(), [5]);
        assert!(of(&ListRead, vec![("ls", ls.clone()), ("index", 5.into())]).is_err());
        for index in [-1, i32::MAX] {
            let values = vec![("ls", ls.clone()), ("index", index.into()), ("value", iota(&[2]))];
            assert!(of(&ListWrite, values).is_err());
        }
        let wide = vec![("ls", ls), ("index", 0.into()), ("value", iota(&[3]))];
        assert!(of(&ListWrite, wide).is_err());
    }

    #[test]
    fn types_are_those_of_the_elements() {
        let make = |size: Value| {
            let entries = vec![
                ("elem_shape", vec![ArgInfo::known(size), ArgInfo::known(3.into())]),
                ("dynamic_length", vec![ArgInfo::known(false.into())]),
                ("dtype", vec![ArgInfo::known("int32".into())]),
            ];
            MakeList.infer(&Args::new(&MakeList, entries)).map(|types| types[0].to_string())
        };
        assert_eq!(make(2.into()).unwrap(), "list<tensor<int32, [2, 3]>, 1>");
        assert_eq!(make("N".into()).unwrap(), "list<tensor<int32, [?, 3]>, 1>");
        assert!(make((-1).into()).is_err());
        let ls = || {
            let element = TensorType { dtype: DType::F32, shape: vec![Dim::Unknown, Dim::Fixed(2)] };
            vec![ArgInfo::typed(ValueType::List(Box::new(element.into()), Dim::Unknown))]
        };
        let gather = vec![("ls", ls()), ("indices", typed(DType::I32, &[5]))];
        assert_eq!(inferred(&ListGather, gather).unwrap(), [5, -1, 2]);
        let write = vec![("ls", ls()), ("index", typed(DType::I32, &[])), ("value", typed(DType::F16, &[4, 2]))];
        assert!(ListWrite.infer(&Args::new(&ListWrite, write)).is_err());
    }
}
