//! `max_pool`, `avg_pool` and `l2_pool` over one, two or three spatial axes.

use super::layout::{count, filled, result, result_shape};
use super::shape_rules::show;
use super::window::{Placed, Rounding, counts, placed, sizes, windows};
use crate::op::FLOAT;
use crate::{Args, Op, Param, Result, Tensor, ValueType, bail};

/// A pool: what becomes of the elements of a window.
pub struct Pool {
    name: &'static str,
    doc: &'static str,
    params: &'static [Param],
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Max,
    Average,
    L2,
}

const AVERAGE: &[Param] = &[
    Param::new("x").types(FLOAT),
    Param::new("kernel_sizes").constant(),
    Param::new("strides").constant().optional(),
    Param::new("pad_type").constant(),
    Param::new("pad").constant().optional(),
    Param::new("ceil_mode").constant().or_bool(false),
    Param::new("exclude_padding_from_average").constant().or_bool(false),
];
/// The others take the same, but for the last.
const POOL: &[Param] = AVERAGE.split_at(AVERAGE.len() - 1).0;

/// `max_pool`.
pub const MAX_POOL: Pool = Pool {
    name: "max_pool",
    doc: "The largest element of each window of x [N, C, D..]; padding never is.",
    params: POOL,
    kind: Kind::Max,
};

/// `avg_pool`.
pub const AVG_POOL: Pool = Pool {
    name: "avg_pool",
    doc: "The mean of each window of x [N, C, D..]. Padding counts as zeros, or with `exclude_padding_from_average` not at \
          all.",
    params: AVERAGE,
    kind: Kind::Average,
};

/// `l2_pool`.
pub const L2_POOL: Pool = Pool {
    name: "l2_pool",
    doc: "The square root of the sum of the squares of each window of x [N, C, D..].",
    params: POOL,
    kind: Kind::L2,
};

impl Op for Pool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        self.params
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let [batch, channels, axes @ ..] = &x.shape[..] else {
            bail!("found x {}, expected [N, C, D..]", show(&x.shape));
        };
        if !(1..=3).contains(&axes.len()) {
            bail!("found x {}, expected one to three spatial axes", show(&x.shape));
        }
        let kernel = sizes(args, "kernel_sizes", axes.len(), 1)?;
        let shape = counts(axes, &windows(args, &kernel)?, rounding(args)?)?;
        result(x.dtype, [&[*batch, *channels], &shape[..]].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let kernel = sizes(args, "kernel_sizes", x.rank() - 2, 1)?;
        let axes = placed(&x.shape()[2..], &windows(args, &kernel)?, rounding(args)?)?;
        let padding_counts = self.kind != Kind::Average || !args.bool("exclude_padding_from_average")?;
        let (plane, positions) = (count(&x.shape()[2..])?, count(&shape[2..])?);
        let values = x.to_f64()?;
        let mut out = filled(count(&shape)?, 0.0)?;
        for (i, out) in out.chunks_exact_mut(positions.max(1)).enumerate() {
            let x = &values[i * plane..][..plane];
            for (position, out) in out.iter_mut().enumerate() {
                *out = self.pooled(&axes, x, position, padding_counts);
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, out)?])
    }
}

impl Pool {
    /// The value of the window at a position of the result.
    fn pooled(&self, axes: &[Placed; 3], x: &[f64], position: usize, padding_counts: bool) -> f64 {
        let [a, b, c] = axes;
        let (k, rest) = (position % c.count, position / c.count);
        let inside = [a.inside(rest / b.count), b.inside(rest % b.count), c.inside(k)];
        let mut highest = f64::NEG_INFINITY;
        let (mut sum, mut squares, mut number) = (0.0, 0.0, 0usize);
        for i in inside[0].clone() {
            for j in inside[1].clone() {
                let row = (i * b.size + j) * c.size;
                for &value in &x[row + inside[2].start..row + inside[2].end] {
                    // Unlike `f64::max`, a NaN in the window is the result.
                    highest = if value > highest || value.is_nan() { value } else { highest };
                    sum += value;
                    squares += value * value;
                    number += 1;
                }
            }
        }
        match self.kind {
            Kind::Max => highest,
            Kind::L2 => squares.sqrt(),
            Kind::Average if padding_counts => {
                let padded = [a.padded(rest / b.count), b.padded(rest % b.count), c.padded(k)];
                sum / padded.iter().product::<usize>() as f64
            }
            Kind::Average => sum / number as f64,
        }
    }
}

fn rounding(args: &Args) -> Result<Rounding> {
    Ok(if args.bool("ceil_mode")? { Rounding::Up } else { Rounding::Down })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn pool(op: &Pool, rest: Vec<(&str, Value)>) -> Vec<f32> {
        let mut values = vec![("x", f32s(&[1, 1, 5], &[1., 2., 9., 4., 5.])), ("kernel_sizes", vec![2].into())];
        values.extend(rest);
        run(op, values).unwrap().to_f32().unwrap()
    }

    #[test]
    fn windows_are_pooled() {
        let valid = || vec![("pad_type", "valid".into()), ("strides", vec![2].into())];
        assert_eq!(pool(&MAX_POOL, valid()), [2., 9.]);
        assert_eq!(pool(&AVG_POOL, valid()), [1.5, 6.5]);
        assert_eq!(pool(&L2_POOL, vec![("pad_type", "valid".into())])[3], 41f32.sqrt());
        let ceil = || [valid(), vec![("ceil_mode", true.into())]].concat();
        assert_eq!((pool(&MAX_POOL, ceil()), pool(&AVG_POOL, ceil())), (vec![2., 9., 5.], vec![1.5, 6.5, 5.]));
    }

    #[test]
    fn padding_counts_as_zeros_unless_it_is_left_out() {
        let padded = || vec![("pad_type", "custom".into()), ("pad", vec![1, 1].into()), ("strides", vec![2].into())];
        assert_eq!(pool(&AVG_POOL, padded()), [0.5, 5.5, 4.5]);
        let excluded = [padded(), vec![("exclude_padding_from_average", true.into())]].concat();
        assert_eq!(pool(&AVG_POOL, excluded), [1., 5.5, 4.5]);
    }

    #[test]
    fn pooling_is_over_planes() {
        let values =
            vec![("x", iota(&[1, 2, 2, 2])), ("kernel_sizes", vec![2, 2].into()), ("pad_type", "valid".into())];
        let y = run(&AVG_POOL, values).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 2, 1, 1][..], vec![1.5, 5.5]));
        let long = vec![("x", iota(&[1, 1, 2])), ("kernel_sizes", vec![3].into()), ("pad_type", "valid".into())];
        assert!(run(&MAX_POOL, long).is_err());
    }
}
