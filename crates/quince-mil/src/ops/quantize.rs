//! `quantize`, `dequantize` and `constexpr_affine_dequantize`: numbers as steps of a scale, per tensor or per channel.

use super::elements::room;
use super::layout::{result, result_shape};
use super::shape_rules::{axis, show};
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Error, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// Element types that numbers are quantized to.
const QUANTIZED: &[DType] = &[DType::U8, DType::I8];

/// See [`Op::doc`].
pub struct Quantize;

impl Op for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn doc(&self) -> &'static str {
        "`clip(round(input / scale) + zero_point)` in `output_dtype`, uint8 or int8; halves round to even. Scale and zero \
         point are scalars, or vectors along an axis."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("input").types(FLOAT),
                Param::new("zero_point").constant().optional().types(QUANTIZED),
                Param::new("scale").constant().types(FLOAT),
                Param::new("axis").constant().optional(),
                Param::new("output_dtype").constant(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML7
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let dtype = args.str("output_dtype")?;
        let Some(dtype) = DType::from_name(dtype).filter(|dtype| QUANTIZED.contains(dtype)) else {
            bail!("found the output_dtype {dtype}, expected uint8 or int8");
        };
        if args.has("zero_point") && args.dtype("zero_point")? != dtype {
            bail!("found a zero_point of type {}, expected {dtype}", args.dtype("zero_point")?);
        }
        channels(args, "input")?;
        result(dtype, args.shape("input")?.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let dtype = self.infer(args)?.first().and_then(|ty| Some(ty.as_tensor()?.dtype));
        let (dtype, range) = dtype
            .and_then(|dtype| Some((dtype, dtype.int_range()?)))
            .ok_or_else(|| Error::new("found no integer type to quantize to"))?;
        let input = args.tensor("input")?;
        let channels = channels(args, "input")?;
        let (scale, zero) = (Parameter::new(args, "scale", 1.0)?, Parameter::new(args, "zero_point", 0.0)?);
        let mut out = room(input.len())?;
        for (i, value) in input.to_f64()?.into_iter().enumerate() {
            let channel = channels.of(i);
            let steps = (value / scale.at(channel)).round_ties_even() + zero.at(channel);
            out.push((steps.clamp(range.0 as f64, range.1 as f64)) as i64);
        }
        Ok(vec![Tensor::from_i64(dtype, input.shape(), &out)?])
    }
}

/// See [`Op::doc`].
pub struct Dequantize;

impl Op for Dequantize {
    fn name(&self) -> &'static str {
        "dequantize"
    }

    fn doc(&self) -> &'static str {
        "`scale · (input - zero_point)`, in the type of the scale. Scale and zero point are scalars, or vectors along an \
         axis."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("input").types(QUANTIZED),
                Param::new("zero_point").constant().optional().types(QUANTIZED),
                Param::new("scale").constant().types(FLOAT),
                Param::new("axis").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML7
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        channels(args, "input")?;
        result(args.dtype("scale")?, args.shape("input")?.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![dequantized(self, args, "input")?])
    }
}

/// See [`Op::doc`].
pub struct AffineDequantize;

impl Op for AffineDequantize {
    fn name(&self) -> &'static str {
        "constexpr_affine_dequantize"
    }

    fn doc(&self) -> &'static str {
        "A weight as iOS 16 stores it: `scale · (quantized_data - zero_point)`, computed in f32 or wider, in the type of \
         the scale. Scale and zero point are scalars, or vectors along the axis."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("quantized_data").constant().types(QUANTIZED),
                Param::new("zero_point").constant().types(&[DType::U8, DType::I8, DType::F32]),
                Param::new("scale").constant().types(FLOAT),
                Param::new("axis").constant(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML6
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        channels(args, "quantized_data")?;
        result(args.dtype("scale")?, args.shape("quantized_data")?.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![dequantized(self, args, "quantized_data")?])
    }
}

/// `scale · (data - zero_point)`.
fn dequantized(op: &dyn Op, args: &Args, data: &str) -> Result<Tensor> {
    let shape = result_shape(op, args)?;
    let channels = channels(args, data)?;
    let (scale, zero) = (Parameter::new(args, "scale", 1.0)?, Parameter::new(args, "zero_point", 0.0)?);
    let mut out = room(super::layout::count(&shape)?)?;
    for (i, value) in args.tensor(data)?.to_i64()?.into_iter().enumerate() {
        let channel = channels.of(i);
        out.push(scale.at(channel) * (value as f64 - zero.at(channel)));
    }
    Tensor::from_f64(args.dtype("scale")?, shape, out)
}

/// Which channel an element belongs to: its index along an axis of this size, whose steps are `inner` elements long.
struct Channels {
    size: usize,
    inner: usize,
}

impl Channels {
    fn of(&self, element: usize) -> usize {
        element / self.inner % self.size
    }
}

/// The channels of an argument, after checking that scale and zero point are scalars or have one value for each.
fn channels(args: &Args, data: &str) -> Result<Channels> {
    let shape = args.shape(data)?;
    let along = match args.has("axis") {
        true => Some(axis(args.int("axis")?, shape.len())?),
        false => None,
    };
    for name in ["scale", "zero_point"] {
        if !args.has(name) {
            continue;
        }
        let fits = match (args.shape(name)?, along) {
            ([], _) => true,
            ([Dim::Fixed(1)], None) => true,
            ([n], Some(along)) => n.fits(shape[along]),
            _ => false,
        };
        if !fits {
            let (found, data) = (show(args.shape(name)?), show(shape));
            bail!("found {name} {found}, expected a scalar or one value for each channel of {data} along `axis`");
        }
    }
    let after = along.map_or(&[][..], |along| &shape[along + 1..]);
    let size = along.and_then(|along| shape[along].fixed()).unwrap_or(1);
    // Sizes that are not known when inferring do not matter then; without elements no channel is asked for.
    let inner = after.iter().map(|dim| dim.fixed().unwrap_or(1)).fold(1, usize::saturating_mul);
    Ok(Channels { size: size.max(1), inner: inner.max(1) })
}

/// A scalar, or one value for each channel.
struct Parameter(Vec<f64>);

impl Parameter {
    fn new(args: &Args, name: &str, default: f64) -> Result<Parameter> {
        let values = args.opt_tensor(name)?.map_or_else(|| Ok(vec![default]), |t| t.to_f64())?;
        if values.is_empty() {
            bail!("parameter `{name}` has no values, expected one or more");
        }
        Ok(Parameter(values))
    }

    fn at(&self, channel: usize) -> f64 {
        if self.0.len() == 1 { self.0[0] } else { self.0[channel] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn i8s(shape: &[usize], values: &[i8]) -> Value {
        Tensor::from_vec(shape, values.to_vec()).unwrap().into()
    }

    /// Expected values: NumPy, `np.clip(np.around(x / s) + z, -128, 127)`.
    #[test]
    fn numbers_become_steps_and_come_back() {
        let values = vec![
            ("input", f32s(&[2, 3], &[0.25, 0.75, -100.0, 1.25, 1e9, -0.5])),
            ("zero_point", i8s(&[2], &[0, 10])),
            ("scale", f32s(&[2], &[0.5, 0.1])),
            ("axis", 0.into()),
            ("output_dtype", "int8".into()),
        ];
        let y = run(&Quantize, values).unwrap();
        assert_eq!((y.dtype(), y.to_i64().unwrap()), (DType::I8, vec![0, 2, -128, 22, 127, 5]));
        let values = vec![
            ("input", i8s(&[2, 2], &[1, 2, 3, 4])),
            ("zero_point", i8s(&[2], &[1, -1])),
            ("scale", f32s(&[2], &[0.5, 2.0])),
            ("axis", (-1).into()),
        ];
        assert_eq!(run(&Dequantize, values).unwrap().to_f32().unwrap(), [0.0, 6.0, 1.0, 10.0]);
    }

    #[test]
    fn parameters_must_fit_the_channels() {
        let quantize = |scale: Value, axis: Option<i32>| {
            let mut values = vec![("input", iota(&[2, 3])), ("scale", scale), ("output_dtype", "uint8".into())];
            values.extend(axis.map(|axis| ("axis", axis.into())));
            run(&Quantize, values)
        };
        assert!(quantize(f32s(&[3], &[1.0; 3]), Some(1)).is_ok() && quantize(1.0.into(), None).is_ok());
        assert!(quantize(f32s(&[2], &[1.0; 2]), Some(1)).is_err() && quantize(f32s(&[3], &[1.0; 3]), None).is_err());
        assert!(quantize(f32s(&[0], &[]), Some(1)).is_err() && quantize(1.0.into(), Some(2)).is_err());
        // Dividing by zero saturates rather than fails.
        assert_eq!(quantize(0.0.into(), None).unwrap().to_i64().unwrap(), [0, 255, 255, 255, 255, 255]);
    }

    #[test]
    fn a_weight_of_ios_16_is_scaled_along_its_axis() {
        let values = vec![
            ("quantized_data", i8s(&[2, 2], &[1, 2, 3, 4])),
            ("zero_point", i8s(&[], &[1])),
            ("scale", Tensor::from_f32(DType::F16, [2], vec![1.0, 10.0]).unwrap().into()),
            ("axis", 0.into()),
        ];
        let y = run(&AffineDequantize, values).unwrap();
        assert_eq!((y.dtype(), y.to_f32().unwrap()), (DType::F16, vec![0.0, 1.0, 20.0, 30.0]));
    }
}
