//! Semantic `rms_norm`.

use super::layout::{result, result_shape};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct RmsNorm;

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn doc(&self) -> &'static str {
        "`x / √(mean(x²) + epsilon) · weight` over the last axis, computed in f32 or wider whatever the type of x. x: [.., \
         D], weight: [D]. Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("weight").constant().types(FLOAT),
                Param::new("epsilon").constant().types(FLOAT),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.ty("x")?, args.shape("weight")?);
        let (Some(width), [size]) = (x.shape.last(), weight) else {
            bail!("found x {} and weight {}, expected [.., D] and [D]", show(&x.shape), show(weight));
        };
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(merge(*width, *size).map_err(|e| e.at("last axis of x and weight"))?);
        args.float("epsilon")?;
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, weight) = (args.tensor("x")?, args.tensor("weight")?.to_f64()?);
        let epsilon = args.float("epsilon")?;
        let mut values = x.to_f64()?;
        for row in values.chunks_exact_mut(weight.len().max(1)) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean + epsilon).sqrt();
            row.iter_mut().zip(&weight).for_each(|(x, weight)| *x *= scale * weight);
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, values)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::DType;

    #[test]
    fn rows_get_a_mean_square_of_one() {
        let values = vec![
            ("x", f32s(&[2, 2], &[3.0, 4.0, 0.0, 0.0])),
            ("weight", f32s(&[2], &[1.0, 2.0])),
            ("epsilon", 0.25.into()),
        ];
        // (9 + 16) / 2 + 0.25 = 12.75
        let expected = [3.0 / 12.75f64.sqrt(), 8.0 / 12.75f64.sqrt(), 0.0, 0.0];
        near(&run(&RmsNorm, values).unwrap(), &expected, 1e-6);
    }

    #[test]
    fn half_precision_does_not_overflow() {
        let x = Tensor::from_f32(DType::F16, [1, 2], vec![60000.0, -60000.0]).unwrap();
        let values = vec![("x", x.into()), ("weight", f32s(&[2], &[1.0, 1.0])), ("epsilon", 1e-5.into())];
        assert_eq!(run(&RmsNorm, values).unwrap().to_f32().unwrap(), [1.0, -1.0]);
    }
}
