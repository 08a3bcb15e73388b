//! `pad`: more elements around a tensor.

use super::elements::room;
use super::layout::{Cells, count, from_cells, result, result_shape, steps};
use super::shape_rules::show;
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Pad;

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn doc(&self) -> &'static str {
        "x with elements before and after its last axes, as many as `pad` says by pairs: `constant` ones of \
         `constant_val`, those that `reflect` about the first or last element, or `replicate` that."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("pad"),
                Param::new("mode").constant().or_str("constant"),
                Param::new("constant_val").constant().or_float(0.0),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let mode = Mode::new(args)?;
        let [len] = *args.shape("pad")? else { bail!("found pad of type {}, expected a vector", args.ty("pad")?) };
        if args.known("pad").is_none() {
            // Which axes are padded follows from how many numbers there are.
            let padded = len.fixed().unwrap_or(2 * x.shape.len()).div_ceil(2).min(x.shape.len());
            let mut shape = x.shape.clone();
            let first = shape.len() - padded;
            shape[first..].fill(Dim::Unknown);
            return result(x.dtype, shape);
        }
        let mut shape = Vec::with_capacity(x.shape.len());
        for (dim, (before, after)) in x.shape.iter().zip(amounts(args, x.shape.len())?) {
            let Dim::Fixed(size) = *dim else {
                shape.push(if before + after == 0 { *dim } else { Dim::Unknown });
                continue;
            };
            let most = match mode {
                Mode::Constant => usize::MAX,
                Mode::Reflect => size.saturating_sub(1),
                Mode::Replicate if size == 0 => 0,
                Mode::Replicate => usize::MAX,
            };
            if before.max(after) > most {
                bail!("an axis of {size} has no elements to pad {before} and {after} with, x is {}", show(&x.shape));
            }
            shape.push(Dim::Fixed(size.saturating_add(before).saturating_add(after)));
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let (mode, amounts) = (Mode::new(args)?, amounts(args, x.rank())?);
        let cells = Cells::of(&x)?;
        let constant = match args.opt_tensor("constant_val")? {
            Some(value) if value.len() == 1 => Cells::of(&value.cast(x.dtype())?)?.bytes.to_vec(),
            Some(value) => bail!("found constant_val {value:?}, expected one number"),
            None => vec![0; cells.width],
        };
        let steps = steps(x.shape());
        let mut out = room(count(&shape)?.saturating_mul(cells.width))?;
        let mut index = vec![0usize; shape.len()];
        for _ in 0..count(&shape)? {
            let mut offset = Some(0);
            for (axis, &i) in index.iter().enumerate() {
                let place = mode.place(i, amounts[axis].0, x.shape()[axis]);
                offset = offset.zip(place).map(|(offset, place)| offset + place * steps[axis].unsigned_abs());
            }
            out.extend_from_slice(match offset {
                Some(offset) => cells.run(offset, 1)?,
                None => &constant,
            });
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(vec![from_cells(x.dtype(), &shape, out)?])
    }
}

#[derive(Clone, Copy)]
enum Mode {
    Constant,
    Reflect,
    Replicate,
}

impl Mode {
    fn new(args: &Args) -> Result<Mode> {
        Ok(match args.str("mode")? {
            "constant" => Mode::Constant,
            "reflect" => Mode::Reflect,
            "replicate" => Mode::Replicate,
            other => bail!("found the mode {other}, expected constant, reflect or replicate"),
        })
    }

    /// Which element of an axis of this size comes at place `i` of the padded one; `None` for a constant.
    fn place(self, i: usize, before: usize, size: usize) -> Option<usize> {
        match (self, i.checked_sub(before)) {
            (_, Some(i)) if i < size => Some(i),
            (Mode::Constant, _) => None,
            (Mode::Reflect, None) => Some(before - i),
            (Mode::Reflect, Some(i)) => (2 * size).checked_sub(i + 2),
            (Mode::Replicate, None) => Some(0),
            (Mode::Replicate, Some(_)) => size.checked_sub(1),
        }
    }
}

/// Padding before and after each axis; the numbers belong to the last ones.
fn amounts(args: &Args, rank: usize) -> Result<Vec<(usize, usize)>> {
    let values = args.ints("pad")?;
    let sizes: Vec<usize> = values.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
    let too_large = sizes.iter().any(|&n| n > super::layout::MOST_ELEMENTS);
    if sizes.len() != values.len() || !sizes.len().is_multiple_of(2) || sizes.len() > 2 * rank || too_large {
        bail!("found pad {values:?}, expected up to {rank} pairs of sizes");
    }
    let mut out = vec![(0, 0); rank - sizes.len() / 2];
    out.extend(sizes.chunks_exact(2).map(|pair| (pair[0], pair[1])));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::DType;

    /// Expected values: `np.pad(np.arange(3), (2, 2), mode)`.
    #[test]
    fn what_comes_around_depends_on_the_mode() {
        let pad = |mode: &str| {
            let values = vec![("x", iota(&[1, 3])), ("pad", vec![2, 2].into()), ("mode", mode.into())];
            run(&Pad, [values, vec![("constant_val", 7.0.into())]].concat()).unwrap().to_f32().unwrap()
        };
        assert_eq!(pad("constant"), [7., 7., 0., 1., 2., 7., 7.]);
        assert_eq!(pad("reflect"), [2., 1., 0., 1., 2., 1., 0.]);
        assert_eq!(pad("replicate"), [0., 0., 0., 1., 2., 2., 2.]);
    }

    #[test]
    fn the_last_axes_are_padded() {
        let y = run(&Pad, vec![("x", iota(&[2, 1, 1])), ("pad", vec![0, 1, 1, 0].into())]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 2, 2][..], vec![0., 0., 0., 0., 0., 1., 0., 0.]));
        let shape = inferred(&Pad, vec![("x", typed(DType::F16, &[2, 3])), ("pad", typed(DType::I32, &[2]))]);
        assert_eq!(shape.unwrap(), [2, -1]);
    }

    #[test]
    fn padding_that_is_not_there_is_refused() {
        let no = |pad: Vec<i32>, mode: &str| {
            run(&Pad, vec![("x", iota(&[3])), ("pad", pad.into()), ("mode", mode.into())]).is_err()
        };
        assert!(no(vec![3, 0], "reflect") && no(vec![-1, 0], "constant") && no(vec![1], "constant"));
        assert!(no(vec![1, 1, 1, 1], "constant") && no(vec![1, 1], "other"));
        assert!(run(&Pad, vec![("x", iota(&[0])), ("pad", vec![1, 1].into()), ("mode", "replicate".into())]).is_err());
    }
}
