//! `select`: elements of one tensor or of another.

use super::elements::{self, Walk, common, room, strides_in};
use super::layout::count;
use super::shape_rules::broadcast;
use crate::{Args, DType, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// See [`Op::doc`].
pub struct Select;

const TYPES: &[DType] = &[DType::F16, DType::F32, DType::I32, DType::Bool];

impl Op for Select {
    fn name(&self) -> &'static str {
        "select"
    }

    fn doc(&self) -> &'static str {
        "The elements of `a` where `cond` is true and of `b` where it is not; the three broadcast."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("cond").types(&[DType::Bool]), Param::new("a").types(TYPES), Param::new("b").types(TYPES)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (a, b) = (args.ty("a")?, args.ty("b")?);
        if a.dtype != b.dtype {
            bail!("a is {a} and b is {b}, expected the same element type");
        }
        let shape = broadcast(&broadcast(&a.shape, &b.shape)?, args.shape("cond")?)?;
        Ok(vec![TensorType { dtype: a.dtype, shape }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (cond, a, b) = (args.tensor("cond")?, args.tensor("a")?, args.tensor("b")?);
        let dtype = common(a.dtype(), b.dtype())?;
        let shape = elements::broadcast(&elements::broadcast(a.shape(), b.shape())?, cond.shape())?;
        let walk = Walk::new(&shape, [&cond, &a, &b].map(|t| strides_in(t.shape(), &shape)))?;
        let cond = cond.to_bools()?;
        Ok(vec![match dtype {
            DType::Bool => Tensor::from_bools(&*shape, &choose(&cond, &a.to_bools()?, &b.to_bools()?, walk)?)?,
            DType::F16 | DType::F32 => {
                Tensor::from_f32(dtype, &*shape, choose(&cond, &a.to_f32()?, &b.to_f32()?, walk)?)?
            }
            _ if dtype.is_float() => {
                Tensor::from_f64(dtype, &*shape, choose(&cond, &a.to_f64()?, &b.to_f64()?, walk)?)?
            }
            _ => Tensor::from_i64(dtype, &*shape, &choose(&cond, &a.to_i64()?, &b.to_i64()?, walk)?)?,
        }])
    }
}

fn choose<T: Copy>(cond: &[bool], a: &[T], b: &[T], walk: Walk<3>) -> Result<Vec<T>> {
    let mut out = room(count(&[walk.size_hint().0])?)?;
    out.extend(walk.map(|[at, in_a, in_b]| if cond[at] { a[in_a] } else { b[in_b] }));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ArgInfo;

    #[test]
    fn the_three_broadcast() {
        let known = |tensor: Tensor| vec![ArgInfo::known(tensor.into())];
        let args = Args::new(
            &Select,
            vec![
                ("cond", known(Tensor::from_bools([2, 1], &[true, false]).unwrap())),
                ("a", known(Tensor::vector(vec![1f32, f32::NEG_INFINITY]))),
                ("b", known(Tensor::scalar(-3f32))),
            ],
        );
        assert_eq!(Select.infer(&args).unwrap(), [ValueType::tensor(DType::F32, &[2, 2])]);
        let out = Select.eval(&args).unwrap();
        assert_eq!(out[0].to_f32().unwrap(), [1.0, f32::NEG_INFINITY, -3.0, -3.0]);
    }
}
