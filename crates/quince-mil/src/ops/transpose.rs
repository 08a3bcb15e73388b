//! `transpose` and `reverse`: axes in another order or direction.

use super::layout::{View, result, result_shape};
use super::shape_rules::axes;
use crate::{Args, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Transpose;

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn doc(&self) -> &'static str {
        "x with its axes in another order: axis i of the result is axis perm[i] of x."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("perm").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let perm = permutation(args)?;
        result(x.dtype, perm.iter().map(|&i| x.shape[i]).collect())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, perm) = (args.tensor("x")?, permutation(args)?);
        let whole = View::whole(x.shape());
        let view = View { first: 0, axes: perm.iter().map(|&i| whole.axes[i]).collect() };
        Ok(vec![view.take(&x)?])
    }
}

fn permutation(args: &Args) -> Result<Vec<usize>> {
    let (rank, perm) = (args.shape("x")?.len(), args.ints("perm")?);
    if perm.len() != rank {
        bail!("perm {perm:?} names {} axes, expected the {rank} of x", perm.len());
    }
    axes(&perm, rank)
}

/// See [`Op::doc`].
pub struct Reverse;

impl Op for Reverse {
    fn name(&self) -> &'static str {
        "reverse"
    }

    fn doc(&self) -> &'static str {
        "x backwards along these axes, or along all if none are named."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("axes").constant().optional()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if let Some(given) = args.opt_ints("axes")? {
            axes(&given, x.shape.len())?;
        }
        result(x.dtype, x.shape.clone())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let along = match args.opt_ints("axes")? {
            Some(given) => axes(&given, shape.len())?,
            None => (0..shape.len()).collect(),
        };
        let mut view = View::whole(&shape);
        for axis in along {
            let (size, step) = view.axes[axis];
            view.first += size.saturating_sub(1) * step.unsigned_abs();
            view.axes[axis].1 = -step;
        }
        Ok(vec![view.take(&args.tensor("x")?)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn axes_move_with_their_elements() {
        let y = run(&Transpose, vec![("x", iota(&[2, 3, 4])), ("perm", vec![-1, 0, 1].into())]).unwrap();
        assert_eq!(y.shape(), [4, 2, 3]);
        assert_eq!(y.to_f32().unwrap()[..7], [0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 1.0]);
        assert!(run(&Transpose, vec![("x", iota(&[2, 3])), ("perm", vec![1, 1].into())]).is_err());
        assert!(run(&Transpose, vec![("x", iota(&[2, 3])), ("perm", vec![0].into())]).is_err());
    }

    #[test]
    fn reversal_is_along_the_named_axes() {
        let y = run(&Reverse, vec![("x", iota(&[2, 3])), ("axes", vec![1].into())]).unwrap();
        assert_eq!(y.to_f32().unwrap(), [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]);
        let y = run(&Reverse, vec![("x", iota(&[2, 3]))]).unwrap();
        assert_eq!(y.to_f32().unwrap(), [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
        assert_eq!(run(&Reverse, vec![("x", iota(&[0, 3]))]).unwrap().shape(), [0, 3]);
    }
}
