//! `cast`: the same numbers in another element type.

use crate::{Args, DType, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// See [`Op::doc`].
pub struct Cast;

const TYPES: &[DType] = {
    use DType::*;
    &[F16, F32, I8, U8, I16, U16, I32, Bool]
};

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn doc(&self) -> &'static str {
        "`x` as `dtype`, one of fp16, fp32, int32, bool, and from iOS 17 int8, uint8, int16, uint16. Floats round to \
         nearest even; to an integer they truncate and are held within its range."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(TYPES), Param::new("dtype").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Ok(vec![TensorType { dtype: target(args)?, shape: args.shape("x")?.to_vec() }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![args.tensor("x")?.cast(target(args)?)?])
    }
}

fn target(args: &Args) -> Result<DType> {
    let name = args.str("dtype")?;
    match DType::from_name(name) {
        Some(dtype) if TYPES.contains(&dtype) => Ok(dtype),
        _ => {
            let names: Vec<&str> = TYPES.iter().map(|dtype| dtype.name()).collect();
            bail!("found the dtype `{name}`, expected one of {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ArgInfo;

    #[test]
    fn truncates_rounds_and_refuses() {
        let cast = |dtype: &str| {
            let x = Tensor::vector(vec![-1.9f32, 0.0, 70_000.0, 1.000_5]);
            let known = |value| vec![ArgInfo::known(value)];
            let args = Args::new(&Cast, vec![("x", known(x.into())), ("dtype", known(dtype.into()))]);
            Cast.infer(&args)?;
            Ok::<_, crate::Error>(Cast.eval(&args)?.remove(0))
        };
        assert_eq!(cast("int32").unwrap().to_i64().unwrap(), [-1, 0, 70_000, 1]);
        assert_eq!(cast("fp16").unwrap().to_f32().unwrap(), [-1.900_390_6, 0.0, f32::INFINITY, 1.000_976_6]);
        assert_eq!(cast("bool").unwrap().to_bools().unwrap(), [true, false, true, true]);
        assert!(cast("int4").unwrap_err().to_string().starts_with("found the dtype `int4`, expected one of fp16"));
    }
}
