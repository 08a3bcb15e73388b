//! `split`: a tensor in pieces along an axis.

use super::layout::{View, result};
use super::shape_rules::{axis, show};
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Split;

/// More results than this are refused; they would be types of nothing.
const MOST_PIECES: usize = 1 << 16;

impl Op for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn doc(&self) -> &'static str {
        "x in `num_splits` equal pieces along an axis, or in pieces of `split_sizes`, which add up to its size."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("num_splits").constant().optional(),
                Param::new("split_sizes").constant().optional(),
                Param::new("axis").constant(),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let along = axis(args.int("axis")?, x.shape.len())?;
        let mut types = Vec::new();
        for size in pieces(args, x.shape[along])? {
            let mut shape = x.shape.clone();
            shape[along] = size;
            types.append(&mut result(x.dtype, shape)?);
        }
        Ok(types)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let along = axis(args.int("axis")?, x.rank())?;
        let mut view = View::whole(x.shape());
        let mut out = Vec::new();
        for size in pieces(args, Dim::Fixed(x.shape()[along]))? {
            let Dim::Fixed(size) = size else { bail!("the size of a piece is not known") };
            view.axes[along].0 = size;
            out.push(view.take(&x)?);
            view.first += size * view.axes[along].1.unsigned_abs();
        }
        Ok(out)
    }
}

/// The sizes of the pieces of an axis of this size.
fn pieces(args: &Args, size: Dim) -> Result<Vec<Dim>> {
    let number = args.has("num_splits").then(|| args.int("num_splits")).transpose()?;
    if let Some(sizes) = args.opt_ints("split_sizes")? {
        if number.is_some_and(|n| n != sizes.len() as i64) {
            bail!("num_splits and the number of split_sizes {sizes:?} differ");
        }
        let dims: Vec<usize> = sizes.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
        let total = dims.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if dims.len() != sizes.len() || !total.is_some_and(|total| size.fits(Dim::Fixed(total))) {
            bail!("split_sizes {sizes:?} do not add up to the size {size} of the axis");
        }
        return Ok(super::layout::fixed(&dims));
    }
    let Some(number) = number else { bail!("found neither num_splits nor split_sizes, expected one of them") };
    match (usize::try_from(number), size) {
        (Ok(n @ 1..=MOST_PIECES), Dim::Unknown) => Ok(vec![Dim::Unknown; n]),
        (Ok(n @ 1..=MOST_PIECES), Dim::Fixed(size)) if size % n == 0 => Ok(vec![Dim::Fixed(size / n); n]),
        _ => bail!("an axis of {} is not split in {number} equal pieces", show(&[size])),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn split(values: Vec<(&str, crate::Value)>) -> Result<Vec<Vec<f32>>> {
        run_all(&Split, &args(&Split, values))?.iter().map(|t| t.to_f32()).collect()
    }

    #[test]
    fn pieces_are_equal_or_as_given() {
        let y = split(vec![("x", iota(&[2, 4])), ("num_splits", 2.into()), ("axis", (-1).into())]).unwrap();
        assert_eq!(y, [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]);
        let y = split(vec![("x", iota(&[2, 3])), ("split_sizes", vec![1, 0, 2].into()), ("axis", 1.into())]).unwrap();
        assert_eq!(y, [vec![0.0, 3.0], vec![], vec![1.0, 2.0, 4.0, 5.0]]);
    }

    #[test]
    fn pieces_that_do_not_add_up_are_refused() {
        for sizes in [vec![1, 1], vec![4, -1], vec![i32::MAX, i32::MAX]] {
            assert!(split(vec![("x", iota(&[3])), ("split_sizes", sizes.into()), ("axis", 0.into())]).is_err());
        }
        for number in [0, -1, 2, i32::MAX] {
            assert!(split(vec![("x", iota(&[3])), ("num_splits", number.into()), ("axis", 0.into())]).is_err());
        }
    }
}
