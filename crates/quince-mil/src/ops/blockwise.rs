//! `constexpr_blockwise_shift_scale` and `constexpr_cast`: weights of iOS 18 as steps of a scale for each block.

use super::layout::{count, filled, group_runs, result};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, DType, Error, Op, Opset, Param, Result, Tensor, ValueType, bail};
use quince_tensor::packing;

/// See [`Op::doc`].
pub struct BlockwiseShiftScale;

impl Op for BlockwiseShiftScale {
    fn name(&self) -> &'static str {
        "constexpr_blockwise_shift_scale"
    }

    fn doc(&self) -> &'static str {
        "`scale · (data - offset)`, computed in the type of the scale. Scale and offset have the rank of the data; along \
         each axis a value serves a block of data.size / scale.size elements."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("data").constant(),
                Param::new("scale").constant().types(FLOAT),
                Param::new("offset").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let data = fixed_shape(args, "data")?;
        check_blocks(args, &data)?;
        result(args.dtype("scale")?, args.shape("data")?.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let data = args.tensor("data")?;
        let values = scaled(&data, &args.tensor("scale")?, args.opt_tensor("offset")?.as_ref())?;
        Ok(vec![values])
    }
}

/// The shape of a constant, all of whose sizes are known.
pub fn fixed_shape(args: &Args, name: &str) -> Result<Vec<usize>> {
    let ty = args.ty(name)?;
    ty.dims().ok_or_else(|| Error::new(format!("found {name} of type {ty}, expected sizes that are known")))
}

/// Refuses a scale whose sizes do not divide those of the data, and an offset of another shape than the scale.
pub fn check_blocks(args: &Args, data: &[usize]) -> Result<()> {
    count(data)?;
    let scale = fixed_shape(args, "scale")?;
    let divides = |(&size, &groups): (&usize, &usize)| groups > 0 && size % groups == 0;
    if data.is_empty() || data.len() != scale.len() || !data.iter().zip(&scale).all(divides) {
        bail!("found a scale {scale:?}, expected one whose sizes divide those of the data {data:?}");
    }
    if args.has("offset") && fixed_shape(args, "offset")? != scale {
        bail!("found an offset {}, expected the shape {scale:?} of the scale", show(args.shape("offset")?));
    }
    Ok(())
}

/// `scale · (data - offset)` by blocks. Differences and products are each rounded to the type of the scale, as they are
/// where that type computes; f32 holds both exactly for integers of a byte, and for fp16.
pub fn scaled(data: &Tensor, scale: &Tensor, offset: Option<&Tensor>) -> Result<Tensor> {
    let dtype = scale.dtype();
    let mut values = small_values(data, dtype)?;
    let factors = scale.to_f32()?;
    let offsets = match offset {
        Some(offset) => small_values(offset, dtype)?,
        None => filled(factors.len(), 0.0)?,
    };
    let inexact = dtype == DType::F16 && offset.is_some_and(|o| o.dtype().is_float() || data.dtype().is_float());
    group_runs(data.shape(), scale.shape(), |first, len, block| {
        for value in &mut values[first..first + len] {
            let difference = *value - offsets[block];
            let difference = if inexact { quince_tensor::f16::from_f32(difference).to_f32() } else { difference };
            *value = difference * factors[block];
        }
    })?;
    Tensor::from_f32(dtype, data.shape(), values)
}

/// The elements as f32, rounded to a type first if they are floats; integers of a byte or less by a table.
fn small_values(x: &Tensor, dtype: DType) -> Result<Vec<f32>> {
    if x.dtype().is_float() {
        return x.cast(dtype)?.to_f32();
    }
    if x.dtype().bits() > 8 {
        return x.to_f32();
    }
    let codes: Vec<u8> = (0..=255).collect();
    let table = packing::values(&codes, x.dtype());
    let signed = !x.dtype().is_unsigned();
    Ok(x.codes()?.into_iter().map(|c| if signed { f32::from(table[usize::from(c)]) } else { f32::from(c) }).collect())
}

/// See [`Op::doc`].
pub struct ConstexprCast;

impl Op for ConstexprCast {
    fn name(&self) -> &'static str {
        "constexpr_cast"
    }

    fn doc(&self) -> &'static str {
        "A weight stored in fp16 that is used in `output_dtype`, fp32."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("source_val").constant().types(FLOAT), Param::new("output_dtype").constant()] }
    }

    fn since(&self) -> Opset {
        Opset::CoreML6
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        result(wanted(args)?, args.shape("source_val")?.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![args.tensor("source_val")?.cast(wanted(args)?)?])
    }
}

fn wanted(args: &Args) -> Result<DType> {
    let name = args.str("output_dtype")?;
    match DType::from_name(name) {
        Some(dtype) if FLOAT.contains(&dtype) => Ok(dtype),
        _ => bail!("found the output_dtype {name}, expected fp32"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    #[test]
    fn each_block_of_int4_has_its_scale() {
        let data = Tensor::from_i64(DType::I4, [2, 4], &[-8, 7, 1, -1, 2, 3, -4, 5]).unwrap();
        let scale = Tensor::from_f32(DType::F16, [2, 2], vec![1.0, 10.0, 0.5, 2.0]).unwrap();
        let y = run(&BlockwiseShiftScale, vec![("data", data.into()), ("scale", scale.into())]).unwrap();
        assert_eq!((y.dtype(), y.to_f32().unwrap()), (DType::F16, vec![-8.0, 7.0, 10.0, -10.0, 1.0, 1.5, -8.0, 10.0]));
    }

    #[test]
    fn offsets_are_taken_off_first() {
        let data = Tensor::from_i64(DType::U8, [2, 2], &[0, 255, 128, 129]).unwrap();
        let offset: Value = Tensor::from_i64(DType::U8, [1, 2], &[128, 129]).unwrap().into();
        let values =
            |offset| vec![("data", data.clone().into()), ("scale", f32s(&[1, 2], &[0.5, 2.0])), ("offset", offset)];
        let y = run(&BlockwiseShiftScale, values(offset)).unwrap();
        assert_eq!(y.to_f32().unwrap(), [-64.0, 252.0, 0.0, 0.0]);
        assert!(run(&BlockwiseShiftScale, values(f32s(&[2, 1], &[0.0, 0.0]))).is_err());
    }

    /// Expected value: NumPy's `np.float16(0.1) * (np.float16(3) - np.float16(1/3))`, bits 0x3444.
    #[test]
    fn half_precision_rounds_after_each_step() {
        let half = |v: f32| -> Value { Tensor::from_f32(DType::F16, [1], vec![v]).unwrap().into() };
        let values = vec![("data", half(3.0)), ("scale", half(0.1)), ("offset", half(1.0 / 3.0))];
        let y = run(&BlockwiseShiftScale, values).unwrap();
        assert_eq!(y.bytes().to_vec(), EXPECTED_HALF);
    }

    const EXPECTED_HALF: [u8; 2] = [0x44, 0x34];

    #[test]
    fn sizes_that_do_not_divide_are_refused() {
        for shape in [&[3][..], &[0], &[1, 4], &[8]] {
            let scale = f32s(shape, &vec![1.0; shape.iter().product()]);
            assert!(run(&BlockwiseShiftScale, vec![("data", iota(&[4])), ("scale", scale)]).is_err(), "{shape:?}");
        }
    }
}
