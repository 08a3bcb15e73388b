//! `cumsum`: running sums.

use super::elements::{Groups, values};
use super::shape_rules::axis;
use crate::op::NUMBER;
use crate::{Args, DType, Op, Param, Result, Tensor, ValueType};

/// See [`Op::doc`].
pub struct Cumsum;

impl Op for Cumsum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn doc(&self) -> &'static str {
        "The sums of the elements along `axis` up to each one, itself left out if `exclusive`, from the end if \
         `reverse`. Integers wrap."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(NUMBER),
                Param::new("axis").constant().or_int(0),
                Param::new("exclusive").constant().types(&[DType::Bool]).or_bool(false),
                Param::new("reverse").constant().types(&[DType::Bool]).or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        axis(args.int("axis")?, x.shape.len())?;
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let mut groups = Groups::new(x.shape(), &[axis(args.int("axis")?, x.rank())?])?;
        if args.bool("reverse")? {
            groups.offsets.reverse();
        }
        let exclusive = args.bool("exclusive")?;
        Ok(vec![match x.dtype().is_int() {
            true => {
                let sums = sums(&groups, x.to_i64()?, 0, exclusive, i64::wrapping_add);
                Tensor::from_i64(x.dtype(), x.shape(), &sums)?
            }
            false => values(&x, x.shape(), sums(&groups, x.to_f64()?, 0.0, exclusive, |a, b| a + b))?,
        }])
    }
}

fn sums<T: Copy>(groups: &Groups, mut x: Vec<T>, zero: T, exclusive: bool, add: impl Fn(T, T) -> T) -> Vec<T> {
    for group in groups.iter() {
        let mut sum = zero;
        for i in group {
            let before = sum;
            sum = add(sum, x[i]);
            x[i] = if exclusive { before } else { sum };
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ArgInfo;

    #[test]
    fn runs_both_ways() {
        let run = |axis: i32, exclusive: bool, reverse: bool| {
            let x = Tensor::from_vec([2, 3], vec![1i32, 2, 3, 4, 5, 6]).unwrap();
            let known = |value: crate::Value| vec![ArgInfo::known(value)];
            let args = Args::new(
                &Cumsum,
                vec![
                    ("x", known(x.into())),
                    ("axis", known(axis.into())),
                    ("exclusive", known(exclusive.into())),
                    ("reverse", known(reverse.into())),
                ],
            );
            Cumsum.eval(&args).unwrap()[0].to_i64().unwrap()
        };
        assert_eq!(run(0, false, false), [1, 2, 3, 5, 7, 9]);
        assert_eq!(run(-1, false, true), [6, 5, 3, 15, 11, 6]);
        assert_eq!(run(1, true, false), [0, 1, 3, 0, 4, 9]);
        assert_eq!(run(1, true, true), [5, 3, 0, 11, 6, 0]);
    }
}
