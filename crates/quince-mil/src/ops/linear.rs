//! `linear`: a matrix product with a constant weight.

use super::elements::{room, values as values_of};
use super::layout::{count, result_shape};
use super::shape_rules::show;
use crate::op::NUMBER;
use crate::{Args, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// See [`Op::doc`].
pub struct Linear;

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn doc(&self) -> &'static str {
        "`x · weightᵀ + bias` over the last axis. x: [..., I], weight: [O, I], bias: [O]; the result is [..., O]."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(NUMBER),
                Param::new("weight").constant().types(NUMBER),
                Param::new("bias").constant().optional().types(NUMBER),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.ty("x")?, args.shape("weight")?);
        let (Some(inputs), [out, width]) = (x.shape.last(), weight) else {
            bail!("x {} does not go with a weight {}, expected [..., I] and [O, I]", show(&x.shape), show(weight));
        };
        if !inputs.fits(*width) {
            bail!("x {} does not go with weight {}, expected the same last size", show(&x.shape), show(weight));
        }
        if args.has("bias") && !matches!(args.shape("bias")?, [n] if n.fits(*out)) {
            bail!("found a bias {}, expected [{out}]", show(args.shape("bias")?));
        }
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(*out);
        Ok(vec![TensorType { dtype: x.dtype, shape }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, weight) = (args.tensor("x")?, args.tensor("weight")?);
        let [out, width] = *weight.shape() else { bail!("found a weight {weight:?}, expected [O, I]") };
        let bias = match args.opt_tensor("bias")? {
            Some(bias) => bias.to_f64()?,
            None => vec![0.0; out],
        };
        let (values, weight) = (x.to_f64()?, weight.to_f64()?);
        let mut y = room(count(&shape)?)?;
        // Rows are counted by the result: those of x may have nothing in them.
        for row in 0..count(&shape)? / out.max(1) {
            let row = &values[row * width..][..width];
            y.extend((0..out).map(|o| bias[o] + row.iter().zip(&weight[o * width..]).map(|(x, w)| x * w).sum::<f64>()));
        }
        Ok(vec![values_of(&x, &shape, y)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ArgInfo;

    #[test]
    fn multiplies_and_adds() {
        let known = |shape: &[usize], v: Vec<f32>| vec![ArgInfo::known(Tensor::from_vec(shape, v).unwrap().into())];
        let args = Args::new(
            &Linear,
            vec![
                ("x", known(&[2, 2], vec![1.0, 2.0, 3.0, 4.0])),
                ("weight", known(&[3, 2], vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0])),
                ("bias", known(&[3], vec![0.0, 0.0, 10.0])),
            ],
        );
        assert_eq!(Linear.infer(&args).unwrap(), [ValueType::tensor(crate::DType::F32, &[2, 3])]);
        let y = Linear.eval(&args).unwrap();
        assert_eq!(y[0].to_f32().unwrap(), [1.0, 2.0, 13.0, 3.0, 4.0, 17.0]);
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        let typed = |shape: &[usize]| vec![ArgInfo::typed(ValueType::tensor(crate::DType::F16, shape))];
        let args = Args::new(&Linear, vec![("x", typed(&[1, 4])), ("weight", typed(&[3, 2]))]);
        let error = Linear.infer(&args).unwrap_err().to_string();
        assert_eq!(error, "x [1, 4] does not go with weight [3, 2], expected the same last size");
    }
}
