//! `concat` and `stack`: several tensors end to end or side by side.

use super::elements::room;
use super::layout::{Cells, count, from_cells, result, result_shape};
use super::shape_rules::{axis, merge, show};
use crate::{Args, Dim, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// See [`Op::doc`].
pub struct Concat;

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn doc(&self) -> &'static str {
        "The values end to end along an axis; the other axes are equal. Scalars make a vector. With `interleave`, the \
         values have one shape and take turns along the axis."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("values").variadic(),
                Param::new("axis").constant(),
                Param::new("interleave").constant().or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let first = first(args)?;
        if first.shape.is_empty() {
            same_shapes(args)?;
            return result(first.dtype, vec![Dim::Fixed(args.many("values").len())]);
        }
        let along = axis(args.int("axis")?, first.shape.len())?;
        let mut shape = first.shape.clone();
        if args.bool("interleave")? {
            shape = same_shapes(args)?;
            shape[along] = match shape[along] {
                Dim::Fixed(n) => Dim::Fixed(n.saturating_mul(args.many("values").len())),
                Dim::Unknown => Dim::Unknown,
            };
            return result(first.dtype, shape);
        }
        for value in &args.many("values")[1..] {
            let next = value.tensor_type()?;
            if next.shape.len() != shape.len() {
                bail!("values {} and {} differ in rank", show(&first.shape), show(&next.shape));
            }
            for (i, dim) in next.shape.iter().enumerate() {
                shape[i] = match (shape[i], *dim) {
                    (Dim::Fixed(a), Dim::Fixed(b)) if i == along => Dim::Fixed(a.saturating_add(b)),
                    _ if i == along => Dim::Unknown,
                    (a, b) => merge(a, b).map_err(|e| {
                        e.at(format!("values {} and {}, axis {i}", show(&first.shape), show(&next.shape)))
                    })?,
                };
            }
        }
        result(first.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let values = tensors(args)?;
        let along = axis(args.int("axis")?, shape.len()).unwrap_or(0);
        if args.bool("interleave")? {
            let mut stacked = shape.clone();
            stacked[along] = values.len();
            stacked.insert(along, shape[along] / values.len().max(1));
            return Ok(vec![join(&values, along + 1, &stacked)?.reshape(shape)?]);
        }
        Ok(vec![join(&values, along, &shape)?])
    }
}

/// See [`Op::doc`].
pub struct Stack;

impl Op for Stack {
    fn name(&self) -> &'static str {
        "stack"
    }

    fn doc(&self) -> &'static str {
        "Values of one shape side by side along a new axis of the result."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("values").variadic(), Param::new("axis").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let mut shape = same_shapes(args)?;
        let along = axis(args.int("axis")?, shape.len() + 1)?;
        shape.insert(along, Dim::Fixed(args.many("values").len()));
        result(first(args)?.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let along = axis(args.int("axis")?, shape.len())?;
        Ok(vec![join(&tensors(args)?, along, &shape)?])
    }
}

/// The type of the first value; all have its element type, but for floats of another width in a program that runs in
/// a wider one.
fn first<'a>(args: &'a Args) -> Result<&'a TensorType> {
    let Some(first) = args.many("values").first() else { bail!("found no values, expected one or more") };
    let first = first.tensor_type()?;
    for value in args.many("values") {
        let next = value.tensor_type()?;
        if next.dtype != first.dtype && !(next.dtype.is_float() && first.dtype.is_float()) {
            bail!("values {first} and {next} differ in element type");
        }
    }
    Ok(first)
}

/// The shape of values that must have one shape.
fn same_shapes(args: &Args) -> Result<Vec<Dim>> {
    let mut shape = first(args)?.shape.clone();
    for value in args.many("values") {
        let next = value.tensor_type()?;
        let merged: Result<Vec<Dim>> = shape.iter().zip(&next.shape).map(|(a, b)| merge(*a, *b)).collect();
        shape = match merged {
            Ok(merged) if next.shape.len() == shape.len() => merged,
            _ => bail!("values {} and {} differ in shape", show(&shape), show(&next.shape)),
        };
    }
    Ok(shape)
}

/// The values, in the element type of the first.
fn tensors(args: &Args) -> Result<Vec<Tensor>> {
    let dtype = first(args)?.dtype;
    args.many("values").iter().map(|value| value.tensor()?.cast(dtype)).collect()
}

/// Values end to end along an axis of `shape`; a value without that axis counts as size 1 there.
fn join(values: &[Tensor], along: usize, shape: &[usize]) -> Result<Tensor> {
    let outer = count(&shape[..along])?;
    let mut parts = Vec::with_capacity(values.len());
    for value in values {
        let cells = Cells::of(value)?;
        parts.push((value.len() / outer.max(1), cells));
    }
    let Some((_, Cells { width, .. })) = parts.first() else { bail!("found no values, expected one or more") };
    let mut out = room(count(shape)?.saturating_mul(*width))?;
    for row in 0..if count(shape)? > 0 { outer } else { 0 } {
        for (len, cells) in &parts {
            out.extend_from_slice(cells.run(row * len, *len)?);
        }
    }
    from_cells(values[0].dtype(), shape, out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::op::ArgInfo;
    use crate::{DType, Value};

    fn joined(op: &dyn Op, values: Vec<Value>, rest: Vec<(&str, Value)>) -> Result<Tensor> {
        let mut entries = vec![("values", values.into_iter().map(ArgInfo::known).collect())];
        entries.extend(rest.into_iter().map(|(name, value)| (name, vec![ArgInfo::known(value)])));
        Ok(run_all(op, &Args::new(op, entries))?.remove(0))
    }

    #[test]
    fn values_follow_each_other_along_the_axis() {
        let y = joined(&Concat, vec![iota(&[2, 1]), iota(&[2, 2])], vec![("axis", (-1).into())]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 3][..], vec![0.0, 0.0, 1.0, 1.0, 2.0, 3.0]));
        let y = joined(&Concat, vec![iota(&[0, 2]), iota(&[1, 2])], vec![("axis", 0.into())]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 2][..], vec![0.0, 1.0]));
        let y = joined(&Concat, vec![7.into(), 8.into()], vec![("axis", 0.into())]).unwrap();
        assert_eq!((y.shape(), y.to_i64().unwrap()), (&[2][..], vec![7, 8]));
        assert!(joined(&Concat, vec![iota(&[2, 1]), iota(&[3, 1])], vec![("axis", 1.into())]).is_err());
    }

    #[test]
    fn interleaved_values_take_turns() {
        let (a, b) = (f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]), f32s(&[3, 2], &[7., 8., 9., 10., 11., 12.]));
        let rest = vec![("axis", 0.into()), ("interleave", true.into())];
        let y = joined(&Concat, vec![a, b], rest).unwrap();
        assert_eq!(y.to_f32().unwrap(), [1., 2., 7., 8., 3., 4., 9., 10., 5., 6., 11., 12.]);
    }

    #[test]
    fn stacking_makes_an_axis() {
        let y = joined(&Stack, vec![iota(&[2]), f32s(&[2], &[5.0, 6.0])], vec![("axis", (-1).into())]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 2][..], vec![0.0, 5.0, 1.0, 6.0]));
    }

    #[test]
    fn unknown_sizes_stay_unknown_along_the_axis_only() {
        let values: Vec<ArgInfo> = [[-1, 4], [2, -1]].iter().flat_map(|shape| typed(DType::F16, shape)).collect();
        let shape = inferred(&Concat, vec![("values", values), ("axis", vec![ArgInfo::known(0.into())])]);
        assert_eq!(shape.unwrap(), [-1, 4]);
    }
}
