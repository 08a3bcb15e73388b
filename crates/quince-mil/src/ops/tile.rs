//! `tile` and `sliding_windows`: elements more than once.

use super::layout::{View, result, result_shape};
use super::shape_rules::{axis, show};
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Tile;

impl Op for Tile {
    fn name(&self) -> &'static str {
        "tile"
    }

    fn doc(&self) -> &'static str {
        "x repeated as a whole: reps[i] times along axis i."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("reps")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if !matches!(args.shape("reps")?, [n] if n.fits(Dim::Fixed(x.shape.len()))) {
            bail!("found reps of type {}, expected one for each axis of x {}", args.ty("reps")?, show(&x.shape));
        }
        let Some(reps) = args.known("reps") else {
            return result(x.dtype, vec![Dim::Unknown; x.shape.len()]);
        };
        let mut shape = Vec::with_capacity(x.shape.len());
        for (size, reps) in x.shape.iter().zip(reps.to_i64()?) {
            let Ok(reps) = usize::try_from(reps) else { bail!("found {reps} repetitions, expected 0 or more") };
            shape.push(match size {
                Dim::Fixed(size) => Dim::Fixed(size.saturating_mul(reps)),
                Dim::Unknown => Dim::Unknown,
            });
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let mut view = View { first: 0, axes: Vec::new() };
        for (axis, reps) in View::whole(x.shape()).axes.into_iter().zip(args.ints("reps")?) {
            view.axes.extend([(reps as usize, 0), axis]);
        }
        Ok(vec![view.take_as(&x, &shape)?])
    }
}

/// See [`Op::doc`].
pub struct SlidingWindows;

impl Op for SlidingWindows {
    fn name(&self) -> &'static str {
        "sliding_windows"
    }

    fn doc(&self) -> &'static str {
        "Every window of `size` elements along an axis, `stride` apart: the axis becomes two, the windows and what is in \
         them."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("axis").constant(),
                Param::new("size").constant(),
                Param::new("stride").constant().or_int(1),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let (along, size, stride) = window(args, x.shape.len())?;
        let mut shape = x.shape.clone();
        shape[along] = match shape[along] {
            Dim::Fixed(n) if n >= size => Dim::Fixed((n - size) / stride + 1),
            Dim::Fixed(n) => bail!("a window of {size} is longer than its axis of {n}"),
            Dim::Unknown => Dim::Unknown,
        };
        shape.insert(along + 1, Dim::Fixed(size));
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let (along, size, stride) = window(args, x.rank())?;
        let mut view = View::whole(x.shape());
        let step = view.axes[along].1;
        view.axes[along] = (shape[along], step * stride as isize);
        view.axes.insert(along + 1, (size, step));
        Ok(vec![view.take(&x)?])
    }
}

/// Axis, size and stride of the windows; a stride beyond any tensor is as good as the largest size.
fn window(args: &Args, rank: usize) -> Result<(usize, usize, usize)> {
    let along = axis(args.int("axis")?, rank)?;
    match (usize::try_from(args.int("size")?), usize::try_from(args.int("stride")?)) {
        (Ok(size @ 1..), Ok(stride @ 1..)) => Ok((along, size, stride.min(super::layout::MOST_ELEMENTS))),
        _ => {
            bail!("found windows of size {} and stride {}, expected 1 or more", args.int("size")?, args.int("stride")?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::DType;

    #[test]
    fn the_whole_repeats() {
        let y = run(&Tile, vec![("x", iota(&[2, 2])), ("reps", vec![1, 2].into())]).unwrap();
        assert_eq!((y.shape(), y.to_i64().is_err()), (&[2, 4][..], true));
        assert_eq!(y.to_f32().unwrap(), [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0]);
        assert!(run(&Tile, vec![("x", iota(&[2])), ("reps", vec![-1].into())]).is_err());
        assert!(run(&Tile, vec![("x", iota(&[2, 2])), ("reps", vec![i32::MAX; 2].into())]).is_err());
        let shape = inferred(&Tile, vec![("x", typed(DType::F16, &[1, 4])), ("reps", typed(DType::I32, &[2]))]);
        assert_eq!(shape.unwrap(), [-1, -1]);
    }

    #[test]
    fn windows_overlap() {
        let windows = |size: i32, stride: i32| {
            let values = vec![("x", iota(&[5])), ("axis", 0.into()), ("size", size.into()), ("stride", stride.into())];
            run(&SlidingWindows, values)
        };
        let y = windows(3, 2).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 3][..], vec![0.0, 1.0, 2.0, 2.0, 3.0, 4.0]));
        assert!(windows(6, 1).is_err() && windows(0, 1).is_err() && windows(1, 0).is_err());
    }
}
