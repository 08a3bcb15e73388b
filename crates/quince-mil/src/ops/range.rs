//! `shape`, `range_1d`, `fill`, `fill_like` and `one_hot`: tensors that are made rather than moved.

use super::elements::room;
use super::layout::{Cells, View, count, fixed, from_cells, result, result_shape};
use super::reshape::unknown;
use super::shape_rules::axis;
use crate::{Args, DType, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Shape;

impl Op for Shape {
    fn name(&self) -> &'static str {
        "shape"
    }

    fn doc(&self) -> &'static str {
        "The size of x along each axis, as int32."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Ok(vec![ValueType::tensor(DType::I32, &[args.shape("x")?.len()])])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let mut sizes = Vec::new();
        for dim in args.shape("x")? {
            match dim.fixed().and_then(|n| i32::try_from(n).ok()) {
                Some(size) => sizes.push(size),
                None => bail!("a size of {} is not known or larger than an int32 holds", args.ty("x")?),
            }
        }
        Ok(vec![Tensor::vector(sizes)])
    }
}

/// See [`Op::doc`].
pub struct Range1d;

impl Op for Range1d {
    fn name(&self) -> &'static str {
        "range_1d"
    }

    fn doc(&self) -> &'static str {
        "The numbers start, start + step, ... before `end`."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("end"), Param::new("start"), Param::new("step")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let dtype = args.dtype("start")?;
        for name in ["end", "step"] {
            let other = args.dtype(name)?;
            if other != dtype && !(other.is_float() && dtype.is_float()) {
                bail!("start and {name} are of type {dtype} and {other}, expected one type");
            }
        }
        if !dtype.is_float() && !dtype.is_int() {
            bail!("found a start of type {dtype}, expected numbers");
        }
        let known = ["end", "start", "step"].iter().all(|name| args.known(name).is_some());
        let len = if known { Dim::Fixed(steps_of(args)?.2) } else { Dim::Unknown };
        result(dtype, vec![len])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let dtype = args.dtype("start")?;
        let (start, step, len) = steps_of(args)?;
        if dtype.is_int() {
            let mut values = room(len)?;
            let (start, step) = (args.int("start")?, args.int("step")?);
            values.extend((0..len as i64).map(|i| start.wrapping_add(step.wrapping_mul(i))));
            return Ok(vec![Tensor::from_i64(dtype, shape, &values)?]);
        }
        let mut values = room(len)?;
        values.extend((0..len).map(|i| start + step * i as f64));
        Ok(vec![Tensor::from_f64(dtype, shape, values)?])
    }
}

/// Start, step and number of the values of a range.
fn steps_of(args: &Args) -> Result<(f64, f64, usize)> {
    let (end, start, step) = (args.float("end")?, args.float("start")?, args.float("step")?);
    let len = ((end - start) / step).ceil();
    if step == 0.0 || len.is_nan() || len > super::layout::MOST_ELEMENTS as f64 {
        bail!("a range from {start} to {end} by {step} has no end, expected at most 2^40 numbers");
    }
    Ok((start, step, len.max(0.0) as usize))
}

/// See [`Op::doc`].
pub struct Fill;

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn doc(&self) -> &'static str {
        "A tensor of this shape, all of whose elements are `value`."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("shape"), Param::new("value").constant().or_float(0.0)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let [rank] = *args.shape("shape")? else {
            bail!("found a shape of type {}, expected a vector", args.ty("shape")?);
        };
        let shape = match (args.known("shape"), rank) {
            (Some(shape), _) => {
                let sizes = shape.to_i64()?;
                let dims: Vec<usize> = sizes.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
                if dims.len() != sizes.len() {
                    bail!("found the shape {sizes:?}, expected sizes of 0 or more");
                }
                fixed(&dims)
            }
            (None, Dim::Fixed(rank)) => unknown(rank)?,
            (None, Dim::Unknown) => bail!("the number of axes of the result is not known, expected a fixed number"),
        };
        result(scalar(args, "value", 0.0f32)?.dtype(), shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![repeated(&scalar(args, "value", 0.0f32)?, &shape)?])
    }
}

/// See [`Op::doc`].
pub struct FillLike;

impl Op for FillLike {
    fn name(&self) -> &'static str {
        "fill_like"
    }

    fn doc(&self) -> &'static str {
        "A tensor of the shape of `ref_tensor`, all of whose elements are `value`."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("ref_tensor"), Param::new("value").constant().or_float(0.0)] }
    }

    fn since(&self) -> Opset {
        Opset::CoreML6
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        result(scalar(args, "value", 0.0f32)?.dtype(), args.shape("ref_tensor")?.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![repeated(&scalar(args, "value", 0.0f32)?, &shape)?])
    }
}

/// A single value with its element type, as given or the default.
fn scalar<T: quince_tensor::Element>(args: &Args, name: &str, default: T) -> Result<Tensor> {
    let value = args.opt_tensor(name)?.unwrap_or_else(|| Tensor::scalar(default));
    if value.len() != 1 {
        bail!("parameter `{name}` has {} values, expected one", value.len());
    }
    Ok(value)
}

fn repeated(value: &Tensor, shape: &[usize]) -> Result<Tensor> {
    View { first: 0, axes: shape.iter().map(|&n| (n, 0)).collect() }.take(value)
}

/// See [`Op::doc`].
pub struct OneHot;

impl Op for OneHot {
    fn name(&self) -> &'static str {
        "one_hot"
    }

    fn doc(&self) -> &'static str {
        "`indices` with a new axis of `one_hot_vector_size`, `on_value` at the index and `off_value` elsewhere; an index \
         outside gives no `on_value`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("indices"),
                Param::new("one_hot_vector_size"),
                Param::new("axis").constant().or_int(-1),
                Param::new("on_value").constant().or_int(1),
                Param::new("off_value").constant().or_int(0),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let mut shape = super::gather::integers(args, "indices")?.to_vec();
        let size = match args.known("one_hot_vector_size") {
            None => Dim::Unknown,
            Some(_) => match usize::try_from(args.int("one_hot_vector_size")?) {
                Ok(size) => Dim::Fixed(size),
                Err(_) => bail!("found a negative one_hot_vector_size, expected 0 or more"),
            },
        };
        shape.insert(axis(args.int("axis")?, shape.len() + 1)?, size);
        result(on_off(args)?.0.dtype(), shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let along = axis(args.int("axis")?, shape.len())?;
        let (on, off) = on_off(args)?;
        let (size, inner) = (shape[along], count(&shape[along + 1..])?);
        let mut places = Vec::new();
        for (i, &index) in args.ints("indices")?.iter().enumerate() {
            if let Some(index) = usize::try_from(index).ok().filter(|&index| index < size) {
                places.push((i / inner * size + index) * inner + i % inner);
            }
        }
        let width = on.bytes().len();
        let mut bytes = Cells::of(&repeated(&off, &shape)?)?.bytes.to_vec();
        for place in places {
            bytes[place * width..][..width].copy_from_slice(on.bytes());
        }
        Ok(vec![from_cells(on.dtype(), &shape, bytes)?])
    }
}

/// The values at and beside the index, of the element type of whichever is given.
fn on_off(args: &Args) -> Result<(Tensor, Tensor)> {
    let (on, off) = (scalar(args, "on_value", 1i32)?, scalar(args, "off_value", 0i32)?);
    let dtype = if args.has("on_value") { on.dtype() } else { off.dtype() };
    if args.has("on_value") && args.has("off_value") && on.dtype() != off.dtype() {
        bail!("on_value and off_value are of type {} and {}, expected one type", on.dtype(), off.dtype());
    }
    Ok((on.cast(dtype)?, off.cast(dtype)?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    #[test]
    fn a_range_stops_before_its_end() {
        let range =
            |end: Value, start: Value, step: Value| run(&Range1d, vec![("end", end), ("start", start), ("step", step)]);
        assert_eq!(range(7.into(), 1.into(), 2.into()).unwrap().to_i64().unwrap(), [1, 3, 5]);
        assert_eq!(range(0.into(), 3.into(), (-2).into()).unwrap().to_i64().unwrap(), [3, 1]);
        assert!(range(0.into(), 3.into(), 2.into()).unwrap().is_empty());
        assert_eq!(range(1.0.into(), 0.0.into(), 0.4.into()).unwrap().to_f32().unwrap(), [0.0, 0.4, 0.8]);
        assert!(
            range(1.into(), 0.into(), 0.into()).is_err() && range(f32::NAN.into(), 0.0.into(), 1.0.into()).is_err()
        );
        assert!(range(f32::MAX.into(), 0.0.into(), 1.0.into()).is_err());
    }

    #[test]
    fn shapes_are_read_and_filled() {
        assert_eq!(run(&Shape, vec![("x", iota(&[2, 3]))]).unwrap().to_i64().unwrap(), [2, 3]);
        let y = run(&Fill, vec![("shape", vec![2, 2].into()), ("value", 7.into())]).unwrap();
        assert_eq!((y.dtype(), y.to_i64().unwrap()), (DType::I32, vec![7; 4]));
        assert_eq!(run(&FillLike, vec![("ref_tensor", true.into())]).unwrap().to_f32().unwrap(), [0.0]);
        assert!(run(&Fill, vec![("shape", vec![-1].into())]).is_err());
        assert!(run(&Fill, vec![("shape", vec![i32::MAX; 3].into())]).is_err());
        assert_eq!(inferred(&Fill, vec![("shape", typed(DType::I32, &[3]))]).unwrap(), [-1, -1, -1]);
    }

    #[test]
    fn one_element_is_hot() {
        let hot = |axis: i32| {
            let values: Vec<(&str, Value)> = vec![
                ("indices", vec![2, 0, -1].into()),
                ("one_hot_vector_size", 3.into()),
                ("axis", axis.into()),
                ("on_value", 5.0.into()),
                ("off_value", (-1.0).into()),
            ];
            run(&OneHot, values).unwrap()
        };
        assert_eq!(hot(-1).to_f32().unwrap(), [-1., -1., 5., 5., -1., -1., -1., -1., -1.]);
        assert_eq!(hot(0).to_f32().unwrap(), [-1., 5., -1., -1., -1., -1., 5., -1., -1.]);
    }
}
